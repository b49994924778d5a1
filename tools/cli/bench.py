"""The command bench: latency of a bundle, beside its baseline in the same interleaved run."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trt_compress.foreign import needs_extra
from trt_compress.paths import check_apart
from trt_compress.tools.cli.evaluate import JsonFile, try_file, write_json
from trt_compress.tools.cli.habits import BundlePath, RequireDigest
from trt_compress.tools.console import print_json, print_table, print_text, progress

if TYPE_CHECKING:
    from trt_compress.tools.bench.bundle import BenchResult


def bench(
    bundle: BundlePath,
    baseline: Annotated[
        Path | None, typer.Option(metavar="BUNDLE", help="Uncompressed bundle to run interleaved with it.")
    ] = None,
    graph: Annotated[
        str | None, typer.Option(metavar="NAME", help="Graph of the bundle to run (default: all of them).")
    ] = None,
    baseline_graph: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Graph of the baseline; without --baseline another graph of the same bundle."
        ),
    ] = None,
    backend: Annotated[str, typer.Option(metavar="NAME", help="ort-cpu or ort-cuda.")] = "ort-cpu",
    batch: Annotated[
        int | None, typer.Option(metavar="N", help="Default: the batch that the bundle was exported for.")
    ] = None,
    threads: Annotated[int | None, typer.Option(metavar="N", help="Default: the backend's own choice.")] = None,
    pairs: Annotated[int, typer.Option(metavar="N", help="Timed runs of each side; p90 needs 64, p99 662.")] = 64,
    warmup: Annotated[int, typer.Option(metavar="N", help="Runs of each side before the timed ones.")] = 5,
    inputs: Annotated[
        Path | None, typer.Option(metavar="FILE.npz", help="Arrays by input name (default: seeded random inputs).")
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Of the random inputs.")] = 0,
    native: Annotated[
        bool | None,
        typer.Option("--native/--no-native", help="Native operators (default: if they are built)", show_default=False),
    ] = None,
    require_digest: RequireDigest = None,
    json: JsonFile = None,
) -> None:
    """Time a bundle: latency with n, spread and a verdict; with --baseline the speed-up and its interval."""
    try_file(json)
    bundles = [bundle, *filter(None, [baseline])]
    written = None if json is None or str(json) == "-" else json
    check_apart({"--json": written}, {"--inputs": [*filter(None, [inputs])]}, bundles)
    with progress("Timing") as step:
        with needs_extra("cpu"):
            from trt_compress.tools.bench.bundle import bench as bench_bundle
        result = bench_bundle(
            bundle,
            baseline=baseline,
            graph=graph,
            baseline_graph=baseline_graph,
            backend=backend,
            batch=batch,
            threads=threads,
            pairs=pairs,
            warmup=warmup,
            inputs=inputs,
            seed=seed,
            native=native,
            require_digest=require_digest,
            progress=step,
        )
    if json is not None and str(json) == "-":
        print_json(result.to_json())
        return
    _show(result)
    if json is not None:
        write_json(json, result.to_json())


def _show(result: "BenchResult") -> None:
    chosen = len({tuple(side.identity["graphs"]) for side in result.sides} | {("model",)}) > 1
    rows = [
        (
            side.role,
            side.identity["name"] + (f", {side.identity['graphs'][0]}" if chosen else ""),
            side.latency.n,
            _milliseconds(side.latency.median_ns),
            _milliseconds(side.latency.p90_ns),
            _milliseconds(side.latency.mean_ns),
            f"{side.latency.cv:.1%}",
            side.verdict.status,
        )
        for side in result.sides
    ]
    precision = result.sides[0].identity["precision"]
    title = f"Latency in ms, {precision}, batch {result.protocol['batch']}, {result.protocol['backend']}"
    print_table(title, ("", "model", "n", "p50", "p90", "mean", "CV", "verdict"), rows)
    print_text(f"Started at {result.started_at}.")
    for side in result.sides:
        paths = side.identity["operators"]["paths"]
        if paths:
            words = {"native": "native operators", "function": "ONNX bodies"}
            ran = ", ".join(f"{n} as {words.get(form, form)}" for form, n in paths.items())
            print_text(f"{side.role}: operators run {ran}.")
            if "function" in paths and (why := side.identity["operators"].get("native_reason")):
                print_text(f"{side.role}: {why}")
        notes = [side.verdict.reason] if side.verdict.status != "stable" else []
        if side.latency.p90_ns is None:
            notes.append(f"p90: {side.latency.reasons['p90_ns']}")
        for note in notes:
            print_text(f"{side.role}: {note}.")
    if result.speedup is not None:
        gain = result.speedup
        interval = f"95 % interval {gain.low:.2f} to {gain.high:.2f}" if gain.low and gain.high else gain.reason
        print_text(f"Speed-up over the baseline: {gain.median:.2f}× ({interval}, {gain.n} pairs).")


def _milliseconds(ns: float | None) -> str | None:
    return None if ns is None else f"{ns / 1e6:.2f}"
