"""A model's forward pass as a step of the cache: what is new in every row, how it attends, what can be taken back.

The padding mask says how many tokens a row has. Pads are never stored: row b of operands [batch, heads, width, head_dim]
brings its last fresh[b] tokens, and the padded length that the model counts in (`seen`) is kept apart from the stored ones.

A prompt attends over its own keys and values, exactly; then it is sealed. Any step over a filled cache attends the cache.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from .errors import KittyError

TAIL = 64  # tokens of a step whose keys and values are kept, so that some of them can be taken back


@dataclass
class Kept:
    """Keys and values of the last step, [batch, heads, width, head_dim] per layer, for taking a part of it back."""

    width: int
    before: list            # per row: tokens stored before the step
    fresh: list             # per row: tokens it brought
    rows: list              # per row: where they begin
    operands: list = field(default_factory=list)


def count_real(mask, stored, seen, width):
    """How many tokens of each row are real. The mask [batch, seen + width] must be zeros, then ones, in every row."""
    batch, length = mask.shape
    if (batch, length) != (len(stored), seen + width):
        raise KittyError(
            f"attention_mask is {batch} x {length}; the cache has {len(stored)} rows, {seen} tokens seen and {width} new ones: pass "
            f"the mask of all {seen + width} tokens, or call cache.reset() before other prompts"
        )
    count = mask.sum(-1)
    place = torch.arange(length, device=mask.device)
    left = (mask == (place >= length - count[:, None])).all(-1)
    numbers = torch.stack([count, left.long()]).tolist()  # the one wait for the device in a step
    for row, fine in enumerate(numbers[1]):
        if not fine:
            raise KittyError(
                f"attention_mask of row {row} has a 0 after a 1; KittyCache takes left padding only: zeros, then ones. Tokenize with "
                "padding_side='left', and leave no gaps between turns"
            )
    return numbers[0]


def count_fresh(mask, stored, seen, width):
    """How many new tokens each row stores."""
    if mask is None:
        padded = [row for row, count in enumerate(stored) if count != seen]
        if padded:
            raise KittyError(
                f"row {padded[0]} has {stored[padded[0]]} tokens of {seen} seen: its prompt was padded, so every later step needs "
                "attention_mask too"
            )
        return [width] * len(stored)
    fresh = []
    for row, (real, count) in enumerate(zip(count_real(mask, stored, seen, width), stored)):
        new = real - count
        if not 0 <= new <= width or (count and new != width):
            raise KittyError(
                f"attention_mask of row {row} has {real} ones; the cache holds {count} tokens of that row and {width} are new: earlier "
                "columns of the mask must stay as they were, and new tokens must be real ones"
            )
        fresh.append(new)
    return fresh


def attend_prompt(query, key, value, fresh, scale, out):
    """Causal attention of each row's last fresh[b] tokens over themselves; out: [batch, width, heads, head_dim]."""
    width = query.shape[2]
    same = len(set(fresh)) == 1
    for rows in [slice(None)] if same else [slice(row, row + 1) for row in range(len(fresh))]:
        count = fresh[rows][0]
        if count:
            q, k, v = (tensor[rows, :, width - count :] for tensor in (query, key, value))
            grouped = {"enable_gqa": True} if q.shape[1] != k.shape[1] else {}
            result = F.scaled_dot_product_attention(q, k, v, is_causal=count > 1, scale=scale, **grouped)
            out[rows, width - count :] = result.transpose(1, 2)


class Steps:
    def __init__(self, store, shape):
        self.store, self.shape = store, shape
        self.seen = 0           # tokens that the model has seen, pads included
        self.recording = False  # a part of every step may be taken back (assisted decoding)
        self.trusted = False    # the caller vouches that every row brings its tokens and none is padded (decode.py)
        self.kept = None

    def check(self, query, key, value):
        """Refuses operands of another model's shape or device."""
        shape = self.shape
        batch, heads, tokens, dim = query.shape
        wanted = (batch, shape.kv_heads, tokens, shape.head_dim)
        if (heads, dim) != (shape.q_heads, shape.head_dim) or key.shape != wanted or value.shape != wanted:
            raise KittyError(
                f"queries are {tuple(query.shape)}, keys {tuple(key.shape)}, values {tuple(value.shape)}; the cache was made for "
                f"{shape.q_heads} query heads, {shape.kv_heads} KV heads and head_dim {shape.head_dim}: make one for this model"
            )
        if query.device != self.store.device:
            raise KittyError(f"tensors are on {query.device}, the cache on {self.store.device}: make it after moving the model")

    # ---- a layer of a step ------------------------------------------------------------------------------------------

    def layer(self, layer, query, key, value, mask, scale):
        """Takes in a layer's keys and values and returns its attention, [batch, tokens, query heads, head_dim]."""
        try:
            if layer == 0:
                self.begin(query, key, value, mask)
            elif not self.store.open:
                raise KittyError(f"layer {layer} of the cache was called, but no step is open: layers come in order, from the first")
            else:
                self.check(query, key, value)
            return self.take(layer, query, key, value, scale)
        except BaseException:
            self.abort()
            raise

    def begin(self, query, key, value, mask):
        store = self.store
        batch, _, width, _ = query.shape
        self.abort()  # a forward pass that failed half way
        if self.seen and batch != len(store.sequences):
            raise KittyError(
                f"the batch has {batch} rows; the cache holds {len(store.sequences)}. Call cache.reset() before other prompts, or "
                "make a cache for them"
            )
        self.check(query, key, value)
        self.captured = query.is_cuda and torch.cuda.is_current_stream_capturing()
        if self.captured and not self.trusted:
            raise KittyError("a step of KittyCache is being captured into a CUDA graph; kittygen.decode does that in the right order")
        if not self.seen:
            store.drop_rows()
            store.open_rows(batch)
        self.fresh = [width] * batch if self.trusted else count_fresh(mask, store.stored, self.seen, width)
        self.width, self.prompt = width, not any(store.stored)
        self.whole = all(count == width for count in self.fresh)
        first = [row * width + width - count for row, count in enumerate(self.fresh)]
        # Of a long prompt all but the tail is one step and the tail another: the bytes are the same, and less has to be kept.
        self.tail = TAIL if self.recording and self.prompt and min(self.fresh) > 2 * TAIL else 0
        keep = not self.captured and width > 1 and (self.recording or batch * width <= TAIL)
        self.keeping = None
        if self.tail:
            rows = [row * TAIL for row in range(batch)]
            self.keeping = Kept(TAIL, [count - TAIL for count in self.fresh], [TAIL] * batch, rows)
        elif keep:
            self.keeping = Kept(width, list(store.stored), self.fresh, first)
        store.begin([count - self.tail for count in self.fresh], first, width)

    def take(self, layer, query, key, value, scale):
        store = self.store
        batch, heads, width, dim = query.shape
        k, v = key.to(store.dtype), value.to(store.dtype)
        if self.keeping:
            part = slice(width - self.tail if self.tail else 0, width)
            self.keeping.operands.append((k[:, :, part].clone(), v[:, :, part].clone()))
        make = torch.empty if self.whole else torch.zeros
        k, v = store.append(layer, k, v, attended=not self.prompt)
        if self.prompt:
            out = make((batch, width, heads, dim), dtype=query.dtype, device=query.device)
            attend_prompt(query, key, value, self.fresh, scale, out)
        else:
            out = make((batch, width, heads, dim), dtype=store.dtype, device=query.device)
            store.attend(layer, query.to(store.dtype), out, scale)
            out = out.to(query.dtype)
        if layer == store.layers - 1:
            self.finish()
        return out

    def finish(self):
        store = self.store
        store.commit(self.captured)
        self.kept, self.keeping = self.keeping, None
        if self.captured:
            return
        if self.tail:
            try:
                self.repeat(self.kept, self.kept.fresh)
            except BaseException:
                store.abort()
                for row in range(len(store.stored)):
                    store.truncate(row, 0)
                raise
        self.seen += self.width

    def repeat(self, kept, fresh):
        """A step that takes in the first fresh[b] tokens of what was kept, attending nothing."""
        store = self.store
        store.begin(fresh, kept.rows, kept.width)
        for layer, (key, value) in enumerate(kept.operands):
            store.append(layer, key, value)
        store.commit()

    def abort(self):
        self.store.abort()
        self.keeping = None

    # ---- between steps ----------------------------------------------------------------------------------------------

    def reset(self):
        self.abort()
        self.store.drop_rows()
        self.seen, self.kept = 0, None

    def advance(self, count):
        """After `count` replays of a captured step."""
        self.store.replayed(count)
        self.seen += count
        self.kept = None

    def arrange(self, indices):
        self.store.arrange(indices)
        if self.kept:
            kept = self.kept
            kept.before, kept.fresh, kept.rows = ([values[i] for i in indices] for values in (kept.before, kept.fresh, kept.rows))

    def crop(self, count):
        """Forgets the last `count` tokens of every row, exactly; refused, with the reason, where that cannot be."""
        self.abort()
        store = self.store
        targets = [max(tokens - count, 0) for tokens in store.stored]
        if not any(targets):
            return self.reset() if count >= self.seen else self.forget(count, targets, targets)
        starts = [self.start(row, target) for row, target in enumerate(targets)]
        self.forget(count, starts, targets)

    def start(self, row, target):
        """The length that a row is truncated to, from where what was kept leads to `target`."""
        store, kept = self.store, self.kept
        if target == store.stored[row] or store.reaches(row, target):
            return target
        if kept and kept.before[row] <= target and store.reaches(row, kept.before[row]):
            return kept.before[row]
        raise KittyError(
            f"row {row} has {store.stored[row]} tokens; {target} are to be left, but later ones are sealed already. The last step can be "
            "taken back in whole, and in part where cache.activate_past_recording() was called before it; a step of several tokens "
            "needs a spare slab for that (spare=)"
        )

    def forget(self, count, starts, targets):
        store, kept = self.store, self.kept
        for row, start in enumerate(starts):
            if start != store.stored[row]:
                store.truncate(row, start)
        again = [target - start for start, target in zip(starts, targets)]
        if any(again):
            self.repeat(kept, again)
        if kept:
            kept.fresh = [max(target - before, 0) for target, before in zip(targets, kept.before)]
        self.seen -= count
