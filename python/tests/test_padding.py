"""Left-padded batches give what each sequence gives alone."""

import unittest

import torch
from common import Case, Feed, content, feed, forward, grown, left_padded, relative, stock, tiny, tokens
from transformers import DynamicCache

from kittygen import KittyCache

LENGTHS = [40, 97, 160, 161, 289, 420, 555, 700]


class Padding(Case):
    def test_bytes_and_lengths(self):
        """The same keys and values fed padded and alone: pads (NaN here) are not stored, pages are equal byte for byte."""
        model = tiny("llama")
        feeds = [Feed(model, 740, seed) for seed in range(len(LENGTHS))]
        width = max(LENGTHS)
        _, mask = left_padded(LENGTHS)
        padded = KittyCache.for_model(model)
        feed(padded, feeds, [length - width for length in LENGTHS], width, mask.bool())
        together = None
        for step in range(40):
            mask = grown(mask)
            together = feed(padded, feeds, [length + step for length in LENGTHS], 1, mask.bool())
        self.assertEqual(padded.tokens(), [length + 40 for length in LENGTHS])
        self.assertEqual(padded.get_seq_length(), 740)
        self.assertEqual(padded.nonfinite(), 0)
        for row, length in enumerate(LENGTHS):
            alone = KittyCache.for_model(model)
            feed(alone, [feeds[row]], [0], length)
            for step in range(40):
                single = feed(alone, [feeds[row]], [length + step], 1)
            self.assertSame(content(padded, row), content(alone, 0), f"row {row}, length {length}")
            for layer, out in enumerate(single):
                self.assertTrue(torch.equal(out[0], together[layer][row]), f"row {row}, layer {layer}: attention differs")

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
        """Relative L2 of the logits between padded and alone, beside what DynamicCache itself shows.

        While decoding over sealed pages a difference in the last place of a key may move its code, and that is a whole step:
        there the quantised cache is given more room.
        """
        for kind in ("llama", "gemma3"):
            model = tiny(kind)
            theirs = self.distance(stock(model), lambda: DynamicCache(config=model.config))
            for variant, room in (("fp16", 2), ("kitty-pro", 8)):
                ours = self.distance(model, lambda: KittyCache.for_model(model, variant))
                with self.subTest(kind, variant=variant, theirs=theirs, ours=ours):
                    self.assertLessEqual(ours[0], 2 * theirs[0])
                    self.assertLessEqual(ours[1], room * theirs[1])

    def distance(self, model, make, steps=3):
        """Of the prompt's logits, and of those of the steps after it."""
        ids, mask = left_padded(LENGTHS)
        more = tokens(len(LENGTHS), steps, seed=1)
        padded, alone = [], []
        cache = make()
        padded.append(forward(model, cache, ids, mask)[:, -1])
        for step in range(steps):
            mask = grown(mask)
            padded.append(forward(model, cache, more[:, step : step + 1], mask)[:, -1])
        for row, length in enumerate(LENGTHS):
            cache = make()
            logits = [forward(model, cache, ids[row : row + 1, -length:])[:, -1]]
            logits += [forward(model, cache, more[row : row + 1, step : step + 1])[:, -1] for step in range(steps)]
            alone.append(torch.cat(logits))
        padded, alone = torch.stack(padded, 1), torch.stack(alone)
        return relative(padded[:, 0], alone[:, 0]), relative(padded[:, 1:], alone[:, 1:])

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
