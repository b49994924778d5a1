"""Bundles that compute `y = x · w`, with `w` wherever an ONNX file can hold a tensor or name the file it is in."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from trt_compress.export.bundle import write_bundle
from trt_compress.format.bundle import Bundle
from trt_compress.format.manifest import Batch, Graph, Manifest, Model, TensorInfo, Weights

NAME = "w"
SHAPE = (1, 20_000)  # more than what is written into the ONNX file rather than handed over beside it
PLACES = ("initializer", "constant", "branch", "function")

Array = np.ndarray[Any, np.dtype[Any]]


def stored(name: str, entries: Mapping[str, str], shape: tuple[int, ...] = SHAPE) -> TensorProto:
    """A tensor whose data are in a file."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape, data_location=TensorProto.EXTERNAL)
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def graph_with(place: str, entries: Mapping[str, str], data: Array | None = None) -> bytes:
    """The ONNX file with `w` at a place; with `data` it holds them itself."""
    w = stored(NAME, entries)
    if data is not None:
        w = TensorProto(name=NAME, data_type=TensorProto.FLOAT, dims=SHAPE, raw_data=data.tobytes())
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, SHAPE) for name in ("x", "y"))
    weights, functions = [], []
    opsets = [helper.make_opsetid("", 18)]
    multiply = helper.make_node("Mul", ["x", NAME], ["y"])
    match place:
        case "initializer" | "inside":
            nodes, weights = [multiply], [w]
        case "constant":
            nodes = [helper.make_node("Constant", [], [NAME], value=w), multiply]
        case "branch":
            inner = helper.make_node("Mul", ["x", NAME], ["z"])
            z = helper.make_tensor_value_info("z", TensorProto.FLOAT, SHAPE)
            branch = helper.make_graph([inner], "branch", [], [z], [w])
            truth = helper.make_tensor("truth", TensorProto.BOOL, [], [True])
            nodes = [
                helper.make_node("Constant", [], ["c"], value=truth),
                helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch),
            ]
        case _:
            body = [helper.make_node("Constant", [], [NAME], value=w), multiply]
            functions = [helper.make_function("own", "Scaled", ["x"], ["y"], body, opsets)]
            nodes = [helper.make_node("Scaled", ["x"], ["y"], domain="own")]
            opsets = [*opsets, helper.make_opsetid("own", 1)]
    graph = helper.make_graph(nodes, "g", [x], [y], weights)
    return helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=9).SerializeToString()


def bundle_of(
    folder: Path,
    place: str,
    data: Array,
    *,
    entries: Mapping[str, str] | None = None,
    files: Mapping[str, bytes] | None = None,
    model: bytes | None = None,
) -> Bundle:
    """A bundle with `w` at a place: in the ONNX file ("inside"), or named there and in `w.bin`."""
    inside = place == "inside"
    content = dict(files or {})
    content["model.onnx"] = model or graph_with(
        place, entries or {"location": "w.bin", "offset": "0"}, data if inside else None
    )
    if not inside:
        content["w.bin"] = data.tobytes()
    info = {name: TensorInfo(name=name, dtype="float32", shape=SHAPE) for name in ("x", "y")}
    graph = Graph(
        name="model",
        file="model.onnx",
        inputs=(info["x"],),
        outputs=(info["y"],),
        external_data=() if inside else ("w.bin",),
    )
    manifest = Manifest(
        name="scaled",
        created_with={},
        model=Model(source="zoo:scaled", family="test", weights=Weights(source="none")),
        recipe={},
        precision="fp32",
        opset=18,
        batch=Batch(min=1, opt=1, max=1),
        graphs=(graph,),
    )
    return write_bundle(folder, manifest, content)
