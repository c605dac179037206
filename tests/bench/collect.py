#!/usr/bin/env python3
"""Measures everything that RESULTS.md shows of speed on one GPU and merges the rows into results.json, with card, date and command.

    python3 tests/bench/collect.py [--only NAME,...] [--limit-s N] [--results FILE] [--build FOLDER]
    python3 tests/bench/collect.py --ahead sm_90a     compiles into the cache what the runs need; no GPU
    python3 tests/bench/collect.py --list             what there is, with the seconds that each takes about

Rows of the same op, variant, shape, heads, dtype and card are replaced, others stay; the file is written after each part, so that
what is done is kept. Then tests/bench/render.py writes the tables and the picture. Needs a build folder (./dev build); the parts
beside PyTorch need that too and are left out without it.
"""
import argparse
import datetime
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time

import rows

ROOT = os.path.normpath(os.path.join(rows.HERE, "..", ".."))
HEADS = "tests/bench/specs/heads.lua"
MODELS = ["qwen3_0_6b", "qwen3_14b", "qwen3_32b", "phi3_mini", "smollm2_135m", "gemma3_270m"]

# name: (seconds it may take on an H100 with everything compiled, the command after "kittygen bench" or "peers.py")
BENCH = {
    "variants": (60, "qwen3_8b/fp16,int4,kitty_pro,kitty --dtype fp16 --shapes 32x8192,32x32768"),
    "bf16": (15, "qwen3_8b/kitty_pro --dtype bf16 --ops attend --shapes 32x8192,32x32768"),
    "heads": (25, f"{HEADS} --dtype fp16 --ops attend --shapes 32x32768"),
    "models": (25, " ".join(f"{model}/kitty_pro" for model in MODELS) + " --dtype fp16 --ops attend --shapes 32x32768"),
    "unequal": (20, "qwen3_8b/kitty_pro --dtype fp16 --ops attend --shapes 64x8192,64x32768 --unequal"),
    "host": (15, "qwen3_8b/kitty_pro --dtype fp16 --ops attend,step,append,host --shapes 64x8192"),
    "scaling": (30, "qwen3_8b/kitty_pro --dtype fp16 --ops attend --shapes 1x4096 --scaling"),
}
PEERS = {
    "peers": (90, ""),
    "peers-variants": (30, "--shapes 32x32768x32/8 --spec qwen3_8b/fp16;qwen3_8b/int4;qwen3_8b/kitty_pro;qwen3_8b/kitty"),
}
LIMIT = 240


def specs_of(words):
    """The specs of a command: what comes before its options."""
    return words[:next((i for i, word in enumerate(words) if word.startswith("-")), len(words))]


def ahead(build, arch):
    """kittygen build of every spec with the dtype it runs in."""
    specs = {"fp16": ["qwen3_8b/fp16,int4,kitty_pro,kitty"]}
    for _, command in BENCH.values():
        words = command.split()
        dtype = words[words.index("--dtype") + 1]
        specs.setdefault(dtype, []).extend(spec for spec in specs_of(words) if spec not in specs.get(dtype, []))
    for dtype, names in specs.items():
        subprocess.run([os.path.join(build, "kittygen"), "build", *names, "--dtype", dtype, "--arch", arch], cwd=ROOT, check=True)


def run(command, seconds):
    """What a command printed, and whether it went well. Its messages go where this one's do."""
    began = time.monotonic()
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            text, _ = process.communicate(timeout=max(1, seconds))
        except subprocess.TimeoutExpired:
            process.kill()
            text, _ = process.communicate()
            print("  stopped: out of time; what it measured is kept", flush=True)
    print(f"  {time.monotonic() - began:.1f} s" + (f", exit code {process.returncode}" if process.returncode else ""), flush=True)
    return text, not process.returncode


def bench(build, command, seconds):
    text, good = run([os.path.join(build, "kittygen"), "bench", *command.split(), "--json"], seconds)
    text = text.rstrip()
    return json.loads(text if text.endswith("]") else text + "]") if text else [], good


def peers(build, command, seconds):
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "rows.json")
        _, good = run([sys.executable, os.path.join(rows.HERE, "peers.py"), "--build", build, "--json", path, *command.split()], seconds)
        return rows.read(path) if os.path.exists(path) else [], good


def has_torch():
    return not subprocess.run([sys.executable, "-c", "import torch"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode


def show(row):
    words = [row["op"], row.get("variant", ""), f"{row['sequences']} x {row['context']}" if "sequences" in row else ""]
    if "q_heads" in row:
        words.append(f"{row['q_heads']}/{row['kv_heads']} heads of {row['head_dim']}, {row['dtype']}: {row['us']:.5g} us")
    words += [f"{100 * row['bandwidth_share']:.1f} %"] if row.get("bandwidth_share") else []
    words += [f"{row[name]:.4g} {label}" for name, label in (("ratio_cudnn", "x cuDNN"), ("ratio_fp16", "x fp16"), ("ratio_equal", "x equal lengths"),
                                                           ("step_begin_us", "us begin"), ("read", "B/s read"), ("copy", "B/s copy")) if row.get(name)]
    print("    " + " ".join(word for word in words if word), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="parts by name, with commas")
    parser.add_argument("--limit-s", type=float, default=LIMIT, help=f"end after so many seconds with what is done by then (default {LIMIT})")
    parser.add_argument("--results", default=rows.RESULTS, help="the file to merge into (default: the repository's)")
    parser.add_argument("--build", default=os.path.join(ROOT, "build"), help="the build folder")
    parser.add_argument("--ahead", metavar="ARCH", help="only compile, for sm_90a or another")
    parser.add_argument("--list", action="store_true", help="only list the parts")
    options = parser.parse_args()
    build, began = os.path.abspath(options.build), time.monotonic()
    parts = {**BENCH, **PEERS}
    wanted = options.only.split(",") if options.only else list(parts)
    for name in wanted:
        if name not in parts:
            sys.exit(f"collect.py: --only: '{name}' is not allowed; allowed: {', '.join(parts)}")
    if options.list:
        for name, (seconds, command) in parts.items():
            print(f"{name:15} {seconds:3} s  {'peers.py' if name in PEERS else 'kittygen bench'} {command}")
        return 0
    if options.ahead:
        return ahead(build, options.ahead)
    if not shutil.which(os.path.join(build, "kittygen")):
        sys.exit(f"collect.py: {build}/kittygen: not there; ./dev build makes it, --build names another folder")
    if not has_torch() and set(wanted) & set(PEERS):
        print("no PyTorch: nothing is measured beside it", flush=True)
        wanted = [name for name in wanted if name not in PEERS]

    failed, known = [], rows.read(options.results) if os.path.exists(options.results) else []
    for name in wanted:
        seconds, command = parts[name]
        left = options.limit_s - (time.monotonic() - began)
        shown = f"tests/bench/peers.py {command}".strip() if name in PEERS else f"kittygen bench {command}"
        print(f"{name}: {shown} (about {seconds} s; {left:.0f} s are left)", flush=True)
        if left < 1:
            print("  not begun: out of time", flush=True)
            failed.append(name)
            continue
        new, good = (peers if name in PEERS else bench)(build, command, left)
        new = [rows.clean(row, shown, None, datetime.date.today().isoformat()) for row in new]
        for row in new:
            show(row)
        known = rows.merge(known, new)
        rows.write(known, options.results)
        if not good:
            failed.append(name)
    print(f"{len(known)} rows in {options.results}; {time.monotonic() - began:.0f} s" + (f"; not whole: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
