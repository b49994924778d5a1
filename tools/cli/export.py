"""The commands that make and judge a bundle: export, verify, preflight, build."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from trt_compress.errors import ConfigError, GateError
from trt_compress.foreign import needs_extra
from trt_compress.tools.cli.habits import (
    BundlePath,
    Json,
    RequireDigest,
    TrustPaths,
    VerifyLayers,
    target_names,
    with_export_options,
)
from trt_compress.tools.console import print_json, print_pairs, print_table, print_text, progress

if TYPE_CHECKING:
    from trt_compress.export.check import PreflightReport
    from trt_compress.export.verify_report import VerifyReport

_MODEL = (
    "timm:NAME, zoo:NAME, hf:DIR (as save_pretrained wrote it), gguf:FILE, wavtokenizer:FILE, xytokenizer:FILE, "
    "FILE.py:FACTORY (your own; the file is run), or a recipe (FILE.toml); `trt-compress list models` names them. "
    "Options follow a name: timm:NAME?num_classes=10&img_size=384, hf:DIR?lora=ADAPTER."
)
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything and say what would be done; write nothing.")]


@with_export_options()
def export(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Where the bundle goes.")],
    model: Annotated[str | None, typer.Argument(metavar="MODEL", help=_MODEL, show_default=False)] = None,
    model_option: Annotated[
        str | None,
        typer.Option(
            "--model", metavar="MODEL", help="The same as MODEL; of FILE.py:FACTORY the code in the file is run."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the bundle in DIR.")] = False,
    dry_run: DryRun = False,
    verify_layers: VerifyLayers = None,
    trust_paths: TrustPaths = False,
    json: Json = False,
    **options: Any,
) -> None:
    """Export MODEL as a bundle: one ONNX file, checked against its targets and proven against PyTorch.

    What is given here overrides what a recipe file says.
    """
    if (model is None) == (model_option is None):
        raise ConfigError(
            "MODEL is missing; write `trt-compress export MODEL -o DIR`, with timm:NAME, zoo:NAME or FILE.py:FACTORY."
            if model is None
            else f"MODEL is given twice, as '{model}' and as --model '{model_option}'; give it once."
        )
    name = str(model or model_option)
    with progress(f"Exporting {name}") as step:
        with needs_extra("export"):
            from trt_compress.export import api
        result = api.export_model(
            name,
            output=output,
            **options,
            force=force,
            dry_run=dry_run,
            verify_layers=verify_layers,
            trust_paths=trust_paths,
            progress=step,
        )
    summary = result.summary()
    if json:
        print_json(summary)
        return
    from trt_compress.tools.describe import export_pairs

    print_pairs("Would export" if dry_run else "Exported", export_pairs(summary))


def verify(
    bundle: BundlePath,
    inputs: Annotated[
        Path | None,
        typer.Option(metavar="FILE.npz", help="Input arrays (default: the model's examples, or seeded ones)."),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="The weights it was made with, if from a file; 'pretrained': timm's own."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.py:FACTORY", help="Your own model that it was made with; the code in the file is run."
        ),
    ] = None,
    native: Annotated[
        bool, typer.Option("--native", help="Run the native operators (`trt-compress plugins build`).")
    ] = False,
    backend: Annotated[
        str | None,
        typer.Option(
            metavar="tensorrt|rtx",
            help="Compare ONNX Runtime with the engines here instead, per output and state (needs polygraphy).",
        ),
    ] = None,
    verify_layers: VerifyLayers = None,
    trust_paths: TrustPaths = False,
    require_digest: RequireDigest = None,
    json: Json = False,
) -> None:
    """Compare PyTorch with ONNX Runtime, per output and per compressor site; a miss exits 3."""
    try:
        with progress("Verifying") as step:
            from trt_compress.tools.verifying import verify as verified

            report = verified(
                bundle,
                require_digest=require_digest,
                inputs=inputs,
                weights=weights,
                model=model,
                native=native,
                backend=backend,
                verify_layers=verify_layers,
                trust_paths=trust_paths,
                progress=step,
            )
    except GateError as error:
        if error.report is not None and not json:
            _show_verification(cast("VerifyReport", error.report))
        raise
    if json:
        print_json(report.to_json())
    else:
        _show_verification(report)


def preflight(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE_OR_ONNX", help="A bundle, or a bare ONNX file.")],
    target: Annotated[
        str, typer.Option(metavar="T", autocompletion=target_names, help="See `trt-compress list targets`.")
    ],
    require_digest: RequireDigest = None,
    json: Json = False,
) -> None:
    """Hold a graph against the rules of a target; a finding that would stop the build exits 3."""
    from trt_compress.export.check import preflight_report

    with progress(f"Checking for {target}") as step:
        step("rules")
        report = preflight_report(bundle, target=target, require_digest=require_digest)
    if not json:
        _show_findings(report)
    if errors := report.errors:
        raise GateError(
            f"{len(errors)} finding{'s'[: len(errors) > 1]} would stop the build for '{target}', the first"
            f"{f' at node {errors[0].node!r}' if errors[0].node else ''}: {errors[0].message}",
            hint=errors[0].fix,
            report=report,
        )
    if json:
        print_json(report.to_json())


def build(
    bundle: BundlePath,
    target: Annotated[
        str, typer.Option(metavar="T", autocompletion=target_names, help="See `trt-compress list targets`.")
    ],
    plugins: Annotated[
        str | None,
        typer.Option(
            metavar="yes|no|FILE",
            help="Native operators: needed, not used, or this library (default: those built here for this TensorRT).",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the engine that the bundle has for T.")] = False,
    dry_run: DryRun = False,
    require_digest: RequireDigest = None,
    json: Json = False,
) -> None:
    """Build an engine for a target and add it to the bundle, with the precision and paths that were achieved."""
    from trt_compress.export.engines import build_engines

    with progress(f"Building for {target}") as step:
        asked = {"yes": True, "no": False}.get(plugins or "", plugins)
        made = build_engines(
            bundle,
            require_digest=require_digest,
            target=target,
            plugins=asked,
            force=force,
            dry_run=dry_run,
            progress=step,
        )
    if json:
        records = [record.to_json() for record in made]
        print_json(records[0] if len(records) == 1 else records)
        return
    from trt_compress.export.engines import BuildPlan
    from trt_compress.tools.describe import engine_pairs, plan_pairs

    for one in made:
        pairs = plan_pairs(one) if isinstance(one, BuildPlan) else engine_pairs(one)
        print_pairs("Would build" if dry_run else "Built", pairs)


def _show_verification(report: "VerifyReport") -> None:
    several = len({output.graph for output in report.outputs}) > 1
    outputs = [
        (
            _place(output.name, output.graph if several else "", output.step),
            output.batch,
            f"{output.max_abs_error:.2e}",
            f"{output.relative_error:.2e}",
            f"{output.tolerance:.0e}",
            f"{output.cosine:.6f}",
            output.ties,
            _verdict(output.passed),
        )
        for output in report.outputs
    ]
    print_table("Outputs", ("output", "batch", "max abs error", "relative", "allowed", "cosine", "ties", ""), outputs)
    sites = [
        (
            _place(site.site, site.graph if several else "", site.step),
            site.batch,
            f"{site.tokens_in} → {site.tokens_out}",
            "yes" if site.indices_equal else "no",
            site.ties,
            _verdict(site.passed),
        )
        for site in report.sites
    ]
    if sites:
        print_table("Compressor sites", ("site", "batch", "tokens", "same indices", "ties", ""), sites)
    if report.agreements:
        alike = [
            (
                _place(row.name, row.graph if several else "", 0),
                row.samples,
                "" if row.cosine is None else f"{row.cosine:.6f}",
                "" if row.least_cosine is None else f"{row.least_cosine:.6f}",
                "" if row.same is None else f"{row.same:.1%}",
                _verdict(row.passed) if row.kind == "output" else "",
            )
            for row in report.agreements
        ]
        columns = ("output or site", "samples", "mean cosine", "least", "same class or indices", "")
        print_table(f"INT8 beside floating point, {report.agreements[0].inputs}", columns, alike)
    if report.distances:
        away = [
            (found.of, found.name, f"{found.relative_error:.2e}", f"{found.cosine:.6f}", found.to)
            for found in report.distances
        ]
        print_table("What rounding weights costs", ("of", "output", "relative", "cosine", "from"), away)
    if report.method:
        print_text(f"Run as {report.method}.")
    rounded = [output for output in report.outputs if output.rounding]
    if rounded:
        own, off = max(output.rounding for output in rounded), max(output.relative_error for output in rounded)
        if report.precision == "fp32":
            print_text(
                f"{len(rounded)} outputs are further apart than is usual, by {off:.1e} at most, and were judged by "
                f"torch's own rounding: with its products in float64 it moves by {own:.1e}."
            )
        else:
            print_text(
                f"In {len(rounded)} outputs torch in {report.precision} is further off than is usual, by {own:.1e} at "
                f"most, and ONNX Runtime is {off:.1e} from what torch computes in float32 with the same weights."
            )
    if report.paths:
        words = {"native": "native operators", "plugin": "plugins", "function": "ONNX bodies"}
        where = "the engine" if any("plugin" in forms for forms in report.paths.values()) else "ONNX Runtime"
        ran = (f"{n} {name} as {words[form]}" for name, forms in report.paths.items() for form, n in forms.items() if n)
        print_text(f"In {where} ran {', '.join(ran)}.")
    if report.layers is not None:
        print_text(
            f"Run were the first {report.layers} of {report.layers_of} layers; of the others only the graph and the "
            "weights were compared." + (f" Not run was {' and '.join(report.left_out)}." if report.left_out else "")
        )
    print_text("Passed." if report.passed else f"Failed; the first divergence is at {report.first_divergence}.")


def _show_findings(report: "PreflightReport") -> None:
    if report.findings:
        rows = [(found.severity, found.rule, found.node, found.message, found.fix) for found in report.findings]
        print_table(f"Preflight for {report.target}", ("severity", "rule", "node", "finding", "fix"), rows)
    if not report.errors:
        print_text(f"Nothing stands in the way of '{report.target}'.")
    print_text(f"Checked: {'; '.join(report.checked)}.")


def _place(name: str, graph: str, step: int) -> str:
    """A name with its graph, if there are several, and its step, if there are states."""
    return (f"{graph}: " if graph else "") + name + (f", step {step}" if step else "")


def _verdict(passed: bool) -> str:
    return "ok" if passed else "FAILED"
