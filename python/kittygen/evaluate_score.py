"""What a cache does to a model's predictions, token by token over a text.

The text is cut into windows; each window's first `prompt` tokens go in at once, the others one by one through the cache,
whatever the model itself would have said (teacher forcing). Windows overlap by the prompt, so that every token of the text
after the first prompt is scored once. Next-token distributions are compared with those of the model's one causal pass over
the same window without any cache: of that pass only the last hidden states are kept, and the head runs again at each step.
"""

import math
from dataclasses import dataclass

import torch

from .caches import forward, is_kitty, opened
from .decode import Decoder
from .report import CommandError, progress

FORWARD_TOKENS = 1 << 16  # most tokens of a prompt pass, over all its sequences


@dataclass
class Windows:
    ids: torch.Tensor  # [windows, window + 1]: the last token is only a target
    prompt: int

    @property
    def steps(self):
        return self.ids.shape[1] - 1 - self.prompt


def cut(ids, first, window, prompt, tokens=None):
    """Windows over the text's ids (a list), each beginning with the ids of `first`; at least `tokens` scored, or all."""
    if not len(first) < prompt < window:
        raise CommandError(f"--prompt: {prompt} is not allowed; allowed: {len(first) + 1} to {window - 1}, less than --window")
    width, stride = window + 1 - len(first), window - prompt
    count = (len(ids) - width) // stride + 1
    if tokens is not None:
        if tokens > count * stride:
            raise CommandError(f"--tokens: the text gives {max(count, 0) * stride} scored tokens in windows of {window} with "
                               f"prompts of {prompt}; {tokens} asked for")
        count = math.ceil(tokens / stride)
    if count < 1:
        raise CommandError(f"--text: {len(ids)} tokens are less than one window of {window}; shorten --window")
    rows = [first + ids[i * stride:i * stride + width] for i in range(count)]
    return Windows(torch.tensor(rows), prompt)


class Reference:
    """The model's own distributions: hidden states [windows, steps, hidden] of one exact pass over each window."""

    def __init__(self, model, windows, batch):
        self.model, self.softcap = model, getattr(model.config.get_text_config(), "final_logit_softcapping", None)
        model.set_attn_implementation("sdpa")
        parts = []
        for rows in groups(windows.ids[:, :-1], batch, "exact pass"):
            hidden = model.get_decoder()(input_ids=rows, use_cache=False).last_hidden_state
            if not parts:
                self.check(rows, hidden)
            parts.append(hidden[:, windows.prompt:].clone())
        self.hidden = torch.cat(parts)

    def logits(self, rows, step):
        logits = self.model.get_output_embeddings()(self.hidden[rows, step])
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def check(self, rows, hidden):
        self.hidden = hidden
        whole = self.model(input_ids=rows[:1], use_cache=False, logits_to_keep=1).logits[0, -1].float()
        ours = self.logits(slice(0, 1), -1)[0].float()
        if not (whole - ours).norm() <= 0.02 * whole.norm():
            raise CommandError(f"{type(self.model).__name__} does more to its logits than its output embedding and "
                               "final_logit_softcapping; it cannot be evaluated")


@dataclass
class Score:
    kl: torch.Tensor              # [windows, steps] KL(exact || cache), nats
    nll: torch.Tensor             # of the text's next token, nats
    nll_exact: torch.Tensor       # the same under the reference
    agree: torch.Tensor           # whether both put the same token first

    @property
    def perplexity(self):
        return math.exp(self.nll.mean().item())

    @property
    def perplexity_exact(self):
        return math.exp(self.nll_exact.mean().item())

    def kl_error(self, other=None):
        """Standard error of the mean KL, or of its difference to another score of the same windows."""
        means = (self.kl if other is None else self.kl - other.kl).mean(dim=1)
        return (means.std() / math.sqrt(len(means))).item() if len(means) > 1 else None

    def by_context(self, prompt, parts=8):
        """Mean KL over equal ranges of the context: [[first token, last token, KL], ...]."""
        edges = [self.kl.shape[1] * i // parts for i in range(parts + 1)]
        return [[prompt + a + 1, prompt + b, self.kl[:, a:b].mean().item()] for a, b in zip(edges, edges[1:]) if b > a]


class Forced(Decoder):
    """The decode loop over given tokens: what it would choose does not matter, its logits are kept."""

    def __init__(self, model, cache, capture):
        super().__init__(model, cache, capture=capture, eos_token_id=())
        self.logits = None

    def choose(self, logits):
        if self.logits is None:
            self.logits = torch.empty_like(logits)
        self.logits.copy_(logits)  # one address for eager and for captured steps

    def __call__(self, ids):
        self.token.copy_(ids)
        self.run(1)
        return self.logits


def start(name, model, cache, prompt, steps, eager):
    """Takes in the prompt; gives the function from the next ids [batch, 1] to logits, for `steps` calls."""
    if not is_kitty(name):
        forward(model, prompt, cache)
        return lambda ids: forward(model, ids, cache)
    decoder = Forced(model, cache, capture=False if eager else None)
    decoder.prefill(prompt, max_new_tokens=steps + 1)
    return decoder


def score(name, model, reference, windows, batch, eager=False):
    """Decodes all windows through the cache `name`; by CUDA graphs where it is KittyCache on a GPU, unless eager."""
    parts = []
    first = 0
    for ids in groups(windows.ids, batch):
        rows = slice(first, first + len(ids))
        first += len(ids)
        # [quantity, step, sequence]: filled on the device, read once at the end
        table = torch.empty(4, windows.steps, len(ids), device=ids.device)
        with opened(name, model, len(ids), ids.shape[1]) as cache:
            step = start(name, model, cache, ids[:, :windows.prompt], windows.steps, eager)
            for i in progress(range(windows.steps), desc=f"{name} {rows.stop}/{len(windows.ids)}", unit="step"):
                at = windows.prompt + i
                compare(step(ids[:, at:at + 1]), reference.logits(rows, i), ids[:, at + 1], table[:, i])
            del step
        parts.append(table.cpu())
    kl, nll, nll_exact, agree = torch.cat(parts, dim=2).transpose(1, 2)
    if not torch.isfinite(kl).all():
        raise CommandError(f"{name}: {int((~torch.isfinite(kl)).sum())} of {kl.numel()} predictions are not finite", 1)
    return Score(kl, nll, nll_exact, agree)


def compare(logits, exact, target, out):
    """KL, both negative log-likelihoods of the target, and agreement, of [sequences, vocabulary] logits, into out [4, sequences]."""
    logits, exact = logits.float(), exact.float()
    out[3] = (logits.argmax(-1) == exact.argmax(-1)).float()
    ours, truth = logits.log_softmax(-1), exact.log_softmax(-1)
    out[1] = -ours.gather(-1, target[:, None])[:, 0]
    out[2] = -truth.gather(-1, target[:, None])[:, 0]
    out[0] = (truth.exp() * (truth - ours)).sum(-1)


def groups(ids, batch, name=None):
    """Rows of ids in groups of at most `batch` sequences and FORWARD_TOKENS tokens."""
    size = max(1, min(batch, FORWARD_TOKENS // ids.shape[1]))
    starts = range(0, len(ids), size)
    for start in progress(starts, desc=name, unit="batch") if name else starts:
        yield ids[start:start + size]
