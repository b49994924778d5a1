"""Packed codes are uint8 in ONNX Runtime, int8 where TensorRT takes plugins, and inside no graph for TensorRT-RTX."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.checker
import onnx.parser
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from trt_compress.errors import ExportError
from trt_compress.export.lower import add_bodies, inline_bodies, lower_for_target
from trt_compress.export.preflight import preflight
from trt_compress.export.targets import TARGETS, get_target

_PLUGIN = 'plugin_version = "1", plugin_namespace = "trt_compress"'
# Keys of new tokens are quantized, joined in pairs of heads, appended to a cache, compacted, and attended over.
TEXT = f"""<ir_version: 10, opset_import: ["" : 20, "trt_compress" : 1]>
g (float[B,2,3,8] x, uint8[B,2,9,4] cache, float16[B,2,9,1] scale, float16[B,2,9,1] minimum, int64[B] position,
   int64[B,2,5] index, float[B,4,1,8] q, float[1,1,1,1] bias, int64[B] length, int64[1,1,1] chosen,
   float16[1,1,1,1] none, float[1,1,1,1] no_rope)
=> (uint8[B,2,9,4] cache_out, float[B,4,1,8] y, float16[B,2,3,1] new_scale) {{
  code, new_scale, new_minimum = trt_compress.TrtcKVQuantize<bits = 4, axis = 1, group = 0, scale_type = 10, {_PLUGIN}>
    (x)
  written = trt_compress.TrtcKVAppend<layout = 0, sinks = 0, {_PLUGIN}>(cache, code, position)
  cache_out = trt_compress.TrtcKVCompact<{_PLUGIN}>(written, index)
  y, lse = trt_compress.TrtcKVAttention<k_bits = 4, k_axis = 1, k_group = 0, v_bits = 4, v_axis = 1, v_group = 0,
    scale = 0.0, causal = 0, window = 0, softcap = 0.0, layout = 0, sinks = 0, indexed = 0,
    k_rank = 0, v_rank = 0, block = 0, turned = 0, {_PLUGIN}>
    (q, cache_out, scale, minimum, written, scale, minimum, length, bias, chosen, none, none, none, none,
     no_rope)
}}"""
WITH_PLUGINS = [name for name, target in TARGETS.items() if target.backend == "tensorrt"]


@pytest.fixture
def model() -> ModelProto:
    made = onnx.parser.parse_model(TEXT)
    for number, node in enumerate(made.graph.node):
        node.name = f"site.{number}/{node.op_type}"
    made.graph.value_info.append(helper.make_tensor_value_info("written", TensorProto.UINT8, ["B", 2, 9, 4]))
    return made


def feeds() -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(0)
    return {
        "x": rng.normal(size=(2, 2, 3, 8)).astype(np.float32),
        "cache": rng.integers(0, 256, (2, 2, 9, 4), dtype=np.uint8),
        "scale": rng.uniform(size=(2, 2, 9, 1)).astype(np.float16),
        "minimum": rng.normal(size=(2, 2, 9, 1)).astype(np.float16),
        "position": np.array([1, 6]),
        "index": np.array([[[0, 2, 3, 6, 8], [1, 2, 6, 7, 8]]] * 2),
        "q": rng.normal(size=(2, 4, 1, 8)).astype(np.float32),
        "bias": np.zeros((1, 1, 1, 1), np.float32),
        "length": np.array([9, 5]),
        "chosen": np.array([[[-1]]]),
        "none": np.zeros((1, 1, 1, 1), np.float16),
        "no_rope": np.zeros((1, 1, 1, 1), np.float32),
    }


def run(model: ModelProto, given: dict[str, np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return [np.asarray(output) for output in session.run(None, given)]


def dtypes(model: ModelProto) -> dict[str, int]:
    graph = model.graph
    return {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.output, *graph.value_info)}


BYTES = {"cache", "cache_out", "written"}


@pytest.mark.parametrize("target", WITH_PLUGINS)
def test_bytes_are_int8_where_plugins_are_taken(target: str, model: ModelProto) -> None:
    lowered = lower_for_target(model, get_target(target))
    assert {name for name, dtype in dtypes(lowered).items() if dtype == TensorProto.INT8} == BYTES
    others = {name: dtype for name, dtype in dtypes(model).items() if name not in BYTES}
    assert {name: dtype for name, dtype in dtypes(lowered).items() if name not in BYTES} == others
    assert lower_for_target(lowered, get_target(target)) == lowered
    assert not [f for f in preflight(model, get_target(target)) if f.severity == "error"]


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_bytes_stay_uint8_in_onnxruntime(target: str, model: ModelProto) -> None:
    assert dtypes(lower_for_target(model, get_target(target))) == dtypes(model)


def test_bodies_give_the_same_bytes_under_either_name(model: ModelProto) -> None:
    given = feeds()
    cache, y, scale = run(add_bodies(model), given)
    lowered = lower_for_target(model, get_target("x86-trt11"))
    onnx.checker.check_model(lowered, full_check=True)
    as_int8, y_again, scale_again = run(lowered, {**given, "cache": given["cache"].view(np.int8)})
    assert cache.dtype == np.uint8 and as_int8.dtype == np.int8 and (cache > 127).any()
    np.testing.assert_array_equal(as_int8.view(np.uint8), cache)
    np.testing.assert_array_equal(y_again, y)
    np.testing.assert_array_equal(scale_again, scale)


def test_inlined_bodies_hand_each_other_no_uint8(model: ModelProto) -> None:
    inlined = inline_bodies(model)
    made = {name for node in inlined.graph.node for name in node.output}
    known = onnx.shape_inference.infer_shapes(inlined, strict_mode=True)
    inside = {name for name, dtype in dtypes(known).items() if dtype == TensorProto.UINT8 and name in made}
    assert inside == {"cache_out"}
    assert not preflight(model, get_target("rtx"))
    for found, wanted in zip(run(inlined, feeds()), run(add_bodies(model), feeds()), strict=True):
        np.testing.assert_array_equal(found, wanted)


def blocks_moved() -> ModelProto:
    """The same cache as blocks at the borders; between the operators it is seen as rows, some of which are gathered."""
    text = TEXT.replace("uint8[B,2,9,4] cache,", "uint8[B,2,3,12] blocks,").replace(
        "(uint8[B,2,9,4] cache_out,", "(uint8[B,2,3,12] blocks_out, uint8[B,2,2,4] some,"
    )
    text = text.replace("  code, new_scale", "  cache = Reshape(blocks, as_rows)\n  code, new_scale")
    text = text.replace(
        "\n}",
        "\n  blocks_out = Reshape(cache_out, as_blocks)\n  picked = Expand(pick, some_shape)\n"
        "  some = GatherElements<axis = 2>(cache, picked)\n}",
    )
    text = text.replace(
        ") {\n",
        ") <int64[4] as_rows = {0, 0, -1, 4}, int64[4] as_blocks = {0, 0, -1, 12},\n"
        "  int64[1,1,2,1] pick = {5, 2}, int64[4] some_shape = {2, 2, 2, 4}> {\n",
        1,
    )
    made = onnx.parser.parse_model(text)
    for number, node in enumerate(made.graph.node):
        node.name = f"site.{number}/{node.op_type}"
    return made


def test_bytes_that_are_moved_between_operators_are_no_uint8_there() -> None:
    model, given = blocks_moved(), feeds()
    given["blocks"] = given.pop("cache").reshape(2, 2, 3, 12)
    wanted = run(add_bodies(model), given)
    assert wanted[0].shape == (2, 2, 3, 12) and wanted[1].shape == (2, 2, 2, 4)
    inlined = inline_bodies(model)
    made = {name for node in inlined.graph.node for name in node.output}
    known = onnx.shape_inference.infer_shapes(inlined, strict_mode=True)
    inside = {name for name, dtype in dtypes(known).items() if dtype == TensorProto.UINT8 and name in made}
    assert inside == {"blocks_out", "some"}
    assert not preflight(model, get_target("rtx"))
    for found, expected in zip(run(inlined, given), wanted, strict=True):
        np.testing.assert_array_equal(found, expected)
    as_int8 = run(lower_for_target(model, get_target("x86-trt10")), {**given, "blocks": given["blocks"].view(np.int8)})
    for found, expected in zip(as_int8, wanted, strict=True):
        np.testing.assert_array_equal(found.view(expected.dtype), expected)


def test_tensorrt_rtx_builds_the_chain(model: ModelProto, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs the real builder: pip install 'trt-compress[rtx]'")
    onnx.save(lower_for_target(model, get_target("rtx")), tmp_path / "model.onnx")
    profile = {
        name: {"min": [1, *value.shape[1:]], "opt": list(value.shape), "max": [4, *value.shape[1:]]}
        for name, value in feeds().items()
        if name not in ("bias", "chosen", "none", "no_rope")
    }
    request = {"target": "rtx", "model": str(tmp_path / "model.onnx"), "profile": profile, "plugin_library": None}
    (tmp_path / "request.json").write_text(json.dumps(request))
    subprocess.run([sys.executable, "-m", "trt_compress.export.engine_worker", str(tmp_path)], check=True)
    reply = json.loads((tmp_path / "reply.json").read_text())
    assert (reply["stage"], reply.get("message", "")) == ("done", "")


def test_initializers_and_constants_keep_their_bits(model: ModelProto) -> None:
    start = np.arange(250 - 71, 251, dtype=np.uint8).reshape(1, 2, 9, 4)
    del model.graph.input[1]
    model.graph.initializer.append(numpy_helper.from_array(start, "half_cache"))
    twice = helper.make_node("Concat", ["half_cache", "half_cache"], ["cache"], axis=0, name="twice")
    model.graph.node.insert(0, twice)
    lowered = lower_for_target(model, get_target("x86-trt10"))
    (weight,) = lowered.graph.initializer
    assert weight.data_type == TensorProto.INT8
    np.testing.assert_array_equal(numpy_helper.to_array(weight).view(np.uint8), start)

    del model.graph.initializer[:]
    constant = helper.make_node("Constant", [], ["half_cache"], value=numpy_helper.from_array(start), name="start")
    model.graph.node.insert(0, constant)
    lowered = lower_for_target(model, get_target("x86-trt10"))
    assert lowered.graph.node[0].attribute[0].t.data_type == TensorProto.INT8
    given = {name: value for name, value in feeds().items() if name != "cache"}
    np.testing.assert_array_equal(run(lowered, given)[0].view(np.uint8), run(add_bodies(model), given)[0])


@pytest.mark.parametrize("target", WITH_PLUGINS)
def test_computing_with_bytes_is_refused(target: str, model: ModelProto) -> None:
    model.graph.node.append(helper.make_node("Cast", ["written"], ["number"], to=TensorProto.FLOAT, name="sum/Cast"))
    message = (
        r"tensor 'written' holds packed codes, and node 'sum/Cast' \(Cast\) computes with them; TensorRT gets them"
    )
    with pytest.raises(ExportError, match=message):
        lower_for_target(model, get_target(target))
    lower_for_target(model, get_target("cpu"))


def test_other_bytes_are_left_alone() -> None:
    plain = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 18]> g (uint8[2] x) => (float[2] y) { y = Cast<to = 1>(x) }'
    )
    assert dtypes(lower_for_target(plain, get_target("x86-trt10"))) == dtypes(plain)
