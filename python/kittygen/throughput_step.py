"""A model's decode steps with one cache: filling the cache with random keys and values, and the loops that are timed.

Caches are filled through their own way of taking in tokens, without the model: a prompt of the same random keys and values
for every sequence and layer. KittyCache seals them as it does any prompt.
"""

import time

import torch

from .cache import shape_of
from .caches import forward, is_kitty
from .decode import Decoder

WARM = 6  # steps before the timed ones: compiling, capturing, first touches


def fill(name, model, cache, batch, tokens):
    """Makes the cache hold `tokens` random tokens in each of `batch` sequences."""
    shape = shape_of(model.config, model.dtype)
    key, value = (torch.randn(1, shape.kv_heads, tokens, shape.head_dim, dtype=model.dtype, device=model.device) for _ in range(2))
    if is_kitty(name):
        fill_kitty(cache, batch, key, value)
        layers = [index for index, layer in enumerate(cache.layers) if layer in cache.stock]
    else:
        layers = range(shape.layers)
    for layer in layers:
        cache.update(key.expand(batch, -1, -1, -1), value.expand(batch, -1, -1, -1), layer)


def fill_kitty(cache, batch, key, value):
    """One sequence at a time, each in one step: a first step needs no further set of exact tokens, chunks would."""
    steps, store, tokens = cache.steps, cache.steps.store, key.shape[2]
    store.open_rows(batch)
    for row in range(batch):
        store.begin([tokens if other == row else 0 for other in range(batch)], [0] * batch, tokens)
        for layer in range(store.layers):
            store.append(layer, key, value)
        store.commit()
    steps.seen = tokens


class Eager:
    """Plain forward passes, as model.generate() makes them."""

    mode = "eager"

    def __init__(self, model, cache, batch, steps, inductor=()):
        """inductor: options of torch.compile to switch on, where there is something compiled."""
        self.model, self.cache = model, cache
        self.token = torch.ones(batch, 1, dtype=torch.long, device=model.device)

    def logits(self):
        return forward(self.model, self.token, self.cache)

    @torch.no_grad()
    def run(self, count):
        for _ in range(count):
            self.token.copy_(self.logits().argmax(-1, keepdim=True))


class Compiled(Eager):
    """The model compiled around a StaticCache with CUDA graphs, as Transformers' documentation advises."""

    mode = "compiled"

    def __init__(self, model, cache, batch, steps, inductor=()):
        super().__init__(model, cache, batch, steps)
        graphs = {"triton.cudagraphs": model.device.type == "cuda"}  # as mode="reduce-overhead"
        self.model = torch.compile(model, options={**graphs, **switched_on(inductor)}, fullgraph=True, dynamic=False)


def switched_on(names):
    return {name: True for name in names}


class Loop:
    """kittygen.decode: one CUDA graph per step, the rest of the model compiled; on the CPU the same loop, eagerly."""

    def __init__(self, model, cache, batch, steps, inductor=()):
        cuda = model.device.type == "cuda"
        self.mode = "graph" if cuda else "loop"
        compile = {"options": switched_on(inductor)} if cuda and inductor else cuda
        self.decoder = Decoder(model, cache, compile=compile, eos_token_id=(), pad_token_id=0)
        token = torch.ones(batch, 1, dtype=torch.long, device=model.device)
        self.decoder.prefill(token, max_new_tokens=steps)

    def run(self, count):
        self.decoder.run(count)


def runners(name):
    """The ways in which a cache is timed: eager, and, where there is one, the fast way."""
    if is_kitty(name):
        return [Eager, Loop]
    return [Compiled if name == "static-compiled" else Eager]


def wait(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(run, count, device):
    """Seconds of run(count), all of its work included."""
    wait(device)
    start = time.perf_counter()
    run(count)
    wait(device)
    return time.perf_counter() - start


def plain_layers(cache):
    """The layers with tensors of their own: not those that KittyCache has quantised."""
    return [layer for layer in cache.layers if isinstance(layer.keys, torch.Tensor)]


def cache_bytes(name, cache, batch):
    """Bytes of keys and values that each sequence holds."""
    pool = cache.memory()["used"] if is_kitty(name) else 0
    return (pool + sum(layer.keys.nbytes + layer.values.nbytes for layer in plain_layers(cache))) // batch


def read_bytes(name, cache, tokens):
    """What attention must read for one sequence of `tokens` tokens in a step: sealed pages and exact tokens, once."""
    total = 0
    if is_kitty(name):
        store = cache.steps.store
        for layer in range(store.layers):
            form, (keys, values) = store.engine.layer_format(layer), store.sealed(tokens, layer)
            exact = (2 * tokens - (keys + values) * form["page"]) * form["head_dim"] * 2
            per_head = keys * form["value_tiles"] + values * (form["block_bytes"] - form["value_tiles"]) + exact
            total += store.kv_heads * per_head
    for layer in plain_layers(cache):
        _, heads, length, dim = layer.keys.shape  # a sliding layer's length is its window
        total += 2 * heads * dim * layer.keys.element_size() * min(tokens, length)
    return total
