"""Is a file a sound ONNX graph? What a parser trips over, or dies of, before any operator is looked at.

Whoever reads the graph afterwards (lowering, shape inference, the rules) may take for granted what is checked here:
every tensor is made once and before it is read, functions do not call themselves, tensors hold what they declare.
How bad a flaw is depends on the reader: TensorRT's parser sorts nodes and skips unknown attributes, ONNX Runtime does
not. `_TAKEN_BY_TENSORRT` and `_TAKEN_BY_ONNXRUNTIME` say what each was seen to read all the same.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

import onnx
import onnx.checker
from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto

STANDARD_DOMAINS = ("", "ai.onnx")


@dataclass(frozen=True, slots=True, kw_only=True)
class Flaw:
    """One thing that makes a graph unsound: its kind, the node (or "" for the graph), what is wrong, what to do."""

    kind: str
    node: str
    message: str
    fix: str


_TAKEN_BY_TENSORRT = frozenset(
    {
        *("node-order", "shadowed-tensor", "outer-output", "function-twice", "opset-import", "node-name"),
        *("unknown-attribute", "attribute-type", "operator-version", "declared-type"),
    }
)
_TAKEN_BY_ONNXRUNTIME = frozenset({"node-order", "weight-twice", "sparse-weight", "output-type", "no-output"})
KINDS = (
    *("graph-cycle", "undefined-tensor", "duplicate-tensor", "weight-twice", "node-order", "inner-order"),
    *("shadowed-tensor", "outer-output", "recursive-function", "function-twice", "function-call", "opset-import"),
    *("node-name", "tensor-data", "sparse-weight", "input-type", "output-type", "no-output", "declared-type"),
    *("unknown-attribute", "attribute-type", "missing-attribute", "operand-count", "operator-version", "bad-node"),
)


def is_taken(flaw: Flaw, *, tensorrt: bool) -> bool:
    """Whether the parser was seen to read a graph with this flaw, though ONNX does not allow it."""
    return flaw.kind in (_TAKEN_BY_TENSORRT if tensorrt else _TAKEN_BY_ONNXRUNTIME)


def label(node: NodeProto) -> str:
    """What a node is called in a message: its name, or the first tensor it makes, or its operator."""
    return node.name or next(filter(None, node.output), node.op_type)


def node_graphs(node: NodeProto) -> Iterator[GraphProto]:
    """The subgraphs of a node: branches of an If, the body of a Loop or Scan."""
    for item in node.attribute:
        if item.type == AttributeProto.GRAPH or item.HasField("g"):
            yield item.g
        yield from item.graphs


def all_graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """A graph and everything nested in it."""
    yield graph
    for node in graph.node:
        for inner in node_graphs(node):
            yield from all_graphs(inner)


def in_order(graph: GraphProto) -> list[NodeProto]:
    """The nodes of a graph without cycles, each after those whose tensors it reads."""
    maker = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    done: set[int] = set()
    sorted_nodes: list[NodeProto] = []
    for start in range(len(graph.node)):
        stack = [start]
        while stack:
            index = stack[-1]
            sources = () if index in done else {maker[name] for name in _read(graph.node[index]) if name in maker}
            before = [source for source in sources if source not in done and source not in stack]
            if before:
                stack.extend(sorted(before, reverse=True))
                continue
            stack.pop()
            if index not in done:
                done.add(index)
                sorted_nodes.append(graph.node[index])
    return sorted_nodes


def flaws(model: ModelProto) -> Iterator[Flaw]:
    """Everything that is unsound in a model, functions and subgraphs included.

    The model must still have its weights: they are measured against what they declare.
    """
    yield from _functions(model)
    yield from _scope(_Scope.of_graph(model.graph), frozenset(), top=True)
    yield from _borders(model)
    for function in model.functions:
        yield from _scope(_Scope.of_function(function), frozenset())
    imports = {entry.domain: entry.version for entry in model.opset_import}
    for graph in all_graphs(model.graph):
        yield from _weights(graph)
        yield from _nodes(graph.node, imports, model)
    for function in model.functions:
        inner = {entry.domain: entry.version for entry in function.opset_import}
        for node in function.node:
            yield from _nodes([node], inner, model, inside=function)
            for graph in (deep for one in node_graphs(node) for deep in all_graphs(one)):
                yield from _weights(graph)
                yield from _nodes(graph.node, inner, model, inside=function)


# ---- names ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Scope:
    """The nodes of a graph or a function, and the names it has from the start."""

    title: str
    inputs: Sequence[str]
    weights: Sequence[str]
    outputs: Sequence[str]
    nodes: Sequence[NodeProto]
    in_function: bool = False

    @classmethod
    def of_graph(cls, graph: GraphProto) -> "_Scope":
        sparse = [tensor.values.name for tensor in graph.sparse_initializer]
        weights = [*(tensor.name for tensor in graph.initializer), *sparse]
        inputs, outputs = [value.name for value in graph.input], [value.name for value in graph.output]
        return cls("the graph", inputs, weights, outputs, graph.node)

    @classmethod
    def of_function(cls, function: FunctionProto) -> "_Scope":
        return cls(f"function '{function.name}'", function.input, (), function.output, function.node, True)


def _scope(scope: _Scope, outer: Set[str], *, earlier: Set[str] = frozenset(), top: bool = False) -> Iterator[Flaw]:
    """Names in one graph; `outer` are those that enclosing graphs define, `earlier` those defined before this one."""
    known = {*scope.inputs, *scope.weights} - {""}
    for name, count in Counter(scope.inputs).items():
        if count > 1 and name:
            yield _twice(name, "", f"{count} inputs of {scope.title} are called '{name}'")
    for name, count in Counter(scope.weights).items():
        if count > 1 and name:
            message = f"{count} weights are called '{name}'"
            yield Flaw(kind="weight-twice", node="", message=message, fix="give every tensor its own name")
    maker: dict[str, int] = {}
    for index, node in enumerate(scope.nodes):
        for name in filter(None, node.output):
            if name in known or name in maker:
                yield _twice(name, label(node), f"tensor '{name}' is made twice")
            elif name in earlier:
                message = f"tensor '{name}' inside a subgraph has the name of one outside"
                yield Flaw(kind="shadowed-tensor", node=label(node), message=message, fix="rename the inner tensor")
            maker.setdefault(name, index)
    here = known | maker.keys()
    yield from _undefined(scope, here, outer, top)
    yield from _order(scope, maker, known)
    before = set(known)
    for node in scope.nodes:
        for graph in node_graphs(node):
            yield from _scope(_Scope.of_graph(graph), here | outer, earlier=earlier | before)
        before.update(filter(None, node.output))


def _twice(name: str, node: str, message: str) -> Flaw:
    return Flaw(kind="duplicate-tensor", node=node, message=message, fix="give every tensor its own name")


def _undefined(scope: _Scope, here: Set[str], outer: Set[str], top: bool) -> Iterator[Flaw]:
    fix = "export the model again; the node that makes it was lost"
    for node in scope.nodes:
        for name in filter(None, node.input):
            if name not in here and name not in outer:
                message = f"{node.op_type} reads '{name}', which nothing in the file makes"
                yield Flaw(kind="undefined-tensor", node=label(node), message=message, fix=fix)
    for name in scope.outputs:
        if name in here:
            continue
        if name in outer and not top:
            message = f"a subgraph gives out '{name}', which is made outside it"
            yield Flaw(kind="outer-output", node="", message=message, fix="pass it through an Identity inside")
        else:
            message = f"output '{name}' of {scope.title} is made by no node"
            yield Flaw(kind="undefined-tensor", node="", message=message, fix=fix)


def _order(scope: _Scope, maker: Mapping[str, int], known: Set[str]) -> Iterator[Flaw]:
    """Cycles, else nodes that stand before the one whose tensor they read."""
    reads = [
        {maker[name] for name in _read(node) if name in maker and name not in known} for node in scope.nodes
    ]  # a name that is also a weight is a duplicate, not an edge
    waiting = {index: set(sources) for index, sources in enumerate(reads)}
    readers: dict[int, list[int]] = {}
    for index, sources in enumerate(reads):
        for source in sources:
            readers.setdefault(source, []).append(index)
    ready = [index for index, sources in waiting.items() if not sources]
    while ready:
        done = ready.pop()
        del waiting[done]
        for reader in readers.get(done, ()):
            waiting[reader].discard(done)
            if not waiting[reader]:
                ready.append(reader)
    if waiting:
        circle = _circle(waiting)
        names = " → ".join(label(scope.nodes[index]) for index in (*circle, circle[0]))
        message = f"nodes wait for each other in a circle: {names}"
        fix = "a graph has no loops; write the feedback as a Loop, or as an input and an output"
        yield Flaw(kind="graph-cycle", node=label(scope.nodes[circle[0]]), message=message, fix=fix)
        return
    for index, sources in enumerate(reads):
        if late := [source for source in sources if source > index]:
            node = scope.nodes[index]
            message = f"{node.op_type} stands before {label(scope.nodes[late[0]])}, whose tensor it reads"
            kind = "inner-order" if scope.in_function else "node-order"
            yield Flaw(kind=kind, node=label(node), message=message, fix="sort the nodes")
            return


def _circle(waiting: Mapping[int, Set[int]]) -> list[int]:
    seen: list[int] = []
    index = next(iter(waiting))
    while index not in seen:
        seen.append(index)
        index = next(source for source in sorted(waiting[index]) if source in waiting)
    return list(reversed(seen[seen.index(index) :]))


def _read(node: NodeProto) -> set[str]:
    """Names that a node needs, those that its subgraphs take from outside included."""
    names = set(node.input)
    for graph in node_graphs(node):
        inner = _Scope.of_graph(graph)
        made = {*inner.inputs, *inner.weights, *(name for one in graph.node for name in one.output)}
        names |= {name for one in graph.node for name in _read(one)} - made
        names |= set(inner.outputs) - made
    return names - {""}


# ---- functions ------------------------------------------------------------------------------------------------------

_Key = tuple[str, str, str]


def _functions(model: ModelProto) -> Iterator[Flaw]:
    known = {_key(function): function for function in model.functions}
    for key, count in Counter(map(_key, model.functions)).items():
        if count > 1:
            message = f"{count} functions are called '{key[0]}::{key[1]}'"
            yield Flaw(kind="function-twice", node=key[1], message=message, fix="keep one of them")
    calls = {key: {_key(node) for node in _deep(function.node)} & known.keys() for key, function in known.items()}
    for circle in _recursions(calls):
        names = " → ".join(f"{domain}::{name}" for domain, name, _ in (*circle, circle[0]))
        message = f"functions call themselves: {names}"
        yield Flaw(kind="recursive-function", node=circle[0][1], message=message, fix="write the recursion as a Loop")
    nodes = [*_deep(model.graph.node), *(node for function in model.functions for node in _deep(function.node))]
    for node in nodes:
        if (called := known.get(_key(node))) and (problem := _call_problem(node, called)):
            message = f"{node.op_type} {problem}"
            yield Flaw(kind="function-call", node=label(node), message=message, fix="call it as it is declared")


def _call_problem(node: NodeProto, function: FunctionProto) -> str | None:
    if len(node.input) > len(function.input):
        return f"is called with {len(node.input)} inputs, and its function has {len(function.input)}"
    if len(node.input) < len(function.input):
        return f"is called with {len(node.input)} of {len(function.input)} inputs"
    if len(node.output) > len(function.output):
        return f"is called for {len(node.output)} outputs, and its function has {len(function.output)}"
    return None


def _key(item: FunctionProto | NodeProto) -> _Key:
    return item.domain, item.op_type if isinstance(item, NodeProto) else item.name, item.overload


def _deep(nodes: Sequence[NodeProto]) -> Iterator[NodeProto]:
    for node in nodes:
        yield node
        for graph in node_graphs(node):
            yield from _deep(graph.node)


def _recursions(calls: Mapping[_Key, Set[_Key]]) -> Iterator[list[_Key]]:
    finished: set[_Key] = set()
    for start in calls:
        path: list[_Key] = []
        stack = [(start, iter(sorted(calls[start])))]
        path.append(start)
        while stack and start not in finished:
            key, rest = stack[-1]
            following = next(rest, None)
            if following is None:
                finished.add(path.pop())
                stack.pop()
            elif following in path:
                yield path[path.index(following) :]
                finished.update(path)
                return
            elif following not in finished:
                path.append(following)
                stack.append((following, iter(sorted(calls[following]))))


# ---- inputs, outputs and weights ------------------------------------------------------------------------------------


def _borders(model: ModelProto) -> Iterator[Flaw]:
    graph = model.graph
    if not graph.output:
        yield Flaw(kind="no-output", node="", message="the graph has no outputs", fix="name what it shall give out")
    weights = {tensor.name: tensor for tensor in graph.initializer}
    for kind, values in (("input", graph.input), ("output", graph.output)):
        for value in values:
            problem = _type_problem(value.type)
            if problem:
                bad = "output-type" if kind == "output" and not value.type.WhichOneof("value") else "input-type"
                yield Flaw(kind=bad, node="", message=f"{kind} '{value.name}' {problem}", fix="export it with its type")
    for value in graph.input:
        weight, tensor = weights.get(value.name), value.type.tensor_type
        if weight is None or _type_problem(value.type):
            continue
        dims = [dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim]
        if tensor.elem_type != weight.data_type or (
            tensor.HasField("shape")
            and (
                len(dims) != len(weight.dims) or any(d not in (None, w) for d, w in zip(dims, weight.dims, strict=True))
            )
        ):
            message = f"input '{value.name}' and the weight of that name differ in type or shape"
            yield Flaw(kind="declared-type", node="", message=message, fix="declare the weight as it is")


def _type_problem(kind: onnx.TypeProto) -> str | None:
    which = kind.WhichOneof("value")
    if which is None:
        return "has no type"
    if which == "tensor_type" and kind.tensor_type.elem_type not in _KNOWN_TYPES:
        return f"has data type {kind.tensor_type.elem_type}, which ONNX does not know"
    return None


_KNOWN_TYPES = frozenset(TensorProto.DataType.values()) - {TensorProto.UNDEFINED}
_BITS: Mapping[int, int] = {
    getattr(TensorProto, name): bits
    for bits, names in {
        2: "UINT2 INT2",
        4: "UINT4 INT4 FLOAT4E2M1",
        8: "UINT8 INT8 BOOL FLOAT8E4M3FN FLOAT8E4M3FNUZ FLOAT8E5M2 FLOAT8E5M2FNUZ FLOAT8E8M0",
        16: "UINT16 INT16 FLOAT16 BFLOAT16",
        32: "FLOAT INT32 UINT32",
        64: "DOUBLE INT64 UINT64 COMPLEX64",
        128: "COMPLEX128",
    }.items()
    for name in names.split()
    if hasattr(TensorProto, name)  # the smallest types are of newer versions of ONNX
}
_FIELDS: Mapping[int, tuple[str, int]] = {
    TensorProto.FLOAT: ("float_data", 1),
    TensorProto.COMPLEX64: ("float_data", 2),
    TensorProto.DOUBLE: ("double_data", 1),
    TensorProto.COMPLEX128: ("double_data", 2),
    TensorProto.INT64: ("int64_data", 1),
    TensorProto.UINT32: ("uint64_data", 1),
    TensorProto.UINT64: ("uint64_data", 1),
    TensorProto.STRING: ("string_data", 1),
}


def _weights(graph: GraphProto) -> Iterator[Flaw]:
    for tensor in graph.initializer:
        if problem := tensor_problem(tensor):
            yield _bad_tensor(f"weight '{tensor.name}'", "", problem)
    read = {name for node in graph.node for name in _read(node)} | {value.name for value in graph.output}
    for sparse in graph.sparse_initializer:
        if sparse.values.name in read:
            message = f"weight '{sparse.values.name}' is stored sparse"
            yield Flaw(kind="sparse-weight", node="", message=message, fix="store it as a plain tensor")
        for part, tensor in (("values", sparse.values), ("indices", sparse.indices)):
            if problem := tensor_problem(tensor):
                yield _bad_tensor(f"sparse weight '{sparse.values.name}' ({part})", "", problem)


def _bad_tensor(which: str, node: str, problem: str) -> Flaw:
    fix = "export the model again; the file is damaged"
    return Flaw(kind="tensor-data", node=node, message=f"{which} {problem}", fix=fix)


def tensor_problem(tensor: TensorProto) -> str | None:
    """What is wrong with a tensor's own record, or None; a file with its data is not opened."""
    if tensor.data_type not in _KNOWN_TYPES:
        return f"has data type {tensor.data_type}, which ONNX does not know"
    if any(size < 0 for size in tensor.dims):
        return f"has a negative size: {_dims(tensor)}"
    count = 1
    for size in tensor.dims:
        count *= size
    if count >= 2**60:
        return f"has {_dims(tensor)} elements, more than can be stored"
    if tensor.data_location == TensorProto.EXTERNAL:
        return _location_problem(tensor)
    bits = _BITS.get(tensor.data_type)
    if tensor.HasField("raw_data"):
        if bits is None:
            return "is text stored as raw bytes"
        wanted, there = (count * bits + 7) // 8, len(tensor.raw_data)
        return None if wanted == there else f"of shape {_dims(tensor)} needs {wanted} bytes, and {there} are there"
    name, each = _FIELDS.get(tensor.data_type, ("int32_data", 1))
    wanted = (count * bits + 7) // 8 if bits is not None and bits < 8 else count * each
    there = len(getattr(tensor, name))
    return None if wanted == there else f"of shape {_dims(tensor)} needs {wanted} numbers, and {there} are there"


def _dims(tensor: TensorProto) -> str:
    return "×".join(map(str, tensor.dims)) or "()"


def _location_problem(tensor: TensorProto) -> str | None:
    location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
    if not location:
        return "is in another file, whose name is not given"
    posix, windows = PurePosixPath(location), PureWindowsPath(location)
    if posix.is_absolute() or windows.is_absolute() or ".." in (*posix.parts, *windows.parts):
        return f"is in {location!r}, outside the folder of the model"
    for key in ("offset", "length"):
        text = next((entry.value for entry in tensor.external_data if entry.key == key), "0")
        if not (text.isascii() and text.isdigit() and len(text) < 20):
            return f"is in {location!r} with {key} {text[:60]!r}, which is no number of bytes"
    return None


# ---- nodes one by one, held against ONNX's own schemas --------------------------------------------------------------

# What the checker says, and which kind of flaw it is; a node is judged by the first line that fits.
_CHECKER_SAYS = (
    (r"Unrecognized attribute", "unknown-attribute", "remove the attribute, or import an opset that has it"),
    (r"Required attribute", "missing-attribute", "give the attribute"),
    (r"No Op registered|is deprecated", "operator-version", "import an opset that has the operator"),
    (r"input size|output size|is marked single but", "operand-count", "give it the tensors its schema names"),
    (r"[Aa]ttribute|of 'attr'", "attribute-type", "give the attribute the type its schema names, once"),
)
_KNOWN_EARLIER = frozenset(
    {"LayerNormalization", "SimplifiedLayerNormalization"}
)  # both families read them in every opset


def _nodes(
    nodes: Sequence[NodeProto], imports: Mapping[str, int], model: ModelProto, inside: FunctionProto | None = None
) -> Iterator[Flaw]:
    own = {function.domain for function in model.functions}
    named = Counter(node.name for node in nodes if node.name)
    for name in (name for name, count in named.items() if count > 1):
        message = f"{named[name]} nodes are called '{name}'"
        yield Flaw(kind="node-name", node=name, message=message, fix="give every node its own name, or none")
    local = {_key(function) for function in model.functions}
    context = _context(model.ir_version, imports)
    for node in nodes:
        for tensor in (tensor for item in node.attribute for tensor in (*_single(item), *item.tensors)):
            if problem := tensor_problem(tensor):
                yield _bad_tensor(f"a tensor of {node.op_type}", label(node), problem)
        standard = node.domain in STANDARD_DOMAINS
        if node.domain not in imports and not (standard and imports.keys() & set(STANDARD_DOMAINS)):
            if standard or node.domain in own:
                where = "the model" if inside is None else f"function '{inside.name}'"
                message = f"{where} imports no opset of domain '{node.domain or 'ai.onnx'}', which {node.op_type} is of"
                yield Flaw(kind="opset-import", node=label(node), message=message, fix="import it")
            continue
        if standard and _key(node) not in local and onnx.defs.has(node.op_type):
            yield from _checked(node, context, inside)


def _single(item: AttributeProto) -> Iterator[TensorProto]:
    if item.HasField("t"):
        yield item.t
    for sparse in (item.sparse_tensor,) if item.HasField("sparse_tensor") else ():
        yield from (sparse.values, sparse.indices)


_INT32 = 2**31 - 1


def _context(ir_version: int, imports: Mapping[str, int]) -> Any:
    context = onnx.checker.C.CheckerContext()
    context.ir_version = min(max(ir_version, 0), _INT32)
    context.opset_imports = {
        "" if domain == "ai.onnx" else domain: min(max(version, -1), _INT32) for domain, version in imports.items()
    }
    return context


def _checked(node: NodeProto, context: Any, inside: FunctionProto | None) -> Iterator[Flaw]:
    """What ONNX's checker says of a node without the insides of its subgraphs, whose nodes are checked themselves."""
    alone = node
    if node.domain or any(item.HasField("g") or item.graphs for item in node.attribute):
        alone = NodeProto()
        alone.CopyFrom(node)
        alone.domain = ""
        for item in alone.attribute:
            if item.HasField("g"):
                item.g.CopyFrom(GraphProto(name="subgraph"))
    try:
        onnx.checker.check_node(alone, context)
    except onnx.checker.ValidationError as error:
        text = str(error).split("==> Context", 1)[0].strip()
        said = " ".join(text.split())
        kind, fix = next(
            ((kind, fix) for pattern, kind, fix in _CHECKER_SAYS if re.search(pattern, said)),
            ("bad-node", "write it as its schema says"),
        )
        if kind == "operator-version" and node.op_type in _KNOWN_EARLIER:
            return
        if inside is not None and kind == "attribute-type" and any(item.ref_attr_name for item in node.attribute):
            return  # a reference to an attribute of the function is judged where the function is called
        said = re.sub(r"\s*for operator .*$", "", said)
        message = f"{node.op_type} is not as ONNX defines it: {said.rstrip('.')}"
        yield Flaw(kind=kind, node=label(node), message=message, fix=fix)
