"""Preflight of a file: the rules, and then the library that runs the target, asked itself where it is installed.

The rules say why and where, on any machine. The library has the last word: what it refuses is a finding though no rule
knew of it, and what it takes whole is at most a warning. It is asked in a child process, because a foreign file can
take it down.
"""

import importlib.util
import json
import os
import re
import shutil
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
from onnx import ModelProto, TensorProto

from trt_compress.children import TimeoutExpired, run_python
from trt_compress.export.findings import Finding
from trt_compress.export.graph_view import load_structure
from trt_compress.export.lower import lower_for_target
from trt_compress.export.preflight import preflight
from trt_compress.export.ranges import LengthRange
from trt_compress.export.soundness import all_graphs
from trt_compress.export.targets import Target
from trt_compress.foreign import shown
from trt_compress.plugins.spec import DOMAIN
from trt_compress.strays import temporary_folder

_PRODUCTS = {"onnxruntime": "ONNX Runtime", "tensorrt_rtx": "TensorRT-RTX"}
_PROVIDERS = {"cpu": ("CPUExecutionProvider",), "cuda": ("CUDAExecutionProvider", "CPUExecutionProvider")}
MOST_BYTES_BUILT = 1 << 30  # weights; larger graphs are parsed and not built
_SECONDS = 600
# Smallest, usual and largest size tried for every open axis of a bare file: none is known to fit, so several are tried.
_SIZES = ((1, 2, 4), (16, 32, 64), (60, 120, 240))


@dataclass(frozen=True, slots=True)
class _Answer:
    """What became of asking: the sentence, what was refused ("" if nothing), and whether all of it was taken."""

    sentence: str
    refused: str = ""
    whole: bool = False


def preflight_file(
    file: Path, target: Target, ranges: Mapping[str, LengthRange] | None = None
) -> tuple[tuple[Finding, ...], str]:
    """Hold an ONNX file against the rules of a target, and let the library that runs the target read it.

    Args:
        file: The ONNX file, as exported: operators are lowered here.
        target: Where it shall run.
        ranges: Sizes of open axes by symbol, as a bundle has them, the batch under ""; for a bare file some are tried.

    Returns:
        The findings, and what became of asking the library: "loaded by …", "refused by …", "not tried: …".

    Raises:
        ConfigError: The file cannot be read or is not ONNX.
    """
    found = preflight(file, target)
    model = load_structure(file)
    missing = tuple(_missing_weights(model, file.parent))
    found = (*found, *missing)
    if missing:
        return found, "not tried, because its weights are missing"
    answer = _ask(file, model, target, ranges)
    errors = [finding for finding in found if finding.severity == "error"]
    if answer.whole and errors:
        found = tuple(_as_warning(finding, answer.sentence) for finding in found)
    elif answer.refused and not errors:
        node, message = _where(answer.refused)
        fix = "change what the message names, or use another target"
        found = (*found, Finding(severity="error", rule="refused-by-library", node=node, message=message, fix=fix))
    return found, answer.sentence


def _as_warning(finding: Finding, sentence: str) -> Finding:
    if finding.severity == "warning":
        return finding
    return replace(finding, severity="warning", message=f"{finding.message}; yet it was {sentence}")


def _missing_weights(model: ModelProto, folder: Path) -> Iterator[Finding]:
    """External weights that are not beside the file, or shorter than declared; one finding for each file."""
    wanted: dict[str, int] = {}
    for graph in all_graphs(model.graph):
        for tensor in graph.initializer:
            if tensor.data_location == TensorProto.EXTERNAL:
                entries = {entry.key: entry.value for entry in tensor.external_data}
                numbers = [entries.get(key, "0") for key in ("offset", "length")]
                end = sum(int(text) for text in numbers if text.isascii() and text.isdigit() and len(text) < 20)
                wanted[entries.get("location", "")] = max(end, wanted.get(entries.get("location", ""), 0))
    for location, end in wanted.items():
        size = _size_of(folder / location)
        if not location or size is not None and size >= end:
            continue
        problem = "is not there" if size is None else f"has {size} bytes of {end}"
        message = f"'{shown(location)[:200]}', which holds weights of the model, {problem}"
        fix = "put it beside the ONNX file, where the export wrote it"
        yield Finding(severity="error", rule="external-weights", node="", message=message, fix=fix)


def _size_of(path: Path) -> int | None:
    """Bytes of a file; None: there is none of that name, or it is something else."""
    try:
        return path.stat().st_size if path.is_file() else None
    except (OSError, ValueError):  # a name that is too long, or holds a null
        return None


# ---- asking ---------------------------------------------------------------------------------------------------------


def _ask(file: Path, model: ModelProto, target: Target, ranges: Mapping[str, LengthRange] | None) -> _Answer:
    product = _PRODUCTS.get(target.backend)
    if product is None:
        return _Answer(f"not tried: TensorRT reads it when an engine is built for '{target.name}'")
    if importlib.util.find_spec(target.backend) is None:
        return _Answer(f"not tried: {product} is not installed here")
    with temporary_folder("preflight") as folder:
        try:
            asked = _as_read(file, model, target, folder)
        except Exception:  # the rules have said why
            return _Answer(f"not tried: it cannot be put into the form that '{target.name}' reads")
        heavy = _weight_bytes(asked) > MOST_BYTES_BUILT
        request = {
            "backend": target.backend,
            "file": str(asked.absolute()),
            "providers": _PROVIDERS.get(target.name, ()),
            "profiles": [] if heavy else _profiles(model, ranges),
        }
        (folder / "request.json").write_text(json.dumps(request))
        code = _run(folder)
        try:
            reply = json.loads((folder / "reply.json").read_text())
        except (OSError, ValueError):
            return _Answer(f"not tried: {product} does not start here")
    if target.backend == "onnxruntime":
        return _onnxruntime_answer(reply, code, target, f"{product} {reply['version']}")
    return _parser_answer(reply, code, heavy, f"{product} {reply['version']}")


def _as_read(file: Path, model: ModelProto, target: Target, folder: Path) -> Path:
    """The file in the form that the target reads: itself, or a lowered copy."""
    bodies = {(function.domain, function.name) for function in model.functions}
    ours = [node for graph in all_graphs(model.graph) for node in graph.node if node.domain == DOMAIN]
    as_it_is = not ours and not model.functions
    if target.lowering == "function":
        as_it_is = all((node.domain, node.op_type) in bodies for node in ours)
    if as_it_is:
        return file
    lowered = folder / "model.onnx"
    onnx.save_model(lower_for_target(model, target), lowered)
    for name in _weight_files(model):
        place = Path(os.path.normpath(folder / name))
        if folder not in place.parents:
            raise ValueError(f"weights in {name}")
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(file.parent / name, place)  # ONNX takes no links that lead out of the folder
        except OSError:  # on another disk, or of somebody else
            shutil.copyfile(file.parent / name, place)
    return lowered


def _weight_bytes(file: Path) -> int:
    """Bytes of a model file and of the files beside it that it names."""
    named = _weight_files(load_structure(file))
    return file.stat().st_size + sum(_size_of(file.parent / name) or 0 for name in named)


def _weight_files(model: ModelProto) -> set[str]:
    """Other files that weights of a model are in, as it names them."""
    return {
        str(entry.value)
        for graph in all_graphs(model.graph)
        for tensor in graph.initializer
        for entry in tensor.external_data
        if tensor.data_location == TensorProto.EXTERNAL and entry.key == "location"
    }


def _profiles(model: ModelProto, ranges: Mapping[str, LengthRange] | None) -> list[dict[str, list[list[int]]]]:
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    known = ranges or {}
    batch = known.get("")
    tried: list[dict[str, list[list[int]]]] = []
    for sizes in ((batch.min, batch.opt, batch.max),) if batch else _SIZES:
        shapes: dict[str, list[list[int]]] = {}
        for value in inputs:
            dims = value.type.tensor_type.shape.dim
            triples = [_triple(dim, known, sizes) for dim in dims]
            shapes[value.name] = [[triple[index] for triple in triples] for index in range(3)]
        if shapes not in tried:
            tried.append(shapes)
    return tried


def _triple(dim: Any, known: Mapping[str, LengthRange], sizes: Sequence[int]) -> Sequence[int]:
    if dim.HasField("dim_value") and dim.dim_value >= 0:
        return (dim.dim_value,) * 3
    if dim.dim_param in known:
        length = known[dim.dim_param]
        return length.min, length.opt, length.max
    return sizes


def _run(folder: Path) -> int | None:
    """Exit code of the child, None if it was stopped after `_SECONDS`."""
    try:
        done = run_python("trt_compress.export.trial_worker", [folder], folder=folder, timeout=_SECONDS)
    except TimeoutExpired:
        return None
    return done.returncode


# ---- what was said --------------------------------------------------------------------------------------------------


def _onnxruntime_answer(reply: Mapping[str, Any], code: int | None, target: Target, product: str) -> _Answer:
    here = product if reply.get("providers") == list(_PROVIDERS[target.name]) else f"{product} (its CPU part)"
    match reply["stage"]:
        case "loaded":
            return _Answer(f"loaded by {here}", whole=here == product)
        case "load":
            said = _plain_onnxruntime(reply["message"])
            if "NOT_IMPLEMENTED" in reply["message"] and here != product:
                return _Answer(f"read by {here}; whether there are CUDA kernels for it was not tried")
            return _Answer(f"refused by {here}", refused=f"{here} refuses it: {said}")
        case "import":
            return _Answer(f"not tried: {product.strip()} does not load here ({reply['message']})")
    return _died(here, "loads", code)


def _parser_answer(reply: Mapping[str, Any], code: int | None, heavy: bool, product: str) -> _Answer:
    match reply["stage"]:
        case "built":
            return _Answer(f"parsed and built by {product}", whole=True)
        case "parsed":
            why = "; it was not built, because its weights are large" if heavy else ""
            return _Answer(f"parsed by {product}{why}")
        case "parse":
            return _Answer(f"refused by {product}", refused=f"{product} cannot read it: {_plain(reply['message'])}")
        case "build":
            said = _plain(reply["message"])
            return _Answer(f"refused by {product}", refused=f"{product} cannot build it: {said}")
        case "import":
            return _Answer(f"not tried: {product.strip()} does not load here ({reply['message']})")
    return _died(product, "parses" if reply["stage"] == "parsing" else "builds", code)


def _died(product: str, doing: str, code: int | None) -> _Answer:
    if code is None:
        return _Answer(f"stopped after {_SECONDS} s in {product}")
    if code == -signal.SIGKILL:
        return _Answer(f"tried without a result: {product} was killed, usually for memory")
    name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return _Answer(f"fatal to {product}", refused=f"{product} dies when it {doing} the file ({name})")


def _plain(text: str) -> str:
    """A message of a library as one line, without what it says of the missing GPU and of its own files."""
    text = re.sub(
        r"\[?\S*\.cpp\S*(?:catchCudaError)\S*\]? ?Error Code \d+: Cuda Runtime \(.*?\)\)?", " ", text, flags=re.DOTALL
    )
    text = " ".join(text.split())
    return text if len(text) <= 400 else text[:400] + " …"


def _plain_onnxruntime(text: str) -> str:
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text.strip())
    text = re.sub(r"Load model from \S* failed: ?", "", text)
    return _plain(re.sub(r"/\S*onnxruntime_src\S* [^)]*\)\s*", "", text))


def _where(message: str) -> tuple[str, str]:
    """The node that a message names, and the message."""
    match = re.search(r"node '([^']+)'|Node \(([^)]+)\)|node with name '([^']+)'", message)
    return (next(filter(None, match.groups())) if match else ""), message
