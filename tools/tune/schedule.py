"""Schedules: how many tokens are left behind each layer, and the spec strings that say so for each method."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trt_compress.errors import ConfigError
from trt_compress.methods import METHODS, CompressorSpec, KeepRatioConfig, parse_spec, spec_string
from trt_compress.suggest import not_known

_KNOBS: Mapping[str, tuple[str, ...]] = {
    "num_merged": ("num_merged", "schedule"),
    "kept": ("table", "prune_kept", "merge_kept"),
    "keep_ratio": ("keep_ratio", "layers"),
}
"""How a method is told what is left behind each layer → the options that say it."""
FLOOR = "random"
_LEFT = (0.75, 0.5, 0.3)  # shares of the tokens that are left at the end


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What a schedule needs to know of a model: tokens that come in, those that stay (prefix), layers."""

    tokens: int
    prefix: int
    layers: int

    @property
    def most(self) -> int:
        """Tokens that one layer may remove in a search."""
        return max(1, (self.tokens - self.prefix) // 5)


def knob_of(name: str) -> str | None:
    """How a method is told what is left behind each layer; None: it has no such option."""
    config = METHODS[name].config
    options = {field.name for field in dataclasses.fields(config)}
    if name == FLOOR:
        return None
    if issubclass(config, KeepRatioConfig):
        return "keep_ratio"
    return next((knob for knob in ("num_merged", "kept") if set(_KNOBS[knob]) <= options), None)


def tunable() -> tuple[str, ...]:
    """Methods whose schedule can be searched."""
    return tuple(name for name in METHODS if knob_of(name) is not None)


def methods_from(texts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The methods that are asked for: as typed → the options that stay as they are given.

    Raises:
        ConfigError: An unknown name, a method without a schedule, or an option that the search sets.
    """
    found: dict[str, dict[str, Any]] = {}
    for text in texts:
        name, _, rest = text.strip().partition(":")
        if "+" in text:
            raise ConfigError(f"--compress '{text}' joins several methods; tune takes one each: repeat --compress.")
        if name == FLOOR:
            raise ConfigError("--compress random is measured beside every setting anyway; name a method, or none.")
        if name not in METHODS:
            raise ConfigError(not_known("compressor", name, METHODS))
        knob = knob_of(name)
        if knob is None:
            raise ConfigError(
                f"--compress {name}: it has no count for each layer that could be searched; tune takes "
                f"{', '.join(tunable())}. `trt-compress sweep` measures settings of the others."
            )
        own = [part.partition("=")[0].strip() for part in rest.split(",") if part]
        if taken := [option for option in own if option in _KNOBS[knob]]:
            raise ConfigError(
                f"--compress '{text}': tune finds {taken[0]} itself; give '{name}' alone, or measure settings of your "
                "own with `trt-compress sweep`."
            )
        probe = parse_spec(text if knob == "keep_ratio" else f"{name}:{','.join(filter(None, [_PROBES[knob], rest]))}")
        defaults = {field.name: field.default for field in dataclasses.fields(probe[0].config)}
        said = {field: getattr(probe[0].config, field) for field in defaults if field not in _KNOBS[knob]}
        found[text.strip()] = {field: value for field, value in said.items() if value != defaults[field]}
    return found


_PROBES = {"num_merged": "num_merged=1", "kept": "prune_kept=[2],merge_kept=[2]"}


def left_behind(shape: Shape, removed: Sequence[int]) -> tuple[int, ...]:
    """Tokens behind each layer where so many are asked to leave: at most half of the patches of a layer do."""
    found, tokens = [], shape.tokens
    for count in removed:
        tokens -= min(count, (tokens - shape.prefix) // 2)
        found.append(tokens)
    return tuple(found)


def spec_of(name: str, options: Mapping[str, Any], shape: Shape, left: Sequence[int]) -> str:
    """The spec string of a method that leaves so many tokens behind each layer."""
    before = (shape.tokens, *left[:-1])
    pairs = list(zip(before, left, strict=True))
    given: dict[str, Any]
    match knob_of(name):
        case "num_merged":
            given = {"num_merged": tuple(old - new for old, new in pairs)}
        case "kept":
            pruned = tuple(old - (old - new) // 2 for old, new in pairs)
            given = {"prune_kept": pruned, "merge_kept": tuple(left)}
        case _:
            acting = [layer for layer, (old, new) in enumerate(pairs) if new < old]
            # Half a token less, so that rounding up gives the count whatever the ratio's last digit is.
            ratios = [round((left[at] - shape.prefix - 0.5) / (before[at] - shape.prefix), 6) for at in acting]
            given = {"keep_ratio": tuple(ratios), "layers": tuple(acting)}
    config = METHODS[name].config(**{**options, **given})
    return spec_string((CompressorSpec(name=name, config=config),))


def starts(shape: Shape) -> list[tuple[int, ...]]:
    """Schedules that a search begins with, as tokens that leave at each layer: constant, falling and rising."""
    found = []
    for share in _LEFT:
        mean = (shape.tokens - shape.prefix) * (1 - share) / shape.layers
        found.append(_spread([mean] * shape.layers, shape))
    mean = (shape.tokens - shape.prefix) / 2 / shape.layers
    ramp = [2 * mean * (layer + 0.5) / shape.layers for layer in range(shape.layers)]
    return list(dict.fromkeys([*found, _spread(ramp[::-1], shape), _spread(ramp, shape)]))


def _spread(rates: Sequence[float], shape: Shape) -> tuple[int, ...]:
    """Whole numbers with the same running sum, none above what a search may ask of a layer."""
    found, owed = [], 0.0
    for rate in rates:
        owed += rate
        count = min(math.floor(owed + 0.5), shape.most)
        owed -= count
        found.append(count)
    return tuple(found)
