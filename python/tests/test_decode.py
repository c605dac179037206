"""The decode loop, torch.compile, and on a GPU captured steps against eager ones."""

import unittest

import torch
from common import CACHE, DEVICE, Case, build, content, forward, generate, grown, left_padded, tiny, tokens

from kittygen import KittyCache
from kittygen.decode import Decoder

GPU = DEVICE == "cuda"


class Decode(Case):
    def test_equals_generate(self):
        """Ragged rows, page turns, sliding layers that fill up: the same tokens, and the same cache afterwards."""
        for kind, lengths, count in (("llama", [150, 61, 90], 120), ("gemma3", [150, 61], 60), ("gemma3", [60, 12], 100)):
            model = tiny(kind)
            ids, mask = left_padded(lengths)
            theirs, ours = KittyCache.for_model(model), KittyCache.for_model(model)
            expected = generate(model, theirs, ids, mask, count)
            with self.subTest(kind, lengths=lengths):
                self.assertTrue(torch.equal(Decoder(model, ours, capture=False).generate(ids, mask, count), expected))
                # A ring of a sliding layer sums in another order, and so may steps on a GPU whose room was reserved.
                if kind == "llama" and not GPU:
                    for row in range(len(lengths)):
                        self.assertSame(content(ours, row), content(theirs, row))
                self.assertEqual(ours.tokens(), theirs.tokens())
                # A further turn, by either way
                more = tokens(len(lengths), 30, seed=4)
                mask = torch.cat([mask, mask.new_ones(len(lengths), count - 1 + 30)], -1)
                first = generate(model, theirs, more, mask, 10)
                self.assertTrue(torch.equal(Decoder(model, ours, capture=False).generate(more, mask, 10), first))

    def test_end_of_sequence(self):
        """Rows finish on their own and go on with pads; the loop ends when all have."""
        model = tiny("llama")
        ids, mask = left_padded([80, 40])
        free = generate(model, KittyCache.for_model(model), ids, mask, 40)
        eos = [free[0, 7].item(), free[1, 3].item()]
        out = Decoder(model, KittyCache.for_model(model), eos_token_id=eos, pad_token_id=0).generate(ids, mask, 40, check_every=4)
        self.assertLess(out.shape[1], 40)
        for row in range(2):
            end = next(i for i, token in enumerate(free[row].tolist()) if token in eos)
            self.assertEqual(out[row, : end + 1].tolist(), free[row, : end + 1].tolist())
            self.assertFalse(out[row, end + 1 :].any())

    def test_room(self):
        model = tiny("llama")
        decoder = Decoder(model, KittyCache.for_model(model, max_tokens=64))
        decoder.prefill(tokens(1, 40), max_new_tokens=8)
        with self.refused("8 more tokens after 1", "max_new_tokens=8"):
            decoder.run(8)
        with self.refused("max_tokens=64"):
            Decoder(model, KittyCache.for_model(model, max_tokens=64)).generate(tokens(1, 60), max_new_tokens=20)
        store = KittyCache.for_model(model).steps.store
        cache = KittyCache.for_model(model, max_batch=1, budget=store.budget_for(1, 0, 200), spare=0)
        with self.refused("500 tokens need", "KittyCache.for_model takes max_tokens="):
            Decoder(model, cache).generate(tokens(1, 200), max_new_tokens=301)
        forward(model, cache, tokens(1, 1))  # the prompt is in
        self.assertEqual(cache.tokens(), [201])

    def test_reserved_ahead(self):
        """What a capture needs: every later step finds its pages reserved and its slots uploaded."""
        model = tiny("llama")
        ids, mask = left_padded([150, 61])
        cache = KittyCache.for_model(model)
        expected = generate(model, KittyCache.for_model(model), ids, mask, 140)
        decoder = Decoder(model, cache, capture=False)
        decoder.prefill(ids, mask, 140)
        decoder.run(2)
        decoder.reserve()
        free, batches = cache.steps.store.info().free_pages, cache.steps.store.batch_count
        decoder.run(137)
        self.assertEqual((cache.steps.store.info().free_pages, cache.steps.store.batch_count), (free, batches))
        self.assertTrue(torch.equal(decoder.history, expected))

    @unittest.skipUnless(GPU, "captured steps need a GPU")
    def test_captured_equals_eager(self):
        """Every bit, over page turns: both divide attention for what is reserved, not for what is there."""
        for kind, lengths, count in (("llama", [40, 700, 160, 161], 330), ("gemma3", [150, 61], 200)):
            model = tiny(kind)
            ids, mask = left_padded(lengths)
            eager, captured = KittyCache.for_model(model), KittyCache.for_model(model)
            expected = Decoder(model, eager, capture=False).generate(ids, mask, count)
            decoder = Decoder(model, captured, capture=True)
            with self.subTest(kind):
                self.assertTrue(torch.equal(decoder.generate(ids, mask, count), expected))
                self.assertIsNotNone(decoder.graph)
                self.assertEqual(captured.steps.store.poll().overruns, 0)
                for row in range(len(lengths)):
                    self.assertSame(content(captured, row), content(eager, row))

    @unittest.skipUnless(GPU, "captured steps need a GPU")
    def test_captured_and_compiled(self):
        model = build("qwen3")
        ids, mask = left_padded([100, 30])
        plain = Decoder(model, KittyCache.for_model(model), compile=True, capture=False).generate(ids, mask, 150)
        captured = Decoder(model, KittyCache.for_model(model), compile=True, capture=True).generate(ids, mask, 150)
        self.assertTrue(torch.equal(plain, captured))

    @unittest.skipUnless(GPU, "captured steps need a GPU")
    def test_a_capture_of_ones_own_is_refused(self):
        model = tiny("llama")
        cache = KittyCache.for_model(model)
        forward(model, cache, tokens(1, 20))
        forward(model, cache, tokens(1, 1))
        ids = tokens(1, 1)
        with self.refused("CUDA graph", "kittygen.decode"), torch.no_grad(), torch.cuda.graph(torch.cuda.CUDAGraph()):
            model(input_ids=ids, **{CACHE: cache})


class Compile(Case):
    def setUp(self):
        torch._dynamo.reset()  # code that all models share may be compiled a few times only

    def test_compiled_equals_eager(self):
        """No graph break in the model (fullgraph), prompts and steps, several caches by the same code."""
        for kind in ("llama", "qwen3"):
            model = build(kind)
            ids, mask = left_padded([150, 61])
            compiled = torch.compile(model, fullgraph=True, backend="eager")
            for variant in ("kitty-pro", "fp16"):
                ours, theirs = KittyCache.for_model(model, variant), KittyCache.for_model(model, variant)
                with self.subTest(kind, variant=variant):
                    self.compare(compiled, model, ours, theirs, ids, mask, exact=True)

    def test_inductor(self):
        """Through functionalisation and generated code, for which the operations' order must be told."""
        model = build("llama", torch.float32)
        ids, mask = left_padded([150, 61])
        ours, theirs = KittyCache.for_model(model), KittyCache.for_model(model)
        try:
            self.compare(torch.compile(model, fullgraph=True), model, ours, theirs, ids, mask, exact=False)
        except Exception as error:
            if "compiler" in str(error).lower():
                self.skipTest(f"inductor has no compiler here: {type(error).__name__}")
            raise

    def compare(self, compiled, model, ours, theirs, ids, mask, exact):
        for step in range(5):
            a, b = forward(compiled, ours, ids, mask), forward(model, theirs, ids, mask)
            real = mask[:, -ids.shape[1] :].bool()
            if exact:
                self.assertTrue(torch.equal(a[real], b[real]), f"step {step}")
            else:
                self.assertLess((a - b)[real].abs().max().item(), 0.02 * b[real].abs().max().item(), f"step {step}")
            ids, mask = tokens(2, 1, seed=step), grown(mask)
        self.assertEqual(ours.tokens(), theirs.tokens())

    def test_few_compilations(self):
        """Lengths and caches come and go without a compilation for each: a prompt, a step, another cache."""
        model, counts = build("llama"), []

        def backend(graph, inputs):
            counts.append(1)
            return graph.forward

        compiled = torch.compile(model, fullgraph=True, backend=backend)
        for variant, lengths in (("kitty-pro", [150, 61]), ("int4", [170, 80])):
            cache, (ids, mask) = KittyCache.for_model(model, variant), left_padded(lengths)
            for step in range(10):
                forward(compiled, cache, ids, mask)
                ids, mask = tokens(2, 1, seed=step), grown(mask)
        self.assertLessEqual(len(counts), 4)

    def test_steps_compile_once(self):
        """The decode loop's step does not depend on lengths: one compilation serves all steps and all caches."""
        model = build("llama")
        counts = []

        def backend(graph, inputs):
            counts.append(1)
            return graph.forward

        compiled = torch.compile(model, fullgraph=True, backend=backend)
        for length in (40, 90):
            decoder = Decoder(model, KittyCache.for_model(model), capture=False)
            decoder.forward = compiled
            decoder.generate(tokens(2, length), max_new_tokens=30)
        self.assertEqual(len(counts), 1)


if __name__ == "__main__":
    unittest.main()
