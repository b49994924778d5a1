"""Preflight of a bundle: by the rules where onnx is installed, else by what the bundle says and what runs here.

A device has neither torch nor onnx. There the bundle tells what the rules found when it was exported, and the library
that is installed reads the file itself. What was checked, and what was not, is part of the answer.
"""

import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trt_compress.errors import (
    BuildError,
    BundleError,
    ConfigError,
    GateError,
    PluginError,
    TrtCompressError,
    UnsupportedError,
)
from trt_compress.export.build import PRODUCTS, choose_plugins, library_version, parse_file, require_library
from trt_compress.export.findings import Finding, recorded_findings
from trt_compress.export.forms import is_pruned, target_file
from trt_compress.export.ranges import LengthRange, lengths_of
from trt_compress.export.targets import Target, get_target
from trt_compress.files import open_regular
from trt_compress.foreign import reading, refusals_said
from trt_compress.format.bundle import Bundle, as_digests
from trt_compress.runtime.onnx_source import copy_graph
from trt_compress.strays import temporary_folder
from trt_compress.version import __version__

# A field of ModelProto begins with its number and wire type; any of them may be the first of a file.
_FIRST_TAGS = (
    b"\x08",
    b"\x12",
    b"\x1a",
    b"\x22",
    b"\x28",
    b"\x32",
    b"\x3a",
    b"\x42",
    b"\x72",
    b"\xa2\x01",
    b"\xca\x01",
)

Rules = Callable[[Path, Target], tuple[Finding, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class PreflightReport:
    """What was found for a target, and by what.

    Attributes:
        target: Its name.
        findings: In the order of the graphs.
        checked: A sentence for each thing that was checked, or could not be.
    """

    target: str
    findings: tuple[Finding, ...]
    checked: tuple[str, ...]

    @property
    def errors(self) -> tuple[Finding, ...]:
        """What would stop a build."""
        return tuple(finding for finding in self.findings if finding.severity == "error")

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        found = [asdict(finding) for finding in self.findings]
        return {"target": self.target, "findings": found, "checked": list(self.checked)}


@refusals_said()
def preflight(
    bundle: str | Path, *, target: str, require_digest: str | Collection[str] | None = None
) -> tuple[Finding, ...]:
    """Hold every graph of a bundle, or a bare ONNX file, against the rules of a target.

    Without torch and onnx a bundle is judged by what it says itself and by the library that is installed;
    `preflight_report` tells what was checked. `require_digest` is what `Bundle.open` takes.

    Raises:
        ConfigError: an unknown target, a file that is not ONNX, or a digest that is required of a bare file.
        BundleError: the bundle cannot be read, or its digest is not the one that is required.
        UnsupportedError: a bare file where onnx is not installed, or a bundle that says nothing of this target.
    """
    return preflight_report(bundle, target=target, require_digest=require_digest).findings


def preflight_report(
    bundle: str | Path, *, target: str, require_digest: str | Collection[str] | None = None
) -> PreflightReport:
    """As `preflight`, with what was checked; ONNX Runtime or TensorRT-RTX reads the file too, where it is installed."""
    chosen, path, required = get_target(target), Path(bundle), as_digests(require_digest)
    if os.path.exists(path) and not os.path.isdir(path):
        _refuse_what_is_no_onnx(path)
    rules, missing = _rules()
    opened = None
    if os.path.isdir(path) or rules is None and not os.path.isfile(path):
        opened = Bundle.open(path, require_digest=required)
    elif required:
        raise ConfigError(f"'{path}' is a bare ONNX file, which has no digest; leave --require-digest out.")
    if rules is not None and not (opened and is_pruned(opened)):
        from trt_compress.export.trial import preflight_file

        with _files_of(opened, path) as files:
            judged = [preflight_file(file, chosen, _ranges(opened) if opened else None) for file in files]
        found = tuple(finding for findings, _ in judged for finding in findings)
        tried = dict.fromkeys(f"the file itself was {sentence}" for _, sentence in judged)
        return PreflightReport(target=target, findings=found, checked=(_by_rules(target), *tried))
    if opened is None:
        raise UnsupportedError(
            f"'{path}' is a bare ONNX file, and reading it needs '{missing}', which is not installed; give a bundle, "
            "which says what was found when it was exported.",
            hint='pip install "trt-compress[export]"',
        )
    for graph in opened.manifest.graphs:
        if not any((form.target, form.graph) == (target, graph.name) for form in opened.manifest.lowered):
            opened.info(graph.file)  # of a pruned bundle: says that it is gone, and why
    recorded = recorded_findings(opened, target)
    if recorded is None:
        raise UnsupportedError(
            f"'{path}' does not say what preflight for '{target}' found when it was exported, and the rules need "
            f"'{missing}', which is not installed; export it again with this version, or install the package.",
            hint='pip install "trt-compress[export]"',
        )
    then = f"the rules of trt-compress {recorded.version} were held against the graph when the bundle was exported"
    found, here = _read_here(opened, chosen)
    return PreflightReport(target=target, findings=(*recorded.findings, *found), checked=(then, here))


def engine_findings(bundle: Bundle, target: str) -> PreflightReport:
    """What is known before a build, which shows the rest: by the rules, else by what the bundle says, else nothing."""
    rules, _ = _rules()
    if rules is not None and not is_pruned(bundle):
        with _files_of(bundle, bundle.path) as files:
            found = tuple(finding for file in files for finding in rules(file, get_target(target)))
        return PreflightReport(target=target, findings=found, checked=(_by_rules(target),))
    recorded = recorded_findings(bundle, target)
    return PreflightReport(target=target, findings=recorded.findings if recorded else (), checked=())


def require_passed(report: PreflightReport) -> None:
    """Raise GateError, with the errors, if something would stop a build."""
    if report.errors:
        first, more = report.errors[0], f" (and {len(report.errors) - 1} more)" if len(report.errors) > 1 else ""
        raise GateError(
            f"preflight for '{report.target}' failed at node '{first.node}' by rule {first.rule}: "
            f"{first.message}{more}",
            hint=first.fix,
            report=report.errors,
        )


@contextmanager
def _files_of(bundle: Bundle | None, path: Path) -> Iterator[list[Path]]:
    """The ONNX files of a bundle, each a checked copy of this process alone; without a bundle the file itself.

    This is the door: whatever a library raises about a file becomes one sentence with its name.
    """
    if bundle is None:
        with reading(f"model {str(path)!r}", "export it again"):
            yield [path]
        return
    with temporary_folder("preflight") as folder, reading(f"a graph of the bundle '{path}'", "export it again"):
        try:
            yield [copy_graph(bundle, graph.file, folder / graph.name) for graph in bundle.manifest.graphs]
        except ConfigError as error:  # it names the copy, of which nobody knows
            names = {str(folder / graph.name): str(bundle.path) for graph in bundle.manifest.graphs}
            message = error.message
            for copy, known in names.items():
                message = message.replace(copy, known)
            raise ConfigError(message, hint=error.hint) from error


def _refuse_what_is_no_onnx(path: Path) -> None:
    """Refuse, before anything heavy is loaded, a file that does not begin as an ONNX model does.

    Raises:
        ConfigError: It does not, or cannot be read.
    """
    try:
        with open_regular(path) as file:
            start = file.read(2)
    except OSError as error:
        raise ConfigError(f"model {str(path)!r} cannot be read: {error.strerror}; give an ONNX file.") from None
    if not start.startswith(_FIRST_TAGS):
        raise ConfigError(f"model {str(path)!r} is not an ONNX file, or is cut off; export it again.")


def _by_rules(target: str) -> str:
    return f"the rules of trt-compress {__version__} were held against the graph as '{target}' gets it"


def _ranges(bundle: Bundle) -> dict[str, LengthRange]:
    """Sizes of the open axes of a bundle's graphs by symbol, the batch under ""."""
    batch = bundle.manifest.batch
    return {"": LengthRange(min=batch.min, opt=batch.opt, max=batch.max), **lengths_of(bundle.manifest)}


def _rules() -> tuple[Rules | None, str]:
    """The rules, or None and the package that they lack."""
    try:
        from trt_compress.export.preflight import preflight as rules
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in ("", "trt_compress"):
            raise
        return None, missing
    return rules, ""


def _read_here(bundle: Bundle, target: Target) -> tuple[tuple[Finding, ...], str]:
    """Let the library of the target that is installed here read every graph; what it refuses is a finding."""
    product = PRODUCTS.get(target.backend, "ONNX Runtime")
    try:
        version, found = (_read_by_tensorrt if target.is_tensorrt else _read_by_onnxruntime)(bundle, target)
    except UnsupportedError as error:
        return (), f"{product} has not read the file here: {error.message.rstrip('.')}"
    except PluginError as error:
        finding = _refused("", error, "run 'trt-compress plugins build' here", rule="needs-plugin")
        return (finding,), f"{product} has not read the file here: the plugins it needs are not there"
    return found, f"{product} {version}, which is installed here, {'refuses' if found else 'reads'} the file"


def _read_by_tensorrt(bundle: Bundle, target: Target) -> tuple[str, tuple[Finding, ...]]:
    require_library(target)
    library, found = choose_plugins(target, None), []
    for graph in bundle.manifest.graphs:
        with temporary_folder("preflight") as folder:
            file = target_file(bundle, graph, target, with_plugins=library is not None, folder=folder)
            try:
                parse_file(file, target, plugins=library)
            except BuildError as error:
                found.append(_refused(graph.name, error, "export for this target where the model is exported"))
    return library_version(target), tuple(found)


def _read_by_onnxruntime(bundle: Bundle, target: Target) -> tuple[str, tuple[Finding, ...]]:
    from trt_compress.runtime.backends.ort import OrtGraph, onnxruntime_version

    found = []
    for graph in bundle.manifest.graphs:
        try:
            OrtGraph(bundle, graph, {"cpu": "ort-cpu", "cuda": "ort-cuda"}[target.name], 1, False)
        except BundleError as error:
            found.append(_refused(graph.name, error, "install a newer onnxruntime, or export with a lower --opset"))
    return onnxruntime_version(), tuple(found)


def _refused(graph: str, error: TrtCompressError, fix: str, *, rule: str = "parser") -> Finding:
    return Finding(severity="error", rule=rule, node=graph, message=error.message.rstrip("."), fix=fix)
