"""What is known about an ONNX graph before it runs: constants, static shapes, types, who makes and reads a tensor."""

import math
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from google.protobuf.message import DecodeError, Message  # type: ignore[import-untyped]
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, TypeProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from trt_compress.errors import ConfigError
from trt_compress.export.inferred import infer
from trt_compress.export.soundness import all_graphs
from trt_compress.files import open_regular

Array = npt.NDArray[Any]

_SMALL = 4096  # elements: no count, axis or scale is larger, and folding stays instant
_FOLDABLE = frozenset(
    {
        *("Constant", "Identity", "Cast", "Squeeze", "Unsqueeze", "Reshape", "Concat", "Gather", "Slice"),
        *("Add", "Sub", "Mul", "Div", "Mod", "Min", "Max", "Floor", "Ceil", "ConstantOfShape", "Shape", "Size"),
        *("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "And", "Or"),
    }
)


def load_structure(path: Path) -> ModelProto:
    """Load an ONNX file; weights in external files stay there.

    Raises:
        ConfigError: There is no such file, or it is not ONNX.
    """
    try:
        with open_regular(path) as file:
            model = onnx.load(file, format="protobuf", load_external_data=False)
    except OSError as error:
        raise ConfigError(f"model {str(path)!r} cannot be read: {error.strerror}; give an ONNX file.") from None
    except (DecodeError, RecursionError):
        model = ModelProto()
    if not (model.ir_version and model.opset_import and model.graph.output):
        raise ConfigError(f"model {str(path)!r} is not an ONNX file, or is cut off; export it again.")
    if bad := next(_not_text(model), None):
        raise ConfigError(
            f"model {str(path)!r} has a {bad} that is not UTF-8 text; the file is damaged, export it again."
        )
    return model


def _not_text(message: Message) -> Iterator[str]:
    """Names and other texts that are no text; the data of tensors are not looked at."""
    for field, value in message.ListFields() if not isinstance(message, TensorProto) else _tensor_texts(message):
        items = [value] if isinstance(value, (str, bytes, Message)) else value
        if field.type == field.TYPE_STRING and any(isinstance(item, bytes) for item in items):
            yield f"{message.DESCRIPTOR.name.removesuffix('Proto').lower()} {field.name}"
        elif field.type == field.TYPE_MESSAGE:
            for item in items:
                if isinstance(item, Message):
                    yield from _not_text(item)


def _tensor_texts(tensor: TensorProto) -> Iterator[tuple[Any, Any]]:
    for name in ("name", "external_data"):
        yield tensor.DESCRIPTOR.fields_by_name[name], getattr(tensor, name)


def without_weights(model: ModelProto) -> ModelProto:
    """A copy in which large tensors keep name, type and shape but no data, so that it is small for any model."""
    graph = model.graph
    return ModelProto(
        ir_version=model.ir_version,
        opset_import=model.opset_import,
        functions=model.functions,
        graph=GraphProto(
            name=graph.name,
            node=graph.node,
            input=graph.input,
            output=graph.output,
            value_info=graph.value_info,
            initializer=[_light(tensor) for tensor in graph.initializer],
            sparse_initializer=graph.sparse_initializer,
        ),
    )


def _light(tensor: TensorProto) -> TensorProto:
    if np.prod(tensor.dims) <= _SMALL:
        return tensor
    return TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)


def attribute(node: NodeProto, name: str, default: Any = None) -> Any:
    """The value of an attribute, or `default` where the node has none of that name."""
    given = next((item for item in node.attribute if item.name == name), None)
    if given is None or not given.type or given.ref_attr_name:
        return default
    return onnx.helper.get_attribute_value(given)


class GraphView:
    """A model for looking at. Nodes of subgraphs count as nodes; bodies of local functions do not."""

    def __init__(self, model: ModelProto) -> None:
        self.model, self.objections = infer(model)
        self.declared = model
        self.graphs = tuple(all_graphs(self.model.graph))
        self.nodes = tuple(node for graph in self.graphs for node in graph.node)
        self.weights = {tensor.name: tensor for graph in self.graphs for tensor in graph.initializer}
        self.inputs = {value.name for value in self.model.graph.input} - self.weights.keys()
        self.outputs = {value.name for value in self.model.graph.output}
        self.producer = {name: node for node in self.nodes for name in node.output if name}
        self.consumers: dict[str, list[NodeProto]] = defaultdict(list)
        for node in self.nodes:
            for name in filter(None, node.input):
                self.consumers[name].append(node)
        self._types: dict[str, TypeProto.Tensor] = {}
        for graph in (*all_graphs(model.graph), *self.graphs):
            for value in (*graph.input, *graph.value_info, *graph.output):
                known = self._types.get(value.name)
                if value.type.WhichOneof("value") != "tensor_type" or not value.type.tensor_type.elem_type:
                    continue
                if known is None or value.type.tensor_type.HasField("shape") or not known.HasField("shape"):
                    self._types[value.name] = value.type.tensor_type
        self._dtypes: dict[str, int] = {
            **{name: tensor.data_type for name, tensor in self.weights.items()},
            **{name: kind.elem_type for name, kind in self._types.items() if kind.elem_type},
        }
        self._values: dict[str, Array | None] = {}

    def dtypes(self) -> dict[str, int]:
        """Every tensor whose type is known, with its TensorProto data type."""
        return dict(self._dtypes)

    def tensors(self) -> tuple[str, ...]:
        """Every tensor of which anything is known."""
        return tuple(dict.fromkeys((*self.weights, *self._types)))

    @property
    def opset(self) -> int:
        """Version of the standard operators."""
        return max((entry.version for entry in self.model.opset_import if not entry.domain), default=0)

    def dtype(self, name: str) -> int:
        """TensorProto data type of a tensor, 0 if unknown."""
        return self._dtypes.get(name, 0)

    def shape(self, name: str) -> tuple[int | None, ...] | None:
        """Sizes of a tensor, None for a size (or for all of it) that is not known before run time."""
        if name in self.weights:
            return tuple(self.weights[name].dims)
        if name not in self._types or not self._types[name].HasField("shape"):
            return None
        dims = self._types[name].shape.dim
        return tuple(dim.dim_value if dim.HasField("dim_value") and dim.dim_value >= 0 else None for dim in dims)

    def value(self, name: str) -> Array | None:
        """Value of a small tensor that is the same in every run, static sizes counting as constants."""
        if name not in self._values:
            self._values[name] = self._fold(name)
        return self._values[name]

    def _fold(self, name: str) -> Array | None:
        if name in self.weights:
            weight = self.weights[name]
            has_data = weight.data_location != TensorProto.EXTERNAL and np.prod(weight.dims) <= _SMALL
            return _array(weight) if has_data else None
        node = self.producer.get(name)
        if node is None or node.op_type not in _FOLDABLE:
            return None
        if node.op_type == "Shape":
            return self._static_shape(node)
        if node.op_type == "Size":
            sizes = self.shape(node.input[0])
            return (
                None
                if sizes is None or None in sizes
                else np.array(math.prod(size or 0 for size in sizes), dtype=np.int64)
            )
        if node.op_type == "Gather" and (size := self._one_size(node)) is not None:
            return size
        feeds = {source: self.value(source) for source in node.input if source}
        if any(value is None or value.size > _SMALL for value in feeds.values()):
            return None
        try:
            return np.asarray(next(iter(ReferenceEvaluator(node).run(None, feeds))))
        except Exception:
            return None  # what the evaluator raises about a foreign node: it has no value, and its reader will say so

    def _one_size(self, node: NodeProto) -> Array | None:
        """What a Gather picks from the sizes of a tensor, where those are known that it picks, if not all are."""
        shape = self.producer.get(node.input[0])
        if shape is None or shape.op_type != "Shape" or shape.attribute:
            return None
        sizes, index = self.shape(shape.input[0]), self.value(node.input[1])
        if sizes is None or index is None or index.ndim > 1 or index.dtype.kind != "i":
            return None
        if not all(-len(sizes) <= place < len(sizes) for place in index.reshape(-1).tolist()):
            return None
        picked = [sizes[place] for place in index.reshape(-1).tolist()]
        return None if None in picked else np.array(picked, dtype=np.int64).reshape(index.shape)

    def _static_shape(self, node: NodeProto) -> Array | None:
        sizes = self.shape(node.input[0])
        if sizes is None:
            return None
        part = sizes[attribute(node, "start", 0) : attribute(node, "end", len(sizes))]
        return None if None in part else np.array(part, dtype=np.int64)


def _array(tensor: TensorProto) -> Array | None:
    try:
        return numpy_helper.to_array(tensor)
    except (TypeError, ValueError):
        return None  # a type that numpy has no form of
