"""Time against context and batch as an SVG, both axes logarithmic. Readable on light and dark pages; plain Python, no packages."""
import math

WIDTH, HEIGHT, LEFT, TOP, BOTTOM, GAP, RIGHT = 960, 400, 52, 48, 56, 72, 124
PANEL = (WIDTH - LEFT - RIGHT - GAP) / 2
LIGHT = {"page": "#ffffff", "text": "#52514e", "title": "#0b0b0b", "grid": "#e4e3df", "axis": "#a3a29c", "own": "#2a78d6", "other": "#b2560d",
         "floor": "#77756f"}
DARK = {"page": "#1a1a19", "text": "#c3c2b7", "title": "#ffffff", "grid": "#33322f", "axis": "#6f6e68", "own": "#5b9be8", "other": "#e08a3c",
        "floor": "#a3a29c"}


def colours(c):
    rules = [f".page {{ fill: {c['page']} }} text {{ fill: {c['text']} }} .title {{ fill: {c['title']} }}"]
    rules += [f".{name} {{ stroke: {c[name]} }}" for name in ("grid", "axis", "own", "other", "floor")]
    rules += [f".dot.{name} {{ fill: {c[name]}; stroke: {c['page']} }} .name.{name} {{ fill: {c[name]}; stroke: none }}" for name in ("own", "other", "floor")]
    return " ".join(rules)


STYLE = (" text { font: 12px system-ui, sans-serif } .title { font-size: 14px; font-weight: 600 } .line { fill: none; stroke-width: 2 } "
         f".floor {{ stroke-dasharray: 5 4 }} {colours(LIGHT)} @media (prefers-color-scheme: dark) {{ {colours(DARK)} }} ")


def escape(text):
    return text.replace("&", "&amp;").replace("<", "&lt;")


def number(value):
    return f"{value:.1f}".rstrip("0").rstrip(".")


class Axes:
    """From data to the page, for one panel."""

    def __init__(self, left, xs, low, high):
        self.left, self.low, self.high = left, math.log10(low), math.log10(high)
        self.first, self.last = math.log2(min(xs)), math.log2(max(xs))

    def x(self, value):
        return self.left + PANEL * (math.log2(value) - self.first) / max(self.last - self.first, 1e-9)

    def y(self, value):
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (math.log10(value) - self.low) / (self.high - self.low)


def spread(labels, least=15):
    """Names at the lines' ends, moved apart: [(y, ...)] ascending."""
    labels = sorted(labels)
    for i in range(1, len(labels)):
        if labels[i][0] - labels[i - 1][0] < least:
            labels[i] = (labels[i - 1][0] + least, *labels[i][1:])
    return labels


def draw_panel(out, panel, axes, named):
    xs = sorted({x for _, _, points in panel["series"] for x, _ in points})
    bottom, right = HEIGHT - BOTTOM, axes.left + PANEL
    out.append(f'<text class="title" x="{number(axes.left)}" y="{TOP - 20}">{escape(panel["title"])}</text>')
    for power in range(math.ceil(axes.low), math.floor(axes.high) + 1):
        y = number(axes.y(10 ** power))
        out.append(f'<line class="grid" x1="{number(axes.left)}" x2="{number(right)}" y1="{y}" y2="{y}"/>')
        out.append(f'<text x="{number(axes.left - 8)}" y="{y}" dy="4" text-anchor="end">{10 ** power if power >= 0 else 10.0 ** power:g}</text>')
    out.append(f'<line class="axis" x1="{number(axes.left)}" x2="{number(right)}" y1="{bottom}" y2="{bottom}"/>')
    for x in xs:
        out.append(f'<text x="{number(axes.x(x))}" y="{bottom + 18}" text-anchor="middle">{panel["label"](x)}</text>')
    names = []
    for name, kind, points in panel["series"]:
        if not points:
            continue
        at = [(axes.x(x), axes.y(y)) for x, y in points]
        out.append(f'<polyline class="line {kind}" points="{" ".join(f"{number(x)},{number(y)}" for x, y in at)}"/>')
        if kind != "floor":
            for (x, y), (px, py) in zip(at, points):
                out.append(f'<circle class="dot {kind}" cx="{number(x)}" cy="{number(y)}" r="4"><title>{escape(name)}, {panel["label"](px)}: '
                           f'{py:.4g} us</title></circle>')
        names.append((at[-1][1], at[-1][0], name, kind))
    for y, x, name, kind in spread(names) if named else []:
        out.append(f'<text class="name {kind}" x="{number(x + 10)}" y="{number(y)}" dy="4">{escape(name)}</text>')


def picture(panels):
    points = [point for panel in panels for _, _, series in panel["series"] for point in series]
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="Microseconds of attend per layer against '
           f'context and against batch">', f"<style>{STYLE}</style>", f'<rect class="page" width="{WIDTH}" height="{HEIGHT}"/>']
    if not points:
        out.append(f'<text x="{LEFT}" y="{TOP}">not measured yet</text>')
        return "\n".join(out) + "\n</svg>\n"
    low, high = min(y for _, y in points) / 1.2, max(y for _, y in points) * 1.2
    for i, panel in enumerate(panels):
        xs = [x for _, _, series in panel["series"] for x, _ in series]
        if xs:
            draw_panel(out, panel, Axes(LEFT + i * (PANEL + GAP), xs, low, high), i == len(panels) - 1)
    out.append(f'<text x="{LEFT}" y="{HEIGHT - 14}">microseconds per layer; one new token per sequence, 32 query and 8 KV heads of 128, fp16; both axes '
               "logarithmic</text>")
    return "\n".join(out) + "\n</svg>\n"
