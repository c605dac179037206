"""Decode throughput of whole models by cache and batch size: tokens per second, memory, and what the bytes would allow.

    python -m kittygen.throughput --config qwen3-8b --batch 1,8,32,max --context 8192 --results tests/bench/results.json
    python -m kittygen.throughput --config tiny --context 300 --batch 1,2 --steps 4        without a GPU

Models have random weights, made on the device from a configuration. Caches hold random keys and values, put there by the
caches' own update and not by the model: contexts are full at once. What is timed is the model's own steps after that, every
sequence at the same length: a step takes in one token per sequence and chooses the next on the device. KittyCache is timed
eagerly, as in model.generate(), and through kittygen.decode (a CUDA graph per step).

Predicted: the weights' bytes at the measured bandwidth, or the products at the measured rate if that is longer, and the bytes
of keys and values that attention must read. "max" in --batch stands for the largest batch that fits.
"""

import argparse
import json
import re
import shlex
import sys
import time
import traceback
from functools import lru_cache
from pathlib import Path

import torch

from . import caches, throughput_model, throughput_profile, throughput_step
from .cache import shape_of
from .errors import KittyError
from .report import (CommandError, choose_device, merge_rows, number, number_list, print_table, quiet_transformers, run_command, say,
                     stamp)

KEY = ("op", "model", "variant", "mode", "inductor", "sequences", "context", "dtype", "card")
PROFILED = 8                                     # steps of a profile
AHEAD = throughput_step.WARM + 1                 # steps before the timed ones; the decode loop makes one at its start
SLACK = 1 << 30                                  # workspaces of the libraries, activations, a graph
OUT_OF_MEMORY = re.compile(r"out of memory|ALLOC_FAILED|CUBLAS_STATUS_NOT_INITIALIZED")


def parse_arguments(argv):
    parser = argparse.ArgumentParser(prog="python -m kittygen.throughput", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--config", choices=sorted(throughput_model.CONFIGS), default="qwen3-8b", help="(default: %(default)s)")
    add("--model-config", type=Path, metavar="FILE", help="a config.json instead")
    add("--batch", default="1,8,32", metavar="N,N,..,max", help="(default: %(default)s)")
    add("--context", type=int, default=8192, metavar="N", help="tokens of each sequence (default: %(default)s)")
    add("--caches", default="kitty-pro,dynamic,static,static-compiled", metavar="C,C,..",
        help="KittyCache's variants, spec files, dynamic, static, static-compiled (default: %(default)s)")
    add("--modes", default="eager,graph", metavar="M,M", help="how KittyCache is timed (default: %(default)s)")
    add("--steps", type=int, default=128, metavar="N",
        help="timed steps; 128 hold one page turn of every sequence (default: %(default)s; a quarter of it for other caches)")
    add("--inductor", metavar="O,O,..", help="options of torch.compile to switch on, as max_autotune_gemm or combo_kernels: their rows "
        "stand beside those without")
    add("--device", help="cpu, cuda, cuda:1, .. (default: cuda where there is one)")
    add("--dtype", choices=("fp16", "bf16"), default="bf16", help="(default: %(default)s)")
    add("--limit-s", type=float, metavar="S", help="begin nothing that is not expected to end within S seconds of the start")
    add("--profile", action="store_true", help="also print where the time of a step goes")
    add("--json", action="store_true", help="print the rows as JSON, no table")
    add("--results", type=Path, metavar="FILE", help="merge every row into this file of results, as soon as it is there")
    options = parser.parse_args(argv)
    for name, least in (("steps", 1), ("context", AHEAD + 1)):
        if getattr(options, name) < least:
            raise CommandError(f"--{name}: {getattr(options, name)} is not allowed; allowed: {least} or more")
    words = options.batch.split(",")
    options.largest = "max" in words
    numbers = [word for word in words if word != "max"]
    options.batches = sorted(set(number_list("--batch", ",".join(numbers)))) if numbers else []
    options.caches, options.modes = options.caches.split(","), options.modes.split(",")
    for name in options.caches:
        caches.check_name(name)
        if caches.QUANTISED.fullmatch(name):
            raise CommandError(f"--caches: '{name}' is not allowed; kittygen.evaluate compares Transformers' quantised caches")
    options.inductor = options.inductor.split(",") if options.inductor else []
    for name in options.inductor:
        if name not in inductor_options():
            raise CommandError(f"--inductor: '{name}' is not allowed; allowed: what torch._inductor.list_options() has")
    for mode in options.modes:
        if mode not in ("eager", "graph"):
            raise CommandError(f"--modes: '{mode}' is not allowed; allowed: eager, graph")
    return options


@lru_cache
def inductor_options():
    from torch._inductor import list_options  # seconds, and needed for this alone
    return list_options()


def measure_rates(device):
    """Bytes a second that the device reads, and operations a second of 16-bit matrix products; both the best of several."""
    cuda = device.type == "cuda"
    source = torch.ones((1 << 30) if cuda else (1 << 25), device=device)
    side = 8192 if cuda else 512
    factors = [torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2)]
    read = min(throughput_step.timed(lambda n: source.sum(), 1, device) for _ in range(8))
    product = min(throughput_step.timed(lambda n: factors[0] @ factors[1], 1, device) for _ in range(8))
    rates = {"bytes": source.nbytes / read, "operations": 2 * side ** 3 / product}
    del source, factors
    caches.free_memory()
    return rates


class Bench:
    def __init__(self, options, name, model, device, rates, command):
        self.options, self.name, self.model, self.device, self.rates, self.command = options, name, model, device, rates, command
        self.weights, self.shape = throughput_model.weight_bytes(model), shape_of(model.config, model.dtype)
        self.start, self.lasted, self.rows, self.left_out, self.profiles = time.monotonic(), {}, [], [], []

    def in_time(self, what, label):
        """Whether another run like the last `what` ends before --limit-s."""
        spent, limit = time.monotonic() - self.start, self.options.limit_s
        if limit is None or spent + self.lasted.get(what, 0) <= limit:
            return True
        self.left_out.append(label)
        return False

    def run(self):
        for cache in self.options.caches:
            for runner in throughput_step.runners(cache):
                if not caches.is_kitty(cache) or ("eager" if runner is throughput_step.Eager else "graph") in self.options.modes:
                    self.run_batches(cache, runner)
            # What was compiled is kept while the batch changes: PyTorch then compiles once more, for any batch.
            torch._dynamo.reset()
            caches.free_memory()

    def run_batches(self, cache, runner):
        fits, fails = 0, None
        for batch in self.options.batches:
            if fails is None and self.in_time((cache, runner), f"{cache} {batch}"):
                if self.attempt(cache, runner, batch):
                    fits = batch
                else:
                    fails = batch
        if self.options.largest:
            batch = self.largest(cache) if fails is None else min(self.largest(cache), fails - 1)
            while batch > fits and self.in_time((cache, runner), f"{cache} max ({batch})"):
                if self.attempt(cache, runner, batch, report=False):
                    break
                batch = batch * 24 // 25

    def attempt(self, cache, runner, batch, report=True):
        """Measures one batch; False where memory does not suffice, which is a row too if it is to be reported."""
        begun, reason = time.monotonic(), None
        try:
            row = self.measure(cache, runner, batch)
        except (RuntimeError, KittyError) as error:  # KittyError is a RuntimeError; torch's OutOfMemoryError too
            if not OUT_OF_MEMORY.search(str(error)) and getattr(error, "status", None) not in ("KT_MEMORY", "KT_FULL"):
                raise
            reason = str(error).splitlines()[0]
            traceback.clear_frames(error.__traceback__)  # they hold tensors
        if runner is throughput_step.Compiled:
            torch._dynamo.reset()  # its graphs hold memory
        caches.free_memory()
        self.lasted[cache, runner] = time.monotonic() - begun
        if reason is not None:
            say(f"{cache} {runner.__name__.lower()} {batch}: out of memory: {reason[:120]}")
            if not report:
                return False
            row = {**self.head(cache, runner.mode, batch), "fits": False}
        row = stamp([row], self.device, self.command)[0]
        self.rows.append(row)
        if self.options.results:
            merge_rows(self.options.results, [row], KEY)
        if reason is None:
            say(f"{cache} {row['mode']} {batch}: {number(row['tokens_per_s'])} tokens/s, {number(row['us'] / 1000)} ms a step")
        return reason is None

    def head(self, cache, mode, batch):
        shape = self.shape
        inductor = {"inductor": ",".join(self.options.inductor)} if self.options.inductor and mode in ("graph", "compiled") else {}
        return {"op": "generate", "variant": cache, "mode": mode, **inductor, "model": self.name, "sequences": batch,
                "context": self.options.context, "q_heads": shape.q_heads, "kv_heads": shape.kv_heads, "head_dim": shape.head_dim, "layers": shape.layers,
                "dtype": shape.dtype}

    def measure(self, cache_name, runner, batch):
        options, device, step = self.options, self.device, throughput_step
        steps = options.steps if caches.is_kitty(cache_name) else max(1, options.steps // 4)
        later = steps + (PROFILED + 1 if options.profile else 0)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        with caches.opened(cache_name, self.model, batch, options.context + later + AHEAD) as cache:
            step.fill(cache_name, self.model, cache, batch, options.context - AHEAD)
            loop = runner(self.model, cache, batch, AHEAD + later, options.inductor)
            warm = step.timed(loop.run, AHEAD if runner is not step.Loop else AHEAD - 1, device)
            seconds = step.timed(loop.run, steps, device) / steps
            kv = batch * step.read_bytes(cache_name, cache, options.context + steps // 2)
            row = {**self.head(cache_name, loop.mode, batch), "us": 1e6 * seconds, "tokens_per_s": batch / seconds,
                   "predicted_us": self.predict(batch, kv), "bytes": self.weights + kv,
                   "bandwidth_share": (self.weights + kv) / seconds / self.rates["bytes"],
                   "kv_bytes": step.cache_bytes(cache_name, cache, batch), **self.memory(cache_name, cache), "fits": True, "warm_s": warm}
            if options.profile:
                self.profiles.append((f"{cache_name} {loop.mode}, {batch} sequences",
                                      *throughput_profile.take_profile(loop.run, PROFILED, device)))
            del loop
        return row

    def predict(self, batch, kv):
        operations = 2 * batch * self.weights / self.model.dtype.itemsize
        return 1e6 * (max(self.weights / self.rates["bytes"], operations / self.rates["operations"]) + kv / self.rates["bytes"])

    def memory(self, name, cache):
        """Peak of PyTorch's memory and the cache's pool together, and all that the device has in use."""
        if self.device.type != "cuda":
            return {"peak_bytes": None, "device_bytes": None}
        free, total = torch.cuda.mem_get_info(self.device)
        pool = cache.memory()["held"] if caches.is_kitty(name) else 0
        return {"peak_bytes": torch.cuda.max_memory_allocated(self.device) + pool, "device_bytes": total - free}

    def largest(self, name):
        """The batch that would fill the free memory with keys, values and a step's logits, but for what little else a step needs."""
        tokens = self.options.context + AHEAD + (self.options.steps if caches.is_kitty(name) else self.options.steps // 4)
        free = torch.cuda.mem_get_info(self.device)[0]
        each = 4 * self.shape.layers * self.shape.kv_heads * self.shape.head_dim * tokens  # keys and values of 2 bytes
        if caches.is_kitty(name):
            store = caches.open_cache(name, self.model, None, tokens).steps.store
            each = store.budget_for(2, 0, tokens) - store.budget_for(1, 0, tokens)
        return (free - SLACK) // (each + 4 * self.model.config.vocab_size)


def print_results(bench):
    options = bench.options
    print(f"{bench.name} ({number(bench.weights / 1e9, 3)} GB of weights a step, {options.dtype}, random), context {options.context} "
          f"(random keys and values), {bench.rows[0]['card']}: reads {number(bench.rates['bytes'] / 1e12, 3)} TB/s, "
          f"{number(bench.rates['operations'] / 1e12, 3)} TFLOP/s")
    lines = []
    for row in bench.rows:
        name = f"{row['variant']} {row['mode']} {row.get('inductor', '')}".rstrip()
        if not row["fits"]:
            lines.append([name, row["sequences"], "out of memory"] + [None] * 6)
            continue
        peak = row["peak_bytes"] and row["peak_bytes"] / 1e9
        lines.append([name, row["sequences"], row["tokens_per_s"], row["us"] / 1e3, row["predicted_us"] / 1e3,
                      number(row["us"] / row["predicted_us"], 3), number(row["kv_bytes"] / 1e6, 3), peak and number(peak, 3),
                      f"{row['warm_s']:.0f}"])
    print_table(["cache", "batch", "tokens/s", "ms/step", "predicted", "ratio", "KV MB each", "peak GB", "warm-up s"], lines)
    for profile in bench.profiles:
        throughput_profile.print_profile(*profile)


def main(argv=None):
    options = parse_arguments(argv)
    quiet_transformers()
    device = choose_device(options.device)
    if options.largest and device.type != "cuda":
        raise CommandError("--batch: max is not allowed on the CPU; allowed: numbers")
    begun = time.monotonic()
    name, config = throughput_model.read_config(options.config, options.model_config)
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[options.dtype]
    model = throughput_model.random_model(config, dtype, device)
    rates = measure_rates(device)
    say(f"{name}: {sum(p.numel() for p in model.parameters()) / 1e9:.2f}e9 weights made in {time.monotonic() - begun:.0f} s")
    command = "python -m kittygen.throughput " + shlex.join(argv if argv is not None else sys.argv[1:])
    bench = Bench(options, name, model, device, rates, command)
    bench.start = begun
    with torch.no_grad():
        bench.run()
    if bench.left_out:
        say(f"--limit-s {options.limit_s:g}: left out {', '.join(bench.left_out)}")
    if options.json:
        print(json.dumps(bench.rows, indent=1, allow_nan=False))
    elif bench.rows:
        print_results(bench)
    return 0


if __name__ == "__main__":
    run_command("kittygen.throughput", main)
