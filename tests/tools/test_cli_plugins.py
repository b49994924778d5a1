"""The commands plugins build and plugins list, and what doctor and list say of native libraries."""

import errno
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trt_compress.errors import PluginError
from trt_compress.plugins.build import build
from trt_compress.plugins.library import find, installed, library_path
from trt_compress.plugins.spec import FLOATS

Cli = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def plant(**changes: Any) -> Path:
    """A file in the place of the library for ONNX Runtime, with a description."""
    import hashlib

    from trt_compress.plugins.library import source_hash

    path = library_path("onnxruntime")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"code")
    info = {
        "kind": "onnxruntime",
        "version": "0.1.0",
        "source_hash": source_hash("onnxruntime"),
        "sha256": hashlib.sha256(b"code").hexdigest(),
        "operators": [{"op_type": "TrtcTokenMerge", "dtypes": list(FLOATS)}],
        "cpu_features": [],
        **changes,
    }
    path.with_suffix(".json").write_text(json.dumps(info))
    return path


def test_nothing_is_built(cli: Cli, empty_cache: Path) -> None:
    assert cli("plugins", "list").stdout == "No native library is built; 'trt-compress plugins build' does.\n"
    assert json.loads(cli("plugins", "list", "--json").stdout) == {"libraries": []}
    found = {check["name"]: check for check in json.loads(cli("doctor", "--json").stdout)["checks"]}
    assert found["native operators (onnxruntime)"]["found"] == "not built"
    assert found["native operators (onnxruntime)"]["advice"] == "trt-compress plugins build"


def test_what_is_built_shows_everywhere(cli: Cli, empty_cache: Path) -> None:
    path = plant()
    (row,) = json.loads(cli("plugins", "list", "--json").stdout)["libraries"]
    assert (row["library"], row["state"], row["operators"]) == ("onnxruntime", "ready", "TrtcTokenMerge")
    assert row["path"] == str(path) and row["for"] == "any processor"
    found = {check["name"]: check for check in json.loads(cli("doctor", "--json").stdout)["checks"]}
    assert found["native operators (onnxruntime)"]["found"] == "TrtcTokenMerge"
    operators = {row["name"]: row for row in json.loads(cli("list", "operators", "--json").stdout)["operators"]}
    assert operators["TokenMerge"]["native"] == ["ort"] and operators["TokenSelect"]["native"] == []


@pytest.mark.parametrize(
    ("changes", "state", "why"),
    [
        ({"source_hash": "0" * 16, "version": "0.0.9"}, "old", "built from other sources, trt-compress 0.0.9"),
        ({"cpu_features": ["avx9000"]}, "unusable", "needs avx9000, which this processor does not have"),
        ({"sha256": "0"}, "unusable", "it was changed or cut off"),
    ],
)
def test_what_does_not_fit_says_why(cli: Cli, empty_cache: Path, changes: dict[str, Any], state: str, why: str) -> None:
    plant(**changes)
    (row,) = json.loads(cli("plugins", "list", "--json").stdout)["libraries"]
    assert row["state"] == state and why in row["why"]
    assert state in cli("plugins", "list").stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--cuda", "5x"), 2, "error: --cuda 5x: give SMs such as 87,90, or 'all', or 'none'."),
        (("--cuda", ""), 2, "error: --cuda : give SMs such as 87,90, or 'all', or 'none'."),
        (("--cuda", "-87"), 2, "error: --cuda -87: give SMs such as 87,90"),
        (("--cuda", "999"), 2, "error: --cuda 999: SMs from 75 on are supported: 75, 80, 86, 87, 89, 90"),
        (("--cuda", "60"), 2, "error: --cuda 60: SMs from 75 on are supported"),
        (("--cuda", "87,8.7"), 2, "error: --cuda 87,87 names an SM twice; name each once."),
        (("--tensorrt", "nowhere"), 2, "error: 'nowhere' has no NvInfer.h; give the folder of TensorRT that has it"),
        (("--tensorrt", "empty", "--cuda", "none"), 2, "error: 'empty' has no NvInfer.h"),
        (("--tensorrt", "old"), 2, "old' is of TensorRT 8.6; 10.3 (JetPack 6) or newer is needed."),
        (
            ("--tensorrt", "good", "--cuda", "none"),
            2,
            "error: --tensorrt and --cuda none: the plugins are made of the kernels",
        ),
        (("--onnxruntime", "empty"), 2, "error: 'empty' has no onnxruntime_c_api.h"),
        (("--onnxruntime", "nowhere"), 2, "error: 'nowhere' has no onnxruntime_c_api.h; give the unpacked release"),
    ],
)
def test_wrong_calls_are_refused_before_anything_is_built(
    cli: Cli, empty_cache: Path, tmp_path: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    if shutil.which("cmake") is None:
        pytest.skip("cmake is not on the path")
    (tmp_path / "empty").mkdir()
    for name, major, minor in ("old", 8, 6), ("good", 10, 9):
        (tmp_path / name).mkdir()
        (tmp_path / name / "NvInfer.h").touch()
        numbers = f"#define NV_TENSORRT_MAJOR {major}\n#define NV_TENSORRT_MINOR {minor}\n"
        (tmp_path / name / "NvInferVersion.h").write_text(numbers)
    there = set(empty_cache.rglob("*"))
    finished = cli("plugins", "build", *arguments)
    assert finished.returncode == code and message in finished.stderr, finished.stderr
    assert set(empty_cache.rglob("*")) == there


@pytest.mark.parametrize("way", ["a file", "a file in the way of the home", "nothing may be made", "no home"])
def test_a_cache_that_cannot_be_written(way: str, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("cmake") is None:
        pytest.skip("cmake is not on the path")
    (tmp_path / "file").touch()
    if way == "no home":
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setattr(Path, "home", unknown_home)
        with pytest.raises(PluginError, match="There is no home folder for the native libraries; set XDG_CACHE_HOME"):
            build(cuda="none")
        assert installed() == () and find("onnxruntime") is None
        return
    if way == "a file in the way of the home":
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setenv("HOME", str(tmp_path / "file"))
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file") if way == "a file" else "/proc/nowhere")
    finished = cli("plugins", "build", "--cuda", "none")
    assert finished.returncode == 2 and len(finished.stderr.splitlines()) == 1
    assert "cannot be written to '" in finished.stderr
    assert finished.stderr.endswith("; set XDG_CACHE_HOME to a folder that may be written.\n")
    assert cli("plugins", "list").stdout == "No native library is built; 'trt-compress plugins build' does.\n"


def unknown_home() -> Path:
    raise RuntimeError("Could not determine home directory.")


def test_a_full_disk_is_no_bug(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("cmake") is None:
        pytest.skip("cmake is not on the path")

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("trt_compress.plugins.build.try_new_folder", full)
    with pytest.raises(
        PluginError, match=r"\(No space left on device\); free some space, or set XDG_CACHE_HOME"
    ) as error:
        build(cuda="none")
    assert error.value.exit_code == 2


def test_a_machine_without_cmake(cli: Cli, empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", os.devnull)
    finished = cli("plugins", "build")
    assert finished.returncode == 2
    assert finished.stderr.startswith(
        "error: CMake is not on the path; install it, for example with 'pip install cmake"
    )
