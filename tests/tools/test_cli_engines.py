"""Commands on engines: `--backend tensorrt` and `rtx`, by the fakes of TensorRT and CUDA."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.fakes import cuda as fake_cuda
from tests.fakes import tensorrt as fake_tensorrt
from tests.fakes.engines import add_engines
from trt_compress.runtime import Bundle, Session
from trt_compress.tools.cli.main import main

PATHS = {"TrtcTokenMerge": {"plugin": 0, "function": 8}}


@pytest.fixture
def bundle(exported: Callable[..., Path], tmp_path: Path) -> Bundle:
    shutil.copytree(exported("tome:num_merged=4"), tmp_path / "b")
    return add_engines(add_engines(Bundle.open(tmp_path / "b"), paths=PATHS), "rtx", paths=PATHS)


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["trt-compress", *map(str, words)])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.mark.parametrize(
    ("backend", "name", "version"), [("tensorrt", "tensorrt", "10.3.0"), ("rtx", "tensorrt_rtx", "1.7.1.116")]
)
def test_bench_times_the_engine_and_says_how_operators_run(
    bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    backend: str,
    name: str,
    version: str,
) -> None:
    gpu = fake_cuda.install(monkeypatch)
    fake_tensorrt.install(monkeypatch, gpu, name, version)
    out = tmp_path / "result.json"
    assert run(monkeypatch, "bench", bundle.path, "--backend", backend, "--pairs", 8, "--json", out) == 0
    document = json.loads(out.read_text())
    assert document["protocol"]["backend"] == backend
    assert document["sides"][0]["identity"]["operators"]["paths"] == {"function": 8}
    assert "operators run 8 as ONNX bodies" in " ".join(capsys.readouterr().out.split())
    assert gpu.calls["cudaGraphLaunch"] > 8


def test_an_engine_and_the_file_give_the_same(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_tensorrt.install(monkeypatch, fake_cuda.install(monkeypatch))
    with Session.open(bundle, native=False) as plain, Session.open(bundle, backend="tensorrt") as engine:
        for batch in (1, 3, 8, 3):
            (info,) = plain.inputs.values()
            x = np.random.default_rng(batch).standard_normal((batch, *info.shape[1:])).astype(np.float32)  # type: ignore[arg-type]
            for key, value in plain.run(x).items():
                np.testing.assert_allclose(engine.run(x)[key], value, rtol=1e-5, atol=1e-5)


def test_what_does_not_fit_is_a_sentence(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_tensorrt.install(monkeypatch, fake_cuda.install(monkeypatch, sm=90))
    assert run(monkeypatch, "bench", bundle.path, "--backend", "tensorrt") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "was built for SM 87, and this GPU is SM 90; build it again with" in said and "Traceback" not in said
    assert run(monkeypatch, "bench", bundle.path, "--backend", "tensort") == 2
    assert "Did you mean 'tensorrt'?" in capsys.readouterr().err
