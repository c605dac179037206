#!/usr/bin/env python3
"""Times kittygen's attend beside PyTorch's SDPA (cuDNN, flash) on one GPU, in one run.

    python3 tests/bench/peers.py [--shapes 32x8192x32/8,1x4096x32/8] [--spec qwen3_8b/kitty_pro] [--json FILE]

Everything is timed the same way: a CUDA graph over layers with keys and values of their own (a working set of at least four
times the L2 cache), the median of replays, divided by the layers. One new token per sequence; the context counts it. A time
of attend is given only if its output agrees with the float64 kernel. Needs PyTorch and a build folder (./dev build).
"""
import argparse
import ctypes
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

SHAPES = ("1x4096x32/8,1x32768x32/8,1x131072x32/8,8x8192x32/8,128x2048x32/8,32x8192x32/8,8x32768x64/8,64x8192x32/8,"
          "32x32768x32/8")
SPECS = {(32, 8): "qwen3_8b/kitty_pro", (64, 8): "qwen3_32b/kitty_pro", (16, 8): "qwen3_0_6b/kitty_pro",
         (40, 8): "qwen3_14b/kitty_pro"}
LIMITS = {"fp16": 2e-3, "bf16": 8e-3}
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
MOST_BYTES = 40e9  # of keys and values at a time
MOST_LAYERS = 36   # more only to outgrow the L2 cache
CHUNK = 32768      # tokens of a prompt that go in at a time


class Refused(Exception):
    """A call of libkitty that was refused."""

    def __init__(self, call, status, message):
        super().__init__(f"{call}: {status}: {message}")
        self.out_of_memory = status in ("KT_MEMORY", "KT_FULL")


# ---- libkitty --------------------------------------------------------------------------------------------------------

class Struct(ctypes.Structure):
    """An argument structure: its first field is its size."""

    def __init__(self, **fields):
        super().__init__(size=ctypes.sizeof(type(self)), **fields)


size_t, text, integer, pointer = ctypes.c_size_t, ctypes.c_char_p, ctypes.c_int, ctypes.c_void_p
int64, uint64 = ctypes.c_int64, ctypes.c_uint64


class OpenArgs(Struct):
    _fields_ = [("size", size_t), ("package", text), ("device", integer), ("ordinal", integer), ("cache_dir", text)]


class CacheArgs(Struct):
    _fields_ = [("size", size_t), ("budget_bytes", uint64), ("layers", integer), ("kv_heads", integer),
                ("max_sequences", integer), ("spare_slabs", integer)]


class BatchArgs(Struct):
    _fields_ = [("size", size_t), ("slots", integer), ("max_tokens", integer), ("max_rows", integer)]


class AppendArgs(Struct):
    _fields_ = [("size", size_t), ("layer", integer), ("key", pointer), ("value", pointer), ("key_row", int64),
                ("key_head", int64), ("value_row", int64), ("value_head", int64), ("flags", ctypes.c_uint)]


class AttendArgs(Struct):
    _fields_ = [("size", size_t), ("layer", integer), ("query", pointer), ("out", pointer), ("lse", pointer),
                ("query_row", int64), ("query_head", int64), ("out_row", int64), ("out_head", int64),
                ("scale", ctypes.c_float), ("window", integer), ("softcap", ctypes.c_float), ("flags", ctypes.c_uint)]


CUDA, REFERENCE, BEHIND = 1, 1, 1  # KT_DEVICE_CUDA, KT_ATTEND_REFERENCE, KT_APPEND_BEHIND_ATTEND


class Kitty:
    """The library: kitty.name(...) calls kt_name and raises Refused."""

    SIGNATURES = {
        "open": [pointer, pointer], "cache_open": [pointer, pointer, pointer], "sequence_open": [pointer, pointer],
        "sequence_reserve": [pointer, uint64, integer], "batch_open": [pointer, pointer, pointer],
        "batch_set": [pointer, integer, uint64, integer, integer], "batch_upload": [pointer, pointer],
        "step_begin": [pointer, pointer], "append": [pointer, pointer], "attend": [pointer, pointer],
        "step_commit": [pointer], "step_abort": [pointer],
    }

    def __init__(self, folder):
        path = os.path.join(folder, "libkitty.so")
        self.library = ctypes.CDLL(path if os.path.exists(path) else path + ".0")
        self.library.kt_message.restype = self.library.kt_status_name.restype = text
        for name, arguments in self.SIGNATURES.items():
            getattr(self.library, "kt_" + name).argtypes = arguments
        for name in ("close", "cache_close", "batch_close"):
            function = getattr(self.library, "kt_" + name)
            function.argtypes, function.restype = [pointer], None
            setattr(self, name, function)

    def __getattr__(self, name):
        function = getattr(self.library, "kt_" + name)

        def call(*arguments):
            status = function(*[ctypes.byref(a) if isinstance(a, Struct) else a for a in arguments])
            if status:
                status_name = self.library.kt_status_name(status).decode()
                raise Refused("kt_" + name, status_name, self.library.kt_message().decode())
        return call


# ---- timing ----------------------------------------------------------------------------------------------------------

def capture(stream, body):
    """A CUDA graph of what body() queues on the stream."""
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        body()
    torch.cuda.synchronize()
    return graph


def replay(graph, layers, count):
    """Microseconds per layer of replays: the median, the tenth and the ninetieth percentile."""
    for _ in range(5):
        graph.replay()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    torch.cuda.synchronize()
    events[0].record()
    for i in range(count):
        graph.replay()
        events[i + 1].record()
    torch.cuda.synchronize()
    times = sorted(1000 * events[i].elapsed_time(events[i + 1]) / layers for i in range(count))
    return statistics.median(times), times[count // 10], times[count - 1 - count // 10]


def relative(value, reference):
    """Relative L2 in float64; NaN counts as infinite."""
    value, reference = value.double(), reference.double()
    error = float(torch.linalg.vector_norm(value - reference) / torch.linalg.vector_norm(reference))
    return error if math.isfinite(error) else math.inf


def bandwidth(build):
    """Bytes a second of the card, read and copied, as kittygen bench measures them."""
    command = [os.path.join(build, "kittygen"), "bench", "qwen3_8b/kitty_pro", "--ops", "attend", "--shapes", "1x4096", "--json"]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if result.returncode:
        sys.exit(f"peers.py: {' '.join(command)}: exit code {result.returncode}")
    row = json.loads(result.stdout)[0]
    return row["read"], row["copy"]


def layers_for(layer_bytes, l2):
    """Layers whose data outgrows the L2 cache four times, at most MOST_LAYERS unless more are needed for that."""
    most = int(MOST_BYTES // layer_bytes)
    needed = math.ceil(4 * l2 / layer_bytes)
    return max(1, min(most, max(needed, min(MOST_LAYERS, most))))


# ---- PyTorch ---------------------------------------------------------------------------------------------------------

def time_sdpa(backend, shape, dtype, stream, replays, l2):
    """The fastest form in which the backend takes the shape, or None with why not."""
    sequences, context, q_heads, kv_heads, d = shape
    group = q_heads // kv_heads
    layers = layers_for(sequences * context * kv_heads * d * 4, l2)
    query = torch.randn(sequences, q_heads, 1, d, dtype=dtype, device="cuda")
    keys, values = ([torch.randn(sequences, kv_heads, context, d, dtype=dtype, device="cuda") for _ in range(layers)]
                    for _ in range(2))
    # float64 on the first sequence of the last layer
    q, k, v = query[0].view(kv_heads, group, d).double(), keys[-1][0].double(), values[-1][0].double()
    reference = (torch.softmax(q @ k.transpose(1, 2) / math.sqrt(d), -1) @ v).reshape(-1)
    del k, v

    # The query heads of a group as so many queries of its KV head, or as heads (GQA).
    forms = {"grouped": (query.view(sequences, kv_heads, group, d), False), "gqa": (query, group > 1)}
    best, why = None, ""
    for form, (form_query, gqa) in forms.items():
        out = None

        def attend():
            nonlocal out
            for layer in range(layers):
                out = F.scaled_dot_product_attention(form_query, keys[layer], values[layer], enable_gqa=gqa)

        try:
            with sdpa_kernel(backend):
                with torch.cuda.stream(stream):
                    attend()
                graph = capture(stream, attend)
            graph.replay()
            torch.cuda.synchronize()
            error = relative(out[0].reshape(-1), reference)
            if error > LIMITS["bf16"]:
                why = f"{form}: error {error:.1e}"
                continue
            us, low, high = replay(graph, layers, replays)
            del graph
        except RuntimeError as refused:
            if isinstance(refused, torch.cuda.OutOfMemoryError):
                raise
            why = f"{form}: {str(refused).strip().splitlines()[0][:120]}"
            continue
        if best is None or us < best["us"]:
            best = {"form": form, "layers": layers, "us": us, "us_p10": low, "us_p90": high, "error": error,
                    "bytes": sequences * context * kv_heads * d * 4}
    return best, why


# ---- kittygen --------------------------------------------------------------------------------------------------------

def sealed(tokens, sink, window, page):
    return max(0, tokens - sink - window) // page


def attend_bytes(form, tokens, kv_heads):
    """What attend must read of one sequence and layer: sealed pages, exact tokens, and the new one."""
    keys = sealed(tokens, form["sink"], form["key_window"], form["page"])
    values = sealed(tokens, form["sink"], form["value_window"], form["page"])
    exact = (2 * (tokens + 1) - (keys + values) * form["page"]) * form["head_dim"] * 2
    return kv_heads * (keys * form["value_tiles"] + values * (form["block_bytes"] - form["value_tiles"]) + exact)


class Engine:
    """A kernel package, emitted and opened."""

    def __init__(self, kitty, build, spec, dtype):
        self.kitty, self.spec = kitty, spec
        self.folder = tempfile.TemporaryDirectory()
        command = [os.path.join(build, "kittygen"), "emit", spec, "--dtype", dtype, "-o", self.folder.name]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        with open(os.path.join(self.folder.name, "manifest.json"), encoding="utf-8") as file:
            manifest = json.load(file)
        self.format, self.model = manifest["format"], manifest["model"]
        self.handle = pointer()
        kitty.open(OpenArgs(package=self.folder.name.encode(), device=CUDA), ctypes.byref(self.handle))

    def close(self):
        self.kitty.close(self.handle)
        self.folder.cleanup()


def time_kitty(engine, shape, dtype, stream, replays, l2):
    """Attend, and a step's append and attend, per layer; the error against the float64 kernel over the same cache."""
    kitty, form = engine.kitty, engine.format
    sequences, context, q_heads, kv_heads, d = shape
    before = context - 1
    bytes_read = sequences * attend_bytes(form, before, kv_heads)
    layers = layers_for(bytes_read, l2)
    pages = sequences * (context // form["page"] + 1)
    budget = layers * kv_heads * (pages * form["block_bytes"] + (sequences + 1) * form["slab_bytes"])
    queue = pointer(stream.cuda_stream)
    cache, batch = pointer(), pointer()
    try:
        kitty.cache_open(engine.handle, CacheArgs(budget_bytes=budget, layers=layers, kv_heads=kv_heads,
                                                  max_sequences=sequences, spare_slabs=1), ctypes.byref(cache))
        kitty.batch_open(cache, BatchArgs(slots=sequences, max_tokens=context, max_rows=max(sequences, min(before, CHUNK))),
                         ctypes.byref(batch))

        def append(layer, key, value, flags=0):
            kitty.append(batch, AppendArgs(layer=layer, key=key.data_ptr(), value=value.data_ptr(), flags=flags))

        def attend(layer, query, out, flags=0):
            kitty.attend(batch, AttendArgs(layer=layer, query=query.data_ptr(), out=out.data_ptr(), flags=flags))

        # The prompts: every sequence its own, the same in all layers. They are appended and not attended.
        handles = []
        for slot in range(sequences):
            handle = uint64()
            kitty.sequence_open(cache, ctypes.byref(handle))
            handles.append(handle)
            for first in range(0, before, CHUNK):
                count = min(CHUNK, before - first)
                with torch.cuda.stream(stream):
                    key, value = (torch.randn(count, kv_heads, d, dtype=dtype, device="cuda") for _ in range(2))
                kitty.batch_set(batch, slot, handle, count, 0)
                kitty.step_begin(batch, queue)
                for layer in range(layers):
                    append(layer, key, value)
                kitty.step_commit(batch)
                stream.synchronize()
            kitty.batch_set(batch, slot, 0, 0, -1)
        for slot, handle in enumerate(handles):
            kitty.batch_set(batch, slot, handle, 1, -1)
            kitty.sequence_reserve(cache, handle, context)
        kitty.batch_upload(batch, queue)

        key, value = (torch.randn(sequences, kv_heads, d, dtype=dtype, device="cuda") for _ in range(2))
        query = torch.randn(sequences, q_heads, d, dtype=dtype, device="cuda")
        out = torch.full((layers, sequences, q_heads, d), math.nan, dtype=dtype, device="cuda")
        exact = torch.full((sequences, q_heads, d), math.nan, dtype=dtype, device="cuda")

        def begin_and_append():
            kitty.step_begin(batch, queue)
            for layer in range(layers):
                append(layer, key, value)

        def attend_all():
            for layer in range(layers):
                attend(layer, query, out[layer])

        def whole_step():
            kitty.step_begin(batch, queue)
            for layer in range(layers):
                append(layer, key, value, BEHIND)
                attend(layer, query, out[layer])

        # Attends change nothing, so that their graph can be replayed alone once the appends have run.
        appends = capture(stream, begin_and_append)
        attends = capture(stream, attend_all)
        kitty.step_abort(batch)
        step = capture(stream, whole_step)
        kitty.step_abort(batch)

        with torch.cuda.stream(stream):
            appends.replay()
            attends.replay()
        stream.synchronize()
        begin_and_append()
        attend(layers - 1, query, exact, REFERENCE)
        kitty.step_abort(batch)
        kitty.batch_upload(batch, queue)  # the aborted step left the slots idle, for the graphs too
        stream.synchronize()
        errors = [relative(out[layer][s], exact[s]) for layer in {0, layers - 1} for s in range(sequences)]
        result = {"layers": layers, "bytes": bytes_read, "error": max(errors)}
        if result["error"] <= LIMITS["fp16" if dtype == torch.float16 else "bf16"]:
            with torch.cuda.stream(stream):
                result["us"], result["us_p10"], result["us_p90"] = replay(attends, layers, replays)
                result["step_us"] = replay(step, layers, replays)[0]
        return result
    finally:
        torch.cuda.synchronize()
        if batch:
            kitty.batch_close(batch)
        if cache:
            kitty.cache_close(cache)


# ---- the run ---------------------------------------------------------------------------------------------------------

def parse_shape(word):
    try:
        sequences, context, heads = word.split("x")
        q_heads, kv_heads = heads.split("/")
        return int(sequences), int(context), int(q_heads), int(kv_heads)
    except ValueError:
        sys.exit(f"peers.py: --shapes: '{word}' is not allowed; allowed: SEQUENCESxCONTEXTxQ_HEADS/KV_HEADS")


def out_of_memory(error):
    return isinstance(error, torch.cuda.OutOfMemoryError) or getattr(error, "out_of_memory", False)


def attempt(name, body, *arguments):
    """body(...), or None with a line where the card has too little memory or the library refuses."""
    try:
        return body(*arguments)
    except (Refused, torch.cuda.OutOfMemoryError) as error:
        print(f"  {name}: skipped: {str(error).splitlines()[0]}" if out_of_memory(error) else f"  {name}: FAILED: {error}",
              flush=True)
        return None if out_of_memory(error) else False
    finally:
        torch.cuda.empty_cache()


def save(rows, path):
    with open(path, "w", encoding="utf-8") as file:
        json.dump(rows, file, indent=1)
        file.write("\n")


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default=SHAPES, help="SEQUENCESxCONTEXTxQ_HEADS/KV_HEADS,... (default: nine)")
    parser.add_argument("--spec", help="MODEL/VARIANT[;MODEL/VARIANT] of these heads (default: by heads, kitty-pro)")
    parser.add_argument("--dtype", default="fp16", choices=sorted(DTYPES))
    parser.add_argument("--build", default=os.path.join(here, "..", "..", "build"), help="the build folder")
    parser.add_argument("--replays", type=int, default=60)
    parser.add_argument("--no-peers", action="store_true", help="time kittygen alone")
    parser.add_argument("--json", help="write the rows to this file, not to the output")
    options = parser.parse_args()
    if options.replays < 50:
        sys.exit("peers.py: --replays: at least 50 are needed")
    shapes = [parse_shape(word) for word in options.shapes.split(",")]
    build, dtype = os.path.abspath(options.build), DTYPES[options.dtype]
    kitty = Kitty(build)

    torch.manual_seed(0)
    device = torch.cuda.get_device_properties(0)
    stream = torch.cuda.Stream()
    reads, copies = bandwidth(build)
    fastest = max(reads, copies)
    print(f"{device.name}, {device.multi_processor_count} multiprocessors, {device.L2_cache_size / 1e6:.0f} MB of L2, "
          f"PyTorch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}; read {reads / 1e12:.2f} TB/s, "
          f"copy {copies / 1e12:.2f} TB/s (both ways)", flush=True)
    print("us: microseconds per layer, the median (10th to 90th percentile); %: of the card's bandwidth above, for the bytes "
          "that must be read", flush=True)
    rows, engines, failed = [], {}, False

    def add(op, variant, shape, result, ratio):
        sequences, context, q_heads, kv_heads, d = shape
        share = result["bytes"] / (result["us"] * 1e-6) / fastest
        rows.append({"op": op, "variant": variant, "sequences": sequences, "context": context, "q_heads": q_heads,
                     "kv_heads": kv_heads, "head_dim": d, "dtype": options.dtype, **result, "bandwidth_share": share,
                     "ratio_cudnn": ratio, "device": device.name})
        if options.json: # at once, for a run that is cut short
            save(rows, options.json)
        print(f"  {op + ' ' + variant:28} {result['us']:9.2f} ({result['us_p10']:.2f} to {result['us_p90']:.2f})  "
              f"{result['bytes'] / result['us'] / 1e3:7.0f} GB/s  {100 * share:5.1f} %  "
              + (f"{ratio:5.2f} x cuDNN  " if ratio else "")
              + (f"step {result['step_us']:.2f}  " if "step_us" in result else "")
              + f"error {result['error']:.1e}, {result['layers']} layers" + (f", {result['form']}" if "form" in result else ""),
              flush=True)

    for sequences, context, q_heads, kv_heads in shapes:
        specs = options.spec or SPECS.get((q_heads, kv_heads))
        if not specs:
            sys.exit(f"peers.py: no spec is known for {q_heads}/{kv_heads} heads; name one with --spec")
        print(f"{sequences} x {context}, {q_heads}/{kv_heads}", flush=True)
        cudnn = None
        for spec in specs.split(";"):
            if spec not in engines:
                engines[spec] = Engine(kitty, build, spec, options.dtype)
            engine = engines[spec]
            if (engine.model["q_heads"], engine.model["kv_heads"]) != (q_heads, kv_heads):
                sys.exit(f"peers.py: {spec} has {engine.model['q_heads']}/{engine.model['kv_heads']} heads, not {q_heads}/{kv_heads}")
            shape = (sequences, context, q_heads, kv_heads, engine.format["head_dim"])
            for backend in () if options.no_peers or cudnn else (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION):
                name = "cudnn" if backend == SDPBackend.CUDNN_ATTENTION else "flash"
                timed = attempt(name, time_sdpa, backend, shape, dtype, stream, options.replays, device.L2_cache_size)
                best, why = timed or (None, "")
                if best:
                    cudnn = best["us"] if name == "cudnn" else cudnn
                    add("sdpa", name, shape, best, cudnn / best["us"] if cudnn else None)
                elif why:
                    print(f"  {name}: none: {why}", flush=True)
            result = attempt(spec, time_kitty, engine, shape, dtype, stream, options.replays, device.L2_cache_size)
            if result is False or (result and "us" not in result):
                failed = True
            if result and "us" in result:
                add("attend", spec.split("/")[-1], shape, result, cudnn / result["us"] if cudnn else None)
            elif result:
                print(f"  {spec}: FAILED: the error is {result['error']:.1e}, above {LIMITS[options.dtype]:.0e}; no time is given",
                      flush=True)
    if not options.json:
        for row in rows:
            print(json.dumps(row))
    else:
        save(rows, options.json)
    for engine in engines.values():
        engine.close()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
