"""Wrong use is refused, with the fix in the message, and changes nothing."""

import copy
import unittest

import torch
import transformers
from common import DEVICE, SHAPE, Case, build, content, forward, generate, grown, left_padded, tiny, tokens

from kittygen import KittyCache
from kittygen.decode import Decoder


class Refuse(Case):
    def test_models(self):
        with self.refused("head_dim 80", "64, 96, 128, 192, 256", "DynamicCache"):
            KittyCache.for_model(build("llama", hidden_size=160))
        with self.refused("34 query heads and 2 KV heads", "1 to 16"):
            KittyCache.for_model(build("llama", hidden_size=136, num_attention_heads=34, num_key_value_heads=2, head_dim=64))
        with self.refused("no layer has full attention", "sliding_window is 64", "sliding_window = None"):
            KittyCache.for_model(build("phi3", sliding_window=64))
        with self.refused("float64", "dtype=torch.float16"):
            KittyCache.for_model(build("llama", torch.float64))
        with self.refused("not a Transformers model"):
            KittyCache.for_model(torch.nn.Linear(2, 2))
        with self.refused("meta", "on one device"):
            KittyCache.for_model(build("llama").to("meta"))
        config = transformers.T5Config(d_model=64, d_ff=64, num_layers=1, num_heads=1, vocab_size=100)
        with self.refused("encoder-decoder"):
            KittyCache.for_model(transformers.T5ForConditionalGeneration(config))
        fields = dict(SHAPE, num_attention_heads=2, num_key_value_heads=1, head_dim=64, attn_logit_softcapping=50.0)
        with self.refused("attn_logit_softcapping is 50.0", "soft cap"):
            KittyCache.for_model(transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**fields)))
        config = transformers.MambaConfig(vocab_size=100, hidden_size=64, num_hidden_layers=1)
        with self.refused("mamba: layer 0 keeps its state in a LinearAttentionLayer"):
            KittyCache.for_model(transformers.MambaForCausalLM(config))
        config = transformers.RwkvConfig(vocab_size=100, hidden_size=64, num_hidden_layers=2)
        with self.refused("rwkv names no attention heads"):
            KittyCache.for_model(transformers.RwkvForCausalLM(config))
        model = build("gemma4", global_head_dim=512)
        with self.refused("head_dim 512"):
            KittyCache.for_model(model)
        model = build("llama4")
        with self.refused("attention in chunks", "model.generate()"):
            Decoder(model, KittyCache.for_model(model))

    def test_arguments(self):
        model = tiny("llama")
        with self.refused("variant 'kity-pro'", "did you mean 'kitty-pro'"):
            KittyCache.for_model(model, "kity-pro")
        with self.refused("max_tokens is 0"):
            KittyCache.for_model(model, max_tokens=0)
        with self.refused("not both"):
            KittyCache.for_model(model, "fp16", spec="mine.lua")
        with self.refused("budget_bytes is 1000", "max_tokens=, max_batch= or budget="):
            KittyCache.for_model(model, max_batch=1, budget=1000)

    def test_masks(self):
        model = tiny("llama")
        ids, mask = left_padded([100, 60])
        cache = KittyCache.for_model(model)
        right = mask.flip(-1)
        with self.refused("attention_mask of row 1 has a 0 after a 1", "padding_side='left'"):
            forward(model, cache, ids, right)
        self.assertEqual(cache.get_seq_length(), 0)
        with self.refused("4 dimensions", "attention_mask [batch, tokens]"):
            with torch.no_grad():
                model(input_ids=ids, past_key_values=cache, attention_mask=torch.ones(2, 1, 100, 100, dtype=torch.bool, device=DEVICE))
        forward(model, cache, ids, mask)
        before = content(cache, 1)
        with self.refused("row 1 has 60 tokens of 100 seen", "attention_mask too"):
            forward(model, cache, tokens(2, 1))
        with self.refused("attention_mask of row 0 has 90 ones"):
            forward(model, cache, tokens(2, 1), self.other_mask(mask))
        with self.refused("attention_mask is 2 x 100", "all 101 tokens"):
            forward(model, cache, tokens(2, 1), mask)
        self.assertSame(content(cache, 1), before)
        forward(model, cache, tokens(2, 1), grown(mask))
        self.assertEqual(cache.tokens(), [101, 61])

    @staticmethod
    def other_mask(mask):
        """Row 0 padded differently than it was."""
        mask = grown(mask)
        mask[0, :11] = 0
        return mask

    def test_batches(self):
        model = tiny("llama")
        cache = KittyCache.for_model(model)
        forward(model, cache, tokens(2, 50))
        with self.refused("the batch has 3 rows; the cache holds 2", "cache.reset()"):
            forward(model, cache, tokens(3, 1))
        cache.reset()
        forward(model, cache, tokens(3, 50))
        for length in (40, 20):  # shorter than what has been seen, so another conversation
            with self.refused("cache.reset() before other prompts"):
                generate(model, cache, tokens(3, length))
        self.assertEqual(cache.tokens(), [50, 50, 50])
        fixed = KittyCache.for_model(model, max_batch=2, max_tokens=200)
        with self.refused("the batch has 3 sequences", "max_batch=2"):
            forward(model, fixed, tokens(3, 50))
        with self.refused("201 tokens", "max_tokens=200"):
            forward(model, fixed, tokens(2, 201))
        forward(model, fixed, tokens(2, 200))
        with self.refused("201 tokens", "max_tokens=200"):
            forward(model, fixed, tokens(2, 1))
        self.assertEqual(fixed.tokens(), [200, 200])

    def test_budget(self):
        """A pool that is full refuses the step; shorter prompts still fit."""
        model = tiny("llama")
        store = KittyCache.for_model(model).steps.store
        cache = KittyCache.for_model(model, max_batch=1, budget=store.budget_for(1, 1, 700))
        with self.refused("more pages", "KittyCache.for_model takes max_tokens="):
            forward(model, cache, tokens(1, 1500))
        self.assertEqual((cache.get_seq_length(), cache.tokens()), (0, [0]))
        forward(model, cache, tokens(1, 700))
        cache = KittyCache.for_model(model, spare=0)
        forward(model, cache, tokens(1, 400))
        held = content(cache, 0)
        with self.refused("spare slab", "spare="):
            forward(model, cache, tokens(1, 200))
        self.assertSame(content(cache, 0), held)
        forward(model, cache, tokens(1, 1))

    def test_ways_of_running(self):
        model = tiny("llama")
        ids = tokens(1, 20)
        cache = KittyCache.for_model(model)
        with self.refused("gradients", "torch.no_grad()"):
            model(input_ids=ids, past_key_values=cache)
        model.train()
        try:
            with self.refused("training mode", "model.eval()"), torch.no_grad():
                model(input_ids=ids, past_key_values=cache)
        finally:
            model.eval()
        with self.refused("not a tensor", "set_attn_implementation('kittygen')", "DynamicCache"):
            model.set_attn_implementation("sdpa")
            forward(model, cache, ids)
        with self.refused("not a tensor"):
            model.set_attn_implementation("eager")
            forward(model, cache, ids)
        model.set_attn_implementation("kittygen")
        other = copy.deepcopy(model)
        with self.refused("made for another model", "for each model"):
            forward(other, cache, ids)
        with self.refused("cannot be copied"):
            copy.deepcopy(cache)
        self.assertEqual(cache.get_seq_length(), 0)
        if DEVICE == "cpu":
            with self.refused("CUDA graphs need a GPU"):
                Decoder(model, cache, capture=True)

    def test_attention_arguments(self):
        model = tiny("llama")
        cache = KittyCache.for_model(model)
        module, layer = model.model.layers[0].self_attn, cache.layers[0]
        from kittygen.attention import Pending, kitty_attention

        query, key = (torch.zeros(1, heads, 4, 64, device=DEVICE, dtype=torch.float16) for heads in (2, 1))
        operands = module, query, Pending(layer, key), Pending(layer, key), None
        for needle, arguments in (
            ("softcap", {"softcap": 30.0}), ("s_aux", {"s_aux": key}), ("sliding window of 8", {"sliding_window": 8}),
            ("output_attentions", {"output_attentions": True}), ("training mode", {"dropout": 0.1}), ("not causal", {"is_causal": False}),
        ):
            with self.refused(needle):
                kitty_attention(*operands, **arguments)

    def test_failed_forward_leaves_the_cache(self):
        """An exception between two layers: the step is undone, in the sliding layers too, and the next one is right."""
        for kind in ("llama", "gemma3"):
            model = tiny(kind)
            ids, mask = left_padded([130, 61])
            cache, other = KittyCache.for_model(model), KittyCache.for_model(model)
            forward(model, cache, ids, mask), forward(model, other, ids, mask)
            before = [content(cache, row) for row in range(2)]
            more, mask = tokens(2, 1, seed=5), grown(mask)
            for layer in range(len(model.model.layers) - 1):  # with the last layer's attention a step is complete
                with self.subTest(kind, layer=layer):
                    hook = model.model.layers[layer].mlp.register_forward_hook(lambda *a: 1 / 0)
                    with self.assertRaises(ZeroDivisionError):
                        forward(model, cache, more, mask)
                    hook.remove()
                    self.assertEqual(cache.get_seq_length(), 130)
                    self.assertSame([content(cache, row) for row in range(2)], before)
            self.assertTrue(torch.equal(forward(model, cache, more, mask), forward(model, other, more, mask)))
            self.assertSame([content(cache, row) for row in range(2)], [content(other, row) for row in range(2)])


if __name__ == "__main__":
    unittest.main()
