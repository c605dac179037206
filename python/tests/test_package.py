"""From a model to a kernel package: what is emitted, kept and shared; specs of one's own; what the wheel carries."""

import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import torch
from common import Case, build, forward, tiny, tokens

import kittygen
from kittygen import KittyCache, variants
from kittygen import library as kt
from kittygen.package import cache_folder, specs_folder

SPEC = """return kitty {
    variant = "mine", page = 64, sink = 64,
    model = { name = "mine", layers = 2, q_heads = %d, kv_heads = %d, head_dim = 64, dtype = "fp16" },
    key = { bits = 4, window = 128, boost = false }, value = { bits = 4, window = 128 },
}
"""


class Package(Case):
    def spec(self, text):
        folder = tempfile.mkdtemp(prefix="kittygen-spec ")  # a space in the path
        path = Path(folder) / "mine.lua"
        path.write_text(text)
        return path

    def test_variants(self):
        self.assertEqual(variants(), ["best-2bit", "fp16", "int4", "kitty", "kitty-pro", "kivi-2", "kivi-2-sink"])

    def test_kept_and_shared(self):
        """The same shape and variant give one package in the cache folder, and one engine."""
        model = tiny("llama")
        first = KittyCache.for_model(model).steps.store.engine
        packages = {path.name for path in (cache_folder() / "packages").iterdir()}
        self.assertIs(KittyCache.for_model(build("llama")).steps.store.engine, first)
        self.assertIsNot(KittyCache.for_model(model, "int4").steps.store.engine, first)
        self.assertTrue(packages <= {path.name for path in (cache_folder() / "packages").iterdir()})
        self.assertFalse([path for path in (cache_folder() / "packages").iterdir() if path.name.startswith(".")])

    def test_own_spec(self):
        model = tiny("llama")
        cache = KittyCache.for_model(model, spec=self.spec(SPEC % (2, 1)))
        form = cache.steps.store.engine.format
        self.assertEqual((form["page"], form["sink"], form["key_window"], form["key_bits"]), (64, 64, 128, 4))
        forward(model, cache, tokens(1, 400))
        with self.refused("another shape", "query heads per KV head 4, the model 2", "q_heads = 2, kv_heads = 1"):
            KittyCache.for_model(model, spec=self.spec(SPEC % (4, 1)))
        with self.refused("another shape", "head_dim 128, the model 64"):
            KittyCache.for_model(model, spec="qwen3-8b/kitty-pro")
        two = "local one = " + (SPEC % (2, 1)).removeprefix("return ") + "return { one, kitty { variant = 'b', model = one.model } }"
        with self.refused("several specs", "one"):
            KittyCache.for_model(model, spec=self.spec(two))
        with self.refused("mine.lua", "bits"):
            KittyCache.for_model(model, spec=self.spec((SPEC % (2, 1)).replace("bits = 4", "bits = 5")))
        with self.refused("nowhere.lua"):
            KittyCache.for_model(model, spec="nowhere.lua")

    def test_dtype_follows_the_model(self):
        engine = KittyCache.for_model(build("llama", torch.bfloat16), spec=self.spec(SPEC % (2, 1))).steps.store.engine
        self.assertEqual(engine.info.dtype, kt.BF16)

    def test_missing_library(self):
        environment = {**os.environ, "KT_LIBRARY": "/nowhere/libkitty.so", "PYTHONPATH": str(Path(kittygen.__file__).parents[1])}
        run = subprocess.run(
            [sys.executable, "-c", "from kittygen import library; library.library()"], env=environment, capture_output=True, text=True
        )
        self.assertIn("KT_LIBRARY=/nowhere/libkitty.so: no such file", run.stderr)

    @unittest.skipUnless(os.environ.get("KT_INSTALLED"), "an installed wheel is looked at only where one is tested")
    def test_wheel(self):
        """Everything comes from the installed package."""
        native = Path(kittygen.__file__).parent / "native"
        self.assertEqual(kt.library().path, native / "libkitty.so")
        self.assertEqual(specs_folder(), native / "specs")
        self.assertTrue(os.access(native / "kittygen", os.X_OK))
        model = tiny("llama")
        forward(model, KittyCache.for_model(model), tokens(1, 300))


if __name__ == "__main__":
    unittest.main()
