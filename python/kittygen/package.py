"""From a model's shape and a variant to an open engine: the spec, the emitted kernel package, the compiled kernels.

Packages are kept by the digest of their content under the user's cache folder (KT_CACHE_DIR, $XDG_CACHE_HOME/kittygen or
~/.cache/kittygen), beside libkitty's compiled kernels. Engines are shared within the process, one per package and device.
"""

import difflib
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from . import library as kt
from .errors import KittyError

HEAD_DIMS = (64, 96, 128, 192, 256)


@dataclass(frozen=True)
class Shape:
    """What of a model a kernel package depends on, and what its cache has at run time (layers, heads)."""

    model: str
    layers: int
    q_heads: int
    kv_heads: int
    head_dim: int
    dtype: str  # "fp16" or "bf16"

    def check(self):
        if self.head_dim not in HEAD_DIMS:
            raise KittyError(
                f"{self.model} has head_dim {self.head_dim}; kittygen's kernels are for {', '.join(map(str, HEAD_DIMS))}. "
                "Use Transformers' own DynamicCache for this model"
            )
        group, rest = divmod(self.q_heads, self.kv_heads)
        if rest or not 1 <= group <= 16:
            raise KittyError(
                f"{self.model} has {self.q_heads} query heads and {self.kv_heads} KV heads; kittygen takes 1 to 16 query heads "
                "per KV head. Use Transformers' own DynamicCache for this model"
            )


@dataclass(frozen=True)
class Engine:
    handle: int
    info: kt.EngineInfo
    manifest: dict

    @property
    def name(self):
        return self.manifest["spec"]

    @property
    def formats(self):
        """The numbers of each way in which layers are kept: page, sink, key_window, block_bytes, slab_bytes, ..."""
        return formats_of(self.manifest)

    @property
    def format(self):
        """The first: dtype, head_dim, group_heads, page and sink are those of all layers."""
        return self.formats[0]

    def layer_format(self, layer):
        return self.formats[self.manifest["layer_formats"][layer]] if len(self.formats) > 1 else self.format


def specs_folder():
    given = os.environ.get("KT_SPECS")
    return Path(given) if given else next(
        (place for place in (kt.HERE / "native" / "specs", kt.HERE.parents[1] / "specs") if place.is_dir()), Path("specs")
    )


def variants():
    """Names of the shipped variants."""
    return sorted(path.stem.replace("_", "-") for path in (specs_folder() / "variants").glob("*.lua"))


def published():
    """Names of what others have published, in the shipped specs as well; those with a calibration go into spec=."""
    return sorted(path.stem.replace("_", "-") for path in (specs_folder() / "variants" / "published").glob("*.lua"))


def cache_folder():
    """Where packages are kept; the choice is libkitty's (runtime/environment.c)."""
    given, xdg = os.environ.get("KT_CACHE_DIR"), os.environ.get("XDG_CACHE_HOME", "")
    return Path(given) if given else Path(xdg) / "kittygen" if xdg.startswith("/") else Path.home() / ".cache" / "kittygen"


def spec_text(shape, variant):
    known = variants() + published()
    name = variant.replace("_", "-")
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise KittyError(f"variant {variant!r} is not shipped; there are {', '.join(known)}{hint}. A spec of your own goes into spec=")
    model = re.sub(r"[^a-z0-9.]+", "-", shape.model.lower())[:40].strip("-.") or "model"
    folder = "variants.published" if name in published() else "variants"
    return (
        f'return require "{folder}.{name.replace("-", "_")}" {{ model = {{\n'
        f'    name = "{model}", layers = {shape.layers}, q_heads = {shape.q_heads}, kv_heads = {shape.kv_heads},\n'
        f'    head_dim = {shape.head_dim}, dtype = "{shape.dtype}",\n}} }}\n'
    )


def emit(shape, variant=None, spec=None):
    """Writes the package of a shipped variant, or of a spec file or shipped name; returns its folder in the cache."""
    packages = cache_folder() / "packages"
    try:
        packages.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=".emit-", dir=packages))
    except OSError as error:
        raise KittyError(f"{packages}: {error.strerror}; name a folder that can be written in KT_CACHE_DIR") from None
    try:
        if spec is None:
            source = work / "spec.lua"
            source.write_text(spec_text(shape, variant))
        else:
            source = os.fspath(spec)
        command = [str(kt.find("kittygen", "KT_KITTYGEN")), "emit", str(source), "--dtype", shape.dtype, "-o", str(work / "package")]
        run = subprocess.run(command, capture_output=True, text=True)
        if run.returncode:
            raise KittyError(f"kittygen emit {source}: {run.stderr.strip() or run.stdout.strip()}")
        return keep(work / "package", packages, source)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def keep(package, packages, source):
    """Moves a package to where its digest puts it, unless the same one is there."""
    if not (package / "manifest.json").is_file():
        raise KittyError(f"{source} returns several specs; a cache takes one. Name a spec file that returns one of them")
    digest = hashlib.sha256()
    for path in sorted(package.iterdir()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    folder = packages / digest.hexdigest()[:32]
    try:
        package.rename(folder)
    except OSError:  # another process, or an earlier run, has put it there
        if not (folder / "manifest.json").is_file():
            raise
    return folder


def formats_of(manifest):
    return manifest.get("formats") or [manifest["format"]]


def check_manifest(manifest, shape, spec):
    """A spec file says for which heads its kernels are; layers and the number of KV heads are the cache's, unless layers differ."""
    its = formats_of(manifest)[0]
    found = {"head_dim": its["head_dim"], "query heads per KV head": its["group_heads"]}
    wanted = {"head_dim": shape.head_dim, "query heads per KV head": shape.q_heads // shape.kv_heads}
    if "formats" in manifest:  # each layer has its own place in it
        found["layers"], wanted["layers"] = manifest["model"]["layers"], shape.layers
    wrong = [f"{name} {found[name]}, the model {wanted[name]}" for name in found if found[name] != wanted[name]]
    if wrong:
        raise KittyError(
            f"{spec} is for another shape: it has {'; '.join(wrong)}. Give the spec model = {{ name = ..., layers = {shape.layers}, "
            f"q_heads = {shape.q_heads}, kv_heads = {shape.kv_heads}, head_dim = {shape.head_dim}, dtype = \"{shape.dtype}\" }}"
        )


_engines = {}


def open_engine(shape, device, variant=None, spec=None):
    """The engine of a package on a torch device ("cuda:1", "cpu"); kernels are compiled at the first opening."""
    shape.check()
    if device.type not in ("cuda", "cpu"):
        raise KittyError(f"the model is on {device}; libkitty works on CUDA and on the CPU: model.to('cuda') or model.to('cpu')")
    folder = emit(shape, variant, spec)
    manifest = json.loads((folder / "manifest.json").read_text())
    if spec is not None:
        check_manifest(manifest, shape, spec)
    key = (folder, device.type, device.index or 0)
    if key not in _engines:
        cuda = device.type == "cuda"
        arguments = kt.OpenArgs(package=os.fsencode(folder), device=kt.DEVICE_CUDA if cuda else kt.DEVICE_CPU, ordinal=device.index or 0)
        handle = kt.open_handle("kt_open", arguments)
        _engines[key] = Engine(handle, kt.query("kt_engine_query", handle, kt.EngineInfo()), manifest)
    return _engines[key]
