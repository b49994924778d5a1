"""A bundle of four numbers for pictures, arrays or sound, made by hand in a moment."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from trt_compress.export.bundle import write_bundle
from trt_compress.format.manifest import Batch, Graph, Manifest, Model, TensorInfo, Weights

KINDS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "picture": ((1, 2, 2), {"kind": "image", "layout": "NCHW", "scale": 1 / 255, "mean": [0.5], "std": [0.5]}),
    "array": ((4,), {"kind": "tensors"}),
    "sound": ((4,), {"kind": "audio", "sample_rate": 8000, "channels": 1, "chunk_samples": 4}),
}


def write_small(path: Path, kind: str) -> Path:
    """Write the bundle: the class is the place of the largest of four numbers."""
    shape, preprocess = KINDS[kind]
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["x"], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["logits"])],
        "model",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *shape])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4])],
        [onnx.numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    manifest = Manifest(
        name=kind,
        created_with={"trt-compress": "0.1.0"},
        model=Model(source="zoo:tiny", family="test", weights=Weights(source="random (seed 0)")),
        recipe={"model": "zoo:tiny"},
        precision="fp32",
        opset=20,
        batch=Batch(min=1, opt=1, max=4),
        graphs=(
            Graph(
                name="model",
                file="model.onnx",
                inputs=(TensorInfo(name="x", dtype="float32", shape=("batch", *shape)),),
                outputs=(TensorInfo(name="logits", dtype="float32", shape=("batch", 4)),),
            ),
        ),
        preprocess=preprocess,
        postprocess={"kind": "classification", "classes": 4},
    )
    write_bundle(path, manifest, {"model.onnx": model.SerializeToString()})
    return path
