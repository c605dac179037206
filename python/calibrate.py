#!/usr/bin/env python3
"""Calibrate: what specs take from a file, from captured queries, keys and values.

Reads the files that capture.py wrote and writes a safetensors file for the
spec field `calibration` (gen/calibration.h has what may be in one):

    key.rotation, value.rotation [layers, kv_heads, head_dim, head_dim] float16
        After OSCAR (arXiv 2605.17757): the eigenvectors of a covariance, the
        largest first, mixed by a Hadamard matrix in bit-reversed order, so
        that every channel has the same share of what attention sees. For keys
        the covariance of the queries that meet them, for values that of
        attention's outputs. Where head_dim is no power of two the eigenvectors
        stay as they are.
    key.boosted [layers, kv_heads, boosted] uint8, with --boost
        The channels with the largest mean magnitude of the keys, for the
        score "static".

Several files of one model are taken together: a longer text. A layer that was
not captured takes what the nearest captured one has.

Needs:  pip install torch safetensors tqdm

Example
-------
    capture.py --fetch smollm2-135m --layers 0,1,2,3,...,29 \\
        --text tests/data/text.txt -o all.safetensors
    calibrate.py all.safetensors --layers 30 --boost 16 -o smollm2.calibration.safetensors
"""

import argparse
import math
from pathlib import Path

from kittygen.report import CommandError, progress, run_command


def parse_arguments():
    parser = argparse.ArgumentParser(
        description="Compute rotations and lists of channels from captured queries, keys and values.",
        epilog="The head of this script says what they are.",
    )
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="written by capture.py")
    parser.add_argument("--layers", type=int, required=True, metavar="N", help="layers of the model")
    parser.add_argument("--boost", type=int, default=0, metavar="N", help="channels of a head to list; default: no list")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE")
    return parser.parse_args()


def bit_reversed(count):
    """0 .. count - 1 by their bits in reverse; count is a power of two."""
    order = [0]
    while len(order) < count:
        order = [2 * i for i in order] + [2 * i + 1 for i in order]
    return order


def rotation_of(covariance):
    """R, orthogonal; its rows are what a key or value is multiplied with."""
    import torch

    count = len(covariance)
    _, vectors = torch.linalg.eigh(covariance)
    vectors = vectors.flip(1)  # columns, the largest eigenvalue first
    if count & (count - 1):
        return vectors.T
    parity = torch.tensor([[(i & j).bit_count() % 2 for j in range(count)] for i in range(count)])
    hadamard = (1 - 2 * parity).double() / math.sqrt(count)
    return (vectors @ hadamard[:, bit_reversed(count)]).T


def outputs_of(query, key, value, scale):
    """Causal attention of one query head, [tokens, head_dim], float64."""
    import torch

    logits = (query @ key.T) * scale
    later = torch.ones_like(logits, dtype=torch.bool).triu(1)
    return torch.softmax(logits.masked_fill(later, -torch.inf), dim=1) @ value


def add_layer(sums, query, key, value, scale):
    """Adds one layer of one file, [tokens, heads, head_dim] each, to the sums of each KV head."""
    group = query.shape[1] // key.shape[1]
    for head in range(key.shape[1]):
        k, v = key[:, head].double(), value[:, head].double()
        sums["magnitude"][head] += k.abs().sum(0)
        for q in query[:, head * group : (head + 1) * group].double().unbind(1):
            out = outputs_of(q, k, v, scale)
            sums["query"][head] += q.T @ q
            sums["out"][head] += out.T @ out


def collect(files):
    """Sums by the model's layer: {layer: {"query", "out": [kv_heads, d, d], "magnitude": [kv_heads, d]}}."""
    import torch
    from safetensors import safe_open

    layers = {}
    for path in files:
        try:
            file = safe_open(path, "pt")
        except (OSError, ValueError) as error:
            raise CommandError(f"{path}: {error}") from None
        about = file.metadata() or {}
        if "layers" not in about or "scale" not in about:
            raise CommandError(f"{path}: not written by capture.py: its metadata has no layers or no scale")
        for i, layer in enumerate(progress([int(part) for part in about["layers"].split(",")], desc=path.name, unit="layer")):
            query, key, value = (file.get_tensor(f"{name}.{i}") for name in "qkv")
            heads, count = key.shape[1:]
            zeros = {name: torch.zeros(heads, count, count, dtype=torch.float64) for name in ("query", "out")}
            sums = layers.setdefault(layer, {**zeros, "magnitude": torch.zeros(heads, count, dtype=torch.float64)})
            if sums["magnitude"].shape != (heads, count):
                raise CommandError(f"{path}: {heads} KV heads of {count} channels, but {list(sums['magnitude'].shape)} in a file before")
            add_layer(sums, query, key, value, float(about["scale"]))
    return layers


def main():
    arguments = parse_arguments()
    import torch
    from safetensors.torch import save_file

    layers = collect(arguments.files)
    if max(layers) >= arguments.layers:
        raise CommandError(f"--layers {arguments.layers}: layer {max(layers)} was captured")
    count = next(iter(layers.values()))["magnitude"].shape[1]
    if not 0 <= arguments.boost < min(count, 256):
        raise CommandError(f"--boost {arguments.boost}: 0 to {min(count, 256) - 1} channels are possible")
    taken = [min(layers, key=lambda captured: abs(captured - layer)) for layer in range(arguments.layers)]
    rotations = {
        layer: {name: torch.stack([rotation_of(c) for c in sums[name]]) for name in ("query", "out")} for layer, sums in layers.items()
    }
    tensors = {
        "key.rotation": torch.stack([rotations[layer]["query"] for layer in taken]).half(),
        "value.rotation": torch.stack([rotations[layer]["out"] for layer in taken]).half(),
    }
    if arguments.boost:
        lists = {layer: sums["magnitude"].topk(arguments.boost).indices.sort().values.to(torch.uint8) for layer, sums in layers.items()}
        tensors["key.boosted"] = torch.stack([lists[layer] for layer in taken])
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, arguments.output)
    print(f"{arguments.output}: {len(layers)} of {arguments.layers} layers were captured, {arguments.output.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    run_command("calibrate.py", main)
