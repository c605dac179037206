"""python -m kittygen.throughput: caches are filled as updates would, bytes are counted right, memory running out is a row."""

import contextlib
import io
import json
import tempfile
import unittest
from pathlib import Path
from types import SimpleNamespace

import torch
from common import DEVICE, build, relative, tiny

from kittygen import caches, throughput, throughput_model, throughput_profile, throughput_step
from kittygen.report import CommandError


def bench(model, **options):
    given = {"context": 64, "steps": 4, "batches": [1], "largest": False, "caches": ["dynamic"], "modes": ["eager"], "limit_s": None,
             "profile": False, "results": None, "inductor": [], **options}
    return throughput.Bench(SimpleNamespace(**given), "tiny", model, torch.device(DEVICE), {"bytes": 1e12, "operations": 1e12}, "command")


class Filling(unittest.TestCase):
    @torch.no_grad()
    def test_all_caches_hold_the_same(self):
        """The same random keys and values in every cache: a step gives the same logits, exactly stored."""
        for kind in ("llama", "gemma3"):
            model = build(kind, torch.float16)
            logits = {}
            for name in ("dynamic", "fp16", "static"):
                with caches.opened(name, model, 3, 320) as cache:
                    torch.manual_seed(1)
                    throughput_step.fill(name, model, cache, 3, 300)
                    self.assertEqual(int(cache.get_seq_length()), 300)
                    loop = throughput_step.Eager(model, cache, 3, 4)
                    logits[name] = loop.logits().float()
                    if name != "dynamic":
                        self.assertLess(relative(logits[name], logits["dynamic"]), 0.01, f"{kind} {name}")

    @torch.no_grad()
    def test_bytes(self):
        model = tiny("llama")
        each = 2 * model.config.num_key_value_heads * 64 * 2  # keys and values of 64 channels, 2 bytes
        count = {}
        for name in ("dynamic", "fp16", "kitty-pro"):
            with caches.opened(name, model, 2, 700) as cache:
                throughput_step.fill(name, model, cache, 2, 600)
                count[name] = throughput_step.read_bytes(name, cache, 600)
                held = throughput_step.cache_bytes(name, cache, 2)
                self.assertGreaterEqual(held, count[name], name)
        self.assertEqual(count["dynamic"], 2 * 600 * each)
        self.assertLess(abs(count["fp16"] / count["dynamic"] - 1), 0.02)
        # 600 tokens: four pages of keys, three of values, the others exact
        self.assertLess(count["kitty-pro"], 0.5 * count["dynamic"])
        exact = 2 * (600 - 4 * 128) + 2 * (600 - 3 * 128)  # of one half (keys or values) each, by two layers
        self.assertGreater(count["kitty-pro"], exact * each // 2)

    def test_weights(self):
        untied, tied = tiny("llama"), build("llama", tie_word_embeddings=True)
        table = untied.get_input_embeddings().weight.nbytes
        total = sum(parameter.nbytes for parameter in untied.parameters())
        self.assertEqual(throughput_model.weight_bytes(untied), total - table)
        self.assertEqual(throughput_model.weight_bytes(tied), total - table)


class Running(unittest.TestCase):
    def test_out_of_memory_is_a_row(self):
        model = tiny("llama")

        class Full(throughput_step.Eager):
            def run(self, count):
                raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")

        class Broken(throughput_step.Eager):
            def run(self, count):
                raise RuntimeError("a defect")

        it = bench(model)
        with contextlib.redirect_stderr(io.StringIO()):
            self.assertFalse(it.attempt("dynamic", Full, 4))
            self.assertTrue(it.attempt("dynamic", throughput_step.Eager, 2))
        self.assertEqual([(row["sequences"], row["fits"]) for row in it.rows], [(4, False), (2, True)])
        with self.assertRaisesRegex(RuntimeError, "a defect"):
            it.attempt("dynamic", Broken, 1)

    def test_the_largest_batch(self):
        """Downwards from an upper bound to the first that fits; batches above one that failed are not tried."""
        for batches, fits, expected in (([1, 8, 32, 64, 128], 52, [1, 8, 32, 64]), ([1, 8], 52, [1, 8])):
            it, tried = bench(tiny("llama"), batches=batches, largest=True), []
            it.largest = lambda name: 60
            it.attempt = lambda cache, runner, batch, report=True: tried.append(batch) or batch <= fits
            it.run_batches("dynamic", throughput_step.Eager)
            self.assertEqual(tried[: len(expected)], expected)
            self.assertLessEqual(tried[-1], fits)
            self.assertGreater(tried[-1], 0.95 * fits)
            self.assertTrue(all(batch > fits for batch in tried[len(expected) : -1]))

    def test_time_limit(self):
        it = bench(tiny("llama"), batches=[1, 2], limit_s=0.0)
        it.run()
        self.assertEqual(it.rows, [])
        self.assertEqual(it.left_out, ["dynamic 1", "dynamic 2"])

    def test_end_to_end(self):
        with tempfile.TemporaryDirectory() as folder:
            results = Path(folder) / "results.json"
            arguments = ["--config", "tiny", "--context", "200", "--batch", "1,3", "--caches", "kitty-pro,dynamic,static", "--steps", "8",
                         "--results", str(results)]
            outputs = []
            for more in (["--profile", "--batch", "2"], ["--json"]):
                with contextlib.redirect_stdout(io.StringIO()) as output, contextlib.redirect_stderr(io.StringIO()):
                    self.assertEqual(throughput.main(arguments + more), 0)
                outputs.append(output.getvalue())
            self.assertIn("attend" if DEVICE == "cuda" else "matmul", outputs[0].split("us per step")[1])
            rows = json.loads(outputs[1])
            loop = "graph" if DEVICE == "cuda" else "loop"
            self.assertEqual([(row["variant"], row["mode"], row["sequences"]) for row in rows], [
                ("kitty-pro", "eager", 1), ("kitty-pro", "eager", 3), ("kitty-pro", loop, 1), ("kitty-pro", loop, 3),
                ("dynamic", "eager", 1), ("dynamic", "eager", 3), ("static", "eager", 1), ("static", "eager", 3)])
            for row in rows:
                self.assertAlmostEqual(row["tokens_per_s"], 1e6 * row["sequences"] / row["us"], delta=1e-3 * row["tokens_per_s"])
            self.assertEqual(len(json.loads(results.read_text())), len(rows) + 4)

    def test_options(self):
        for arguments, message in (
            (["--batch", "1,x"], "--batch: '1,x' is not allowed"),
            (["--context", "3"], "--context: 3 is not allowed"),
            (["--caches", "hqq-2"], "hqq-2"),
            (["--inductor", "max_autotune_gem"], "--inductor: 'max_autotune_gem' is not allowed"),
            (["--modes", "fast"], "--modes: 'fast' is not allowed; allowed: eager, graph"),
        ):
            with self.assertRaisesRegex(CommandError, message):
                throughput.parse_arguments(arguments)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "config.json"
            path.write_text('{"hidden_size": 4}')
            with self.assertRaisesRegex(CommandError, "not a model's config.json"):
                throughput_model.read_config(None, path)


class Profile(unittest.TestCase):
    def test_groups(self):
        for name, group in (
            ("kitty_attend_4x2x4", "attend"), ("void pytorch_flash::flash_fwd_splitkv_kernel<...>", "attend"),
            ("kitty_append", "append"), ("nvjet_tst_64x8_64x16_4x1_v_bz_TNT", "matmul"),
            ("void at::native::(anonymous namespace)::CatArrayBatchedCopy<...>", "copies of the cache"),
            ("triton_poi_fused_add_mul", "other"),
        ):
            self.assertEqual(throughput_profile.group_of(name), group)

    def test_overlapping_spans(self):
        self.assertEqual(throughput_profile.union([(5, 9), (0, 3), (1, 2), (8, 12)]), 10)


if __name__ == "__main__":
    unittest.main()
