"""What an export is made from, as a file: model, weights, compressors, targets, batch, numbers, opset."""

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from trt_compress.errors import ConfigError
from trt_compress.export.int8_form import INT8, LEAST_SHARE, Int8Form, KeepPrecision
from trt_compress.export.options import OPTIONS
from trt_compress.export.ranges import BatchRange, LengthRange
from trt_compress.export.targets import PRECISIONS, TARGETS, Target, get_target, newest_common_opset
from trt_compress.files import read_regular
from trt_compress.methods import CompressorSpec, spec_string
from trt_compress.models.hosts.reading import ReadingOptions
from trt_compress.models.layers.block_form import BLOCKED_OPSET, BlockForm
from trt_compress.suggest import not_known

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

BFLOAT16_OPSET = 22  # the first that has convolutions and pooling in bfloat16
OF_INT8 = ("int8", "calibrate", "int8_share", "keep_precision", "int8_rest")
"""Fields, and keywords of an export, that only precision int8 has."""
OLDEST_OPSET = 18  # the bodies of operators need its reductions with axes as inputs


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything an export depends on; `export.options` says how each is written.

    Attributes:
        model: A name as `trt_compress.model_name` reads it; a path in it is absolute.
        model_sha256: What the file of `FILE.py:FACTORY` must be; None: whatever is there. Written into every bundle.
        weights: A file, "pretrained", or None for the model's own or random ones.
        weights_sha256: What they must be; None: whatever is there. Written into every bundle.
        targets: Names of targets.
        batch: Smallest, usual and largest batch.
        lengths: The same for other symbols of the model's shapes; those that are not named are the model's own.
        precision: fp32, fp16, bf16 or int8.
        weights_bits: Form of the weights of linear layers; None: as the precision is.
        int8: Of that precision, how ranges are found; None: the default. `int8_form` says what holds.
        calibrate: The samples that static ranges and `keep_precision` are found with, a folder or an .npz file.
        int8_share: Of the layers with weights, the share that must run in INT8; None: the default.
        keep_precision: Of that precision, which layers stay in floating point; None: those that must.
        int8_rest: Of that precision, the floating point of all other nodes; None: fp32.
        context, chunk, cache_dtype: How a model that reads tokens is cut into runs; see `ReadingOptions`.
        opset: ONNX opset; 0 becomes the newest that all known targets take, or what `weights_bits` and bf16 need.
        compressors: In the order in which they share sites.
    """

    model: str
    model_sha256: str | None = None
    weights: str | None = None
    weights_sha256: str | None = None
    targets: tuple[str, ...] = ("cpu",)
    batch: BatchRange = BatchRange(min=1, opt=4, max=8)
    lengths: Mapping[str, LengthRange] = field(default_factory=dict)
    precision: str = "fp32"
    weights_bits: BlockForm | None = None
    int8: Int8Form | None = None
    calibrate: str | None = None
    int8_share: float | None = None
    keep_precision: KeepPrecision | None = None
    int8_rest: str | None = None
    context: int | None = None
    chunk: int | None = None
    cache_dtype: str | None = None
    opset: int = 0
    compressors: tuple[CompressorSpec, ...] = ()

    def __post_init__(self) -> None:
        if self.precision not in (*PRECISIONS, INT8):
            raise ConfigError(not_known("precision", self.precision, (*PRECISIONS, INT8)))
        self._check_int8()
        _ = self.reading  # which checks its values
        targets = [get_target(name) for name in self.targets]
        for target in targets:
            self._check_numbers(target)
        if not self.opset:
            wanted = BFLOAT16_OPSET if self.precision == "bf16" else newest_common_opset()
            newest = newest_common_opset(targets) if targets else wanted
            object.__setattr__(self, "opset", max(min(wanted, newest), self._oldest_opset))
        newest = newest_common_opset(targets) if targets else self.opset
        if not self._oldest_opset <= self.opset <= newest:
            needed = f", and weights_bits {self.weights_bits} needs {BLOCKED_OPSET}" if self.weights_bits else ""
            raise ConfigError(
                f"opset {self.opset} is out of range; {', '.join(self.targets) or 'this version'} takes "
                f"{OLDEST_OPSET} to {newest}{needed}."
            )
        for name, value in (("weights_sha256", self.weights_sha256), ("model_sha256", self.model_sha256)):
            if value is not None and not re.fullmatch("[0-9a-f]{64}", value):
                raise ConfigError(f"{name} '{value}' is not a hash; give 64 hexadecimal digits, or leave it out.")

    @property
    def spec(self) -> str:
        """The compressors as a spec string."""
        return spec_string(self.compressors)

    @property
    def reading(self) -> ReadingOptions:
        """How a model that reads tokens is cut into runs."""
        return ReadingOptions(context=self.context, chunk=self.chunk, cache_dtype=self.cache_dtype)

    @property
    def int8_form(self) -> Int8Form | None:
        """How INT8 is made; None: the graph is in floating point."""
        return (self.int8 or Int8Form()) if self.precision == INT8 else None

    @property
    def least_share(self) -> float:
        """Of the layers with weights, the share that must run in INT8."""
        return LEAST_SHARE if self.int8_share is None else self.int8_share

    @property
    def floats(self) -> str:
        """The floating point that the graph computes in, where it does: fp32, fp16 or bf16."""
        return (self.int8_rest or "fp32") if self.precision == INT8 else self.precision

    @property
    def numbers(self) -> str:
        """Precision, and the form of the weights where that is another: `fp16, weights in 4 bits by 32`."""
        if self.int8_form is not None:
            return f"{INT8} ({self.int8_form})" + ("" if self.floats == "fp32" else f" and {self.floats}")
        form = self.weights_bits
        return self.precision + (f", weights in {form.bits} bits by {form.group}" if form else "")

    @property
    def _oldest_opset(self) -> int:
        return BLOCKED_OPSET if self.weights_bits else OLDEST_OPSET

    def _check_int8(self) -> None:
        if self.precision != INT8:
            for name in OF_INT8:
                if getattr(self, name) is not None:
                    raise ConfigError(
                        f"{name} '{getattr(self, name)}' is for precision int8, and the precision is {self.precision}; "
                        f"give --precision int8, or leave --{name.replace('_', '-')} out."
                    )
        elif self.weights_bits is not None:
            raise ConfigError(
                f"weights_bits {self.weights_bits} and precision int8 both quantize the weights of linear layers; give "
                "one of them."
            )

    def _check_numbers(self, target: Target) -> None:
        if (form := self.int8_form) is not None:
            if form.way not in target.int8:
                others = [name for name, other in TARGETS.items() if form.way in other.int8]
                ways = " and ".join(target.int8)
                raise ConfigError(
                    f"precision int8: {target.name} computes {f'{ways} INT8 only' if ways else 'nothing in INT8'}, and "
                    f"{form.way} was asked for; give "
                    + (f"--int8 {target.int8[0]}, or " if ways else f"one of {', '.join(target.precisions[:3])}, or ")
                    + f"a target that has it: {', '.join(others)}."
                )
            self._check_rest(target)
            return
        if self.precision not in target.precisions:
            offered = [name for name in PRECISIONS if name in target.precisions]
            others = [name for name, other in TARGETS.items() if self.precision in other.precisions]
            raise ConfigError(
                f"precision {self.precision} is not offered by {target.name}; it has {', '.join(offered)}. Give one of "
                f"these, or a target that has {self.precision}: {', '.join(others)}."
            )
        if self.weights_bits and (stored := f"int{self.weights_bits.bits}") not in target.precisions:
            others = [name for name, other in TARGETS.items() if stored in other.precisions]
            raise ConfigError(
                f"weights_bits {self.weights_bits} is not offered by {target.name}; leave it out, or give a target "
                f"that has {stored}: {', '.join(others)}."
            )

    def _check_rest(self, target: Target) -> None:
        if self.floats == "fp32":
            return
        if not target.is_tensorrt:
            raise ConfigError(
                f"int8_rest {self.floats}: {target.name} computes {self.floats} beside INT8 through casts, which costs "
                "more than it saves; leave it out, or export for targets of TensorRT alone."
            )
        if self.floats not in target.precisions:
            raise ConfigError(f"int8_rest {self.floats} is not offered by {target.name}; leave it out, or give fp16.")

    def to_json(self) -> dict[str, Any]:
        """The content of the recipe file; what is not said is left out, but for the compressors."""
        said = {option.key: (option, getattr(self, option.key)) for option in OPTIONS}
        return {
            key: option.write(value)
            for key, (option, value) in said.items()
            if value is not None and (value or key != "lengths")
        }

    def to_toml(self) -> str:
        """The recipe file."""
        import tomli_w

        return tomli_w.dumps(self.to_json())


def recipe_from_options(model: str, **given: Any) -> Recipe:
    """The recipe of a command line: `model` is a name or a recipe file, and options that are given win over it.

    A file given as `weights` must still be the one that a recipe was made with, if it says which that was.

    Args:
        model: The name, or the file (`*.toml`).
        **given: The options of `export.options` by their keywords; None is as if it were not given.
    """
    if not isinstance(model, str):
        raise ConfigError(
            f"model is of type {type(model).__name__}; give a name such as timm:NAME or zoo:NAME, or FILE.py:FACTORY "
            "for a module of your own."
        )
    if given.get("targets") is not None:
        given["targets"] = [given["targets"]] if isinstance(given["targets"], str) else list(given["targets"])
    if isinstance(given.get("weights"), str | Path) and given["weights"] != "pretrained":
        given["weights"] = str(Path(given["weights"]).absolute())
    if isinstance(given.get("calibrate"), str | Path):
        given["calibrate"] = str(Path(given["calibrate"]).absolute())
    if isinstance(given.get("int8_share"), int | float):
        given["int8_share"] = str(given["int8_share"])
    options = {option.keyword: option for option in OPTIONS if option.keyword}
    found = {}
    for keyword, value in given.items():
        if value is not None:
            options[keyword].check(value, f"{keyword}={value!r}", as_option=True)
            found[options[keyword].key] = value
    read = {option.key: option.read(found[option.key], None) for option in OPTIONS if option.key in found}
    if not read.get("targets", True):
        del read["targets"]
    if model.endswith(".toml"):
        return replace(read_recipe(Path(model)), **read)
    return replace(recipe_from_json({"model": model}, where="model"), **{"opset": 0, **read})


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
    """The recipe in a table; a relative path to weights or artifacts, or in the name of a model, counts from `base`."""
    options = {option.key: option for option in OPTIONS}
    for key, value in table.items():
        if key not in options:
            raise ConfigError(not_known(f"{where}: key", key, options))
        options[key].check(value, f"{where}: {key} = {value!r}")
    if "model" not in table:
        raise ConfigError(f'{where}: model is missing; write model = "timm:NAME" or "zoo:NAME".')
    return Recipe(**{key: options[key].read(value, base) for key, value in table.items()})
