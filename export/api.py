"""The steps as plain functions: export and verify, beside them preflight and build.

What can be known of names, files and libraries is checked here; torch, timm and onnx are loaded behind that.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trt_compress.errors import ConfigError
from trt_compress.export.artifacts import with_artifacts_of
from trt_compress.export.bundle import check_output
from trt_compress.export.check import preflight
from trt_compress.export.engines import BuildPlan, Progress, build, build_engines
from trt_compress.export.int8_form import STATIC, check_samples
from trt_compress.export.needs import EXPORT_NEEDS, require_modules
from trt_compress.export.ranges import BatchRange
from trt_compress.export.recipe import Recipe, recipe_from_json, recipe_from_options
from trt_compress.export.trust import refuse_paths, trusted
from trt_compress.foreign import refusals_said, shown
from trt_compress.format.bundle import Bundle, as_digests
from trt_compress.format.manifest import Manifest
from trt_compress.model_file import check_model_file
from trt_compress.model_name import FILE_SOURCE, parse_model, with_absolute_path
from trt_compress.models.hosts.catalog import check_model
from trt_compress.paths import check_archive, check_kept
from trt_compress.plugins.library import choose, library_or_none
from trt_compress.runtime.tokens import caches_text, token_flows

if TYPE_CHECKING:
    from trt_compress.export.verify_report import VerifyReport

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
            "verified": None if verification is None else verification.text,
            "weight_forms": [form.to_json() for form in manifest.weights],
            "int8": [record.to_json() for record in manifest.int8],
            "quantization_error": verification and verification.quantization_error,
            "deployment_error": verification and verification.deployment_error,
            "method": verification.method if verification else None,
            "warnings": list(self.warnings),
        }


@refusals_said()
def export_model(
    model: str,
    *,
    output: str | Path,
    compress: str | None = None,
    weights: str | Path | None = None,
    targets: Sequence[str] | None = None,
    batch: str | None = None,
    precision: str | None = None,
    weights_bits: str | None = None,
    int8: str | None = None,
    calibrate: str | Path | None = None,
    int8_share: str | float | None = None,
    keep_precision: str | None = None,
    int8_rest: str | None = None,
    context: int | None = None,
    chunk: int | None = None,
    cache_dtype: str | None = None,
    opset: int | None = None,
    force: bool = False,
    dry_run: bool = False,
    trust_paths: bool = False,
    verify_layers: int | None = None,
    progress: Progress | None = None,
) -> ExportResult:
    """Export a model with compressors as a bundle, checked against its targets and proven against PyTorch.

    Args:
        model: A name as `trt_compress.model_name` reads it (`timm:NAME?num_classes=10`, `zoo:NAME`, `hf:DIR`, or
            `FILE.py:FACTORY`, whose code is run), or a recipe file (`*.toml`) that the other options override.
        output: Directory of the bundle; must not exist unless `force`.
        compress: Spec string, `tome:num_merged=13`, several joined by `+`; default `none`.
        weights: .safetensors file or checkpoint; default: the zoo's own, or random for timm.
        targets: Names of targets; default `cpu`.
        batch: `MIN:OPT:MAX`; default `1:4:8`.
        precision: `fp32` (default), `fp16`, `bf16`, or `int8` for layers with weights and `fp32` for the rest; it is in
            the graph, whose inputs, outputs and states keep their dtypes.
        weights_bits: Quantize the weights of linear layers to `8` or `4` bits, `4:128` with one scale for 128 of them
            (default 32); default: they are as `precision` says.
        int8: Of that precision, when ranges are found: `static` (default), `static:entropy` or `static:percentile` from
            samples, or `dynamic` from each input as it runs, on the CPU.
        calibrate: The samples for static ranges and `keep_precision`: a folder of pictures or sounds, or an .npz file
            of arrays by the names of the inputs.
        int8_share: Of the layers with weights, the share that must run in INT8; default 0.9, and 0 allows any.
        keep_precision: Of that precision, `auto` keeps the layers in floating point whose quantization was measured to
            cost most, `auto:N` so many of them; the samples are those of `calibrate`.
        int8_rest: Of that precision and for targets of TensorRT, what everything else computes in: `fp32` (default) or
            `fp16`.
        context: Of a language model, tokens of the longest sequence; default: what it was made for, up to 4096.
        chunk: Of a language model, tokens of a prompt that one run reads at most; default: 256.
        cache_dtype: Of a language model, what keys and values are kept in, `fp32` or `fp16`; default: `fp16` where the
            precision is that, `fp32` otherwise.
        opset: ONNX opset; default: the newest that all known targets take, or 21, which `weights_bits` needs.
        force: Replace the bundle that is there.
        dry_run: Check everything that needs no tracing and write nothing.
        trust_paths: Of a recipe that lies in a bundle, follow the paths too; without it only models of the zoo and of
            timm, and what is given here, are taken.
        verify_layers: Of a model that is too large to be run here twice: run and compare its first so many layers only.
            The bundle says so.
        progress: Called with the name of each step.

    Raises:
        ConfigError: a name or a value is wrong, or a bundle's recipe names a path.
        UnsupportedError: `verify_layers` is given for a model without layers that could be left out, or `context`,
            `chunk` or `cache_dtype` for one that is no language model.
        BundleError: the output cannot be written.
        GateError: preflight or verification failed; nothing is written.
    """
    step = progress or (lambda text: None)
    recipe = recipe_from_options(
        model,
        compress=compress,
        weights=weights,
        targets=targets,
        batch=batch,
        precision=precision,
        weights_bits=weights_bits,
        int8=int8,
        calibrate=calibrate,
        int8_share=int8_share,
        keep_precision=keep_precision,
        int8_rest=int8_rest,
        context=context,
        chunk=chunk,
        cache_dtype=cache_dtype,
        opset=opset,
    )
    if not trust_paths:
        given = {"weights": weights, "compressors": compress, "calibrate": calibrate}
        recipe = trusted(model, recipe, named=[name for name, value in given.items() if value is not None])
    check_int8(recipe)
    check_output(Path(output), force)
    check_kept(Path(output), "-o", files_of(recipe))
    recipe = check_files(recipe)
    require_modules(*EXPORT_NEEDS)
    from trt_compress.export.pipeline import run_export

    path, manifest, warnings = run_export(
        recipe, Path(output), force=force, dry_run=dry_run, verify_layers=verify_layers, step=step
    )
    return ExportResult(path=path, manifest=manifest, warnings=warnings)


@refusals_said()
def verify(
    bundle: str | Path,
    *,
    inputs: str | Path | None = None,
    weights: str | Path | None = None,
    model: str | None = None,
    native: bool | str | Path = False,
    require_digest: str | Collection[str] | None = None,
    trust_paths: bool = False,
    verify_layers: int | None = None,
    progress: Progress | None = None,
) -> "VerifyReport":
    """Prove again that a bundle computes what its torch model computes.

    Args:
        bundle: The bundle's directory.
        inputs: .npz file with an array for each input (with several graphs `graph.input`; with states, steps along one
            more axis in front); default: the model's own examples or seeded ones, at the smallest, usual and largest
            batch.
        weights: The file of weights that the bundle was made with, wherever it is now; "pretrained" lets timm's own be
            downloaded.
        model: The own model that it was made with, wherever its file is now (`FILE.py:FACTORY`, `hf:DIR`).
        native: Run the native operators in ONNX Runtime: True, or the library to take. False runs the ONNX bodies.
        require_digest: The digest that the bundle must have, as `Bundle.open` takes it.
        trust_paths: Follow the paths in the bundle's recipe, and run the file of an own model; without it only models
            of the zoo and of timm, and what is given here, are taken.
        verify_layers: Run and compare the first so many layers only, with the bundle's weights; the whole graph and all
            of its weights are held against the model without being run.
        progress: Called with the name of each step.

    Raises:
        GateError: something differs; `report` holds the VerifyReport.
        ConfigError: the model cannot be built again as it was (weights moved or changed), or the recipe names a path.
        PluginError: the native library is missing, or may not be loaded.
    """
    required = as_digests(require_digest)
    library = library_or_none(choose("onnxruntime", native))
    opened = Bundle.open(bundle, require_digest=required)
    recipe = recipe_of(opened, weights=weights, model=model, trust_paths=trust_paths)
    given = None if inputs is None else Path(inputs)
    if given is not None:
        check_archive(given)
    recipe = check_files(recipe)
    require_modules(*EXPORT_NEEDS)
    from trt_compress.export.pipeline import run_verification

    return run_verification(
        opened,
        recipe,
        inputs=given,
        library=library,
        verify_layers=verify_layers,
        step=progress or (lambda text: None),
    )


def recipe_of(
    opened: Bundle, *, weights: str | Path | None = None, model: str | None = None, trust_paths: bool = False
) -> Recipe:
    """What a bundle was made of, to build its model again.

    Args:
        opened: The bundle.
        weights, model, trust_paths: As `verify` takes them.

    Raises:
        ConfigError: the recipe names a path that nobody trusts, or a model that is not there any more.
    """
    recipe = replace(
        recipe_from_json(opened.manifest.recipe, where="the bundle's recipe"),
        weights_sha256=opened.manifest.model.weights.sha256,
        calibrate=None,  # ranges are in the graph
    )
    if weights is not None:
        recipe = replace(recipe, weights=str(weights))
    if model is not None:
        recipe = replace(recipe, model=_moved(recipe.model, model))
    recipe = with_artifacts_of(opened, recipe)
    if not trust_paths:
        named = [name for name, value in {"model": model, "weights": weights}.items() if value is not None]
        refuse_paths(recipe, where=f"the recipe of the bundle '{shown(str(opened.path))}'", named=named)
    name = parse_model(recipe.model)
    if name.source == FILE_SOURCE and not Path(name.name).is_file():
        raise ConfigError(
            f"model: {name.name} is not there any more; say where it is now with --model FILE.py:{name.factory}."
        )
    return recipe


def files_of(recipe: Recipe) -> dict[str, Path | None]:
    """What an export reads besides its recipe, which is written into the bundle again."""
    weights = None if recipe.weights in (None, "pretrained") else Path(str(recipe.weights))
    samples = None if recipe.calibrate is None else Path(recipe.calibrate)
    files = {"the weights": weights, "the model": parse_model(recipe.model).path, "the samples": samples}
    return files | {
        f"{spec.name}'s {option}": Path(file.path)
        for spec in recipe.compressors
        for option, file in spec.config.artifacts.items()
        if file.content is None
    }


def check_int8(recipe: Recipe) -> None:
    """Refuse static INT8 or a search without samples, dynamic INT8 with some, and samples that cannot be any.

    Raises:
        ConfigError: They do not go together, or are not there.
    """
    form = recipe.int8_form
    if form is None:
        return
    if recipe.keep_precision is not None and recipe.calibrate is None:
        raise ConfigError(
            f"keep_precision {recipe.keep_precision} measures with samples what each layer costs, and none are given; "
            "give --calibrate DIR (pictures or sounds) or FILE.npz (arrays by the names of the inputs), some hundred "
            "of them."
        )
    if form.way != STATIC and recipe.keep_precision is None:
        if recipe.calibrate is not None:
            raise ConfigError(
                f"--calibrate {shown(recipe.calibrate)} is for static INT8, and {form} finds ranges as it runs; leave "
                "it out, or give --int8 static, or --keep-precision auto."
            )
    elif recipe.calibrate is None:
        raise ConfigError(
            "precision int8 finds ranges from samples, and none are given; give --calibrate DIR (pictures or sounds) "
            "or FILE.npz (arrays by the names of the inputs), some hundred of them, or --int8 dynamic, which needs "
            "none and is for the CPU."
        )
    else:
        check_samples(Path(recipe.calibrate))


def check_files(recipe: Recipe) -> Recipe:
    """Refuse a model that is not there, and files that a recipe names and that cannot be read, or have changed.

    Returns:
        The recipe, which then says what the file of an own model is, and holds its artifacts.
    """
    check_model(recipe.model, recipe.weights, recipe.reading)
    recipe = replace(recipe, compressors=tuple(spec.read()[0] for spec in recipe.compressors))
    name = parse_model(recipe.model)
    if name.source != FILE_SOURCE:
        return recipe
    found = check_model_file(name)
    if recipe.model_sha256 not in (None, found):
        raise ConfigError(
            f"model: {name.name} has sha256 {found[:12]}…, and the recipe was made with "
            f"{str(recipe.model_sha256)[:12]}…; give that file, or export again with the new one."
        )
    return replace(recipe, model_sha256=found)


def _moved(before: str, now: str) -> str:
    """The name of an own model whose file or directory has moved, with the options that it had.

    Raises:
        ConfigError: `now` is no name of an own model, or one of another kind than `before`.
    """
    was, is_now = parse_model(before), parse_model(now)
    if was.path is None or was.source != is_now.source:
        raise ConfigError(
            f"model: '{now}' is given for '{before}'; only the file of an own model can have moved, FILE.py:FACTORY, "
            "or the directory or file of hf: and of a codec, each by a name of its kind."
        )
    _, mark, options = before.partition("?")
    return with_absolute_path(now if "?" in now else now + mark + options)


def _tokens(manifest: Manifest) -> list[Any] | dict[str, Any] | str:
    """Tokens before the first site and after each; of several graphs by their names, and of caches as `cache`.

    Where the sites are no chain, as each chooses from all tokens, in words how many it computes; of caches in words
    what is kept of them.
    """
    flows = token_flows(manifest.compression)
    said: dict[str, Any] = {flow.graph: list(flow.chain) or f"{flow.text} ({flow.note})" for flow in flows}
    if (caches := caches_text(manifest.compression)) is not None:
        said["cache"] = caches
    elif len(manifest.graphs) == 1 and len(said) < 2:
        return said.popitem()[1] if said else []
    return said
