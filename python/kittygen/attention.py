"""The attention and the mask function that Transformers calls, registered as "kittygen".

A quantised layer's `update` hands through Pending operands; this function, which has the mask, takes them into the cache and
attends. Plain tensors (sliding layers, a stock cache, no cache) go to Transformers' own SDPA.
"""

import weakref

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import causal_mask_function, sdpa_mask

from .errors import KittyError

NAME = "kittygen"


class Pending:
    """Keys or values of a quantised layer on their way from `update` to the attention function."""

    def __init__(self, layer, states):
        self.layer = layer
        self.states = states

    @property
    def shape(self):
        return self.states.shape

    @property
    def dtype(self):
        return self.states.dtype

    @property
    def device(self):
        return self.states.device

    def __getattr__(self, name):
        raise KittyError(
            f"keys and values of a quantised layer are not a tensor ({name!r} was asked for). Either the model's attention was changed "
            f"after KittyCache.for_model(model): call model.set_attn_implementation({NAME!r}). Or this model works on keys and values "
            "between its cache and its attention function: use Transformers' own DynamicCache"
        )

    def __getitem__(self, index):
        return self.__getattr__("[]")

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        return args[0].__getattr__(function.__name__) if isinstance(args[0], cls) else cls(None, None).__getattr__(function.__name__)


# ---- the operation --------------------------------------------------------------------------------------------------------

# What `state` of an operation names: caches by number. A tensor names it, so that compiled code serves every cache.
STEPS = weakref.WeakValueDictionary()
TAGS = (torch.Tag.cudagraph_unsafe,) if hasattr(torch.Tag, "cudagraph_unsafe") else ()


@torch.library.custom_op("kittygen::attend", mutates_args=("state",), tags=TAGS)
def attend(
    state: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, layer: int, scale: float
) -> torch.Tensor:
    """Takes in keys and values of one layer and attends: [batch, heads, tokens, head_dim] -> [batch, tokens, heads, head_dim].

    `state` stands for the cache, which every layer of a step changes: the operations keep their order.
    """
    return STEPS[state.item()].layer(layer, query, key, value, mask, scale)


@attend.register_fake
def _(state, query, key, value, mask, layer, scale):
    batch, heads, tokens, dim = query.shape
    return query.new_empty((batch, tokens, heads, dim))


# ---- what Transformers calls ----------------------------------------------------------------------------------------------

NOT_SUPPORTED = ("softcap", "s_aux", "position_bias", "cu_seq_lens_q")


def refuse_wrong_use(module, query, mask, layer, dropout, sliding_window, kwargs):
    name = f"layer {getattr(module, 'layer_idx', '?')}"
    if getattr(module, "config", layer.config) is not layer.config:
        raise KittyError("this cache was made for another model; make one with KittyCache.for_model(model) for each model")
    if module.training or dropout:
        raise KittyError(f"{name}: KittyCache is for inference and the model is in training mode: call model.eval()")
    if torch.is_grad_enabled() and query.requires_grad:
        raise KittyError(f"{name}: gradients do not pass through KittyCache: run under torch.no_grad() or torch.inference_mode()")
    if sliding_window is not None:
        raise KittyError(f"{name} has a sliding window of {sliding_window}; quantised layers attend all tokens. Report this model")
    if kwargs.get("output_attentions"):
        raise KittyError(f"{name}: KittyCache has no attention weights to give: leave output_attentions out")
    if kwargs.get("is_causal") is False or getattr(module, "is_causal", True) is False:
        raise KittyError(f"{name} is not causal; KittyCache is for causal decoders")
    for argument in NOT_SUPPORTED:
        if kwargs.get(argument) is not None:
            raise KittyError(f"{name}: its attention uses {argument}, which quantised layers do not support. Use DynamicCache")
    if mask is not None and mask.ndim != 2:
        raise KittyError(
            f"{name}: the mask has {mask.ndim} dimensions; KittyCache takes the tokenizer's attention_mask [batch, tokens] with left "
            "padding, no mask of your own"
        )


def kitty_attention(
    module, query, key, value, attention_mask, scaling=None, dropout=0.0, sliding_window=None, **kwargs
):
    if not isinstance(key, Pending):
        return plain_attention(module, query, key, value, attention_mask, scaling, dropout, sliding_window, kwargs)
    layer = key.layer
    refuse_wrong_use(module, query, attention_mask, layer, dropout, sliding_window, kwargs)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if torch.compiler.is_compiling():
        return attend(layer.state, query, key.states, value.states, attention_mask, layer.index, scale), None
    # The operation's dispatch costs more than all else that the host does here.
    return layer.steps.layer(layer.index, query, key.states, value.states, attention_mask, scale), None


def plain_attention(module, query, key, value, mask, scaling, dropout, sliding_window, kwargs):
    if mask is not None and mask.ndim == 2:  # what kitty_mask handed through: the newest tokens of key are query's
        tokens, length = query.shape[2], key.shape[2]
        place = torch.arange(length, device=mask.device)
        causal = place <= place[length - tokens :, None]
        mask = causal & mask[:, None, None, :]
    return sdpa_attention_forward(
        module, query, key, value, mask, dropout=dropout, scaling=scaling, sliding_window=sliding_window, **kwargs
    )


def kitty_mask(
    batch_size, q_length, kv_length, q_offset=0, kv_offset=0, mask_function=causal_mask_function, attention_mask=None,
    local_size=None, use_vmap=False, **kwargs,
):
    """The padding mask itself for plain causal attention to the end of the cache; else the mask of Transformers' SDPA."""
    to_the_end = not isinstance(q_offset, torch.Tensor) and q_offset + q_length == kv_offset + kv_length
    if mask_function is causal_mask_function and local_size is None and not use_vmap and to_the_end:
        return attention_mask
    return sdpa_mask(
        batch_size=batch_size, q_length=q_length, kv_length=kv_length, q_offset=q_offset, kv_offset=kv_offset,
        mask_function=mask_function, attention_mask=attention_mask, local_size=local_size, use_vmap=use_vmap, **kwargs,
    )


def register():
    AttentionInterface.register(NAME, kitty_attention)
    AttentionMaskInterface.register(NAME, kitty_mask)
