"""INT8: what is quantized, what of it runs, how it answers beside floating point, and what is refused."""

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from PIL import Image
from typer.testing import CliRunner

from tests.export.toy_hosts import codec, level
from trt_compress.errors import BuildError, ConfigError, GateError, UnsupportedError
from trt_compress.export import api, pipeline
from trt_compress.export.agreement import agreement
from trt_compress.export.int8 import layers_of, quantize_graph, require_made_of
from trt_compress.export.int8_form import Int8Form
from trt_compress.export.sides import Part
from trt_compress.format.bundle import Bundle
from trt_compress.models.hosts.base import LoadedHost
from trt_compress.models.hosts.registry import load_host
from trt_compress.models.zoo.data.digits import digits_split
from trt_compress.runtime import Session
from trt_compress.tools.cli.main import app

MODEL, SPEC = "zoo:digits_vit", "tome:num_merged=4"
needs_rtx = pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")


def typed(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images that the model was trained on, as its input takes them."""
    path = tmp_path_factory.mktemp("samples") / "digits.npz"
    np.savez(path, image=digits_split().train_images[:60])
    return path


@pytest.fixture(scope="module")
def static(samples: Path) -> Path:
    path = samples.with_name("static")
    code, out, err = typed("export", MODEL, "--compress", SPEC, "--precision", "int8", "--calibrate", samples,
                           "--target", "cpu", "--target", "rtx", "--json", "-o", path)  # fmt: skip
    assert code == 0, err
    said = json.loads(out)
    assert (said["precision"], said["int8"][0]["layers"], said["int8"][0]["in_int8"]) == ("int8", 34, 32)
    return path


@pytest.fixture(scope="module")
def dynamic(samples: Path) -> Path:
    path = samples.with_name("dynamic")
    api.export_model(MODEL, compress=SPEC, precision="int8", int8="dynamic", output=path)
    return path


@pytest.fixture(scope="module")
def floats(samples: Path) -> Path:
    path = samples.with_name("floats")
    api.export_model(MODEL, compress=SPEC, output=path)
    return path


def test_static_layers_stand_between_quantizers_and_operators_do_not(static: Path, floats: Path) -> None:
    before, graph = (onnx.load(path / "model.onnx").graph for path in (floats, static))
    producer = {name: node for node in graph.node for name in node.output}
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in before.initializer}
    layers = 0
    for node in graph.node:
        above = [producer[name].op_type if name in producer else "" for name in node.input]
        if node.domain == "trt_compress":
            assert "DequantizeLinear" not in above
        if node.op_type not in ("MatMul", "Gemm", "Conv") or above[1] != "DequantizeLinear":
            continue
        layers += 1
        assert above[0] == "DequantizeLinear"
        codes, scale, zero = (tensors[name] for name in producer[node.input[1]].input)
        weight = weights[producer[node.input[1]].input[0].removesuffix("_quantized")]
        assert codes.dtype == np.int8 and scale.size in weight.shape and not zero.any()  # one for each channel
        axis = next((a.i for a in producer[node.input[1]].attribute if a.name == "axis"), 1)
        step = scale.reshape([-1 if place == axis else 1 for place in range(weight.ndim)])
        assert (np.abs(codes * step - weight) <= step * 0.5001).all()
    record = Bundle.open(static).manifest.int8[0]
    # without the convolution and the last Gemm, which the CPU has no kernel for where codes are around zero
    assert (layers, record.layers, record.in_int8, record.samples) == (34, 34, 32, 48)
    assert record.data == "digits.npz" and record.method == "minmax" and record.products == 16


def test_ends_and_operators_are_those_of_floating_point(static: Path, dynamic: Path, floats: Path) -> None:
    wanted = onnx.load(floats / "model.onnx", load_external_data=False)
    for path in (static, dynamic):
        model = onnx.load(path / "model.onnx", load_external_data=False)
        assert [*model.graph.input] == [*wanted.graph.input] and [*model.graph.output] == [*wanted.graph.output]
        assert [*model.functions] == [*wanted.functions] and [*model.opset_import] == [*wanted.opset_import]
        own, others = ([n.name for n in m.graph.node if n.domain == "trt_compress"] for m in (model, wanted))
        assert own == others and not model.metadata_props
    assert (static / "weights.bin").stat().st_size < 0.4 * (floats / "weights.bin").stat().st_size


@pytest.mark.parametrize("way", ["static", "dynamic"])
def test_digits_are_read_as_well(way: str, static: Path, dynamic: Path, floats: Path) -> None:
    split = digits_split()
    answers = []
    for path in (floats, {"static": static, "dynamic": dynamic}[way]):
        with Session.open(path) as session:
            parts = [session.run(split.test_images[row : row + 8])["logits"] for row in range(0, 160, 8)]
            answers.append(np.concatenate(parts).argmax(axis=1))
    right = [float((answer == split.test_labels[:160]).mean()) for answer in answers]
    assert right[1] >= right[0] - 0.02 and (answers[0] == answers[1]).mean() >= 0.97


def test_the_manifest_says_how_it_answers_and_inspect_shows_it(static: Path, dynamic: Path) -> None:
    found = Bundle.open(static).manifest.verification
    assert found is not None and found.agreement is not None and found.max_abs_error is not None
    assert found.agreement.samples == 12 and "held-out samples of digits.npz" in found.agreement.inputs
    assert found.max_abs_error < 1e-4 and 0.95 < (found.agreement.cosine or 0) < 0.9999999
    assert (found.agreement.top1 or 0) >= 0.9 and found.agreement.indices is not None
    other = Bundle.open(dynamic).manifest
    assert other.verification is not None and other.verification.agreement is not None
    assert other.verification.agreement.samples == 64 and other.int8[0].samples is None
    code, out, _ = typed("inspect", static)
    out = " ".join(out.split())
    assert code == 0 and "layers with weights (static:minmax, by 48 samples of digits.npz)" in out
    assert "have the same class" in out and "before it was quantized" in out


def test_verify_proves_it_again(dynamic: Path) -> None:
    report = api.verify(dynamic)
    assert report.passed and report.max_abs_error < 1e-4
    assert {row.kind for row in report.agreements} == {"output", "site"}


def test_dynamic_ranges_leave_the_convolution_and_say_so(dynamic: Path, samples: Path) -> None:
    manifest = Bundle.open(dynamic).manifest
    graph = onnx.load(dynamic / "model.onnx", load_external_data=False).graph
    products = [node for node in graph.node if node.op_type == "MatMulInteger"]
    record = manifest.int8[0]
    assert len(products) == record.in_int8 == record.layers - len(record.kept) and len(record.kept) == 1
    assert any(form.dtype == "int8" and form.tensors == len(products) for form in manifest.weights)
    out = samples.with_name("all")
    code, _, err = typed("export", MODEL, "--precision", "int8", "--int8", "dynamic", "--int8-share", 1, "-o", out)
    assert code == 3 and "asked for were 100%" in err and "as it runs for matrix products only" in err
    assert "--int8-share 0.9" in err and not out.exists()


@needs_rtx
def test_an_engine_says_what_is_in_int8(static: Path) -> None:
    code, out, err = typed("build", static, "--target", "rtx", "--json")
    assert code == 0, err
    said = json.loads(out)["precision_achieved"]
    assert said["model"] == {"int8": 34, "fp32": 16} and said["evidence"] == "network"


@needs_rtx
def test_an_engine_has_the_rest_in_half_precision(samples: Path, tmp_path: Path) -> None:
    code, _, err = typed("export", MODEL, "--compress", SPEC, "--precision", "int8", "--calibrate", samples, "--target",
                         "rtx", "--int8-rest", "fp16", "--batch", "1", "-o", tmp_path / "b")  # fmt: skip
    assert code == 0, err
    (record,) = Bundle.open(tmp_path / "b").manifest.int8
    assert (record.layers, record.in_int8) == (34, 34)
    graph = onnx.load(tmp_path / "b" / "model.onnx", load_external_data=False).graph
    assert {end.type.tensor_type.elem_type for end in (*graph.input, *graph.output)} == {TensorProto.FLOAT}
    code, out, err = typed("build", tmp_path / "b", "--target", "rtx", "--json")
    assert code == 0, err
    said = json.loads(out)["precision_achieved"]
    assert said["model"] == {"int8": 34, "fp16": 16} and said["evidence"] == "network"


def test_pictures_go_through_the_models_own_preprocessing(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    for number in range(10):
        (folder / str(number % 2)).mkdir(parents=True, exist_ok=True)
        pixels = ((digits_split().train_images[number, 0] + 1) / 2 * 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / str(number % 2) / f"{number}.png")
    result = api.export_model(
        MODEL, precision="int8", int8="static:percentile", calibrate=folder, output=tmp_path / "b", batch="1"
    )
    record = result.manifest.int8[0]
    assert (record.samples, record.method, record.data) == (8, "percentile", "pictures") and record.share == 1
    ranges = _scales(tmp_path / "b" / "model.onnx")
    assert ranges["image"] == pytest.approx(2 / 255, rel=0.05)  # from -1 to 1, as the preprocessing makes them


def _scales(file: Path) -> dict[str, float]:
    """The scale of each value that is quantized."""
    graph = onnx.load(file).graph
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    return {node.input[0]: float(tensors[node.input[1]]) for node in graph.node if node.op_type == "QuantizeLinear"}


def test_a_changed_weight_or_node_is_found(static: Path, dynamic: Path, floats: Path) -> None:
    wanted = onnx.load(floats / "model.onnx")
    for path in (static, dynamic):
        model = onnx.load(path / "model.onnx")
        require_made_of(model, wanted, "b")
        codes = next(t for t in model.graph.initializer if t.data_type == TensorProto.INT8 and len(t.dims) == 2)
        before = numpy_helper.to_array(codes)
        wrong = before.copy()
        wrong.flat[5] += 2 if wrong.flat[5] < 100 else -2
        codes.CopyFrom(numpy_helper.from_array(wrong, codes.name))
        with pytest.raises(GateError, match=rf"the weight '{codes.name.removesuffix('_quantized')}' of 'b' is not"):
            require_made_of(model, wanted, "b")
        codes.CopyFrom(numpy_helper.from_array(before, codes.name))
        node = next(node for node in model.graph.node if node.op_type == "Softmax")
        node.op_type = "Relu"
        with pytest.raises(GateError, match=f"from the node '{node.name}' on"):
            require_made_of(model, wanted, "b")


def test_answers_that_changed_fail(static: Path, tmp_path: Path) -> None:
    model = onnx.load(static / "model.onnx")
    generator = np.random.default_rng(0)
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.INT8 and len(tensor.dims) == 2:
            turned = generator.permutation(numpy_helper.to_array(tensor))
            tensor.CopyFrom(numpy_helper.from_array(turned, tensor.name))
    onnx.save_model(model, tmp_path / "model.onnx")
    (graph,) = load_host(MODEL, weights=None).attach(())
    part = Part(graph=graph, module=graph.module, file=tmp_path / "model.onnx")
    images = digits_split().test_images
    (row,) = agreement(part, [[{"image": images[:32]}]], label="digits", real=True, classes="logits")
    assert not row.passed and row.samples == 32 and (row.same or 0) < 0.9


def test_states_keep_their_dtypes_and_are_calibrated_with_what_the_model_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _toy(monkeypatch, level())
    frames = np.random.default_rng(1).standard_normal((10, 3, 12, 8)).astype(np.float32)
    np.savez(tmp_path / "frames.npz", frame=frames)
    result = api.export_model(
        "zoo:toy", precision="int8", calibrate=tmp_path / "frames.npz", output=tmp_path / "b", int8_share=0
    )
    (state,) = result.manifest.states
    assert state.dtype == "float32" and result.manifest.int8[0].layers >= 1


def _toy(monkeypatch: pytest.MonkeyPatch, host: LoadedHost) -> None:
    monkeypatch.setattr(api, "check_model", lambda model, weights, reading: None)
    monkeypatch.setattr(pipeline, "load_host", lambda model, **_: host)


def test_graphs_that_feed_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _toy(monkeypatch, codec())
    result = api.export_model("zoo:toy", precision="int8", int8="dynamic", int8_share=0, output=tmp_path / "b")
    assert [record.graph for record in result.manifest.int8] == ["encode", "decode"]
    _toy(monkeypatch, replace(level(), links=(("model.features", "model.frame"),)))
    with pytest.raises(UnsupportedError, match=r"feed each other \(model.features to model.frame\) and keep states"):
        api.export_model("zoo:toy", precision="int8", int8="dynamic", output=tmp_path / "c")


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no samples": ({}, r"finds ranges from samples, and none are given; give --calibrate DIR .* or --int8 dynamic, "
        "which needs none"),
    "no such way": ({"int8": "magic"}, "'magic' is no way to INT8; give dynamic, which needs no data, or static"),
    "no such method": ({"int8": "static:best"}, "static:METHOD with one of minmax, entropy, percentile"),
    "samples for dynamic": ({"int8": "dynamic", "calibrate": "x.npz"}, "is for static INT8, and dynamic finds ranges"),
    "a target without": ({"int8": "dynamic", "targets": ["cuda"]}, "precision int8: cuda computes nothing in INT8"),
    "static only": ({"int8": "dynamic", "targets": ["rtx"]}, "rtx computes static INT8 only, and dynamic was asked"),
    "two forms": ({"int8": "dynamic", "weights_bits": "8"}, "weights_bits 8:32 and precision int8 both quantize"),
    "rest on the CPU": ({"int8_rest": "fp16", "calibrate": "x.npz"}, "int8_rest fp16: cpu computes fp16 beside INT8 "
        "through casts, .* export for targets of TensorRT alone"),
    "rest in bf16": ({"int8_rest": "bf16", "targets": ["rtx"]}, "int8_rest 'bf16' cannot stand beside INT8; ranges are "
        "found in ONNX Runtime on the CPU, .* give fp32 or fp16"),
    "no share": ({"int8": "dynamic", "int8_share": "2"}, "int8_share '2' is no share; give a number from 0 to 1"),
    "not there": ({"calibrate": "nowhere"}, "nowhere' is not there; give a folder of pictures or sounds, or an .npz"),
    "other precision": ({"precision": "fp16", "int8": "dynamic"}, "int8 'dynamic' is for precision int8, and the"),
    "some layers": ({"int8": "dynamic", "verify_layers": 2}, "--verify-layers 2 and precision int8 do not go together"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_go_together_is_refused(case: str, tmp_path: Path) -> None:
    given, said = BAD[case]
    with pytest.raises(ConfigError, match=said):
        api.export_model(MODEL, output=tmp_path / "b", **{"precision": "int8", **given})
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"image": np.zeros((10, 3, 8, 8), np.float32)}, r"'image' is float32 \[10, 3, 8, 8\]; it must be float32"),
        ({"image": np.full((10, 1, 8, 8), 200, np.float32)}, "holds numbers from 200 to 200, .* is from -1 to 1"),
        ({"image": np.full((10, 1, 8, 8), np.nan, np.float32)}, "'image' holds NaN or infinity"),
        ({"picture": np.zeros((10, 1, 8, 8), np.float32)}, "has picture; it must hold 'image'"),
        ({"image": np.zeros((3, 1, 8, 8), np.float32)}, "holds 3 samples; give 5 or more"),
    ],
)
def test_samples_that_do_not_suit(arrays: dict[str, Any], said: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(ConfigError, match=f"^--calibrate.*{said}"):
        api.export_model(MODEL, precision="int8", calibrate=tmp_path / "x.npz", output=tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_graph_without_weights_has_nothing_to_quantize(tmp_path: Path) -> None:
    model = onnx.parser.parse_model('<ir_version: 10, opset_import: ["" : 20]>\ng (float[2,2] x) => (float[2,2] y) '
                                    "{ y = MatMul(x, x) }")  # fmt: skip
    onnx.save_model(model, tmp_path / "g.onnx")
    assert layers_of(model).weighted == ()
    with pytest.raises(ConfigError, match="the graph 'g' has no layer with weights to quantize"):
        quantize_graph(tmp_path / "g.onnx", Int8Form.parse("dynamic"))


def test_an_engine_of_a_bundle_of_dynamic_ranges_is_refused(dynamic: Path) -> None:
    with pytest.raises((GateError, BuildError)):
        api.build(dynamic, target="rtx")
