"""What an export is made from, as a file: model, weights, compressors, targets, batch, precision, opset."""

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from trt_compress.errors import ConfigError
from trt_compress.export.ranges import BatchRange, LengthRange
from trt_compress.export.targets import PRECISIONS, get_target, newest_common_opset
from trt_compress.files import read_regular
from trt_compress.methods import CompressorSpec, parse_spec, spec_from_table, spec_string
from trt_compress.model_name import with_absolute_path
from trt_compress.suggest import did_you_mean

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_KEYS: dict[str, tuple[type, bool, str]] = {  # of a recipe: the type of its value, or of the items of a list
    "model": (str, False, "a text"),
    "model_sha256": (str, False, "a text"),
    "weights": (str, False, "a text"),
    "weights_sha256": (str, False, "a text"),
    "targets": (str, True, "a list of names"),
    "batch": (str, False, "a text like 1:4:8"),
    "lengths": (dict, False, 'a table like time = "1:100:400"'),
    "precision": (str, False, "a text"),
    "opset": (int, False, "a whole number"),
    "compressors": (dict, True, "a list of tables"),
}
OLDEST_OPSET = 18  # the bodies of operators need its reductions with axes as inputs


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything an export depends on.

    Attributes:
        model: A name as `trt_compress.model_name` reads it; a path in it is absolute.
        model_sha256: What the file of `FILE.py:FACTORY` must be; None: whatever is there. Written into every bundle.
        weights: A file, "pretrained", or None for the model's own or random ones.
        weights_sha256: What they must be; None: whatever is there. Written into every bundle.
        compressors: In the order in which they share sites.
        targets: Names of targets.
        batch: Smallest, usual and largest batch.
        lengths: The same for other symbols of the model's shapes; those that are not named are the model's own.
        precision: fp32 or fp16.
        opset: ONNX opset.
    """

    model: str
    model_sha256: str | None = None
    weights: str | None = None
    weights_sha256: str | None = None
    compressors: tuple[CompressorSpec, ...] = ()
    targets: tuple[str, ...] = ("cpu",)
    batch: BatchRange = BatchRange(min=1, opt=4, max=8)
    lengths: Mapping[str, LengthRange] = field(default_factory=dict)
    precision: str = "fp32"
    opset: int = newest_common_opset()

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ConfigError(f"precision '{self.precision}' is not known; give one of {', '.join(PRECISIONS)}.")
        targets = [get_target(name) for name in self.targets]
        for target in targets:
            if self.precision not in target.precisions:
                raise ConfigError(
                    f"precision {self.precision} is not offered by {target.name}; it has "
                    f"{', '.join(target.precisions)}."
                )
        newest = newest_common_opset(targets) if targets else self.opset
        if not OLDEST_OPSET <= self.opset <= newest:
            raise ConfigError(
                f"opset {self.opset} is out of range; {', '.join(self.targets) or 'this version'} takes "
                f"{OLDEST_OPSET} to {newest}."
            )
        for name, value in (("weights_sha256", self.weights_sha256), ("model_sha256", self.model_sha256)):
            if value is not None and not re.fullmatch("[0-9a-f]{64}", value):
                raise ConfigError(f"{name} '{value}' is not a hash; give 64 hexadecimal digits, or leave it out.")

    @property
    def spec(self) -> str:
        """The compressors as a spec string."""
        return spec_string(self.compressors)

    def to_json(self) -> dict[str, Any]:
        """The content of the recipe file."""
        files = {"model_sha256": self.model_sha256, "weights": self.weights, "weights_sha256": self.weights_sha256}
        compressors = [{"name": c.name, **_without_none(c.config.to_json())} for c in self.compressors]
        return {
            "model": self.model,
            **_without_none(files),
            "targets": list(self.targets),
            "batch": str(self.batch),
            **({"lengths": {name: str(length) for name, length in self.lengths.items()}} if self.lengths else {}),
            "precision": self.precision,
            "opset": self.opset,
            "compressors": compressors,
        }

    def to_toml(self) -> str:
        """The recipe file."""
        import tomli_w

        return tomli_w.dumps(self.to_json())


def recipe_from_options(
    model: str,
    *,
    compress: str | None = None,
    weights: str | None = None,
    targets: Sequence[str] | None = None,
    batch: str | None = None,
    precision: str | None = None,
    opset: int | None = None,
) -> Recipe:
    """The recipe of a command line: `model` is a name or a recipe file, and options that are given win over it.

    A file given as `weights` must still be the one that a recipe was made with, if it says which that was.
    """
    if not isinstance(model, str):
        raise ConfigError(
            f"model is of type {type(model).__name__}; give a name such as timm:NAME or zoo:NAME, or FILE.py:FACTORY "
            "for a module of your own."
        )
    if compress is not None and not isinstance(compress, str):
        raise ConfigError(
            f"compress={compress!r} is not a text; write it as 'tome:num_merged=13', several joined by '+'."
        )
    if targets is not None:
        targets = [targets] if isinstance(targets, str) else list(targets)
    named = {"weights": weights, "targets": targets, "batch": batch, "precision": precision, "opset": opset}
    for key, value in named.items():
        if value is not None:
            _check_kind(key, value, f"{key}={value!r}")
    base = read_recipe(Path(model)) if model.endswith(".toml") else Recipe(model=_model(model, None))
    given = {
        "compressors": None if compress is None else parse_spec(compress),
        "weights": weights if weights in (None, "pretrained") else str(Path(weights).absolute()),
        "targets": tuple(dict.fromkeys(targets)) if targets else None,
        "batch": None if batch is None else BatchRange.parse(batch),
        "precision": None if precision is None else precision.lower(),
        "opset": opset,
    }
    return replace(base, **{key: value for key, value in given.items() if value is not None})  # type: ignore[arg-type]


def _check_kind(key: str, value: Any, said: str) -> None:
    kind, many, words = _KEYS[key]
    items = value if many and isinstance(value, list) else [None if many else value]
    if not all(isinstance(item, kind) and not isinstance(item, bool) for item in items):
        raise ConfigError(f"{said} is not {words}.")


def read_recipe(path: Path) -> Recipe:
    """Read a recipe file.

    Raises:
        ConfigError: the file cannot be read, or holds an unknown key or a value that does not fit.
    """
    try:
        table = tomllib.loads(read_regular(path).decode())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"recipe {path} cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    except (ValueError, RecursionError) as error:  # also of a number or a nesting that Python does not read
        raise ConfigError(f"recipe {path} is not valid TOML: {error}.") from error
    return recipe_from_json(table, where=str(path), base=path.parent)


def recipe_from_json(table: Mapping[str, Any], *, where: str, base: Path | None = None) -> Recipe:
    """The recipe in a table; a relative path to weights, or in the model's name, counts from `base`."""
    for key, value in table.items():
        if key not in _KEYS:
            raise ConfigError(f"{where}: '{key}' is not known; there are {', '.join(_KEYS)}.{did_you_mean(key, _KEYS)}")
        _check_kind(key, value, f"{where}: {key} = {value!r}")
    if "model" not in table:
        raise ConfigError(f'{where}: model is missing; write model = "timm:NAME" or "zoo:NAME".')
    values = dict(table)
    if "compressors" in values:
        values["compressors"] = tuple(spec_from_table(item) for item in values["compressors"])
    if "targets" in values:
        values["targets"] = tuple(dict.fromkeys(values["targets"]))
    if "batch" in values:
        values["batch"] = BatchRange.parse(values["batch"])
    if "precision" in values:
        values["precision"] = values["precision"].lower()
    if "lengths" in values:
        values["lengths"] = {name: LengthRange.parse(name, text) for name, text in values["lengths"].items()}
    values["model"] = _model(values["model"], base)
    weights = values.get("weights")
    if weights and "\0" in weights:
        raise ConfigError(f"{where}: weights = {weights[:60]!r} holds a null character, which no path has; correct it.")
    if weights and weights != "pretrained" and base is not None:
        values["weights"] = str((base / weights).resolve())
    return Recipe(**values)


def _model(text: str, base: Path | None) -> str:
    """A model's name with the path in it absolute; one that cannot be read stays, and is refused where it is loaded."""
    try:
        return with_absolute_path(text, base)
    except ConfigError:
        return text


def _without_none(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if value is not None}
