"""What a bundle needs against what is here: backends, libraries, versions, memory, engines, and the clocks of a Jetson.

A bundle may be for several targets; it is well where one of them runs, and a target that is asked for has to.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from trt_compress.children import run_python
from trt_compress.errors import ConfigError, PluginError
from trt_compress.export.build import PRODUCTS, library_version
from trt_compress.export.targets import Target, get_target
from trt_compress.format.bundle import Bundle
from trt_compress.format.graphs import BATCH_SYMBOL
from trt_compress.format.manifest import Engine, Manifest
from trt_compress.memory import available_bytes, format_bytes
from trt_compress.plugins import library
from trt_compress.plugins.library import Library
from trt_compress.runtime.generate.memory import state_bytes, weight_bytes
from trt_compress.strays import temporary_folder
from trt_compress.tools import machine
from trt_compress.tools.doctor import Check, jetson_checks

NO_PLUGIN = "TensorRT says 'could not find plugin'"
"""The complaint that has four causes, each with a sentence of its own below."""

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


@dataclass(frozen=True, slots=True)
class _Here:
    """What is on this machine for one library of TensorRT: its version, or why there is none; the SMs of the GPUs."""

    version: str | None
    problem: str
    sms: tuple[int, ...]


def bundle_checks(bundle: Bundle, *, target: str | None = None) -> tuple[Check, ...]:
    """Hold what a bundle needs against what is here.

    Args:
        bundle: The bundle.
        target: The one that has to run here; None: one of the bundle's.

    Raises:
        ConfigError: The target is not known, or the bundle was not exported for it.
    """
    manifest = bundle.manifest
    if target is not None and get_target(target).name not in manifest.targets:
        raise ConfigError(
            f"'{bundle.path}' was exported for {', '.join(manifest.targets) or 'no target'}, not for '{target}'; give "
            f"one of these, or export it again with --target {target}."
        )
    names = (target,) if target else manifest.targets or ("cpu",)
    found = [tuple(_of_target(bundle, get_target(name))) for name in names]
    if any(not _problems(checks) for checks in found):  # the others are told, and are no problem
        found = [tuple(_told(checks)) if _problems(checks) else checks for checks in found]
    return (*(check for checks in found for check in checks), *_memory(manifest), *jetson_checks())


def _problems(checks: Sequence[Check]) -> int:
    return sum(check.problem for check in checks)


def _told(checks: Sequence[Check]) -> Iterator[Check]:
    for check in checks:
        yield Check(group=check.group, name=check.name, found=check.found, advice=check.advice)


def _of_target(bundle: Bundle, target: Target) -> Iterator[Check]:
    group = f"bundle for {target.name}"
    if not target.is_tensorrt:
        yield from _of_onnxruntime(bundle, target, group)
        return
    here = _installed(target)
    product = PRODUCTS[target.backend]
    oldest, newest = target.tensorrt_version or ("", "")
    if here.version is None:
        advice = f"It needs {product} from {oldest} to below {newest}: {here.problem}."
        yield Check(group=group, name=product, found=None, advice=advice, problem=True)
    elif not target.takes_version(here.version):
        advice = f"'{target.name}' takes {product} from {oldest} to below {newest}; take the target of this device."
        yield Check(group=group, name=product, found=here.version, advice=advice, problem=True)
    else:
        yield Check(group=group, name=product, found=here.version)
    yield _gpu(target, here, group)
    if bundle.manifest.operators and target.plugin_wins != "never":
        yield _plugins(bundle, target, here, group)
    engines = [engine for engine in bundle.manifest.engines if engine.target == target.name]
    if not engines:
        advice = f"trt-compress build {bundle.path} --target {target.name}"
        yield Check(group=group, name="engine", found=None, advice=advice)
    for engine in engines:
        yield _engine(bundle, engine, here, group)


def _of_onnxruntime(bundle: Bundle, target: Target, group: str) -> Iterator[Check]:
    """The provider of ONNX Runtime, the opset, and the native operators."""
    provider = _PROVIDERS[target.name]
    try:
        module = import_module("onnxruntime")
        version, providers = module.__version__, module.get_available_providers()
    except Exception as error:  # a broken binary package raises whatever its loader raises
        extra = "gpu" if target.name == "cuda" else "cpu"
        advice = f'It does not import ({error}); pip install "trt-compress[{extra}]".'
        yield Check(group=group, name="ONNX Runtime", found=None, advice=advice, problem=True)
        return
    lacking = provider not in providers
    instead = f"It lacks {provider}; pip install onnxruntime-gpu in place of onnxruntime." if lacking else None
    yield Check(group=group, name="ONNX Runtime", found=version, advice=instead, problem=lacking)
    if target.name == "cuda":
        yield _gpu(target, _Here(version, "", _sms_here()), group)
    manifest = bundle.manifest
    too_new = target.first_refused_opset is not None and manifest.opset >= target.first_refused_opset
    again = f"ONNX Runtime takes opsets below {target.first_refused_opset}; export it again." if too_new else None
    yield Check(group=group, name="opset", found=str(manifest.opset), advice=again, problem=too_new)
    gone = [graph.file for graph in manifest.graphs if graph.file not in manifest.files]
    if gone:
        advice = f"It was pruned to {', '.join(manifest.targets)}; take the whole bundle."
        yield Check(group=group, name="graph", found=f"no {gone[0]}", advice=advice, problem=True)
    if manifest.operators and target.name == "cpu":
        yield _native(group)


def _native(group: str) -> Check:
    """The operators of ONNX Runtime; without them the bodies in the file run, slower."""
    name = "native operators"
    try:
        found = library.look("onnxruntime")
    except PluginError as error:
        return Check(group=group, name=name, found="not used", advice=error.message)
    if isinstance(found, Library):
        return Check(group=group, name=name, found="built for this version")
    return Check(group=group, name=name, found="ONNX bodies run instead", advice=found.reason)


def _installed(target: Target) -> _Here:
    try:
        import_module(target.backend)
        version, problem = library_version(target), ""
    except Exception as error:  # as above
        version, problem = None, f"the Python module '{target.backend}' does not import here ({error})"
    return _Here(version, problem, _sms_here())


def _sms_here() -> tuple[int, ...]:
    return tuple(sorted({int(gpu["compute_cap"].replace(".", "")) for gpu in machine.gpus()}))


def _gpu(target: Target, here: _Here, group: str) -> Check:
    wanted = ", ".join(map(str, target.sms))
    if not here.sms and machine.jetpack_release() and target.name.startswith("jetson"):
        return Check(group=group, name="GPU", found=machine.jetpack_release())  # nvidia-smi says nothing of it there
    if not here.sms:
        return Check(group=group, name="GPU", found=None, advice="It needs an NVIDIA GPU.", problem=True)
    found = ", ".join(f"SM {sm}" for sm in here.sms)
    if target.sms and not set(here.sms) & set(target.sms):
        advice = f"'{target.name}' is for SM {wanted}; export and build for this GPU."
        return Check(group=group, name="GPU", found=found, advice=advice, problem=True)
    return Check(group=group, name="GPU", found=found)


def _memory(manifest: Manifest) -> Iterator[Check]:
    """The weights and the largest states of one run, against what is free."""
    free = available_bytes()
    weights = weight_bytes(manifest)
    longest = max((span.max for span in manifest.lengths.values()), default=1)
    states = state_bytes(manifest, manifest.batch.max, longest) if manifest.states else 0
    found = f"{format_bytes(weights)} of weights"
    if manifest.states:
        found += f", {format_bytes(states)} of states at most ({BATCH_SYMBOL} {manifest.batch.max}, {longest} long)"
    if free is None:
        yield Check(group="bundle", name="memory", found=f"{found}; how much is free here is not known")
        return
    found += f"; {format_bytes(free)} are free here"
    if weights > free:
        advice = "The weights alone do not fit; close other programs, or export with fewer bits (--precision)."
        yield Check(group="bundle", name="memory", found=found, advice=advice, problem=True)
    elif weights + states > free:
        advice = "Not for the longest sequences: give run and generate a smaller batch or --context."
        yield Check(group="bundle", name="memory", found=found, advice=advice)
    else:
        yield Check(group="bundle", name="memory", found=found)


# ---- plugins ---------------------------------------------------------------------------------------------------------


def _plugins(bundle: Bundle, target: Target, here: _Here, group: str) -> Check:
    """Whether TensorRT would find the plugins of this bundle, and if not, why."""
    engines = [engine for engine in bundle.manifest.engines if engine.target == target.name]
    needed = target.lowering == "plugin" or any(engine.plugins for engine in engines)
    used = "needed" if needed else "of use: without them the bodies run"
    if here.version is None:
        return Check(group=group, name="plugins", found=f"{used}; not looked at without TensorRT")
    cause = why_no_plugin(bundle.manifest, version=here.version, sms=here.sms)
    if cause is None:
        return Check(group=group, name="plugins", found="built, and they hold what the bundle uses")
    said = f"{NO_PLUGIN}, as {cause}" if needed else cause[0].upper() + cause[1:]
    return Check(group=group, name="plugins", found=used, advice=said, problem=needed)


def why_no_plugin(manifest: Manifest, *, version: str, sms: Sequence[int] = ()) -> str | None:
    """Which of the four causes keeps TensorRT from finding the plugins of a bundle; None: it finds them.

    1. There is no library to load. 2. It is for another TensorRT or GPU. 3. It does not load, as something that it
    needs is missing. 4. It holds no plugin of this name and version.

    Args:
        manifest: Of the bundle.
        version: Of the TensorRT that is here.
        sms: The GPUs that are here.
    """
    major = version.partition(".")[0]
    try:
        found = library.look("tensorrt", tensorrt=version, sms=sms)
    except PluginError as error:
        return f"the library does not fit (cause 2 of 4): {error.message}"
    if not isinstance(found, Library):
        return f"{_absent(major)} Run 'trt-compress plugins build' on this machine."
    if (reason := _refused_by_loader(found.path)) is not None:
        return f"the library does not load (cause 3 of 4): {reason}. Install what it lacks, or build it again here."
    held = {(one["op_type"], one.get("version", 1)) for one in found.info["operators"]}
    lacking = [f"{use.op_type} {use.version}" for use in manifest.operators if (use.op_type, use.version) not in held]
    if lacking:
        return (
            f"the library holds no {', '.join(lacking)} (cause 4 of 4); install the version of trt-compress that the "
            "bundle was made with, and run 'trt-compress plugins build'."
        )
    return None


def _absent(major: str) -> str:
    """Why there is no library: none at all, one for another TensorRT, or one of other sources."""
    others = [one for one in library.installed() if isinstance(one, Library) and one.kind == "tensorrt"]
    fitting = [one for one in others if one.info["tensorrt"].partition(".")[0] == major]
    if fitting:
        return (
            f"the library here was built from the sources of trt-compress {fitting[0].info['version']}, and may hold "
            "other plugins (cause 4 of 4)."
        )
    if others:
        return f"the library here is for TensorRT {others[0].info['tensorrt']}, and this is {major} (cause 2 of 4)."
    return "no plugin library is built here (cause 1 of 4)."


def _refused_by_loader(path: Path) -> str | None:
    """What the system says when it loads a library, in a process of its own; None: it loads."""
    with temporary_folder("doctor") as folder:
        done = run_python("trt_compress.plugins.describe_worker", [path], folder=folder)
    if done.returncode == 0:
        return None
    said = (done.stdout + (done.stderr or b"")).decode(errors="replace").strip().splitlines()
    return said[-1].removeprefix("OSError: ") if said else f"its process ended with {done.returncode}"


# ---- engines ---------------------------------------------------------------------------------------------------------


def _engine(bundle: Bundle, engine: Engine, here: _Here, group: str) -> Check:
    """What an engine was built for, against what is here."""
    manifest = bundle.manifest
    name, product = f"engine of {engine.graph}", PRODUCTS[engine.library]
    found = f"built by {product} {engine.library_version}"
    wrong = []
    if here.version is not None and here.version != engine.library_version:
        wrong.append(f"this is {product} {here.version}, and an engine runs on the version that built it")
    sources = {form.sha256 for form in manifest.lowered if (form.target, form.graph) == (engine.target, engine.graph)}
    own = (graph.file for graph in manifest.graphs if graph.name == engine.graph)
    sources |= {manifest.files[file].sha256 for file in own if file in manifest.files}
    if sources and engine.onnx_sha256 not in sources:
        wrong.append("it was built from another ONNX file than the bundle has")
    if engine.plugins is not None and engine.plugins != library.source_hash("tensorrt"):
        wrong.append("it needs plugins of other sources than this trt-compress has")
    if not wrong:
        return Check(group=group, name=name, found=found)
    rebuild = f"trt-compress build {bundle.path} --target {engine.target} --force"
    advice = f"{'; '.join(wrong)}: {rebuild}"
    return Check(group=group, name=name, found=found, advice=advice[0].upper() + advice[1:], problem=True)
