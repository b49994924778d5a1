"""The settings of a sweep: spec strings with ranges, what fits a model, and `random` at the same budget.

A range stands where a value may: `tome:num_merged=2|4|8`; several make every combination.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from trt_compress.errors import ConfigError, ShapeError, UnsupportedError
from trt_compress.methods import METHODS, KeepRatioConfig, parse_spec, spec_string

if TYPE_CHECKING:
    from trt_compress.models.compressors.place import SitePlan
    from trt_compress.models.hosts.base import LoadedHost

Kind = Literal["dense", "asked", "random"]

_MISFIT = (ConfigError, UnsupportedError, ShapeError)
_RATIOS, _RATIOS_ONCE, _STRIDES, _MERGES = (0.9, 0.7, 0.5), (0.75, 0.5, 0.25), (2, 3, 4), (0.1, 0.3, 0.5)
_LEFT = (0.75, 0.5, 0.3)  # shares of the tokens that are left at the end, where a count a layer is merged


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One thing to export.

    Attributes:
        spec: Spec string.
        kind: The uncompressed model, what was asked for, or `random` with as many tokens.
        beside: The spec strings whose counterpart a `random` is.
    """

    spec: str
    kind: Kind
    beside: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a sweep exports, and what it cannot.

    Attributes:
        settings: Dense first.
        misfits: Settings that do not fit the model, with the reason.
        alone: Settings without a `random` beside them, with the reason.
    """

    settings: tuple[Setting, ...]
    misfits: tuple[tuple[str, str], ...]
    alone: tuple[tuple[str, str], ...]


def expand(text: str) -> tuple[str, ...]:
    """Spec strings that a spec string with ranges stands for, each as the product writes it.

    Raises:
        ConfigError: It cannot be read, or a value is wrong.
    """
    parts: list[list[str]] = []
    literal, value, depth, inside = "", [""], 0, False
    for sign in text:
        depth += (sign == "[") - (sign == "]")
        if inside and depth == 0 and sign == "|":
            value.append("")
        elif inside and depth == 0 and sign in ",+":
            parts += [[literal], value]
            literal, value, inside = sign, [""], False
        elif inside:
            value[-1] += sign
        elif sign == "|":
            raise ConfigError(f"spec '{text}' has a '|' where no value stands; write a range as name:key=2|4|8.")
        else:
            literal += sign
            inside = sign == "="
    parts += [[literal], value] if inside else [[literal]]
    if any(not choice.strip() for part in parts[1::2] for choice in part):
        raise ConfigError(f"spec '{text}' has an empty value; write a range as name:key=2|4|8.")
    found = (spec_string(parse_spec("".join(choice))) for choice in itertools.product(*parts))
    return tuple(dict.fromkeys(found))


def expand_all(texts: Sequence[str]) -> tuple[str, ...]:
    """All settings of several spec strings with ranges, without `none` and each once.

    Raises:
        ConfigError: One cannot be read.
    """
    found = dict.fromkeys(spec for text in texts for spec in expand(text))
    found.pop("none", None)
    return tuple(found)


def check_limits(*, max_drop: float, warmup: int) -> None:
    """Refuse what makes no sense.

    Raises:
        ConfigError: A number is out of range.
    """
    if not 0 <= max_drop <= 100:
        raise ConfigError(f"max_drop={max_drop:g}; give points from 0 to 100.")
    if warmup < 0:
        raise ConfigError(f"warmup={warmup}; give 0 or more.")


def plan_sweep(host: "LoadedHost", specs: Sequence[str], *, random: bool = True) -> Plan:
    """Find out which settings fit a model.

    Args:
        host: The model.
        specs: Spec strings; none: every method that fits, at three levels.
        random: Put `random` with as many tokens beside each.
    """
    misfits: list[tuple[str, str]] = []
    asked = list(specs) or _defaults(host, misfits)
    settings = [Setting(spec="none", kind="dense")]
    beside: dict[str, list[str]] = {}
    alone: list[tuple[str, str]] = []
    for spec in asked:
        try:
            plan = _sites(host, spec)
        except _MISFIT as error:
            misfits.append((spec, error.message))
            continue
        settings.append(Setting(spec=spec, kind="asked"))
        if not random or spec.partition(":")[0] == "random":
            continue
        found, reason = random_beside(host, plan)
        if found is None:
            alone.append((spec, reason))
        else:
            beside.setdefault(found, []).append(spec)
    for spec, partners in beside.items():
        if spec in {setting.spec for setting in settings}:
            place = next(index for index, setting in enumerate(settings) if setting.spec == spec)
            settings[place] = Setting(spec=spec, kind="random", beside=tuple(partners))
        else:
            settings.append(Setting(spec=spec, kind="random", beside=tuple(partners)))
    return Plan(settings=tuple(settings), misfits=tuple(misfits), alone=tuple(alone))


def random_beside(host: "LoadedHost", plan: Sequence["SitePlan"]) -> tuple[str | None, str]:
    """`random` that leaves as many tokens at each layer as a plan does; or None and the reason why there is none."""
    counts: dict[int, tuple[int, int]] = {}
    for site in plan:
        if not site.name.startswith("blocks."):
            return None, f"it acts at {site.name}, where random cannot"
        if not isinstance(site.tokens_in, int) or not isinstance(site.tokens_out, int):
            return None, "how many tokens it leaves varies with the input"
        counts[site.layer] = (counts.get(site.layer, (site.tokens_in, 0))[0], site.tokens_out)
    if not counts:
        return None, "it removes no token"
    try:
        (probe,) = _sites(host, "random:keep_ratio=0.000001,layers=[0]")  # one patch is left
        prefix = int(probe.tokens_out) - 1
        layers = sorted(counts)
        # Half a token less, so that rounding up gives the count whatever the ratio's last digit is.
        ratios = [(counts[layer][1] - prefix - 0.5) / (counts[layer][0] - prefix) for layer in layers]
        if min(ratios) <= 0:
            return None, "it leaves no patch, and random keeps one at least"
        texts = ",".join(f"{ratio:.6f}" for ratio in ratios), ",".join(map(str, layers))
        spec = spec_string(parse_spec(f"random:keep_ratio=[{texts[0]}],layers=[{texts[1]}]"))
        found = {site.layer: (site.tokens_in, site.tokens_out) for site in _sites(host, spec)}
    except _MISFIT as error:
        return None, error.message
    except ValueError:
        return None, "random removes nothing from this model"
    if found != counts:
        return None, "random cannot leave as many tokens at the same layers"
    return spec, ""


def _sites(host: "LoadedHost", spec: str) -> tuple["SitePlan", ...]:
    """What a setting does in a model; raises what says that it does not fit."""
    return tuple(site for graph in host.attach(parse_spec(spec)) for site in graph.module.plan)


def _defaults(host: "LoadedHost", misfits: list[tuple[str, str]]) -> list[str]:
    """Every method that fits a model but `random`, at three levels."""
    found: list[str] = []
    for name in METHODS:
        if name == "random":
            continue
        try:
            found += _levels(host, name)
        except _MISFIT as error:
            misfits.append((name, error.message))
    return list(dict.fromkeys(found))


def _levels(host: "LoadedHost", name: str) -> list[str]:
    config = METHODS[name].config
    options = {field.name for field in dataclasses.fields(config)}
    values: Sequence[float]
    if "num_merged" in options:
        knob = "num_merged"
        plan = _sites(host, f"{name}:num_merged=1")
        tokens = int(plan[0].tokens_in) if plan else 0
        values = [max(1, round(tokens * (1 - left) / max(1, len(plan)))) for left in _LEFT]
    elif "keep_ratio" in options:
        knob, values = "keep_ratio", _RATIOS if issubclass(config, KeepRatioConfig) else _RATIOS_ONCE
    elif "merge_ratio" in options:
        knob, values = "merge_ratio", _MERGES
    elif "stride" in options:
        knob, values = "stride", _STRIDES
    else:
        knob, values = "", ()
    specs = [spec_string(parse_spec(f"{name}:{knob}={value}")) for value in values] or [name]
    _sites(host, specs[0])  # the mildest; what does not fit of the others is listed by itself
    return specs
