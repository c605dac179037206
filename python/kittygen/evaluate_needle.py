"""Needle in a haystack: a pass-phrase at some depth of a long text, asked for at the end, through the cache.

The pass-phrase is three words of one token each. The text and the needle are the prompt; the question and the words before
the one that is asked for are decoded token by token. Each word is asked for twice over: does the model rank it first among
ten candidates (the other words of the phrase are among them; chance is 10 %), and first among all tokens?
"""

import random
from dataclasses import dataclass

import torch

from .caches import forward, opened
from .evaluate_score import groups
from .report import CommandError, progress

DEPTHS = (0.1, 0.3, 0.5, 0.7, 0.9)
WORDS, CANDIDATES = 3, 10
NEEDLE = "\nThe secret pass-phrase is:", ".\n"
QUESTION = "\nWhat is the secret pass-phrase? The secret pass-phrase is:"
POOL = ("castle river lemon window doctor tiger copper garden winter guitar bridge planet silver button forest market "
        "pencil rocket summer turtle velvet basket candle dragon engine finger hammer island jacket kitchen ladder mirror "
        "needle orange pepper rabbit saddle ticket valley wagon apple bread chair cloud dance eagle flame glass horse "
        "knife lake mouse night ocean paper queen road sheep table water").split()


@dataclass
class Haystacks:
    length: int
    ids: torch.Tensor         # [sequences, length + WORDS]: text with needle, question, the phrase
    prompt: int               # tokens that go in at once; the question follows
    candidates: torch.Tensor  # [sequences, WORDS, CANDIDATES] tokens; column 0 is right
    depths: list              # of each sequence


@dataclass
class Found:
    length: int
    depth: float
    choice: float    # share of words ranked first among the candidates
    exact: float     # share of words ranked first among all tokens
    logprob: float   # mean log-probability of the right word among the candidates


def build(tokenizer, filler, first, length, trials, seed=0):
    """Haystacks of `length` tokens up to the first answer, `trials` at each depth, from the ids of a text."""
    def encode(text):
        return tokenizer(text, add_special_tokens=False).input_ids

    pool = [ids[0] for ids in (encode(" " + word) for word in POOL) if len(ids) == 1]
    pool = sorted(set(pool))
    if len(pool) < CANDIDATES:
        raise CommandError(f"--needle: only {len(pool)} of the words are one token to this tokenizer, {CANDIDATES} are needed; "
                           "--needle none leaves it out")
    before, after, question = encode(NEEDLE[0]), encode(NEEDLE[1]), encode(QUESTION)
    room = length - len(first) - len(before) - WORDS - len(after) - len(question)
    if room < 1:
        raise CommandError(f"--needle: {length} tokens do not hold needle and question; at least {length - room + 1} are needed")
    random_number = random.Random(seed)
    rows, candidates, depths = [], [], []
    for depth in DEPTHS:
        for _ in range(trials):
            words = random_number.sample(pool, CANDIDATES)
            phrase, start = words[:WORDS], random_number.randrange(len(filler))
            hay = [filler[(start + i) % len(filler)] for i in range(room)]
            at = round(depth * room)
            rows.append(first + hay[:at] + before + phrase + after + hay[at:] + question + phrase)
            candidates.append([[word] + [other for other in words if other != word] for word in phrase])
            depths.append(depth)
    return Haystacks(length, torch.tensor(rows), length - len(question), torch.tensor(candidates), depths)


def search(name, model, haystacks, batch):
    """What is found through the cache `name`, one Found per depth."""
    device = model.device
    right, exact, logprob = [], [], []
    first = 0
    for ids in groups(haystacks.ids, batch):
        candidates = haystacks.candidates[first:first + len(ids)].to(device)
        first += len(ids)
        ids = ids.to(device)
        with opened(name, model, len(ids), ids.shape[1]) as cache:
            forward(model, ids[:, :haystacks.prompt], cache)
            for at in progress(range(haystacks.prompt, ids.shape[1] - 1), desc=f"{name} needle {haystacks.length}", unit="step"):
                logits = forward(model, ids[:, at:at + 1], cache).float()
                word = at + 1 - haystacks.length
                if word >= 0:
                    among = logits.gather(-1, candidates[:, word]).log_softmax(-1)
                    right.append(among[:, 0] > among[:, 1:].amax(-1))
                    exact.append(logits.argmax(-1) == candidates[:, word, 0])
                    logprob.append(among[:, 0])
    return [average(haystacks, depth, right, exact, logprob) for depth in DEPTHS]


def average(haystacks, depth, right, exact, logprob):
    # Lists hold WORDS tensors for each group of sequences, in the order of the sequences.
    mask = torch.tensor([d == depth for d in haystacks.depths])

    def mean(parts):
        columns = [torch.cat([part.float().cpu() for part in parts[word::WORDS]]) for word in range(WORDS)]
        return torch.stack(columns)[:, mask].mean().item()

    return Found(haystacks.length, depth, mean(right), mean(exact), mean(logprob))
