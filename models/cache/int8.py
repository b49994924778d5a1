"""Keys and values in 8 or 4 bits with a scale for each token and KV head: packed when they come, none is held back.

Source, Differs: see the methods' entries, `methods.cache_stores`.
"""

from collections import ChainMap
from typing import Any

import torch
from torch import Tensor

from trt_compress.errors import ConfigError
from trt_compress.methods.cache_stores import INT4, INT8, IntConfig
from trt_compress.models.cache.chosen import by_head
from trt_compress.models.cache.contract import ROWS, CacheState, Choice, Length, Memory, NewEntries, SlotKeys, Store
from trt_compress.models.cache.packing import merged
from trt_compress.models.cache.plain import SLOTS, attend_new
from trt_compress.models.compressors.sites import Arrival
from trt_compress.plugins.kv_append.op import kv_append
from trt_compress.plugins.kv_attention.op import kv_attention
from trt_compress.plugins.kv_dequantize.op import kv_dequantize
from trt_compress.plugins.kv_quantize.op import kv_quantize

_PARTS = ("code", "scale", "minimum")
_NAMES = tuple(f"{which}_{what}" for which in "kv" for what in _PARTS)
_NOTHING = -1e30  # the logarithm of the sum of no exponentials


class Int8(Store):
    """One packed row for each token, which a selector may choose among."""

    method = INT8
    bits = 8

    def __init__(self, config: IntConfig, arrival: Arrival) -> None:
        super().__init__(config, arrival)
        layer, name = self.layer, self.method.name
        if layer.head_dim % (8 // self.bits):
            raise ConfigError(f"{name}: {layer.host} has heads of {layer.head_dim} channels, no whole bytes; use int8.")
        if config.group and layer.head_dim % config.group:
            raise ConfigError(
                f"{name}: group={config.group} does not divide the {layer.head_dim} channels of a head of "
                f"{layer.host}; give a divisor, or 0 for all of them."
            )
        self.config = config
        self._how: dict[str, Any] = {"bits": self.bits, "axis": "token", "group": config.group}

    def lengths(self) -> tuple[Length, ...]:
        """One row a token."""
        return (Length(name=ROWS, symbol=SLOTS, read="tokens"),)

    def cache_states(self) -> tuple[CacheState, ...]:
        """Codes, scales and minima of each row."""
        layer = self.layer
        made: list[CacheState] = []
        scales = layer.head_dim // self.config.group if self.config.group else 1
        for which in "kv":
            shape = (layer.groups, ROWS, layer.head_dim * self.bits // 8)
            name = f"{which}_code"
            made.append(
                CacheState(name=name, shape=shape, dtype="uint8", compare="codes", bits=self.bits, compact="rw")
            )
            made += [
                CacheState(
                    name=f"{which}_{what}",
                    shape=(layer.groups, ROWS, scales),
                    dtype=self.config.scales,
                    kind="scale",
                    compact="rw",
                )
                for what in _PARTS[1:]
            ]
        return tuple(made)

    def forward(self, reading: NewEntries, memory: Memory) -> Tensor:
        """Attend to what is packed and to the new rows as they are, and pack these behind the others."""
        packed = self._attend(reading, reading.query, memory)
        self._append(reading, memory)
        return merged(packed, attend_new(reading, self.layer))

    @property
    def not_readable(self) -> None:
        """Rows are read one by one."""
        return None

    def slot_keys(self, reading: NewEntries, memory: Memory) -> tuple[SlotKeys, ...]:
        """The rows, the newest as it is packed."""
        return (SlotKeys(keys=self._rows("k", memory), length=reading.rows),)

    def forward_some(self, reading: NewEntries, memory: Memory, index: Tensor) -> Tensor:
        """Attend to chosen rows, to the new one as it is if it is among them, and pack it behind the others."""

        def attend(query: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            return self._attend(reading, query, memory, rows)

        packed = by_head(reading.query, index, self.layer.groups, attend)
        self._append(reading, memory)
        y, lse = attend_new(reading, self.layer)
        is_read = (index == reading.lengths[ROWS][:, None, None]).any(dim=2).to(lse.dtype)
        is_read = is_read.repeat_interleave(self.layer.heads // index.shape[1], dim=1)
        return merged(packed, (y, torch.where(is_read[..., None] > 0, lse, _NOTHING)))

    def _attend(
        self, reading: NewEntries, query: Tensor, memory: Memory, index: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Attend to what was packed before, or to the rows of an index [B, G, K] of it."""
        return kv_attention(
            query,
            memory["k_code"],
            memory["k_scale"],
            memory["k_minimum"],
            memory["v_code"],
            memory["v_scale"],
            memory["v_minimum"],
            reading.lengths[ROWS],
            index=index,
            **{f"{which}_{name}": value for which in "kv" for name, value in self._how.items()},
            scale=self.layer.scale,
            softcap=self.layer.softcap,
        )

    def _append(self, reading: NewEntries, memory: Memory) -> None:
        for which, new in (("k", reading.key), ("v", reading.value)):
            parts = kv_quantize(new, **self._how, scale_type=getattr(torch, self.config.scales))
            for what, part in zip(_PARTS, parts, strict=True):
                name = f"{which}_{what}"
                memory[name] = kv_append(memory[name], part, reading.lengths[ROWS])

    def readable(self, memory: Memory) -> Memory:
        """The rows as numbers beside what is kept."""
        return ChainMap(memory, {name: self._rows(which, memory) for which, name in (("k", "keys"), ("v", "values"))})

    def _rows(self, which: str, memory: Memory) -> Tensor:
        """All keys ("k") or values ("v") as numbers."""
        return kv_dequantize(*(memory[f"{which}_{what}"] for what in _PARTS), **self._how, to=torch.float32)

    def keep(self, choice: Choice, memory: Memory) -> None:
        """Keep the chosen rows as they are packed."""
        for name in _NAMES:
            memory[name] = choice.moved(memory[name])


class Int4(Int8):
    """The same in 4 bits."""

    method = INT4
    bits = 4
