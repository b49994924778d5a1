"""What of a graph really runs in INT8, read back from the graph that ONNX Runtime made of it for the CPU."""

import math
from pathlib import Path

import onnx
from onnx import TensorProto

from trt_compress.errors import GateError
from trt_compress.export.runners import load_onnxruntime
from trt_compress.export.weights import WEIGHTS_FILE, TakesTensors
from trt_compress.strays import temporary_folder

_IN_INT8 = frozenset(
    {
        *("QLinearMatMul", "QLinearConv", "QGemm", "MatMulInteger", "ConvInteger"),
        *("MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QAttention"),
    }
)
"""Operators of ONNX Runtime whose kernels multiply 8 bits by 8 bits; QDQ pairs are fused into them, or stay pairs."""


def layers_in_int8(file: Path) -> int:
    """How many nodes of a graph ONNX Runtime runs on the CPU as products of 8 bits.

    Raises:
        GateError: It cannot load the graph.
    """
    onnxruntime = load_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(file.parent))
    with temporary_folder("int8") as folder:
        optimized = folder / "optimized.onnx"
        options.optimized_model_filepath = str(optimized)
        try:
            onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's exceptions have no common base
            said = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise GateError(f"verification failed: ONNX Runtime cannot load {file.name}: {said}") from error
        graph = onnx.load(optimized, load_external_data=False).graph
    return sum(node.op_type in _IN_INT8 for node in graph.node)


def layers_between_quantizers(file: Path) -> int:
    """How many nodes of a graph multiply what was quantized with weights that are: what an engine is built from."""
    graph = onnx.load(file, load_external_data=False).graph
    dequantized = {name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    return sum(
        node.op_type in ("MatMul", "Gemm", "Conv") and dequantized.issuperset(node.input[:2]) for node in graph.node
    )


def keep_tensors(model: onnx.ModelProto, weights: TakesTensors, smallest: int) -> None:
    """Move the tensors of a model that are larger than `smallest` bytes to the weights file, in place."""
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.STRING or not math.prod(tensor.dims):
            continue
        data = onnx.numpy_helper.to_array(tensor)
        if data.nbytes <= smallest:
            continue
        place = weights.add(data)
        name, kind, dims = tensor.name, tensor.data_type, list(tensor.dims)
        tensor.Clear()
        tensor.name, tensor.data_type = name, kind
        tensor.dims.extend(dims)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", WEIGHTS_FILE), ("offset", place.offset), ("length", place.length)):
            tensor.external_data.add(key=key, value=str(value))
