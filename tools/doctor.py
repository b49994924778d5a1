"""What is installed here, what works, and what to do about the rest."""

import platform
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any

from trt_compress import __version__
from trt_compress.errors import PluginError
from trt_compress.plugins import library
from trt_compress.tools import machine
from trt_compress.tools.console import format_bytes

_FREE_WANTED = 2 << 30  # an export of a large model writes its weights twice


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was looked at; `advice` says what to do if it is missing or wrong."""

    group: str
    name: str
    found: str | None
    advice: str | None = None
    problem: bool = False

    def to_json(self) -> dict[str, Any]:
        """Write as plain JSON data."""
        return asdict(self)


def run_checks() -> tuple[Check, ...]:
    """Look at the machine, the packages, the libraries behind them and the GPU."""
    return (*_machine(), *_packages(), *_libraries(), *_gpu())


def _machine() -> Iterator[Check]:
    yield Check(group="machine", name="trt-compress", found=__version__)
    yield Check(group="machine", name="python", found=platform.python_version())
    yield Check(group="machine", name="platform", found=platform.platform())
    yield Check(group="machine", name="processor", found=f"{machine.cpu_model()}, {machine.cpu_cores()} cores usable")
    memory = machine.memory_bytes()
    found = f"{format_bytes(memory[0])}, {format_bytes(memory[1])} available" if memory else None
    yield Check(group="machine", name="memory", found=found)
    free = shutil.disk_usage(".").free
    short = free < _FREE_WANTED
    advice = "Free some space, or export to another disk with -o." if short else None
    yield Check(group="machine", name="disk", found=f"{format_bytes(free)} free here", advice=advice, problem=short)


def _packages() -> Iterator[Check]:
    for extra, names in machine.PACKAGES.items():
        for name in names:
            found = machine.package_version(name)
            advice = None if found else _install(extra)
            yield Check(group="packages", name=f"{name} [{extra}]", found=found, advice=advice)


def _libraries() -> Iterator[Check]:
    yield _onnxruntime()
    for module in "tensorrt", "tensorrt_rtx":
        yield _tensorrt(module)
    yield from _native()


def _native() -> Iterator[Check]:
    for kind in library.KINDS:
        name = f"native operators ({kind})"
        majors = (10, 11) if kind == "tensorrt" else (None,)
        paths = [path for major in majors if (path := library.library_path(kind, tensorrt_major=major)).exists()]
        if not paths:
            advice = "trt-compress plugins build" if kind == "onnxruntime" else None
            yield Check(group="libraries", name=name, found="not built", advice=advice)
        for path in paths:
            try:
                found = library.check(path, kind)
                yield Check(group="libraries", name=name, found=", ".join(found.operators))
            except PluginError as error:
                yield Check(group="libraries", name=name, found="unusable", advice=error.message, problem=True)


def _onnxruntime() -> Check:
    both = all(machine.package_version(name) for name in ("onnxruntime", "onnxruntime-gpu"))
    advice = "pip uninstall one of onnxruntime and onnxruntime-gpu; each overwrites the other." if both else None
    try:
        providers = ", ".join(import_module("onnxruntime").get_available_providers())
    except Exception as error:  # a broken binary package raises whatever its loader raises
        return _broken("onnxruntime", error, "cpu")
    return Check(group="libraries", name="onnxruntime", found=providers, advice=advice, problem=both)


def _tensorrt(module: str) -> Check:
    extra = {"tensorrt": "gpu", "tensorrt_rtx": "rtx"}[module]
    try:
        return Check(group="libraries", name=module, found=f"imports, {import_module(module).__version__}")
    except Exception as error:  # as above
        return _broken(module, error, extra)


def _broken(module: str, error: Exception, extra: str) -> Check:
    if isinstance(error, ModuleNotFoundError) and error.name == module:
        return Check(group="libraries", name=module, found=None, advice=_install(extra))
    return Check(
        group="libraries",
        name=module,
        found=f"does not import: {error}",
        advice=f'pip install --force-reinstall "trt-compress[{extra}]"',
        problem=True,
    )


def _install(extra: str) -> str:
    command = f'pip install "trt-compress[{extra}]"'
    return f"{command}, in place of [cpu], where there is an NVIDIA GPU" if extra == "gpu" else command


def _gpu() -> Iterator[Check]:
    found = [
        f"{gpu['name']}, driver {gpu['driver_version']}, {gpu['memory.total']}, SM {gpu['compute_cap']}"
        for gpu in machine.gpus()
    ]
    jetpack = machine.jetpack_release()
    advice = None if found or jetpack else "Engines for TensorRT-RTX build without one; running any engine needs one."
    yield Check(group="GPU", name="NVIDIA GPU", found="; ".join(found) or jetpack or "none", advice=advice)
    nvcc = machine.command_output("nvcc", "--version")
    advice = None if nvcc else "Needed only to compile the plugins; it comes with the CUDA toolkit."
    yield Check(group="GPU", name="nvcc", found=nvcc.splitlines()[-1] if nvcc else None, advice=advice)
