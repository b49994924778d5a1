"""The C++ runtime as the tests take it: built once for the same sources, beside ONNX Runtime's own library."""

import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.real_models import CACHE
from tests.runtime.cpp.driving import Job, Outcome, drive
from trt_compress.errors import PluginError
from trt_compress.locks import locked
from trt_compress.plugins.headers import json_headers, onnxruntime_headers

ROOT = Path(__file__).resolve().parents[3]
SOURCES = ROOT / "runtime" / "cpp"
COMPRESSED = {"zoo:video_vit": "tome:num_merged=4"}
UNUSED_S = 7 * 24 * 3600
"""After so long a build in the cache goes."""


@dataclass(frozen=True)
class Built:
    """What was built, and what it runs on."""

    folder: Path
    onnxruntime: Path

    @property
    def library(self) -> Path:
        """The shared library."""
        return self.folder / "libtrt_compress_runtime.so"

    def program(self, name: str, *arguments: object, code: int | None = 0) -> subprocess.CompletedProcess[str]:
        """Run a program that was built with it."""
        command = [str(self.folder / name), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert code is None or done.returncode == code, done.stderr + done.stdout
        return done

    def drive(self, jobs: Sequence[Job], folder: Path) -> list[Outcome]:
        """Do jobs through the C interface, in a process that has loaded no other ONNX Runtime."""
        return drive(self.library, self.onnxruntime, jobs, folder)


def configured(source: Path, build: Path, *options: str, targets: Sequence[str] = ("all",)) -> None:
    """Run CMake, and build targets."""
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    first = ["cmake", *generator, "-S", str(source), "-B", str(build), *options]
    for command in (first, ["cmake", "--build", str(build), "--target", *targets, "-j2"]):
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]


@pytest.fixture(scope="session")
def header_options() -> list[str]:
    """What CMake is told of headers; skips where the C++ runtime cannot be built."""
    if shutil.which("cmake") is None or not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("the C++ runtime cannot be built without cmake and a C++ compiler")
    try:
        return [f"-DTRTC_ONNXRUNTIME={onnxruntime_headers()}", f"-DTRTC_JSON={json_headers()}"]
    except PluginError as error:
        pytest.skip(f"the C++ runtime cannot be built: {error.message}")


def built(name: str, options: list[str], *, targets: Sequence[str] = ("all",)) -> Path:
    """A build in the cache of the tests, by what it is made of: sources, options and compiler."""
    key = hashlib.sha256(repr((sorted(options), targets)).encode())
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))))
    key.update(subprocess.run([compiler, "--version"], capture_output=True, check=True).stdout)
    for file in sorted(each for each in SOURCES.rglob("*") if each.is_file()):
        key.update(f"{file.relative_to(SOURCES)}\0{file.stat().st_size}\0".encode() + file.read_bytes())
    kept = CACHE / "cpp"
    kept.mkdir(parents=True, exist_ok=True)
    folder = kept / f"{name}-{key.hexdigest()[:24]}"
    lock = folder.with_suffix(".lock")
    lock.touch()
    with locked(lock, patience=900):
        if not (folder / "whole").exists():
            shutil.rmtree(folder, ignore_errors=True)
            copy = shutil.copytree(SOURCES, folder / "sources")  # a kept build outlives the checkout it is of
            configured(copy, folder, *options, targets=targets)
            (folder / "whole").touch()
        os.utime(folder / "whole")
    for other in kept.glob("*/whole"):
        if time.time() - other.stat().st_mtime > UNUSED_S:
            shutil.rmtree(other.parent, ignore_errors=True)
    return folder


@pytest.fixture(scope="session")
def cpp(header_options: list[str]) -> Built:
    """The library, its examples, and the programs of `checks/`."""
    found = find_spec("onnxruntime")
    assert found is not None and found.origin is not None
    libraries = sorted((Path(found.origin).parent / "capi").glob("libonnxruntime.so*"))
    if not libraries:
        pytest.skip("the installed onnxruntime has no libonnxruntime.so")
    quick = ["-DTRTC_CHECKS=ON", "-DCMAKE_CXX_FLAGS_RELEASE=-O1", *header_options]  # half of the compiler's time
    return Built(built("plain", quick), libraries[-1])


@pytest.fixture(scope="session")
def sanitized(header_options: list[str]) -> Path:
    """`check_manifests`, `check_tokens` and `check_corpus` under AddressSanitizer and UndefinedBehaviorSanitizer."""
    options = ["-DTRTC_SANITIZE=address,undefined", "-DTRTC_CHECKS=ON", "-DTRTC_EXAMPLES=OFF", *header_options]
    programs = ("check_manifests", "check_tokens", "check_corpus")
    return built("sanitized", ["-DCMAKE_BUILD_TYPE=None", *options], targets=programs) / "check_manifests"


@pytest.fixture(scope="session")
def zoo(made_once: Callable[[str, Callable[[Path], object]], Path]) -> Callable[[str], Path]:
    """A model of the zoo with its compressors as a bundle, exported once for all tests of this folder."""

    def make(model: str, output: Path) -> None:
        from trt_compress.export import api

        api.export_model(model, output=output, batch="1:1:2", compress=COMPRESSED.get(model))

    return lambda model: made_once(f"cpp {model}", lambda output: make(model, output))
