"""What can be said of an export, once: keys of a recipe, keywords of `export_model`, options of `export` and `sweep`.

All of them follow this list; tests compare it with the fields of `Recipe` and with the keywords of `export_model`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trt_compress.errors import ConfigError
from trt_compress.export.int8_form import Int8Form, KeepPrecision, parse_rest, parse_share
from trt_compress.export.ranges import BatchRange, LengthRange
from trt_compress.methods import ArtifactFile, CompressorSpec, parse_spec, spec_from_table
from trt_compress.model_name import with_absolute_path
from trt_compress.models.layers.block_form import BlockForm

Read = Callable[[Any, Path | None], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One thing that an export depends on.

    Attributes:
        key: In a recipe, and the name of the field of `Recipe`.
        kind: Type of its value in a recipe, or of the items of a list.
        words: What that is, for a message.
        many: Whether it is a list.
        read: Value in a recipe or as an option, and the folder that a path in it counts from (None: it stays) →
            value of the field.
        write: The way back.
        keyword: Of `export_model`; "" if it is said in recipes only.
        flag: Of the commands; "" is made from the keyword.
        metavar: What stands for the value in `--help`.
        help: What `--help` says.
        swept: Whether `sweep` takes it too.
    """

    key: str
    kind: type
    words: str = "a text"
    many: bool = False
    read: Read = lambda value, base: value
    write: Callable[[Any], Any] = lambda value: value
    keyword: str = ""
    flag: str = ""
    metavar: str = ""
    help: str = ""
    swept: bool = False

    def check(self, value: Any, said: str, *, as_option: bool = False) -> None:
        """Raise ConfigError if a value is of another type; `said` is how it was written."""
        if as_option and self.key == "compressors":
            if not isinstance(value, str):
                raise ConfigError(f"{said} is not a text; write it as 'tome:num_merged=13', several joined by '+'.")
            return
        items = value if self.many and isinstance(value, list) else [None if self.many else value]
        if not all(isinstance(item, self.kind) and not isinstance(item, bool) for item in items):
            raise ConfigError(f"{said} is not {self.words}.")


def _model(text: str, base: Path | None) -> str:
    """A model's name with the path in it absolute; one that cannot be read stays, and is refused where it is loaded."""
    try:
        return with_absolute_path(text, base)
    except ConfigError:
        return text


def _weights(text: str, base: Path | None) -> str:
    if text in ("", "pretrained"):
        return text
    if "\0" in text:
        raise ConfigError(f"weights = {text[:60]!r} holds a null character, which no path has; correct it.")
    return text if base is None else str((base / text).resolve())


def _data(text: str, base: Path | None) -> str:
    if "\0" in text:
        raise ConfigError(f"calibrate = {text[:60]!r} holds a null character, which no path has; correct it.")
    return text if base is None else str((base / text).resolve())


def _compressors(value: str | list[Mapping[str, Any]], base: Path | None) -> tuple[CompressorSpec, ...]:
    specs = parse_spec(value) if isinstance(value, str) else tuple(map(spec_from_table, value))
    return specs if base is None else tuple(_located(spec, base) for spec in specs)


def _located(spec: CompressorSpec, base: Path) -> CompressorSpec:
    """The same with artifacts by absolute paths; relative ones count from `base`."""
    artifacts = spec.config.artifacts
    found = {option: ArtifactFile(str((base / file.path).absolute())) for option, file in artifacts.items()}
    return replace(spec, config=replace(spec.config, **found)) if found else spec


def _table(spec: CompressorSpec) -> dict[str, Any]:
    return {"name": spec.name, **{key: value for key, value in spec.config.to_json().items() if value is not None}}


def _lengths(table: Mapping[str, str], base: Path | None) -> dict[str, LengthRange]:
    return {name: LengthRange.parse(name, text) for name, text in table.items()}


OPTIONS: tuple[Option, ...] = (
    Option(key="model", kind=str, read=_model),
    Option(key="model_sha256", kind=str),
    Option(
        key="compressors",
        kind=dict,
        words="a list of tables",
        many=True,
        read=_compressors,
        write=lambda specs: [_table(spec) for spec in specs],
        keyword="compress",
        metavar="SPEC",
        help="name:key=value,…; several joined by '+'; 'none' for the baseline, the default.",
    ),
    Option(
        key="weights",
        kind=str,
        read=_weights,
        keyword="weights",
        metavar="FILE",
        help="safetensors file or checkpoint; 'pretrained' downloads timm's own.",
        swept=True,
    ),
    Option(key="weights_sha256", kind=str),
    Option(
        key="targets",
        kind=str,
        words="a list of names",
        many=True,
        read=lambda names, base: tuple(dict.fromkeys(names)),
        write=list,
        keyword="targets",
        flag="--target",
        metavar="T",
        help="Target to export for, repeatable (default: cpu).",
    ),
    Option(
        key="batch",
        kind=str,
        words="a text like 1:4:8",
        read=lambda text, base: BatchRange.parse(text),
        write=str,
        keyword="batch",
        metavar="MIN:OPT:MAX",
        help="Batch sizes of the engines (default: 1:4:8).",
    ),
    Option(
        key="lengths",
        kind=dict,
        words='a table like time = "1:100:400"',
        read=_lengths,
        write=lambda lengths: {name: str(length) for name, length in lengths.items()},
    ),
    Option(
        key="precision",
        kind=str,
        read=lambda text, base: text.lower(),
        keyword="precision",
        metavar="fp32|fp16|bf16|int8",
        help="What the graph computes in (default: fp32); int8: layers with weights, the rest in fp32.",
        swept=True,
    ),
    Option(
        key="weights_bits",
        kind=str,
        words="a text like 4:128",
        read=lambda text, base: BlockForm.parse(text),
        write=str,
        keyword="weights_bits",
        metavar="8|4[:GROUP]",
        help="Quantize the weights of linear layers; GROUP of them share a scale (default: as they are; GROUP 32).",
        swept=True,
    ),
    Option(
        key="int8",
        kind=str,
        words="a text like static:entropy",
        read=lambda text, base: Int8Form.parse(text),
        write=str,
        keyword="int8",
        metavar="static[:METHOD]|dynamic",
        help="With --precision int8, when ranges are found: static (the default) from samples, by minmax (the "
        "default), entropy or percentile; dynamic from each input as it runs, on the CPU.",
        swept=True,
    ),
    Option(
        key="calibrate",
        kind=str,
        read=_data,
        keyword="calibrate",
        metavar="DIR|FILE.npz",
        help="Samples for static INT8 and --keep-precision: a folder of pictures or sounds, or arrays by the names of "
        "the inputs.",
        swept=True,
    ),
    Option(
        key="int8_share",
        kind=str,
        words="a text like 0.9",
        read=lambda text, base: parse_share(text),
        write=str,
        keyword="int8_share",
        metavar="SHARE",
        help="Of the layers with weights, the share that must run in INT8 (default: 0.9; 0 allows any).",
        swept=True,
    ),
    Option(
        key="keep_precision",
        kind=str,
        words="a text like auto",
        read=lambda text, base: KeepPrecision.parse(text),
        write=str,
        keyword="keep_precision",
        metavar="auto[:N]",
        help="With --precision int8, keep the layers in floating point whose quantization costs most, measured with "
        "the samples of --calibrate: those that stand out, or N of them.",
        swept=True,
    ),
    Option(
        key="int8_rest",
        kind=str,
        read=lambda text, base: parse_rest(text),
        keyword="int8_rest",
        metavar="fp32|fp16",
        help="With --precision int8 for targets of TensorRT, what everything else computes in (default: fp32).",
        swept=True,
    ),
    Option(
        key="context",
        kind=int,
        words="a whole number of tokens",
        keyword="context",
        metavar="N",
        help="Of a language model: tokens of the longest sequence (default: what it was made for, up to 4096).",
    ),
    Option(
        key="chunk",
        kind=int,
        words="a whole number of tokens",
        keyword="chunk",
        metavar="N",
        help="Of a language model: tokens of a prompt that one run reads at most (default: 256).",
    ),
    Option(
        key="cache_dtype",
        kind=str,
        read=lambda text, base: text.lower(),
        keyword="cache_dtype",
        metavar="fp32|fp16",
        help="Of a language model: what keys and values are kept in (default: fp16 with --precision fp16, else fp32).",
    ),
    Option(
        key="opset",
        kind=int,
        words="a whole number",
        keyword="opset",
        metavar="N",
        help="ONNX opset (default: the newest that every target takes, asked for or not; 21 for quantized weights, 22 "
        "for bf16).",
    ),
)
