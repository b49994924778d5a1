"""The command bench: latency of a bundle, beside its baseline in the same interleaved run."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trt_compress.errors import ConfigError
from trt_compress.foreign import needs_extra, shown
from trt_compress.memory import format_bytes
from trt_compress.paths import check_apart
from trt_compress.tools.bench.verdicts import slower_words, speedup_words
from trt_compress.tools.cli.habits import BundlePath, RequireDigest
from trt_compress.tools.cli.options import (
    Backend,
    BaselineGraph,
    GraphName,
    JsonFile,
    Native,
    Threads,
    try_file,
    write_json,
)
from trt_compress.tools.console import print_json, print_table, print_text, progress

if TYPE_CHECKING:
    from trt_compress.tools.bench.result import BenchResult

_LONGEST_NUMBER = 10  # digits


def bench(
    bundle: BundlePath,
    baseline: Annotated[
        Path | None, typer.Option(metavar="BUNDLE", help="Uncompressed bundle to run interleaved with it.")
    ] = None,
    graph: GraphName = None,
    baseline_graph: BaselineGraph = None,
    backend: Backend = "ort-cpu",
    batch: Annotated[
        int | None, typer.Option(metavar="N", help="Default: the batch that the bundle was exported for.")
    ] = None,
    threads: Threads = None,
    workload: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES", help="Of a bundle that reads tokens: prefill, decode, or both (default: prefill,decode)."
        ),
    ] = None,
    fill: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,…", help="Tokens of a prompt, and those behind which steps are timed (default: 128,2048,…)."
        ),
    ] = None,
    context: Annotated[
        int | None, typer.Option(metavar="N", help="Most tokens of a sequence; without --fill it is filled.")
    ] = None,
    new: Annotated[int | None, typer.Option(metavar="N", help="Timed steps at each fill (default: 64).")] = None,
    pairs: Annotated[
        int | None,
        typer.Option(metavar="N", help="Timed runs of each side (default: 64, of prompts 15); p90 needs 64, p99 662."),
    ] = None,
    warmup: Annotated[
        int | None,
        typer.Option(metavar="N", help="Runs of each side before the timed ones (default: 5, of prompts 1)."),
    ] = None,
    inputs: Annotated[
        Path | None, typer.Option(metavar="FILE.npz", help="Arrays by input name (default: seeded random inputs).")
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Of the random inputs.")] = 0,
    native: Native = None,
    require_digest: RequireDigest = None,
    json: JsonFile = None,
) -> None:
    """Time a bundle: latency with n, spread and a verdict; with --baseline the speed-up and its interval.

    Of a bundle that reads tokens, prompts and steps are timed apart, at every fill.
    """
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
            workload=None if workload is None else [name.strip() for name in workload.split(",")],
            fill=None if fill is None else _numbers(fill),
            context=context,
            new=new,
            require_digest=require_digest,
            progress=step,
        )
    if json is not None and str(json) == "-":
        print_json(result.to_json())
        return
    _show(result)
    if json is not None:
        write_json(json, result.to_json())


def _numbers(text: str) -> list[int]:
    """The numbers of --fill."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and len(part) < _LONGEST_NUMBER for part in parts):
        raise ConfigError(f"--fill '{shown(text)}': give numbers of tokens with commas between them, such as 128,2048.")
    return [int(part) for part in parts]


def _show(result: "BenchResult") -> None:
    if result.points:
        _show_points(result)
    else:
        _show_runs(result)
    for side in result.sides:
        paths = side.identity["operators"]["paths"]
        if paths:
            words = {"native": "native operators", "plugin": "plugins", "function": "ONNX bodies"}
            ran = ", ".join(f"{n} as {words.get(form, form)}" for form, n in paths.items())
            print_text(f"{side.role}: operators run {ran}.")
            if "function" in paths and (why := side.identity["operators"].get("native_reason")):
                print_text(f"{side.role}: {why}")
    for note in _notes(result):
        print_text(f"{note}.")
    if result.speedup is not None and not result.points:
        print_text(f"Speed-up over the baseline: {speedup_words(result.speedup)}.")
    for warning in slower_words(result):
        print_text(warning)


def _notes(result: "BenchResult") -> list[str]:
    """What is to be known of the figures."""
    notes = []
    for point in result.points:
        shaky = [side for side in point.sides if side.verdict.status != "stable"]
        notes += [f"{point.workload} at {point.fill}, {side.role}: {side.verdict.reason}" for side in shaky[:1]]
    for side in result.sides if not result.points else ():
        if side.verdict.status != "stable":
            notes.append(f"{side.role}: {side.verdict.reason}")
        if side.latency.p90_ns is None:
            notes.append(f"{side.role}: p90: {side.latency.reasons['p90_ns']}")
    return notes


def _show_points(result: "BenchResult") -> None:
    several = len(result.sides) > 1
    names = {side.role: side.identity for side in result.sides}
    rows = []
    for point in result.points:
        for side in point.sides:
            ratio = point.speedup if side.role == "bundle" else None
            rows.append(
                (
                    point.workload,
                    point.fill,
                    *([side.role] if several else []),
                    side.latency.n,
                    _milliseconds(side.latency.median_ns),
                    _milliseconds(side.latency.p90_ns),
                    f"{side.tokens_per_s:.1f}",
                    format_bytes(side.state_bytes),
                    side.verdict.status,
                    *([None if ratio is None else speedup_words(ratio, short=True)] if several else []),
                )
            )
    columns = ("", "fill", *(["side"] if several else []), "n", "p50 ms", "p90 ms", "tokens/s", "states", "verdict")
    title = f"Reading tokens, batch {result.protocol['batch']}, {result.protocol['backend']}"
    print_table(title, (*columns, *(["speed-up"] if several else [])), rows)
    for role, identity in names.items():
        what = (identity["name"], identity["compression"], identity["precision"], identity["weights_as"])
        print_text(f"{role}: {', '.join(filter(None, what))}.")
    print_text(f"Started at {result.started_at}.")
    if any(point.workload == "prefill" for point in result.points):
        print_text("prefill: the time to the first token, for a prompt of `fill` tokens on new states.")
    upkeep = sum(len(point.sides[0].with_upkeep) for point in result.points)
    if any(point.workload == "decode" for point in result.points):
        also = f"; {upkeep} of the bundle's steps had upkeep behind them, which tokens/s counts" if upkeep else ""
        print_text(f"decode: steps behind a prompt of `fill` tokens and the warm-up{also}.")


def _show_runs(result: "BenchResult") -> None:
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
    precision = " and ".join(dict.fromkeys(side.identity["precision"] for side in result.sides))
    title = f"Latency in ms, {precision}, batch {result.protocol['batch']}, {result.protocol['backend']}"
    print_table(title, ("", "model", "n", "p50", "p90", "mean", "CV", "verdict"), rows)
    print_text(f"Started at {result.started_at}.")


def _milliseconds(ns: float | None) -> str | None:
    return None if ns is None else f"{ns / 1e6:.2f}"
