"""The work of an export and of its verification: trace, lower, preflight, verify, write."""

import contextlib
import errno
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
from torch import nn

from trt_compress.errors import BundleError, ConfigError, GateError
from trt_compress.export.artifacts import named_in_bundle
from trt_compress.export.bundle import Moved, write_bundle
from trt_compress.export.check import PreflightReport, require_passed
from trt_compress.export.few_layers import check_layers, first_of, left_out
from trt_compress.export.findings import PREFLIGHT_FILE, Finding, record_text
from trt_compress.export.int8 import require_made_of
from trt_compress.export.int8_achieved import keep_tensors
from trt_compress.export.int8_export import Int8Export, agreements, check_host
from trt_compress.export.lower import add_bodies
from trt_compress.export.precision import as_loaded, quantize, with_precision
from trt_compress.export.preflight import preflight as preflight_graph
from trt_compress.export.proof import Answers, Proof, answers
from trt_compress.export.questions import Questions, default_questions, read_questions
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
from trt_compress.export.room import check_room
from trt_compress.export.sides import Part
from trt_compress.export.subject import Subject
from trt_compress.export.targets import TARGETS
from trt_compress.export.trace import onnx_from_graph
from trt_compress.export.verify_report import VerifyReport, merge_reports
from trt_compress.export.weight_forms import weight_forms
from trt_compress.export.weights import (
    INLINE,
    WEIGHTS_FILE,
    StoredWeights,
    TakesTensors,
    WeightsFile,
    require_same,
    uses_weights,
)
from trt_compress.format.bundle import Bundle
from trt_compress.format.manifest import Lowered, Manifest
from trt_compress.methods import spec_string
from trt_compress.model_name import FILE_SOURCE, parse_model
from trt_compress.models.compressors.artifacts import for_weights
from trt_compress.models.hosts.base import GraphSpec, LoadedHost
from trt_compress.models.hosts.registry import load_host
from trt_compress.plugins.library import Library
from trt_compress.runtime.onnx_source import copy_graph
from trt_compress.strays import staged_folder, temporary_folder
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


def run_export(
    recipe: Recipe,
    output: Path,
    *,
    force: bool,
    dry_run: bool,
    verify_layers: int | None = None,
    step: Progress,
    load: Callable[[Recipe], LoadedHost] | None = None,
) -> Made:
    """Export what a recipe says; `api.export_model` says what is raised.

    Args:
        recipe: Checked.
        output: Directory of the bundle; checked.
        force: Replace the bundle that is there.
        dry_run: Trace and write nothing.
        verify_layers: Verify the first so many layers alone; the others then leave memory first. None: all.
        step: Is told the name of each step.
        load: Makes the model; None: by its name. Nobody else may hold it, or it stays in memory.
    """
    step("loading the model")
    prepared = _prepare(recipe, load)
    recipe, graphs, files_beside = prepared.recipe, prepared.graphs, {**prepared.host.files, **prepared.artifacts}
    check_host(recipe, prepared.host, prepared.graphs, verify_layers)
    check_layers(graphs, verify_layers, recipe.model, prepared.host.family)
    if not dry_run:
        check_room(graphs, recipe, verify_layers)
    questions = default_questions(prepared.host, graphs, recipe)
    step("counting operations")
    manifest = describe(recipe, prepared.host, graphs, _with_lengths(prepared.host.attach(()), recipe))
    int8 = Int8Export.of(recipe, prepared.host, graphs, manifest, step)
    loaded = {} if dry_run else _as_loaded(recipe, graphs, manifest, questions, verify_layers, step)
    warnings = (*_removes_nothing(prepared), *_quantize(recipe, graphs, step))
    del prepared
    if dry_run:
        return None, manifest, warnings

    with (
        _working_folder(output) as folder,
        WeightsFile(folder / WEIGHTS_FILE) as weights,
        _weights_of_floats(folder, weights, int8) as floats,
    ):
        parts: list[Part] = []
        models: list[onnx.ModelProto] = []
        files: list[Path] = []
        lowered: list[Lowered] = []
        found: dict[str, tuple[Finding, ...]] = {}
        several = len(graphs) > 1
        while graphs:  # the whole of each may leave memory when it was written
            graph, graphs = graphs[0], graphs[1:]
            of = f" {graph.name}" if several else ""
            step("tracing" + of)
            module = with_precision(graph.module, recipe.floats, graph)
            part = _part(graph, module, floats.path.with_name(graph_file(graph)), verify_layers, recipe)
            parts.append(part)
            models.append(_traced(graph, module, recipe, floats))
            if int8 is not None:
                step("quantizing" + of)
                onnx.save_model(models[-1], part.file)
                models[-1] = int8.quantized(part, step)
                keep_tensors(models[-1], weights, INLINE)
            step("checking the targets" + of)
            for name, findings in _preflights(models[-1], recipe.targets).items():
                found[name] = (*found.get(name, ()), *findings)
            file = folder / graph_file(graph)
            onnx.save_model(models[-1], file)
            if int8 is not None:
                int8.read_back(graph.name, file)
            records, more = lowered_files(models[-1], graph, recipe, folder)
            lowered += records
            files += [file, *more]
        del graph, module, part  # pyright: ignore[reportPossiblyUnboundVariable] - a host has graphs
        with weights.passing():
            for part in parts:
                if part.layers is not None:
                    onnx.save_model(_traced(part.graph, part.module, recipe, weights), part.file)
            proof = Proof(questions=questions, ours=manifest, theirs=manifest, precision=recipe.floats, loaded=loaded)
            report = proof.of(parts, step)
            _require_passed(report)
        if int8 is not None:
            step("comparing with INT8")
            quantized = [replace(part, file=folder / part.file.name) for part in parts]
            report = report.with_agreements(int8.agreements(quantized, questions, manifest))
            _require_passed(report)
        warnings += () if int8 is None else tuple(int8.notes)
        warnings += tuple(
            f"{name}: {finding.message} ({finding.rule}); {finding.fix}"
            for name in recipe.targets
            for finding in found[name]
            if finding.severity == "warning"
        )
        step("writing the bundle")
        manifest = replace(
            manifest,
            graphs=tuple(
                replace(graph, external_data=(WEIGHTS_FILE,) if uses_weights(model) else ())
                for graph, model in zip(manifest.graphs, models, strict=True)
            ),
            operators=operator_records(models),
            lowered=tuple(lowered),
            weights=tuple(form for graph in manifest.graphs for form in weight_forms(folder / graph.file)),
            int8=() if int8 is None else tuple(int8.records),
            verification=verification_record(report),
        )
        content: dict[str, bytes | Moved] = {
            **{file.name: Moved(file) for file in files},
            **({} if weights.is_empty else {WEIGHTS_FILE: Moved(weights.path)}),
            **files_beside,
            RECIPE_FILE: recipe.to_toml().encode(),
            PREFLIGHT_FILE: record_text(__version__, found).encode(),
            VERIFY_FILE: (json.dumps(report.to_json(), indent=2) + "\n").encode(),
        }
        bundle = write_bundle(output, manifest, content, force=force)
    return bundle.path, bundle.manifest, tuple(dict.fromkeys(warnings))


def run_verification(
    opened: Bundle,
    recipe: Recipe,
    *,
    inputs: Path | None,
    library: Library | None,
    verify_layers: int | None = None,
    step: Progress,
) -> VerifyReport:
    """Compare a bundle with its torch model; `api.verify` says what is raised.

    Args:
        opened: The bundle.
        recipe: Its own, with the hash of its weights and with the place where they are now.
        inputs: An .npz file, or None for the model's examples or seeded numbers.
        library: The native operators to run, or None for the bodies.
        verify_layers: Run the first so many layers alone, with the bundle's tensors, and hold the graph and all
            tensors of the bundle against what the model is traced to. None: run the bundle's graphs.
        step: Is told the name of each step.
    """
    step("loading the model")
    prepared = _prepare(recipe)
    check_host(recipe, prepared.host, prepared.graphs, verify_layers)
    check_layers(prepared.graphs, verify_layers, recipe.model, prepared.host.family)
    check_room(prepared.graphs, recipe, verify_layers)
    host, graphs = prepared.host, prepared.graphs
    if inputs is None:
        questions = default_questions(host, graphs, prepared.recipe)
    else:
        questions = read_questions(inputs, host, graphs)
    procedure = None if host.procedure is None else host.procedure(graphs)
    proof = Proof(
        questions=questions,
        ours=replace(opened.manifest, procedure=procedure),
        theirs=opened.manifest,
        precision=recipe.floats,
        loaded=_as_loaded(recipe, graphs, opened.manifest, questions, verify_layers, step),
        native=library,
    )
    _quantize(recipe, graphs, step)
    step("comparing")
    reports = []
    for together in [graphs] if procedure is not None else [(graph,) for graph in graphs]:
        with temporary_folder("verify") as folder:
            parts = []
            for graph in together:
                module = with_precision(graph.module, recipe.floats, graph)
                file = copy_graph(opened, opened.manifest.graph(graph.name).file, folder / graph.name)
                if recipe.int8_form is not None:
                    reports.append(_verified_int8(proof, graph, module, file, recipe, opened))
                    continue
                part = _part(graph, module, file, verify_layers, recipe)
                if part.layers is not None:
                    stored = onnx.load(file, load_external_data=False)
                    weights = StoredWeights(file.with_name(WEIGHTS_FILE), stored)
                    require_same(stored, _traced(graph, module, prepared.recipe, weights), opened)
                    onnx.save_model(_traced(part.graph, part.module, prepared.recipe, weights), part.file)
                parts.append(part)
            if parts:
                reports.append(proof.of(parts))
    report = merge_reports(reports)
    _require_passed(report)
    return report


def _verified_int8(
    proof: Proof, graph: GraphSpec, module: nn.Module, file: Path, recipe: Recipe, opened: Bundle
) -> VerifyReport:
    """Prove the graph in floating point again, that the file is that graph quantized, and see how it answers."""
    with temporary_folder("float") as folder, WeightsFile(folder / WEIGHTS_FILE) as weights:
        part = Part(graph=graph, module=module, file=folder / graph_file(graph))
        onnx.save_model(_traced(graph, module, recipe, weights), part.file)
        require_made_of(onnx.load(file), onnx.load(part.file), str(opened.path))
        report = proof.of([part])
    if not report.passed:
        return report
    part = replace(part, file=file)
    return report.with_agreements(
        agreements([part], proof.questions, opened.manifest, held_out={}, label="", native=proof.native)
    )


@contextlib.contextmanager
def _weights_of_floats(folder: Path, weights: WeightsFile, int8: Int8Export | None) -> Iterator[WeightsFile]:
    """Where the weights of graphs in floating point go: those that are quantized later into a file of their own."""
    if int8 is None:
        yield weights
        return
    own = folder / "float"
    own.mkdir()
    with WeightsFile(own / WEIGHTS_FILE) as floats:
        yield floats


def _traced(graph: GraphSpec, module: nn.Module, recipe: Recipe, weights: TakesTensors) -> onnx.ModelProto:
    return add_bodies(onnx_from_graph(graph, module, max_batch=recipe.batch.max, opset=recipe.opset, weights=weights))


def _part(graph: GraphSpec, module: nn.Module, file: Path, layers: int | None, recipe: Recipe) -> Part:
    """The first layers of a graph, in its precision; all of it if it has none, or if all are wanted."""
    short = first_of(graph, layers)
    if layers is None or graph.layers is None:
        return Part(graph=graph, module=module, file=file)
    return Part(
        graph=short,
        module=with_precision(short.module, recipe.floats, short),
        file=file.with_name(f"{graph.name}.first-{layers}.onnx"),
        layers=layers,
        layers_of=graph.layers.count,
        left_out=left_out(graph, layers),
    )


def _as_loaded(
    recipe: Recipe,
    graphs: Sequence[GraphSpec],
    manifest: Manifest,
    questions: Questions,
    layers: int | None,
    step: Progress,
) -> Answers:
    """What every graph answers before its weights are quantized; nothing where they are not."""
    if recipe.weights_bits is None:
        return {}
    step("running the model as it is")
    parts = [first_of(graph, layers) for graph in graphs]
    return answers([(part, as_loaded(part.module, part)) for part in parts], manifest, questions)


def _quantize(recipe: Recipe, graphs: Sequence[GraphSpec], step: Progress) -> tuple[str, ...]:
    """Quantize what the recipe says, in place; sentences on what is otherwise than it says."""
    form = recipe.weights_bits
    if form is None:
        return ()
    step("quantizing weights")
    return quantize([graph.module for graph in graphs], form, recipe.floats).sentences(form)


@contextlib.contextmanager
def _working_folder(output: Path) -> Iterator[Path]:
    """A folder beside the output that is gone afterwards; a full disk becomes one sentence.

    What is made there is moved into the bundle, so that weights are written once, and none where temporary files go,
    which on many systems is memory.
    """
    try:
        with staged_folder(Path(os.path.realpath(output))) as folder:
            yield folder
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        raise BundleError(
            f"The bundle '{output}' cannot be written ({error.strerror or error}). Nothing was changed.",
            hint="free space there, or give an output directory on another disk." if full else None,
        ) from error


def _prepare(recipe: Recipe, load: Callable[[Recipe], LoadedHost] | None = None) -> _Prepared:
    """Load the model and attach its compressors; the recipe then says which weights those are.

    Raises:
        ConfigError: they are not the weights that the recipe was made with, or something in it is wrong.
    """
    host = _as_read((load or _load)(recipe), recipe)
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


def _load(recipe: Recipe) -> LoadedHost:
    return load_host(recipe.model, weights=recipe.weights, model_sha256=recipe.model_sha256)


def _as_read(host: LoadedHost, recipe: Recipe) -> LoadedHost:
    """The model, cut into runs as the recipe says.

    Raises:
        UnsupportedError: It is none that is.
        ConfigError: It was not made for so many tokens.
    """
    if host.read_as is not None:
        return host.read_as(recipe.reading, recipe.floats)
    recipe.reading.refuse(recipe.model)
    return host


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
    subject = Subject(model)
    for name in (*asked, *(name for name in TARGETS if name not in asked)):
        found[name] = preflight_graph(subject, TARGETS[name])
        if name in asked:
            require_passed(PreflightReport(target=name, findings=found[name], checked=()))
    return found
