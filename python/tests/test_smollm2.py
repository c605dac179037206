"""SmolLM2-135M itself, from PyPI's wheel or from the folder of models; skipped where neither is in reach."""

import unittest
from pathlib import Path

import torch
from common import DEVICE, Case, forward, generate, relative, stock
from transformers import DynamicCache

from kittygen import KittyCache
from kittygen.models import load
from kittygen.report import CommandError

GPU = DEVICE == "cuda"
TEXT = Path(__file__).resolve().parents[2] / "README.md"


class SmolLM2(Case):
    @classmethod
    def setUpClass(cls):
        threads = torch.get_num_threads()
        torch.set_num_threads(2)
        cls.addClassCleanup(torch.set_num_threads, threads)
        try:
            cls.tokenizer, cls.model = load("smollm2-135m", torch.float16 if GPU else torch.float32, DEVICE)
        except CommandError as error:
            raise unittest.SkipTest(f"SmolLM2-135M cannot be had: {str(error).splitlines()[0]}") from None
        cls.ids = cls.tokenizer(TEXT.read_text(), return_tensors="pt").input_ids.to(DEVICE)

    def test_fp16_variant_is_dynamic_cache(self):
        """Fed DynamicCache's tokens: the same argmax wherever the first two logits are clearly apart."""
        steps = 512 if GPU else 24
        ids, clear = self.ids[:, :400], 0
        cache, dynamic = KittyCache.for_model(self.model, "fp16"), DynamicCache(config=self.model.config)
        for step in range(steps):
            self.model.set_attn_implementation("kittygen")
            ours = forward(self.model, cache, ids)[0, -1]
            theirs = forward(stock(self.model), dynamic, ids)[0, -1]
            first, second = theirs.topk(2).values.tolist()
            if first - second > 0.05:
                clear += 1
                self.assertEqual(ours.argmax().item(), theirs.argmax().item(), f"step {step}")
            ids = theirs.argmax()[None, None]
        self.assertGreater(clear, steps // 2)

    def test_quantised(self):
        """Kitty-Pro mostly says what the exact cache says; plain 2 bits less often."""
        steps, agreed = 24, {}
        ids = self.ids[:, : 700 + steps]
        exact = forward(stock(self.model), DynamicCache(config=self.model.config), ids)[0, 699:-1].log_softmax(-1)
        for variant in ("kitty-pro", "kivi-2"):
            cache = KittyCache.for_model(self.model, variant)
            logits = [forward(self.model, cache, ids[:, :700])[0, -1]]
            logits += [forward(self.model, cache, ids[:, 700 + i : 701 + i])[0, -1] for i in range(steps - 1)]
            ours = torch.stack(logits).log_softmax(-1)
            agreed[variant] = (exact.exp() * (exact - ours)).sum(-1).mean().item()
        self.assertLess(agreed["kitty-pro"], 0.15)
        self.assertLess(agreed["kitty-pro"], agreed["kivi-2"])

    def test_it_writes(self):
        prompt = self.tokenizer("The capital of France is", return_tensors="pt").input_ids.to(DEVICE)
        text = self.tokenizer.decode(generate(self.model, KittyCache.for_model(self.model), prompt, None, 8)[0])
        self.assertIn("Paris", text)

    @unittest.skipUnless(GPU, "lengths 40 to 700 of a whole model take a GPU")
    def test_padding(self):
        lengths = [40, 97, 160, 161, 289, 420, 555, 700]
        ids = torch.stack([self.ids[0, row * 100 : row * 100 + 700] for row in range(8)])
        mask = (torch.arange(700, device=DEVICE) >= 700 - torch.tensor(lengths, device=DEVICE)[:, None]).long()

        def distance(make):
            together = forward(self.model, make(), ids * mask, mask)[:, -1]
            alone = torch.cat([forward(self.model, make(), ids[row : row + 1, -n:])[:, -1] for row, n in enumerate(lengths)])
            return relative(together, alone)

        stock(self.model)
        theirs = distance(lambda: DynamicCache(config=self.model.config))
        self.assertLessEqual(distance(lambda: KittyCache.for_model(self.model)), 2 * theirs)


if __name__ == "__main__":
    unittest.main()
