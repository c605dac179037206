"""Caches by name, for the commands that compare them: KittyCache's variants beside Transformers' own.

    dynamic                     DynamicCache
    static, static-compiled     StaticCache, and with the model compiled around it
    quanto-2, quanto-4          QuantizedCache over optimum-quanto
    hqq-1 to hqq-4, hqq-8       QuantizedCache over HQQ
    FILE.lua                    KittyCache with that spec
    anything else               KittyCache with that variant
"""

import contextlib
import difflib
import gc
import importlib.util
import os
import re

import torch
from transformers import DynamicCache, StaticCache

from .cache import KittyCache, cache_argument
from .package import variants
from .report import MACHINE, CommandError

QUANTISED = re.compile(r"(quanto|hqq)-(\d)")
BITS = {"quanto": (2, 4), "hqq": (1, 2, 3, 4, 8)}
PACKAGES = {"quanto": ("optimum.quanto", "optimum-quanto"), "hqq": ("hqq", "hqq")}
STOCK = ("dynamic", "static", "static-compiled")


def is_kitty(name):
    return name not in STOCK and not QUANTISED.fullmatch(name)


def installed(backend):
    module = PACKAGES[backend][0]
    return importlib.util.find_spec(module.split(".")[0]) is not None and importlib.util.find_spec(module) is not None


def open_cache(name, model, batch, tokens):
    """A cache for `batch` prompts and single tokens after them, at most `tokens` in all; sets the model's attention to what it needs."""
    if is_kitty(name):
        kind = {"spec": name} if name.endswith(".lua") else {"variant": name}
        return KittyCache.for_model(model, max_tokens=tokens, max_batch=batch, spare=0, **kind)
    model.set_attn_implementation("sdpa")
    if name == "dynamic":
        return DynamicCache(config=model.config)
    if name in STOCK:
        return StaticCache(config=model.config, max_cache_len=tokens)
    return open_quantised(name, model.config)


def check_name(name):
    """Refuses what open_cache could not open, before anything has been run."""
    match = QUANTISED.fullmatch(name)
    if match:
        backend, bits = match.groups()
        if int(bits) not in BITS[backend]:
            raise CommandError(f"'{name}' is not allowed; allowed: " + ", ".join(f"{backend}-{b}" for b in BITS[backend]))
        if not installed(backend):
            raise CommandError(f"{name} needs a package that is not installed (pip install {PACKAGES[backend][1]})", MACHINE)
    elif name.endswith(".lua"):
        if not os.path.isfile(name):
            raise CommandError(f"{name}: no such file")
    elif is_kitty(name) and name not in variants():
        near = difflib.get_close_matches(name, [*STOCK, *variants(), "quanto-2", "quanto-4", "hqq-2", "hqq-4"], 1)
        raise CommandError(f"'{name}' is not a cache" + (f"; did you mean {near[0]}?" if near else "")
                           + f" There are {', '.join(variants())} (KittyCache), {', '.join(STOCK)}, quanto-BITS and hqq-BITS")


def open_quantised(name, config):
    from transformers import QuantizedCache
    backend, bits = QUANTISED.fullmatch(name).groups()
    axis = {"quanto": 0, "hqq": 1}[backend]  # what Transformers' documentation advises for each
    return QuantizedCache(backend, config=config, nbits=int(bits), axis_key=axis, axis_value=axis)


@contextlib.contextmanager
def opened(name, model, batch, tokens):
    """open_cache for a with block, after which all of its memory is free."""
    cache = open_cache(name, model, batch, tokens)
    try:
        yield cache
    finally:
        if is_kitty(name):
            cache.steps.store.close()
        else:
            cache.layers.clear()  # whoever still holds the cache no longer holds its tensors
        free_memory()


def free_memory():
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def forward(model, ids, cache):
    """Logits [batch, vocabulary] after the last of ids [batch, tokens], which the cache takes in."""
    return model(input_ids=ids, use_cache=True, logits_to_keep=1, **{cache_argument(model): cache}).logits[:, -1]
