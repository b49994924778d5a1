"""The steps as plain functions: export and verify, beside them preflight and build, which need no torch."""

import contextlib
import errno
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
from torch import nn

from trt_compress import __version__
from trt_compress.errors import BundleError, ConfigError, GateError
from trt_compress.export.bundle import check_output, write_bundle
from trt_compress.export.check import PreflightReport, preflight, require_passed
from trt_compress.export.engines import BuildPlan, Progress, build, build_engines
from trt_compress.export.findings import PREFLIGHT_FILE, Finding, record_text
from trt_compress.export.lower import add_bodies
from trt_compress.export.onnx_file import save_onnx
from trt_compress.export.preflight import preflight as preflight_graph
from trt_compress.export.ranges import BatchRange, LengthRange
from trt_compress.export.recipe import Recipe, recipe_from_json, recipe_from_options
from trt_compress.export.records import (
    RECIPE_FILE,
    VERIFY_FILE,
    describe,
    graph_file,
    lowered_files,
    operator_records,
    verification_record,
)
from trt_compress.export.sample_inputs import make_inputs, read_inputs
from trt_compress.export.targets import TARGETS
from trt_compress.export.trace import onnx_from_graph, with_precision
from trt_compress.export.verify import VerifyReport, load_onnxruntime, merge_reports, verify_onnx
from trt_compress.methods import spec_string
from trt_compress.models.hosts.base import BATCH_SYMBOL, GraphSpec, LoadedHost, Steps
from trt_compress.models.hosts.registry import load_host
from trt_compress.plugins.library import Library, choose
from trt_compress.runtime.bundle import Bundle
from trt_compress.runtime.manifest import Manifest
from trt_compress.runtime.tokens import token_flows

__all__ = [
    "BuildPlan",
    "ExportResult",
    "Progress",
    "build",
    "build_engines",
    "export_model",
    "preflight",
    "verify",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportResult:
    """What an export made: the bundle's directory (None after a dry run), its manifest, and what to look out for."""

    path: Path | None
    manifest: Manifest
    warnings: tuple[str, ...] = ()

    def summary(self) -> dict[str, Any]:
        """The main facts as plain JSON values."""
        manifest = self.manifest
        flops = (manifest.flops or {}).get("total")
        verification = manifest.verification
        return {
            "bundle": str(self.path) if self.path else None,
            "model": manifest.model.source,
            "weights": manifest.model.weights.source,
            "provenance": manifest.model.weights.provenance,
            "compressors": recipe_from_json(manifest.recipe, where="the bundle's recipe").spec,
            "precision": manifest.precision,
            "opset": manifest.opset,
            "targets": list(manifest.targets),
            "batch": str(BatchRange(min=manifest.batch.min, opt=manifest.batch.opt, max=manifest.batch.max)),
            "tokens": _tokens(manifest),
            "gflops": round(flops / 1e9, 3) if flops else None,
            "flops_reduction": round(manifest.baseline_flops / flops, 2) if flops and manifest.baseline_flops else None,
            "operators": {operator.name: operator.nodes for operator in manifest.operators},
            "verified": f"largest error {verification.max_abs_error:.1e}"
            if verification and verification.max_abs_error is not None
            else None,
            "warnings": list(self.warnings),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prepared:
    """A host, and its graphs with the compressors in place."""

    recipe: Recipe
    host: LoadedHost
    graphs: tuple[GraphSpec, ...]


def export_model(
    model: str,
    *,
    output: str | Path,
    compress: str | None = None,
    weights: str | Path | None = None,
    targets: Sequence[str] | None = None,
    batch: str | None = None,
    precision: str | None = None,
    opset: int | None = None,
    force: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> ExportResult:
    """Export a model with compressors as a bundle, checked against its targets and proven against PyTorch.

    Args:
        model: `timm:NAME`, `zoo:NAME`, or a recipe file (`*.toml`) that the other options override.
        output: Directory of the bundle; must not exist unless `force`.
        compress: Spec string, `tome:num_merged=13`, several joined by `+`; default `none`.
        weights: .safetensors file or checkpoint; default: the zoo's own, or random for timm.
        targets: Names of targets; default `cpu`.
        batch: `MIN:OPT:MAX`; default `1:4:8`.
        precision: `fp32` (default) or `fp16`; it becomes part of the graph.
        opset: ONNX opset; default: the newest that all known targets take.
        force: Replace the bundle that is there.
        dry_run: Check everything that needs no tracing and write nothing.
        progress: Called with the name of each step.

    Raises:
        ConfigError: a name or a value is wrong.
        BundleError: the output cannot be written.
        GateError: preflight or verification failed; nothing is written.
    """
    step = progress or (lambda text: None)
    recipe = recipe_from_options(
        model,
        compress=compress,
        weights=None if weights is None else str(weights),
        targets=targets,
        batch=batch,
        precision=precision,
        opset=opset,
    )
    check_output(Path(output), force)
    load_onnxruntime()
    step("loading the model")
    prepared = _prepare(recipe)
    recipe = prepared.recipe
    inputs = {graph.name: _default_inputs(graph, recipe) for graph in prepared.graphs}
    step("counting operations")
    manifest = describe(recipe, prepared.host, prepared.graphs, _with_lengths(prepared.host.attach(()), recipe))
    if dry_run:
        return ExportResult(path=None, manifest=manifest, warnings=_removes_nothing(prepared))

    warnings = _removes_nothing(prepared)
    with _working_folder(Path(output)) as folder:
        made = []
        found: dict[str, tuple[Finding, ...]] = {}
        for graph in prepared.graphs:
            step("tracing" + _of(graph, prepared))
            module = with_precision(graph.module, recipe.precision)
            bodied = add_bodies(onnx_from_graph(graph, module, max_batch=recipe.batch.max, opset=recipe.opset))
            step("checking the targets" + _of(graph, prepared))
            for name, findings in _preflights(bodied, recipe.targets).items():
                found[name] = (*found.get(name, ()), *findings)
            files = save_onnx(bodied, folder / graph_file(graph))
            step("verifying" + _of(graph, prepared))
            report = _verify(graph, module, files[0], *inputs[graph.name], recipe.precision)
            _require_passed(report)
            lowered, more_files = lowered_files(bodied, graph, recipe, folder)
            made.append((bodied, files, report, lowered, more_files))
        warnings += tuple(
            f"{name}: {finding.message} ({finding.rule}); {finding.fix}"
            for name in recipe.targets
            for finding in found[name]
            if finding.severity == "warning"
        )
        step("writing the bundle")
        report = merge_reports([report for _, _, report, _, _ in made])
        manifest = replace(
            manifest,
            graphs=tuple(
                replace(graph, external_data=tuple(file.name for file in files[1:]))
                for graph, (_, files, _, _, _) in zip(manifest.graphs, made, strict=True)
            ),
            operators=operator_records([bodied for bodied, *_ in made]),
            lowered=tuple(record for _, _, _, lowered, _ in made for record in lowered),
            verification=verification_record(report),
        )
        content: dict[str, bytes | Path] = {
            **{file.name: file for _, files, _, _, _ in made for file in files},
            **{name: file for *_, more_files in made for name, file in more_files.items()},
            RECIPE_FILE: recipe.to_toml().encode(),
            PREFLIGHT_FILE: record_text(__version__, found).encode(),
            VERIFY_FILE: (json.dumps(report.to_json(), indent=2) + "\n").encode(),
        }
        bundle = write_bundle(Path(output), manifest, content, force=force)
    return ExportResult(path=bundle.path, manifest=bundle.manifest, warnings=tuple(dict.fromkeys(warnings)))


def verify(
    bundle: str | Path,
    *,
    inputs: str | Path | None = None,
    weights: str | Path | None = None,
    native: bool | str | Path = False,
    progress: Progress | None = None,
) -> VerifyReport:
    """Prove again that a bundle computes what its torch model computes.

    Args:
        bundle: The bundle's directory.
        inputs: .npz file with an array for each input (with several graphs `graph.input`; with states, steps along one
            more axis in front); default: the model's own examples or seeded ones, at the smallest, usual and largest
            batch.
        weights: Where the file of weights is now, if it moved; it must be the same file.
        native: Run the native operators in ONNX Runtime: True, or the library to take. False runs the ONNX bodies.
        progress: Called with the name of each step.

    Raises:
        GateError: something differs; `report` holds the VerifyReport.
        ConfigError: the model cannot be built again as it was (weights moved or changed).
        PluginError: the native library is missing, or may not be loaded.
    """
    library = choose("onnxruntime", native)
    step = progress or (lambda text: None)
    opened = Bundle.open(bundle)
    recipe = replace(
        recipe_from_json(opened.manifest.recipe, where="the bundle's recipe"),
        weights_sha256=opened.manifest.model.weights.sha256,
    )
    if weights is not None:
        recipe = replace(recipe, weights=str(weights))
    step("loading the model")
    prepared = _prepare(recipe)
    if inputs is None:
        chosen = {graph.name: _default_inputs(graph, prepared.recipe) for graph in prepared.graphs}
    else:
        found = read_inputs(Path(inputs), prepared.graphs)
        chosen = {name: (sequences, str(inputs)) for name, sequences in found.items()}
    step("comparing")
    reports = []
    for graph in prepared.graphs:
        module = with_precision(graph.module, recipe.precision)
        file = opened.file(opened.manifest.graph(graph.name).file)
        reports.append(_verify(graph, module, file, *chosen[graph.name], recipe.precision, library))
    report = merge_reports(reports)
    _require_passed(report)
    return report


@contextlib.contextmanager
def _working_folder(output: Path) -> Iterator[Path]:
    """A temporary folder that is gone afterwards; a full disk becomes one sentence."""
    try:
        with tempfile.TemporaryDirectory(prefix="trt-compress-") as name:
            yield Path(name)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        raise BundleError(
            f"'{output}' cannot be written: {error.strerror or error} in the temporary folder {tempfile.gettempdir()}.",
            hint="free space there, or point TMPDIR to another disk." if full else None,
        ) from error


def _prepare(recipe: Recipe) -> _Prepared:
    """Load the model and attach its compressors; the recipe then says which weights those are.

    Raises:
        ConfigError: they are not the weights that the recipe was made with, or something in it is wrong.
    """
    host = load_host(recipe.model, weights=recipe.weights)
    if recipe.weights_sha256 not in (None, host.weights.sha256):
        raise ConfigError(
            f"weights: '{host.weights.source}' has sha256 {host.weights.sha256[:12]}…, and the recipe was made with "
            f"{str(recipe.weights_sha256)[:12]}…; give those weights as --weights FILE, or take weights_sha256 out of "
            "the recipe to export with other ones."
        )
    recipe = replace(recipe, weights_sha256=host.weights.sha256)
    graphs = host.attach(recipe.compressors)
    own = {symbol: LengthRange(min=a, opt=b, max=c) for graph in graphs for symbol, (a, b, c) in graph.lengths.items()}
    for symbol in recipe.lengths:
        if symbol not in own:
            raise ConfigError(
                f"lengths: '{symbol}' is no symbol of {recipe.model}; it has {', '.join(own) or 'none but the batch'}."
            )
    recipe = replace(recipe, lengths={**own, **recipe.lengths})
    return _Prepared(recipe=recipe, host=host, graphs=_with_lengths(graphs, recipe))


def _with_lengths(graphs: Sequence[GraphSpec], recipe: Recipe) -> tuple[GraphSpec, ...]:
    """The graphs with the lengths that the recipe gives to their symbols."""
    chosen = {symbol: (length.min, length.opt, length.max) for symbol, length in recipe.lengths.items()}
    return tuple(
        replace(graph, lengths={symbol: chosen.get(symbol, own) for symbol, own in graph.lengths.items()})
        for graph in graphs
    )


def _default_inputs(graph: GraphSpec, recipe: Recipe) -> tuple[list[Steps], str]:
    batch = recipe.batch
    if graph.examples is not None:
        sizes = sorted({batch.min, batch.opt, batch.max})
        return [graph.examples(size) for size in sizes], "held-out examples of the model"
    ends = [
        {BATCH_SYMBOL: getattr(batch, end), **{name: getattr(recipe.lengths[name], end) for name in graph.lengths}}
        for end in ("min", "opt", "max")
    ]
    different = [lengths for place, lengths in enumerate(ends) if lengths not in ends[:place]]
    return make_inputs(graph, different), "seeded standard-normal numbers"


def _of(graph: GraphSpec, prepared: _Prepared) -> str:
    return f" {graph.name}" if len(prepared.graphs) > 1 else ""


def _tokens(manifest: Manifest) -> list[Any] | dict[str, Any] | str:
    """Tokens before the first site and after each; of several graphs by their names.

    Where the sites are no chain, as each chooses from all tokens, in words how many it computes.
    """
    flows = token_flows(manifest.compression)
    said = {flow.graph: list(flow.chain) or f"{flow.text} ({flow.note})" for flow in flows}
    if len(manifest.graphs) == 1 and len(said) < 2:
        return said.popitem()[1] if said else []
    return said


def _verify(
    graph: GraphSpec,
    module: nn.Module,
    path: Path,
    inputs: Sequence[Steps],
    label: str,
    precision: str,
    native: Library | None = None,
) -> VerifyReport:
    return verify_onnx(path, module, graph=graph, inputs=inputs, inputs_label=label, precision=precision, native=native)


def _require_passed(report: VerifyReport) -> None:
    if not report.passed:
        raise GateError(
            f"verification failed: ONNX Runtime and torch differ first at {report.first_divergence}; "
            f"largest error {report.max_abs_error:.1e}." + (f" It failed: {report.failure}" if report.failure else ""),
            hint="nothing was written or changed.",
            report=report,
        )


def _removes_nothing(prepared: _Prepared) -> tuple[str, ...]:
    """A sentence for each compressor that has no site, because it would keep every token everywhere."""
    sites = [site for graph in prepared.graphs for site in graph.module.plan]
    # With several graphs each may have a setting of its own, made from the one in the recipe.
    several = len(prepared.graphs) > 1
    acting = {(site.compressor, None if several else site.config) for site in sites}
    idle = [s for s in prepared.recipe.compressors if (s.name, None if several else s.config) not in acting]
    return tuple(
        f"{spec_string([spec])} removes no token of {prepared.recipe.model}; the graph is without it" for spec in idle
    )


def _preflights(model: onnx.ModelProto, asked: Sequence[str]) -> dict[str, tuple[Finding, ...]]:
    """What is found for every target there is; a device has no rules of its own, and reads what the bundle says.

    Raises:
        GateError: something would stop a build for a target that was asked for.
    """
    found: dict[str, tuple[Finding, ...]] = {}
    for name in (*asked, *(name for name in TARGETS if name not in asked)):
        found[name] = preflight_graph(model, TARGETS[name])
        if name in asked:
            require_passed(PreflightReport(target=name, findings=found[name], checked=()))
    return found
