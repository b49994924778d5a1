"""`verify --backend`: engines held against ONNX Runtime by Polygraphy's comparators, on the fakes of TensorRT."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tests.fakes import cuda as fake_cuda
from tests.fakes import tensorrt as fake_tensorrt
from tests.fakes.engines import add_engines
from tests.runtime.counter_bundles import write as write_counter
from tests.runtime.generate.toy import write as write_toy
from trt_compress.errors import ConfigError, GateError, UnsupportedError
from trt_compress.format.bundle import Bundle
from trt_compress.tools.against_engine import verify_engines
from trt_compress.tools.cli.main import main


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("polygraphy", reason="what brings it is the extra polygraphy")
    fake_tensorrt.install(monkeypatch, fake_cuda.install(monkeypatch))


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["trt-compress", *map(str, words)])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def otherwise(bundle: Bundle, graph: str, change: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]) -> bytes:
    """A graph whose first weights in floating point are others."""
    model = onnx.load_from_string(bundle.read(bundle.manifest.graph(graph).file))
    weight = next(one for one in model.graph.initializer if one.data_type == onnx.TensorProto.FLOAT)
    changed = change(onnx.numpy_helper.to_array(weight)).astype(np.float32)
    weight.CopyFrom(onnx.numpy_helper.from_array(changed, weight.name))
    return model.SerializeToString()


def test_an_engine_of_the_same_graph_passes(
    make_bundle: Callable[..., Path],
    fakes: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    bundle = add_engines(Bundle.open(make_bundle("b")))
    report = verify_engines(bundle.path, backend="tensorrt")
    assert [(check.name, check.batch, check.max_abs_error) for check in report.outputs] == [
        ("scores", batch, 0.0) for batch in (1, 4, 8)
    ]
    np.savez(tmp_path / "i.npz", images=np.full((2, 8), 3, np.float32))
    words = ("verify", bundle.path, "--backend", "tensorrt", "--inputs", tmp_path / "i.npz")
    assert run(monkeypatch, *words) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Run as engines for 'jetson-orin-jp6' by TensorRT 10.3.0, beside ONNX Runtime." in said
    assert said.endswith("Passed.")


@pytest.mark.parametrize(("off", "passes"), [(1e-3, True), (0.1, False)])
def test_an_engine_that_computes_something_else_is_a_gate(
    make_bundle: Callable[..., Path],
    fakes: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    off: float,
    passes: bool,
) -> None:
    """One weight of 24 that is off by a tenth shows; what TF32 rounds does not."""

    def change(weight: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return weight + np.eye(*weight.shape) * off

    plain = Bundle.open(make_bundle("b"))
    bundle = add_engines(plain, models={"model": otherwise(plain, "model", change)})
    code = run(monkeypatch, "verify", bundle.path, "--backend", "tensorrt")
    said = capsys.readouterr()
    assert code == (0 if passes else 3)
    if not passes:
        err = " ".join(said.err.split())
        assert "The engine of 'model' is apart from ONNX Runtime at output scores (batch 1)" in err
        assert f"trt-compress debug {bundle.path} --target jetson-orin-jp6" in err and "FAILED" in said.out


def test_a_procedure_is_followed_and_its_states_are_compared(tmp_path: Path, fakes: None) -> None:
    plain = write_toy(tmp_path / "b", batch=2)
    report = verify_engines(add_engines(plain).path, backend="tensorrt")
    moments = [check.moment for check in report.outputs if check.name == "logits" and check.batch == 1]
    assert moments == ["prompt", "step 1", "step 2", "step 3", "step 4"]
    assert {check.name for check in report.outputs} == {"logits", "total", "cache"}
    assert {check.tolerance for check in report.outputs if check.name != "logits"} == {0.0}


def test_media_upkeep_and_what_goes_wrong_in_a_step(tmp_path: Path, fakes: None) -> None:
    plain = write_counter(tmp_path / "b")
    report = verify_engines(add_engines(plain).path, backend="tensorrt")
    assert report.passed and {"media", "prompt", "step 4"} <= {check.moment for check in report.outputs}
    toy = write_toy(tmp_path / "t")

    def later(weight: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return np.roll(weight, 1, axis=1)

    wrong = add_engines(toy, models={"step": otherwise(toy, "step", later)})
    with pytest.raises(GateError, match=r"The engine of 'step' is apart .* at output logits \(batch 1, step 1: prompt"):
        verify_engines(wrong.path, backend="tensorrt")


def test_what_does_not_go_is_a_sentence(
    make_bundle: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = make_bundle("b")
    for words, said in (
        (("--backend", "ort-cpu"), "'ort-cpu' is not known; there are tensorrt, rtx."),
        (("--backend", "rtx", "--verify-layers", 2), "--verify-layers is for the comparison with PyTorch; leave it"),
    ):
        assert run(monkeypatch, "verify", path, *words) == 2
        assert said in " ".join(capsys.readouterr().err.split())
    for name in [name for name in sys.modules if name.partition(".")[0] == "polygraphy"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "polygraphy", None)
    with pytest.raises(UnsupportedError, match="needs 'polygraphy', which is not installed") as raised:
        verify_engines(path, backend="tensorrt")
    assert raised.value.hint == 'pip install "trt-compress[polygraphy]"'


def test_inputs_that_do_not_fit(make_bundle: Callable[..., Path], fakes: None, tmp_path: Path) -> None:
    bundle = add_engines(Bundle.open(make_bundle("b")))
    np.savez(tmp_path / "i.npz", pictures=np.zeros((2, 8), np.float32))
    with pytest.raises(ConfigError, match="input 'pictures' is not known; there is images"):
        verify_engines(bundle.path, backend="tensorrt", inputs=tmp_path / "i.npz")
    toy = add_engines(write_toy(tmp_path / "t"))
    with pytest.raises(ConfigError, match="reads tokens by its procedure, and --inputs gives arrays of one run"):
        verify_engines(toy.path, backend="tensorrt", inputs=tmp_path / "i.npz")


def test_the_bundle_stays_as_it_was(make_bundle: Callable[..., Path], fakes: None) -> None:
    bundle = add_engines(Bundle.open(make_bundle("b")))
    before = bundle.manifest
    verify_engines(bundle.path, backend="tensorrt", require_digest=before.digest)
    assert Bundle.open(bundle.path).manifest == before
