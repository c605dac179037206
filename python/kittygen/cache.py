"""KittyCache: Transformers' layered cache with quantised keys and values in its full-attention layers."""

import inspect
from functools import lru_cache
from itertools import count

import torch
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from . import attention
from .errors import KittyError
from .package import Shape, open_engine
from .steps import Steps
from .store import Limits, Store

DTYPES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp16"}


@lru_cache
def _cache_argument(forward):
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"


def cache_argument(model):
    """What the model's forward calls its cache: Transformers 5.24 renamed past_key_values, which goes on to work there, with a warning."""
    return _cache_argument(type(getattr(model, "_orig_mod", model)).forward)


class KittyLayer(CacheLayerMixin):
    """One quantised layer; its keys and values are in the cache's store, its operations those of the whole cache."""

    is_compileable = False  # generate() would compile the model on its own and replay graphs that skip the cache
    is_croppable = True
    is_sliding = False
    supports_early_init = False

    def __init__(self, steps, state, index, config):
        super().__init__()
        self.steps, self.state, self.index, self.config = steps, state, index, config

    def lazy_initialization(self, key_states, value_states):
        """Nothing: the store opens at the first prompt."""

    def update(self, key_states, value_states, *args, **kwargs):
        return attention.Pending(self, key_states), attention.Pending(self, value_states)

    def get_mask_sizes(self, query_length):
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self):
        # A decode loop of its own gives positions and no mask: compiled code must not depend on the length then.
        return 0 if self.steps.trusted else self.steps.seen

    def get_max_length(self):
        return self.steps.store.limits.max_tokens or -1


def name_of(config):
    return (getattr(config, "_name_or_path", "") or config.model_type).rstrip("/").split("/")[-1]


def shape_of(config, dtype):
    """What kernels for this model need to know; refuses what they cannot do."""
    name = name_of(config)
    for field, what in (
        ("kv_lora_rank", "multi-head latent attention has no keys and values per head"),
        ("attn_logit_softcapping", "a soft cap on logits is not supported"),
        ("num_kv_shared_layers", "layers that share keys and values are not supported"),
    ):
        if getattr(config, field, None):
            raise KittyError(f"{name}: {field} is {getattr(config, field)}: {what}. Use Transformers' own DynamicCache")
    heads = getattr(config, "num_attention_heads", None)
    if not heads:
        raise KittyError(f"{name} names no attention heads; KittyCache is for attention")
    return Shape(
        model=name,
        layers=config.num_hidden_layers,
        q_heads=heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        dtype=DTYPES[dtype],
    )


def one_shape(config, layers, dtype):
    """The shape that these layers share; a configuration may tell them apart."""
    if not getattr(config, "is_heterogeneous", False):
        return shape_of(config, dtype)
    shapes = {shape_of(config.per_layer_config[layer], dtype): layer for layer in layers}
    if len(shapes) > 1:
        (first, one), (second, other) = list(shapes.items())[:2]
        raise KittyError(
            f"{name_of(config)}: layers {one} and {other} differ: {first.q_heads} and {second.q_heads} query heads, {first.kv_heads} and "
            f"{second.kv_heads} KV heads, head_dim {first.head_dim} and {second.head_dim}. Use Transformers' own DynamicCache"
        )
    return next(iter(shapes))


def place_of(model):
    """The one device and the element type of a model."""
    devices = {parameter.device for parameter in model.parameters()}
    if len(devices) != 1 or next(iter(devices)).type == "meta":
        raise KittyError(
            f"the model's weights are on {', '.join(sorted(map(str, devices)))}; KittyCache needs them on one device: load it with "
            "device_map='cuda:0' (or 'cpu')"
        )
    if model.dtype not in DTYPES:
        raise KittyError(f"the model's dtype is {model.dtype}; load it with dtype=torch.float16 or torch.bfloat16")
    return devices.pop(), model.dtype


class KittyCache(Cache):
    """A cache to pass as `past_key_values`. Make it with `KittyCache.for_model`; one serves one batch at a time.

    Layers with full attention are quantised. Layers with a sliding window keep Transformers' own exact cache.
    """

    _numbers = count(1)

    @classmethod
    def for_model(cls, model, variant="kitty-pro", spec=None, max_tokens=None, max_batch=None, budget=None, spare=None):
        """A cache for a loaded Transformers model, and the model set to attend through it.

        variant     a shipped variant (kittygen.variants()), or
        spec        a Lua spec file of your own, or a shipped MODEL/VARIANT; its shape must be the model's
        max_tokens  longest sequence; None: the model's own longest context is provided for, in at most half of the free memory
        max_batch   most sequences at a time; None: as many as the first prompt has
        budget      bytes for pages and exact tokens; None: what max_tokens and max_batch need
        spare       sequences that may take several tokens at once on a filled cache; None: all. Each costs one set of exact tokens

        A float32 model's keys, values and queries are converted to float16 at the cache; its prompt attends in float32.
        """
        if not hasattr(model, "set_attn_implementation"):
            raise KittyError(f"{type(model).__name__} is not a Transformers model; pass the model itself, not a pipeline or a wrapper")
        if getattr(model.config, "is_encoder_decoder", False):
            raise KittyError(f"{type(model).__name__} is an encoder-decoder model; KittyCache is for decoders")
        for name, value in (("max_tokens", max_tokens), ("max_batch", max_batch), ("budget", budget)):
            if value is not None and value < 1:
                raise KittyError(f"{name} is {value}; it must be at least 1, or None")
        if spec is not None and variant != "kitty-pro":
            raise KittyError("give variant= or spec=, not both: a spec says its own variant")
        config = model.config.get_text_config(decoder=True)
        device, dtype = place_of(model)
        name, layers = name_of(config), DynamicCache(config=config).layers
        for index, layer in enumerate(layers):
            if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
                raise KittyError(
                    f"{name}: layer {index} keeps its state in a {type(layer).__name__}; KittyCache takes models of full and "
                    "sliding-window attention. Use Transformers' own DynamicCache"
                )
        quantised = [index for index, layer in enumerate(layers) if type(layer) is DynamicLayer]
        if not quantised:
            window = getattr(config, "sliding_window", None)
            raise KittyError(
                f"{name}: no layer has full attention" + (
                    f" (sliding_window is {window}); if contexts stay below that, set model.config.sliding_window = None" if window else ""
                )
            )
        shape = one_shape(config, quantised, dtype)
        engine = open_engine(shape, device, variant, spec)
        positions = getattr(config, "max_position_embeddings", None) or 8192
        store = Store(engine, device, len(quantised), shape.kv_heads, Limits(max_tokens, max_batch, budget, spare, positions))
        cache = cls(layers, quantised, store, shape, config)
        if max_batch and (max_tokens or budget):
            store.open_pool(max_batch)
        attention.register()
        model.set_attn_implementation(attention.NAME)
        if config._attn_implementation != attention.NAME:
            raise KittyError(f"{type(model).__name__} does not take a registered attention function; use DynamicCache")
        return cache

    def __init__(self, layers, quantised, store, shape, config):
        number = next(self._numbers)
        with torch.inference_mode(False):
            state = torch.tensor([number])
        self.shape = shape
        self.steps = attention.STEPS[number] = Steps(store, shape)
        for index, layer in enumerate(quantised):
            layers[layer] = KittyLayer(self.steps, state, index, config)
        self.stock = [layer for layer in layers if not isinstance(layer, KittyLayer)]
        self._fresh = self._before = self._remember()
        super().__init__(layers=layers)

    # ---- Transformers' operations -----------------------------------------------------------------------------------

    def get_seq_length(self, layer_idx=0):
        if layer_idx == 0:  # a later layer's is asked for in the midst of a pass
            self._recover()
        return super().get_seq_length(layer_idx)

    def get_mask_sizes(self, query_length, layer_idx):
        self._recover()
        if query_length == 0:  # what generate() is left with where it was given less than the cache has seen
            raise KittyError(f"there are no new tokens after the {self.steps.seen} seen; call cache.reset() before other prompts")
        return super().get_mask_sizes(query_length, layer_idx)

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        if layer_idx == 0 and self.stock and not torch.compiler.is_compiling():
            self._before = self._remember()
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    def _remember(self):
        """What the stock layers hold; they replace their tensors and never change them."""
        return [dict(vars(layer)) for layer in self.stock]

    def _restore(self, states):
        for layer, state in zip(self.stock, states):
            vars(layer).clear()
            vars(layer).update(state)

    def _recover(self):
        """Undoes a forward pass that an exception ended between two layers; called where the next one begins."""
        if torch.compiler.is_compiling() or not (self.steps.store.open or self.stock):
            return
        self.steps.abort()
        lengths = {layer.get_seq_length() for layer in (*self.stock[:1], *self.stock[-1:])}
        if lengths - {self.steps.seen}:
            self._restore(self._before)
            if self.stock[0].get_seq_length() != self.steps.seen:
                raise KittyError("a forward pass failed after the last quantised layer and before the last sliding one: call cache.reset()")

    @property
    def batch_size(self):
        return len(self.steps.store.sequences) or -1

    def reset(self):
        self.steps.reset()
        self._restore(self._fresh)  # Transformers before 5.24 zeroes a sliding layer's tokens and keeps their number
        if self.steps.recording:
            super().activate_past_recording()

    def reorder_cache(self, beam_idx):
        self._arrange(beam_idx.tolist(), lambda layer: layer.reorder_cache(beam_idx))

    def batch_repeat_interleave(self, repeats):
        rows = [row for row in range(len(self.steps.store.sequences)) for _ in range(repeats)]
        self._arrange(rows, lambda layer: layer.batch_repeat_interleave(repeats))

    def batch_select_indices(self, indices):
        rows = torch.arange(len(self.steps.store.sequences))[indices.cpu()].tolist()
        self._arrange(rows, lambda layer: layer.batch_select_indices(indices))

    def _arrange(self, rows, change):
        self._recover()
        if self.steps.seen:
            self.steps.arrange(rows)
        for layer in self.stock:
            change(layer)

    def activate_past_recording(self):
        self.steps.recording = True
        super().activate_past_recording()

    def crop(self, tokens_to_remove):
        """Removes the last -tokens_to_remove tokens of every row: all that is within the last step or not sealed yet."""
        tokens_to_remove = int(tokens_to_remove)  # assisted decoding counts in a tensor
        if tokens_to_remove > 0:
            raise KittyError(f"crop({tokens_to_remove}): give minus the number of tokens to remove, as Transformers does")
        self._recover()
        before = self._remember()
        try:
            for layer in self.stock:
                layer.crop(tokens_to_remove)
            if tokens_to_remove:
                self.steps.crop(-tokens_to_remove)
        except BaseException:
            self._restore(before)
            raise

    def __reduce__(self):
        raise KittyError("KittyCache cannot be copied or pickled: its pages are libkitty's")

    # ---- kittygen's own ---------------------------------------------------------------------------------------------

    def tokens(self):
        """Tokens stored in each row, pads not counted."""
        return list(self.steps.store.stored)

    def memory(self):
        """Bytes held by the pool, and those in use: {"held", "used"}."""
        info = self.steps.store.info()
        if info is None:
            return {"held": 0, "used": 0}
        page, slab = self.steps.store.sizes()
        used = (info.pages - info.free_pages) * page + (info.slabs - info.free_slabs) * slab
        return {"held": info.bytes, "used": used}

    def nonfinite(self):
        """Elements that were not finite, or beyond float16's range, in the last finished step's report; they count as 0."""
        info = self.steps.store.poll()
        return info.nonfinite if info else 0

    def __repr__(self):
        store = self.steps.store
        return (
            f"KittyCache({store.engine.name}, {store.layers} of {len(self.layers)} layers quantised, {store.device}, "
            f"batch {len(store.sequences)}, seen {self.steps.seen})"
        )
