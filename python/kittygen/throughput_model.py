"""Models by their published shapes, with random weights made on the device: throughput needs no others."""

import json

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from .report import CommandError


def qwen3(layers, hidden, intermediate, heads, tied=False):
    return dict(model_type="qwen3", num_hidden_layers=layers, hidden_size=hidden, intermediate_size=intermediate,
                num_attention_heads=heads, num_key_value_heads=8, head_dim=128, vocab_size=151936, tie_word_embeddings=tied,
                max_position_embeddings=40960, rope_parameters={"rope_type": "default", "rope_theta": 1e6})


def llama(layers, hidden, intermediate, heads, kv_heads, vocabulary=128256, tied=False, theta=5e5):
    return dict(model_type="llama", num_hidden_layers=layers, hidden_size=hidden, intermediate_size=intermediate,
                num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=hidden // heads, vocab_size=vocabulary,
                tie_word_embeddings=tied, max_position_embeddings=131072,
                rope_parameters={"rope_type": "default", "rope_theta": theta})


# From the models' config.json on the Hub, as far as shapes and work go (Llama's stretched rotary frequencies cost the same).
CONFIGS = {
    "qwen3-0.6b": qwen3(28, 1024, 3072, 16, tied=True),
    "qwen3-8b": qwen3(36, 4096, 12288, 32),
    "qwen3-14b": qwen3(40, 5120, 17408, 40),
    "qwen3-32b": qwen3(64, 5120, 25600, 64),
    "llama-3.1-8b": llama(32, 4096, 14336, 32, 8),
    "llama-3.3-70b": llama(80, 8192, 28672, 64, 8),
    "smollm2-135m": llama(30, 576, 1536, 9, 3, vocabulary=49152, tied=True, theta=1e5),
    "tiny": llama(2, 256, 512, 4, 2, vocabulary=1024),  # to try the command where there is no GPU
}


def read_config(name, path=None):
    """A configuration of the table, or of a config.json; and its name."""
    if path is None:
        fields = dict(CONFIGS[name])
    else:
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CommandError(f"--model-config {path}: {error}") from None
        if not isinstance(fields, dict) or "model_type" not in fields:
            raise CommandError(f"--model-config {path}: not a model's config.json, which names its model_type")
        name = path.resolve().parent.name
    try:
        return name, AutoConfig.for_model(fields.pop("model_type"), **fields)
    except (ValueError, TypeError) as error:
        raise CommandError(f"--model-config {path}: Transformers does not take it: {error}") from None


def random_model(config, dtype, device):
    """The model with random weights, made on the device: nothing is copied there."""
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    return model.eval().requires_grad_(False)


def weight_bytes(model):
    """What a step must read of the weights: all but the table of embeddings, unless that is the head too."""
    table, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    every = {parameter.data_ptr(): parameter.nbytes for parameter in model.parameters()}
    return sum(every.values()) - (table.nbytes if table.data_ptr() != head.data_ptr() else 0)
