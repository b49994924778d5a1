"""The C++ runtime as the tests take it: built once for all workers, beside the ONNX Runtime of the Python package."""

import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.runtime.cpp.driving import Job, Outcome, drive
from trt_compress.errors import PluginError
from trt_compress.plugins.headers import json_headers, onnxruntime_headers

ROOT = Path(__file__).resolve().parents[3]
SOURCES = ROOT / "runtime" / "cpp"


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


def configured(source: Path, build: Path, *options: str, target: str = "all") -> None:
    """Run CMake, and build a target."""
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    first = ["cmake", *generator, "-S", str(source), "-B", str(build), *options]
    for command in (first, ["cmake", "--build", str(build), "--target", target, "-j2"]):
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


@pytest.fixture(scope="session")
def cpp(made_once: Callable[[str, Callable[[Path], object]], Path], header_options: list[str]) -> Built:
    """The library, its examples, and the programs of `checks/`."""
    found = find_spec("onnxruntime")
    assert found is not None and found.origin is not None
    libraries = sorted((Path(found.origin).parent / "capi").glob("libonnxruntime.so*"))
    if not libraries:
        pytest.skip("the installed onnxruntime has no libonnxruntime.so")
    quick = ["-DTRTC_CHECKS=ON", "-DCMAKE_CXX_FLAGS_RELEASE=-O1", *header_options]  # half of the compiler's time
    build = made_once("cpp", lambda output: configured(SOURCES, output, *quick))
    return Built(build, libraries[-1])


@pytest.fixture(scope="session")
def sanitized(made_once: Callable[[str, Callable[[Path], object]], Path], header_options: list[str]) -> Path:
    """The program that reads manifests, under AddressSanitizer and UndefinedBehaviorSanitizer."""
    options = ["-DTRTC_SANITIZE=address,undefined", "-DTRTC_CHECKS=ON", "-DTRTC_EXAMPLES=OFF", *header_options]

    def make(output: Path) -> None:
        configured(SOURCES, output, "-DCMAKE_BUILD_TYPE=None", *options, target="check_manifests")

    return made_once("cpp sanitized", make) / "check_manifests"
