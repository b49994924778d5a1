"""Does a target take this graph? Rules from what the parsers and builders were seen to refuse, before a build is tried.

A test builds a refused and an accepted graph for every rule with the real TensorRT-RTX, so that no rule can drift from
the truth. On another TensorRT a rule is an error where `Target.limits` knows it from documentation, else a warning.
"""

import importlib
import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto

from trt_compress.export.findings import Finding as Finding
from trt_compress.export.graph_view import GraphView, attribute
from trt_compress.export.inferred import disagreements
from trt_compress.export.parser_rules import PARSER_RULES, does_nothing
from trt_compress.export.soundness import KINDS, Flaw, all_graphs, is_taken
from trt_compress.export.subject import Subject
from trt_compress.export.targets import Target
from trt_compress.plugins.registry import specs
from trt_compress.plugins.spec import DOMAIN

_STANDARD = ("", "ai.onnx")
_ONNXRUNTIME_DOMAINS = ("com.microsoft", "ai.onnx.ml")


def preflight(model: ModelProto | Path | Subject, target: Target, *, lowered: bool = False) -> tuple[Finding, ...]:
    """Hold a graph against the rules of a target.

    Args:
        model: The model or its file; the data of external weights are not looked at. Where several targets follow, its
            `Subject`.
        target: Where it shall run.
        lowered: Whether the model already has the form in which the target reads it.

    Returns:
        What was found, in the order of the graph. A graph that is not sound is not looked at any further.

    Raises:
        ConfigError: The file cannot be read or is not ONNX.
    """
    subject = model if isinstance(model, Subject) else Subject(model)
    unsound, given = _flaw_findings(subject.flaws, target), subject.given
    calls = tuple(_call_findings(given, lowered=lowered))
    if any(finding.severity == "error" for finding in (*unsound, *calls)):
        return (*unsound, *calls)
    try:
        view = subject.read_by(target, lowered=lowered)
    except Exception as error:  # a library's word on a foreign file, or ours on what cannot be lowered
        return (*unsound, _not_lowered(error, target))
    of_model = tuple(_model_findings(view, target))
    objections: Iterable[Flaw] = view.objections
    if any(finding.rule == "precision" for finding in of_model):  # it says the same, and what to do
        objections = (flaw for flaw in objections if "unsupported type" not in flaw.message)
    elif target.is_tensorrt:  # it computes in small floats where ONNX has no such form of the operator
        objections = (
            flaw for flaw in objections if not re.search(r"unsupported type: tensor\(float[48]", flaw.message)
        )
    found = (
        *unsound,
        *_flaw_findings((*objections, *disagreements(view.declared, view.model)), target),
        *of_model,
        *_operator_findings(view, target),
        *_node_findings(view, target),
    )
    return found if lowered else (*found, *_body_findings(subject, target))


def _flaw_findings(found: Iterable[Flaw], target: Target) -> tuple[Finding, ...]:
    """Flaws as findings: a warning where the parser reads such a graph all the same."""
    taken = "; the parser passes over it" if target.is_tensorrt else ""
    return tuple(
        Finding(severity="warning", rule=flaw.kind, node=flaw.node, message=flaw.message + taken, fix=flaw.fix)
        if is_taken(flaw, tensorrt=target.is_tensorrt)
        else Finding(severity="error", rule=flaw.kind, node=flaw.node, message=flaw.message, fix=flaw.fix)
        for flaw in found
    )


def _call_findings(given: ModelProto, *, lowered: bool) -> Iterator[Finding]:
    """Nodes of our operators that do not call them as their `SPEC` says."""
    for node in (node for graph in all_graphs(given.graph) for node in graph.node if node.domain == DOMAIN):
        if problem := _call_problem(node, may_be_unknown=lowered):
            fix = "export the model again with this version of trt-compress"
            yield _finding("operator-call", None, _name(node), f"{node.op_type} {problem}", fix)


def _call_problem(node: NodeProto, *, may_be_unknown: bool) -> str | None:
    spec = specs().get(node.op_type)
    if spec is None:
        return None if may_be_unknown else "is no operator of this version of trt-compress"
    if not len(node.input) == len(spec.inputs) or len(node.output) > len(spec.outputs):
        takes, gives = len(spec.inputs), len(spec.outputs)
        return f"has {len(node.input)} inputs and {len(node.output)} outputs, not {takes} and {gives}"
    kinds = {"int": AttributeProto.INT, "ints": AttributeProto.INTS, "float": AttributeProto.FLOAT}
    given = {item.name: item.type for item in node.attribute}
    for wanted in spec.attributes:
        if given.get(wanted.name) != kinds[wanted.kind]:
            return (
                f"lacks the attribute '{wanted.name}'"
                if wanted.name not in given
                else f"'s '{wanted.name}' is no {wanted.kind}"
            )
        value = attribute(node, wanted.name)
        for number in value if wanted.kind == "ints" else [value]:
            if (wanted.minimum is not None and number < wanted.minimum) or (
                wanted.maximum is not None and number > wanted.maximum
            ):
                return f"has {wanted.name}={number}, and {wanted.minimum} to {wanted.maximum} is allowed"
    return None


def _not_lowered(error: Exception, target: Target) -> Finding:
    said = " ".join(str(error).split())
    message = f"the graph cannot be put into the form that '{target.name}' reads: {said}"
    fix = "write the functions of the file as standard operators"
    return Finding(severity="error", rule="not-lowered", node="", message=message, fix=fix)


def _body_findings(subject: Subject, target: Target) -> Iterator[Finding]:
    """Rules inside the bodies of operators, which run on TensorRT wherever no plugin is registered."""
    given = subject.given
    operators = [node.name for node in given.graph.node if node.domain == DOMAIN]
    if not operators or not target.is_tensorrt:
        return
    yield from _data_sizes(given, target)
    if target.lowering == "plugin":
        message = f"{len(operators)} operator nodes need the plugin library on '{target.name}'"
        fix = "register the plugin library there before the file is parsed; without it the parser refuses the nodes"
        yield Finding(severity="warning", rule="needs-plugin", node=operators[0], message=message, fix=fix)
    elif target.lowering == "function":
        bodies = tuple(f"{name}/" for name in operators)
        inside = _node_findings(subject.bodies, target)
        yield from (finding for finding in inside if finding.node.startswith(bodies))


def _data_sizes(given: ModelProto, target: Target) -> Iterator[Finding]:
    for node in given.graph.node:
        spec = specs().get(node.op_type) if node.domain == DOMAIN else None
        if spec is None or not spec.data_sized or attribute(node, spec.data_sized) != 1:
            continue
        message = (
            f"{spec.name} with {spec.data_sized}=1 has outputs whose size the data decide: it is copied to the host "
        )
        message += f"in every run, and no CUDA graph is captured on '{target.name}'"
        if target.lowering != "plugin":
            message += "; without a plugin the builder tunes what follows for a size of one"
        fix = f"{spec.data_sized}=0 keeps the size constant, with padding and a validity mask"
        yield Finding(severity="warning", rule="data-dependent-size", node=node.name, message=message, fix=fix)


def _finding(rule: str, target: Target | None, node: str, message: str, fix: str) -> Finding:
    """A finding whose severity is the target's knowledge of the rule; an error where no target is given."""
    severity: Literal["error", "warning"] = "error" if target is None or rule in target.limits else "warning"
    return Finding(severity=severity, rule=rule, node=node, message=message, fix=fix)


def _name(node: NodeProto | None) -> str:
    return "" if node is None else node.name or next(filter(None, node.output), node.op_type)


# ---- the model as a whole -------------------------------------------------------------------------------------------


def _model_findings(view: GraphView, target: Target) -> Iterator[Finding]:
    opset = max((item.version for item in view.model.opset_import if item.domain in _STANDARD), default=0)
    if target.first_refused_opset and opset >= target.first_refused_opset:
        message = (
            f"opset {opset} is refused by {target.name}, which reads opset {target.first_refused_opset - 1} at most"
        )
        yield _finding("opset", None, "", message, f"export with opset {target.max_opset} or older")
    elif opset > target.max_opset:
        message = f"opset {opset} is newer than {target.max_opset}, the newest that '{target.name}' is known to read"
        yield _finding("opset", target, "", message, f"export with opset {target.max_opset} or older")
    version = view.declared.ir_version
    if target.first_refused_ir and version >= target.first_refused_ir:
        message = f"the file has IR version {version}, and '{target.name}' reads {target.first_refused_ir - 1} at most"
        yield _finding("ir-version", None, "", message, "save it with an older IR version")
    yield from _precisions(view, target)
    if target.is_tensorrt:
        yield from _sizes(view)
        yield from _quantized_constants(view, target)
        yield from _types(view, target)
        yield from _functions(view, target)


_PRECISIONS: Mapping[int, str] = {
    TensorProto.FLOAT16: "fp16",
    TensorProto.BFLOAT16: "bf16",
    TensorProto.FLOAT8E4M3FN: "fp8",
    TensorProto.FLOAT4E2M1: "fp4",
    TensorProto.INT4: "int4",
}


def _precisions(view: GraphView, target: Target) -> Iterator[Finding]:
    first_of = {
        _PRECISIONS[dtype]: name
        for name, dtype in reversed(view.dtypes().items())
        if dtype in _PRECISIONS and (target.is_tensorrt or _is_computed_with(view, name))
    }
    for precision, tensor in first_of.items():
        if precision not in target.precisions:
            message = f"tensor '{tensor}' is {precision}, which '{target.name}' does not compute in"
            fix = f"export in one of {', '.join(target.precisions)}"
            yield _finding("precision", None, _name(view.producer.get(tensor)), message, fix)


_NO_TYPE = {
    getattr(TensorProto, name)
    for name in (
        *("INT16", "UINT16", "UINT32", "UINT64", "STRING", "COMPLEX64", "COMPLEX128", "FLOAT8E5M2", "FLOAT8E5M2FNUZ"),
        *("FLOAT8E4M3FNUZ", "FLOAT8E8M0", "UINT4", "UINT2", "INT2"),
    )
    if hasattr(TensorProto, name)
}
_UINT8_READERS = {"Cast", "CastLike", "Identity", "Shape", "Size", "Equal", "Flatten"} | {
    *("QuantizeLinear", "DequantizeLinear"),
}
# Operators that ONNX Runtime has for every type: they carry numbers, and compute nothing with them.
_CARRIERS = {
    *("Cast", "CastLike", "QuantizeLinear", "DequantizeLinear", "Identity", "Shape", "Size", "Reshape", "Flatten"),
    *(
        "Squeeze",
        "Unsqueeze",
        "Constant",
        "If",
        "Loop",
        "Scan",
        "Pad",
        "Gather",
        "Slice",
        "Split",
        "Concat",
        "Transpose",
    ),
    *("GatherElements", "GatherND", "ScatterElements", "ScatterND", "TensorScatter", "ConstantOfShape"),
    *("LayerNormalization", "IsInf", "IsNaN", "Sign"),
}
_SMALL_TYPES: Mapping[int, str] = {
    TensorProto.FLOAT8E4M3FN: "fp8",
    TensorProto.INT4: "int4",
    TensorProto.FLOAT4E2M1: "fp4",
}
_QUANTIZED = {TensorProto.INT8, *_SMALL_TYPES}
_MOST_DIMENSIONS, _LARGEST_SIZE = 8, 2**31 - 1


def _is_computed_with(view: GraphView, tensor: str) -> bool:
    touching = {node.op_type for node in (*view.consumers[tensor], view.producer.get(tensor)) if node is not None}
    return bool(touching - _CARRIERS)


def _sizes(view: GraphView) -> Iterator[Finding]:
    """Tensors with more dimensions or larger sizes than TensorRT has, and inputs and outputs that are no tensors."""
    for tensor in view.tensors():
        sizes = view.shape(tensor)
        maker = _name(view.producer.get(tensor))
        if sizes is not None and len(sizes) > _MOST_DIMENSIONS:
            message = f"tensor '{tensor}' has {len(sizes)} dimensions, and TensorRT has at most {_MOST_DIMENSIONS}"
            yield _finding("rank", None, maker, message, "Reshape it to fewer dimensions")
        elif tensor in view.inputs and any(size == 2**31 for size in sizes or ()):
            message = f"input '{tensor}' has a size of {2**31}, and TensorRT has at most {_LARGEST_SIZE}"
            yield _finding("rank", None, maker, message, "split the axis")
    for value in (*view.declared.graph.input, *view.declared.graph.output):
        if (kind := value.type.WhichOneof("value")) not in (None, "tensor_type"):
            message = f"'{value.name}' is a {kind.removesuffix('_type')}, and TensorRT has tensors only"
            yield _finding("tensor-type", None, "", message, "give out the tensors one by one")


def _quantized_constants(view: GraphView, target: Target) -> Iterator[Finding]:
    for name, dtype in view.dtypes().items():
        literal = name in view.weights or (name in view.producer and view.producer[name].op_type == "Constant")
        if dtype not in _QUANTIZED or not literal:
            continue
        readers = [
            node
            for node in view.consumers[name]
            if node.op_type not in ("DequantizeLinear", "QuantizeLinear", "Clip") and node.domain != DOMAIN
            if not (node.op_type == "CastLike" and node.input[0] != name)
            if not (node.op_type == "Pad" and attribute(node, "mode", b"constant") != b"constant")
        ]
        if readers:
            message = (
                f"constant '{name}' is {TensorProto.DataType.Name(dtype).lower()} and read by {readers[0].op_type}"
            )
            fix = "read it by DequantizeLinear, or store it as int32"
            yield _finding("quantized-constant", target, _name(readers[0]), message, fix)


def _types(view: GraphView, target: Target) -> Iterator[Finding]:
    for tensor, dtype in view.dtypes().items():
        maker = view.producer.get(tensor)
        if dtype == TensorProto.DOUBLE:
            message = f"tensor '{tensor}' is float64 and is computed in float32 there"
            yield _finding("float64", target, _name(maker), message, "export in float32")
        elif problem := _type_problem(view, tensor, dtype):
            fix = "use int32, int64, int8 or a float type inside the graph; uint8 is for inputs and outputs"
            yield _finding("tensor-type", target, _name(maker), f"tensor '{tensor}' {problem}", fix)


def _type_problem(view: GraphView, tensor: str, dtype: int) -> str | None:
    maker = view.producer[tensor].op_type if tensor in view.producer else None
    if dtype in _NO_TYPE:
        return f"is {TensorProto.DataType.Name(dtype).lower()}, which TensorRT does not have"
    if dtype in _SMALL_TYPES and maker in ("Cast", "CastLike"):
        return f"becomes {_SMALL_TYPES[dtype]} by {maker}; only QuantizeLinear makes that"
    if dtype == TensorProto.UINT8:
        readers = {
            node.op_type
            for node in view.consumers[tensor]
            if not (node.op_type == "Pow" and node.input[0] != tensor) and not _passes_on(node)
        }
        if tensor in view.weights:
            zero_points = {node.op_type for node in view.consumers[tensor] if tensor == _input(node, 2)}
            readers -= {"Cast"} | (zero_points & {"QuantizeLinear", "DequantizeLinear"})
        else:
            readers -= _UINT8_READERS
        if readers:
            return f"is uint8 and read by {', '.join(sorted(readers))}; Cast it first"
        if maker not in (None, "QuantizeLinear") and tensor not in view.outputs:
            return "is uint8 inside the graph"
    return None


def _passes_on(node: NodeProto) -> bool:
    return does_nothing(node) or (node.op_type in ("Max", "Min") and len(node.input) == 1)


def _functions(view: GraphView, target: Target) -> Iterator[Finding]:
    for function in view.model.functions:
        if target.plugin_wins == "without_body" and function.domain == DOMAIN:
            message = f"the body of '{function.name}' is in the file, and '{target.name}' prefers it to the plugin"
            yield _finding("function-hides-plugin", None, function.name, message, "lower the model for this target")
        if onnx.defs.has(function.name):
            message = f"function '{function.name}' of domain '{function.domain}' has the name of a standard operator, "
            message += "which TensorRT takes instead, whatever the domain"
            yield _finding("function-name", None, function.name, message, "give the function a name of its own")


# ---- operators without a kernel, and plugins ------------------------------------------------------------------------

_INSTEAD = {
    **dict.fromkeys(
        ("NonZero", "Compress", "Unique"), "keep a constant count with TopK, or a padded output and a mask"
    ),
    **dict.fromkeys(("BitShift", "BitwiseAnd", "BitwiseOr"), "unpack with Div, Floor and Mod, pack with Mul and Add"),
    **dict.fromkeys(("MatMulInteger", "DynamicQuantizeLinear"), "put QuantizeLinear, DequantizeLinear around MatMul"),
    "DFT": "use STFT, or MatMul with a constant basis",
}


def _operator_findings(view: GraphView, target: Target) -> Iterator[Finding]:
    functions = {(function.domain, function.name) for function in view.model.functions}
    for node in view.nodes:
        if node.domain in _STANDARD:
            yield from _standard(node, target)
        elif node.domain == DOMAIN and target.is_tensorrt:
            yield from _plugin(node, target)
        elif (node.domain, node.op_type) not in functions:
            yield from _foreign(node, target)


def _standard(node: NodeProto, target: Target) -> Iterator[Finding]:
    fix = _INSTEAD.get(node.op_type, "replace it by operators that the target takes")
    if node.op_type in target.refused_ops:
        message = f"{node.op_type} is not implemented on '{target.name}'"
        yield _finding("refused-operator", None, _name(node), message, fix)
    elif not onnx.defs.has(node.op_type):
        message = f"{node.op_type} is no operator of the ONNX standard"
        yield _finding("unknown-operator", None, _name(node), message, fix)


def _plugin(node: NodeProto, target: Target) -> Iterator[Finding]:
    if target.plugin_wins == "never":
        message = f"{node.op_type} is left as a node, and '{target.name}' takes no plugins (one ends its process)"
        yield _finding("plugin-not-taken", None, _name(node), message, "inline the function bodies")
        return
    missing = [name for name in ("plugin_version", "plugin_namespace") if attribute(node, name) is None]
    if missing:
        message = f"{node.op_type} lacks {' and '.join(missing)}, so the parser does not look for its plugin"
        yield _finding("plugin-attributes", None, _name(node), message, "lower the model for this target")


def _foreign(node: NodeProto, target: Target) -> Iterator[Finding]:
    kind = f"{node.domain}::{node.op_type}"
    if target.is_tensorrt and onnx.defs.has(node.op_type) and node.op_type not in target.refused_ops:
        message = f"{kind} is read as the standard {node.op_type}, since the parser ignores the domain"
        yield _finding("foreign-domain", target, _name(node), message, "use the standard operator")
    elif target.is_tensorrt or node.domain not in _ONNXRUNTIME_DOMAINS or node.op_type not in _contributed(node):
        message = f"{kind} has neither a function body in the file nor a kernel on '{target.name}'"
        yield _finding("unknown-operator", None, _name(node), message, "add the body, or use standard operators")


@cache
def _onnxruntime_operators() -> Mapping[str, frozenset[str]] | None:
    """Operators of ONNX Runtime's own domains as the installed library knows them, None without it."""
    try:
        state = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")
        schemas = state.get_all_operator_schema()
    except (ImportError, AttributeError, OSError):
        return None
    known: dict[str, set[str]] = {}
    for schema in schemas:
        known.setdefault(schema.domain, set()).add(schema.name)
    return {domain: frozenset(names) for domain, names in known.items()}


def _contributed(node: NodeProto) -> Container[str]:
    known = _onnxruntime_operators()
    return {node.op_type} if known is None else known.get(node.domain, frozenset())


# ---- standard operators with conditions (TensorRT family) -----------------------------------------------------------

Check = Callable[[GraphView, NodeProto, Target], str | None]


def _node_findings(view: GraphView, target: Target) -> Iterator[Finding]:
    if not target.is_tensorrt:
        return
    rules = [(rule, *parts) for rule, parts in _NODE_RULES.items()]
    rules += [(rule, ops, _without_target(check), fix) for rule, ops, check, fix in PARSER_RULES]
    for node in view.nodes:
        for rule, operators, check, fix in rules:
            if node.domain not in _STANDARD or node.op_type not in operators:
                continue
            try:
                message = check(view, node, target)
            except Exception as error:  # a foreign node that passed all checks and is still not as the rule takes it
                said = f"{node.op_type} could not be judged by this rule: {type(error).__name__} {error}"
                yield Finding(
                    severity="warning", rule=rule, node=_name(node), message=said, fix="ask the parser itself"
                )
                continue
            if message:
                yield _finding(rule, target, _name(node), message, fix)


def _without_target(check: Callable[[GraphView, NodeProto], str | None]) -> Check:
    return lambda view, node, target: check(view, node)


def _input(node: NodeProto, index: int) -> str:
    return node.input[index] if index < len(node.input) else ""


def _topk_k(view: GraphView, node: NodeProto, target: Target) -> str | None:
    value, sizes = view.value(_input(node, 1)), view.shape(node.input[0])
    if value is None:
        return None
    k, length = int(value.flat[0]), sizes[attribute(node, "axis", -1)] if sizes else None
    if target.topk_max_k is not None and k > target.topk_max_k:
        return f"TopK with K = {k} exceeds {target.topk_max_k} (a sort is a TopK over all tokens)"
    return f"TopK with K = {k} of {length} elements" if length is not None and k > length else None


def _reduction(view: GraphView, node: NodeProto, target: Target) -> str | None:
    reduction = attribute(node, "reduction", b"none").decode()
    return f"{node.op_type} with reduction={reduction!r}" if reduction != "none" else None


def _zero_point(view: GraphView, node: NodeProto, target: Target) -> str | None:
    name = _input(node, 2)
    value = view.value(name)
    if value is not None:
        return f"{node.op_type} has a zero point other than 0" if np.any(value.astype(np.int32)) else None
    return f"{node.op_type} has a zero point computed at run time" if name and name not in view.weights else None


def _scale_axis(view: GraphView, node: NodeProto, target: Target) -> str | None:
    scales, sizes = view.shape(node.input[1]), view.shape(node.input[0])
    axis = attribute(node, "axis", 1)
    if scales is None or len(scales) != 1 or sizes is None or axis >= len(sizes) or sizes[axis] is not None:
        return None
    return f"{node.op_type} has one scale for each element of axis {axis}, whose size is dynamic"


def _attention_fp32(view: GraphView, node: NodeProto, target: Target) -> str | None:
    if view.dtype(node.input[0]) not in (TensorProto.FLOAT, TensorProto.DOUBLE):
        return None
    sizes, heads = view.shape(node.input[0]), [attribute(node, name, 0) for name in ("q_num_heads", "kv_num_heads")]
    plain = not _input(node, 3) and not attribute(node, "is_causal", 0)
    if sizes is not None and (sizes[-2] == 1 or (len(sizes) == 3 and heads[0] == heads[1] and plain)):
        return None  # one query, or the flat form: these are taken apart
    return "Attention in float32"


def _attention_shared(view: GraphView, node: NodeProto, target: Target) -> str | None:
    query, key = (_origin(view, name) for name in node.input[:2])
    return "Attention whose query and key are one tensor crashes the builder" if query == key else None


def _origin(view: GraphView, name: str) -> str:
    while name in view.producer and view.producer[name].op_type == "Identity":
        name = view.producer[name].input[0]
    return name


def _operand_type(view: GraphView, node: NodeProto, target: Target) -> str | None:
    dtype = view.dtype(node.input[0])
    if does_nothing(node):
        return None
    refused = {TensorProto.BOOL} if node.op_type.startswith("Reduce") else _INTEGERS
    return f"{node.op_type} over {TensorProto.DataType.Name(dtype).lower()}" if dtype in refused else None


_INTEGERS = {TensorProto.INT8, TensorProto.INT32, TensorProto.INT64}


def _constant_input(view: GraphView, node: NodeProto, target: Target) -> str | None:
    name = _input(node, 1)
    if not name or name in view.weights:
        return None
    if node.op_type.startswith("Reduce"):  # even arithmetic on constants is refused here
        literal = name in view.producer and view.producer[name].op_type == "Constant"
        return None if literal else f"{node.op_type} takes '{name}', which is neither a weight nor a Constant"
    return f"{node.op_type} takes '{name}', which is computed at run time" if view.value(name) is None else None


def _static_shape(view: GraphView, node: NodeProto, target: Target) -> str | None:
    sizes = view.shape(node.input[0])
    if sizes is None:
        return None
    needed = sizes if node.op_type == "EyeLike" else (sizes[attribute(node, "axis", -1)],)
    return f"{node.op_type} over a dynamic size" if None in needed else None


def _extra_output(view: GraphView, node: NodeProto, target: Target) -> str | None:
    count = len([name for name in node.output if name])
    return f"{node.op_type} with {count} outputs; only the first is there" if count > 1 else None


def _attribute_value(view: GraphView, node: NodeProto, target: Target) -> str | None:
    name = _ATTRIBUTE_RULES[node.op_type]
    value = attribute(node, name, [])
    plain = 1 if name == "dilations" else 0
    return f"{node.op_type} with {name}={value}" if np.any(np.asarray(value) != plain) else None


_ATTRIBUTE_RULES = {
    "Resize": "antialias",
    "Attention": "softcap",
    **dict.fromkeys(("MaxPool", "AveragePool", "LpPool"), "dilations"),
}
_QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")
_REDUCTIONS = tuple(
    f"Reduce{kind}" for kind in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
)

_NODE_RULES: Mapping[str, tuple[tuple[str, ...], Check, str]] = {
    "topk-k": (("TopK",), _topk_k, "keep fewer tokens, or rank by counting comparisons as TokenMerge does"),
    "scatter-elements-reduction": (
        ("ScatterElements",),
        _reduction,
        "merge with a one-hot product (MatMul) or a gather",
    ),
    "scatter-nd-reduction": (("ScatterND",), _reduction, "merge with a one-hot product (MatMul) or a gather"),
    "zero-point": (_QUANTIZERS, _zero_point, "quantize symmetrically, with a constant zero point of 0"),
    "dynamic-scale-axis": (_QUANTIZERS, _scale_axis, "quantize by Div, Round, Clip and Cast, or with one scale"),
    "attention-fp32": (("Attention",), _attention_fp32, "cast to float16, or write MatMul, Softmax, MatMul"),
    "attention-shared-input": (("Attention",), _attention_shared, "write MatMul, Softmax, MatMul"),
    "operand-type": (("MatMul", "Gemm", "Einsum", "ReduceMax", "ReduceMin"), _operand_type, "cast the operand first"),
    "constant-input": (("CumSum", "OneHot", *_REDUCTIONS), _constant_input, "make it a constant of the graph"),
    "static-shape": (("EyeLike", "Hardmax"), _static_shape, "compare with a Range (Equal), or fix the size"),
    "extra-output": (("LayerNormalization", "MaxPool", "Attention"), _extra_output, "compute the others separately"),
    "attribute-value": (tuple(_ATTRIBUTE_RULES), _attribute_value, "use the plain form, or separate operators"),
}
RULES = (
    *(
        *KINDS,
        "shape-inference",
        "operator-call",
        "not-lowered",
        "opset",
        "precision",
        "float64",
        "tensor-type",
        "function-hides-plugin",
        "function-name",
    ),
    *("refused-operator", "unknown-operator", "foreign-domain", "plugin-not-taken", "plugin-attributes"),
    *("needs-plugin", "data-dependent-size", "ir-version", "rank", "quantized-constant"),
    *dict.fromkeys((*_NODE_RULES, *(rule for rule, *_ in PARSER_RULES))),
)
