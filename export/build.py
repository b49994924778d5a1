"""ONNX → engine, for TensorRT and TensorRT-RTX alike, with proof of the precision and of each operator's path.

An engine is built from a file as it lies there, so that a device needs neither torch nor onnx; `build_engine` writes
that file for a model in memory.
"""

import importlib.metadata
import importlib.util
import json
import re
import signal
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from trt_compress.children import run_python
from trt_compress.digest import sha256
from trt_compress.errors import BuildError, ConfigError, GateError, UnsupportedError
from trt_compress.export.int8_form import INT8, LEAST_SHARE, STATIC
from trt_compress.export.ranges import BatchRange as BatchRange
from trt_compress.export.ranges import LengthRange
from trt_compress.export.targets import TARGETS, Target
from trt_compress.format.manifest import Dim, TensorInfo
from trt_compress.plugins.library import Library, choose, library_or_none, refuse_on
from trt_compress.plugins.spec import DOMAIN
from trt_compress.strays import temporary_folder

if TYPE_CHECKING:
    import onnx

_EXTRAS = {"tensorrt": "gpu", "tensorrt_rtx": "rtx"}
PRODUCTS = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}
_PRECISION_OF_DTYPE = {"FLOAT": "fp32", "HALF": "fp16", "BF16": "bf16"}
_COMPUTE_LAYERS = frozenset({"MATRIX_MULTIPLY", "CONVOLUTION", "DECONVOLUTION", "EINSUM", "ATTENTION_OUTPUT"})
_PLUGIN_LAYERS = frozenset({"PLUGIN", "PLUGIN_V2", "PLUGIN_V3"})
_LOG_LINES_KEPT = 40
_JETSON_RELEASE = Path("/etc/nv_tegra_release")


class _Layer(TypedDict):
    name: str
    type: str
    metadata: str
    output_dtypes: list[str]
    dequantized: bool
    weights: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildRecord:
    """What is known about a built engine, under the names that the manifest uses.

    Attributes:
        target: Name of the target.
        library: Python module of the builder.
        library_version: Its version.
        sha256: Hash of the engine.
        precision_asked: As given.
        precision_achieved: Compute layers by precision, those of the model itself and those inside operators (which may
            stay fp32 by contract), and the evidence: "network" is the parsed, strongly typed network.
        paths: For each operator, how many nodes became a plugin and how many a function.
        profile: For each input with a dynamic batch, its smallest, best and largest shape.
        seconds: Time of parsing and building.
        plugins: Source hash of the plugin library that the engine needs at run time, if it needs one.
        sm: The GPU that it was built for, None for any.
        driver: The CUDA version that its driver knew.
    """

    target: str
    library: str
    library_version: str
    sha256: str
    precision_asked: str
    precision_achieved: dict[str, Any]
    paths: dict[str, dict[str, int]]
    profile: dict[str, dict[str, list[int]]]
    seconds: float
    plugins: str | None = None
    sm: int | None = None
    driver: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltEngine:
    """A serialized engine and its record."""

    data: bytes
    record: BuildRecord


def build_engine(
    model: "onnx.ModelProto",
    target: Target,
    *,
    batch: BatchRange,
    precision: str,
    lengths: Mapping[str, LengthRange] | None = None,
    plugins: Library | None = None,
) -> BuiltEngine:
    """Build the engine of a model in memory: in the form that the target needs, and then as `build_engine_file`.

    Args:
        model: The exported graph with its weights, operators as single nodes.
        target: A target with an engine.
        batch: Range of the batch, the dynamic axis 0 of the inputs.
        precision: What the compute layers must be in.
        lengths: Range of every other dynamic axis, by its symbol.
        plugins: The native operators for plain TensorRT, as `choose_plugins` gives them.

    Raises:
        ConfigError, UnsupportedError, BuildError, GateError: as `build_engine_file`.
    """
    import onnx

    from trt_compress.export.lower import lower_for_target

    check_request(target, precision)
    if plugins:
        refuse_on(target.backend)
    lowered = lower_for_target(model, target)
    weights = {weight.name for weight in lowered.graph.initializer}
    inputs = {value.name: _dims(value) for value in lowered.graph.input if value.name not in weights}
    operators = {node.name: node.op_type for node in model.graph.node if node.domain == DOMAIN}
    with temporary_folder("build") as folder:
        file = folder / "model.onnx"
        onnx.save_model(lowered, file)
        return build_engine_file(
            file,
            target,
            inputs=inputs,
            operators=operators,
            batch=batch,
            precision=precision,
            lengths=lengths,
            plugins=plugins,
        )


def build_engine_file(
    file: Path,
    target: Target,
    *,
    inputs: Mapping[str, Sequence[Dim]],
    operators: Mapping[str, str],
    batch: BatchRange,
    precision: str,
    lengths: Mapping[str, LengthRange] | None = None,
    plugins: Library | None = None,
    int8_share: float = LEAST_SHARE,
    int8_rest: str = "fp32",
) -> BuiltEngine:
    """Build an engine in a child process, so that a crash or a kill of the builder becomes an error here.

    Args:
        file: The ONNX file in the form that the target needs; it is read as it is.
        target: A target with an engine.
        inputs: Shape of every input by name; a symbol is a dynamic axis.
        operators: Op type of every operator node by its name.
        batch: Range of the batch, the dynamic axis 0 of the inputs.
        precision: What the compute layers must be in: fp32, fp16, bf16, or int8 for those with weights. It is in the
            graph already; this checks it.
        lengths: Range of every other dynamic axis, by its symbol.
        plugins: The native operators for plain TensorRT, as `choose_plugins` gives them.
        int8_share: Of int8, the share of layers with weights that must be in it.
        int8_rest: Of int8, what all others must be in.

    Raises:
        ConfigError: The target has no engine, or the batch or the precision does not fit the graph or the target.
        UnsupportedError: The library is missing or of another version, or needs a GPU that is not there.
        BuildError: The builder refused the graph, crashed or was killed.
        GateError: The network computes in another precision, or ran a function where a plugin was asked for.
    """
    check_request(target, precision)
    if plugins:
        refuse_on(target.backend)
    profile = profile_shapes(inputs, batch, lengths or {})
    request = {
        "target": target.name,
        "model": str(file.absolute()),
        "profile": profile,
        "plugin_library": str(plugins.path.absolute()) if plugins else None,
    }
    with temporary_folder("build") as folder:
        reply = _run_worker(folder, request, target)
        data = (folder / "engine").read_bytes()

    own, inside = _split(reply["layers"], operators)
    as_plugin = {_operator_of(layer, operators) for layer in inside if layer["type"] in _PLUGIN_LAYERS}
    _check_precision(own, precision, int8_share, int8_rest)
    _check_plugins(operators.keys() - as_plugin, plugins)
    record = BuildRecord(
        target=target.name,
        library=target.backend,
        library_version=reply["version"],
        sha256=sha256(data),
        precision_asked=precision,
        precision_achieved={"evidence": "network", "model": _precisions(own), "operators": _precisions(inside)},
        paths=_paths(operators, as_plugin),
        profile=profile,
        seconds=reply["seconds"],
        plugins=plugins.info["source_hash"] if plugins else None,
        sm=reply["sm"],
        driver=reply["driver"],
    )
    return BuiltEngine(data=data, record=record)


def parse_file(file: Path, target: Target, *, plugins: Library | None = None) -> str:
    """Let the installed TensorRT read a file, without building it.

    Args:
        file: The ONNX file in the form that the target needs.
        target: A target with an engine.
        plugins: As in `build_engine_file`.

    Returns:
        The version of the library that read it.

    Raises:
        UnsupportedError: The library is missing or of another version, or needs a GPU that is not there.
        BuildError: It refuses the graph, or crashed.
    """
    library = str(plugins.path.absolute()) if plugins else None
    request = {"target": target.name, "model": str(file.absolute()), "plugin_library": library, "parse_only": True}
    with temporary_folder("build") as folder:
        return str(_run_worker(folder, request, target)["version"])


def choose_plugins(target: Target, asked: bool | str | Path | None) -> Library | None:
    """The plugin library that a build for `target` takes.

    Args:
        target: Where the engine will run.
        asked: True needs one, False takes none, a path is the one to take; None takes the one that was built from these
            sources for the TensorRT that is installed, if there is one, and needs one where the target's file has no
            bodies.

    Raises:
        PluginError: It is needed and not there, it is not one that may be loaded, or the target takes none.
    """
    if target.plugin_wins == "never":
        if asked:
            refuse_on(target.backend)
        return None
    if asked is False:
        return None
    version = library_version(target)
    if asked is None and target.lowering == "plugin":
        asked = True
    return library_or_none(choose("tensorrt", asked, tensorrt=version, sms=target.sms))


def library_version(target: Target) -> str:
    """Version of the library of a target, as it is installed here."""
    try:
        return importlib.metadata.version(target.backend)
    except importlib.metadata.PackageNotFoundError:  # a module that came with the system, as on a Jetson
        return str(importlib.import_module(target.backend).__version__)


def check_request(target: Target, precision: str) -> None:
    """Refuse what cannot be built here before any work is done; `build_engine` says what is raised."""
    if not target.is_tensorrt:
        engines = ", ".join(name for name, other in TARGETS.items() if other.is_tensorrt)
        raise ConfigError(f"target '{target.name}' runs the ONNX file itself and has no engine; built are {engines}.")
    allowed = [known for known in _PRECISION_OF_DTYPE.values() if known in target.precisions]
    allowed += [INT8] if STATIC in target.int8 else []
    if precision not in allowed:
        raise ConfigError(f"precision={precision!r} cannot be built for '{target.name}'; use {', '.join(allowed)}.")
    require_library(target)


def require_library(target: Target) -> None:
    """Refuse a target whose library is not installed here, with what to do about it.

    Raises:
        UnsupportedError: It is not installed.
    """
    if importlib.util.find_spec(target.backend) is not None:
        return
    hint = f"pip install 'trt-compress[{_EXTRAS[target.backend]}]'"
    if target.name.startswith("jetson"):
        jetpack = "TensorRT comes with JetPack and not from pip; python3 -m venv --system-site-packages ENV sees it"
        elsewhere = f"engines are built on the device: copy the bundle there and build it for '{target.name}'; "
        hint = f"{'' if _JETSON_RELEASE.exists() else elsewhere}{jetpack}."
    raise UnsupportedError(
        f"target '{target.name}' needs the Python module '{target.backend}', which is not installed.", hint=hint
    )


def profile_shapes(
    inputs: Mapping[str, Sequence[Dim]], batch: BatchRange, lengths: Mapping[str, LengthRange]
) -> dict[str, dict[str, list[int]]]:
    """Smallest, best and largest shape of each input that has a dynamic axis."""
    dynamic_batch = any(dims and isinstance(dims[0], str) and dims[0] not in lengths for dims in inputs.values())
    shapes = {}
    for name, dims in inputs.items():
        ranges: list[BatchRange | LengthRange | int] = []
        for axis, dim in enumerate(dims):
            if isinstance(dim, int):
                ranges.append(dim)
            elif dim in lengths:
                ranges.append(lengths[dim])
            elif axis == 0:
                ranges.append(batch)
            else:
                raise ConfigError(
                    f"input '{name}' is dynamic on axis {axis} ({dim or 'unnamed'}); only axis 0, the batch, may be so "
                    "without a range in the recipe's lengths. Name its range there, or export that axis with a fixed "
                    "size."
                )
        if any(not isinstance(item, int) for item in ranges):
            shapes[name] = {
                end: [item if isinstance(item, int) else getattr(item, end) for item in ranges]
                for end in ("min", "opt", "max")
            }
        elif ranges and not dynamic_batch and (ranges[0],) * 3 != (batch.min, batch.opt, batch.max):
            raise ConfigError(
                f"input '{name}' has a fixed batch of {ranges[0]}, and batch={batch} was given; give "
                f"batch={ranges[0]}, or export with a dynamic batch."
            )
    return shapes


def input_shapes(inputs: Iterable[TensorInfo]) -> dict[str, tuple[Dim, ...]]:
    """The shapes that a manifest gives to the inputs of a graph, by name."""
    return {info.name: info.shape for info in inputs}


def _dims(value: "onnx.ValueInfoProto") -> tuple[Dim, ...]:
    dims = value.type.tensor_type.shape.dim
    return tuple(dim.dim_value if dim.HasField("dim_value") else dim.dim_param for dim in dims)


def _run_worker(folder: Path, request: Mapping[str, Any], target: Target) -> dict[str, Any]:
    (folder / "request.json").write_text(json.dumps(request))
    done = run_python("trt_compress.export.engine_worker", [folder], folder=folder)
    log = tuple(done.stdout.decode(errors="replace").splitlines()[-_LOG_LINES_KEPT:])
    product = PRODUCTS[target.backend]
    if done.returncode < 0:
        raise BuildError(_killed(product, -done.returncode), log=log)
    reply_file = folder / "reply.json"
    if done.returncode > 0 or not reply_file.exists():
        last = log[-1] if log else "it said nothing"
        raise BuildError(f"the {product} builder ended with exit code {done.returncode} and no result: {last}", log=log)
    reply: dict[str, Any] = json.loads(reply_file.read_text())
    if reply["stage"] != "done":
        raise _refusal(reply, target, log)
    return reply


def _killed(product: str, number: int) -> str:
    usual = "memory: lower the largest batch, or build on a machine with more memory"
    if number != signal.SIGKILL:
        usual = "a crash inside the library: run preflight, and report the graph to its maker"
    return f"the {product} builder was killed (signal {number}, {signal.strsignal(number)}), usually {usual}."


def _refusal(reply: Mapping[str, Any], target: Target, log: tuple[str, ...]) -> UnsupportedError | BuildError:
    product, message = PRODUCTS[target.backend], reply["message"]
    version = reply.get("version", "")
    match reply["stage"]:
        case "import":
            return UnsupportedError(f"the Python module '{target.backend}' is installed but does not load: {message}")
        case "version":
            oldest, first_not = target.tensorrt_version or ("", "")
            return UnsupportedError(
                f"{product} {version} is installed, and target '{target.name}' needs at least {oldest} and below "
                f"{first_not}; install that version or choose another target."
            )
        case "device":
            return UnsupportedError(
                f"{product} {version} cannot build without an NVIDIA GPU and its driver ({message}); build on the "
                "device, or build for 'rtx', which needs no GPU."
            )
        case "parse":
            return BuildError(f"{product} {version} cannot read the graph: {message}", log=log)
        case _:
            errors = [line.split("[E] ", 1)[1] for line in log if "[E] " in line] or [message]
            return BuildError(f"{product} {version} cannot build the engine: {'; '.join(errors)}", log=log)


def _operator_of(layer: _Layer, operators: Iterable[str]) -> str | None:
    """The operator node a layer came from: a whole path in its name (inlined) or in its metadata (function, plugin)."""
    origin = f"{layer['name']} {layer['metadata']}"
    return next((name for name in operators if re.search(rf"(?<![^\s/\[]){re.escape(name)}(?![^\s/\]])", origin)), None)


def _split(layers: Iterable[_Layer], operators: Iterable[str]) -> tuple[list[_Layer], list[_Layer]]:
    """The layers of the model itself, and those inside operators."""
    parts: tuple[list[_Layer], list[_Layer]] = ([], [])
    for layer in layers:
        parts[_operator_of(layer, operators) is not None].append(layer)
    return parts


def _paths(operators: Mapping[str, str], as_plugin: Container[str | None]) -> dict[str, dict[str, int]]:
    paths = {op_type: {"plugin": 0, "function": 0} for op_type in operators.values()}
    for name, op_type in operators.items():
        paths[op_type]["plugin" if name in as_plugin else "function"] += 1
    return paths


def _precisions(layers: Iterable[_Layer]) -> dict[str, int]:
    """Compute layers by precision; those between dequantizers multiply 8 bits by 8 bits."""
    return dict(Counter(_precision_of(layer) for layer in layers if layer["type"] in _COMPUTE_LAYERS))


def _precision_of(layer: _Layer) -> str:
    dtype = layer["output_dtypes"][0]
    return INT8 if layer["dequantized"] else _PRECISION_OF_DTYPE.get(dtype, dtype.lower())


def _check_precision(layers: Sequence[_Layer], precision: str, int8_share: float, int8_rest: str) -> None:
    if precision == INT8:
        weighted = [layer for layer in layers if layer["type"] in _COMPUTE_LAYERS and layer["weights"]]
        in_int8 = sum(layer["dequantized"] for layer in weighted)
        if in_int8 < int8_share * len(weighted):
            raise GateError(
                f"precision=int8 was asked for, and of {len(weighted)} layers with weights {in_int8} are in INT8 in "
                f"the network (asked for were {int8_share:.0%}); precision is in the graph, so export with that "
                "precision."
            )
        layers, precision = [layer for layer in layers if not layer["dequantized"]], int8_rest
    wrong = [layer for layer in layers if _precisions([layer]).keys() - {precision}]
    if wrong:
        found = " and ".join(f"{count} in {name}" for name, count in _precisions(wrong).items())
        raise GateError(
            f"precision={precision} was asked for, and the network has compute layers {found} (first: "
            f"'{wrong[0]['name']}'); precision is in the graph, so export with that precision."
        )


def _check_plugins(as_function: Iterable[str], plugins: Library | None) -> None:
    missed = sorted(as_function)
    if plugins and missed:
        raise GateError(
            f"the plugins of '{plugins.path}' were to be used, and {len(missed)} operators ran as functions (first: "
            f"'{missed[0]}'); the library does not register them."
        )
