"""The rows of results.json: read, told apart, merged and written. Plain Python, no packages."""
import json
import os

HERE = os.path.dirname(os.path.abspath(__file__))
RESULTS = os.path.join(HERE, "results.json")
FIELDS = ("op", "model", "variant", "sequences", "context", "q_heads", "kv_heads", "head_dim", "dtype", "us", "bytes", "bandwidth_share",
          "ratio_fp16", "ratio_cudnn")
KEPT = ("us_p10", "us_p90", "step_us", "step_begin_us", "ratio_equal", "error", "layers", "read", "copy", "card", "date", "command")


# Of the rows that the plug-in writes for whole models: what else tells them apart.
MODEL_OPS = ("generate", "evaluate", "evaluate_needle")
MODEL_FIELDS = ("model", "mode", "inductor", "text", "window", "prompt", "depth")


def by_peers(row):
    """Measured beside PyTorch, by peers.py, and not by kittygen bench: other rows, even where the shape is the same."""
    return "peers.py" in row["command"]


def key(row):
    """What a row is of. A row that is measured again takes the place of the old one."""
    number = [row.get(name) or 0 for name in ("head_dim", "q_heads", "kv_heads", "sequences", "context")]
    of_model = tuple(str(row.get(name, "")) for name in MODEL_FIELDS if row["op"] in MODEL_OPS)
    return (not by_peers(row), row["op"], row.get("dtype") or "", *number, row.get("variant") or "", row["card"], of_model)


def clean(row, command, card, date):
    """A row as kittygen bench or peers.py prints it, with where it is from, in the order and precision of the file."""
    row = dict(row, card=row.get("device", card), date=date, command=command)
    if "variant" in row:
        row["variant"] = row["variant"].replace("_", "-")
    names = [name for name in FIELDS if name in row or row["op"] != "bandwidth" and name != "model"]
    names += [name for name in KEPT if row.get(name) is not None]
    return {name: float(f"{row[name]:.5g}") if isinstance(row.get(name), float) else row.get(name) for name in names}


def read(path=RESULTS):
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def merge(old, new):
    together = {key(row): row for row in old}
    together.update((key(row), row) for row in new)
    return [together[k] for k in sorted(together)]


def write(rows, path=RESULTS):
    text = "[\n " + ",\n ".join(json.dumps(row) for row in rows) + "\n]\n"
    with open(path + ".tmp", "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(path + ".tmp", path)
