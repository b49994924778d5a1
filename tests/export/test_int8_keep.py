"""Layers that stay in floating point because INT8 costs most there: found by measuring, said, and worth it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from trt_compress.errors import ConfigError
from trt_compress.export import api
from trt_compress.export.int8 import layers_of, quantize_graph
from trt_compress.export.int8_form import Int8Form
from trt_compress.export.int8_keep import costly, distance, with_int8
from trt_compress.export.runners import Runner
from trt_compress.format.bundle import Bundle
from trt_compress.models.zoo.data.digits import digits_split
from trt_compress.tools.cli.main import app

MODEL = "zoo:digits_vit"
Feeds = list[dict[str, Any]]


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("samples") / "digits.npz"
    np.savez(path, image=digits_split().train_images[:40])
    return path


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four layers in a row; in front of the third one channel is 1,000 times the others, and behind it is divided."""
    chance = np.random.default_rng(0)
    loud = np.ones(16, np.float32)
    loud[3] = 1000
    tensors = {f"w{place}": chance.standard_normal((16, 16)).astype(np.float32) / 4 for place in range(4)}
    tensors["w2"] /= loud[:, None]
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["a"], "first"),
        helper.make_node("MatMul", ["a", "w1"], ["b"], "second"),
        helper.make_node("Mul", ["b", "loud"], ["c"], "louder"),
        helper.make_node("MatMul", ["c", "w2"], ["d"], "third"),
        helper.make_node("MatMul", ["d", "w3"], ["y"], "fourth"),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 16]) for name in ("x", "y"))
    weights = [numpy_helper.from_array(array, name) for name, array in {**tensors, "loud": loud}.items()]
    toy = helper.make_graph(nodes, "toy", [x], [y], weights)
    model = helper.make_model(toy, opset_imports=[helper.make_opsetid("", 20)])
    model.ir_version = 10
    file = tmp_path_factory.mktemp("graph") / "toy.onnx"
    onnx.save_model(model, file)
    return file


@pytest.fixture(scope="module")
def feeds() -> Feeds:
    chance = np.random.default_rng(1)
    return [{"x": chance.standard_normal((4, 16)).astype(np.float32)} for _ in range(8)]


@pytest.mark.parametrize("way", ["static", "dynamic"])
def test_layers_in_int8_alone_and_together(way: str, graph: Path, feeds: Feeds) -> None:
    made = quantize_graph(graph, Int8Form.parse(way), feeds)
    floats = onnx.load(graph)
    layers = list(made.layers.weighted)
    assert layers == ["first", "second", "third", "fourth"]
    whole, spliced = (Runner(each, graph.parent, None) for each in (made.model, with_int8(floats, made.model, layers)))
    for feed in feeds:
        assert np.array_equal(whole(feed)["y"].numpy(), spliced(feed)["y"].numpy())
    assert with_int8(floats, made.model, []) == floats
    alone = with_int8(floats, made.model, ["third"])
    assert layers_of(alone).weighted == ("first", "second", "fourth")


@pytest.mark.parametrize("way", ["static", "dynamic"])
def test_the_costly_layer_is_found(way: str, graph: Path, feeds: Feeds) -> None:
    form = Int8Form.parse(way)
    made = quantize_graph(graph, form, feeds)
    layers = made.layers.weighted
    found = costly(graph, made.model, layers, feeds, most=None, room=4)
    assert [*found.layers] == ["third"] and found.runs == 8 and [*found.costs] == [*layers]
    assert found.layers["third"] > 10 * max(cost for name, cost in found.costs.items() if name != "third")
    again = quantize_graph(graph, form, feeds, keep={"third": "it costs most"})
    assert distance(graph, again.model, feeds) == pytest.approx(found.after, rel=0.3)
    assert distance(graph, made.model, feeds) == pytest.approx(found.before, rel=1e-6)
    assert found.after < 0.2 * found.before
    assert [*costly(graph, made.model, layers, feeds, most=2, room=0).layers][0] == "third"
    nothing = costly(graph, made.model, layers, feeds, most=None, room=0)
    assert not nothing.layers and nothing.after == nothing.before == found.before


def test_kept_layers_are_said_and_stay(samples: Path, tmp_path: Path) -> None:
    arguments = ["export", MODEL, "--precision", "int8", "--calibrate", samples, "--keep-precision", "auto:2",
                 "--batch", "1", "--json", "-o", tmp_path / "b"]  # fmt: skip
    ended = CliRunner().invoke(app, [str(each) for each in arguments])
    assert ended.exit_code == 0, ended.stderr
    said = json.loads(ended.stdout)
    record = Bundle.open(tmp_path / "b").manifest.int8[0]
    assert (record.layers, record.in_int8, len(record.kept)) == (34, 32, 2)
    assert all(why.startswith("in INT8 alone it costs ") and "32 runs" in why for why in record.kept.values())
    (note,) = [each for each in said["warnings"] if each.startswith("keep_precision auto:2")]
    assert "2 of 34 layers stay in floating point" in note and "on 8 held-out runs INT8 costs" in note
    model = onnx.load(tmp_path / "b" / "model.onnx").graph
    tensors = {tensor.name for tensor in model.initializer if tensor.data_type == TensorProto.FLOAT}
    for node in (node for node in model.node if node.name in record.kept):
        assert node.input[1] in tensors
    shown = CliRunner().invoke(app, ["inspect", str(tmp_path / "b")])
    assert all(name in shown.stdout for name in record.kept)
    assert api.verify(tmp_path / "b").passed


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"keep_precision": "all"}, r"keep_precision 'all' is no way to choose layers; give auto, .* or auto:N"),
        ({"keep_precision": "auto:0"}, "keep_precision 'auto:0' is no way to choose layers"),
        (
            {"keep_precision": "auto", "int8": "dynamic"},
            "auto measures with samples what each layer costs, and none are",
        ),
        (
            {"keep_precision": "auto", "precision": "fp16"},
            "keep_precision 'auto' is for precision int8, and the precis",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(given: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        api.export_model(MODEL, output=tmp_path / "b", **{"precision": "int8", **given})
