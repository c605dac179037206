"""Left-padded batches give what each sequence gives alone."""

import copy
import unittest

import torch
from common import DEVICE, Case, Feed, content, feed, forward, grown, left_padded, relative, stock, tiny, tokens
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from kittygen import KittyCache

LENGTHS = [40, 97, 160, 161, 289, 420, 555, 700]


def rounded(page, bits, dim):
    low, high = page.aminmax(dim=dim, keepdim=True)
    zero, scale = low.half().float(), ((high - low) / (2**bits - 1)).half().float()
    return ((page - zero) / scale).round().clamp(0, 2**bits - 1) * scale + zero


def round_pages(cache, pads, sink=32, page=128, window=128):
    """Replaces what kitty-pro would have sealed by now in the full-attention layers of a DynamicCache; gives it back."""
    for layer in (layer for layer in cache.layers if type(layer) is DynamicLayer):
        for row, pad in enumerate(pads):
            for states, newest in ((layer.keys, 0), (layer.values, window)):
                for first in range(pad + sink, states.shape[2] - newest - page + 1, page):
                    exact = states[row, :, first : first + page].float()
                    if states is layer.keys:
                        score = exact.abs().mean(1, keepdim=True)
                        boosted = score >= score.topk(score.shape[-1] // 4).values[..., -1:]
                        states[row, :, first : first + page] = torch.where(boosted, rounded(exact, 4, 1), rounded(exact, 2, 1))
                    else:
                        states[row, :, first : first + page] = rounded(exact, 2, 2)
    return cache


class Padding(Case):
    def test_bytes_and_lengths(self):
        """The same keys and values fed padded and alone: pads (NaN here) are not stored, pages are equal byte for byte.

        After the prompt come steps of many tokens and of one; in one of these the second row seals a page.
        """
        model = tiny("llama")
        feeds = [Feed(model, 768, seed) for seed in range(len(LENGTHS))]
        width, turns = max(LENGTHS), (60, 1, 1, 1, 1, 1, 1, 1, 1)
        _, mask = left_padded(LENGTHS)
        padded, stored = KittyCache.for_model(model), list(LENGTHS)
        feed(padded, feeds, [length - width for length in LENGTHS], width, mask.bool())
        together = None
        for turn in turns:
            mask = grown(mask, turn)
            together = feed(padded, feeds, stored, turn, mask.bool())
            stored = [length + turn for length in stored]
        self.assertEqual(padded.tokens(), stored)
        self.assertEqual(padded.get_seq_length(), 768)
        self.assertEqual(padded.nonfinite(), 0)
        for row, length in enumerate(LENGTHS):
            alone = KittyCache.for_model(model)
            feed(alone, [feeds[row]], [0], length)
            for turn in turns:
                single = feed(alone, [feeds[row]], alone.tokens(), turn)
            self.assertSame(content(padded, row), content(alone, 0), f"row {row}, length {length}")
            for layer, out in enumerate(single):
                # A GPU divides a sequence among blocks by what else is in the batch: sums in another order.
                far = relative(out[0], together[layer][row])
                self.assertLessEqual(far, 1e-3 if DEVICE == "cuda" else 0, f"row {row}, layer {layer}: attention differs")

    def test_prompt_attention(self):
        """A padded prompt attends what it attends alone, to the bit; pads come out as zeros."""
        model = tiny("qwen3")
        lengths = [5, 64, 33]
        feeds = [Feed(model, 64, seed) for seed in range(3)]
        _, mask = left_padded(lengths)
        together = feed(KittyCache.for_model(model), feeds, [length - 64 for length in lengths], 64, mask.bool())
        for row, length in enumerate(lengths):
            alone = feed(KittyCache.for_model(model), [feeds[row]], [0], length)
            for layer, out in enumerate(alone):
                self.assertTrue(torch.equal(out[0], together[layer][row, 64 - length :]))
                self.assertEqual(together[layer][row, : 64 - length].abs().sum().item(), 0)

    def test_logits(self):
        """Relative L2 of the logits between padded and alone is at most twice what DynamicCache shows, of prompts and of steps.

        What reaches the cache differs in its last places, as the model's products and sliding layers round by shape. Where pages
        are sealed, that moves a code here and there by a whole step, whoever holds the cache: the steps of quantised variants are
        held to a DynamicCache whose pages are rounded in the same way.
        """
        for kind in ("llama", "gemma3"):
            model = tiny(kind)
            exact, rounded = self.logits(stock(model), lambda: DynamicCache(config=model.config), round_pages)
            for variant, theirs in (("fp16", exact), ("kitty-pro", rounded)):
                (ours,) = self.logits(model, lambda: KittyCache.for_model(model, variant))
                for part, name in ((slice(1), "prompt"), (slice(1, None), "steps")):
                    bound, found = (relative(*(logits[:, part] for logits in pair)) for pair in (theirs, ours))
                    with self.subTest(kind, variant=variant, part=name):
                        self.assertLessEqual(found, 2 * bound)
                        self.assertLess(relative(ours[1][:, part], theirs[1][:, part]), 0.02)

    def logits(self, model, make, *changes, steps=3):
        """(padded, alone), each [sequence, 1 + steps, vocabulary]: after the prompt and after each step; and again with each
        change(cache, pads) made behind the prompt."""
        ids, mask = left_padded(LENGTHS)
        more = tokens(len(LENGTHS), steps, seed=1)
        runs = [(ids, mask, more)]
        runs += [(ids[row : row + 1, -length:], None, more[row : row + 1]) for row, length in enumerate(LENGTHS)]
        results = [[] for _ in (None, *changes)]
        for prompt, mask, after in runs:
            cache = make()
            first = forward(model, cache, prompt, mask)[:, -1]
            pads = [0] if mask is None else (mask == 0).sum(-1).tolist()
            caches = [change(copy.deepcopy(cache), pads) for change in changes]
            for result, one in zip(results, [cache, *caches]):
                grow = mask
                rows = [first]
                for step in range(steps):
                    grow = None if grow is None else grown(grow)
                    rows.append(forward(model, one, after[:, step : step + 1], grow)[:, -1])
                result.append(torch.stack(rows, 1))
        return [(padded, torch.cat(alone)) for padded, *alone in results]

    def test_chunked_prompt(self):
        """generate(prefill_chunk_size=...) with rows that begin in a later chunk."""
        model = tiny("llama")
        feeds = [Feed(model, 300, seed) for seed in range(3)]
        lengths = [300, 90, 180]
        _, mask = left_padded(lengths)
        cache = KittyCache.for_model(model)
        for first in range(0, 300, 100):
            feed(cache, feeds, [length - 300 + first for length in lengths], 100, mask[:, : first + 100].bool())
        self.assertEqual(cache.tokens(), lengths)
        for row, length in enumerate(lengths):
            alone = KittyCache.for_model(model)
            feed(alone, [feeds[row]], [0], length)
            self.assertSame(content(cache, row), content(alone, 0))


if __name__ == "__main__":
    unittest.main()
