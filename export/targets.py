"""Named device profiles, as data.

A figure is only as good as its source, so `sources` says for each where it comes from: `run` (seen with tensorrt-rtx
1.7.1 or onnxruntime 1.32 on x86-64), `hdr` (public headers and sources of TensorRT and onnx-tensorrt), `doc` (vendor
page).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from trt_compress.errors import ConfigError
from trt_compress.suggest import not_known

Backend = Literal["onnxruntime", "tensorrt", "tensorrt_rtx"]
Lowering = Literal["function", "plugin", "inline"]
PRECISIONS = ("fp32", "fp16", "bf16")
"""What a graph is exported in."""

PluginWins = Literal["never", "without_body", "if_registered", "with_attribute"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What one kind of device takes.

    Attributes:
        name: As given to `--target`.
        description: One line for `trt-compress list targets`.
        backend: The library that runs the file.
        tensorrt_version: Oldest version taken and first version not taken, or None where TensorRT is not involved.
        cuda: CUDA major.minor of the device software, "" where it does not matter.
        sms: Compute capabilities times ten; empty: whatever the installed library was compiled for.
        precisions: Number formats that every one of `sms` computes in, or keeps weights in.
        int8: Ways in which layers multiply 8 bits by 8 bits: "static", with ranges in the graph, and "dynamic".
        max_opset: Newest ONNX opset the target reads by its documentation.
        first_refused_opset, first_refused_ir: Versions from which on the newest library seen refuses a file, None if
            it reads every stamp.
        topk_max_k: Largest K of TopK, None without a limit.
        lowering: The form the operators get for this target.
        plugin_wins: When a registered plugin is taken instead of a function body of the same name.
        refused_ops: Standard operators the target has no kernel for.
        limits: Preflight rules known to hold, with the origin of that knowledge; the others only warn.
        notes: What else a user should know.
        sources: Field name to the origin of its figure.
    """

    name: str
    description: str
    backend: Backend
    tensorrt_version: tuple[str, str] | None = None
    cuda: str = ""
    sms: tuple[int, ...] = ()
    precisions: tuple[str, ...]
    int8: tuple[str, ...] = ()
    max_opset: int
    first_refused_opset: int | None = None
    first_refused_ir: int | None = None
    topk_max_k: int | None = None
    lowering: Lowering
    plugin_wins: PluginWins
    refused_ops: frozenset[str] = frozenset()
    limits: Mapping[str, str] = field(default_factory=dict)
    notes: str = ""
    sources: Mapping[str, str]

    @property
    def is_tensorrt(self) -> bool:
        """Whether the file goes through a TensorRT-family parser."""
        return self.backend != "onnxruntime"

    def takes_version(self, version: str) -> bool:
        """Whether this TensorRT version, such as "10.3.0.26", is within `tensorrt_version`."""
        if self.tensorrt_version is None:
            return False
        oldest, first_not = self.tensorrt_version
        return _numbers(oldest) <= _numbers(version) < _numbers(first_not)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


# Operators that no TensorRT-family parser has an importer for.
_NO_IMPORTER = frozenset(
    {
        *("AffineGrid", "Bernoulli", "BitCast", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor"),
        *("CenterCropPad", "Col2Im", "Compress", "ConcatFromSequence", "ConvInteger", "CumProd", "DFT", "Det"),
        *("DynamicQuantizeLinear", "ImageDecoder", "MatMulInteger", "MaxRoiPool", "MaxUnpool", "MelWeightMatrix"),
        *("Multinomial", "NegativeLogLikelihoodLoss", "Optional", "OptionalGetElement", "OptionalHasElement"),
        *("QLinearConv", "QLinearMatMul", "RegexFullMatch", "SequenceAt", "SequenceConstruct", "SequenceEmpty"),
        *("SequenceErase", "SequenceInsert", "SequenceLength", "SequenceMap", "SoftmaxCrossEntropyLoss"),
        *("SplitToSequence", "StringConcat", "StringNormalizer", "StringSplit", "SwiGLU", "TfIdfVectorizer", "Unique"),
    }
)
_TOPK_LIMIT = 3840

_OPERATORS_MD = "doc: onnx-tensorrt docs/operators.md"
_DOCUMENTED_LIMITS = {
    "opset": _OPERATORS_MD,
    "topk-k": "doc: ITopKLayer",
    "scatter-nd-reduction": _OPERATORS_MD,
    "zero-point": _OPERATORS_MD,
    "operand-type": _OPERATORS_MD,
    "constant-input": _OPERATORS_MD,
    "static-shape": _OPERATORS_MD,
    "extra-output": _OPERATORS_MD,
    "attribute-value": _OPERATORS_MD,
    "tensor-type": _OPERATORS_MD,
}
# Seen with the real parser and builder, and held against them by a test. A newer opset is read without complaint.
_RTX_LIMITS = dict.fromkeys(
    (
        *(_DOCUMENTED_LIMITS.keys() - {"opset"}),
        *("scatter-elements-reduction", "dynamic-scale-axis", "attention-fp32", "attention-shared-input"),
        *("attention-form", "operand-rank", "resized-axes", "control-flow", "quantized-constant"),
    ),
    "run: tensorrt-rtx 1.7.1",
)

_COMMON_SOURCES = {
    "topk_max_k": "run: K = 3840 builds, K = 3841 does not; doc: ITopKLayer",
    "refused_ops": "doc: onnx-tensorrt docs/operators.md, 10.0 and 10.15; run for rtx",
    "int8": "doc: onnx-tensorrt docs/operators.md, Q/DQ with constant scales; run for rtx",
}

_ONNXRUNTIME_SOURCES = {
    "max_opset": "doc: onnxruntime 1.20; run: 1.32 loads opset 28 and refuses 29",
    "first_refused_opset": "run: 1.32",
    "first_refused_ir": "run: 1.32 loads IR version 14 and refuses 15",
    "plugin_wins": "run: body, library and plugin attributes in all combinations",
    "int8": "run: 1.32 on the CPU; doc: its CUDA provider has no kernels of quantized products",
    "precisions": "run: 1.32 on the CPU fuses a blocked DequantizeLinear and MatMul, and casts bfloat16 but computes "
    "nothing in it",
}

_TARGETS = (
    Target(
        name="cpu",
        description="ONNX Runtime on any CPU",
        backend="onnxruntime",
        precisions=("fp32", "fp16", "int8", "int4"),
        int8=("static", "dynamic"),
        max_opset=21,
        first_refused_opset=29,
        first_refused_ir=15,
        lowering="function",
        plugin_wins="if_registered",
        notes="fp16 graphs run, but most CPUs compute them through casts; int8 and int4 are weights of linear layers, "
        "whose inputs are rounded to 8 bits as well; a custom op wins over a body of its name.",
        sources=_ONNXRUNTIME_SOURCES,
    ),
    Target(
        name="cuda",
        description="ONNX Runtime on an NVIDIA GPU (CUDA execution provider)",
        backend="onnxruntime",
        precisions=("fp32", "fp16", "bf16", "int8", "int4"),
        max_opset=21,
        first_refused_opset=29,
        first_refused_ir=15,
        lowering="function",
        plugin_wins="if_registered",
        sources=_ONNXRUNTIME_SOURCES,
    ),
    Target(
        name="rtx",
        description="TensorRT-RTX on GeForce and RTX PRO; engines build without a GPU",
        backend="tensorrt_rtx",
        tensorrt_version=("1.7", "2"),
        cuda="13.0",
        sms=(86, 89, 120),
        precisions=("fp32", "fp16", "bf16", "int8", "int4"),
        int8=("static",),
        max_opset=24,
        topk_max_k=_TOPK_LIMIT,
        lowering="inline",
        plugin_wins="never",
        refused_ops=_NO_IMPORTER | {"DeformConv", "NonMaxSuppression", "NonZero", "RoiAlign"},
        limits=_RTX_LIMITS,
        notes="Takes no user plugins; a registered one ends the process. fp8 needs SM 89 or newer.",
        sources=_COMMON_SOURCES
        | {
            "tensorrt_version": "run: 1.7.1",
            "sms": "doc: TensorRT-RTX support matrix, engines portable by default",
            "precisions": "doc: TensorRT-RTX support matrix; int8 and int4 as weight-only GEMM",
            "max_opset": "run: TensorScatter (24) builds; newer stamps are read without complaint",
            "lowering": "run: names of inlined nodes tell which operator a layer came from",
        },
    ),
    Target(
        name="jetson-orin-jp6",
        description="Jetson Orin with JetPack 6.1 or 6.2 (TensorRT 10.3)",
        backend="tensorrt",
        tensorrt_version=("10.3", "10.4"),
        cuda="12.6",
        sms=(87,),
        precisions=("fp32", "fp16", "int8", "int4"),
        int8=("static",),
        max_opset=20,
        topk_max_k=_TOPK_LIMIT,
        lowering="plugin",
        plugin_wins="without_body",
        refused_ops=_NO_IMPORTER | {"BlackmanWindow", "HammingWindow", "HannWindow", "STFT"},
        limits=_DOCUMENTED_LIMITS,
        notes="A function body hides the plugin, so the file goes there without bodies. bf16 is not confirmed.",
        sources=_COMMON_SOURCES
        | {
            "tensorrt_version": "doc: JetPack 6 release notes",
            "precisions": "doc: no FP8 on Orin",
            "max_opset": "doc: onnx-tensorrt 10.0 docs/operators.md, opset 9 to 20",
            "plugin_wins": "hdr: onnx-tensorrt up to 10.6 asks local functions before plugins",
        },
    ),
    Target(
        name="jetson-orin-jp7",
        description="Jetson Orin with JetPack 7.2 (TensorRT 10.16 to 11.4)",
        backend="tensorrt",
        tensorrt_version=("10.16", "12"),
        cuda="13.2",
        sms=(87,),
        precisions=("fp32", "fp16", "int8", "int4"),
        int8=("static",),
        max_opset=24,
        topk_max_k=_TOPK_LIMIT,
        lowering="function",
        plugin_wins="with_attribute",
        refused_ops=_NO_IMPORTER,
        limits=_DOCUMENTED_LIMITS,
        notes="bf16 is not confirmed.",
        sources=_COMMON_SOURCES
        | {
            "tensorrt_version": "doc: 11.4.1 from JetPack 7.2.2; 10.16 from the community",
            "precisions": "doc: no FP8 on Orin",
            "max_opset": "doc: onnx-tensorrt 10.15 docs/operators.md, opset 9 to 24",
            "plugin_wins": "hdr: onnx-tensorrt from 10.15",
        },
    ),
    Target(
        name="jetson-thor",
        description="Jetson Thor with JetPack 7 (TensorRT 10.13 to 11.4)",
        backend="tensorrt",
        tensorrt_version=("10.13", "12"),
        cuda="13.0",
        sms=(110,),
        precisions=("fp32", "fp16", "bf16", "int8", "int4", "fp8", "fp4"),
        int8=("static",),
        max_opset=22,
        topk_max_k=_TOPK_LIMIT,
        lowering="function",
        plugin_wins="if_registered",
        refused_ops=_NO_IMPORTER,
        limits=_DOCUMENTED_LIMITS,
        notes="The attribute plugin_namespace is needed from TensorRT 10.15.",
        sources=_COMMON_SOURCES
        | {
            "tensorrt_version": "doc: JetPack 7.0 (10.13.3) to 7.2.2 (11.4.1)",
            "precisions": "doc: Blackwell in the TensorRT support matrix",
            "max_opset": "doc: opset 22 in onnx-tensorrt 10.8, 24 in 10.15; the lower of the two around 10.13",
            "plugin_wins": "hdr: onnx-tensorrt 10.7 to 10.14",
        },
    ),
    Target(
        name="x86-trt10",
        description="TensorRT 10.8 to 10.16 on an x86 or SBSA host with an NVIDIA GPU",
        backend="tensorrt",
        tensorrt_version=("10.8", "11"),
        sms=(80, 86, 89, 90, 100, 120),
        precisions=("fp32", "fp16", "bf16", "int8", "int4"),
        int8=("static",),
        max_opset=22,
        topk_max_k=_TOPK_LIMIT,
        lowering="function",
        plugin_wins="if_registered",
        refused_ops=_NO_IMPORTER,
        limits=_DOCUMENTED_LIMITS,
        notes="fp8 needs SM 89 or newer. The attribute plugin_namespace is needed from TensorRT 10.15.",
        sources=_COMMON_SOURCES
        | {
            "tensorrt_version": "run: oldest Python bindings in the package index are 10.8",
            "precisions": "doc: TensorRT support matrix",
            "max_opset": "doc: onnx-tensorrt 10.8, opset 9 to 22",
            "plugin_wins": "hdr: onnx-tensorrt 10.7 to 10.14",
        },
    ),
    Target(
        name="x86-trt11",
        description="TensorRT 11 on an x86 or SBSA host with an NVIDIA GPU",
        backend="tensorrt",
        tensorrt_version=("11", "12"),
        sms=(80, 86, 89, 90, 100, 120),
        precisions=("fp32", "fp16", "bf16", "int8", "int4"),
        int8=("static",),
        max_opset=24,
        topk_max_k=_TOPK_LIMIT,
        lowering="function",
        plugin_wins="with_attribute",
        refused_ops=_NO_IMPORTER,
        limits=_DOCUMENTED_LIMITS,
        notes="Strongly typed networks only: precision is in the graph. fp8 needs SM 89 or newer.",
        sources=_COMMON_SOURCES
        | {
            "precisions": "doc: TensorRT support matrix",
            "max_opset": "doc: onnx-tensorrt 11.2, opset 9 to 24 (25 by the 11.x opset guide)",
            "plugin_wins": "hdr: onnx-tensorrt from 10.15",
        },
    ),
)

TARGETS: Mapping[str, Target] = {target.name: target for target in _TARGETS}


def get_target(name: str) -> Target:
    """The target of this name.

    Raises:
        ConfigError: No target has it.
    """
    if name in TARGETS:
        return TARGETS[name]
    raise ConfigError(not_known("target", name, TARGETS))


def newest_common_opset(targets: Iterable[Target] = _TARGETS) -> int:
    """The newest ONNX opset that every one of these targets takes.

    Raises:
        ConfigError: No target was given.
    """
    opsets = [target.max_opset for target in targets]
    if not opsets:
        raise ConfigError("no target was given to find a common opset for; give at least one.")
    return min(opsets)
