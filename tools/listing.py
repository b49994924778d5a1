"""What there is to choose from: operators, compressors, models and targets."""

import dataclasses
import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from trt_compress.foreign import needs_extra


class _Row(Protocol):
    def to_json(self) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Listed:
    name: str

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in dataclasses.asdict(self).items()
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedOperator(_Listed):
    """An operator; `native` names the libraries that are built here and hold it."""

    op_type: str
    version: int
    native: tuple[str, ...]
    summary: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedCompressor(_Listed):
    """A method, with what it is and its settings as a spec string takes them."""

    kind: str
    summary: str
    settings: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedModel(_Listed):
    """A model that can be compressed, or the form of those that lie in a file of the user's."""

    family: str
    description: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedTarget(_Listed):
    """What this version does with a target, which is less than what the device can.

    Attributes:
        exports: The precisions that a bundle for it has.
        opset: The newest ONNX opset that it takes.
        engine: Where its engine is built.
        run_by: The backend of run, bench and evaluate that runs it.
        operators: How operators run there.
    """

    exports: tuple[str, ...]
    opset: int
    engine: str
    run_by: str
    operators: str
    description: str


_R = TypeVar("_R", bound=_Row)
_SHORT = {"onnxruntime": "ort", "cuda": "cuda", "tensorrt": "trt"}  # libraries that hold a native form


def list_operators(*words: str) -> tuple[ListedOperator, ...]:
    """The operators there are.

    Args:
        words: Only those that have all of these words anywhere in their row; case does not count.
    """
    from trt_compress.plugins.library import installed_operators
    from trt_compress.plugins.registry import specs

    built = installed_operators()
    return _with_words(
        words,
        (
            ListedOperator(
                name=spec.name,
                op_type=spec.op_type,
                version=spec.version,
                native=tuple(_SHORT[kind] for kind, op_types in built.items() if spec.op_type in op_types),
                summary=spec.summary,
            )
            for spec in specs().values()
        ),
    )


def list_compressors(*words: str) -> tuple[ListedCompressor, ...]:
    """The compressors there are; `words` as in `list_operators`."""
    from trt_compress.methods import METHODS

    return _with_words(
        words,
        (
            ListedCompressor(
                name=name,
                kind=method.kind,
                summary=method.summary,
                settings=_settings(method.config),
                source=method.source,
            )
            for name, method in METHODS.items()
        ),
    )


def list_models(*words: str) -> tuple[ListedModel, ...]:
    """The models that can be compressed, and the forms in which own ones are given; `words` as in `list_operators`.

    Raises:
        UnsupportedError: torch or timm is not installed.
    """
    with needs_extra("export"):
        from trt_compress.models.hosts import registry
        from trt_compress.models.hosts.catalog import HF

        found = [
            ListedModel(name=model.name, family=model.family, description=model.description)
            for model in registry.list_models()
        ]
    zoo = [model for model in found if model.name.startswith("zoo:")]
    own = [*(_hf_row(kind) for kind in HF), *_OWN]
    return _with_words(words, [*zoo, *own, *(model for model in found if model not in zoo)])


def list_targets(*words: str) -> tuple[ListedTarget, ...]:
    """The targets there are, and what this version does with each; `words` as in `list_operators`."""
    from trt_compress.export.int8_form import INT8
    from trt_compress.export.targets import PRECISIONS, TARGETS

    return _with_words(
        words,
        (
            ListedTarget(
                name=target.name,
                exports=(*(name for name in PRECISIONS if name in target.precisions), *([INT8] if target.int8 else [])),
                opset=target.max_opset,
                engine=_engine(target),
                run_by=_RUNS.get(target.name) or _RUNS[target.backend],
                operators=_operators(target),
                description=target.description,
            )
            for target in TARGETS.values()
        ),
    )


_RUNS = {"cpu": "ort-cpu", "cuda": "ort-cuda", "tensorrt": "tensorrt", "tensorrt_rtx": "rtx"}
_OWN = (
    ListedModel(
        name="wavtokenizer:FILE", family="codec", description="Checkpoint of a WavTokenizer: sound to codes and back"
    ),
    ListedModel(
        name="xytokenizer:FILE", family="codec", description="Checkpoint of an XY-Tokenizer: speech to codes and back"
    ),
    ListedModel(
        name="FILE.py:FACTORY", family="timm_vit", description="Your own nn.Module, built of timm's blocks by FACTORY()"
    ),
    ListedModel(
        name="FILE.toml", family="any", description="A recipe: a model with all its options, as bundles hold it"
    ),
)


def _hf_row(model_type: str) -> ListedModel:
    what = f"Directory of save_pretrained whose model_type is {model_type}"
    return ListedModel(name="hf:DIR", family=model_type, description=what)


def _engine(target: Any) -> str:
    if not target.is_tensorrt:
        return "none: it runs the ONNX file"
    here = importlib.util.find_spec(target.backend) is not None
    if target.backend == "tensorrt_rtx":
        return "builds here, without a GPU" if here else "builds without a GPU, with trt-compress[rtx]"
    if target.name.startswith("jetson"):
        return "builds on the device only"
    return "builds on a machine with the GPU" + ("" if here else ", with its TensorRT")


def _operators(target: Any) -> str:
    if target.name == "cpu":
        return "native where built, else ONNX bodies"
    if target.backend != "tensorrt":
        return "ONNX bodies"
    never = "" if _kernels_have_run() else " (not run yet)"
    return f"plugins{never}" if target.lowering == "plugin" else f"ONNX bodies, or plugins{never}"


def _kernels_have_run() -> bool:
    """Whether there is a record of the kernels on a GPU."""
    from trt_compress.tools.gpu.report import latest

    return bool(latest("gpu_kernels"))


def _settings(config: Any) -> str:
    """Write the settings of a compressor with their defaults: `num_merged=?` has to be given, `[layer=?]` may be."""
    return ", ".join(_setting(field) for field in dataclasses.fields(config))


def _setting(field: "dataclasses.Field[Any]") -> str:
    if field.default is dataclasses.MISSING:
        return f"{field.name}=?"
    return f"[{field.name}=?]" if field.default is None else f"{field.name}={_value(field.default)}"


def _value(value: object) -> object:
    """A default as a spec string writes it: `true`, `[3,6]`."""
    if isinstance(value, tuple):
        return f"[{','.join(str(_value(item)) for item in value)}]"
    return str(value).lower() if isinstance(value, bool) else value


def _with_words(words: Iterable[str], rows: Iterable[_R]) -> tuple[_R, ...]:
    wanted = [word.lower() for word in words]
    return tuple(row for row in rows if all(word in _text(row) for word in wanted))


def _text(row: _Row) -> str:
    return " ".join(str(value) for value in row.to_json().values()).lower()
