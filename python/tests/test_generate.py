"""Stock modelling code through the cache."""

import gc
import unittest
import weakref

import torch
from common import STEPS, Case, build, forward, generate, grown, left_padded, relative, stock, tiny, tokens
from transformers import DynamicCache

from kittygen import KittyCache, variants


class Generate(Case):
    def test_fp16_variant_is_dynamic_cache(self):
        """Fed DynamicCache's tokens: the same argmax wherever the first two logits are clearly apart."""
        for kind, steps in ("llama", STEPS), ("qwen3", 40), ("phi3", 40), ("gemma3", 40), ("gemma4", 40), ("llama4", 40):
            model = tiny(kind)
            ids, mask = left_padded([150, 61])
            cache, dynamic = KittyCache.for_model(model, "fp16"), DynamicCache(config=model.config)
            counted = 0
            ours, theirs = forward(model, cache, ids, mask), forward(stock(model), dynamic, ids, mask)
            for step in range(steps):
                first, second = theirs[:, -1].topk(2).values.T
                clear = first - second > 0.05
                counted += clear.sum().item()
                same = ours[:, -1].argmax(-1) == theirs[:, -1].argmax(-1)
                self.assertTrue(same[clear].all(), f"{kind}: step {step}")
                token, mask = theirs[:, -1].argmax(-1)[:, None], grown(mask)
                theirs = forward(stock(model), dynamic, token, mask)
                model.set_attn_implementation("kittygen")
                ours = forward(model, cache, token, mask)
            self.assertGreater(counted, 40, f"{kind}: the two logits are hardly ever apart, so this shows nothing")

    def test_every_variant_generates(self):
        model = tiny("llama")
        ids, mask = left_padded([300, 170])
        exact = forward(stock(model), DynamicCache(config=model.config), ids, mask)[:, -1]
        for variant in variants():
            cache = KittyCache.for_model(model, variant)
            prompt = forward(model, cache, ids, mask)[:, -1]
            self.assertLess(relative(prompt, exact), 0.01, f"{variant}: a prompt attends exactly")
            cache.reset()
            self.assertEqual(generate(model, cache, ids, mask, 20).shape, (2, 20))
            self.assertEqual(cache.tokens(), [319, 189])

    def test_error_grows_with_fewer_bits(self):
        """After a prompt, decoding attends the quantised cache: fewer bits, more error, and fp16 hardly any."""
        model = tiny("qwen3")
        ids = tokens(1, 600)
        dynamic = DynamicCache(config=model.config)
        forward(stock(model), dynamic, ids)
        more = tokens(1, 24, seed=3)
        exact = torch.cat([forward(model, dynamic, more[:, i : i + 1]) for i in range(24)], 1)
        error = {}
        for variant in ("fp16", "int4", "kitty-pro", "kivi-2"):
            cache = KittyCache.for_model(model, variant)
            forward(model, cache, ids)
            error[variant] = relative(torch.cat([forward(model, cache, more[:, i : i + 1]) for i in range(24)], 1), exact)
        self.assertLess(error["fp16"], 0.01)
        self.assertTrue(error["fp16"] < error["int4"] < error["kitty-pro"] < error["kivi-2"], error)

    def test_float32_model(self):
        model = build("llama", torch.float32)
        ids, mask = left_padded([200, 90])
        ours = forward(model, KittyCache.for_model(model), ids, mask)[:, -1]
        theirs = forward(stock(model), DynamicCache(config=model.config), ids, mask)[:, -1]
        self.assertLess(relative(ours, theirs), 1e-5)  # the prompt attends in float32
        ours, theirs = KittyCache.for_model(model, "fp16"), DynamicCache(config=model.config)
        forward(model, ours, ids, mask), forward(model, theirs, ids, mask)
        token, mask = tokens(2, 1), grown(mask)
        self.assertLess(relative(forward(model, ours, token, mask), forward(model, theirs, token, mask)), 2e-3)

    def test_bfloat16_model(self):
        model = build("llama", torch.bfloat16)
        ids, mask = left_padded([200, 90])
        ours, cache = [], KittyCache.for_model(model, "fp16")
        theirs, dynamic = [], DynamicCache(config=model.config)
        for step in range(8):
            ours.append(forward(model, cache, ids, mask)[:, -1])
            theirs.append(forward(stock(model), dynamic, ids, mask)[:, -1])
            model.set_attn_implementation("kittygen")
            ids, mask = theirs[-1].argmax(-1)[:, None], grown(mask)
        self.assertLess(relative(torch.stack(ours), torch.stack(theirs)), 0.02)

    def test_without_the_cache(self):
        """A model set to attend through KittyCache still works with a stock cache, and with none."""
        model = tiny("gemma3")
        ids, mask = left_padded([150, 70])
        real = mask.bool()
        expected = forward(stock(model), DynamicCache(config=model.config), ids, mask)[real]
        KittyCache.for_model(model)
        self.assertLess(relative(forward(model, DynamicCache(config=model.config), ids, mask)[real], expected), 0.01)
        self.assertLess(relative(forward(model, None, ids, mask)[real], expected), 0.01)
        with torch.no_grad():
            alone = model(input_ids=ids, attention_mask=mask, use_cache=False).logits.float()
        self.assertEqual(alone.shape[:2], ids.shape)

    def test_sampling_and_streaming_arguments(self):
        model = tiny("llama")
        ids, mask = left_padded([100, 30])
        torch.manual_seed(1)
        out = generate(model, KittyCache.for_model(model), ids, mask, 12, do_sample=True, num_return_sequences=2)
        self.assertEqual(out.shape, (4, 12))
        chunked = generate(model, KittyCache.for_model(model, "fp16"), ids, mask, 12, prefill_chunk_size=40)
        self.assertTrue(torch.equal(chunked, generate(model, KittyCache.for_model(model, "fp16"), ids, mask, 12)))

    def test_memory_grows_with_tokens_only(self):
        model = tiny("qwen3")
        cache = KittyCache.for_model(model)
        self.assertEqual(cache.memory(), {"held": 0, "used": 0})
        forward(model, cache, tokens(2, 600))
        store = cache.steps.store
        page, slab = store.sizes()
        self.assertEqual(cache.memory()["used"], 2 * slab + 2 * 4 * page)
        self.assertLessEqual(cache.memory()["used"], cache.memory()["held"])

    def test_memory_is_given_back(self):
        """With the last reference the pool is closed, as DynamicCache's tensors are, without waiting for the garbage collector."""
        model = tiny("llama")
        cache = KittyCache.for_model(model)
        generate(model, cache, tokens(2, 100), None, 4)
        gone, handles = weakref.ref(cache), cache.steps.store.handles
        self.assertTrue(handles)
        gc.disable()
        try:
            del cache
            self.assertIsNone(gone())
            self.assertFalse(handles)
        finally:
            gc.enable()


if __name__ == "__main__":
    unittest.main()
