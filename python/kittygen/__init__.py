"""Low-bit KV caches for Transformers: KittyCache over libkitty."""

from .cache import KittyCache
from .errors import KittyError
from .package import variants

__all__ = ["KittyCache", "KittyError", "variants"]
