"""How INT8 is asked for: when the ranges of what is multiplied are found, and by which method."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trt_compress.errors import ConfigError
from trt_compress.foreign import shown

INT8 = "int8"
"""The precision of a graph whose layers with weights multiply whole numbers of 8 bits."""

STATIC, DYNAMIC = "static", "dynamic"
METHODS = ("minmax", "entropy", "percentile")
_ADVICE = "give a folder of pictures or sounds, or an .npz file of arrays by the names of the inputs"
LEAST_SHARE = 0.9
"""Of the layers with weights, the share that must run in INT8 where nobody says another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8Form:
    """When and how the ranges of activations are found; those of weights come from the weights, one for each channel.

    Attributes:
        way: "static": from samples, before the graph is deployed; "dynamic": from each input, as it runs.
        method: Of static ranges, one of `METHODS`; "" of dynamic ones.
    """

    way: str = STATIC
    method: str = METHODS[0]

    @classmethod
    def parse(cls, text: str) -> "Int8Form":
        """Read `dynamic`, `static` or `static:METHOD`.

        Raises:
            ConfigError: It is none of these.
        """
        way, colon, method = text.strip().lower().partition(":")
        if way == DYNAMIC and not colon:
            return cls(way=DYNAMIC, method="")
        if way == STATIC and (method in METHODS if colon else True):
            return cls(way=STATIC, method=method or METHODS[0])
        raise ConfigError(
            f"int8 '{text}' is no way to INT8; give dynamic, which needs no data, or static or static:METHOD with one "
            f"of {', '.join(METHODS)}."
        )

    def __str__(self) -> str:
        return f"{self.way}:{self.method}" if self.method else self.way


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepPrecision:
    """Which layers with weights stay in floating point: those whose quantization was measured to cost most.

    Attributes:
        most: So many, the costliest; None: those that stand out, as far as the share that must run in INT8 lets them.
    """

    most: int | None = None

    @classmethod
    def parse(cls, text: str) -> "KeepPrecision":
        """Read `auto` or `auto:N`.

        Raises:
            ConfigError: It is neither.
        """
        way, colon, most = text.strip().lower().partition(":")
        if way == "auto" and not colon:
            return cls()
        if way == "auto" and most.isdecimal() and 0 < len(most) < 7 and int(most):
            return cls(most=int(most))
        raise ConfigError(
            f"keep_precision '{shown(text)}' is no way to choose layers; give auto, which keeps those in floating "
            "point whose quantization costs most, or auto:N, which keeps N of them."
        )

    def __str__(self) -> str:
        return "auto" if self.most is None else f"auto:{self.most}"


def parse_rest(text: str) -> str:
    """Read the floating point of what is not in INT8.

    Raises:
        ConfigError: It is none that ranges can be found beside.
    """
    rest = text.strip().lower()
    if rest in ("fp32", "fp16"):
        return rest
    why = "; ranges are found in ONNX Runtime on the CPU, which computes nothing in bf16" if rest == "bf16" else ""
    raise ConfigError(f"int8_rest '{shown(text)}' cannot stand beside INT8{why}; give fp32 or fp16.")


def parse_share(text: str) -> float:
    """Read a share, 0 to 1.

    Raises:
        ConfigError: It is none.
    """
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise ConfigError(f"int8_share '{text}' is no share; give a number from 0 to 1, as 0.9, or 0 to allow any.")
    return share


def least_share(recipe: Mapping[str, Any]) -> float:
    """Of the layers with weights, the share that must run in INT8, as the recipe in a bundle says it."""
    return parse_share(str(recipe.get("int8_share", LEAST_SHARE)))


def check_samples(path: Path) -> None:
    """Refuse what is neither a folder nor an .npz file, before anything is loaded.

    Raises:
        ConfigError: It is not.
    """
    if path.is_dir():
        return
    if not path.exists():
        raise ConfigError(f"--calibrate: '{shown(str(path))}' is not there; {_ADVICE}.")
    if path.suffix.lower() != ".npz":
        raise ConfigError(f"--calibrate: '{shown(str(path))}' is neither a folder nor an .npz file; {_ADVICE}.")
