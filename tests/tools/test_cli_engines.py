"""Commands on engines: `--backend tensorrt` and `rtx`, by the fakes of TensorRT and CUDA."""

import json
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from tests.fakes import cuda as fake_cuda
from tests.fakes import tensorrt as fake_tensorrt
from tests.fakes.engines import add_engines
from tests.runtime.generate.toy import write as write_toy
from trt_compress.runtime import Bundle, Session
from trt_compress.runtime.backends.tensorrt import EngineGraph
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


# ---- text and streams ------------------------------------------------------------------------------------------------


def profiles_of(toy: Bundle, slots: int) -> list[dict[str, dict[str, tuple[int, ...]]]]:
    """One profile for steps of a token, one for chunks of a prompt; both with at most so many slots."""
    made = []
    for least, usual, most in ((1, 1, 1), (2, 5, 5)):
        time = {"min": (1, least), "opt": (1, usual), "max": (4, most)}
        batch = {"min": (1,), "opt": (1,), "max": (4,)}
        made.append(
            {
                "tokens": time,
                "positions": time,
                "total_in": batch,
                "count": batch,
                "cache_in": {"min": (1, 8), "opt": (1, 16), "max": (4, slots)},
            }
        )
    return made


def test_generate_writes_the_same_on_an_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    toy = write_toy(tmp_path / "b")
    toy = add_engines(toy, profiles=profiles_of(toy, 96))
    fake_tensorrt.install(monkeypatch, fake_cuda.install(monkeypatch))
    chosen: list[int] = []
    profile = EngineGraph.profile

    def noted(self: EngineGraph, shapes: Mapping[str, tuple[int, ...]]) -> int:
        found = profile(self, shapes)
        chosen.append(found)
        assert found == int(shapes["tokens"][1] > 1)  # a step is of the first profile, a chunk of the second
        return found

    monkeypatch.setattr(EngineGraph, "profile", noted)
    words = ("generate", toy.path, "--prompt", "the quick brown fox jumps", "--max-new", 30, "--seed", 3, "--json")
    assert run(monkeypatch, *words) == 0
    plain = json.loads(capsys.readouterr().out)["answers"]
    assert chosen == []
    assert run(monkeypatch, *words, "--backend", "tensorrt") == 0
    assert json.loads(capsys.readouterr().out)["answers"] == plain
    assert plain[0]["new_tokens"] == 30
    assert set(chosen) == {0, 1}


def test_more_slots_than_the_engine_has_are_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    toy = write_toy(tmp_path / "b")
    toy = add_engines(toy, profiles=profiles_of(toy, 32))
    fake_tensorrt.install(monkeypatch, fake_cuda.install(monkeypatch))
    words = ("generate", toy.path, "--prompt", "the fox", "--ignore-stop-ids", "--backend", "tensorrt", "--max-new")
    assert run(monkeypatch, *words, 20) == 0
    capsys.readouterr()
    assert run(monkeypatch, *words, 60) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "was not built for this: 'cache_in' has the shape [1, 64], and it takes [1 to 4, 8 to 32]" in said
    assert "build again for 'jetson-orin-jp6'" in said and "Traceback" not in said
