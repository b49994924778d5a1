"""Small bundles, built with onnx.helper; makes the helpers of this folder importable."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from trt_compress.export.bundle import write_bundle
from trt_compress.format.manifest import Batch, Graph, Model, TensorInfo, Weights
from trt_compress.runtime import Bundle, Manifest

_DTYPES = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64, "float16": TensorProto.FLOAT16}

Tensors = dict[str, tuple[str, list[int | str]]]


def onnx_bytes(nodes: list[onnx.NodeProto], inputs: Tensors, outputs: Tensors) -> bytes:
    infos = [
        [helper.make_tensor_value_info(name, _DTYPES[dtype], shape) for name, (dtype, shape) in side.items()]
        for side in (inputs, outputs)
    ]
    graph = helper.make_graph(nodes, "test", infos[0], infos[1])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()


def graph_entry(name: str, inputs: Tensors, outputs: Tensors) -> Graph:
    infos = [
        tuple(TensorInfo(name=key, dtype=dtype, shape=tuple(shape)) for key, (dtype, shape) in side.items())
        for side in (inputs, outputs)
    ]
    role = {"encoder": "encode", "decoder": "decode"}.get(name, "model")
    return Graph(name=name, role=role, file=f"{name}.onnx", inputs=infos[0], outputs=infos[1])


def manifest_of(*graphs: Graph, **fields: Any) -> Manifest:
    return Manifest(
        name="test",
        created_with={"trt-compress": "0.1.0"},
        model=Model(source="zoo:test", family="test", weights=Weights(source="random (seed 0)")),
        recipe={"model": "zoo:test"},
        precision="fp32",
        opset=20,
        batch=Batch(min=1, opt=4, max=8),
        graphs=graphs,
        **fields,
    )


GraphSpec = tuple[list[onnx.NodeProto], Tensors, Tensors]


@pytest.fixture
def make_bundle(tmp_path: Path) -> Callable[..., Bundle]:
    """Write a bundle of the given graphs: name → (nodes, inputs, outputs)."""

    def make(graphs: dict[str, GraphSpec], extra_files: dict[str, bytes] | None = None, **fields: Any) -> Bundle:
        files = {f"{name}.onnx": onnx_bytes(*spec) for name, spec in graphs.items()}
        entries = [graph_entry(name, spec[1], spec[2]) for name, spec in graphs.items()]
        return write_bundle(tmp_path / "bundle", manifest_of(*entries, **fields), {**files, **(extra_files or {})})

    return make


@pytest.fixture
def double() -> GraphSpec:
    """y = x + x."""
    return (
        [helper.make_node("Add", ["x", "x"], ["y"])],
        {"x": ("float32", ["batch", 3])},
        {"y": ("float32", ["batch", 3])},
    )


@pytest.fixture
def double_bundle(make_bundle: Callable[..., Bundle], double: GraphSpec) -> Bundle:
    """A bundle of one graph, y = x + x, with one more file in a folder."""
    return make_bundle({"model": double}, {"notes/readme.txt": b"hello"})
