"""The evaluation as one SVG: divergence by variant, and what of the needles is found. Readable on light and dark ground."""

import math
from html import escape

from .report import CommandError, number

WIDTH, LEFT, RIGHT, ROW, GAP = 860, 170, 110, 26, 46
STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #24292f; }
  .title { font-weight: 600; font-size: 15px; } .small { font-size: 11px; fill: #57606a; } .end { text-anchor: end; }
  .middle { text-anchor: middle; } .bar { fill: #3b6fd4; } .floor { fill: #8c959f; } .cell { fill: #2f8f5b; }
  .line { stroke: #afb8c1; stroke-width: 1; } .error { stroke: #24292f; stroke-width: 1.5; } .ground { fill: #ffffff; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3; } .small { fill: #9aa4ae; } .bar { fill: #6d9bf1; } .floor { fill: #768390; } .cell { fill: #46b37a; }
    .line { stroke: #444c56; } .error { stroke: #e6edf3; } .ground { fill: #0d1117; }
  }
"""


def draw(path, rows, needles):
    body, y = [], 30
    body.append(text(16, y, f"{rows[0]['model']}, {rows[0]['dtype']}, {rows[0]['tokens']} tokens of {rows[0]['text']}", "title"))
    body.append(text(16, y + 20, f"{rows[0]['card']}, {rows[0]['date']}; decoded token by token through the cache", "small"))
    y = divergence(body, y + GAP, rows)
    if needles:
        y = retrieval(body, y + GAP, needles)
    svg = (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" width="{WIDTH}" height="{y}" role="img">\n'
           f'<style>{STYLE}</style>\n<rect class="ground" width="{WIDTH}" height="{y}"/>\n' + "\n".join(body) + "\n</svg>\n")
    try:
        path.write_text(svg, encoding="utf-8")
    except OSError as error:
        raise CommandError(f"--plot {path}: {error.strerror}") from None


def text(x, y, words, kind=""):
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}">{escape(str(words))}</text>'


def divergence(body, y, rows):
    """A bar for each variant on a logarithmic scale, with the standard error."""
    body.append(text(16, y, "KL from the exact model, nats per token (logarithmic; less is better)", "title"))
    positive = [row["kl"] for row in rows if row["kl"] > 0] or [1.0]
    low, high = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)))
    high = max(high, low + 1)

    def at(value):
        share = (math.log10(max(value, 10.0 ** low)) - low) / (high - low)
        return LEFT + min(max(share, 0), 1) * (WIDTH - LEFT - RIGHT)

    top, bottom = y + 14, y + 18 + ROW * len(rows)
    step = max(1, (high - low) // 8)
    for power in range(low, high + 1, step):
        x = at(10.0 ** power)
        body.append(f'<line class="line" x1="{x:.1f}" y1="{top}" x2="{x:.1f}" y2="{bottom}"/>')
        body.append(text(x, bottom + 14, f"{10.0 ** power:g}", "small middle"))
    for i, row in enumerate(rows):
        line = top + ROW * i + 6
        kind, label = ("floor", "exact, step by step") if i == 0 else ("bar", row["variant"])
        body.append(text(LEFT - 10, line + 13, label, "end"))
        body.append(f'<rect class="{kind}" x="{LEFT}" y="{line}" width="{max(at(row["kl"]) - LEFT, 1):.1f}" height="{ROW - 8}" rx="2"/>')
        if row["kl_error"]:
            left, right = at(row["kl"] - row["kl_error"]), at(row["kl"] + row["kl_error"])
            body.append(f'<line class="error" x1="{left:.1f}" y1="{line + 9}" x2="{right:.1f}" y2="{line + 9}"/>')
        body.append(text(WIDTH - RIGHT + 12, line + 13, number(row["kl"], 3)))
    return bottom + 20


def retrieval(body, y, needles):
    """A cell for each variant, length and depth: the share of words ranked first among ten."""
    cells = list(dict.fromkeys((n["context"], n["depth"]) for n in needles))
    names = list(dict.fromkeys(n["variant"] for n in needles))
    shares = {(n["variant"], n["context"], n["depth"]): n["choice"] for n in needles}
    body.append(text(16, y, "Needle: words of a pass-phrase ranked first among ten candidates, % (chance 10)", "title"))
    width = (WIDTH - LEFT - 20) / len(cells)
    top = y + 34
    for j, (length, depth) in enumerate(cells):
        x = LEFT + width * j
        if j == 0 or cells[j - 1][0] != length:
            body.append(text(x, top - 16, f"{length} tokens", "small"))
        body.append(text(x + width / 2, top - 3, f"{depth:g}", "small middle"))
    for i, name in enumerate(names):
        line = top + ROW * i
        body.append(text(LEFT - 10, line + 17, "exact, step by step" if i == 0 else name, "end"))
        for j, cell in enumerate(cells):
            share, x = shares[(name, *cell)], LEFT + width * j
            body.append(f'<rect class="cell" x="{x + 1:.1f}" y="{line + 1}" width="{width - 2:.1f}" height="{ROW - 2}" '
                        f'opacity="{0.08 + 0.72 * share:.2f}"/>')
            body.append(text(x + width / 2, line + 17, f"{100 * share:.0f}", "middle"))
    return top + ROW * len(names) + 16
