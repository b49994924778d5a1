"""Forms of standard operators that TensorRT's parser or builder turns down, each seen with the real TensorRT-RTX 1.7.1.

Beside the rules of `preflight`: operand types, ranks, attribute values and inputs that must be constant. A check gets a
node that ONNX itself finds no fault with, and says what is wrong with it, or nothing.
"""

import math
from collections.abc import Callable, Mapping

import numpy as np
from onnx import NodeProto, TensorProto

from trt_compress.export.graph_view import GraphView, attribute

Check = Callable[[GraphView, NodeProto], str | None]

_BF16, _FLOATS = (
    TensorProto.BFLOAT16,
    (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE),
)
_INT32, _INT64, _INT8, _UINT8 = TensorProto.INT32, TensorProto.INT64, TensorProto.INT8, TensorProto.UINT8
_WIDE_INTS = (_INT32, _INT64)


def operand(node: NodeProto, index: int) -> str:
    """Name of an input, "" where the node has none at that place."""
    return node.input[index] if index < len(node.input) else ""


def does_nothing(node: NodeProto) -> bool:
    """Whether a reduction is told to reduce over no axis, and so passes everything on."""
    return bool(attribute(node, "noop_with_empty_axes", 0)) and len(node.input) < 2


def _is_constant(view: GraphView, name: str) -> bool:
    """Whether the parser has the value at hand: a weight or a Constant; what it would have to fold does not count."""
    return name in view.weights or (name in view.producer and view.producer[name].op_type == "Constant")


def _axis(node: NodeProto, rank: int, default: int) -> int:
    axis = int(attribute(node, "axis", default))
    return axis + rank if axis < 0 else axis


# ---- types ----------------------------------------------------------------------------------------------------------

_OPERANDS_REFUSED: Mapping[str, tuple[int, ...]] = {
    "Relu": (_INT32,),
    "PRelu": _WIDE_INTS,
    "HardSwish": (_BF16,),
    "Mish": (_BF16,),
    "GlobalLpPool": (_BF16,),
    "LpNormalization": (_BF16,),
    "LpPool": (_BF16,),
    "ConvTranspose": (_BF16,),
    "RandomNormalLike": (_BF16,),
    "RandomUniformLike": (_BF16,),
    "DepthToSpace": (TensorProto.BOOL,),
    "SpaceToDepth": (TensorProto.BOOL,),
    "QuantizeLinear": (_INT32,),
    "DequantizeLinear": (_INT32,),
    "ReduceL2": _WIDE_INTS,
    "ReduceLogSum": _WIDE_INTS,
    "ReduceLogSumExp": _WIDE_INTS,
    "Resize": (*_WIDE_INTS, _UINT8),
    "TensorScatter": (*_WIDE_INTS, _INT8, _UINT8, TensorProto.BOOL),
}


def _operand_type(view: GraphView, node: NodeProto) -> str | None:
    dtype = view.dtype(operand(node, 0))
    if dtype in _OPERANDS_REFUSED[node.op_type] and not does_nothing(node):
        return f"{node.op_type} over {_type_name(dtype)}"
    return None


def _type_name(dtype: int) -> str:
    return str(TensorProto.DataType.Name(dtype)).lower()


def _clip_type(view: GraphView, node: NodeProto) -> str | None:
    bounds = [name for name in node.input[1:] if name]
    if view.dtype(operand(node, 0)) == _INT8 and any(not _is_constant(view, name) for name in bounds):
        return "Clip over int8 with bounds computed at run time"
    if view.dtype(operand(node, 0)) == _INT8 and bounds and not operand(node, 1):
        return "Clip over int8 with an upper bound alone"
    return None


def _mod_type(view: GraphView, node: NodeProto) -> str | None:
    dtype, fmod = view.dtype(operand(node, 0)), attribute(node, "fmod", 0)
    if dtype == _INT8 or (dtype in _FLOATS and not fmod):
        return f"Mod over {_type_name(dtype)} with fmod={fmod}"
    return None


def _pool_type(view: GraphView, node: NodeProto) -> str | None:
    sizes = view.shape(operand(node, 0))
    if view.dtype(operand(node, 0)) == _INT8 and sizes is not None and len(sizes) == 5:
        return f"{node.op_type} over int8 in three dimensions"
    return None


def _bytes_dequantized(view: GraphView, node: NodeProto) -> str | None:
    name = operand(node, 0)
    quantized = name in view.producer and view.producer[name].op_type == "QuantizeLinear"
    return "DequantizeLinear over uint8" if view.dtype(name) == _UINT8 and not quantized else None


def _range_type(view: GraphView, node: NodeProto) -> str | None:
    dtype = view.dtype(operand(node, 0))
    computed = [name for name in node.input if view.value(name) is None]
    return (
        f"Range over {_type_name(dtype)} with '{computed[0]}' computed at run time"
        if dtype in _FLOATS and computed
        else None
    )


def _made_type(view: GraphView, node: NodeProto) -> str | None:
    name = "output_datatype" if node.op_type.endswith("Window") else "dtype"
    dtype = attribute(node, name, TensorProto.FLOAT)
    allowed = (TensorProto.FLOAT,) if name == "output_datatype" else (TensorProto.FLOAT, TensorProto.FLOAT16)
    return f"{node.op_type} with {name}={_type_name(dtype)}" if dtype not in allowed else None


def _filled_type(view: GraphView, node: NodeProto) -> str | None:
    value = attribute(node, "value")
    return f"ConstantOfShape of {_type_name(value.data_type)}" if value and value.data_type in (_INT8, _UINT8) else None


def _quantized_to(view: GraphView, node: NodeProto) -> str | None:
    if attribute(node, "output_dtype", 0) == _UINT8 and not operand(node, 2):
        return "QuantizeLinear to uint8 without a zero point"
    return None


def _lengths_in_half(view: GraphView, node: NodeProto) -> str | None:
    if operand(node, 4) and view.dtype(operand(node, 0)) == TensorProto.FLOAT16:
        return f"{node.op_type} over float16 with sequence_lens"
    return None


# ---- ranks and sizes ------------------------------------------------------------------------------------------------

_LEAST_RANK = {
    **dict.fromkeys(("ArgMax", "ArgMin", "Softmax", "LogSoftmax", "Hardmax"), 2),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool", "InstanceNormalization"), 3),
    **dict.fromkeys(("LRN", "LpPool"), 4),
    "GroupNormalization": 3,
    "LpNormalization": 1,
    **{
        f"Reduce{kind}": 1
        for kind in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
    },
}


def _least_rank(view: GraphView, node: NodeProto) -> str | None:
    sizes, least = view.shape(operand(node, 0)), _LEAST_RANK[node.op_type]
    if node.op_type in ("Softmax", "LogSoftmax", "Hardmax") and view.opset < 13:
        return None
    if sizes is not None and len(sizes) < least and not does_nothing(node):
        return f"{node.op_type} over {len(sizes)} dimension{'s'[: len(sizes) != 1]}, and {least} is the least"
    return None


def _empty_axis(view: GraphView, node: NodeProto) -> str | None:
    sizes = view.shape(operand(node, 0))
    if sizes and sizes[_axis(node, len(sizes), 0)] == 0:
        return f"{node.op_type} over an axis without elements"
    return None


def _slope(view: GraphView, node: NodeProto) -> str | None:
    sizes, slope = view.shape(operand(node, 0)), view.shape(operand(node, 1))
    if sizes is None or slope is None:
        return None
    if len(slope) > len(sizes) or any(
        b not in (1, None) and a is not None and a != b for a, b in zip(reversed(sizes), reversed(slope), strict=False)
    ):
        return "PRelu whose slope is larger than its input"
    return None


def _hardmax_old(view: GraphView, node: NodeProto) -> str | None:
    sizes = view.shape(operand(node, 0))
    if view.opset >= 13 or not sizes:
        return None
    axis = _axis(node, len(sizes), 1)
    return "Hardmax over a dynamic size" if None in (sizes[1:] if axis else sizes) else None


def _slice_axes(view: GraphView, node: NodeProto) -> str | None:
    sizes, starts = view.shape(operand(node, 0)), view.shape(operand(node, 1))
    if operand(node, 3) or sizes is None or not starts or starts[0] in (None, len(sizes)):
        return None
    return f"Slice of {starts[0]} of {len(sizes)} axes without saying which"


# ---- attributes and inputs ------------------------------------------------------------------------------------------


def _plain_form(view: GraphView, node: NodeProto) -> str | None:
    for name, default, allowed in _ALLOWED[node.op_type]:
        value = attribute(node, name, default)
        value = value.decode(errors="replace") if isinstance(value, bytes) else value
        if value not in allowed:
            return f"{node.op_type} with {name}={value}"
    return None


_MODES = ("half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners")
_ALLOWED: Mapping[str, tuple[tuple[str, object, tuple[object, ...]], ...]] = {
    "Gelu": (("approximate", "none", ("none", "tanh")),),
    "LpNormalization": (("p", 2, (1, 2)),),
    "TensorScatter": (("mode", "linear", ("linear",)),),
    "Resize": (
        ("coordinate_transformation_mode", "half_pixel", _MODES),
        ("keep_aspect_ratio_policy", "stretch", ("stretch",)),
    ),
}


def _hidden_size(view: GraphView, node: NodeProto) -> str | None:
    return f"{node.op_type} without hidden_size" if attribute(node, "hidden_size") is None else None


def _training(view: GraphView, node: NodeProto) -> str | None:
    name = operand(node, 2)
    if not name:
        return "Dropout whose third input is left out by an empty name" if len(node.input) > 2 else None
    value = view.value(name)
    if name not in view.weights and not _is_constant(view, name):
        return f"Dropout whose training_mode '{name}' is computed at run time"
    return "Dropout in training mode" if value is not None and bool(np.any(value)) else None


def _run_time_input(view: GraphView, node: NodeProto) -> str | None:
    place, what = _CONSTANT_INPUTS[node.op_type]
    name = operand(node, place)
    if name and view.value(name) is None:
        return f"{node.op_type} takes its {what} from '{name}', which is computed at run time"
    return None


_CONSTANT_INPUTS = {
    "STFT": (1, "frame_step"),
    "Unsqueeze": (1, "axes"),
    "Squeeze": (1, "axes"),
}


def _empty_diagonal(view: GraphView, node: NodeProto) -> str | None:
    return "Trilu whose second input is left out by an empty name" if list(node.input[1:]) == [""] else None


def _reshaped(view: GraphView, node: NodeProto) -> str | None:
    sizes, wanted = view.shape(operand(node, 0)), view.value(operand(node, 1))
    if sizes is None or wanted is None:
        return None
    copied = set() if attribute(node, "allowzero", 0) else {place for place, size in enumerate(wanted) if size == 0}
    if any(place >= len(sizes) for place in copied):
        return None
    rest = [size for place, size in enumerate(sizes) if place not in copied]
    new = [int(size) for place, size in enumerate(wanted) if place not in copied]
    if -1 in new:
        return None
    # A size that inference does not know may be fixed all the same; that of an input is open.
    opens = None in rest and operand(node, 0) in view.inputs
    fixed = [size for size in rest if size is not None]
    if opens or (len(fixed) == len(rest) and math.prod(fixed) != math.prod(new)):
        given = "×".join("?" if size is None else str(size) for size in sizes)
        return f"Reshape of {given} to {'×'.join(str(int(size)) for size in wanted)}"
    return None


def _complex_signal(view: GraphView, node: NodeProto) -> str | None:
    sizes = view.shape(operand(node, 0))
    return "STFT of a complex signal" if sizes is not None and len(sizes) == 3 and sizes[2] == 2 else None


def _resized_axes(view: GraphView, node: NodeProto) -> str | None:
    scales, sizes, given = operand(node, 2), operand(node, 3), view.shape(operand(node, 0))
    if view.opset < 11 or given is None or attribute(node, "axes") is not None:
        return None
    if scales and not sizes and view.value(scales) is None:
        return "Resize with scales computed at run time"
    mode = attribute(node, "mode", b"nearest")
    innermost = {b"linear": 3, b"cubic": 2}.get(mode, len(given))
    wanted = view.value(sizes or scales)
    if wanted is None or wanted.size != len(given) or (mode == b"cubic" and sizes):
        return None
    outer = list(zip(given, wanted.tolist(), strict=True))[: max(0, len(given) - innermost)]
    if any(b not in ((a, None) if sizes else (1,)) for a, b in outer if not sizes or a is not None):
        return f"Resize ({mode.decode(errors='replace')}) of more than the last {innermost} axes"
    return None


def _output_shape_1d(view: GraphView, node: NodeProto) -> str | None:
    sizes = view.shape(operand(node, 0))
    if sizes is not None and len(sizes) == 3 and attribute(node, "output_shape"):
        return "ConvTranspose of one dimension with output_shape"
    return None


def _training_outputs(view: GraphView, node: NodeProto) -> str | None:
    count = len([name for name in node.output if name])
    return f"BatchNormalization with {count} outputs; only the first is there" if count > 1 else None


def _constant_value(view: GraphView, node: NodeProto) -> str | None:
    names = {item.name for item in node.attribute}
    for name in ("sparse_value", "value_string", "value_strings"):
        if name in names:
            return f"Constant with {name}"
    value = attribute(node, "value")
    return "Constant of strings" if value is not None and value.data_type == TensorProto.STRING else None


# ---- control flow ---------------------------------------------------------------------------------------------------


def _condition(view: GraphView, node: NodeProto) -> str | None:
    sizes = view.shape(operand(node, 0))
    if sizes and any(size not in (1, None) for size in sizes):
        return f"If on a condition of {'×'.join(map(str, sizes))} values"
    if view.value(operand(node, 0)) is not None:
        return None  # one branch is taken in every run, and the other is not built
    ranks = []
    for branch in (attribute(node, "then_branch"), attribute(node, "else_branch")):
        shapes = [view.shape(value.name) for value in branch.output] if branch is not None else []
        ranks.append([None if shape is None else len(shape) for shape in shapes])
    for place, pair in enumerate(zip(*ranks, strict=False)):
        if None not in pair and pair[0] != pair[1]:
            return f"If whose branches give output {place} with {pair[0]} and {pair[1]} dimensions"
    return None


def _loop_form(view: GraphView, node: NodeProto) -> str | None:
    return None if operand(node, 1) else "Loop without a condition"


# ---- Attention ------------------------------------------------------------------------------------------------------


def _attention_form(view: GraphView, node: NodeProto) -> str | None:
    query, key, value = (view.shape(operand(node, place)) for place in range(3))
    if attribute(node, "softmax_precision") is not None:
        return "Attention with softmax_precision"
    if operand(node, 4) or operand(node, 5):
        return "Attention with past_key and past_value"
    if operand(node, 3) and attribute(node, "is_causal", 0):
        return "Attention with a mask and is_causal"
    if key is None or value is None or query is None:
        return None
    if key[-1] != value[-1] and None not in (key[-1], value[-1]) and len(key) == 4:
        return f"Attention with keys of {key[-1]} and values of {value[-1]} elements"
    mask = view.shape(operand(node, 3)) if operand(node, 3) else None
    if mask and key[-2] is not None and mask[-1] not in (None, 1, key[-2]):
        return f"Attention with a mask for {mask[-1]} of {key[-2]} keys"
    if len(query) != 4 or view.dtype(operand(node, 0)) in (TensorProto.FLOAT, TensorProto.DOUBLE):
        return None
    batch, heads, rows, size = query
    if size is not None and (size > 256 or (size < 9 and rows != 1)):
        return f"Attention with a head size of {size}; 9 to 256 have a kernel"
    if batch == heads == 1 and rows != 1:
        return "Attention of one head over a batch of one"
    return None


# Rule, operators, check, what to do. Rules of one name are one rule.
PARSER_RULES: tuple[tuple[str, tuple[str, ...], Check, str], ...] = (
    ("operand-type", tuple(_OPERANDS_REFUSED), _operand_type, "cast the operand first"),
    ("operand-type", ("Clip",), _clip_type, "cast the operand first"),
    ("operand-type", ("Mod",), _mod_type, "cast to int32, or use fmod=1 for floats"),
    ("operand-type", ("MaxPool", "AveragePool"), _pool_type, "cast the operand first"),
    ("operand-type", ("DequantizeLinear",), _bytes_dequantized, "quantize to int8, or Cast and Mul"),
    ("operand-type", ("Range",), _range_type, "make the Range over int64 and cast it"),
    (
        "operand-type",
        ("RandomNormal", "RandomUniform", "HannWindow", "HammingWindow", "BlackmanWindow"),
        _made_type,
        "make it in float32 and cast it",
    ),
    ("operand-type", ("ConstantOfShape",), _filled_type, "fill int32 and cast it"),
    ("operand-type", ("QuantizeLinear",), _quantized_to, "give a zero point of 0, or quantize to int8"),
    ("operand-type", ("LSTM", "GRU", "RNN"), _lengths_in_half, "compute it in float32"),
    ("operand-rank", tuple(_LEAST_RANK), _least_rank, "Unsqueeze the operand"),
    ("operand-rank", ("ArgMax", "ArgMin"), _empty_axis, "keep at least one element"),
    ("operand-rank", ("PRelu",), _slope, "broadcast the input first"),
    ("static-shape", ("Hardmax",), _hardmax_old, "fix the size, or export with opset 13 or newer"),
    ("operand-rank", ("Reshape",), _reshaped, "leave the open axis to -1"),
    ("attribute-value", ("Trilu",), _empty_diagonal, "leave the input out altogether"),
    ("attribute-value", ("Slice",), _slice_axes, "name the axes"),
    ("attribute-value", tuple(_ALLOWED), _plain_form, "use the plain form, or separate operators"),
    ("attribute-value", ("LSTM", "GRU", "RNN"), _hidden_size, "give hidden_size"),
    ("attribute-value", ("Dropout",), _training, "export the model in evaluation mode"),
    ("attribute-value", ("STFT",), _complex_signal, "transform the real and the imaginary part separately"),
    ("attribute-value", ("ConvTranspose",), _output_shape_1d, "use pads and output_padding"),
    ("attribute-value", ("Constant",), _constant_value, "store a plain tensor of numbers"),
    ("constant-input", tuple(_CONSTANT_INPUTS), _run_time_input, "make it a constant of the graph"),
    ("resized-axes", ("Resize",), _resized_axes, "resize the last axes, by constant scales"),
    ("extra-output", ("BatchNormalization",), _training_outputs, "export the model in evaluation mode"),
    ("control-flow", ("If",), _condition, "make both branches alike, on a single condition"),
    ("control-flow", ("Loop",), _loop_form, "give a condition that is always true"),
    ("attention-form", ("Attention",), _attention_form, "write MatMul, Softmax, MatMul"),
)
