"""KVQuant: keys as they are before they are turned, by ranges and levels that calibration found; outliers apart.

Source, Differs: see the method's entry, `methods.cache_stores.KVQUANT`.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from trt_compress.errors import ConfigError
from trt_compress.methods.cache_stores import KVQUANT, KvQuantConfig
from trt_compress.models.cache.contract import ROWS, CacheState, Length, Memory, NewEntries, Store
from trt_compress.models.cache.gear import outliers_of
from trt_compress.models.cache.packing import code_planes, codes_of_planes, merged
from trt_compress.models.cache.plain import SLOTS, attend_new
from trt_compress.models.calibrate import signposts
from trt_compress.models.calibrate.signposts import lines_of
from trt_compress.models.compressors.calibration import (
    Alphabet,
    Calibrated,
    CalibrationData,
    CalibrationHost,
    artifact_tensors,
)
from trt_compress.models.compressors.sites import Arrival
from trt_compress.models.layers.rope import Rope, turned
from trt_compress.plugins.codebook_decode.op import codebook_decode
from trt_compress.plugins.codebook_encode.op import codebook_encode, table_codebook
from trt_compress.plugins.kv_append.op import kv_append
from trt_compress.plugins.kv_attention_plain.op import kv_attention_plain
from trt_compress.plugins.operator import cast

_NUMBERS = 2048  # whole numbers that float16 holds
_FAR, _SMALL = 1e30, 1e-12
_MARGIN = 1e-3
"""Of a range, by which its ends lie outside of the percentiles: where keys depend on the token alone these are entries
that come again, and rounding must not decide on which side they are."""
_TENSORS = ("upper", "lower", "k_signposts", "v_signposts", "k_moments", "v_moments")


class KvQuant(Store):
    """One row a token: codes, the values' ranges, and outliers of all KV heads with their numbers; the first tokens as
    they are.

    Attributes:
        config: Its options.
        tables: Of the layer.
    """

    method = KVQUANT
    needs_count = True

    @classmethod
    def samples(cls, alphabet: Alphabet, config: KvQuantConfig) -> CalibrationData:
        """Random tokens."""
        return signposts.samples(alphabet)

    @classmethod
    def calibrate(cls, host: CalibrationHost, data: CalibrationData, config: KvQuantConfig) -> Calibrated:
        """Ranges, levels and moments of each layer; the scores `keys_error` and `values_error` are of held-out text,
        relative to the entries."""
        made: dict[str, list[Tensor]] = {name: [] for name in _TENSORS}
        for layer in signposts.entries(host, data.fit):
            upper, lower = signposts.ranges(layer.keys, config.outliers)
            margin = (upper - lower) * _MARGIN
            upper, lower = upper + margin, lower - margin
            made["upper"].append(upper)
            made["lower"].append(lower)
            for which, lines in (("k", layer.keys), ("v", layer.values)):
                if which == "k":
                    offset, reach = (upper + lower) / 2, (upper - lower) / 2
                    inside = (lines <= upper) & (lines >= lower) & (reach > 0)
                else:
                    numbers = outliers_of(lines[None], apart_of(lines.shape[1], config)[1])
                    offset, reach = (each[0] for each in range_of(lines[None], numbers))
                    inside = ~is_apart(lines[None], numbers)[0] & (reach > 0)
                points = ((lines - offset) / torch.where(reach > 0, reach, 1.0))[inside]
                levels = signposts.signposts(points, 2**config.bits)
                made[f"{which}_signposts"].append(levels)
                made[f"{which}_moments"].append(torch.tensor(signposts.moments(points, levels)))
        tensors = {name: torch.stack(parts) for name, parts in made.items()}
        errors: dict[str, list[float]] = {"keys_error": [], "values_error": []}
        for number, layer in enumerate(signposts.entries(host, data.held_out)):
            tables = KvTables(config, {name: tensor[number] for name, tensor in tensors.items()})
            for name, which, lines in (("keys_error", "k", layer.keys), ("values_error", "v", layer.values)):
                found = tables.restored(which, tables.kept(which, lines[None]))[0]
                errors[name].append(float((found - lines).norm() / lines.norm().clamp(min=1e-12)))
        return Calibrated(tensors=tensors, score={name: sum(values) / len(values) for name, values in errors.items()})

    @classmethod
    def adopt(cls, tensors: Mapping[str, Tensor], config: KvQuantConfig) -> Mapping[str, Tensor]:
        """`upper` and `lower` [layers, G * D], `k_signposts` and `v_signposts` [layers, 2^bits], ascending, and
        `k_moments` and `v_moments` [layers, 2], all finite."""
        return tables_of(tensors, "the file", config)

    def __init__(self, config: KvQuantConfig, arrival: Arrival) -> None:
        super().__init__(config, arrival)
        layer, self.config = self.layer, config
        if config.tables is None:
            raise ConfigError(
                f"kvquant: tables=FILE is missing; make it with `trt-compress calibrate MODEL --compress "
                f"kvquant:bits={config.bits} -o FILE`, and with `--data` of texts like yours."
            )
        whole = {4: 2, 3: 8, 2: 4}[config.bits]
        if layer.head_dim % whole:
            raise ConfigError(
                f"kvquant: bits={config.bits} does not pack the {layer.head_dim} channels of a head of {layer.host} "
                "into whole bytes; give bits=4."
            )
        width = layer.groups * layer.head_dim
        if config.outliers and width > _NUMBERS:
            raise ConfigError(
                f"kvquant: a token of {layer.host} has {width} channels of keys, and outliers are numbered up to "
                f"{_NUMBERS}; give outliers=0."
            )
        found = tables_of(artifact_tensors(config.tables, "kvquant: tables"), str(config.tables), config)
        if found["upper"].shape != (layer.count, width):
            count, channels = found["upper"].shape
            raise ConfigError(
                f"kvquant: {config.tables} is for {count} layers of {channels} channels of keys, and {layer.host} has "
                f"{layer.count} of {width}; make one for it with `trt-compress calibrate`."
            )
        self.tables = KvTables(config, {name: tensor[layer.place] for name, tensor in found.items()})
        self._rope = None if layer.rope is None else Rope(layer.rope, layer.context)

    @property
    def not_selectable(self) -> str:
        """Heads share a row, and its place is its position."""
        return (
            "keeps range and outliers of a token for all KV heads together and turns its keys by their place, while a "
            "selector keeps other tokens for each head"
        )

    def lengths(self) -> tuple[Length, ...]:
        """One row a token."""
        return (Length(name=ROWS, symbol=SLOTS, read="tokens"),)

    def cache_states(self) -> tuple[CacheState, ...]:
        """Codes of each head; ranges of values, outliers with their numbers for all heads; and the first tokens."""
        layer, made = self.layer, list[CacheState]()
        for which, apart in zip("kv", self.tables.apart, strict=True):
            for plane, bits in enumerate(PLANES[self.config.bits]):
                shape = (layer.groups, ROWS, layer.head_dim * bits // 8)
                made.append(
                    CacheState(name=f"{which}_code{plane}", shape=shape, dtype="uint8", compare="codes", bits=bits)
                )
            if apart:
                far = (1, ROWS, 2 * apart)
                made.append(CacheState(name=f"{which}_outlier", shape=far, dtype=layer.dtype))
                made.append(CacheState(name=f"{which}_number", shape=far, dtype="float16", kind="scale"))
            if self.config.first:
                first = (layer.groups, self.config.first, layer.head_dim)
                made.append(CacheState(name=f"{which}_first", shape=first, dtype=layer.dtype))
        made += [
            CacheState(name=f"v_{what}", shape=(1, ROWS, 1), dtype=self.config.scales, kind="scale")
            for what in ("offset", "reach")
        ]
        return tuple(made)

    def forward(self, reading: NewEntries, memory: Memory) -> Tensor:
        """Attend to what is packed and to the new rows as they are, and pack these behind the others."""
        rows, before = {which: self.unpacked(which, memory) for which in "kv"}, reading.lengths[ROWS]
        if self._rope is not None:
            place = torch.arange(rows["k"].shape[2], device=before.device)[None]
            rows["k"] = turned(rows["k"], self._rope.table(place, torch.float32))
        packed = kv_attention_plain(
            reading.query,
            cast(rows["k"], reading.query.dtype),
            cast(rows["v"], reading.query.dtype),
            before,
            scale=self.layer.scale,
            softcap=self.layer.softcap,
        )
        for which, new in (("k", reading.key_before), ("v", reading.value)):
            for name, kept in self.pack(which, new).items():
                memory[name] = kv_append(memory[name], cast(kept, memory[name].dtype), before)
            if self.config.first:
                memory[f"{which}_first"] = self._first(memory[f"{which}_first"], new, reading)
        return merged(packed, attend_new(reading, self.layer))

    def pack(self, which: str, new: Tensor) -> dict[str, Tensor]:
        """What is kept of rows [B, G, T, D] of keys ("k") or values ("v"), by the names of the states."""
        made = self.tables.kept(which, lines_of(cast(new, torch.float32)))
        codes = self._heads(made.pop("code"))
        planes = code_planes(codes, PLANES[self.config.bits])
        return {
            **{f"{which}_code{number}": plane for number, plane in enumerate(planes)},
            **{f"{which}_{name}": value[:, None] for name, value in made.items()},
        }

    def unpacked(self, which: str, memory: Mapping[str, Tensor]) -> Tensor:
        """The rows [B, G, L, D] that are kept, keys before they are turned, in float32."""
        planes = [memory[f"{which}_code{number}"] for number in range(len(PLANES[self.config.bits]))]
        kept = {"code": lines_of(codes_of_planes(planes, PLANES[self.config.bits]))}
        names = ("outlier", "number", *(("offset", "reach") if which == "v" else ()))
        kept |= {name: memory[f"{which}_{name}"][:, 0] for name in names if f"{which}_{name}" in memory}
        rows = self._heads(self.tables.restored(which, kept))
        if not self.config.first:
            return rows
        slot = torch.arange(rows.shape[2], device=rows.device)
        first = cast(memory[f"{which}_first"], torch.float32)
        exact = first.index_select(2, slot.clamp(max=self.config.first - 1))
        return torch.where((slot < self.config.first)[:, None], exact, rows)

    def _heads(self, lines: Tensor) -> Tensor:
        """Lines [B, T, G * D] as rows of KV heads [B, G, T, D]."""
        return torch.unflatten(lines, 2, (self.layer.groups, -1)).transpose(1, 2)

    def _first(self, first: Tensor, new: Tensor, reading: NewEntries) -> Tensor:
        """The first tokens with those of this run among them."""
        token = torch.arange(first.shape[2], device=first.device) - reading.lengths[ROWS][:, None]
        comes = (token >= 0) & (token < reading.count[:, None])
        place = token.clamp(min=0, max=new.shape[2] - 1)[:, None, :, None].expand(-1, new.shape[1], -1, new.shape[3])
        return torch.where(comes[:, None, :, None], cast(new.gather(2, place), first.dtype), first)


PLANES: Mapping[int, tuple[int, ...]] = {4: (4,), 3: (2, 1), 2: (2,)}
"""Bits of the parts that a code of so many bits is kept in."""


class KvTables(torch.nn.Module):
    """Ranges and levels of one layer, and what they make of lines of tokens.

    Attributes:
        apart: Outliers that a token has at most on each side, of keys and of values.
    """

    upper: Tensor
    lower: Tensor

    def __init__(self, config: KvQuantConfig, found: Mapping[str, Tensor]) -> None:
        super().__init__()
        width = found["upper"].shape[0]
        self.apart = apart_of(width, config)
        self._scales, self._by_distance = getattr(torch, config.scales), config.apart == "distance"
        for name in ("upper", "lower"):
            self.register_buffer(name, found[name], persistent=False)
        for which in "kv":
            levels = found[f"{which}_signposts"]
            self.register_buffer(f"{which}_levels", table_codebook(levels, width), persistent=False)
            if config.normalize if config.normalize is not None else config.bits == 2:
                factor, offset = found[f"{which}_moments"]
                levels = levels * factor + offset
            self.register_buffer(f"{which}_means", table_codebook(levels, width), persistent=False)

    def kept(self, which: str, lines: Tensor) -> dict[str, Tensor]:
        """What is kept of keys or values [B, T, C] in float32: `code`; `outlier` and `number`; `offset` and `reach`."""
        made, apart = dict[str, Tensor](), self.apart["kv".index(which)]
        numbers: Tensor | None = None
        if which == "k":
            offset, reach = (self.upper + self.lower) / 2, (self.upper - self.lower) / 2
            if apart:
                far_first = (lines - offset) / reach.clamp(min=_SMALL) if self._by_distance else lines
                numbers = outliers_of(far_first, apart)
                far = cast((lines > self.upper) | (lines < self.lower), torch.float32)
                made["outlier"] = lines.gather(2, numbers)
                made["number"] = torch.where(far.gather(2, numbers) > 0, numbers, -1)
        else:
            if apart:
                numbers = outliers_of(lines, apart)
            offset, reach = (cast(each, self._scales) for each in range_of(lines, numbers))
            made |= {"offset": offset, "reach": reach}
            offset, reach = cast(offset, torch.float32), cast(reach, torch.float32)
            if numbers is not None:
                made |= {"outlier": lines.gather(2, numbers), "number": numbers}
        away = lines - offset
        scaled = torch.where(reach > 0, away / torch.where(reach > 0, reach, 1.0), torch.zeros_like(away))
        made["code"] = codebook_encode(scaled, getattr(self, f"{which}_levels"), kind="table")
        return made

    def restored(self, which: str, kept: Mapping[str, Tensor]) -> Tensor:
        """The lines [B, T, C] that it stands for, in float32."""
        levels = codebook_decode(kept["code"], getattr(self, f"{which}_means"), kind="table")
        if which == "k":
            offset, reach = (self.upper + self.lower) / 2, (self.upper - self.lower) / 2
        else:
            offset, reach = (cast(kept[name], torch.float32) for name in ("offset", "reach"))
        lines = levels * reach + offset
        if "number" not in kept:
            return lines
        return put(lines, cast(kept["number"], torch.int64), cast(kept["outlier"], torch.float32))


def apart_of(width: int, config: KvQuantConfig) -> tuple[int, int]:
    """Outliers of a token of so many channels on each side at most, of keys and of values: of keys the share, rounded
    up; of values all at and beyond the percentiles, between which it is interpolated."""
    if not config.outliers:
        return 0, 0
    share = config.outliers / 2
    return math.ceil(width * share), width - math.ceil((width - 1) * (1 - share) - 1e-9)


def put(lines: Tensor, numbers: Tensor, values: Tensor) -> Tensor:
    """Lines [B, T, C] with values at numbers [B, T, S]; a number that no entry has is none."""
    width = lines.shape[2]
    wider = torch.cat([lines, torch.zeros_like(lines[..., :1])], dim=2)
    places = torch.where((numbers < 0) | (numbers > width), width, numbers)
    return wider.scatter(2, places, values)[..., :width]


def is_apart(lines: Tensor, numbers: Tensor) -> Tensor:
    """Which entries of lines [B, T, C] are numbered."""
    return put(torch.zeros_like(lines), numbers, torch.ones_like(cast(numbers, lines.dtype))) > 0


def range_of(lines: Tensor, numbers: Tensor | None) -> tuple[Tensor, Tensor]:
    """Middle and half width of what each line [B, T, C] is without those that are numbered, [B, T, 1] each."""
    high = low = lines
    if numbers is not None:
        apart = is_apart(lines, numbers)
        high, low = torch.where(apart, -_FAR, lines), torch.where(apart, _FAR, lines)
    most, least = high.amax(dim=2, keepdim=True), low.amin(dim=2, keepdim=True)
    return (most + least) / 2, (most - least) / 2


def tables_of(tensors: Mapping[str, Tensor], where: str, config: KvQuantConfig) -> dict[str, Tensor]:
    """The tensors of a calibration, in float32.

    Raises:
        ConfigError: Some are missing, too many, misshaped, not finite, or do not ascend.
    """
    layers, width = tuple(tensors["upper"].shape) if "upper" in tensors and tensors["upper"].ndim == 2 else (0, 0)
    sizes = {"upper": width, "lower": width, "k_moments": 2, "v_moments": 2}
    fits = sorted(tensors) == sorted(_TENSORS) and all(
        tensor.is_floating_point() and tuple(tensor.shape) == (layers, sizes.get(name, 2**config.bits))
        for name, tensor in tensors.items()
    )
    if not fits or not layers:
        has = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in sorted(tensors.items())) or "no tensors"
        raise ConfigError(
            f"kvquant: {where} has {has}; tables are `upper` and `lower` [layers, channels], `k_signposts` and "
            f"`v_signposts` [layers, {2**config.bits}] and `k_moments` and `v_moments` [layers, 2], in floating point."
        )
    found = {name: tensor.float() for name, tensor in tensors.items()}
    rising = all(bool((found[f"{which}_signposts"].diff(dim=1) >= 0).all()) for which in "kv")
    if not rising or not all(bool(each.isfinite().all()) for each in found.values()):
        raise ConfigError(
            f"kvquant: {where} holds numbers that are not finite, or signposts that do not ascend; make it again with "
            "`trt-compress calibrate`."
        )
    if not bool((found["upper"] >= found["lower"]).all()):
        raise ConfigError(
            f"kvquant: {where} has channels whose upper end is below the lower one; make it again with `trt-compress "
            "calibrate`."
        )
    return found
