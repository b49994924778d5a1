"""A command line to type into, and small bundles to give it."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.typed_commands import Typed
from trt_compress.export.bundle import write_bundle
from trt_compress.format.manifest import Batch, Compression, Graph, Manifest, Model, OperatorUse, TensorInfo, Weights

Cli = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def cli(tmp_path: Path, commands: Typed) -> Cli:
    """Run `trt-compress` as a user does, in an empty directory."""

    def run(*arguments: object, columns: int | None = 120) -> "subprocess.CompletedProcess[str]":
        variables = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
        if columns:
            variables["COLUMNS"] = str(columns)
        ended = commands(*arguments, folder=tmp_path, variables=variables, within=300)
        assert ended.code is not None, f"{arguments}: not within 300 s"
        return subprocess.CompletedProcess(list(map(str, arguments)), ended.code, ended.out, ended.err)

    return run


@pytest.fixture
def make_bundle(tmp_path: Path) -> Callable[..., Path]:
    """Write a bundle that computes `scores = (images @ ones) * scale`."""

    def make(name: str, *, compressor: str | None = None, width: int = 8, scale: float = 1.0) -> Path:
        output = tmp_path / name
        write_bundle(output, _manifest(name, compressor, width), {"model.onnx": _onnx(width, scale)})
        return output

    return make


def _onnx(width: int, scale: float) -> bytes:
    constants = {"weight": np.ones((width, 3), np.float32), "scale": np.array(scale, np.float32)}
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["images", "weight"], ["product"]),
            helper.make_node("Mul", ["product", "scale"], ["scores"]),
        ],
        "model",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", width])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 3])],
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9).SerializeToString()


def _manifest(name: str, compressor: str | None, width: int) -> Manifest:
    images = TensorInfo(name="images", dtype="float32", shape=("batch", width))
    scores = TensorInfo(name="scores", dtype="float32", shape=("batch", 3))
    parts = {"TokenMerge": 2} if compressor else {}
    return Manifest(
        name=name,
        created_with={"trt-compress": "0.1.0"},
        model=Model(source="zoo:tiny", family="timm_vit", weights=Weights(source="random (seed 0)")),
        recipe={"model": "zoo:tiny"},
        precision="fp32",
        opset=20,
        batch=Batch(min=1, opt=4, max=8),
        graphs=(Graph(name="model", file="model.onnx", inputs=(images,), outputs=(scores,)),),
        compression=tuple(
            Compression(
                site=f"blocks.{layer}",
                compressor=compressor,
                config={"num_merged": 13},
                tokens_in=197 - 13 * layer,
                tokens_out=184 - 13 * layer,
            )
            for layer in range(2)
            if compressor
        ),
        operators=tuple(
            OperatorUse(
                name=operator,
                op_type=f"Trtc{operator}",
                domain="trt_compress",
                version=1,
                nodes=nodes,
                lowering="function",
            )
            for operator, nodes in parts.items()
        ),
        targets=("cpu",),
    )
