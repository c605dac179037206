"""Sinks and windows that no tile divides: which tokens stay exact, and that padded, forked and cropped rows hold what each holds alone."""

import random
import tempfile
import unittest
from pathlib import Path

import torch
from common import DEVICE, Case, Feed, content, feed, grown, left_padded, read, relative, tiny

from kittygen import KittyCache
from kittygen import library as kt

SINK, KEY_WINDOW, VALUE_WINDOW, PAGE = 5, 3, 101, 64
SPEC = f"""return kitty {{
    variant = "odd", page = {PAGE}, sink = {SINK},
    model = {{ name = "odd", layers = 2, q_heads = 2, kv_heads = 1, head_dim = 64, dtype = "fp16" }},
    key = {{ window = {KEY_WINDOW}, boost = {{ fraction = 0.25 }} }}, value = {{ window = {VALUE_WINDOW} }},
}}
"""


class AnyNumber(Case):
    @classmethod
    def setUpClass(cls):
        cls.model = tiny("llama")
        cls.spec = Path(tempfile.mkdtemp(prefix="kittygen-spec-")) / "odd.lua"
        cls.spec.write_text(SPEC)

    def cache(self, **arguments):
        return KittyCache.for_model(self.model, spec=self.spec, **arguments)

    def alone(self, source, length):
        cache = self.cache()
        feed(cache, [source], [0], length)
        return content(cache, 0)

    def test_which_tokens_are_exact(self):
        edge = SINK + VALUE_WINDOW + PAGE
        source, cache, count = Feed(self.model, edge + 1), self.cache(), 0
        for length, pages in ((SINK, (0, 0)), (SINK + KEY_WINDOW + PAGE, (1, 0)), (edge - 1, (2, 0)), (edge, (2, 1)), (edge + 1, (2, 1))):
            feed(cache, [source], [count], length - count)
            count = length
            for part, states, sealed in ((kt.KEY, source.key, pages[0]), (kt.VALUE, source.value, pages[1])):
                stored = torch.frombuffer(bytearray(read(cache, 0, 1, 0, part)), dtype=torch.float32).view(length, -1)
                same = (stored == states[1, 0, :length].cpu().float()).all(-1).tolist()
                place = range(length)
                self.assertEqual(same, [token < SINK or token >= SINK + sealed * PAGE for token in place], f"{length} tokens, part {part}")

    def test_padded_and_reordered(self):
        """Prompts that end within the sinks, at the edge of a page and after it, go on together, some of them twice."""
        lengths, rows = [300, 3, SINK + VALUE_WINDOW + PAGE - 1, 90], [2, 0, 1, 3, 2]
        feeds = [Feed(self.model, 340, seed) for seed in range(4)]
        _, mask = left_padded(lengths)
        cache = self.cache(max_batch=5)
        feed(cache, feeds, [length - 300 for length in lengths], 300, mask.bool())
        cache.batch_select_indices(torch.tensor(rows, device=DEVICE))
        mask = mask[torch.tensor(rows, device=DEVICE)]
        for step, width in ((0, 1), (1, 1), (2, 30), (32, 1)):
            mask = grown(mask, width)
            outs = feed(cache, [feeds[row] for row in rows], [lengths[row] + step for row in rows], width, mask.bool())
        for place, row in enumerate(rows):
            single, length = self.cache(), lengths[row]
            for first, width in ((0, length), (length, 1), (length + 1, 1), (length + 2, 30), (length + 32, 1)):
                alone = feed(single, [feeds[row]], [first], width)
            self.assertSame(content(cache, place), content(single, 0), f"row {place}")
            self.assertSame(content(cache, place), self.alone(feeds[row], length + 33), f"row {place} at once")
            for layer, out in enumerate(alone):
                self.assertLess(relative(out[0], outs[layer][place]), 1e-3, f"row {place}, layer {layer}")

    def test_crop(self):
        """Recorded steps and crops by turns: always what a cache of the same tokens holds."""
        source, draw, count, done = Feed(self.model, 520), random.Random(5), 0, 0
        cache = self.cache()
        cache.activate_past_recording()
        while count < 400:
            before, width = count, draw.choice([1, 2, 20, 64, 65, 101])
            feed(cache, [source], [count], width)
            count += width
            if draw.random() < 0.6:
                remove = draw.randint(1, count - before)
                cache.crop(-remove)
                count -= remove
                done += 1
            if count:
                self.assertSame(content(cache, 0), self.alone(source, count), f"{count} tokens")
        self.assertGreater(done, 4)


if __name__ == "__main__":
    unittest.main()
