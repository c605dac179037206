"""The sequences of one cache: a pool of pages with a byte budget, a batch of slots, steps over all layers.

Row b of a model's batch is sequence b here and slot b of the kt_batch. Everything is checked before it changes; a step that
fails is aborted and leaves the sequences as they were.
"""

import os
import weakref
from ctypes import c_int, c_uint64
from dataclasses import dataclass

import torch

from . import library as kt
from .errors import KittyError

TORCH_DTYPES = {kt.F16: torch.float16, kt.BF16: torch.bfloat16}


@dataclass
class Limits:
    """What the caller fixed; None: found out at the first prompt."""

    max_tokens: int | None
    max_batch: int | None
    budget: int | None
    spare: int | None
    positions: int  # the model's own longest context: what is provided for where max_tokens is None


def free_memory(device):
    """Bytes that a new pool could take."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def close_handles(handles):
    for name in ("batch", "cache"):
        handle = handles.pop(name, None)
        if handle:
            kt.library().close(f"kt_{name}_close", handle)


def operand(tensor):
    """[batch, heads, tokens, head_dim] as rows b * tokens + t: the tensor and its strides (row, head).

    A view where the strides allow it; else a copy.
    """
    batch, heads, tokens, dim = tensor.shape
    by_batch, head, row, last = tensor.stride()
    if tokens == 1:
        row = by_batch
    elif batch > 1 and by_batch != tokens * row:
        row = 0
    if batch * tokens == 1:
        row = heads * dim
    if heads == 1:
        head = dim
    if last != 1 or row < dim or head < dim or row % 8 or head % 8 or tensor.data_ptr() % 16:
        tensor = tensor.transpose(1, 2).contiguous().transpose(1, 2)
        row, head = heads * dim, dim
    return tensor, row, head


class Store:
    def __init__(self, engine, device, layers, kv_heads, limits):
        self.engine, self.device, self.layers, self.kv_heads, self.limits = engine, device, layers, kv_heads, limits
        self.library = kt.library()
        self.dtype = TORCH_DTYPES[engine.info.dtype]
        self.handles = {}
        self.most = {"slots": 0, "tokens": 0, "rows": 0}  # what the batch was opened for
        self.sequences, self.stored = [], []              # handle and committed tokens of each row
        self.entries = []                                 # what each slot was set to last
        self.open = False                                 # a step
        self.batch_count = 0                              # batches opened: graphs belong to one
        self._append, self._attend = kt.AppendArgs(), kt.AttendArgs()
        finalizer = weakref.finalize(self, close_handles, self.handles)
        finalizer.atexit = False  # the process takes its memory along

    # ---- pool -------------------------------------------------------------------------------------------------------

    def sizes(self):
        """Bytes of a page and of a slab over all layers and heads."""
        forms = [self.engine.layer_format(layer) for layer in range(self.layers)]
        return tuple(self.kv_heads * sum(form[name] for form in forms) for name in ("block_bytes", "slab_bytes"))

    def sealed(self, tokens, layer=0):
        """Sealed pages of a sequence of so many tokens in a layer: (of keys, of values)."""
        return self.sealed_in(self.engine.layer_format(layer), tokens)

    @staticmethod
    def sealed_in(form, tokens):
        return tuple(max(0, tokens - form["sink"] - form[window]) // form["page"] for window in ("key_window", "value_window"))

    def budget_for(self, batch, spare, tokens):
        page, slab = self.sizes()
        return (batch + spare) * slab + max(batch * max(map(max, self.seals(tokens))), 1) * page

    def open_pool(self, batch):
        """Opens the pool for `batch` sequences at a time, or keeps the one there is if it suffices."""
        limits = self.limits
        most = max(batch, limits.max_batch or 0)
        if self.handles.get("cache"):
            if most <= self.max_sequences:
                return
            if limits.max_batch:
                raise KittyError(f"the batch has {batch} sequences; the cache was made for max_batch={limits.max_batch}")
            self.close()
        spare = most if limits.spare is None else limits.spare
        budget = limits.budget
        if budget is None:
            budget = self.budget_for(most, spare, limits.max_tokens or limits.positions)
            if limits.max_tokens is None:
                # Nobody said how long: half of what is free is left to the model's activations.
                least = self.budget_for(most, spare, 0)
                budget = max(least, min(budget, free_memory(self.device) // 2))
        elif self.device.type == "cuda":
            torch.cuda.empty_cache()
        arguments = kt.CacheArgs(
            budget_bytes=budget, layers=self.layers, kv_heads=self.kv_heads, max_sequences=most, spare_slabs=spare
        )
        try:
            self.handles["cache"] = kt.open_handle("kt_cache_open", self.engine.handle, arguments)
        except KittyError as error:
            raise KittyError(
                f"{error}. Give KittyCache.for_model a max_tokens=, max_batch= or budget= that fits", error.status
            ) from None
        self.max_sequences = most

    def info(self):
        if not self.handles.get("cache"):
            return None
        return kt.query("kt_cache_query", self.handles["cache"], kt.CacheInfo())

    def close(self):
        close_handles(self.handles)
        self.most = {"slots": 0, "tokens": 0, "rows": 0}
        self.sequences, self.stored, self.entries, self.open = [], [], [], False

    # ---- rows -------------------------------------------------------------------------------------------------------

    def open_rows(self, batch):
        self.open_pool(batch)
        try:
            while len(self.sequences) < batch:
                sequence = c_uint64()
                self.library.call("kt_sequence_open", self.handles["cache"], sequence)
                self.sequences.append(sequence.value)
                self.stored.append(0)
        except KittyError:
            self.drop_rows()
            raise

    def close_row(self, sequence):
        self.library.call("kt_sequence_close", self.handles["cache"], sequence)

    def drop_rows(self):
        """Ends all sequences; the pool stays."""
        self.abort()
        for sequence in self.sequences:
            self.close_row(sequence)
        self.sequences, self.stored = [], []
        self.entries = [None] * len(self.entries)

    def arrange(self, indices):
        """Row r becomes what row indices[r] is: sequences are moved, and forked where one is wanted several times."""
        self.abort()
        for index in indices:
            if not 0 <= index < len(self.sequences):
                raise KittyError(f"row {index} is asked for; the cache has rows 0 to {len(self.sequences) - 1}")
        if len(indices) > self.max_sequences:
            raise KittyError(
                f"{len(indices)} sequences are asked for; the cache was opened for {self.max_sequences}. Give "
                f"KittyCache.for_model max_batch={len(indices)}"
            )
        wanted = set(indices)
        if len(wanted) < len(indices):
            self.library.require("kt_sequence_fork")
        for row, sequence in enumerate(self.sequences):
            if row not in wanted:
                self.close_row(sequence)
        self.entries = [None] * len(self.entries)
        taken, sequences = set(), []
        for index in indices:
            sequences.append(self.fork(self.sequences[index]) if index in taken else self.sequences[index])
            taken.add(index)
        self.sequences, self.stored = sequences, [self.stored[index] for index in indices]

    def fork(self, sequence):
        fork = c_uint64()
        self.library.call("kt_sequence_fork", self.handles["cache"], sequence, self.stream(), fork)
        return fork.value

    def seals(self, tokens):
        """How many pages of keys and of values are sealed in a row of so many tokens, for each way in which layers are kept."""
        return [self.sealed_in(form, tokens) for form in self.engine.formats]

    def reaches(self, row, tokens):
        """Whether a row can be truncated to its first `tokens` tokens: from its length, or from that before its last step."""
        undo = c_int()
        self.library.call("kt_sequence_undo", self.handles["cache"], self.sequences[row], undo)
        return tokens == 0 or any(
            tokens <= base and self.seals(tokens) == self.seals(base) for base in (self.stored[row], undo.value)
        )

    def truncate(self, row, tokens):
        """Takes a row back to its first `tokens` tokens."""
        if tokens == 0:
            self.close_row(self.sequences[row])
            self.entries = [None] * len(self.entries)
            sequence = c_uint64()
            self.library.call("kt_sequence_open", self.handles["cache"], sequence)
            self.sequences[row] = sequence.value
        else:
            self.library.call("kt_sequence_truncate", self.handles["cache"], self.sequences[row], tokens)
        self.stored[row] = tokens

    def reserve(self, tokens):
        """Provides for `tokens` tokens in every row (one number, or one per row), so that steps can be captured."""
        for row, sequence in enumerate(self.sequences):
            count = tokens if isinstance(tokens, int) else tokens[row]
            self.call_full("kt_sequence_reserve", self.handles["cache"], sequence, count)

    def call_full(self, name, *arguments):
        """A call that the pool may be too small for; then says which argument makes it larger."""
        try:
            self.library.call(name, *arguments)
        except KittyError as error:
            if error.status != "KT_FULL":
                raise
            raise KittyError(f"{error}. KittyCache.for_model takes max_tokens=, max_batch=, budget= and spare=", error.status) from None

    # ---- batch and steps --------------------------------------------------------------------------------------------

    def stream(self):
        return torch.cuda.current_stream(self.device).cuda_stream if self.device.type == "cuda" else 0

    def open_batch(self, tokens, rows):
        """A batch for every row, `tokens` tokens in the longest and `rows` rows of q, k, v; the old one where it suffices."""
        need = {"slots": max(len(self.sequences), self.max_sequences), "tokens": tokens, "rows": rows}
        if self.handles.get("batch") and all(need[name] <= self.most[name] for name in need):
            return
        if self.limits.max_tokens and tokens > self.limits.max_tokens:
            raise KittyError(f"a sequence would have {tokens} tokens; the cache was made for max_tokens={self.limits.max_tokens}")
        provided = self.limits.max_tokens or self.limits.positions
        most = {
            "slots": need["slots"],
            "tokens": max(self.most["tokens"], provided if tokens <= provided else 2 * tokens),
            "rows": max(self.most["rows"], rows),
        }
        arguments = kt.BatchArgs(slots=most["slots"], max_tokens=most["tokens"], max_rows=most["rows"])
        batch = kt.open_handle("kt_batch_open", self.handles["cache"], arguments)
        if self.handles.get("batch"):
            self.library.close("kt_batch_close", self.handles["batch"])
        self.handles["batch"], self.most, self.entries = batch, most, [None] * most["slots"]
        self.batch_count += 1

    def set_slots(self, fresh, rows):
        """Puts every sequence into its slot with its new tokens and its first row; tells the library only what changed."""
        if len(self.sequences) < len(self.entries) and any(self.entries[len(self.sequences):]):
            self.entries = [None] * len(self.entries)
        wanted = list(zip(self.sequences, fresh, rows))
        if self.entries[: len(wanted)] == wanted:
            return
        if any(entry is None or entry[0] != want[0] for entry, want in zip(self.entries, wanted)):
            for slot in range(len(self.entries)):  # sequences have moved: none may be in two slots on the way
                self.library.call("kt_batch_set", self.handles["batch"], slot, 0, 0, -1)
            self.entries = [None] * len(self.entries)
        for slot, want in enumerate(wanted):
            if self.entries[slot] != want:
                self.library.call("kt_batch_set", self.handles["batch"], slot, *want)
                self.entries[slot] = want

    def begin(self, fresh, rows, width):
        """Opens a step: fresh[b] tokens for row b, in rows rows[b] and on of operands of [batch, heads, width, head_dim]."""
        self.abort()
        longest = max(count + more for count, more in zip(self.stored, fresh))
        self.open_batch(longest, len(fresh) * width)
        self.set_slots(fresh, rows)
        self.call_full("kt_step_begin", self.handles["batch"], self.stream())
        self.open, self.fresh = True, list(fresh)

    def append(self, layer, key, value, attended=False):
        """attended: the layer's attend follows at once, and the two may overlap."""
        arguments = self._append
        arguments.flags = kt.APPEND_BEHIND_ATTEND if attended else 0
        key, arguments.key_row, arguments.key_head = operand(key)
        value, arguments.value_row, arguments.value_head = operand(value)
        arguments.layer, arguments.key, arguments.value = layer, key.data_ptr(), value.data_ptr()
        self.library.call("kt_append", self.handles["batch"], arguments)
        return key, value  # the layer's attend reads them

    def attend(self, layer, query, out, scale):
        """out: [batch, tokens, heads, head_dim], contiguous."""
        arguments = self._attend
        query, arguments.query_row, arguments.query_head = operand(query)
        arguments.layer, arguments.query, arguments.out, arguments.scale = layer, query.data_ptr(), out.data_ptr(), scale
        self.library.call("kt_attend", self.handles["batch"], arguments)

    def commit(self, captured=False):
        self.library.call("kt_step_commit", self.handles["batch"])
        self.open = False
        if not captured:
            self.stored = [count + more for count, more in zip(self.stored, self.fresh)]

    def abort(self):
        if self.open:
            self.open = False
            self.library.call("kt_step_abort", self.handles["batch"])

    def upload(self):
        self.library.call("kt_batch_upload", self.handles["batch"], self.stream())

    def replayed(self, count):
        self.library.call("kt_step_replayed", self.handles["batch"], count)
        self.stored = [tokens + count for tokens in self.stored]

    def poll(self):
        if not self.handles.get("batch"):
            return None
        return kt.query("kt_poll", self.handles["batch"], kt.PollInfo())
