#!/usr/bin/env python3
"""Writes calibration.safetensors beside it: made-up lists and rotations for the shapes of 2 layers, 2 KV heads and head_dim 64."""

import json
import math
import random
import struct
from pathlib import Path

LAYERS, HEADS, DIM, BOOSTED = 2, 2, 64, 16
draw = random.Random(1)


def rotation():
    """An orthogonal matrix: a product of plane rotations."""
    rows = [[float(i == j) for j in range(DIM)] for i in range(DIM)]
    for _ in range(8 * DIM):
        i, j = draw.sample(range(DIM), 2)
        angle = draw.uniform(0, 2 * math.pi)
        c, s = math.cos(angle), math.sin(angle)
        rows[i], rows[j] = [[c * x + s * y for x, y in zip(rows[i], rows[j])], [c * y - s * x for x, y in zip(rows[i], rows[j])]]
    return [x for row in rows for x in row]


lists = [channel for _ in range(LAYERS * HEADS) for channel in draw.sample(range(DIM), BOOSTED)]
keys = [x for _ in range(LAYERS * HEADS) for x in rotation()]
tensors = {
    "key.boosted": ("U8", [LAYERS, HEADS, BOOSTED], struct.pack(f"{len(lists)}B", *lists)),
    "key.rotation": ("F16", [LAYERS, HEADS, DIM, DIM], struct.pack(f"<{len(keys)}e", *keys)),
    "value.rotation": ("F32", [1, HEADS, DIM, DIM], struct.pack(f"<{HEADS * DIM * DIM}f", *[x for _ in range(HEADS) for x in rotation()])),
}
header, data = {}, b""
for name, (dtype, shape, payload) in tensors.items():
    header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(payload)]}
    data += payload
text = json.dumps(header).encode()
text += b" " * (-len(text) % 8)
Path(__file__).with_name("calibration.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
