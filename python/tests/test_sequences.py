"""Operations on whole sequences: further turns, beams, repeat and select, reset, crop."""

import random
import unittest

import torch
from common import DEVICE, Case, Feed, build, content, feed, forward, generate, grown, left_padded, relative, stock, tiny, tokens
from transformers import DynamicCache

from kittygen import KittyCache
from kittygen import library as kt

FORK = kt.library().has("kt_sequence_fork")


def fresh(model, source, length, splits=()):
    """A cache of one row, fed alone."""
    cache, first = KittyCache.for_model(model), 0
    for end in (*splits, length):
        feed(cache, [source], [first], end - first)
        first = end
    return cache


class Turns(Case):
    def test_splits_give_the_same_bytes(self):
        model = tiny("llama")
        source = Feed(model, 900)
        expected = content(fresh(model, source, 900), 0)
        for splits in ([300], [40, 41, 42, 288, 289, 700], range(100, 900, 100)):
            self.assertSame(content(fresh(model, source, 900, splits), 0), expected)

    def test_second_turn(self):
        """Many query tokens over a filled, padded cache: with fp16 pages, DynamicCache's logits."""
        for kind in ("llama", "gemma3"):
            model = tiny(kind)
            ids, mask = left_padded([200, 71])
            ours, theirs = KittyCache.for_model(model, "fp16"), DynamicCache(config=model.config)
            forward(model, ours, ids, mask), forward(stock(model), theirs, ids, mask)
            for width in (1, 150, 1, 1, 40):
                ids, mask = tokens(2, width, seed=width), grown(mask, width)
                expected = forward(stock(model), theirs, ids, mask)
                model.set_attn_implementation("kittygen")
                self.assertLess(relative(forward(model, ours, ids, mask), expected), 0.01, f"{kind}: {width} tokens")

    def test_second_turn_of_a_quantised_cache(self):
        """It attends what single steps attend, as long as no page is sealed on the way."""
        model = tiny("qwen3")
        ids = tokens(1, 400)  # two pages and 112 tokens
        together, single = KittyCache.for_model(model), KittyCache.for_model(model)
        forward(model, together, ids), forward(model, single, ids)
        more = tokens(1, 14, seed=2)
        a = forward(model, together, more)
        b = torch.cat([forward(model, single, more[:, i : i + 1]) for i in range(14)], 1)
        self.assertLess(relative(a, b), 0.01)
        self.assertEqual(together.tokens(), [414])

    def test_generate_twice(self):
        """A conversation: generate() again with everything so far, over the same cache."""
        model = tiny("llama")
        ids, mask = left_padded([90, 50])
        cache = KittyCache.for_model(model, "fp16")
        first = generate(model, cache, ids, mask, 20)
        turn = torch.cat([ids, first, tokens(2, 30, seed=9)], 1)
        mask = grown(mask, 50)
        second = generate(model, cache, turn, mask, 20)
        again = generate(model, KittyCache.for_model(model, "fp16"), turn, mask, 20)
        self.assertTrue(torch.equal(second[:, :5], again[:, :5]))
        self.assertEqual(cache.get_seq_length(), 90 + 50 + 19)

    def test_reset(self):
        model = tiny("gemma3")
        ids, mask = left_padded([150, 60])
        cache = KittyCache.for_model(model)
        first = generate(model, cache, ids, mask, 12)
        generate(model, cache, torch.cat([ids, first, tokens(2, 20)], 1), grown(mask, 32), 12)
        held = cache.memory()["held"]
        cache.reset()
        self.assertEqual((cache.get_seq_length(), cache.memory()["used"], cache.memory()["held"]), (0, 0, held))
        self.assertTrue(torch.equal(generate(model, cache, ids, mask, 12), first))


@unittest.skipUnless(FORK, "this libkitty has no kt_sequence_fork")
class Rows(Case):
    def check(self, change, rows, batch=3, more=200):
        """Feeds three rows, rearranges them, goes on with other tokens, and compares with rows that were always so."""
        model = tiny("llama")
        lengths = [150, 300, 61][:batch]
        feeds = [Feed(model, 600, seed) for seed in range(batch)]
        tails = [Feed(model, 600, 50 + seed) for seed in range(len(rows))]
        width = max(lengths)
        _, mask = left_padded(lengths)
        cache = KittyCache.for_model(model, max_batch=max(len(rows), batch))
        feed(cache, feeds, [length - width for length in lengths], width, mask.bool())
        change(cache)
        mask = mask[torch.tensor(rows, device=DEVICE)]
        self.assertEqual(cache.tokens(), [lengths[row] for row in rows])
        for step in range(more):
            mask = grown(mask)
            feed(cache, tails, [step] * len(rows), 1, mask.bool())
        for place, row in enumerate(rows):
            alone = KittyCache.for_model(model)
            feed(alone, [feeds[row]], [0], lengths[row])
            feed(alone, [tails[place]], [0], more)
            self.assertSame(content(cache, place), content(alone, 0), f"row {place}, once {row}")
        return cache

    def test_reorder(self):
        for rows in ([2, 0, 1], [1, 1, 1], [0, 2, 2]):
            with self.subTest(rows=rows):
                self.check(lambda cache: cache.reorder_cache(torch.tensor(rows, device=DEVICE)), rows)

    def test_repeat(self):
        self.check(lambda cache: cache.batch_repeat_interleave(2), [0, 0, 1, 1, 2, 2])

    def test_select(self):
        cache = self.check(lambda cache: cache.batch_select_indices(torch.tensor([2, 0], device=DEVICE)), [2, 0])
        self.assertEqual(cache.batch_size, 2)
        self.check(lambda cache: cache.batch_select_indices(torch.tensor([False, True, True], device=DEVICE)), [1, 2], more=2)

    def test_no_room(self):
        model = tiny("llama")
        cache = KittyCache.for_model(model)
        forward(model, cache, tokens(2, 40))
        with self.refused("4 sequences", "max_batch=4"):
            cache.batch_repeat_interleave(2)
        self.assertEqual(cache.tokens(), [40, 40])

    def test_reorder_of_sliding_layers(self):
        model = tiny("gemma3")
        ids, mask = left_padded([140, 50, 90])
        cache = KittyCache.for_model(model)
        forward(model, cache, ids, mask)
        order = torch.tensor([2, 2, 0], device=DEVICE)
        cache.reorder_cache(order)
        mine = forward(model, cache, tokens(3, 1), grown(mask[order]))
        other = KittyCache.for_model(model)
        forward(model, other, ids[order], mask[order])
        self.assertLess(relative(mine, forward(model, other, tokens(3, 1), grown(mask[order]))), 0.01)

    def test_beam_search(self):
        """Beams through the cache are those of running every beam again from its beginning, without any cache."""
        model = build("llama", torch.float32)
        ids, mask = left_padded([140, 60])
        arguments = {"num_beams": 3, "num_return_sequences": 2}
        ours = generate(model, KittyCache.for_model(model, "fp16"), ids, mask, 16, **arguments)
        again = generate(stock(model), None, ids, mask, 16, use_cache=False, **arguments)
        self.assertTrue(torch.equal(ours, again))
        quantised = KittyCache.for_model(model)
        self.assertEqual(generate(model, quantised, ids, mask, 16, **arguments).shape, (4, 16))


@unittest.skipUnless(FORK, "this libkitty has no kt_sequence_truncate")
class Crop(Case):
    def test_random_walk(self):
        """Steps and crops in any order: always what a fresh cache of the same tokens holds, or a refusal that changes nothing."""
        model = tiny("llama")
        source = Feed(model, 1500)
        draw = random.Random(3)
        for recording in (False, True):
            cache, count, done = KittyCache.for_model(model), 0, 0
            if recording:
                cache.activate_past_recording()
            for _ in range(50):
                before = count
                width = draw.choice([1, 1, 1, 2, 5, 20, 130, 300] if count else [10, 100, 200, 400])
                if count + width > 1500:
                    cache.reset()
                    count, width = 0, 200
                    before = 0
                feed(cache, [source], [count], width)
                count += width
                if draw.random() < 0.6:
                    remove = draw.choice([1, draw.randint(1, width), width, min(count, width + 20)])
                    held = content(cache, 0)
                    try:
                        cache.crop(-remove)
                        count -= remove
                        done += 1
                    except Exception as error:
                        self.assertIn("sealed already", str(error))
                        self.assertSame(content(cache, 0), held)
                        if recording or width <= 64:
                            self.assertLess(count - remove, before, "a crop within the last step was refused")
                self.assertEqual(cache.tokens(), [count] if count else [])
                if count:
                    self.assertSame(content(cache, 0), content(fresh(model, source, count), 0))
            self.assertGreater(done, 10)

    def test_deep_crop_is_refused(self):
        model = tiny("llama")
        cache = KittyCache.for_model(model)
        forward(model, cache, tokens(1, 500))
        for step in range(3):
            forward(model, cache, tokens(1, 1))
        held = content(cache, 0)
        with self.refused("row 0 has 503 tokens; 203 are to be left", "activate_past_recording", "spare="):
            cache.crop(-300)
        self.assertSame(content(cache, 0), held)
        with self.refused("crop(3)", "minus the number"):
            cache.crop(3)
        cache.crop(-503)
        self.assertEqual((cache.get_seq_length(), cache.tokens()), (0, []))

    def test_padded_rows(self):
        """Rows of any length lose the same number of tokens; one that has fewer is empty."""
        model = tiny("llama")
        lengths = [200, 10, 90]
        feeds = [Feed(model, 400, seed) for seed in range(3)]
        _, mask = left_padded(lengths)
        cache = KittyCache.for_model(model)
        cache.activate_past_recording()
        feed(cache, feeds, [length - 200 for length in lengths], 200, mask.bool())
        cache.crop(-30)
        self.assertEqual((cache.get_seq_length(), cache.tokens()), (170, [170, 0, 60]))
        mask = torch.cat([mask[:, :170], mask.new_ones(3, 50)], 1)
        feed(cache, feeds, [170, 0, 60], 50, mask.bool())
        for row, length in enumerate([220, 50, 110]):
            self.assertSame(content(cache, row), content(fresh(model, feeds[row], length), 0))

    def test_long_prompt(self):
        """Of a recorded prompt the last 64 tokens can be taken back one by one, wherever pages end."""
        model = tiny("llama")
        source = Feed(model, 700)
        for length in (288, 289, 300, 417, 552):
            cache = KittyCache.for_model(model)
            cache.activate_past_recording()
            feed(cache, [source], [0], length)
            self.assertSame(content(cache, 0), content(fresh(model, source, length), 0))
            for remove in (1, 9, 54):
                cache.crop(-remove)
                length -= remove
                self.assertSame(content(cache, 0), content(fresh(model, source, length), 0), f"{length} tokens left")

    def test_sliding_layers(self):
        """A refusal by either kind of layer leaves both as they were."""
        model = tiny("gemma3")
        ids = tokens(1, 200)
        cache = KittyCache.for_model(model)
        forward(model, cache, ids)
        with self.assertRaises(RuntimeError):
            cache.crop(-2)  # the sliding layers were not told to record
        self.assertEqual((cache.get_seq_length(), cache.tokens()), (200, [200]))
        cache = KittyCache.for_model(model)
        cache.activate_past_recording()
        forward(model, cache, ids)
        cache.crop(-7)
        other = KittyCache.for_model(model)
        forward(model, other, ids[:, :-7])
        self.assertLess(relative(forward(model, cache, tokens(1, 1)), forward(model, other, tokens(1, 1))), 0.01)

    def test_assisted_decoding(self):
        """Prompt lookup proposes, the cache takes the wrong ones back: plain greedy's tokens, wherever the logits are apart."""
        model = build("llama", torch.float32)
        part = tokens(1, 40)
        ids = torch.cat([part, part, part, part, part], 1)
        for variant in ("fp16", "kitty-pro"):
            plain = generate(model, KittyCache.for_model(model, variant), ids, None, 60)
            cache = KittyCache.for_model(model, variant)
            assisted = generate(model, cache, ids, None, 60, prompt_lookup_num_tokens=6)
            length = next((i for i in range(60) if plain[0, i] != assisted[0, i]), 60)
            if length < 60:
                check = KittyCache.for_model(model, variant)
                logits = forward(model, check, ids)[:, -1]
                for i in range(length):
                    logits = forward(model, check, plain[:, i : i + 1])[:, -1]
                first, second = logits.topk(2).values[0].tolist()
                self.assertLess(first - second, 0.3, f"{variant}: token {length} differs though the logits are apart")
            self.assertGreater(length, 8)
            self.assertLess(len(cache.tokens()), 2)


if __name__ == "__main__":
    unittest.main()
