"""Preflight of a file: what the library itself says is a finding, and nothing foreign ends in a traceback."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from trt_compress.errors import TrtCompressError
from trt_compress.export import trial
from trt_compress.export.check import preflight_report
from trt_compress.export.preflight import preflight
from trt_compress.export.targets import get_target
from trt_compress.export.trial import preflight_file
from trt_compress.tools.cli.main import app

PLAIN = "g (float[B,8] x) => (float[B,8] y) { y = Relu(x) }"


def written(text: str, path: Path, *, opset: int = 20) -> Path:
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}, "com.microsoft" : 1]>\n{text}')
    onnx.save_model(model, path)
    return path


def rules(findings: tuple[Any, ...], severity: str = "error") -> list[str]:
    return [finding.rule for finding in findings if finding.severity == severity]


def test_onnxruntime_is_asked_and_named(tmp_path: Path) -> None:
    found, sentence = preflight_file(written(PLAIN, tmp_path / "m.onnx"), get_target("cpu"))
    assert found == ()
    assert sentence.startswith("loaded by ONNX Runtime 1.")


def test_what_only_onnxruntime_knows_is_a_finding_in_its_words(tmp_path: Path) -> None:
    file = written("g (complex64[2,8] x) => (complex64[2,8] y) { y = Identity(x) }", tmp_path / "m.onnx")
    assert preflight(file, get_target("cpu")) == ()
    found, sentence = preflight_file(file, get_target("cpu"))
    assert rules(found) == ["refused-by-library"]
    assert "refuses it: " in found[0].message and "complex64" in found[0].message
    assert sentence.startswith("refused by ONNX Runtime 1.")


def test_what_onnxruntime_loads_is_at_most_a_warning(tmp_path: Path) -> None:
    file = written("g (bfloat16[2,8] x) => (bfloat16[2,8] y) { y = Clip(x) }", tmp_path / "m.onnx")
    assert rules(preflight(file, get_target("cpu"))) == ["precision"]
    found, sentence = preflight_file(file, get_target("cpu"))
    assert rules(found) == [] and rules(found, "warning") == ["precision"]
    assert found[0].message.endswith(f"; yet it was {sentence}")


def test_without_cuda_a_missing_kernel_says_nothing_of_cuda(tmp_path: Path) -> None:
    file = written("g (bfloat16[2,8] x) => (bfloat16[2,8] y) { y = Reciprocal(x) }", tmp_path / "m.onnx")
    assert rules(preflight_file(file, get_target("cuda"))[0]) == []


def test_tensorrt_is_not_asked_before_a_build_on_the_device(tmp_path: Path) -> None:
    _, sentence = preflight_file(written(PLAIN, tmp_path / "m.onnx"), get_target("jetson-thor"))
    assert sentence == "not tried: TensorRT reads it when an engine is built for 'jetson-thor'"


def test_tensorrt_rtx_builds_an_open_batch(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs the real parser: pip install 'trt-compress[rtx]'")
    report = preflight_report(written(PLAIN, tmp_path / "m.onnx"), target="rtx")
    assert report.findings == ()
    assert report.checked[1].startswith("the file itself was parsed and built by TensorRT-RTX 1.")
    assert report.to_json()["checked"] == list(report.checked)


def test_what_only_tensorrt_rtx_knows_is_a_finding_in_its_words(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs the real parser: pip install 'trt-compress[rtx]'")
    text = "g (float[4,8] x, int64[2] s) => (float[2,16] y) { y = Reshape(x, s) }"
    found, sentence = preflight_file(written(text, tmp_path / "m.onnx"), get_target("rtx"))
    assert rules(found) == ["refused-by-library"]
    assert "cannot build it: " in found[0].message
    assert sentence.startswith("refused by TensorRT-RTX 1.")


def test_large_weights_are_parsed_and_not_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs the real parser: pip install 'trt-compress[rtx]'")
    monkeypatch.setattr(trial, "MOST_BYTES_BUILT", 10)
    _, sentence = preflight_file(written(PLAIN, tmp_path / "m.onnx"), get_target("rtx"))
    assert sentence.startswith("parsed by TensorRT-RTX 1.") and "not built, because its weights are large" in sentence


def test_weights_that_are_not_beside_the_file_are_a_finding(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.ones((8, 8), np.float32), "w")
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    shapes = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 8]) for name in "xy"]
    made = helper.make_model(helper.make_graph([node], "g", shapes[:1], shapes[1:], [weight]), ir_version=10)
    made.opset_import[0].version = 20
    path = tmp_path / "m.onnx"
    onnx.save_model(made, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    assert preflight_file(path, get_target("cpu"))[0] == ()
    (tmp_path / "w.bin").write_bytes(bytes(100))
    (finding,) = preflight_file(path, get_target("cpu"))[0]
    assert finding.message == "'w.bin', which holds weights of the model, has 100 bytes of 256"
    (tmp_path / "w.bin").unlink()
    (finding,) = preflight_file(path, get_target("cpu"))[0]
    assert (finding.rule, finding.severity) == ("external-weights", "error")
    assert finding.message == "'w.bin', which holds weights of the model, is not there"


def test_whole_numbers_in_another_file_are_no_flaw(tmp_path: Path) -> None:
    """Inference would read them, as it reads shapes, and cannot."""
    positions = numpy_helper.from_array(np.arange(600), "positions")
    node = helper.make_node("Add", ["x", "positions"], ["y"], name="turned")
    sides = [helper.make_tensor_value_info(name, TensorProto.INT64, [600]) for name in "xy"]
    made = helper.make_model(helper.make_graph([node], "g", sides[:1], sides[1:], [positions]), ir_version=10)
    made.opset_import[0].version = 20
    path = tmp_path / "m.onnx"
    onnx.save_model(made, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    found, sentence = preflight_file(path, get_target("cpu"))
    assert found == () and sentence.startswith("loaded by ONNX Runtime")


def test_the_command_says_what_was_asked(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["preflight", str(written(PLAIN, tmp_path / "m.onnx")), "--target", "cpu"])
    assert result.exit_code == 0
    assert "the file itself was loaded by ONNX Runtime 1." in " ".join(result.output.split())


# ---- foreign files --------------------------------------------------------------------------------------------------

_SEEDS = (
    PLAIN,
    "g (float[4,8] x) => (float[4,3] v, int64[4,3] i) <int64[1] k = {3}> { v, i = TopK<axis=1>(x, k) }",
    "g (float[2,8] x, bool c) => (float[2,8] y) { y = If<then_branch = t () => (float[2,8] a) { a = Neg(x) }, "
    "else_branch = e () => (float[2,8] b) { b = Abs(x) }>(c) }",
    'g (float[1,2,8,8] x) => (float[1,2,16,16] y) <float[4] s = {1,1,2,2}> { y = Resize<mode="linear">(x, , s) }',
    "g (float[2,8] x) => (float[2,8] y) <float s = {0.1}, int8 z = {0}> "
    "{ q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }",
    "g (float[B,17,8] x, float[B,17,1] s) => (float[B,15,8] y) { y, t, d = trt_compress.TrtcTokenMerge<num_merged=2, "
    'num_protected=1, order=0, plugin_version="1", plugin_namespace="">(x, x, s) }',
    "g (float[2,8] x) => (float[2,8] y) { y = my.F(x) } "
    '<domain: "my", opset_import: ["" : 20]> F (a) => (b) { c = Relu(a) b = Neg(c) }',
)
_NUMBERS = (0, 1, -1, 2, 7, 99, 2**31 - 1, -(2**31), 2**40, 2**62, -(2**63))
_TEXTS = ("", "x", "ä", "Relu", "If", "TopK", "Resize", "trt_compress", "TrtcTokenMerge", "com.microsoft", "../x", "\0")


def _messages(message: Any) -> Iterator[Any]:
    yield message
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for item in value if field.is_repeated else [value]:
                yield from _messages(item)


def _mutate(model: onnx.ModelProto, chance: random.Random) -> None:
    """Change, clear, repeat or drop one field somewhere."""
    message = chance.choice(list(_messages(model)))
    present = [field for field, _ in message.ListFields()]
    field = chance.choice(present if present and chance.random() < 0.6 else list(message.DESCRIPTOR.fields))
    if chance.random() < 0.2:
        message.ClearField(field.name)
        return
    if field.type == field.TYPE_MESSAGE:
        items = getattr(message, field.name)
        if not field.is_repeated:
            items.SetInParent()
        elif len(items) and chance.random() < 0.5:
            del items[chance.randrange(len(items))]
        elif len(items):
            items.add().CopyFrom(chance.choice(list(items)))
        else:
            items.add()
        return
    value: Any = chance.choice(_NUMBERS)
    if field.type == field.TYPE_STRING:
        value = chance.choice(_TEXTS)
    elif field.type == field.TYPE_BYTES:
        value = chance.choice([b"", b"\xff\xfe", b"none", bytes(16)])
    elif field.type == field.TYPE_ENUM:
        value = chance.choice([item.number for item in field.enum_type.values])
    try:
        if not field.is_repeated:
            setattr(message, field.name, value)
        elif len(getattr(message, field.name)):
            getattr(message, field.name)[0] = value
        else:
            getattr(message, field.name).append(value)
    except (ValueError, TypeError):  # out of the range of the field
        message.ClearField(field.name)


def _mutant(seed: int) -> bytes:
    chance = random.Random(seed)
    imports = '["" : 20, "my" : 1, "trt_compress" : 1]'
    model = onnx.parser.parse_model(f"<ir_version: 10, opset_import: {imports}>\n{chance.choice(_SEEDS)}")
    if chance.random() < 0.7:
        for _ in range(chance.choice((1, 1, 2, 4))):
            _mutate(model, chance)
        return bytes(model.SerializeToString())
    data = bytearray(model.SerializeToString())
    for _ in range(chance.choice((1, 2, 4))):
        place = chance.randrange(len(data))
        if chance.random() < 0.7:
            data[place] = chance.randrange(256)
        else:
            del data[place : place + 2]
    return bytes(data)


@pytest.mark.parametrize("part", range(8))
def test_a_damaged_file_ends_in_findings_or_one_sentence(part: int, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    for seed in range(part * 100, part * 100 + 100):
        path.write_bytes(_mutant(seed))
        for target in ("rtx", "cpu", "jetson-orin-jp6"):
            try:
                preflight(path, get_target(target))
            except TrtCompressError as error:
                assert error.exit_code in (2, 3), f"seed {seed}: {error}"
            except Exception as error:
                pytest.fail(f"seed {seed} for {target}: {type(error).__name__} {error}")
