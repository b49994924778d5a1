"""Rotary positions as a model's config.json says them, read without torch: the kind, and the numbers that it needs.

Source: RoFormer, arXiv:2104.09864; linear, arXiv:2306.15595; yarn, arXiv:2309.00071; longrope, arXiv:2402.13753; the
    keys `rope_theta`, `rope_scaling`, `rope_parameters` and `partial_rotary_factor` of transformers' config.json.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from trt_compress.errors import ConfigError, UnsupportedError
from trt_compress.suggest import not_known

KINDS: Mapping[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": (
        "factor",
        "original_max_position_embeddings",
        "attention_factor",
        "beta_fast",
        "beta_slow",
        "mscale",
        "mscale_all_dim",
        "truncate",
    ),
    "longrope": ("short_factor", "long_factor", "factor", "attention_factor", "original_max_position_embeddings"),
    "factors": ("factors",),
}
"""Each kind with what it reads. "factors" divides every frequency by a number of its own, as the tensor `rope_freqs` of
a GGUF file does; the others are those of transformers."""

_ALWAYS = ("rope_type", "type", "rope_theta", "partial_rotary_factor")


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeForm:
    """How queries and keys are turned by their positions.

    Attributes:
        kind: One of `KINDS`.
        theta: Base of the frequencies.
        channels: Channels of a head that are turned, from the front; the others stay as they are.
        limit: Positions that the model was made for.
        factor: By how much positions are stretched.
        original: Positions that it was trained for before they were stretched.
        gain: What cosines and sines are multiplied by.
        low, high: llama3: wavelengths above `original / low` are stretched, those below `original / high` are not.
        fast, slow: yarn: rotations over `original` positions between which stretching begins.
        truncate: yarn: the borders are rounded to whole channels.
        factors: By which each of the frequencies is divided; longrope: up to `original` positions.
        long_factors: longrope: the same beyond.
    """

    kind: str = "default"
    theta: float
    channels: int
    limit: int
    factor: float = 1.0
    original: int = 0
    gain: float = 1.0
    low: float = 1.0
    high: float = 1.0
    fast: float = 32.0
    slow: float = 1.0
    truncate: bool = True
    factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()

    def at(self, context: int) -> "RopeForm":
        """The form for sequences of up to `context` tokens.

        Frequencies of the kinds dynamic and longrope depend on how long a sequence is. Keys in a cache cannot be turned
        again when it grows, and a prompt must be the same in chunks of any size: so they are those of the longest
        sequence that there may be.
        """
        if self.kind == "longrope":
            chosen = self.long_factors if context > self.original else self.factors
            return replace(self, kind="factors", factors=chosen, long_factors=())
        if self.kind == "dynamic" and context > self.original:
            stretched = self.factor * context / self.original - (self.factor - 1)
            theta = self.theta * stretched ** (self.channels / (self.channels - 2))
            return replace(self, kind="default", theta=theta)
        return replace(self, kind="default") if self.kind == "dynamic" else self


def read_rope(
    scaling: Mapping[str, Any] | None,
    *,
    theta: float,
    partial: float,
    head_dim: int,
    positions: int,
    original: int | None,
    where: str,
) -> RopeForm:
    """Read one object of `rope_scaling` or `rope_parameters`.

    Args:
        scaling: The object; None: the kind "default".
        theta: Base, where the object has none.
        partial: The part of a head that is turned, where the object does not say it.
        head_dim: Channels of a head.
        positions: `max_position_embeddings`.
        original: `original_max_position_embeddings` beside it, which counts more than the object's own.
        where: The model and the key, for messages.

    Raises:
        UnsupportedError: A kind that is not known, or a key that this kind has not.
        ConfigError: A number is missing or out of range.
    """
    given = {key: value for key, value in (scaling or {}).items() if value is not None}
    kind = given.get("rope_type", given.get("type", "default"))
    if kind not in KINDS:
        raise UnsupportedError(not_known(f"{where}: rope_type", str(kind), KINDS))
    reads = {*_ALWAYS, *(key for keys in KINDS.values() for key in keys)} if kind == "default" else KINDS[kind]
    unknown = [key for key, value in given.items() if key not in (*_ALWAYS, *reads) and value is not False]
    if unknown:
        raise UnsupportedError(
            f"{where}: rope_type '{kind}' with {unknown[0]} = {str(given[unknown[0]])[:60]} is not supported; it reads "
            f"{', '.join((*_ALWAYS, *KINDS[kind]))}."
        )
    numbers = _Numbers(given, where)
    theta = numbers.read("rope_theta", theta, above=1)
    partial = numbers.read("partial_rotary_factor", partial, above=0)
    channels = int(head_dim * partial)
    if not 2 <= channels <= head_dim or channels % 2:
        raise ConfigError(
            f"{where}: {channels} of {head_dim} channels of a head would be turned (partial_rotary_factor "
            f"{partial:g}); an even number of them can be."
        )
    form = RopeForm(kind=kind, theta=theta, channels=channels, limit=positions, original=positions)
    if kind == "default":
        return form
    if kind == "factors":
        return replace(form, factors=numbers.several("factors", channels // 2))
    trained = original or int(numbers.read("original_max_position_embeddings", positions, above=1))
    if kind == "longrope":
        return _longrope(replace(form, original=trained), numbers, channels // 2)
    form = replace(form, factor=numbers.read("factor", above=0))
    if kind == "dynamic":
        return replace(form, limit=int(positions * form.factor))
    if kind == "llama3":
        low, high = (numbers.read(f"{end}_freq_factor", above=0) for end in ("low", "high"))
        if high <= low:
            raise ConfigError(f"{where}: high_freq_factor {high:g} is not above low_freq_factor {low:g}.")
        return replace(form, low=low, high=high, original=trained)
    return form if kind == "linear" else _yarn(replace(form, original=trained), numbers)


class _Numbers:
    """Numbers of one object, each checked when it is read."""

    def __init__(self, given: Mapping[str, Any], where: str) -> None:
        self._given, self._where = given, where

    def read(self, key: str, default: float | None = None, *, above: float) -> float:
        """A number that is larger than `above`."""
        value = self._given.get(key, default)
        if value is None:
            raise ConfigError(f"{self._where}: {key} is missing; copy or download config.json again.")
        if isinstance(value, bool) or not isinstance(value, int | float) or not above < value < math.inf:
            raise ConfigError(f"{self._where}: {key} = {str(value)[:60]} is not a number above {above:g}.")
        return float(value)

    def optional(self, key: str) -> float | None:
        """A number above 0, or None if it is not there."""
        return self.read(key, above=0) if self._given.get(key) else None

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self._given.get(key, default)
        if not isinstance(value, bool):
            raise ConfigError(f"{self._where}: {key} = {str(value)[:60]} is not true or false.")
        return value

    def several(self, key: str, count: int) -> tuple[float, ...]:
        """So many numbers above 0."""
        values = self._given.get(key)
        if not isinstance(values, list) or len(values) != count:
            has = f"has {len(values)} numbers" if isinstance(values, list) else "is missing or no list"
            raise ConfigError(f"{self._where}: {key} {has}; there is one for each of the {count} pairs of channels.")
        return tuple(_Numbers({key: value}, self._where).read(key, above=0) for value in values)


def _longrope(form: RopeForm, numbers: _Numbers, count: int) -> RopeForm:
    factor = numbers.optional("factor") or form.limit / form.original
    gain = numbers.optional("attention_factor")
    if gain is None:
        gain = math.sqrt(1 + math.log(factor) / math.log(form.original)) if factor > 1 else 1.0
    short, long = (numbers.several(f"{name}_factor", count) for name in ("short", "long"))
    return replace(form, factor=factor, gain=gain, factors=short, long_factors=long)


def _yarn(form: RopeForm, numbers: _Numbers) -> RopeForm:
    gain = numbers.optional("attention_factor")
    if gain is None:
        part, whole = numbers.optional("mscale"), numbers.optional("mscale_all_dim")
        both = part is not None and whole is not None
        gain = _mscale(form.factor, part or 1) / (_mscale(form.factor, whole or 1) if both else 1)
        gain = gain if both else _mscale(form.factor, 1)
    return replace(
        form,
        gain=gain,
        fast=numbers.optional("beta_fast") or 32.0,
        slow=numbers.optional("beta_slow") or 1.0,
        truncate=numbers.flag("truncate", True),
        limit=max(form.limit, int(form.original * form.factor)),
    )


def _mscale(factor: float, weight: float) -> float:
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0
