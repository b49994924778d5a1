"""Compile kernels and plugins as C++ that runs on the CPU, and keep the objects between runs by what went into them."""

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from trt_compress.cache import cache_folder
from trt_compress.locks import locked
from trt_compress.plugins.testing.plugin_harness import NO_HEADERS, SOURCE, all_headers

HERE = Path(__file__).parent
PLUGINS = HERE.parents[2] / "plugins"
SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g")
MOST_OBJECTS = 500
FLAGS = (
    *("-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-DTRTC_EMULATED_CUDA"),
    *("-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"),
    *(f"-I{PLUGINS}", f"-I{HERE}", "-isystem", str(HERE / "include")),
)


def compiler() -> str:
    """The C++ compiler; skips the test where there is none."""
    found = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")
    if found is None:
        pytest.skip("no C++ compiler (g++ or clang++) is on the path")
    return found


def headers() -> list[Path]:
    """What any source here may include."""
    found = [path for pattern in ("*.h", "*.cuh") for path in PLUGINS.rglob(pattern)]
    return sorted([*found, *HERE.rglob("*.h")])


def objects(sources: Iterable[Path], flags: Sequence[str] = ()) -> list[Path]:
    """Compile each source on its own; what gives the same text after the preprocessor is not compiled again."""
    command = [compiler(), *FLAGS, *flags, "-x", "c++"]
    version = subprocess.run([command[0], "--version"], capture_output=True, text=True, check=True).stdout
    options = hashlib.sha256("\0".join([version, *command]).encode())
    everything = options.copy()
    for header in headers():
        everything.update(header.read_bytes())
    folder = cache_folder() / "emulation"
    folder.mkdir(parents=True, exist_ok=True)

    def compile_one(source: Path) -> Path:
        # If nothing at all has changed, the preprocessor need not be asked either.
        digest = everything.copy()
        digest.update(str(source).encode() + source.read_bytes())
        known = folder / f"{digest.hexdigest()[:24]}.known"
        if known.exists():
            wanted = folder / known.read_text()
        else:
            text = subprocess.run([*command, "-E", str(source)], capture_output=True).stdout
            same = options.copy()
            same.update(text)
            wanted = folder / f"{source.parent.name}-{source.stem}-{same.hexdigest()[:24]}.o"
        lock = wanted.with_suffix(".lock")
        lock.touch()
        with locked(lock, patience=900):  # another worker may be at it
            if not wanted.exists():
                made = wanted.with_suffix(f".{os.getpid()}.tmp")
                run([*command, "-c", str(source), "-o", str(made)])
                made.replace(wanted)
        known.write_text(wanted.name)
        os.utime(wanted)
        return wanted

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        made = list(pool.map(compile_one, sources))
    for pattern in ("*.o", "*.known", "*.lock"):  # the oldest go, by when they were last asked for
        kept = sorted(folder.glob(pattern), key=lambda path: path.stat().st_mtime)
        for old in kept[: max(len(kept) - MOST_OBJECTS, 0)]:
            old.unlink(missing_ok=True)
    return made


def link(output: Path, parts: Iterable[Path], flags: Sequence[str] = ()) -> Path:
    """Link objects to a program, or with -shared to a library."""
    run([compiler(), *map(str, parts), *flags, "-o", str(output), "-ldl", "-pthread"])
    return output


def run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
        pytest.fail(f"{' '.join([*command[:1], *command[-4:]])}\n" + "\n".join(errors[:20]))


def operator_folders(source: str) -> list[Path]:
    """Folders of the operators that have this file, such as `cuda_op.cpp`."""
    return sorted(path.parent for path in PLUGINS.glob(f"*/{source}") if path.parent.name != "common")


def registration(function: str, registry: str, header: str, source: str) -> Path:
    """The file that CMake would write: it calls `function` of every operator that has `source`."""
    names = [found.name for found in operator_folders(source)]
    declared = [f"namespace trtc::{name} {{ void {function}({registry}& registry); }}" for name in names]
    calls = [f"    {name}::{function}(registry);" for name in names]
    suffix = function.removeprefix("register")
    lines = [f'#include "common/{header}"', *declared, f"void trtc::registerAll{suffix}({registry}& registry)"]
    text = "\n".join([*lines, "{", *calls, "    static_cast<void>(registry);", "}", ""])
    folder = cache_folder() / "emulation" / hashlib.sha256(text.encode()).hexdigest()[:24]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{function}.cpp"
    path.write_text(text)
    return path


def kernel_sources() -> list[Path]:
    """All that both GPU libraries share, with the emulation in place of CUDA."""
    common = [PLUGINS / "common" / f"{name}.cpp" for name in ("contract", "parsed_call", "cuda_op", "cuda_fault")]
    own = [found / name for found in operator_folders("cuda_op.cpp") for name in ("contract.cpp", "cuda_op.cpp")]
    kernels = [path for found in operator_folders("cuda_op.cpp") for path in sorted(found.glob("*.cu"))]
    made = registration("registerCuda", "trtc::CudaRegistry", "cuda_op.h", "cuda_op.cpp")
    return [HERE / "cuda_emulation.cpp", *common, *own, *kernels, made]


def cuda_library(folder: Path, flags: Sequence[str] = ()) -> Path:
    """libtrtc_cuda with its C interface, running on the CPU."""
    sources = [*kernel_sources(), PLUGINS / "common" / "cuda_interface.cpp"]
    return link(folder / "libtrtc_cuda.so", objects(sources, flags), ["-shared", *flags])


def tensorrt_library(folder: Path, headers: Path, flags: Sequence[str] = ()) -> Path:
    """libtrtc_tensorrt against the TensorRT headers in a folder, its kernels running on the CPU."""
    include = ["-isystem", str(headers)]
    adapter = objects([PLUGINS / "common" / "tensorrt_adapter.cpp"], [*flags, *include])
    parts = [*objects(kernel_sources(), flags), *adapter]
    return link(folder / "libtrtc_tensorrt.so", parts, ["-shared", *flags])


def harness(folder: Path, headers: Path, flags: Sequence[str] = ()) -> Path:
    """The plugin harness, with the emulation in place of CUDA."""
    sources = [SOURCE, HERE / "cuda_emulation.cpp"]
    return link(folder / "plugin_harness", objects(sources, [*flags, "-isystem", str(headers)]), flags)


def interfaces() -> dict[str, Path]:
    """Folders of TensorRT's headers by version: those that are here, after the part that the emulation declares."""
    return {"emulated": HERE / "tensorrt", **all_headers()}


def interface_params() -> list[Any]:
    """One parameter for each of them."""
    return [pytest.param(headers, id=version) for version, headers in interfaces().items()]


def headers_params() -> list[Any]:
    """One parameter for each version of TensorRT whose headers are here; skipped with the reason where none are."""
    found = all_headers()
    if not found:
        return [pytest.param(None, id="none", marks=pytest.mark.skip(reason=NO_HEADERS))]
    return [pytest.param(headers, id=version) for version, headers in found.items()]
