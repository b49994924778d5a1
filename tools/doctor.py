"""What is installed here, what works, and what to do about the rest."""

import os
import platform
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from trt_compress.cache import SET, CacheError, cache_folder, check_own_so_far, passed_over
from trt_compress.children import find_program
from trt_compress.errors import PluginError
from trt_compress.memory import format_bytes
from trt_compress.plugins import library
from trt_compress.tools import machine
from trt_compress.tools.jetson import power_checks
from trt_compress.version import __version__

POSSIBLE = "What can be done here"
_RUN, _EXPORT = "run and time bundles", "export and verify models"
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
    """Look at the machine, the packages, the libraries behind them, tools and GPU, and what can be done with them."""
    found = (*_machine(), *_packages(), *_libraries(), *_tools(), *_gpu(), *jetson_checks())
    return (*found, *_possible({check.name: check for check in found}))


def jetson_checks() -> Iterator[Check]:
    """Power mode and clocks, with the command that sets them; nothing on a machine that is no Jetson."""
    for name, found, advice in power_checks():
        yield Check(group="Jetson", name=name, found=found, advice=advice)


def conclusion(checks: Sequence[Check]) -> str:
    """One or two sentences: problems, and what can and cannot be done here."""
    problems = sum(check.problem for check in checks)
    able = {check.name: check for check in checks if check.group == POSSIBLE}
    main = [able[name] for name in (_RUN, _EXPORT) if name in able]
    missing = [check for check in main if check.found != "yes"]
    counted = f"{problems or 'No'} problem{'' if problems == 1 else 's'} found"
    if not missing:
        return f"{counted}."
    if len(missing) == len(main):
        start = f"{counted}, and nothing" if problems else "Nothing"
        return f"{start} can be run or exported here yet: {missing[0].advice}"
    (can,) = (check for check in main if check not in missing)
    return f"{counted}. Here one can {can.name}, and cannot {missing[0].name}: {missing[0].advice}"


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
    yield _cache()
    for kind in library.KINDS:
        majors = ("10", "11") if kind == "tensorrt" else (None,)
        seen = [_state_of(kind, tensorrt=major) for major in majors]
        built = [one for one in seen if one.found != "not built"]
        yield from built or seen[:1]


def _cache() -> Check:
    """The folder of the native libraries, and what is wrong with it."""
    note = passed_over() or None
    try:
        folder = cache_folder()
    except CacheError as error:
        return Check(group="libraries", name="cache", found="none", advice=error.message, problem=True)
    try:
        check_own_so_far(folder / "plugins")
    except CacheError as error:
        return Check(group="libraries", name="cache", found="none", advice=error.message, problem=True)
    except OSError as error:
        advice = f"It may not be looked at ({error.strerror}); {SET}."
        return Check(group="libraries", name="cache", found=str(folder), advice=advice, problem=True)
    if note is None and not os.access(next(part for part in (folder, *folder.parents) if part.exists()), os.W_OK):
        return Check(group="libraries", name="cache", found=str(folder), advice=f"It may not be written; {SET}.")
    return Check(group="libraries", name="cache", found=str(folder), advice=note, problem=note is not None)


def _state_of(kind: library.Kind, *, tensorrt: str | None) -> Check:
    name = f"native operators ({kind})"
    try:
        found = library.look(kind, tensorrt=tensorrt)
    except PluginError as error:
        return Check(group="libraries", name=name, found="unusable", advice=error.message, problem=True)
    if isinstance(found, library.Library):
        return Check(group="libraries", name=name, found=", ".join(found.operators))
    if found.foreign:
        return Check(group="libraries", name=name, found="not taken", advice=found.reason, problem=True)
    advice = "trt-compress plugins build" if kind == "onnxruntime" else None
    return Check(group="libraries", name=name, found="not built", advice=advice)


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


def _tools() -> Iterator[Check]:
    """Programs that build the native operators, and ffmpeg."""
    compiler = os.environ.get("CXX") or next(filter(find_program, ("c++", "g++", "clang++")), "c++")
    needed = "Needed to build the native operators (trt-compress plugins build); "
    for name, command, advice in (
        ("C++ compiler", (compiler, "--version"), f"{needed}on Debian and Ubuntu: apt install g++."),
        ("cmake", ("cmake", "--version"), f"{needed}pip install cmake."),
        ("ninja", ("ninja", "--version"), "Makes the native operators build faster; pip install ninja."),
        ("nvcc", ("nvcc", "--version"), "Needed to compile CUDA kernels and plugins; it comes with the CUDA toolkit."),
        ("ffmpeg", ("ffmpeg", "-version"), "Not needed, as PyAV reads video; of use to convert files."),
    ):
        said = machine.command_output(*command)
        found = None if said is None else f"{_version_of(said)} ({find_program(command[0])})"
        yield Check(group="tools", name=name, found=found, advice=None if found else advice)


def _version_of(said: str) -> str:
    """The version in what a program says of itself, or its first line."""
    for form in (r"\brelease (\d[\w.]*)", r"\bversion (\S+)", r"\) (\d[\w.]*)", r"(\d+\.\d[\w.+-]*)"):
        if number := re.search(form, said):
            return number.group(1)
    return (said.splitlines() or [""])[0]


def _possible(found: Mapping[str, Check]) -> Iterator[Check]:
    """What can be done here, and what to do about the rest."""

    def there(name: str) -> bool:
        check = found.get(name)
        return check is not None and check.found is not None and not check.found.startswith("does not import")

    providers = (found["onnxruntime"].found or "") if there("onnxruntime") else ""
    gpu = found["NVIDIA GPU"].found not in (None, "none")
    can_run = "CPUExecutionProvider" in providers
    wanted = [name for name in machine.PACKAGES["export"] if not _is_there(name.replace("-", "_"))]
    install_cpu = _install("cpu")
    sums: tuple[tuple[str, str | None], ...] = (
        (_RUN, None if can_run else f"onnxruntime is missing; {install_cpu}."),
        (
            f"{_RUN} on the GPU (ort-cuda)",
            None if "CUDAExecutionProvider" in providers and gpu else "It needs an NVIDIA GPU and onnxruntime-gpu.",
        ),
        (
            f"{_RUN} as engines (tensorrt, rtx)",
            None
            if (there("tensorrt") or there("tensorrt_rtx")) and gpu and machine.package_version("cuda-bindings")
            else f"It needs an NVIDIA GPU, its TensorRT or TensorRT-RTX, and cuda-bindings; {_install('cuda')}.",
        ),
        (
            _EXPORT,
            f"{', '.join(wanted)} missing; {_install('export')}."
            if wanted
            else None
            if can_run
            else f"verification needs onnxruntime; {install_cpu}.",
        ),
        ("build engines for rtx", None if there("tensorrt_rtx") else f"{_install('rtx')}."),
        (
            "build engines for TensorRT",
            None if there("tensorrt") and gpu else "It needs an NVIDIA GPU and its TensorRT: build on the device.",
        ),
        (
            "stream video and images",
            None if _is_there("av") and _is_there("PIL") else f"{_install('video')}.",
        ),
        ("stream sound", None if _is_there("soundfile") else f"{_install('audio')}."),
        (
            "build native operators for the CPU",
            None if there("C++ compiler") and there("cmake") else "It needs a C++ compiler and cmake; see above.",
        ),
        (
            "build CUDA kernels and plugins",
            None if there("nvcc") and there("cmake") else "It needs nvcc of the CUDA toolkit.",
        ),
    )
    for name, lacking in sums:
        yield Check(group=POSSIBLE, name=name, found="no" if lacking else "yes", advice=lacking)


def _is_there(module: str) -> bool:
    """Whether a module can be found, without loading it."""
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):
        return False


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
