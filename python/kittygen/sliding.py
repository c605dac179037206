"""A sliding-window layer at fixed addresses, for steps that are captured into a CUDA graph (decode.py).

Transformers' own sliding layer makes new tensors at every step. A ring keeps row b's token t, its pads not counted, in place
t % window; which places are valid follows from the position on the device.
"""

import torch
from transformers.cache_utils import CacheLayerMixin, DynamicSlidingWindowLayer


class Ring(CacheLayerMixin):
    is_compileable = False
    is_croppable = False
    is_sliding = True
    supports_early_init = False

    def __init__(self, layer, lengths, position):
        """From a stock layer; lengths [batch] are its rows' real tokens, position [batch, 1] the next token's place."""
        super().__init__()
        self.stock, self.window, self.position = layer, layer.sliding_window, position
        have = layer.keys.shape[-2]
        place = torch.arange(self.window, device=layer.keys.device)
        newest = lengths[:, None] - 1
        token = newest - (newest - place) % self.window  # the newest token of each place
        column = have - (lengths[:, None] - token)
        self.keys, self.values = (gather(states, column, token >= 0) for states in (layer.keys, layer.values))
        self.rows = torch.arange(len(lengths), device=layer.keys.device)

    def lazy_initialization(self, key_states, value_states):
        """Nothing: made from a layer that holds a prompt."""

    def update(self, key_states, value_states, *args, **kwargs):
        place = self.position[:, 0] % self.window
        self.keys[self.rows, :, place] = key_states[:, :, 0]
        self.values[self.rows, :, place] = value_states[:, :, 0]
        return self.keys, self.values

    def mask(self):
        """[batch, 1, 1, window]: the places that hold a token once this step's is in."""
        place = torch.arange(self.window, device=self.position.device)
        return (place <= self.position)[:, None, None, :]

    def back(self, lengths, seen):
        """The stock layer again, with what the ring holds now."""
        layer = self.stock
        have = min(seen, self.window - 1)
        token = lengths[:, None] - have + torch.arange(have, device=self.keys.device)
        column = token % self.window
        layer.keys, layer.values = (gather(states, column, token >= 0) for states in (self.keys, self.values))
        layer.cumulative_length = seen
        return layer

    def get_mask_sizes(self, query_length):
        return self.window, 0

    def get_seq_length(self):
        return 0

    def get_max_length(self):
        return self.window


def gather(states, column, real):
    """[batch, heads, columns, dim] at column [batch, n] of each row; zero where it is not real or not there any more."""
    real = real & (column >= 0)
    index = column.clamp(0, states.shape[-2] - 1)[:, None, :, None].expand(-1, states.shape[1], -1, states.shape[-1])
    return states.gather(2, index) * real[:, None, :, None]


def is_sliding(layer):
    return type(layer) is DynamicSlidingWindowLayer
