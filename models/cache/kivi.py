"""KIVI: keys packed with a scale a channel, values with a scale a token, and the newest of both as they are.

Source, Differs: see the method's entry, `methods.cache.KIVI`.
"""

from collections.abc import Mapping
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor

from trt_compress.errors import ConfigError
from trt_compress.methods.cache import KIVI, KiviConfig
from trt_compress.methods.cache_stores import GearConfig
from trt_compress.models.cache.chosen import by_head
from trt_compress.models.cache.contract import ROWS, CacheState, Length, Memory, NewEntries, SlotKeys, Store
from trt_compress.models.cache.packing import blocks_of, merged, moved_up, rows_from, rows_of
from trt_compress.models.cache.plain import append_rows, attend_rows, row_states
from trt_compress.models.compressors.sites import Arrival
from trt_compress.plugins.kv_append.op import kv_append
from trt_compress.plugins.kv_attention.op import kv_attention
from trt_compress.plugins.kv_dequantize.op import kv_dequantize
from trt_compress.plugins.kv_quantize.op import kv_quantize

PACKED = "packed"
_AT_ONCE = 1024  # tokens of a long prompt that one run packs


class Sides(TypedDict, total=False):
    """What KVAttention reads beside codes; see `kv_attention`."""

    k_factor: Tensor
    k_basis: Tensor
    v_factor: Tensor
    v_basis: Tensor
    block: int


class Kivi(Store):
    """Rows in full precision, of which the oldest are packed in blocks of `group` tokens.

    Attributes:
        config: Its options.
        unit: Tokens of a packed block.
        key_group, value_group: Tokens that share a scale in a channel, and channels of a token that do; 0: all.
        at_once: Tokens that a run of `flush` packs at most.
    """

    method = KIVI

    def __init__(self, config: KiviConfig | GearConfig, arrival: Arrival) -> None:
        super().__init__(config, arrival)
        layer, self.config = self.layer, config
        if layer.head_dim % (8 // config.bits):
            raise ConfigError(
                f"{self.method.name}: bits={config.bits} does not pack the {layer.head_dim} channels of a head of "
                f"{layer.host} into whole bytes; give more bits."
            )
        self.unit = config.group
        self.key_group = config.group
        self.value_group = config.group if config.group and layer.head_dim % config.group == 0 else 0
        exact = config.prefill == "exact"
        most = max(min(_AT_ONCE, layer.context) if exact else layer.chunk, config.residual)
        self.at_once = most // config.residual * config.residual
        self.flush_after = ("prompt", "step") if exact else ("run",)

    @property
    def not_selectable(self) -> str | None:
        """Rows that are packed cannot be told apart any more without tearing their groups."""
        return None if self.config.prefill == "exact" else "packs a prompt while it is read; give prefill=exact"

    @property
    def period(self) -> int:
        """Tokens that are packed together."""
        return self.config.residual

    def lengths(self) -> tuple[Length, ...]:
        """Rows in full precision, and packed blocks."""
        exact = self.config.prefill == "exact"
        blocks = self.at_once // self.unit
        return (
            Length(
                name=ROWS,
                symbol="tail",
                read="tokens",
                first=self.at_once,
                most=None if exact else self.config.residual + self.layer.chunk,
            ),
            Length(name=PACKED, symbol="blocks", unit=self.unit, flush=blocks, first=blocks, spare=blocks),
        )

    def cache_states(self) -> tuple[CacheState, ...]:
        """Rows, and of the packed ones codes, scales and minima."""
        layer, unit, bits = self.layer, self.unit, self.config.bits
        codes = (layer.groups, PACKED, unit * layer.head_dim * bits // 8)
        of_keys = unit // self.key_group * layer.head_dim
        of_values = unit * (layer.head_dim // self.value_group if self.value_group else 1)
        made = [
            *row_states(layer, tail=True),
            CacheState(name="k_code", shape=codes, dtype="uint8", compare="codes", bits=bits, read="r", flush="rw"),
            CacheState(name="v_code", shape=codes, dtype="uint8", compare="codes", bits=bits, read="r", flush="rw"),
        ]
        for which, width in (("k", of_keys), ("v", of_values)):
            shape = (layer.groups, PACKED, width)
            made += [
                CacheState(
                    name=f"{which}_{what}", shape=shape, dtype=self.config.scales, kind="scale", read="r", flush="rw"
                )
                for what in ("scale", "minimum")
            ]
        return tuple(made)

    def forward(self, reading: NewEntries, memory: Memory) -> Tensor:
        """Append to the rows, and attend to both parts."""
        append_rows(reading, memory)
        newest = attend_rows(reading, memory, self.layer)
        return merged(self.attend_packed(reading, memory), newest)

    def attend_packed(self, reading: NewEntries, memory: Memory) -> tuple[Tensor, Tensor]:
        """Attend to what is packed; and the logarithm of the sum of exponentials."""
        return self._attend(reading, reading.query, memory)

    def _attend(
        self, reading: NewEntries, query: Tensor, memory: Memory, index: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        return kv_attention(
            query,
            *self.parts("k", memory),
            *self.parts("v", memory),
            reading.lengths[PACKED] * self.unit,
            index=index,
            k_bits=self.config.bits,
            k_axis="channel",
            k_group=self.key_group,
            v_bits=self.config.bits,
            v_axis="token",
            v_group=self.value_group,
            scale=self.layer.scale,
            softcap=self.layer.softcap,
            **self.sides(memory),
        )

    def sides(self, memory: Memory) -> Sides:
        """What else the operator reads of what is packed."""
        return {}

    @property
    def not_readable(self) -> str | None:
        """Packed rows are read one by one too."""
        return None

    def slot_keys(self, reading: NewEntries, memory: Memory) -> tuple[SlotKeys, ...]:
        """What is packed, and behind it the rows."""
        how: dict[str, Any] = {"bits": self.config.bits, "axis": "channel", "group": self.key_group}
        packed = kv_dequantize(*self.parts("k", memory), **how, to=torch.float32)
        return (
            SlotKeys(keys=packed, length=reading.lengths[PACKED] * self.unit),
            SlotKeys(keys=memory["keys"], length=reading.rows),
        )

    def forward_some(self, reading: NewEntries, memory: Memory, index: Tensor) -> Tensor:
        """Append to the rows, and attend to the chosen ones of both parts: a slot of one is none of the other."""

        def attend(query: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            return self._attend(reading, query, memory, rows)

        append_rows(reading, memory)
        newest = attend_rows(reading, memory, self.layer, index - memory["k_code"].shape[2] * self.unit)
        return merged(by_head(reading.query, index, self.layer.groups, attend), newest)

    def parts(self, which: str, memory: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Codes, scales and minima of keys ("k") or values ("v"), as the operators take them."""
        rows = self.unit // self.key_group if which == "k" else self.unit
        code, scale, minimum = (memory[f"{which}_{what}"] for what in ("code", "scale", "minimum"))
        return rows_of(code, self.unit), rows_of(scale, rows), rows_of(minimum, rows)

    def flush(self, lengths: Mapping[str, Tensor], memory: Memory) -> None:
        """Pack whole residuals of the oldest rows, and move the others to the front."""
        went = self._goes(lengths)
        for which, rows in (("k", "keys"), ("v", "values")):
            packed = self.pack(which, rows_from(memory[rows], lengths[ROWS], self.at_once))
            for name, blocks in packed.items():
                memory[name] = kv_append(memory[name], blocks, lengths[PACKED])
            memory[rows] = moved_up(memory[rows], went)

    def pack(self, which: str, rows: Tensor) -> dict[str, Tensor]:
        """Blocks [B, G, P, …] of rows [B, G, P * unit, D] of keys ("k") or values ("v"), by the names of the states."""
        axis: Literal["channel", "token"] = "channel" if which == "k" else "token"
        code, scale, minimum = kv_quantize(
            rows,
            bits=self.config.bits,
            axis=axis,
            group=self.key_group if which == "k" else self.value_group,
            scale_type=getattr(torch, self.config.scales),
        )
        rows_a_block = self.unit // self.key_group if which == "k" else self.unit
        return {
            f"{which}_code": blocks_of(code, self.unit),
            f"{which}_scale": blocks_of(scale, rows_a_block),
            f"{which}_minimum": blocks_of(minimum, rows_a_block),
        }

    def flushed(self, lengths: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Fewer rows, more blocks."""
        went = self._goes(lengths)
        return {ROWS: lengths[ROWS] - went, PACKED: lengths[PACKED] + went // self.unit}

    def _goes(self, lengths: Mapping[str, Tensor]) -> Tensor:
        """Rows of each sequence that are packed, [B]."""
        whole = lengths[ROWS] // self.config.residual * self.config.residual
        return whole.clamp(max=self.at_once)
