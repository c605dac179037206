"""What the package's commands share: errors, progress, tables, and the rows of tests/bench/results.json."""

import contextlib
import datetime
import io
import json
import math
import os
import sys
from pathlib import Path

import torch
from tqdm import tqdm
from transformers.utils import logging

from .errors import KittyError

USER, MACHINE = 2, 3  # exit codes; 0 is done, 1 is a check that failed
MACHINE_STATUS = ("KT_DEVICE", "KT_COMPILE", "KT_MEMORY", "KT_IO", "KT_UNSUPPORTED")


class CommandError(Exception):
    """A failure that ends a command as one line, without a traceback."""

    def __init__(self, message, code=USER):
        super().__init__(message)
        self.code = code


def run_command(program, main):
    """main() as a process: its exit code, with errors on standard error."""
    try:
        sys.exit(main())
    except CommandError as error:
        stop(program, error, error.code)
    except KittyError as error:
        stop(program, error, MACHINE if error.status in MACHINE_STATUS else USER)
    except KeyboardInterrupt:
        sys.exit(130)


def stop(program, error, code):
    print(f"{program}: error: {error}", file=sys.stderr)
    sys.exit(code)


def quiet_transformers():
    """Its own bars and advice are for terminals only."""
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
        logging.set_verbosity_error()


def bars_for_terminals():
    """Around calls that draw bars of their own on standard error: what they draw is lost unless that is a terminal."""
    return contextlib.nullcontext() if sys.stderr.isatty() else contextlib.redirect_stderr(io.StringIO())


def progress(iterable=None, **options):
    """A tqdm bar on standard error, shown only if that is a terminal."""
    plain = bool(os.environ.get("NO_COLOR"))
    return tqdm(iterable, disable=not sys.stderr.isatty(), leave=False, ascii=plain or None, **options)


def say(text):
    """A line on standard error: what is going on, beside the result."""
    print(text, file=sys.stderr, flush=True)


# ---- numbers and tables ----------------------------------------------------------------------------------------------

def bold(text):
    return f"\x1b[1m{text}\x1b[0m" if sys.stdout.isatty() and not os.environ.get("NO_COLOR") else text


def number(value, digits=4):
    """For people: `digits` significant figures, no exponent between 1e-4 and a million, '-' for none."""
    if value is None:
        return "-"
    if isinstance(value, (int, str)):
        return str(value)
    if value == 0:
        return "0"
    if not 1e-4 <= abs(value) < 1e6:
        return f"{value:.{digits - 1}e}"
    return f"{value:.{max(digits - 1 - math.floor(math.log10(abs(value))), 0)}f}"


def print_table(header, rows):
    """Columns aligned to the right, the first to the left."""
    lines = [header] + [[number(cell) for cell in row] for row in rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    for index, line in enumerate(lines):
        cells = [cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(zip(line, widths))]
        text = "  ".join(cells).rstrip()
        print(bold(text) if index == 0 else text)


def number_list(option, text, least=1):
    """The numbers of '1,8,32', each at least `least`."""
    try:
        values = [int(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or min(values) < least:
        raise CommandError(f"{option}: '{text}' is not allowed; allowed: numbers of {least} or more, with commas between")
    return values


# ---- rows of results -------------------------------------------------------------------------------------------------

def choose_device(text):
    try:
        device = torch.device(text or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        raise CommandError(f"--device: '{text}' is not allowed; allowed: cpu, cuda, cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise CommandError(f"--device {text}: PyTorch finds no CUDA device", MACHINE)
    return device


def device_name(device):
    """What results.json calls the card; the processor where there is none."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return "CPU"


def stamp(rows, device, command):
    """The rows with card, date and command, as every row of results.json has them."""
    tail = {"card": device_name(device), "date": datetime.date.today().isoformat(), "command": command}
    return [{**{name: shorter(value) for name, value in row.items()}, **tail} for row in rows]


def shorter(value):
    """Six significant figures are more than any measurement here has."""
    if isinstance(value, list):
        return [shorter(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def merge_rows(path, rows, key):
    """Puts rows into a file of results: those that agree with a new one in all fields of `key` are replaced."""
    path = Path(path)
    try:
        old = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    except (OSError, ValueError) as error:
        raise CommandError(f"--results {path}: not a file of rows: {error}") from None
    if not isinstance(old, list) or not all(isinstance(row, dict) for row in old):
        raise CommandError(f"--results {path}: expected a list of rows")

    def identity(row):
        return tuple(row.get(name) for name in key)

    new = {identity(row) for row in rows}
    merged = [row for row in old if identity(row) not in new] + rows
    try:
        written = path.with_name(path.name + ".new")
        written.write_text(dump_rows(merged), encoding="utf-8")
        os.replace(written, path)
    except OSError as error:
        raise CommandError(f"--results {path}: {error.strerror}", MACHINE) from None


def dump_rows(rows):
    """One row a line. NaN and infinity are refused: JSON has none."""
    return "[\n" + ",\n".join(" " + json.dumps(row, allow_nan=False) for row in rows) + "\n]\n"
