"""What the tests share: tiny random models, padded prompts, a look at what a cache holds. CUDA tensors where there is a GPU."""

import ctypes
import os
import sys
import tempfile
import unittest
from functools import lru_cache
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("KT_CACHE_DIR", tempfile.mkdtemp(prefix="kittygen-tests-"))
if not os.environ.get("KT_INSTALLED"):  # an installed wheel is tested as it is
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import transformers

from kittygen import KittyCache, KittyError
from kittygen import library as kt

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    torch.set_num_threads(1)  # these models are so small that threads mostly wait for each other
STEPS = 512 if DEVICE == "cuda" else 160
VOCABULARY = 500

SHAPE = dict(
    vocab_size=VOCABULARY, hidden_size=128, intermediate_size=128, num_hidden_layers=2, max_position_embeddings=4096,
    pad_token_id=0, bos_token_id=1, eos_token_id=2, initializer_range=0.12,
)
MODELS = {
    "llama": ("Llama", dict(num_attention_heads=2, num_key_value_heads=1)),
    "qwen3": ("Qwen3", dict(num_attention_heads=4, num_key_value_heads=2, head_dim=128)),
    "phi3": ("Phi3", dict(hidden_size=192, num_attention_heads=2, num_key_value_heads=2)),
    "gemma3": ("Gemma3", dict(
        num_attention_heads=2, num_key_value_heads=1, head_dim=64, query_pre_attn_scalar=64, sliding_window=96,
        layer_types=["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
    )),
    # Of another shape in full-attention layers
    "gemma4": ("Gemma4", dict(
        num_attention_heads=2, num_key_value_heads=1, head_dim=32, global_head_dim=64, hidden_size_per_layer_input=0, sliding_window=96,
        layer_types=["sliding_attention", "full_attention"],
    )),
    # Attention in chunks; layers that ask for their length in the midst of a pass
    "llama4": ("Llama4", dict(
        num_attention_heads=2, num_key_value_heads=1, head_dim=64, intermediate_size_mlp=128, num_local_experts=2, attention_chunk_size=96,
        layer_types=["chunked_attention", "chunked_attention", "full_attention"],
    )),
}


def build(kind, dtype=torch.float16, **changes):
    """A model with random weights, the same every time."""
    family, shape = MODELS[kind]
    text = "Text" if family in ("Gemma3", "Gemma4", "Llama4") else ""
    fields = {**SHAPE, **shape, **changes}
    if "layer_types" in shape:
        fields["num_hidden_layers"] = len(fields["layer_types"])
    torch.manual_seed(7)
    config = getattr(transformers, f"{family}{text}Config")(**fields)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval().to(DEVICE, dtype)
    model.generation_config.eos_token_id = None  # random models run to the end
    return model


tiny = lru_cache(maxsize=None)(build)


def stock(model):
    """The model with Transformers' own attention."""
    model.set_attn_implementation("sdpa")
    return model


def tokens(batch, length, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (batch, length), generator=generator).to(DEVICE)


def left_padded(lengths, seed=0):
    """Random prompts: input_ids and attention_mask."""
    ids = tokens(len(lengths), max(lengths), seed)
    place = torch.arange(max(lengths), device=DEVICE)
    mask = (place >= max(lengths) - torch.tensor(lengths, device=DEVICE)[:, None]).long()
    return ids * mask, mask


def positions(mask, width):
    return (mask.cumsum(-1) - 1).clamp(min=0)[:, -width:]


CACHE = "cache" if tuple(map(int, transformers.__version__.split(".")[:2])) >= (5, 24) else "past_key_values"


@torch.no_grad()
def forward(model, cache, ids, mask=None):
    """Logits of all new tokens, in float32."""
    arguments = {} if mask is None else {"attention_mask": mask, "position_ids": positions(mask, ids.shape[1])}
    return model(input_ids=ids, use_cache=True, **{CACHE: cache}, **arguments).logits.float()


@torch.no_grad()
def generate(model, cache, ids, mask=None, count=20, **arguments):
    """Greedy by default; the new tokens. cache None: Transformers' own."""
    if cache is not None:
        arguments[CACHE] = cache
    mask = torch.ones_like(ids) if mask is None else mask
    arguments = {"do_sample": False, **arguments}
    return model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=count, min_new_tokens=count, **arguments)[:, ids.shape[1] :]


def grown(mask, count=1):
    return torch.cat([mask, mask.new_ones(len(mask), count)], -1)


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


# ---- what a cache holds ---------------------------------------------------------------------------------------------------


def read(cache, row, layer, head, part):
    """Decoded keys or values of a row, as bytes."""
    store = cache.steps.store
    count = store.stored[row]
    out = (ctypes.c_float * (count * store.engine.info.head_dim))()
    if count:
        store.library.call("kt_read", store.handles["cache"], store.sequences[row], layer, head, part, 0, count, out)
    return bytes(out)


def block(cache, row, layer, head, page):
    store = cache.steps.store
    out = (ctypes.c_ubyte * store.engine.layer_format(layer)["block_bytes"])()
    store.library.call("kt_read_block", store.handles["cache"], store.sequences[row], layer, head, page, out)
    return bytes(out)


def sealed_keys(cache, row):
    form, count = cache.steps.store.engine.format, cache.steps.store.stored[row]
    return max(0, count - form["sink"] - form["key_window"]) // form["page"]


def content(cache, row):
    """Everything a row holds: its length, the bytes of its whole pages, and every token as it is read."""
    store = cache.steps.store
    parts = [store.stored[row]]
    for layer in range(store.layers):
        for head in range(store.kv_heads):
            parts += [block(cache, row, layer, head, page) for page in range(store.sealed(store.stored[row], layer)[1])]
            parts += [read(cache, row, layer, head, part) for part in (kt.KEY, kt.VALUE)]
    return parts


class Feed:
    """Keys, values and queries of a whole conversation, to be fed in any split and to any rows, without a model."""

    def __init__(self, model, length, seed=0):
        self.shape = KittyCache.for_model(model).shape
        self.scale = self.shape.head_dim**-0.5
        generator = torch.Generator().manual_seed(seed)
        dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[self.shape.dtype]

        def make(heads):
            spread = 1 + 4 * torch.rand(1, heads, 1, self.shape.head_dim, generator=generator)
            values = torch.randn(self.layers, heads, length, self.shape.head_dim, generator=generator) * spread
            return values.to(DEVICE, dtype)

        self.layers = KittyCache.for_model(model).steps.store.layers
        self.query, self.key, self.value = make(self.shape.q_heads), make(self.shape.kv_heads), make(self.shape.kv_heads)

    def part(self, layer, first, count):
        return (states[layer, None, :, first : first + count] for states in (self.query, self.key, self.value))


@torch.no_grad()
def feed(cache, feeds, firsts, width, mask=None):
    """A step of `width` tokens: row b's are those of feeds[b] from firsts[b] on (pads where that is before the beginning)."""
    outs = []
    for layer in range(cache.steps.store.layers):
        rows = []
        for source, first in zip(feeds, firsts):
            pad = min(max(0, -first), width)
            rows.append([
                torch.nn.functional.pad(states, (0, 0, pad, 0), value=float("nan"))
                for states in source.part(layer, max(first, 0), width - pad)
            ])
        query, key, value = (torch.cat(states) for states in zip(*rows))
        outs.append(cache.steps.layer(layer, query, key, value, mask, feeds[0].scale))
    return outs


class Case(unittest.TestCase):
    def assertSame(self, first, second, message=None):
        """Equality of contents, without a diff of their bytes."""
        self.assertTrue(first == second, message or "the caches hold different tokens")

    def refused(self, *needles):
        """Expects a KittyError whose message has every needle."""
        case = self

        class Refused:
            def __enter__(self):
                return self

            def __exit__(self, kind, error, trace):
                case.assertTrue(kind is not None and issubclass(kind, KittyError), f"refused with {needles}, but got {error!r}")
                for needle in needles:
                    case.assertIn(needle, str(error))
                return True

        return Refused()
