"""The kinds of input and output that no model of the zoo has yet: what they hold, what is refused, and when."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from trt_compress.errors import BundleError
from trt_compress.export.bundle import write_bundle
from trt_compress.format.kinds import INPUT_KINDS, OUTPUT_KINDS, fitted_input, fitted_output
from trt_compress.format.manifest import Batch, Graph, Manifest, Model, TensorInfo, Weights
from trt_compress.runtime.stream.postprocess import postprocess_from_manifest

CLIP = ("batch", 8, 3, 4, 4)
TOKENS = ("batch", "time")


def test_every_kind_goes_by_one_name() -> None:
    assert {*INPUT_KINDS} == {"image", "frames", "cameras", "audio", "text", "tensors"}
    assert {*OUTPUT_KINDS} == {"classification", "detection3d", "audio", "frames", "codes", "tokens", "raw"}
    for kinds in (INPUT_KINDS, OUTPUT_KINDS):
        assert all(kind.__dataclass_fields__["kind"].default == name for name, kind in kinds.items())


@pytest.mark.parametrize(
    ("settings", "shape", "message"),
    [
        ({"kind": "image"}, CLIP, r"layout is 'NCHW' and the input has the shape \['batch', 8"),
        ({"kind": "cameras", "cameras": ["left"]}, CLIP, "it has 1 names of cameras, and the input has the shape"),
        ({"kind": "cameras"}, CLIP[1:], "layout is 'NCHW' behind an axis of cameras and the input has"),
        ({"kind": "frames", "fps": 0.0}, CLIP, "fps is 0; it is above 0"),
        ({"kind": "frames"}, CLIP[1:], "behind an axis of frames"),
        ({"kind": "text"}, CLIP, r"tokens are \[batch, tokens\]"),
    ],
)
def test_an_input_of_another_shape_is_refused(settings: dict[str, Any], shape: Any, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        fitted_input(settings, shape)


@pytest.mark.parametrize(
    ("settings", "shape", "message"),
    [
        ({"kind": "codes"}, ("batch", 2, 3, 4), r"codes are \[batch, frames, codebooks\]"),
        ({"kind": "codes", "seconds": -1.0}, ("batch", 2), "seconds is -1; it is above 0"),
        ({"kind": "tokens"}, ("batch",), r"\[batch, vocabulary\] or \[batch, tokens, vocabulary\]"),
        ({"kind": "tokens", "stop": [5]}, ("batch", 5), "logits of 5 tokens, and a text stops at 5"),
        ({"kind": "tokens", "stop": [-1]}, ("batch", 5), "stop is -1"),
    ],
)
def test_an_output_of_another_shape_is_refused(settings: dict[str, Any], shape: Any, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        fitted_output(settings, {"y": shape})


def test_codes_and_tokens_are_summed_up() -> None:
    codes = TensorInfo(name="y", dtype="int64", shape=("batch", 2, 2))
    found = postprocess_from_manifest({"kind": "codes"}, {"y": codes})({"y": np.array([[[1, 2], [3, 4]]])})
    assert found == {"results": [{"codes": [[1, 2], [3, 4]]}]}
    logits = np.log(np.array([[[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]]], np.float32)) + 3
    info = TensorInfo(name="y", dtype="float32", shape=("batch", 2, 3))
    (last,) = postprocess_from_manifest({"kind": "tokens", "stop": [2]}, {"y": info})({"y": logits})["results"]
    assert (last["token"], last["stops"]) == (2, True)
    assert last["logprob"] == pytest.approx(np.log(0.7), abs=1e-5)
    assert [token for token, _ in last["top"]] == [2, 1, 0]


def bundle_that_takes(path: Path, settings: dict[str, Any], dtype: str, shape: tuple[int | str, ...]) -> Path:
    element = {"int64": TensorProto.INT64, "float32": TensorProto.FLOAT}[dtype]
    ends = [helper.make_tensor_value_info(name, element, shape) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "model", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    x, y = (TensorInfo(name=name, dtype=dtype, shape=shape) for name in ("x", "y"))
    manifest = Manifest(
        name="odd",
        created_with={},
        model=Model(source="odd", family="odd", weights=Weights(source="none")),
        recipe={},
        precision="fp32",
        opset=20,
        batch=Batch(min=1, opt=1, max=1),
        graphs=(Graph(name="model", file="model.onnx", inputs=(x,), outputs=(y,)),),
        preprocess=settings,
        postprocess={"kind": "raw"},
    )
    write_bundle(path, manifest, {"model.onnx": model.SerializeToString()})
    return path


@pytest.mark.parametrize(
    ("settings", "dtype", "shape", "reason"),
    [
        ({"kind": "text", "input": "x"}, "int64", TOKENS, "it takes numbers of tokens"),
        ({"kind": "frames", "input": "x"}, "float32", CLIP, "it takes clips of several frames at once"),
        ({"kind": "tensors", "reason": "five channels"}, "float32", ("batch", 5), "five channels"),
    ],
)
def test_what_no_source_can_give_is_said_before_anything_heavy(
    settings: dict[str, Any], dtype: str, shape: tuple[int | str, ...], reason: str, tmp_path: Path
) -> None:
    bundle = bundle_that_takes(tmp_path / "odd", settings, dtype, shape)
    program = """
import sys
from trt_compress.tools.cli.main import main
sys.argv[1:] = ["run", sys.argv[1], "--source", "a.wav"]
try:
    main()
finally:
    print({"onnxruntime", "torch", "onnx"} & set(sys.modules))
"""
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    found = subprocess.run(
        [sys.executable, "-c", program, str(bundle)],
        cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "COLUMNS": "300"},
    )  # fmt: skip
    assert (found.returncode, found.stdout) == (2, "set()\n")
    assert f"how a source's data become its input 'x' ({reason}" in found.stderr and "Traceback" not in found.stderr


def test_arrays_are_given_by_name_whatever_the_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from trt_compress.tools.streaming import run

    bundle = bundle_that_takes(tmp_path / "odd", {"kind": "text", "input": "x"}, "int64", TOKENS)
    np.savez(tmp_path / "scene.npz", x=np.arange(6).reshape(2, 1, 3))
    run(bundle, source=str(tmp_path / "scene.npz"), out=tmp_path / "out.jsonl", warmup=0)
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["results"][0]["y"]["max"] for line in lines] == [2, 5]
