"""The steps as plain functions: export, verify, preflight, build."""

import contextlib
import errno
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
from torch import nn

from trt_compress.errors import BundleError, ConfigError, GateError
from trt_compress.export.build import BatchRange, build_engine, check_request, choose_plugins
from trt_compress.export.bundle import check_output, update_bundle, write_bundle
from trt_compress.export.graph_view import load_structure
from trt_compress.export.lower import add_bodies
from trt_compress.export.onnx_file import save_onnx
from trt_compress.export.preflight import Finding
from trt_compress.export.preflight import preflight as preflight_graph
from trt_compress.export.recipe import Recipe, recipe_from_json, recipe_from_options
from trt_compress.export.records import (
    MODEL_FILE,
    RECIPE_FILE,
    VERIFY_FILE,
    describe,
    engine_record,
    lowered_files,
    operator_records,
    verification_record,
)
from trt_compress.export.targets import get_target
from trt_compress.export.trace import TraceOptions, onnx_from_module, with_precision
from trt_compress.export.verify import Array, VerifyReport, load_onnxruntime, make_inputs, read_inputs, verify_onnx
from trt_compress.models.compressors.registry import spec_string
from trt_compress.models.hosts.base import LoadedHost
from trt_compress.models.hosts.registry import load_host
from trt_compress.models.hosts.timm_vit import CompressedViT, attach
from trt_compress.plugins.library import Library, choose
from trt_compress.runtime import manifest as fields
from trt_compress.runtime.bundle import Bundle
from trt_compress.runtime.manifest import Manifest

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportResult:
    """What an export made: the bundle's directory (None after a dry run), its manifest, and what to look out for."""

    path: Path | None
    manifest: Manifest
    warnings: tuple[str, ...] = ()

    def summary(self) -> dict[str, Any]:
        """The main facts as plain JSON values."""
        manifest = self.manifest
        sites = manifest.compression
        flops = (manifest.flops or {}).get("total")
        verification = manifest.verification
        return {
            "bundle": str(self.path) if self.path else None,
            "model": manifest.model.source,
            "weights": manifest.model.weights.source,
            "compressors": recipe_from_json(manifest.recipe, where="the bundle's recipe").spec,
            "precision": manifest.precision,
            "opset": manifest.opset,
            "targets": list(manifest.targets),
            "batch": str(BatchRange(min=manifest.batch.min, opt=manifest.batch.opt, max=manifest.batch.max)),
            "tokens": [sites[0].tokens_in, *(site.tokens_out for site in sites)] if sites else [],
            "gflops": round(flops / 1e9, 3) if flops else None,
            "flops_reduction": round(manifest.baseline_flops / flops, 2) if flops and manifest.baseline_flops else None,
            "operators": {operator.name: operator.nodes for operator in manifest.operators},
            "verified": f"largest error {verification.max_abs_error:.1e}"
            if verification and verification.max_abs_error is not None
            else None,
            "warnings": list(self.warnings),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildPlan:
    """What a build would do."""

    target: str
    library: str
    file: str
    batch: str
    precision_asked: str
    plugins: str | None
    replaces: bool

    def to_json(self) -> dict[str, Any]:
        """The plan as plain JSON values."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prepared:
    """A host with its compressors in place."""

    recipe: Recipe
    host: LoadedHost
    module: CompressedViT


def export(
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
    inputs, label = _default_inputs(prepared)
    step("counting operations")
    manifest = describe(recipe, prepared.host, prepared.module)
    if dry_run:
        return ExportResult(path=None, manifest=manifest, warnings=_removes_nothing(prepared))

    step("tracing")
    module = with_precision(prepared.module, recipe.precision)
    options = TraceOptions(
        input_name=prepared.host.input_name,
        output_name=prepared.host.output_name,
        max_batch=recipe.batch.max,
        opset=recipe.opset,
    )
    traced = onnx_from_module(module, prepared.host.input_shape, options)
    bodied = add_bodies(traced)
    step("checking the targets")
    warnings = (*_removes_nothing(prepared), *_require_preflight(bodied, recipe.targets))
    with _working_folder(Path(output)) as folder:
        graph_files = save_onnx(bodied, folder / MODEL_FILE)
        step("verifying")
        report = _verify(prepared, module, graph_files[0], inputs, label)
        _require_passed(report)
        step("writing the bundle")
        lowered, more_files = lowered_files(bodied, recipe, folder)
        manifest = replace(
            manifest,
            graphs=(replace(manifest.graphs[0], external_data=tuple(file.name for file in graph_files[1:])),),
            operators=operator_records(bodied),
            lowered=lowered,
            verification=verification_record(report),
        )
        content: dict[str, bytes | Path] = {
            **{file.name: file for file in graph_files},
            **more_files,
            RECIPE_FILE: recipe.to_toml().encode(),
            VERIFY_FILE: (json.dumps(report.to_json(), indent=2) + "\n").encode(),
        }
        bundle = write_bundle(Path(output), manifest, content, force=force)
    return ExportResult(path=bundle.path, manifest=bundle.manifest, warnings=warnings)


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
        inputs: .npz file with an array for the input; default: the model's own examples or seeded ones, at the
            smallest, usual and largest batch.
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
    module = with_precision(prepared.module, recipe.precision)
    if inputs is None:
        arrays, label = _default_inputs(prepared)
    else:
        arrays, label = read_inputs(Path(inputs), prepared.host.input_name, prepared.host.input_shape), str(inputs)
    step("comparing")
    graph = opened.manifest.graphs[0]
    report = _verify(prepared, module, opened.file(graph.file), arrays, label, library)
    _require_passed(report)
    return report


def preflight(bundle_or_onnx: str | Path, *, target: str) -> tuple[Finding, ...]:
    """Hold every graph of a bundle, or a bare ONNX file, against the rules of a target.

    Raises:
        ConfigError: an unknown target, or a file that is not ONNX.
        BundleError: the bundle cannot be read.
    """
    chosen = get_target(target)
    path = Path(bundle_or_onnx)
    if not path.is_dir():
        return preflight_graph(path, chosen)
    opened = Bundle.open(path)
    files = [opened.file(graph.file) for graph in opened.manifest.graphs]
    return tuple(finding for file in files for finding in preflight_graph(file, chosen))


def build(
    bundle: str | Path,
    *,
    target: str,
    plugins: bool | str | Path | None = None,
    force: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> fields.Engine | BuildPlan:
    """Build an engine for a target and add it to the bundle.

    Args:
        bundle: The bundle's directory.
        target: A target with engines: rtx, x86-trt10, jetson-…
        plugins: The native operators: True needs them, False builds from the ONNX bodies, a path is the library to
            take; None takes what `trt-compress plugins build` made for this TensorRT, if it did, and needs it where the
            target's file has no bodies. The record says which operators became plugins.
        force: Replace the engine that the bundle has for this target.
        dry_run: Check what can be checked and return the plan.
        progress: Called with the name of each step.

    Raises:
        UnsupportedError: the library is missing, of the wrong version, or needs a GPU.
        GateError: preflight failed, or another precision was achieved than asked.
        BuildError: the builder refused the graph or died; nothing is added.
        PluginError: the plugin library is missing, or may not be loaded.
    """
    step = progress or (lambda text: None)
    chosen = get_target(target)
    opened = Bundle.open(bundle)
    manifest = opened.manifest
    graph = manifest.graphs[0]
    file = f"engines/{target}/{graph.name}.engine"
    existing = [engine for engine in manifest.engines if engine.target == target]
    if existing and not force:
        raise BundleError(f"{opened.path} already has an engine for '{target}'.", hint="--force replaces it.")
    batch = BatchRange(min=manifest.batch.min, opt=manifest.batch.opt, max=manifest.batch.max)
    check_request(chosen, manifest.precision)
    library = choose_plugins(chosen, plugins)
    step("checking the graph")
    structure = load_structure(opened.file(graph.file))
    _require_preflight(structure, [target])
    if dry_run:
        return BuildPlan(
            target=target,
            library=chosen.backend,
            file=file,
            batch=str(batch),
            precision_asked=manifest.precision,
            plugins=str(library.path) if library else None,
            replaces=bool(existing),
        )
    step("building")
    model = onnx.load(opened.file(graph.file))
    built = build_engine(model, chosen, batch=batch, precision=manifest.precision, plugins=library)
    record = engine_record(built, file, manifest.files[graph.file].sha256)
    kept = tuple(engine for engine in manifest.engines if engine.target != target)
    step("adding the engine")
    update_bundle(opened, replace(manifest, engines=(*kept, record)), {file: built.data})
    return record


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
    module = attach(host.module, recipe.compressors, name=recipe.model).eval()
    return _Prepared(recipe=replace(recipe, weights_sha256=host.weights.sha256), host=host, module=module)


def _default_inputs(prepared: _Prepared) -> tuple[list[Array], str]:
    batch = prepared.recipe.batch
    sizes = sorted({batch.min, batch.opt, batch.max})
    if prepared.host.examples is not None:
        return [prepared.host.examples(size) for size in sizes], "held-out examples of the model"
    return make_inputs(prepared.host.input_shape, sizes), "seeded standard-normal numbers"


def _verify(
    prepared: _Prepared,
    module: nn.Module,
    path: Path,
    inputs: Sequence[Array],
    label: str,
    native: Library | None = None,
) -> VerifyReport:
    return verify_onnx(
        path,
        module,
        plan=prepared.module.plan,
        input_name=prepared.host.input_name,
        inputs=inputs,
        inputs_label=label,
        precision=prepared.recipe.precision,
        native=native,
    )


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
    acting = {site.config for site in prepared.module.plan}
    idle = [spec for spec in prepared.recipe.compressors if spec.config not in acting]
    return tuple(
        f"{spec_string([spec])} removes no token of {prepared.recipe.model}; the graph is without it" for spec in idle
    )


def _require_preflight(model: onnx.ModelProto, targets: Sequence[str]) -> tuple[str, ...]:
    """Raise GateError for the first error; return the warnings as sentences."""
    warnings: list[str] = []
    for name in targets:
        findings = preflight_graph(model, get_target(name))
        warnings += [f"{name}: {f.message} ({f.rule}); {f.fix}" for f in findings if f.severity == "warning"]
        errors = [f for f in findings if f.severity == "error"]
        if errors:
            first, more = errors[0], f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
            raise GateError(
                f"preflight for '{name}' failed at node '{first.node}' by rule {first.rule}: {first.message}{more}",
                hint=first.fix,
                report=tuple(errors),
            )
    return tuple(warnings)
