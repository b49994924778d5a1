"""A graph in INT8: layers with weights between QuantizeLinear and DequantizeLinear, by ONNX Runtime's own quantizer.

A graph is exported in floating point, proven, and then quantized as a file. What is quantized are the layers with
weights in the graph itself (MatMul, Gemm, Conv), with a scale for each output channel; products of two activations,
norms, softmax and all operators of this domain stay in floating point, and so do inputs, outputs and states. The graph
that is made holds as many nodes of operators as before, with the same names.
"""

import contextlib
import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto
from onnx.numpy_helper import to_array

from trt_compress.errors import ConfigError, ExportError, GateError
from trt_compress.export.int8_form import STATIC, Int8Form
from trt_compress.export.runners import load_onnxruntime
from trt_compress.strays import temporary_folder

Array = np.ndarray[Any, np.dtype[Any]]
Feed = Mapping[str, Array]

LAYERS = ("MatMul", "Gemm", "Conv")
"""Operators that can have weights."""
_PERCENTILE = 99.99
_PREPARED = "onnx.quant.pre_process"  # what ONNX Runtime's quantizer looks for, or warns
_HALF = 0.5 * (1 + 1e-4)  # of a step, and what rounding the scale to float32 adds
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)


@dataclass(frozen=True, slots=True, kw_only=True)
class Products:
    """The nodes of a graph that multiply.

    Attributes:
        weighted: Those with weights, by name, in order.
        products: Those of two activations.
    """

    weighted: tuple[str, ...]
    products: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedGraph:
    """A graph in INT8.

    Attributes:
        model: With its tensors in it.
        layers: The nodes of the graph in floating point that multiply.
        kept: Layers with weights that stay in floating point, by name, with the reason.
    """

    model: onnx.ModelProto
    layers: Products
    kept: Mapping[str, str] = field(default_factory=dict)


def layers_of(model: onnx.ModelProto) -> Products:
    """Which nodes of the graph itself multiply, with weights and without."""
    weights = {tensor.name for tensor in model.graph.initializer if tensor.data_type in _FLOATS}
    nodes = [node for node in model.graph.node if node.domain == "" and node.op_type in LAYERS]
    weighted = tuple(node.name for node in nodes if weights.intersection(node.input[:2]))
    return Products(weighted=weighted, products=tuple(node.name for node in nodes if node.name not in weighted))


def quantize_graph(
    file: Path,
    form: Int8Form,
    feeds: Sequence[Feed] = (),
    *,
    symmetric: bool = False,
    keep: Mapping[str, str] | None = None,
) -> QuantizedGraph:
    """Quantize the layers with weights of a graph.

    Args:
        file: The graph in floating point, with function bodies; its weights may lie beside it.
        form: When and how ranges are found.
        feeds: Of static ranges, the inputs and states of the runs that they are found in.
        symmetric: Whether activations are quantized around zero, as TensorRT needs it; otherwise their codes are from
            0 to 255, and the zero point is where zero is.
        keep: Layers that stay in floating point, with the reason.

    Raises:
        ConfigError: The graph has no layer with weights.
        ExportError: ONNX Runtime's quantizer does not take the graph.
    """
    before = onnx.load(file, load_external_data=False)
    layers = layers_of(before)
    kept = dict(keep or {})
    if form.way != STATIC:
        convolutions = {node.name for node in before.graph.node if node.op_type == "Conv"}
        why = "ONNX Runtime finds ranges as it runs for matrix products only; --int8 static quantizes convolutions too"
        kept |= {name: why for name in layers.weighted if name in convolutions}
    chosen = [name for name in layers.weighted if name not in kept]
    if not chosen:
        said = next(iter(kept.values()), "it has none at all")
        raise ConfigError(f"precision int8: the graph '{file.stem}' has no layer with weights to quantize ({said}).")
    with temporary_folder("int8") as folder, _quiet():
        made = folder / "model.onnx"
        try:
            if form.way == STATIC:
                _static(file, made, form, feeds, chosen, symmetric)
            else:
                _dynamic(file, made, chosen)
            model = onnx.load(made)
        except (ValueError, KeyError, RuntimeError, TypeError, AttributeError) as error:
            said = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ExportError(
                f"precision int8: ONNX Runtime cannot quantize the graph '{file.stem}': {said}"
            ) from error
    _restore(model, before)
    return QuantizedGraph(model=model, layers=layers, kept=kept)


def _static(
    file: Path, made: Path, form: Int8Form, feeds: Sequence[Feed], chosen: Sequence[str], symmetric: bool
) -> None:
    load_onnxruntime()
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    methods = {
        "minmax": CalibrationMethod.MinMax,
        "entropy": CalibrationMethod.Entropy,
        "percentile": CalibrationMethod.Percentile,
    }
    reader: Any = _Feeds(feeds)  # not of ONNX Runtime's class, which is imported late
    quantize_static(
        _prepared(file, made.with_name("prepared.onnx")),
        made,
        reader,
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=list(LAYERS),
        nodes_to_quantize=list(chosen),
        per_channel=True,
        activation_type=QuantType.QInt8 if symmetric else QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=methods[form.method],
        extra_options={
            "ActivationSymmetric": symmetric,
            "WeightSymmetric": True,
            "OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"],
            "QuantizeBias": not symmetric,  # to 32 bits, without which Gemm stays as it is; TensorRT reads none
            "CalibStridedMinMax": 1,  # run by run: what came before is merged, and leaves memory
            "CalibPercentile": _PERCENTILE,
        },
    )


def _dynamic(file: Path, made: Path, chosen: Sequence[str]) -> None:
    load_onnxruntime()
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        _prepared(file, made.with_name("prepared.onnx")),
        made,
        op_types_to_quantize=["MatMul", "Gemm"],
        nodes_to_quantize=[*chosen, *(f"{name}_MatMul" for name in chosen)],  # what it calls a Gemm, taken apart
        per_channel=True,
        weight_type=QuantType.QInt8,
    )


class _Feeds:
    """The runs that ranges are found in, one at a time, as ONNX Runtime's calibrators ask for them."""

    def __init__(self, feeds: Sequence[Feed]) -> None:
        self._feeds, self._next, self._end = feeds, 0, len(feeds)

    def __len__(self) -> int:
        return len(self._feeds)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Go on with these."""
        self._next, self._end = start_index, end_index

    def get_next(self) -> dict[str, Array] | None:
        """The inputs of the next run; None behind the last."""
        if self._next >= self._end:
            return None
        self._next += 1
        return dict(self._feeds[self._next - 1])


def _prepared(file: Path, copy: Path) -> Path:
    """The model in one file, with its weights, marked as one that needs no preparation."""
    model = onnx.load(file)
    model.metadata_props.add(key=_PREPARED, value="onnxruntime.quant")
    onnx.save_model(model, copy)
    return copy


def _restore(model: onnx.ModelProto, before: onnx.ModelProto) -> None:
    """Put back what the quantizer changes beside the layers: notes, functions, and what is known of values."""
    del model.metadata_props[:], model.functions[:], model.graph.value_info[:], model.opset_import[:]
    model.functions.extend(before.functions)
    model.opset_import.extend(before.opset_import)
    model.producer_name, model.producer_version = before.producer_name, before.producer_version
    made = {name for node in model.graph.node for name in node.output}
    model.graph.value_info.extend(info for info in before.graph.value_info if info.name in made)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the quantizer's advice and progress off the terminal; its errors come as exceptions."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(level)


def require_made_of(stored: onnx.ModelProto, floats: onnx.ModelProto, bundle: str) -> None:
    """Show that a graph in INT8 is the one in floating point, quantized: the same nodes, weights half a step away.

    Args:
        stored: The graph of a bundle, with its tensors.
        floats: What the model is traced to, with its tensors.
        bundle: What to call the bundle.

    Raises:
        GateError: A weight or a node is another.
    """
    own = {tensor.name: tensor for tensor in stored.graph.initializer}
    names: dict[str, str] = {}
    for tensor in floats.graph.initializer:
        codes = next((name for name in _quantized_names(tensor.name) if name in own), None)
        if tensor.name in own:
            same = np.array_equal(to_array(tensor), to_array(own[tensor.name]))
        else:
            same = codes is not None and _is_near(to_array(tensor), own, codes)
        if not same:
            raise GateError(f"verification failed: the weight '{tensor.name}' of '{bundle}' is not the model's.")
        names |= {name: tensor.name for name in _quantized_names(tensor.name)}
    producer = {name: node for node in stored.graph.node for name in node.output}

    def origin(name: str) -> str:
        """The value that a value is in floating point."""
        while name in producer and producer[name].op_type in ("DequantizeLinear", "QuantizeLinear"):
            name = producer[name].input[0]
        if name in producer and producer[name].op_type == "DynamicQuantizeLinear":
            name = producer[name].input[0]
        return names.get(name, name)

    there = {node.name: node for node in stored.graph.node}
    for node in floats.graph.node:
        other = there.get(node.name)
        if other is not None:
            same = (
                (node.op_type, node.domain) == (other.op_type, other.domain)
                and list(node.input) == [origin(name) for name in other.input]
                and [*node.attribute] == [*other.attribute]
                and list(node.output) == list(other.output)
            )
        else:
            whole = next((there[name] for name in _integer_names(node.name) if name in there), None)
            same = whole is not None and list(node.input[:2]) == [origin(name) for name in whole.input[:2]]
        if not same:
            raise GateError(
                f"verification failed: the graph of '{bundle}' is not what the model is traced to here, quantized, "
                f"from the node '{node.name}' on.",
                hint="export it again with the versions that are installed here.",
            )


def _quantized_names(weight: str) -> tuple[str, ...]:
    """What ONNX Runtime calls the codes of a weight; those of a Gemm that became a MatMul are turned."""
    return f"{weight}_quantized", f"{weight}_Transposed_quantized"


def _integer_names(node: str) -> tuple[str, ...]:
    """What ONNX Runtime calls the product of whole numbers that a node became."""
    return f"{node}_quant", f"{node}_MatMul_quant"


def _is_near(weight: Array, tensors: Mapping[str, onnx.TensorProto], codes: str) -> bool:
    """Whether codes stand for a weight, each number at most half a step away."""
    whole = to_array(tensors[codes]).astype(np.float64)
    name = codes.removesuffix("_quantized")
    beside = next((own for own in (name, codes) if f"{own}_scale" in tensors), None)  # of a bias it is the second
    if beside is None or f"{beside}_zero_point" not in tensors:
        return False
    scale, zero = (to_array(tensors[f"{beside}_{part}"]).astype(np.float64) for part in ("scale", "zero_point"))
    wanted = weight.astype(np.float64)
    wanted = wanted.T if name.endswith("_Transposed") else wanted
    if whole.shape != wanted.shape:
        return False
    for axis in range(whole.ndim) if scale.size > 1 else (None,):
        if axis is not None and whole.shape[axis] != scale.size:
            continue
        shape = [1] * whole.ndim
        if axis is not None:
            shape[axis] = scale.size
        step, middle = scale.reshape(shape), zero.reshape(shape)
        if (np.abs((whole - middle) * step - wanted) <= _HALF * step + 1e-12).all():
            return True
    return False
