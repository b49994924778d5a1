"""Writing ONNX files: in one piece, or with the weights beside it."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from trt_compress.export import onnx_file
from trt_compress.export.onnx_file import save_onnx

WEIGHTS = np.arange(1024, dtype=np.float32).reshape(32, 32)  # 4096 bytes
X = np.eye(32, dtype=np.float32)


def model() -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [32, 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [32, 32])],
        [numpy_helper.from_array(WEIGHTS, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def run(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": X})[0])


def test_a_small_model_is_one_file(tmp_path: Path) -> None:
    assert save_onnx(model(), tmp_path / "m.onnx") == [tmp_path / "m.onnx"]
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]
    np.testing.assert_array_equal(run(tmp_path / "m.onnx"), WEIGHTS)


@pytest.mark.parametrize(("limit", "files"), [(4096, ["m.onnx"]), (4095, ["m.onnx", "m.onnx.data"])])
def test_the_limit_is_the_last_size_that_stays_inside(limit: int, files: list[str], tmp_path: Path) -> None:
    assert [path.name for path in save_onnx(model(), tmp_path / "m.onnx", external_over=limit)] == files
    assert sorted(path.name for path in tmp_path.iterdir()) == files
    np.testing.assert_array_equal(run(tmp_path / "m.onnx"), WEIGHTS)


def test_weights_beside_the_model_leave_the_given_model_as_it_was(tmp_path: Path) -> None:
    given, before = model(), model()
    save_onnx(given, tmp_path / "m.onnx", external_over=0)
    assert given == before
    assert len((tmp_path / "m.onnx").read_bytes()) < 1000
    assert (tmp_path / "m.onnx.data").read_bytes() == WEIGHTS.tobytes()
    location = onnx.load(tmp_path / "m.onnx", load_external_data=False).graph.initializer[0].external_data[0]
    assert (location.key, location.value) == ("location", "m.onnx.data")


def test_the_limit_is_read_when_a_file_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert onnx_file.EXTERNAL_OVER_BYTES < 2**31
    monkeypatch.setattr(onnx_file, "EXTERNAL_OVER_BYTES", 1)
    assert len(save_onnx(model(), tmp_path / "m.onnx")) == 2
