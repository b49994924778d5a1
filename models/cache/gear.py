"""GEAR: codes as KIVI's, a low-rank part of what they lose, and outliers apart.

Source, Differs: see the method's entry, `methods.cache_stores.GEAR`.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from trt_compress.errors import ConfigError
from trt_compress.methods.cache_stores import GEAR, GearConfig
from trt_compress.models.cache.contract import CacheState, Memory, NewEntries
from trt_compress.models.cache.kivi import PACKED, Kivi, Sides
from trt_compress.models.cache.packing import rows_of
from trt_compress.models.compressors.sites import Arrival
from trt_compress.plugins.kv_attention_plain.op import kv_attention_plain
from trt_compress.plugins.kv_dequantize.op import kv_dequantize
from trt_compress.plugins.operator import cast
from trt_compress.plugins.token_select.op import token_select

_NUMBERS = 2048  # whole numbers that float16 holds
_HIDDEN = 1e30


class Gear(Kivi):
    """KIVI's rows and codes; beside them factors [G, tokens, R] and [G, R, D] of each block, and its outliers."""

    method = GEAR
    start: Tensor

    def __init__(self, config: GearConfig, arrival: Arrival) -> None:
        super().__init__(config, arrival)
        layer, self.gear = self.layer, config
        self.unit = config.residual
        self.key_group = config.group or config.residual
        if config.rank > min(layer.head_dim, self.unit):
            raise ConfigError(
                f"gear: rank={config.rank} is more than the {min(layer.head_dim, self.unit)} that a block of "
                f"{self.unit} tokens and {layer.head_dim} channels can have."
            )
        if config.outliers and layer.groups * layer.head_dim > _NUMBERS:
            raise ConfigError(
                f"gear: a token of {layer.host} has {layer.groups * layer.head_dim} channels of keys, and outliers are "
                f"numbered up to {_NUMBERS}; give outliers=0."
            )
        start = np.random.default_rng(0).uniform(size=(layer.head_dim, config.rank))
        self.register_buffer("start", torch.from_numpy(start).float(), persistent=False)

    @property
    def not_readable(self) -> str:
        """What is beside the codes belongs to whole blocks."""
        return "keeps factors and outliers of whole blocks, which are no rows"

    def apart(self, which: str) -> int:
        """Outliers on each side: of a channel of a block of keys, or of a token's values in all heads."""
        share = self.gear.outliers / 2
        length = self.unit if which == "k" else self.layer.groups * self.layer.head_dim
        return max(1, int(length * share)) if share else 0

    def cache_states(self) -> tuple[CacheState, ...]:
        """KIVI's, factors, and the values and numbers of outliers."""
        layer, rank, made = self.layer, self.gear.rank, list(super().cache_states())
        for which in "kv":
            shapes = {
                "factor": (layer.groups, PACKED, self.unit * rank),
                "basis": (layer.groups, PACKED, rank * layer.head_dim),
            }
            if count := 2 * self.apart(which):
                of_keys = (layer.groups, PACKED, count * layer.head_dim)
                shape = of_keys if which == "k" else (1, PACKED, self.unit * count)
                shapes |= {"outlier": shape, "number": shape}
            made += [
                CacheState(name=f"{which}_{what}", shape=shape, dtype="float16", kind="scale", read="r", flush="rw")
                for what, shape in shapes.items()
            ]
        return tuple(made)

    def pack(self, which: str, rows: Tensor) -> dict[str, Tensor]:
        """Outliers out, codes of the rest, and factors of what these lose."""
        rows = rows.float()
        if count := self.apart(which):
            lines = self._lines(which, rows)
            numbers = outliers_of(lines, count)
            is_one = marked(numbers, lines.shape[-1]) > 0
            kept = torch.where(is_one, lines.mean(dim=-1, keepdim=True), lines)
            made = super().pack(which, self._rows(which, kept, rows))
            lost = self._lines(which, rows - self._dequantized(which, made))
            made[f"{which}_outlier"] = self._blocks(which, lost.gather(-1, numbers))
            made[f"{which}_number"] = self._blocks(which, numbers)
            error = self._rows(which, torch.where(is_one, 0.0, lost), rows)
        else:
            made = super().pack(which, rows)
            error = rows - self._dequantized(which, made)
        blocks = torch.unflatten(error, 2, (-1, self.unit))
        left, right = low_rank(blocks, self.start, self.gear.loops)
        made[f"{which}_factor"] = cast(left.flatten(3), torch.float16)
        made[f"{which}_basis"] = cast(right.transpose(3, 4).flatten(3), torch.float16)
        return made

    def unpacked(self, which: str, memory: Mapping[str, Tensor]) -> Tensor:
        """The rows [B, G, P * unit, D] that blocks stand for, float32."""
        rows = self._dequantized(which, memory)
        factor = torch.unflatten(rows_of(memory[f"{which}_factor"], self.unit), 2, (-1, self.unit)).float()
        basis = torch.unflatten(memory[f"{which}_basis"], 3, (self.gear.rank, -1)).float()
        rows = rows + (factor @ basis).flatten(2, 3)
        if not self.apart(which):
            return rows
        values, numbers = (self._from_blocks(which, memory[f"{which}_{what}"]) for what in ("outlier", "number"))
        lines = marked(cast(numbers, torch.int64), self._lines(which, rows).shape[-1], values.float())
        return rows + self._rows(which, lines, rows)

    def attend_packed(self, reading: NewEntries, memory: Memory) -> tuple[Tensor, Tensor]:
        """Attend to all parts together: to the codes, or with outliers, which no operator takes, to what they stand
        for."""
        if not self.gear.outliers:
            return super().attend_packed(reading, memory)
        return kv_attention_plain(
            reading.query,
            cast(self.unpacked("k", memory), reading.query.dtype),
            cast(self.unpacked("v", memory), reading.query.dtype),
            reading.lengths[PACKED] * self.unit,
            scale=self.layer.scale,
            softcap=self.layer.softcap,
        )

    def sides(self, memory: Memory) -> Sides:
        """The low-rank part."""
        return {
            "k_factor": rows_of(memory["k_factor"], self.unit),
            "k_basis": memory["k_basis"],
            "v_factor": rows_of(memory["v_factor"], self.unit),
            "v_basis": memory["v_basis"],
            "block": self.unit,
        }

    def _dequantized(self, which: str, memory: Mapping[str, Tensor]) -> Tensor:
        return kv_dequantize(
            *self.parts(which, memory),
            bits=self.config.bits,
            axis="channel" if which == "k" else "token",
            group=self.key_group if which == "k" else self.value_group,
            to=torch.float32,
        )

    def _lines(self, which: str, rows: Tensor) -> Tensor:
        """Rows [B, G, P * unit, D] as lines of which outliers are found: channels of blocks [B, G, P, D, unit], or
        tokens of all heads [B, P * unit, G * D]."""
        if which == "k":
            return torch.unflatten(rows, 2, (-1, self.unit)).transpose(3, 4)
        return rows.transpose(1, 2).flatten(2)

    def _rows(self, which: str, lines: Tensor, like: Tensor) -> Tensor:
        if which == "k":
            return lines.transpose(3, 4).flatten(2, 3)
        return torch.unflatten(lines, 2, (like.shape[1], -1)).transpose(1, 2)

    def _blocks(self, which: str, lines: Tensor) -> Tensor:
        """Lines as blocks of float16: [B, G, P, D * S], or [B, 1, P, unit * S]."""
        half = cast(lines, torch.float16)
        return half.flatten(3) if which == "k" else torch.unflatten(half, 1, (-1, self.unit)).flatten(2)[:, None]

    def _from_blocks(self, which: str, blocks: Tensor) -> Tensor:
        if which == "k":
            return torch.unflatten(blocks, 3, (self.layer.head_dim, -1))
        return rows_of(blocks, self.unit)[:, 0]


def outliers_of(lines: Tensor, count: int) -> Tensor:
    """Numbers of the largest and of the smallest entries along the last axis, `count` of each, [..., 2 * count] int64;
    of equal ones the first, and each once."""
    if not count:
        return torch.zeros(*lines.shape[:-1], 0, dtype=torch.int64, device=lines.device)
    flat = lines.flatten(0, -2)
    _, most, _ = token_select(flat[..., None], flat, num_kept=count)
    others = torch.where(marked(most, flat.shape[1]) > 0, -_HIDDEN, -flat)
    _, least, _ = token_select(flat[..., None], others, num_kept=count)
    return torch.cat([most, least], dim=1).reshape(*lines.shape[:-1], 2 * count)


def marked(numbers: Tensor, length: int, values: Tensor | None = None) -> Tensor:
    """Lines of zeros [..., length] with values, or ones, at their numbers [..., S]."""
    place = torch.arange(length, device=numbers.device)
    total: Tensor | None = None
    for one in range(numbers.shape[-1]):
        here = cast(place == numbers[..., one : one + 1], torch.float32)
        part = here if values is None else here * values[..., one : one + 1]
        total = part if total is None else total + part
    assert total is not None
    return total


def low_rank(error: Tensor, start: Tensor, loops: int) -> tuple[Tensor, Tensor]:
    """Matrices [..., N, D] as products of [..., N, R], orthonormal, and [..., D, R] transposed, by power iteration.

    Args:
        error: What to approximate.
        start: Where it begins, [D, R], or one for each matrix.
        loops: How often.
    """
    right, left = start, error[..., :1]
    for _ in range(loops):
        left = orthonormal(error @ orthonormal(right))
        right = error.transpose(-1, -2) @ left
    return left, right


def orthonormal(matrix: Tensor) -> Tensor:
    """Columns [..., N, R] made orthonormal one after the other, each twice; one of zeros stays."""
    found: list[Tensor] = []
    for number in range(matrix.shape[-1]):
        column = matrix[..., number]
        for _ in range(2):
            for other in found:
                column = column - other * (other * column).sum(dim=-1, keepdim=True)
        found.append(column / column.square().sum(dim=-1, keepdim=True).sqrt().clamp(min=1e-12))
    return torch.stack(found, dim=-1)
