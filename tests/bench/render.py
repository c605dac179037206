#!/usr/bin/env python3
"""Writes the tables of speed in RESULTS.md, and the picture scaling.svg beside it, from results.json.

    python3 tests/bench/render.py [--results FILE] [--folder FOLDER] [--card NAME] [--check]

A table stands between `<!-- table: NAME -->` and `<!-- end -->`, one of another card's rows after `<!-- table: NAME of CARD -->`;
all else in RESULTS.md is left as it is. --check writes nothing and fails if a file is not what results.json gives. Plain Python, no packages.
"""
import argparse
import math
import os
import re
import sys

import rows
from picture import picture

CARD = "NVIDIA H100 80GB HBM3"  # of tables that name none
QWEN = (32, 8, 128)  # query heads, KV heads, head_dim of Qwen3-8B and Llama-3.1-8B


def short(number):
    """1024 as 1K."""
    return f"{number // 1024}K" if number % 1024 == 0 and number else str(number)


def heads(row):
    return row["q_heads"], row["kv_heads"], row["head_dim"]


def by_shape(row):
    return row["sequences"] * row["context"], row["sequences"]


def us(row, name="us"):
    value = row.get(name) if row else None
    return "-" if value is None else f"{value:.0f}" if value >= 1000 else f"{value:.1f}" if value >= 100 else f"{value:.2f}"


def per_cent(row):
    share = row.get("bandwidth_share") if row else None
    return "-" if share is None else f"{100 * share:.1f}"


def ratio(row, name):
    value = row.get(name) if row else None
    return "-" if value is None else f"{value:.2f}"


class Table:
    """Lines of a table, and the rows it was made of, which say where it is from."""

    def __init__(self, *columns):
        self.columns, self.lines, self.used = columns, [], []

    def add(self, cells, *used):
        self.lines.append(cells)
        self.used += [row for row in used if row]

    def text(self):
        if not self.lines:
            return "Not measured yet.\n"
        lines = ["| " + " | ".join(cells) + " |" for cells in (self.columns, ["---"] * len(self.columns), *self.lines)]
        lines[1] = "|" + "---|" * len(self.columns)
        commands = list(dict.fromkeys(row["command"] for row in self.used))
        cards, dates = ({row[name] for row in self.used} for name in ("card", "date"))
        return "\n".join(lines) + f"\n\n{', '.join(sorted(cards))}; {', '.join(sorted(dates))}; " + ", ".join(f"`{c}`" for c in commands) + ".\n"


def card_of(all_rows, card):
    """The card that is named, else CARD, else the one that has the most rows."""
    cards = [row["card"] for row in all_rows]
    if card and card not in cards:
        sys.exit(f"render.py: --card: no row is of '{card}'; there are {', '.join(sorted(set(cards)))}")
    return card or max(sorted(set(cards)), key=lambda c: (c == CARD, cards.count(c)), default=None)


class Results:
    """The rows of one card."""

    def __init__(self, all_rows, card):
        self.rows = [row for row in all_rows if row["op"] != "bandwidth" and row["card"] == card]

    def find(self, **wanted):
        peers = wanted.pop("peers", False)
        return [row for row in self.rows if rows.by_peers(row) == peers and all(row.get(k) == v for k, v in wanted.items())]

    def one(self, **wanted):
        return next(iter(self.find(**wanted)), None)

    def like(self, row, **other):
        """The row of the same shape, heads and dtype, but for `other`."""
        same = {name: row[name] for name in ("sequences", "context", "q_heads", "kv_heads", "head_dim", "dtype")}
        return self.one(**{**same, **other})


def beside_pytorch(r):
    table = Table("sequences x context, heads", "cuDNN", "flash", "attend", "x cuDNN", "GB/s", "per cent", "append and attend")
    for row in sorted(r.find(peers=True, op="attend", variant="kitty-pro"), key=by_shape):
        sdpa = {name: r.like(row, peers=True, op="sdpa", variant=name) for name in ("cudnn", "flash")}
        table.add([f"{row['sequences']} x {short(row['context'])}, {row['q_heads']}/{row['kv_heads']}", us(sdpa["cudnn"]), us(sdpa["flash"]), us(row),
                   ratio(row, "ratio_cudnn"), f"{row['bytes'] / row['us'] / 1e3:.0f}", per_cent(row), us(row, "step_us")], row, *sdpa.values())
    return table


def variants_beside_pytorch(r):
    table = Table("shape", "variant", "attend", "x cuDNN", "per cent")
    for row in sorted(r.find(peers=True, op="attend"), key=lambda row: (by_shape(row), -row["bytes"])):
        if row["variant"] != "kitty-pro" or any(other["variant"] != "kitty-pro" for other in r.find(
                peers=True, op="attend", sequences=row["sequences"], context=row["context"], q_heads=row["q_heads"])):
            table.add([f"{row['sequences']} x {short(row['context'])}", row["variant"], us(row), ratio(row, "ratio_cudnn"), per_cent(row)], row)
    return table


def variants(r):
    table = Table("shape", "variant", "attend", "per cent", "x fp16", "step", "step / attend", "append", "seal", "per cent", "host attend", "host begin")
    for host in sorted(r.find(op="host"), key=lambda row: (by_shape(row), row["variant"] != "fp16", row["variant"])):
        attend, step, append, seal = (r.like(host, op=op, variant=host["variant"]) for op in ("attend", "step", "append", "seal"))
        both = f"{step['us'] / attend['us']:.2f}" if step and attend else "-"
        table.add([f"{host['sequences']} x {short(host['context'])}", host["variant"], us(attend), per_cent(attend), ratio(attend, "ratio_fp16"), us(step), both,
                   us(append), us(seal), per_cent(seal), us(host), us(host, "step_begin_us")], host, attend, step, append, seal)
    return table


def head_sizes(r):
    table = Table("query / KV heads, head_dim", "dtype", "model", "us", "per cent")
    wanted = r.find(op="attend", variant="kitty-pro", sequences=32, context=32768)
    for row in sorted(wanted, key=lambda row: (row["head_dim"], row["q_heads"] // row["kv_heads"], row["kv_heads"], row["dtype"] != "fp16")):
        table.add([f"{row['q_heads']} / {row['kv_heads']}, {row['head_dim']}", row["dtype"], row.get("model") or "qwen3-8b", us(row), per_cent(row)], row)
    return table


def unequal(r):
    table = Table("sequences, mean length", "equal", "unequal", "times", "bytes, times")
    for row in sorted(r.find(op="attend_unequal"), key=by_shape):
        equal = r.like(row, op="attend_equal", variant=row["variant"])
        if equal:
            table.add([f"{row['sequences']}, {row['context']}", us(equal), us(row), f"{row['us'] / equal['us']:.2f}", f"{row['bytes'] / equal['bytes']:.2f}"],
                      equal, row)
    return table


def scaling_rows(r, **fixed):
    wanted = [row for row in r.find(op="attend_scaling", variant="kitty-pro", dtype="fp16", **fixed) if heads(row) == QWEN]
    return sorted(wanted, key=by_shape)


def growth(wanted, name, label):
    table = Table(label, *[short(row[name]) if name == "context" else str(row[name]) for row in wanted])
    if wanted:
        table.add(["us", *map(us, wanted)], *wanted)
        table.add(["per cent", *map(per_cent, wanted)])
        table.add(["GB/s", *[f"{row['bytes'] / row['us'] / 1e3:.0f}" for row in wanted]])
    return table


TABLES = {
    "beside-pytorch": beside_pytorch,
    "variants-beside-pytorch": variants_beside_pytorch,
    "variants": variants,
    "heads": head_sizes,
    "unequal": unequal,
    "context": lambda r: growth(scaling_rows(r, sequences=1), "context", "1 x context"),
    "batch": lambda r: growth(scaling_rows(r, context=8192), "sequences", "batch x 8K"),
}


def panel(r, name, title, **fixed):
    """What one half of the picture shows: (x, us) by series."""
    wanted = scaling_rows(r, **fixed)
    rates = [row["bytes"] / row["us"] / row["bandwidth_share"] for row in wanted if row.get("bandwidth_share")]
    rate = sorted(rates)[len(rates) // 2] if rates else math.nan
    cudnn = [row for row in r.find(peers=True, op="sdpa", variant="cudnn", dtype="fp16", **fixed) if heads(row) == QWEN]
    return {"title": title, "label": short if name == "context" else str, "series": [
        ("cuDNN, fp16", "other", sorted((row[name], row["us"]) for row in cudnn)),
        ("attend, kitty-pro", "own", [(row[name], row["us"]) for row in wanted]),
        ("bytes / bandwidth", "floor", [(row[name], row["bytes"] / rate) for row in wanted] if rates else []),
    ]}


def render_text(text, r, all_rows):
    seen = set()

    def table(match):
        name = match.group(1)
        if name not in TABLES:
            sys.exit(f"render.py: no table '{name}'; there are {', '.join(TABLES)}")
        card = match.group(2)
        if not card:
            seen.add(name)
        whose = Results(all_rows, card) if card else r
        return f"<!-- table: {name}{f' of {card}' if card else ''} -->\n{TABLES[name](whose).text()}<!-- end -->"
    text = re.sub(r"<!-- table: (\S+)(?: of ([^\n]+?))? -->\n.*?<!-- end -->", table, text, flags=re.DOTALL)
    if seen != set(TABLES):
        sys.exit(f"render.py: RESULTS.md has no place for {', '.join(sorted(set(TABLES) - seen))}: <!-- table: NAME --> and <!-- end -->")
    return text


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", default=rows.RESULTS, help="the rows (default: the repository's)")
    parser.add_argument("--folder", default=rows.HERE, help="of RESULTS.md and scaling.svg (default: the repository's)")
    parser.add_argument("--card", help=f"whose rows (default: {CARD}, else the card with the most)")
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if something would change")
    options = parser.parse_args()
    measured = rows.read(options.results)
    if len(rows.merge(measured, [])) != len(measured):
        sys.exit(f"render.py: {options.results} has rows of the same key; the next run of collect.py would lose all but the last")
    r = Results(measured, card_of(measured, options.card))
    paths = [os.path.join(options.folder, name) for name in ("RESULTS.md", "scaling.svg")]
    with open(paths[0], encoding="utf-8") as file:
        before = [file.read(), ""]
    if os.path.exists(paths[1]):
        with open(paths[1], encoding="utf-8") as file:
            before[1] = file.read()
    after = [render_text(before[0], r, measured), picture([panel(r, "context", "one sequence, by context", sequences=1),
                                                 panel(r, "sequences", "sequences of 8K tokens, by batch", context=8192)])]
    changed = [path for path, old, new in zip(paths, before, after) if old != new]
    if options.check:
        for path in changed:
            print(f"render.py: {path} is not what {options.results} gives; run tests/bench/render.py", file=sys.stderr)
        return 1 if changed else 0
    for path, text in zip(paths, after):
        if path in changed:
            with open(path, "w", encoding="utf-8") as file:
                file.write(text)
            print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
