"""KIVI: keys packed with a scale a channel, values with a scale a token, and the newest of both as they are.

Source, Differs: see the method's entry, `methods.cache.KIVI`.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from trt_compress.errors import ConfigError
from trt_compress.methods.cache import KIVI, KiviConfig
from trt_compress.models.cache.contract import ROWS, CacheState, Length, Memory, NewEntries, Store
from trt_compress.models.cache.packing import blocks_of, merged, moved_up, rows_from, rows_of
from trt_compress.models.cache.plain import append_rows, attend_rows, row_states
from trt_compress.models.compressors.sites import Arrival
from trt_compress.plugins.kv_append.op import kv_append
from trt_compress.plugins.kv_attention.op import kv_attention
from trt_compress.plugins.kv_quantize.op import kv_quantize

PACKED = "packed"
_AT_ONCE = 1024  # tokens of a long prompt that one run packs


class Kivi(Store):
    """Rows in full precision, of which the oldest are packed in blocks of `group` tokens."""

    method = KIVI

    def __init__(self, config: KiviConfig, arrival: Arrival) -> None:
        super().__init__(config, arrival)
        layer, self.config = self.layer, config
        if layer.head_dim % (8 // config.bits):
            raise ConfigError(
                f"kivi: bits={config.bits} does not pack the {layer.head_dim} channels of a head of {layer.host} into "
                "whole bytes; give more bits."
            )
        self.value_group = config.group if layer.head_dim % config.group == 0 else 0
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
        group, exact = self.config.group, self.config.prefill == "exact"
        blocks = self.at_once // group
        return (
            Length(
                name=ROWS,
                symbol="tail",
                read="tokens",
                first=self.at_once,
                most=None if exact else self.config.residual + self.layer.chunk,
            ),
            Length(name=PACKED, symbol="blocks", unit=group, flush=blocks, first=blocks, spare=blocks),
        )

    def cache_states(self) -> tuple[CacheState, ...]:
        """Rows, and of the packed ones codes, scales and minima."""
        layer, group, bits = self.layer, self.config.group, self.config.bits
        codes = (layer.groups, PACKED, group * layer.head_dim * bits // 8)
        per_token = group * (layer.head_dim // self.value_group if self.value_group else 1)
        made = [
            *row_states(layer, tail=True),
            CacheState(name="k_code", shape=codes, dtype="uint8", compare="codes", bits=bits, read="r", flush="rw"),
            CacheState(name="v_code", shape=codes, dtype="uint8", compare="codes", bits=bits, read="r", flush="rw"),
        ]
        for which, width in (("k", layer.head_dim), ("v", per_token)):
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
        group = self.config.group
        packed = kv_attention(
            reading.query,
            rows_of(memory["k_code"], group),
            memory["k_scale"],
            memory["k_minimum"],
            rows_of(memory["v_code"], group),
            rows_of(memory["v_scale"], group),
            rows_of(memory["v_minimum"], group),
            reading.lengths[PACKED] * group,
            k_bits=self.config.bits,
            k_axis="channel",
            k_group=group,
            v_bits=self.config.bits,
            v_axis="token",
            v_group=self.value_group,
            scale=self.layer.scale,
            softcap=self.layer.softcap,
        )
        return merged(packed, newest)

    def flush(self, lengths: Mapping[str, Tensor], memory: Memory) -> None:
        """Pack whole residuals of the oldest rows, and move the others to the front."""
        went = self._goes(lengths)
        for which, rows in (("k", "keys"), ("v", "values")):
            axis: Literal["channel", "token"] = "channel" if which == "k" else "token"
            parts = kv_quantize(
                rows_from(memory[rows], lengths[ROWS], self.at_once),
                bits=self.config.bits,
                axis=axis,
                group=self.config.group if which == "k" else self.value_group,
                scale_type=getattr(torch, self.config.scales),
            )
            for what, part in zip(("code", "scale", "minimum"), parts, strict=True):
                name = f"{which}_{what}"
                new = part if which == "k" and what != "code" else blocks_of(part, self.config.group)
                memory[name] = kv_append(memory[name], new, lengths[PACKED])
            memory[rows] = moved_up(memory[rows], went)

    def flushed(self, lengths: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Fewer rows, more blocks."""
        went = self._goes(lengths)
        return {ROWS: lengths[ROWS] - went, PACKED: lengths[PACKED] + went // self.config.group}

    def _goes(self, lengths: Mapping[str, Tensor]) -> Tensor:
        """Rows of each sequence that are packed, [B]."""
        whole = lengths[ROWS] // self.config.residual * self.config.residual
        return whole.clamp(max=self.at_once)
