"""Engine builds: real ones with TensorRT-RTX, and every way in which a build must fail in one sentence."""

import hashlib
import importlib.metadata
import sys
from importlib.util import find_spec
from pathlib import Path

import onnx
import onnx.parser
import pytest

from tests.export.rtx_cases import CASES
from trt_compress import children
from trt_compress.errors import BuildError, ConfigError, GateError, PluginError, UnsupportedError
from trt_compress.export.build import BatchRange, build_engine, choose_plugins
from trt_compress.export.targets import get_target
from trt_compress.plugins.library import Library

RTX = get_target("rtx")
BATCH = BatchRange(min=1, opt=2, max=4)
needs_rtx = pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")

_MERGE = """
<ir_version: 10, opset_import: ["" : 20, "trt_compress" : 1]>
g ({t}[batch,17,8] x, float[batch,17,1] s) => ({t}[batch,15,8] y) <{t}[8,8] w = {{}}> {{
  a = MatMul(x, w)
  b, t, d = trt_compress.TrtcTokenMerge<num_merged=2, num_protected=1, order=0, plugin_version="1",
                                        plugin_namespace="">(a, a, s)
  y = Softmax(b)
}}"""


def merge_model(dtype: str = "float") -> onnx.ModelProto:
    """A projection and a TokenMerge at site blocks.0."""
    model = onnx.parser.parse_model(_MERGE.format(t=dtype))
    model.graph.initializer[0].raw_data = bytes(64 * (4 if dtype == "float" else 2))
    for node, name in zip(model.graph.node, ("qkv", "blocks.0/TokenMerge", "softmax"), strict=True):
        node.name = name
    return model


def plain(signature: str, body: str = "y = Relu(x)") -> onnx.ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]>\ng {signature} {{ {body} }}')


def install_tensorrt(content: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a module `tensorrt` of this content on the path of this process and of the builder's."""
    (folder / "tensorrt.py").write_text(content)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", str(folder))


# ---- builds that succeed --------------------------------------------------------------------------------------------


@needs_rtx
def test_an_engine_comes_with_the_proof_of_what_it_is() -> None:
    built = build_engine(merge_model(), RTX, batch=BATCH, precision="fp32")
    record = built.record
    assert (record.target, record.library) == ("rtx", "tensorrt_rtx")
    assert RTX.takes_version(record.library_version)
    assert record.sha256 == hashlib.sha256(built.data).hexdigest()
    assert record.paths == {"TrtcTokenMerge": {"plugin": 0, "function": 1}}
    assert record.precision_achieved["evidence"] == "network"
    assert record.precision_achieved["model"] == {"fp32": 1}
    assert record.profile == {
        "x": {"min": [1, 17, 8], "opt": [2, 17, 8], "max": [4, 17, 8]},
        "s": {"min": [1, 17, 1], "opt": [2, 17, 1], "max": [4, 17, 1]},
    }


@needs_rtx
def test_an_operator_may_compute_in_fp32_inside_an_fp16_model() -> None:
    record = build_engine(merge_model("float16"), RTX, batch=BATCH, precision="fp16").record
    assert record.precision_achieved["model"] == {"fp16": 1}
    assert "fp32" in record.precision_achieved["operators"]


@needs_rtx
def test_a_fixed_batch_needs_no_profile() -> None:
    built = build_engine(plain("(float[3,8] x) => (float[3,8] y)"), RTX, batch=BatchRange.parse("3"), precision="fp32")
    assert built.record.profile == {}
    assert built.record.precision_achieved["model"] == {}


@needs_rtx
def test_plain_tensorrt_goes_the_same_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_tensorrt('from tensorrt_rtx import *\n__version__ = "10.13.3"\n', tmp_path, monkeypatch)
    record = build_engine(merge_model("float16"), get_target("jetson-thor"), batch=BATCH, precision="fp16").record
    assert (record.library, record.library_version) == ("tensorrt", "10.13.3")
    assert record.precision_achieved["model"] == {"fp16": 1}  # the body was told apart, though it was not inlined
    assert record.paths == {"TrtcTokenMerge": {"plugin": 0, "function": 1}}


# ---- gates ----------------------------------------------------------------------------------------------------------


@needs_rtx
def test_fp16_asked_and_fp32_built_is_a_failed_gate() -> None:
    with pytest.raises(GateError, match=r"precision=fp16 was asked for, and the network has compute layers 1 in fp32 "):
        build_engine(merge_model(), RTX, batch=BATCH, precision="fp16")


@needs_rtx
def test_int8_asked_and_fp32_built_is_a_failed_gate() -> None:
    with pytest.raises(GateError, match=r"precision=int8 was asked for, and of 1 layers with weights 0 are in INT8 "):
        build_engine(merge_model(), RTX, batch=BATCH, precision="int8")


# ---- requests that cannot be met ------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "0", "1:4", "4:1:8", "1:9:8", "a", "1:2:3:4", "-1", "1:2:", "²"])
def test_a_bad_batch_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a range; it must be .*MIN:OPT:MAX"):
        BatchRange.parse(text)


def test_a_batch_reads_as_it_is_written() -> None:
    assert str(BatchRange.parse("1:4:8")) == "1:4:8"
    assert BatchRange.parse("4") == BatchRange(min=4, opt=4, max=4)


def test_a_target_without_engines_is_refused() -> None:
    with pytest.raises(
        ConfigError, match="target 'cpu' runs the ONNX file itself and has no engine; built are rtx, jet"
    ):
        build_engine(merge_model(), get_target("cpu"), batch=BATCH, precision="fp32")


@pytest.mark.parametrize(("target", "precision"), [("rtx", "int4"), ("jetson-orin-jp6", "bf16"), ("rtx", "half")])
def test_a_precision_that_cannot_be_checked_is_refused(target: str, precision: str) -> None:
    with pytest.raises(ConfigError, match=f"precision='{precision}' cannot be built for '{target}'; use fp32, fp16"):
        build_engine(merge_model(), get_target(target), batch=BATCH, precision=precision)


def test_rtx_is_never_given_a_plugin_library() -> None:
    for asked in (True, "libops.so"):
        with pytest.raises(PluginError, match="TensorRT-RTX takes no plugins, and a plugin that matches"):
            choose_plugins(RTX, asked)
    assert choose_plugins(RTX, None) is None
    library = Library(kind="tensorrt", path=Path("libops.so"), info={"source_hash": "0"})
    with pytest.raises(PluginError, match="TensorRT-RTX takes no plugins"):
        build_engine(merge_model(), RTX, batch=BATCH, precision="fp32", plugins=library)


def test_plugins_are_needed_where_the_file_has_no_bodies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(importlib.metadata, "version", lambda name: {"tensorrt": "10.3.0.26"}[name])
    with pytest.raises(PluginError, match="The TensorRT plugins are not built for this version of the sources; run"):
        choose_plugins(get_target("jetson-orin-jp6"), None)
    with pytest.raises(PluginError, match="The TensorRT plugins are not built"):
        choose_plugins(get_target("x86-trt10"), True)
    with pytest.raises(PluginError, match="'none.so' is not there; build the libraries with"):
        choose_plugins(get_target("x86-trt10"), "none.so")
    assert choose_plugins(get_target("x86-trt10"), None) is None
    assert choose_plugins(get_target("x86-trt10"), False) is None


@pytest.mark.skipif(find_spec("tensorrt") is not None, reason="tensorrt is installed")
def test_a_missing_library_names_its_extra() -> None:
    with pytest.raises(
        UnsupportedError, match=r"needs the Python module 'tensorrt', .*\nHint: .*'trt-compress\[gpu\]'"
    ):
        build_engine(merge_model(), get_target("x86-trt10"), batch=BATCH, precision="fp32")


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (
            '__version__ = "11.4.1"',
            "TensorRT 11.4.1 is installed, and target 'x86-trt10' needs at least 10.8 and below 11; install that",
        ),
        (
            '__version__ = "10.9.0"\n'
            "class Logger:\n    WARNING = 0\n    def __init__(self, level): pass\n"
            'def Builder(logger): raise TypeError("factory function returned nullptr")\n',
            r"TensorRT 10.9.0 cannot build without an NVIDIA GPU and its driver \(factory function returned nullptr\)",
        ),
        (
            'raise ImportError("libnvinfer.so.10: cannot open shared object file")',
            "module 'tensorrt' is installed but does not load: libnvinfer.so.10: cannot open shared object file",
        ),
    ],
    ids=["version", "no-gpu", "no-library"],
)
def test_a_library_that_cannot_build_says_why(
    module: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_tensorrt(module, tmp_path, monkeypatch)
    with pytest.raises(UnsupportedError, match=message):
        build_engine(merge_model(), get_target("x86-trt10"), batch=BATCH, precision="fp32")


@needs_rtx
def test_another_dynamic_axis_is_named() -> None:
    with pytest.raises(ConfigError, match=r"input 'x' is dynamic on axis 1 \(tokens\); only axis 0, the batch, may be"):
        build_engine(
            plain("(float[B,tokens] x) => (float[B,tokens] y)"), RTX, batch=BatchRange.parse("1"), precision="fp32"
        )


@needs_rtx
def test_a_batch_range_for_a_fixed_batch_is_refused() -> None:
    with pytest.raises(
        ConfigError, match="input 'x' has a fixed batch of 3, and batch=1:2:4 was given; give batch=3, "
    ):
        build_engine(plain("(float[3,8] x) => (float[3,8] y)"), RTX, batch=BATCH, precision="fp32")


# ---- builders that fail ---------------------------------------------------------------------------------------------


@needs_rtx
def test_every_node_that_the_parser_refuses_is_named() -> None:
    model = plain("(float[B,8] x) => (float[8] y, float[8] z)", "y = Unique(x) z = Unique(x)")
    for node, name in zip(model.graph.node, ("first", "second"), strict=True):
        node.name = name
    with pytest.raises(BuildError, match=r"cannot read the graph: node 'first' \(Unique\).*node 'second' \(Unique\)"):
        build_engine(model, RTX, batch=BATCH, precision="fp32")


@needs_rtx
def test_the_words_of_the_builder_are_kept() -> None:
    with pytest.raises(
        BuildError, match=r"cannot build the engine: .*K exceeds the maximum value allowed \(3840\)"
    ) as hit:
        build_engine(CASES["topk-k/3841"].model(), RTX, batch=BATCH, precision="fp32")
    assert any("[E]" in line for line in hit.value.log)


@needs_rtx
def test_a_crash_of_the_library_does_not_take_us_along() -> None:
    model = CASES["attention-shared-input/all_three"].model()
    with pytest.raises(BuildError, match=r"TensorRT-RTX builder was killed \(signal 11, .*a crash inside the library"):
        build_engine(model, RTX, batch=BatchRange.parse("2"), precision="fp16")


@needs_rtx
@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "import os; os.kill(os.getpid(), 9)",
            r"was killed \(signal 9, Killed\), usually memory: lower the largest batch",
        ),
        ("pass", "ended with exit code 0 and no result: it said nothing"),
        ("raise SystemExit('no space left')", "ended with exit code 1 and no result: no space left"),
    ],
    ids=["killed", "completed but no file", "failed"],
)
def test_a_builder_that_ends_without_an_engine_is_an_error(
    code: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(children, "python_command", lambda *_: [sys.executable, "-c", code])
    with pytest.raises(BuildError, match=message):
        build_engine(merge_model(), RTX, batch=BATCH, precision="fp32")
