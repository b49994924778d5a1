"""Sessions with native operators: what runs is what was asked for, and wrong calls end in one sentence."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from trt_compress.errors import BundleError, PluginError, UnsupportedError
from trt_compress.plugins.library import Library
from trt_compress.runtime.backends.ort import operator_paths
from trt_compress.runtime.session import Session

MERGE = {"num_merged": 2, "num_protected": 1, "order": 0}
SELECT = {"num_kept": 3, "forced": [0], "order": 0, "remainder": 0}
MERGE_SHAPES = {"x": [2, 9, 4], "metric": [2, 9, 3], "size": [2, 9, 1]}
SELECT_SHAPES = {"x": [2, 9, 4], "score": [2, 9]}
RESTORE_SHAPES = {"y": [1, 3, 4], "index": [1, 5]}


def model_of(op_type: str, inputs: list[str], outputs: list[str], **attributes: Any) -> onnx.ModelProto:
    """One node whose inputs have any shape; without a body."""
    node = helper.make_node(op_type, inputs, outputs, domain="trt_compress", **attributes)

    def value(name: str) -> onnx.ValueInfoProto:
        number = TensorProto.INT64 if name in ("index", "rest", "dest") else TensorProto.FLOAT
        return helper.make_tensor_value_info(name, number, None)

    graph = helper.make_graph([node], "one", [value(n) for n in inputs], [value(n) for n in outputs])
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("trt_compress", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def merge(**attributes: Any) -> onnx.ModelProto:
    return model_of("TrtcTokenMerge", ["x", "metric", "size"], ["y", "y_size", "dest"], **attributes)


def select(**attributes: Any) -> onnx.ModelProto:
    return model_of("TrtcTokenSelect", ["x", "score"], ["y", "index", "rest"], **attributes)


def restore(**attributes: Any) -> onnx.ModelProto:
    return model_of("TrtcTokenRestore", ["y", "index"], ["x"], **attributes)


def run(model: onnx.ModelProto, library: Library, feeds: dict[str, Any]) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.register_custom_ops_library(str(library.path))
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def arrays(shapes: dict[str, list[int]]) -> dict[str, Any]:
    integers = {"index"}
    return {
        name: np.zeros(shape, np.int64) if name in integers else np.ones(shape, np.float32)
        for name, shape in shapes.items()
    }


def test_the_calls_below_are_wrong_in_one_thing_only(native_library: Library) -> None:
    run(merge(**MERGE), native_library, arrays(MERGE_SHAPES))
    run(select(**SELECT), native_library, arrays(SELECT_SHAPES))
    run(restore(mode=0), native_library, arrays(RESTORE_SHAPES))


@pytest.mark.parametrize(
    ("model", "feeds", "message"),
    [
        (
            merge(**MERGE),
            arrays({**MERGE_SHAPES, "x": [2, 9]}),
            "TrtcTokenMerge: x has shape [2, 9]; it must have 3 axes.",
        ),
        (
            merge(**MERGE),
            arrays({**MERGE_SHAPES, "metric": [2, 8, 3]}),
            "TrtcTokenMerge: metric has shape [2, 8, 3]; it must be [2, 9, D] with axes BND.",
        ),
        (
            merge(**MERGE),
            arrays({**MERGE_SHAPES, "size": [2, 9, 2]}),
            "TrtcTokenMerge: size has shape [2, 9, 2]; it must be [2, 9, 1] with axes BN1.",
        ),
        (
            merge(**{**MERGE, "num_merged": 5}),
            arrays(MERGE_SHAPES),
            "TrtcTokenMerge: num_merged=5 is out of range; with N=9 tokens of which 1 are protected at most every "
            "second one can merge: 0..4.",
        ),
        (
            merge(**{**MERGE, "num_protected": 8}),
            arrays(MERGE_SHAPES),
            "TrtcTokenMerge: num_protected=8 leaves 1 of N=9 tokens to merge; at least two must be free.",
        ),
        (merge(**{**MERGE, "order": 2}), {}, "TrtcTokenMerge: order is 2; allowed is 0 to 1."),
        (merge(**{**MERGE, "num_merged": -1}), {}, "TrtcTokenMerge: num_merged is -1; allowed is at least 0."),
        (
            merge(num_protected=1, order=0),
            {},
            "TrtcTokenMerge: the attribute num_merged is missing or not a whole number; export the model again.",
        ),
        (
            merge(**{**MERGE, "num_merged": 0.5}),
            {},
            "TrtcTokenMerge: the attribute num_merged is missing or not a whole number; export the model again.",
        ),
        (
            merge(**MERGE, plugin_version="7"),
            {},
            "TrtcTokenMerge: the model has version 7 of the operator and the library version 1; export the model again",
        ),
        (
            select(**{**SELECT, "num_kept": 10}),
            arrays(SELECT_SHAPES),
            "TrtcTokenSelect: num_kept=10 is out of range; N=9 tokens allow 0..9.",
        ),
        (
            select(**{**SELECT, "num_kept": 9, "remainder": 1}),
            arrays(SELECT_SHAPES),
            "TrtcTokenSelect: num_kept=9 keeps all N=9 tokens, so nothing is left to fuse; drop it.",
        ),
        (
            select(**{**SELECT, "forced": [4, 9]}),
            arrays(SELECT_SHAPES),
            "TrtcTokenSelect: the forced position 9 is out of range; positions are 0..8.",
        ),
        (
            select(**{**SELECT, "forced": [1, 2, 3, 4]}),
            arrays(SELECT_SHAPES),
            "TrtcTokenSelect: num_kept=3 is less than the 4 forced tokens.",
        ),
        (select(**{**SELECT, "forced": [-2]}), {}, "TrtcTokenSelect: forced is -2; allowed is at least -1."),
        (
            restore(mode=1),
            arrays(RESTORE_SHAPES),
            "TrtcTokenRestore: index has shape [1, 5]; it must be [1, 3] with axes BN.",
        ),
        (
            restore(mode=0),
            {**arrays(RESTORE_SHAPES), "index": np.array([[0, 1, 3, 2, 0]])},
            "TrtcTokenRestore: index[0, 2] is 3; it must be 0..2.",
        ),
        (
            restore(mode=0),
            {**arrays(RESTORE_SHAPES), "index": np.array([[0, -1, 0, 2, 0]])},
            "TrtcTokenRestore: index[0, 1] is -1; it must be 0..2.",
        ),
        (
            restore(mode=1),
            {"y": np.ones((1, 3, 4), np.float32), "index": np.array([[2, 1, 2]])},
            "TrtcTokenRestore: index has the position 2 of item 0 twice; it must be a permutation.",
        ),
    ],
    ids=range(19),
)
def test_wrong_shapes_attributes_and_indices(
    native_library: Library, model: onnx.ModelProto, feeds: dict[str, Any], message: str
) -> None:
    with pytest.raises(Exception) as caught:  # noqa: B017, PT011  ONNX Runtime's exceptions have no common base
        run(model, native_library, feeds)
    assert message in str(caught.value)


def test_a_wrong_dtype_is_refused_when_the_model_is_loaded(native_library: Library) -> None:
    model = merge(**MERGE)
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.DOUBLE
    with pytest.raises(Exception, match=r"Type 'tensor\(double\)' of input parameter"):  # noqa: B017, PT011
        run(model, native_library, {})


# ---- sessions ----


@pytest.fixture(scope="module")
def bundle(exported: Callable[..., Path]) -> Path:
    return exported()


def opened(bundle: Path, native: bool | Path | None) -> tuple[Session, dict[str, Any]]:
    session = Session.open(bundle, native=native)
    shapes = {name: [3 if isinstance(dim, str) else dim for dim in info.shape] for name, info in session.inputs.items()}
    generator = np.random.default_rng(0)
    feeds = {name: generator.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    return session, session.run(feeds)


def test_a_session_takes_the_form_that_is_asked_for_and_says_which(bundle: Path, native_library: Library) -> None:
    with_native, found = opened(bundle, True)
    without, wanted = opened(bundle, False)
    by_path, again = opened(bundle, native_library.path)
    left_open, _ = opened(bundle, None)
    assert with_native.native == left_open.native == by_path.native == native_library and without.native is None
    paths = with_native.operator_paths()
    assert paths and set(paths.values()) == {"native"} and set(by_path.operator_paths()) == set(paths)
    assert without.operator_paths() == dict.fromkeys(paths, "function")
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(found[name], again[name])


def test_a_library_that_is_not_there_is_no_reason_to_run_something_else(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="is not there; build the libraries with 'trt-compress plugins build'"):
        Session.open(bundle, native=tmp_path / "libtrtc_onnxruntime.so")


def test_without_a_built_library(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    session, _ = opened(bundle, None)
    assert session.native is None and set(session.operator_paths().values()) == {"function"}
    with pytest.raises(PluginError, match="are not built for this version of the sources"):
        Session.open(bundle, native=True)


def test_native_operators_are_for_the_cpu(bundle: Path, native_library: Library) -> None:
    with pytest.raises(UnsupportedError, match="run on the CPU, and the backend is 'ort-cuda'; leave native=False"):
        Session.open(bundle, backend="ort-cuda", native=native_library.path)


def test_a_library_that_onnx_runtime_cannot_load(bundle: Path, native_library: Library, tmp_path: Path) -> None:
    import hashlib
    import json

    path = tmp_path / "libtrtc_onnxruntime.so"
    path.write_bytes(b"\x7fELF and then nothing")
    info = {**native_library.info, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    path.with_suffix(".json").write_text(json.dumps(info))
    with pytest.raises(PluginError, match=r"cannot load '.*'; build it again|cannot load '.*build it again"):
        Session.open(bundle, native=path)


def test_paths_are_read_from_nodes_inside_other_nodes_too(native_library: Library, tmp_path: Path) -> None:
    inner = helper.make_graph(
        [helper.make_node("TrtcTokenRestore", ["y", "index"], ["x"], "inside", domain="trt_compress", mode=0)],
        "then",
        [],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 5, 4])],
    )
    other = helper.make_graph(
        [helper.make_node("ConstantOfShape", ["shape"], ["x2"])],
        "else",
        [],
        [helper.make_tensor_value_info("x2", TensorProto.FLOAT, [1, 5, 4])],
    )
    node = helper.make_node("If", ["chosen"], ["out"], "if", then_branch=inner, else_branch=other)
    graph = helper.make_graph(
        [node],
        "outer",
        [
            helper.make_tensor_value_info("chosen", TensorProto.BOOL, []),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3, 4]),
            helper.make_tensor_value_info("index", TensorProto.INT64, [1, 5]),
            helper.make_tensor_value_info("shape", TensorProto.INT64, [3]),
        ],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 5, 4])],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("trt_compress", 1)]
    file = tmp_path / "if.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), file)
    assert operator_paths(file, native_library) == {"inside": "native"}


@pytest.mark.parametrize(
    ("content", "why"),
    [(b"", "it is empty"), (b"\xff" * 40, "it ends inside a number"), (b"\x3a\x7fshort", "it ends inside a field")],
)
def test_what_is_no_onnx_file(tmp_path: Path, content: bytes, why: str) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(content)
    with pytest.raises(BundleError, match=rf"model\.onnx' cannot be read \({why}\); export it again"):
        operator_paths(file, None)
