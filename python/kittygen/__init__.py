"""Low-bit KV caches for Transformers: KittyCache over libkitty."""

import transformers

if tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 16):
    raise ImportError(f"kittygen needs Transformers 5.16 to 5.24; this is {transformers.__version__}: pip install 'transformers>=5.16'")

from .cache import KittyCache
from .errors import KittyError
from .package import variants

__all__ = ["KittyCache", "KittyError", "variants"]
