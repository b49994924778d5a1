"""The command line as a user types it, and a place in which anything left behind shows."""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from trt_compress.tools.cli.main import app


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """How a command ended."""

    code: int
    out: str
    err: str


Typed = Callable[..., Finished]
_OF_OTHERS = ("torchinductor", ".ses")  # what torch and ONNX Runtime leave in the folder of temporary files


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current directory; temporary files go to its sibling `temp`, which must be empty afterwards."""
    here, temp = tmp_path / "here", tmp_path / "temp"
    here.mkdir()
    temp.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("TMPDIR", str(temp))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield here
    assert [path.name for path in temp.iterdir() if not path.name.startswith(_OF_OTHERS)] == []


@pytest.fixture
def typed(place: Path) -> Typed:
    """Run `trt-compress` with these arguments, in this process."""

    def run(*arguments: object) -> Finished:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Finished(code=result.exit_code, out=result.stdout, err=result.stderr)

    return run


@pytest.fixture
def typed_alone(place: Path) -> Typed:
    """Run `trt-compress` with these arguments in a process of its own."""

    def run(*arguments: object, before: str = "") -> Finished:
        program = f"{before}\nfrom trt_compress.tools.cli.main import main; main()"
        command = [sys.executable, "-c", program, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True)
        return Finished(code=done.returncode, out=done.stdout, err=done.stderr)

    return run


@pytest.fixture
def copied(exported: Callable[..., Path], place: Path) -> Callable[..., Path]:
    """A copy of an exported bundle that a test may change."""

    def copy(name: str = "bundle", **options: object) -> Path:
        shutil.copytree(exported(**options), place / name)
        return place / name

    return copy
