"""What every method says of itself, and what the options of several methods share."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from trt_compress.errors import ConfigError
from trt_compress.methods.artifact import ArtifactFile, ArtifactForm

Kind = Literal["token compressor", "selector", "store", "reader"]
"""What a method is: one that changes tokens, or one of the three kinds of cache policy."""

Provenance = Literal["code", "paper", "reconstruction"]
"""What a method was written from: the authors' code, the paper alone, or summaries, filled up by us."""

CACHE_KINDS: tuple[Kind, ...] = ("selector", "store", "reader")


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressorConfig:
    """Options of a compressor; JSON-able, checked when made."""

    def to_json(self) -> dict[str, Any]:
        """Options as plain JSON values."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: _plain(value) for name, value in values.items()}

    @property
    def artifacts(self) -> dict[str, ArtifactFile]:
        """The options that name artifacts, those that are given."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, ArtifactFile)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One paper's method, as a listing shows it and a spec string names it.

    Attributes:
        name: The name in spec strings.
        summary: One sentence for listings.
        source: Paper and code.
        differs: What is done otherwise than in the source, and why.
        config: The class of its options.
        implementation: `module:Class` that computes it, below this package.
        artifacts: What the options of type ArtifactFile take, by their names.
        kind: What it is.
        provenance: What it was written from.
    """

    name: str
    summary: str
    source: str
    differs: str
    config: type[CompressorConfig]
    implementation: str
    kind: Kind = "token compressor"
    provenance: Provenance = "code"
    artifacts: Mapping[str, ArtifactForm] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepRatioConfig(CompressorConfig):
    """Options of a method that drops a share of the patches at a few layers.

    Attributes:
        keep_ratio: Share of the patches kept at each layer, rounded up; one, or one a layer.
        layers: Layers after whose attention patches are dropped, ascending; default: at 1/4, 2/4 and 3/4 of the depth
            (3, 6, 9 of 12).
    """

    method: ClassVar[str]
    keep_ratio: float | tuple[float, ...] = 0.7
    layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        ratios = self.keep_ratio if isinstance(self.keep_ratio, tuple) else (self.keep_ratio,)
        for ratio in ratios:
            if not 0 < ratio <= 1:
                raise ConfigError(
                    f"{self.method}: keep_ratio={ratio} is out of range; it is the share of tokens kept, above 0 and "
                    "up to 1."
                )
        check_pairs(self.method, "keep_ratio", self.keep_ratio, self.layers)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value.path if isinstance(value, ArtifactFile) else value


def check_pairs(method: str, option: str, values: Any, layers: Sequence[int] | None) -> None:
    """Hold a list of layers, and the list of ratios that goes with it, against what they must be.

    Args:
        method: Name of the method, for messages.
        option: Name of the option that gives one ratio for all layers, or a list with one a layer.
        values: Its value.
        layers: The option `layers`; None: the method's own.

    Raises:
        ConfigError: a layer is below 0 or stands twice, layers do not ascend, or there is not one ratio for each.
    """
    several = isinstance(values, tuple)
    if layers is not None:
        check_ascending(method, layers, f", and {option} in the same order" if several else "")
    if several and (layers is None or len(layers) != len(values)):
        raise ConfigError(
            f"{method}: {option} lists {len(values)} ratio{'s'[: len(values) > 1]}; give layers= with as many layers, "
            "ascending."
        )


def check_ascending(method: str, layers: Sequence[int], along: str = "") -> None:
    """Hold a list of layers against what it must be.

    Args:
        method: Name of the method, for messages.
        layers: The option `layers`.
        along: What else to write in another order, for the sentence that says so.

    Raises:
        ConfigError: a layer is below 0 or stands twice, or layers do not ascend.
    """
    if wrong := [layer for layer in layers if layer < 0]:
        raise ConfigError(f"{method}: layers={list(layers)} names layer {wrong[0]}; layers count from 0.")
    if len(set(layers)) != len(layers):
        raise ConfigError(f"{method}: layers={list(layers)} names a layer twice; name each once.")
    if list(layers) != sorted(layers):
        raise ConfigError(
            f"{method}: layers={list(layers)} does not ascend; write layers={list(sorted(layers))}{along}."
        )


def check_layer(method: str, layer: int | None) -> None:
    """Raise ConfigError if the option `layer` is below 0."""
    if layer is not None and layer < 0:
        raise ConfigError(f"{method}: layer={layer} is out of range; layers count from 0.")
