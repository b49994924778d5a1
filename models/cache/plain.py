"""Keys and values as they are, in float32 or float16: what a decoder does if nothing else is said.

Source: the caches of transformers (DynamicCache, StaticCache), as tensors that are updated in place.
"""

import math
from abc import ABC, abstractmethod

import numpy as np
import torch
from torch import Tensor, nn

from trt_compress.methods.cache import PLAIN
from trt_compress.models.cache.chosen import by_head
from trt_compress.models.cache.contract import (
    ROWS,
    CacheLayer,
    CacheState,
    Length,
    Memory,
    NewEntries,
    SlotKeys,
    Store,
)
from trt_compress.plugins.kv_append.op import kv_append
from trt_compress.plugins.kv_attention_plain.op import kv_attention_plain
from trt_compress.plugins.operator import cast

SLOTS = "slots"


def row_states(layer: CacheLayer, *, tail: bool = False) -> tuple[CacheState, ...]:
    """Keys and values in full precision, one row for each token; a tail is packed from time to time."""
    shape = (layer.groups, ROWS, layer.head_dim)
    return tuple(
        CacheState(
            name=name,
            shape=shape,
            dtype=layer.dtype,
            kind="tail" if tail else "cache",
            flush="rw" if tail else "",
            compact="rw",
        )
        for name in ("keys", "values")
    )


def append_rows(reading: NewEntries, memory: Memory) -> None:
    """Write the keys and values of a run behind the rows in full precision."""
    for name, new in (("keys", reading.key), ("values", reading.value)):
        memory[name] = kv_append(memory[name], cast(new, memory[name].dtype), reading.lengths[ROWS])


def attend_rows(
    reading: NewEntries, memory: Memory, layer: CacheLayer, index: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Attend to the rows in full precision, or to those of an index [B, H | G, K]; and the logarithm of the sum of
    exponentials, to merge with others."""

    def attend(query: Tensor, rows: Tensor | None) -> tuple[Tensor, Tensor]:
        return kv_attention_plain(
            query,
            memory["keys"],
            memory["values"],
            reading.rows,
            index=rows,
            scale=layer.scale,
            causal=True,
            softcap=layer.softcap,
        )

    return attend(reading.query, None) if index is None else by_head(reading.query, index, layer.groups, attend)


def attend_new(reading: NewEntries, layer: CacheLayer) -> tuple[Tensor, Tensor]:
    """Attend to the tokens of the run alone, as they are; and the logarithm of the sum of exponentials."""
    return kv_attention_plain(
        reading.query,
        reading.key,
        reading.value,
        torch.full_like(reading.count, reading.query.shape[2]),
        scale=layer.scale,
        causal=True,
        softcap=layer.softcap,
    )


class Plain(Store):
    """One row for each token, in full precision."""

    method = PLAIN

    def lengths(self) -> tuple[Length, ...]:
        """One row a token."""
        return (Length(name=ROWS, symbol=SLOTS, read="tokens"),)

    def cache_states(self) -> tuple[CacheState, ...]:
        """Keys and values."""
        return row_states(self.layer)

    def forward(self, reading: NewEntries, memory: Memory) -> Tensor:
        """Append and attend."""
        append_rows(reading, memory)
        y, _ = attend_rows(reading, memory, self.layer)
        return y

    @property
    def not_readable(self) -> None:
        """Rows are read one by one."""
        return None

    def slot_keys(self, reading: NewEntries, memory: Memory) -> tuple[SlotKeys, ...]:
        """The rows."""
        return (SlotKeys(keys=memory["keys"], length=reading.rows),)

    def forward_some(self, reading: NewEntries, memory: Memory, index: Tensor) -> Tensor:
        """Append and attend to chosen rows."""
        append_rows(reading, memory)
        y, _ = attend_rows(reading, memory, self.layer, index)
        return y


class Fixed(nn.Module, ABC):
    """What a layer keeps because its model was made so, whatever policies there are."""

    @abstractmethod
    def cache_states(self) -> tuple[CacheState, ...]:
        """What it keeps."""

    @property
    def bytes(self) -> int:
        """Of one sequence."""
        return sum(
            math.prod(int(dim) for dim in state.shape) * np.dtype(state.dtype).itemsize for state in self.cache_states()
        )

    @abstractmethod
    def forward(self, reading: NewEntries, memory: Memory) -> Tensor:
        """Keep the entries of T tokens and attend: [B, H, T, D]."""


class Ring(Fixed):
    """The last rows of a layer with a sliding window: as many as the tokens of a chunk can see.

    Rows of filling tokens are written too, to slots that no token sees before a later one has overwritten them.
    """

    def __init__(self, layer: CacheLayer, *, window: int, slots: int) -> None:
        super().__init__()
        self.layer, self._window, self._slots = layer, window, slots

    def cache_states(self) -> tuple[CacheState, ...]:
        """Keys and values."""
        shape = (self.layer.groups, self._slots, self.layer.head_dim)
        return tuple(CacheState(name=name, shape=shape, dtype=self.layer.dtype) for name in ("keys", "values"))

    def forward(self, reading: NewEntries, memory: Memory) -> Tensor:
        """Write over the oldest and attend."""
        for name, new in (("keys", reading.key), ("values", reading.value)):
            memory[name] = kv_append(memory[name], cast(new, memory[name].dtype), reading.seen, layout="ring")
        y, _ = kv_attention_plain(
            reading.query,
            memory["keys"],
            memory["values"],
            reading.seen + reading.query.shape[2],
            scale=self.layer.scale,
            causal=True,
            window=self._window,
            softcap=self.layer.softcap,
            layout="ring",
        )
        return y
