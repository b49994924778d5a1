"""Which engine of a bundle runs here: what its record says is compared with this machine before anything is loaded."""

import importlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trt_compress.errors import BundleError, UnsupportedError
from trt_compress.format.bundle import Bundle
from trt_compress.format.manifest import Engine, Graph
from trt_compress.plugins import library as native_library
from trt_compress.plugins.library import Absent, Library
from trt_compress.runtime.backends.cuda import Cuda, Gpu

_LOGGER = logging.getLogger(__name__)

LIBRARIES = {"tensorrt": "tensorrt", "rtx": "tensorrt_rtx"}
"""Backend → the Python module that runs its engines."""

PRODUCTS = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}
_PORTABLE = "tensorrt_rtx"  # its engines are made for all GPUs that it knows
_MIXED = "int8"  # what does not multiply weights stays in floating point


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineMachine:
    """What engines run on here.

    Attributes:
        trt: The module, `tensorrt` or `tensorrt_rtx`.
        cuda: The CUDA runtime on the GPU.
    """

    trt: Any
    cuda: Cuda
    library: str
    version: str

    @property
    def gpu(self) -> Gpu:
        """The GPU."""
        return self.cuda.gpu


@dataclass(frozen=True, slots=True, kw_only=True)
class Engines:
    """The engines that run a bundle here.

    Attributes:
        records: By graph.
        plugins: The library that they need, or why there is none.
    """

    machine: EngineMachine
    records: Mapping[str, Engine]
    plugins: Library | Absent


def choose_engines(bundle: Bundle, graphs: Sequence[Graph], backend: str, native: bool | str | Path | None) -> Engines:
    """Find the engines of a bundle that run here; nothing of them is read.

    Args:
        bundle: The bundle.
        graphs: Those that are to run.
        backend: "tensorrt" or "rtx".
        native: The library of plugins, as `plugins.library.choose` takes it; an engine that needs one takes nothing
            else.

    Raises:
        BundleError: There is no engine for one of the graphs, or one was built from what is not in the bundle.
        PluginError: The library of plugins is missing, or is not the one that the engine was built with.
        UnsupportedError: The module is not installed, there is no GPU, or the engines were built for another one,
            another version or driver.
    """
    library = LIBRARIES[backend]
    if native:
        native_library.refuse_on(backend)
    candidates = _by_target(bundle, graphs, library)
    machine = _machine(library)
    refused: list[str] = []
    for records in candidates.values():
        wrong = next((said for one in records.values() if (said := _mismatch(one, bundle, machine))), None)
        if wrong is None:
            return Engines(machine=machine, records=records, plugins=_plugins(records, bundle, machine, native))
        refused.append(wrong)
    raise UnsupportedError(" ".join(refused))


def _by_target(bundle: Bundle, graphs: Sequence[Graph], library: str) -> dict[str, dict[str, Engine]]:
    """Targets that have an engine of every graph → these."""
    found: dict[str, dict[str, Engine]] = {}
    for engine in bundle.manifest.engines:
        if engine.library == library:
            found.setdefault(engine.target, {})[engine.graph] = engine
    wanted = [graph.name for graph in graphs]
    whole = {
        target: {name: records[name] for name in wanted}
        for target, records in found.items()
        if records.keys() >= set(wanted)
    }
    if whole:
        return whole
    product = PRODUCTS[library]
    if not found:
        others = ", ".join(dict.fromkeys(engine.target for engine in bundle.manifest.engines))
        has = f"has engines for {others} only" if others else "has no engine"
        target = "rtx" if library == _PORTABLE else "TARGET"
        raise BundleError(
            f"The bundle '{bundle.path}' {has}, and {product} runs nothing else; build one with "
            f"'trt-compress build {bundle.path} --target {target}'."
        )
    target, records = next(iter(found.items()))
    missing = ", ".join(f"'{name}'" for name in wanted if name not in records)
    raise BundleError(
        f"The bundle '{bundle.path}' has no engine of {missing} for '{target}'; {_again(bundle, target)}."
    )


def _machine(library: str) -> EngineMachine:
    product = PRODUCTS[library]
    try:
        trt = importlib.import_module(library)
    except (ImportError, OSError) as error:
        advice = 'pip install "trt-compress[rtx]"'
        if library != _PORTABLE:
            advice = 'pip install "trt-compress[gpu]", or on a Jetson python3 -m venv --system-site-packages ENV'
        raise UnsupportedError(
            f"The backend '{'rtx' if library == _PORTABLE else library}' needs {product}, and {error}; {advice}."
        ) from None
    return EngineMachine(trt=trt, cuda=Cuda(), library=library, version=str(trt.__version__))


def _mismatch(record: Engine, bundle: Bundle, machine: EngineMachine) -> str | None:
    """Why an engine does not run here, and what to do about it."""
    product, again = PRODUCTS[record.library], _again(bundle, record.target)
    engine = f"The engine '{record.file}'"
    if record.library_version != machine.version:
        return (
            f"{engine} was built by {product} {record.library_version}, and {machine.version} is installed, which "
            f"takes engines of its own only; {again}."
        )
    if record.sm is None and record.library != _PORTABLE:
        return f"{engine} does not say which GPU it was built for; {again} where trt-compress[cuda] is installed."
    if record.sm is not None and record.sm != machine.gpu.sm:
        return f"{engine} was built for SM {record.sm}, and this GPU is SM {machine.gpu.sm}; {again} here."
    if record.driver is not None and _numbers(machine.gpu.driver) < _numbers(record.driver):
        return (
            f"{engine} was built with a driver for CUDA {record.driver}, and the driver here is for CUDA "
            f"{machine.gpu.driver}; install a newer one, or {again} here."
        )
    files = [
        part.file for part in bundle.manifest.lowered if (part.target, part.graph) == (record.target, record.graph)
    ]
    files.append(bundle.manifest.graph(record.graph).file)
    sources = {bundle.manifest.files[name].sha256 for name in files if name in bundle.manifest.files}
    if sources and record.onnx_sha256 not in sources:
        return f"{engine} was built from another ONNX file than the bundle holds; {again}."
    return _other_precision(record, bundle, again)


def _other_precision(record: Engine, bundle: Bundle, again: str) -> str | None:
    asked = bundle.manifest.precision
    if record.precision_asked != asked:
        return f"The engine '{record.file}' was built for {record.precision_asked}, and the bundle is {asked}; {again}."
    achieved = record.precision_achieved.get("model")
    wrong = [name for name in achieved if name != asked] if isinstance(achieved, dict) and asked != _MIXED else []
    if wrong:
        return (
            f"The engine '{record.file}' was to compute in {asked}, and its record has layers in {', '.join(wrong)}; "
            f"{again}."
        )
    return None


def _plugins(
    records: Mapping[str, Engine], bundle: Bundle, machine: EngineMachine, native: bool | str | Path | None
) -> Library | Absent:
    """The library of plugins that engines need, or why there is none."""
    needing = next((record for record in records.values() if record.plugins is not None), None)
    if needing is None:
        if native:
            raise UnsupportedError(
                f"The engines for '{next(iter(records.values())).target}' were built without plugins, and native="
                f"{str(native)!r} asks for them; leave it out, or build with '--plugins yes --force'."
            )
        return Absent("The engines were built without plugins: their operators are standard ONNX.")
    if native is False:
        raise UnsupportedError(
            f"The engine '{needing.file}' was built with plugins and cannot run without them; leave native=False out, "
            f"or {_again(bundle, needing.target)} --plugins no."
        )
    sms = [machine.gpu.sm]
    library = native_library.choose("tensorrt", True if native is None else native, tensorrt=machine.version, sms=sms)
    if isinstance(library, Library):
        for record in records.values():
            if record.plugins is not None and record.plugins != library.info["source_hash"]:
                raise UnsupportedError(
                    f"The engine '{record.file}' was built with the plugins {record.plugins}, and '{library.path}' "
                    f"is of {library.info['source_hash']}; {_again(bundle, record.target)}."
                )
    return library


def _again(bundle: Bundle, target: str) -> str:
    return f"build it again with 'trt-compress build {bundle.path} --target {target} --force'"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
