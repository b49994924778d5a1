"""The commands plugins build and plugins list, and what doctor and list say of native libraries."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trt_compress.plugins.library import library_path
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
        (("--onnxruntime", "nowhere"), 2, "error: 'nowhere' has no onnxruntime_c_api.h; give the unpacked release"),
    ],
)
def test_wrong_calls(cli: Cli, empty_cache: Path, arguments: tuple[str, ...], code: int, message: str) -> None:
    if shutil.which("cmake") is None:
        pytest.skip("cmake is not on the path")
    finished = cli("plugins", "build", *arguments)
    assert finished.returncode == code and finished.stderr.startswith(message)


def test_a_machine_without_cmake(cli: Cli, empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", os.devnull)
    finished = cli("plugins", "build")
    assert finished.returncode == 2
    assert finished.stderr.startswith(
        "error: CMake is not on the path; install it, for example with 'pip install cmake"
    )
