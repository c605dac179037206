"""From a model to a kernel package: what is emitted, kept and shared; specs of one's own; what the wheel carries."""

import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import torch
from common import Case, Feed, block, build, feed, forward, generate, read, tiny, tokens

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

    def test_layers_that_differ(self):
        """Each layer holds what it holds in a cache all of whose layers are kept like it; memory is the sum of both."""
        model = tiny("llama")
        whole = {"four": SPEC % (2, 1), "exact": (SPEC % (2, 1)).replace("bits = 4, window = 128, boost = false", "bits = 16, window = 0")}
        layers = "    layers = { { first = 0, key = { bits = 16, window = 0 } } },\n}"
        mixed = KittyCache.for_model(model, spec=self.spec(layers.join((SPEC % (2, 1)).rsplit("}", 1))), max_tokens=1024)
        alone = {name: KittyCache.for_model(model, spec=self.spec(text), max_tokens=1024) for name, text in whole.items()}
        source = Feed(model, 430)
        outs = {}
        for name, cache in {"mixed": mixed, **alone}.items():
            for first, width in ((0, 420), (420, 1), (421, 5), (426, 1)):
                out = feed(cache, [source, source], [first, first], width)
            outs[name] = out
            cache.crop(-1)
        for layer, name in enumerate(("exact", "four")):
            self.assertSame(outs["mixed"][layer].tolist(), outs[name][layer].tolist())
            store = mixed.steps.store
            keys, values = store.sealed(store.stored[1], layer)
            self.assertEqual((keys, values), ((5, 3), (3, 3))[layer])
            for part in (kt.KEY, kt.VALUE):
                self.assertSame(read(mixed, 1, layer, 0, part), read(alone[name], 1, layer, 0, part))
            for page in range(values):
                self.assertSame(block(mixed, 1, layer, 0, page), block(alone[name], 1, layer, 0, page))
        halves = [cache.steps.store.sizes() for cache in alone.values()]
        self.assertEqual(mixed.steps.store.sizes(), tuple(sum(sizes) // 2 for sizes in zip(*halves)))
        page, slab = mixed.steps.store.sizes()
        self.assertEqual(mixed.memory()["used"], 2 * (5 * page + slab))
        mixed.reset()
        self.assertEqual(generate(model, mixed, tokens(1, 200), count=6).shape, (1, 6))
        with self.refused("another shape", "layers 2, the model 3"):
            spec = layers.join((SPEC % (2, 1)).rsplit("}", 1))
            KittyCache.for_model(build("llama", num_hidden_layers=3), spec=self.spec(spec))

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
