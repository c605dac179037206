"""libkitty through ctypes: its structures and calls as runtime/kitty.h declares them.

Addresses are plain integers (`tensor.data_ptr()`), streams are CUstream handles as integers (0: the default stream, or the
CPU). A call that fails raises KittyError with libkitty's own message.
"""

import ctypes
import os
from ctypes import POINTER, Structure, byref, c_char, c_char_p, c_float, c_int, c_int64, c_size_t, c_uint, c_uint64, c_void_p
from functools import lru_cache
from pathlib import Path

from .errors import KittyError

DEVICE_CUDA, DEVICE_CPU = 1, 2
F16, BF16 = 0, 1
KEY, VALUE = 0, 1
APPEND_BEHIND_ATTEND = 1
UNSUPPORTED = "KT_UNSUPPORTED"

HERE = Path(__file__).resolve().parent


class Sized(Structure):
    """A structure that begins with its own size."""

    def __init__(self, **fields):
        super().__init__(**fields)
        self.size = ctypes.sizeof(self)


class OpenArgs(Sized):
    _fields_ = [("size", c_size_t), ("package", c_char_p), ("device", c_int), ("ordinal", c_int), ("cache_dir", c_char_p)]


class EngineInfo(Sized):
    _fields_ = [
        ("size", c_size_t), ("device", c_int), ("device_name", c_char * 128), ("reason", c_char * 256), ("spec", c_char * 128),
        ("head_dim", c_int), ("group_heads", c_int), ("page", c_int), ("sink", c_int), ("layers", c_int), ("kv_heads", c_int),
        ("dtype", c_int), ("block_bytes", c_uint64), ("slab_bytes", c_uint64), ("compiled", c_int), ("loaded", c_int),
    ]


class CacheArgs(Sized):
    _fields_ = [
        ("size", c_size_t), ("budget_bytes", c_uint64), ("layers", c_int), ("kv_heads", c_int), ("max_sequences", c_int),
        ("spare_slabs", c_int),
    ]


class CacheInfo(Sized):
    _fields_ = [
        ("size", c_size_t), ("bytes", c_uint64), ("pages", c_int64), ("free_pages", c_int64), ("slabs", c_int64),
        ("free_slabs", c_int64), ("sequences", c_int),
    ]


class BatchArgs(Sized):
    _fields_ = [("size", c_size_t), ("slots", c_int), ("max_tokens", c_int), ("max_rows", c_int)]


class AppendArgs(Sized):
    _fields_ = [
        ("size", c_size_t), ("layer", c_int), ("key", c_void_p), ("value", c_void_p), ("key_row", c_int64), ("key_head", c_int64),
        ("value_row", c_int64), ("value_head", c_int64), ("flags", c_uint),
    ]


class AttendArgs(Sized):
    _fields_ = [
        ("size", c_size_t), ("layer", c_int), ("query", c_void_p), ("out", c_void_p), ("lse", c_void_p), ("query_row", c_int64),
        ("query_head", c_int64), ("out_row", c_int64), ("out_head", c_int64), ("scale", c_float), ("window", c_int),
        ("softcap", c_float), ("flags", c_uint),
    ]


class PollInfo(Sized):
    _fields_ = [("size", c_size_t), ("overruns", c_int), ("nonfinite", c_uint64)]


SEQUENCE = c_uint64
HANDLE = c_void_p
CALLS = {
    "kt_open": [POINTER(OpenArgs), POINTER(HANDLE)],
    "kt_engine_query": [HANDLE, POINTER(EngineInfo)],
    "kt_cache_open": [HANDLE, POINTER(CacheArgs), POINTER(HANDLE)],
    "kt_cache_query": [HANDLE, POINTER(CacheInfo)],
    "kt_sequence_open": [HANDLE, POINTER(SEQUENCE)],
    "kt_sequence_close": [HANDLE, SEQUENCE],
    "kt_sequence_tokens": [HANDLE, SEQUENCE, POINTER(c_int)],
    "kt_sequence_reserve": [HANDLE, SEQUENCE, c_int],
    "kt_sequence_fork": [HANDLE, SEQUENCE, c_void_p, POINTER(SEQUENCE)],
    "kt_sequence_truncate": [HANDLE, SEQUENCE, c_int],
    "kt_sequence_undo": [HANDLE, SEQUENCE, POINTER(c_int)],
    "kt_batch_open": [HANDLE, POINTER(BatchArgs), POINTER(HANDLE)],
    "kt_batch_set": [HANDLE, c_int, SEQUENCE, c_int, c_int],
    "kt_batch_upload": [HANDLE, c_void_p],
    "kt_step_begin": [HANDLE, c_void_p],
    "kt_append": [HANDLE, POINTER(AppendArgs)],
    "kt_attend": [HANDLE, POINTER(AttendArgs)],
    "kt_step_commit": [HANDLE],
    "kt_step_abort": [HANDLE],
    "kt_step_replayed": [HANDLE, c_int],
    "kt_poll": [HANDLE, POINTER(PollInfo)],
    "kt_read": [HANDLE, SEQUENCE, c_int, c_int, c_int, c_int, c_int, c_void_p],
    "kt_read_block": [HANDLE, SEQUENCE, c_int, c_int, c_int, c_void_p],
}
VOID_CALLS = {"kt_close": [HANDLE], "kt_cache_close": [HANDLE], "kt_batch_close": [HANDLE]}


def find(name, variable):
    """A file that the wheel carries, or that a build of the source tree has made."""
    given = os.environ.get(variable)
    if given:
        if not Path(given).is_file():
            raise KittyError(f"{variable}={given}: no such file")
        return Path(given)
    build = os.environ.get("KT_BUILD") or "build"
    places = [HERE / "native" / name, HERE.parents[1] / build / name]
    for place in places:
        if place.is_file():
            return place
    raise KittyError(
        f"{name} is not at {' or '.join(map(str, places))}: install the wheel (pip install ./python), build the source tree "
        f"(./dev build), or name the file in {variable}"
    )


class Library:
    """The loaded library. `call("kt_append", ...)` raises what kt_message says unless the status is KT_OK."""

    def __init__(self):
        self.path = find("libkitty.so", "KT_LIBRARY")
        try:
            self._library = ctypes.CDLL(str(self.path))
        except OSError as error:
            raise KittyError(f"{self.path}: {error}") from None
        self._library.kt_message.restype = c_char_p
        self._library.kt_status_name.restype = c_char_p
        self._functions = {}
        for calls, result in ((CALLS, c_int), (VOID_CALLS, None)):
            for name, arguments in calls.items():
                function = getattr(self._library, name, None)
                if function is not None:
                    function.argtypes, function.restype = arguments, result
                    self._functions[name] = function

    def has(self, name):
        return name in self._functions

    def require(self, name):
        if name not in self._functions:
            raise KittyError(f"{self.path} has no {name}: it is older than this package; build it again (./dev build)", UNSUPPORTED)

    def call(self, name, *arguments):
        self.require(name)
        status = self._functions[name](*arguments)
        if status:
            message = self._library.kt_message().decode(errors="replace")
            raise KittyError(message, self._library.kt_status_name(status).decode())

    def close(self, name, handle):
        self._functions[name](handle)


@lru_cache(maxsize=None)
def library():
    return Library()


def open_handle(name, *arguments):
    """A call whose last argument receives a handle; returns it as an integer."""
    handle = HANDLE()
    library().call(name, *arguments, byref(handle))
    return handle.value


def query(name, handle, info):
    library().call(name, handle, byref(info))
    return info
