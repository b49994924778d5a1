"""The work of an export and of its verification: trace, lower, preflight, verify, write."""

import contextlib
import errno
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
from torch import Tensor, nn

from trt_compress.errors import BundleError, ConfigError, GateError
from trt_compress.export.artifacts import named_in_bundle
from trt_compress.export.bundle import write_bundle
from trt_compress.export.check import PreflightReport, require_passed
from trt_compress.export.findings import PREFLIGHT_FILE, Finding, record_text
from trt_compress.export.lower import add_bodies
from trt_compress.export.onnx_file import save_onnx
from trt_compress.export.precision import as_loaded, quantize, with_precision
from trt_compress.export.preflight import preflight as preflight_graph
from trt_compress.export.ranges import LengthRange
from trt_compress.export.recipe import Recipe
from trt_compress.export.records import (
    RECIPE_FILE,
    VERIFY_FILE,
    describe,
    graph_file,
    lowered_files,
    operator_records,
    verification_record,
)
from trt_compress.export.runners import AS_DEPLOYED
from trt_compress.export.sample_inputs import make_inputs, read_inputs
from trt_compress.export.targets import TARGETS
from trt_compress.export.trace import onnx_from_graph
from trt_compress.export.verify import distances, run_onnx, run_torch, verify_onnx
from trt_compress.export.verify_report import DEPLOYED, LOADED, QUANTIZED, VerifyReport, merge_reports
from trt_compress.export.weight_forms import weight_forms
from trt_compress.format.bundle import Bundle
from trt_compress.format.graphs import BATCH_SYMBOL
from trt_compress.format.manifest import Manifest
from trt_compress.methods import spec_string
from trt_compress.model_name import FILE_SOURCE, parse_model
from trt_compress.models.compressors.artifacts import for_weights
from trt_compress.models.hosts.base import GraphSpec, LoadedHost, Steps
from trt_compress.models.hosts.registry import load_host
from trt_compress.plugins.library import Library
from trt_compress.runtime.onnx_source import copy_graph
from trt_compress.strays import temporary_folder
from trt_compress.version import __version__

Progress = Callable[[str], None]
Made = tuple[Path | None, Manifest, tuple[str, ...]]
"""Where the bundle is, if it was written; its manifest; what to look out for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prepared:
    """A host, its graphs with the compressors in place, and the artifacts of these by their names in a bundle."""

    recipe: Recipe
    host: LoadedHost
    graphs: tuple[GraphSpec, ...]
    artifacts: dict[str, bytes]


def run_export(recipe: Recipe, output: Path, *, force: bool, dry_run: bool, step: Progress) -> Made:
    """Export what a recipe says; `api.export_model` says what is raised.

    Args:
        recipe: Checked.
        output: Directory of the bundle; checked.
        force: Replace the bundle that is there.
        dry_run: Trace and write nothing.
        step: Is told the name of each step.
    """
    step("loading the model")
    prepared = _prepare(recipe)
    recipe = prepared.recipe
    inputs = {graph.name: _default_inputs(graph, recipe) for graph in prepared.graphs}
    step("counting operations")
    manifest = describe(recipe, prepared.host, prepared.graphs, _with_lengths(prepared.host.attach(()), recipe))
    loaded = {} if dry_run else _as_loaded(prepared, {name: given for name, (given, _) in inputs.items()}, step)
    warnings = (*_removes_nothing(prepared), *_quantize(prepared, step))
    if dry_run:
        return None, manifest, warnings

    with _working_folder(output) as folder:
        made = []
        found: dict[str, tuple[Finding, ...]] = {}
        for graph in prepared.graphs:
            step("tracing" + _of(graph, prepared))
            module = with_precision(graph.module, recipe.precision, graph)
            bodied = add_bodies(onnx_from_graph(graph, module, max_batch=recipe.batch.max, opset=recipe.opset))
            step("checking the targets" + _of(graph, prepared))
            for name, findings in _preflights(bodied, recipe.targets).items():
                found[name] = (*found.get(name, ()), *findings)
            files = save_onnx(bodied, folder / graph_file(graph))
            step("verifying" + _of(graph, prepared))
            report = _verify(graph, module, files[0], *inputs[graph.name], recipe.precision)
            _require_passed(report)
            report = _with_distances(report, graph, module, files[0], inputs[graph.name][0], loaded)
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
            weights=tuple(form for _, files, *_ in made for form in weight_forms(files[0])),
            verification=verification_record(report),
        )
        content: dict[str, bytes | Path] = {
            **{file.name: file for _, files, _, _, _ in made for file in files},
            **{name: file for *_, more_files in made for name, file in more_files.items()},
            **prepared.artifacts,
            RECIPE_FILE: recipe.to_toml().encode(),
            PREFLIGHT_FILE: record_text(__version__, found).encode(),
            VERIFY_FILE: (json.dumps(report.to_json(), indent=2) + "\n").encode(),
        }
        bundle = write_bundle(output, manifest, content, force=force)
    return bundle.path, bundle.manifest, tuple(dict.fromkeys(warnings))


def run_verification(
    opened: Bundle, recipe: Recipe, *, inputs: Path | None, library: Library | None, step: Progress
) -> VerifyReport:
    """Compare a bundle with its torch model; `api.verify` says what is raised.

    Args:
        opened: The bundle.
        recipe: Its own, with the hash of its weights and with the place where they are now.
        inputs: An .npz file, or None for the model's examples or seeded numbers.
        library: The native operators to run, or None for the bodies.
        step: Is told the name of each step.
    """
    step("loading the model")
    prepared = _prepare(recipe)
    if inputs is None:
        chosen = {graph.name: _default_inputs(graph, prepared.recipe) for graph in prepared.graphs}
    else:
        found = read_inputs(inputs, prepared.graphs)
        chosen = {name: (sequences, str(inputs)) for name, sequences in found.items()}
    loaded = _as_loaded(prepared, {name: given for name, (given, _) in chosen.items()}, step)
    _quantize(prepared, step)
    step("comparing")
    reports = []
    for graph in prepared.graphs:
        module = with_precision(graph.module, recipe.precision, graph)
        with temporary_folder("verify") as folder:
            file = copy_graph(opened, opened.manifest.graph(graph.name).file, folder)
            report = _verify(graph, module, file, *chosen[graph.name], recipe.precision, library)
            reports.append(_with_distances(report, graph, module, file, chosen[graph.name][0], loaded))
    report = merge_reports(reports)
    _require_passed(report)
    return report


def _as_loaded(
    prepared: _Prepared, inputs: Mapping[str, Sequence[Steps]], step: Progress
) -> dict[str, list[dict[str, Tensor]]]:
    """What every graph answers before its weights are quantized; nothing where they are not."""
    if prepared.recipe.weights_bits is None:
        return {}
    step("running the model as it is")
    return {g.name: run_torch(as_loaded(g.module, g), g, inputs[g.name]) for g in prepared.graphs}


def _quantize(prepared: _Prepared, step: Progress) -> tuple[str, ...]:
    """Quantize what the recipe says, in place; a sentence on the layers that stay as they are."""
    form = prepared.recipe.weights_bits
    if form is None:
        return ()
    step("quantizing weights")
    kept = quantize([graph.module for graph in prepared.graphs], form, prepared.recipe.precision).kept
    if not kept:
        return ()
    (name, reason), more = next(iter(kept.items())), f" and {len(kept) - 1} more" if len(kept) > 1 else ""
    return (f"weights_bits {form}: the weights of {name}{more} stay as they are: {reason}",)


def _with_distances(
    report: VerifyReport,
    graph: GraphSpec,
    module: nn.Module,
    file: Path,
    inputs: Sequence[Steps],
    loaded: Mapping[str, list[dict[str, Tensor]]],
) -> VerifyReport:
    """The report, and of quantized weights how far they take the outputs from the model as it was."""
    if not loaded or report.failure:
        return report
    quantized = run_torch(module, graph, inputs)
    found = distances(graph, QUANTIZED, quantized, LOADED, loaded[graph.name])
    if not report.method:  # else it is not deployed there
        found += distances(graph, DEPLOYED, run_onnx(file, graph, inputs, AS_DEPLOYED), QUANTIZED, quantized)
    return replace(report, distances=found)


@contextlib.contextmanager
def _working_folder(output: Path) -> Iterator[Path]:
    """A temporary folder that is gone afterwards; a full disk becomes one sentence."""
    try:
        with temporary_folder("export") as folder:
            yield folder
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
    host = load_host(recipe.model, weights=recipe.weights, model_sha256=recipe.model_sha256)
    if recipe.weights_sha256 not in (None, host.weights.sha256):
        if recipe.weights is None and parse_model(recipe.model).source == FILE_SOURCE:
            raise ConfigError(
                f"weights: '{host.weights.source}' are others than those of the recipe although the file is the same; "
                "what it makes must not depend on anything else: seed its random numbers, or save the weights and give "
                "them as --weights FILE."
            )
        raise ConfigError(
            f"weights: '{host.weights.source}' has sha256 {host.weights.sha256[:12]}…, and the recipe was made with "
            f"{str(recipe.weights_sha256)[:12]}…; give those weights as --weights FILE, or take weights_sha256 out of "
            "the recipe to export with other ones."
        )
    checked = for_weights(recipe.compressors, source=host.weights.source, sha256=host.weights.sha256)
    compressors, artifacts = named_in_bundle(checked)
    recipe = replace(recipe, weights_sha256=host.weights.sha256, compressors=compressors)
    graphs = host.attach(recipe.compressors)
    own = {symbol: LengthRange(min=a, opt=b, max=c) for graph in graphs for symbol, (a, b, c) in graph.lengths.items()}
    for symbol in recipe.lengths:
        if symbol not in own:
            raise ConfigError(
                f"lengths: '{symbol}' is no symbol of {recipe.model}; it has {', '.join(own) or 'none but the batch'}."
            )
    recipe = replace(recipe, lengths={**own, **recipe.lengths})
    return _Prepared(recipe=recipe, host=host, graphs=_with_lengths(graphs, recipe), artifacts=artifacts)


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
