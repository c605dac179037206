"""Every causal language model of the installed Transformers through the cache, tiny and with random weights:

    python python/tests/families.py [CONFIG...]

right: fp16 pages give DynamicCache's logits over a padded prompt and steps after it. refused: KittyCache says why not. wrong: neither,
and the exit code is 1. not tried: no small model could be made here, or DynamicCache does not run it either.
"""

import signal
import sys
import warnings
from collections import Counter

import torch
from common import SHAPE, VOCABULARY, forward, grown, left_padded, tokens
from transformers import DynamicCache, logging
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING as FAMILIES

from kittygen import KittyCache, KittyError

LAYERS, WIDTH, HEADS = 4, 128, 2
NUMBERS = {
    **{name: LAYERS for name in ("num_hidden_layers", "num_layers", "n_layer", "n_layers")},
    **{name: HEADS for name in ("num_attention_heads", "num_key_value_heads", "n_head", "n_heads", "num_heads", "num_experts_per_tok")},
    **{name: WIDTH for name in ("hidden_size", "intermediate_size", "d_model", "n_embd", "dim", "hidden_dim", "ffn_dim", "d_ff", "n_inner",
                                "word_embed_proj_dim", "mlp_hidden_size", "intermediate_size_mlp")},
    **{name: 64 for name in ("head_dim", "global_head_dim", "moe_intermediate_size", "shared_expert_intermediate_size", "rotary_dim")},
    **{name: 4 for name in ("num_experts", "num_local_experts", "n_routed_experts")},
    **{name: 2048 for name in ("max_position_embeddings", "n_positions", "n_ctx")},
    **{name: SHAPE[name] for name in ("pad_token_id", "bos_token_id", "eos_token_id")},
    "vocab_size": VOCABULARY, "vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 0,
    "attention_chunk_size": 96, "first_k_dense_replace": 1, "attention_multiplier": 0.125,
}
LARGEST, PATIENCE = 30_000_000, 90  # parameters; seconds


def small(family):
    """A model of the family; raises whatever its configuration or its making raises."""
    usual = family()
    fields = {name: value for name, value in NUMBERS.items() if name in usual.to_dict() or name == "global_head_dim"}
    if hasattr(usual, "sliding_window"):
        hybrid = {"sliding_attention", "full_attention"} <= set(getattr(usual, "layer_types", None) or ())
        fields |= {"sliding_window": 96, "layer_types": ["sliding_attention", "full_attention"] * 2} if hybrid else {"sliding_window": None}
    config = family(**fields)
    maker = FAMILIES[family]
    maker = maker[0] if isinstance(maker, tuple) else maker
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in maker(config).parameters())
    if size > LARGEST:
        raise ValueError(f"{size} parameters")
    torch.manual_seed(7)
    model = maker(config).eval().float()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, 0, 0.1)
    return model


def logits(model, cache):
    ids, mask = left_padded([210, 75])
    rows = [forward(model, cache, ids, mask)[:, -1]]
    for step in range(4):
        mask = grown(mask)
        rows.append(forward(model, cache, tokens(2, 1, seed=step), mask)[:, -1])
    return torch.stack(rows)


def judge(family):
    """(verdict, what there is to say)."""
    try:
        model = small(family)
        model.set_attn_implementation("sdpa" if model._supports_sdpa else "eager")
        expected = logits(model, DynamicCache(config=model.config))
    except Exception as error:
        return "not tried", f"{type(error).__name__}: {error}"
    try:
        cache = KittyCache.for_model(model, "fp16")
        difference = (logits(model, cache) - expected).norm(dim=-1) / expected.norm(dim=-1)
        error = difference.median(0).values.max().item()  # the worse row's; here and there fp16 makes a router take another expert
        layers = sum(type(layer).__name__ == "KittyLayer" for layer in cache.layers)
        return "right" if error < 5e-3 else "wrong", f"error {error:.1e}, {layers} of {len(cache.layers)} layers quantised"
    except KittyError as error:
        return "refused", str(error)
    except Exception as error:
        return "wrong", f"{type(error).__name__}: {error}"


def late(*_):
    raise TimeoutError(f"more than {PATIENCE} s")


def main(names):
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    signal.signal(signal.SIGALRM, late)
    counts = Counter()
    for family in FAMILIES.keys():
        if not names or family.__name__ in names:
            signal.alarm(PATIENCE)
            verdict, why = judge(family)
            signal.alarm(0)
            counts[verdict] += 1
            print(f"{family.__name__}: {verdict}: {' '.join(why.split())[:200]}", flush=True)
    print(", ".join(f"{count} {verdict}" for verdict, count in counts.most_common()))
    return 1 if counts["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
