"""What an operator is: the one source of its name, axes, types, attributes, contract and limits."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

DOMAIN = "trt_compress"
OP_TYPE_PREFIX = "Trtc"  # model-local functions are looked up by name only, whatever their domain

FLOATS = ("float32", "float16", "bfloat16")
MOST_TOKENS = 2**24 - 1  # of operators whose bodies count tokens in float32
ON_A_GPU = "on a GPU every axis is below 2**31"

ONNX_NUMBERS: Mapping[str, int] = MappingProxyType(
    {"float32": 1, "uint8": 2, "int32": 6, "int64": 7, "float16": 10, "bfloat16": 16}
)

Shapes = Sequence[Sequence[Any]]
"""Sizes are numbers; while torch traces, some are symbols."""

AXES: Mapping[str, str] = MappingProxyType(
    {
        "B": "batch",
        "N": "tokens in",
        "M": "tokens out",
        "C": "channels",
        "D": "head size, or the width of a similarity feature",
        "H": "heads",
        "G": "KV heads",
        "L": "cache length",
        "K": "tokens kept, or codes of a codebook",
        "R": "probe rows",
        "S": "codebook stages",
        "T": "new tokens",
        "W": "values or bytes of one cache row",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class OperandSpec:
    """One input or output.

    An axis is a letter of AXES, a number, or a formula of letters and attributes ("L/group"); " or " joins what may
    stand there ("1 or B"). It has one of `dtypes`, or that of the input `same_dtype_as`, which comes before it; the
    attribute `dtype_attribute` of an output names which one, by ONNX's number. An output may share the buffer of the
    input `aliases`, and then replaces it in place. With `least_rank` axes of it, it lacks those that may be 1.
    """

    name: str
    axes: tuple[str, ...]
    least_rank: int | None = None
    dtypes: tuple[str, ...] = FLOATS
    same_dtype_as: str | None = None
    dtype_attribute: str | None = None
    aliases: str | None = None
    doc: str = ""

    def axes_of(self, rank: int) -> tuple[str, ...]:
        """The axes of a tensor of so many."""
        return tuple(axis for axis in self.axes if rank == len(self.axes) or not axis.startswith("1 or "))


@dataclass(frozen=True, slots=True, kw_only=True)
class AttributeSpec:
    """One attribute of the node, of the function body and of the plugin's field list; a float is a float32.

    Not 0, one that is `of_input` says that this input is given; at 0 it is a small tensor which nobody looks at.
    """

    name: str
    kind: Literal["int", "ints", "float"]
    minimum: int | float | None = None
    maximum: int | float | None = None
    of_input: str | None = None
    doc: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpSpec:
    """The contract of one operator.

    `count`, `tie_break`, `order` and `determinism` are the four things every selection and merge must state; the first
    three are empty where an operator chooses nothing. `arithmetic` is the sequence of roundings where all forms must
    give the same bits. `data_sized` names the attribute that, at 1, gives outputs a size that the data decide.
    `output_shapes` takes the shapes of the inputs and the attributes by name, and gives the shapes of the outputs: the
    largest ones where the data decide. `tolerance` is the largest allowed error relative to the largest output, by
    dtype. `bytes_moved` maps sizes (axes by letter, attributes by name) and the item size of the tokens to the bytes
    that any implementation must read and write; `flops` maps sizes to floating-point operations, two for each
    multiply-add.
    """

    name: str
    version: int
    summary: str
    inputs: tuple[OperandSpec, ...]
    outputs: tuple[OperandSpec, ...]
    attributes: tuple[AttributeSpec, ...]
    count: str = ""
    tie_break: str = ""
    order: str = ""
    determinism: str
    arithmetic: str = ""
    data_sized: str = ""
    limits: tuple[str, ...]
    tolerance: Mapping[str, float]
    output_shapes: Callable[[Shapes, Mapping[str, Any]], Shapes]
    bytes_moved: Callable[[Mapping[str, Any], int], int]
    flops: Callable[[Mapping[str, Any]], int]
    source: str
    differs: str

    @property
    def op_type(self) -> str:
        """Type of the ONNX node, of the local function and of the plugin."""
        return OP_TYPE_PREFIX + self.name

    @property
    def domain(self) -> str:
        """Domain of the ONNX node and namespace of the plugin."""
        return DOMAIN

    @property
    def torch_name(self) -> str:
        """Name under `torch.ops.trt_compress`, and of the operator's folder."""
        return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", self.name).lower()

    def output_dtypes(self, inputs: Sequence[str], attributes: Mapping[str, Any]) -> tuple[str, ...]:
        """Types of the outputs, from those of the inputs and the attributes by name."""
        by_name = dict(zip((tensor.name for tensor in self.inputs), inputs, strict=True))
        numbers = {number: dtype for dtype, number in ONNX_NUMBERS.items()}
        return tuple(
            by_name[tensor.same_dtype_as]
            if tensor.same_dtype_as
            else numbers[attributes[tensor.dtype_attribute]]
            if tensor.dtype_attribute
            else tensor.dtypes[0]
            for tensor in self.outputs
        )

    def decided_by_data(self, attributes: Mapping[str, Any]) -> tuple[int, ...]:
        """The outputs whose axis 1 has a size that the data decide."""
        decided = self.data_sized and attributes[self.data_sized] == 1
        return tuple(i for i, tensor in enumerate(self.outputs) if decided and "M" in tensor.axes)

    def sizes(self, inputs: Shapes, attributes: Mapping[str, Any]) -> dict[str, Any]:
        """Axes by letter and attributes by name, as `bytes_moved` and `flops` take them."""
        found = dict(attributes)
        shapes = [*self.output_shapes(inputs, attributes), *inputs]
        for tensor, shape in zip([*self.outputs, *self.inputs], shapes, strict=True):
            # leading axes may be left out
            found.update(zip(reversed(tensor.axes_of(len(shape))), reversed(shape), strict=False))
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One set of sizes and attributes with the reason why it is tested.

    `values` names how inputs are made. `refused` is the preflight rule by which TensorRT does not take the body of this
    size; SPEC states that limit.
    """

    axes: Mapping[str, int]
    attributes: Mapping[str, int | float | Sequence[int]] = field(default_factory=dict)
    reason: str
    values: str = "normal"
    refused: str = ""

    @property
    def label(self) -> str:
        """Identifier of the sample in test ids and benchmark records."""
        parts = [f"{k}={v}" for k, v in (*self.axes.items(), *self.attributes.items())]
        return ",".join([*parts, self.values] if self.values != "normal" else parts).replace(" ", "")
