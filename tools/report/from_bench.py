"""The report of `trt-compress bench --json`."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from trt_compress.errors import BundleError, ConfigError
from trt_compress.format.manifest import Compression as Site
from trt_compress.format.record import Record
from trt_compress.runtime.measure.latency import speedup, summarize, verdict
from trt_compress.runtime.tokens import tokens_of_sample, why_no_tokens
from trt_compress.tools.bench.result import DOCUMENT, RESULT_VERSION
from trt_compress.tools.report.from_stream import DEVICE_PARTS, machine
from trt_compress.tools.report.record import (
    NOT_HERE,
    Distribution,
    Latency,
    Plots,
    QualityMetric,
    Ratio,
    ReadingPoint,
    ReadingSide,
    Report,
    ReportProtocol,
    ReportSide,
    SideCompression,
    SideIdentity,
    SidePart,
    SideResources,
    SideVerdict,
)
from trt_compress.tools.report.series import ecdf, thin


@dataclass(frozen=True, slots=True, kw_only=True)
class _Operators(Record):
    paths: dict[str, int]
    native_library: str | None
    native_reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Flops(Record):
    total: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Identity(Record):
    name: str
    model: str
    weights: str
    compression: str
    precision: str
    opset: int
    flops: _Flops | None
    baseline_flops: float | None
    sites: tuple[Site, ...]
    graph_bytes: int
    sha256: dict[str, str]
    operators: _Operators
    graphs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Side(Record):
    role: str
    identity: _Identity
    first_inference_ns: int
    latencies_ns: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reading(Record):
    role: str
    latencies_ns: tuple[int, ...]
    with_upkeep: tuple[int, ...]
    tokens_per_s: float
    state_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Point(Record):
    workload: str
    fill: int
    sides: tuple[_Reading, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Protocol(Record):
    kind: str
    backend: str
    threads: int | None
    spinning: bool
    batch: int | None
    warmup: int
    inputs: str
    workload: str | None = None
    fill: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bench(Record):
    result_version: str
    protocol: _Protocol
    sides: tuple[_Side, ...]
    quality: dict[str, dict[str, float]] | None
    device: dict[str, Any]
    versions: dict[str, str]
    started_at: str | None = None
    points: tuple[_Point, ...] = ()


def report_from_bench(data: dict[str, Any], where: str) -> Report:
    """Make the report of a benchmark from the JSON it wrote; all numbers are computed from its raw latencies.

    Raises:
        ConfigError: It is of another version, or does not fit.
    """
    version = data.get("result_version")
    if not isinstance(version, str) or version.split(".")[0] != RESULT_VERSION.split(".")[0] or version == "1.0":
        raise ConfigError(
            f"{where} has result version {version!r}, and this trt-compress reads 1.1 and later 1.x; run "
            "`trt-compress bench --json` again."
        )
    try:
        bench = _Bench.from_json(data, where)
    except BundleError as error:  # a record says so of a bundle's files; this is none
        raise ConfigError(f"{error.message.rstrip('.')}; run `trt-compress bench --json` again.") from None
    if not bench.sides or not all(side.latencies_ns for side in bench.sides):
        raise ConfigError(f"{where} holds no timed run; run `trt-compress bench --json` again.")
    if any(
        len(point.sides) != len(bench.sides) or not all(s.latencies_ns for s in point.sides) for point in bench.points
    ):
        raise ConfigError(f"{where} has a point without the runs of each side; run `trt-compress bench --json` again.")
    device: Literal["cpu", "gpu"] = "cpu" if bench.protocol.backend.endswith("cpu") else "gpu"
    sides = tuple(_side(side, bench, device) for side in bench.sides)
    latencies = [side.latencies_ns for side in bench.sides]
    ratio = Ratio.of(speedup(latencies[0], latencies[1])) if len(latencies) > 1 else None
    protocol = bench.protocol
    return Report(
        title=sides[0].identity.name,
        source=DOCUMENT,
        started_at=bench.started_at,
        machine=machine(bench.device, bench.versions),
        protocol=ReportProtocol(
            kind=protocol.kind,
            fps=None,
            policy=None,
            deadline_ns=None,
            deadline_is_period=False,
            warmup=protocol.warmup,
            threads=protocol.threads,
            streams=1,
            settings={
                "batch": protocol.batch,
                "spinning": protocol.spinning,
                "inputs": protocol.inputs,
                **({} if protocol.workload is None else {"workload": protocol.workload, "fill": protocol.fill}),
            },
        ),
        sides=sides,
        speedup=ratio,
        points=tuple(_point(point, device) for point in bench.points),
    )


def _point(point: _Point, device: Literal["cpu", "gpu"]) -> ReadingPoint:
    latencies = [side.latencies_ns for side in point.sides]
    return ReadingPoint(
        workload=point.workload,
        fill=point.fill,
        sides=tuple(
            ReadingSide(
                role=side.role,
                latency=Distribution.from_summary(summarize(side.latencies_ns)),
                tokens_per_s=side.tokens_per_s,
                state_bytes=side.state_bytes,
                verdict=verdict(_alike(side), device=device).status,
            )
            for side in point.sides
        ),
        speedup=Ratio.of(speedup(latencies[0], latencies[1])) if len(latencies) > 1 else None,
    )


def _alike(side: _Reading) -> tuple[int, ...]:
    """The runs without upkeep, which alone are alike."""
    left_out = set(side.with_upkeep)
    return tuple(ns for number, ns in enumerate(side.latencies_ns) if number not in left_out) or side.latencies_ns


def _side(side: _Side, bench: _Bench, device: Literal["cpu", "gpu"]) -> ReportSide:
    identity, ns = side.identity, side.latencies_ns
    reading = next((r for point in bench.points[-1:] for r in point.sides if r.role == side.role), None)
    base = verdict(ns if reading is None else _alike(reading), device=device)
    x, ms = thin(list(range(len(ns))), [value / 1e6 for value in ns])
    ecdf_ms, ecdf_share = ecdf([value / 1e6 for value in ns])
    quality = _quality(bench) if side.role == "bundle" else ()
    why = "it is the baseline" if side.role == "baseline" else "no baseline ran beside it, and bench has no labels"
    return ReportSide(
        role=side.role,
        identity=SideIdentity(
            name=identity.name,
            model=identity.model,
            weights=identity.weights,
            compression=identity.compression,
            precision=identity.precision,
            opset=identity.opset,
            backend=bench.protocol.backend,
            graphs=identity.sha256,
            engines={},
            plugins=identity.operators.native_library,
            operator_paths=identity.operators.paths,
            precision_achieved=None,
            reasons={
                "precision_achieved": f"{NOT_HERE}: only an engine reports it",
                **({"plugins": identity.operators.native_reason} if identity.operators.native_reason else {}),
            },
        ),
        accounting=None,
        latency=_latency(side, bench),
        split=_split(ns, device),
        compression=_compression(identity, bench),
        quality=quality,
        quality_reason=None if quality else why,
        resources=SideResources(
            device_memory_bytes=None,
            peak_rss_bytes=None,
            model_bytes=identity.graph_bytes,
            power=None,
            reasons={
                "device_memory_bytes": f"{NOT_HERE}: the run was on a CPU"
                if device == "cpu"
                else f"{NOT_HERE}: bench does not ask the device",
                "peak_rss_bytes": f"{NOT_HERE}: both sides share one process"
                if len(bench.sides) > 1
                else f"{NOT_HERE}: bench does not record it",
                "power": f"{NOT_HERE}: bench has no power reader",
            },
        ),
        verdict=SideVerdict(
            status=base.status,
            reasons=(f"inference: {base.reason}",),
            cv=base.cv,
            cv_bound=base.cv_bound,
            window_tolerance=base.window_tolerance,
        ),
        plots=Plots(x="run", latency_x=x, latency_ms=ms, ecdf_ms=ecdf_ms, ecdf_share=ecdf_share),
    )


def _latency(side: _Side, bench: _Bench) -> Latency:
    ns = side.latencies_ns
    alone, total_ns = len(bench.sides) == 1, sum(side.latencies_ns)
    gaps = "the runs of the other side lie between the results" if not alone else "bench records no time of results"
    return Latency(
        inference=Distribution.from_summary(summarize(ns)),
        end_to_end=None,
        throughput_per_s=len(ns) / (total_ns / 1e9) if alone and total_ns else None,
        inter_result_std_ns=None,
        inter_result_max_minus_median_ns=None,
        max_minus_median_ns=float(max(ns) - np.median(ns)),
        deadline_missed=None,
        first_inference_ns=side.first_inference_ns,
        after_idle=None,
        reasons={
            "end_to_end": "no frames arrive in a closed loop; a run begins when it is asked for",
            "inter_result_std_ns": gaps,
            "inter_result_max_minus_median_ns": gaps,
            "deadline_missed": "there was no deadline",
            "after_idle": "a closed loop never pauses; only a stream meets this latency",
            **({} if alone else {"throughput_per_s": "two sides took turns, so neither had the wall time to itself"}),
        },
    )


def _split(ns: tuple[int, ...], device: Literal["cpu", "gpu"]) -> tuple[SidePart, ...]:
    not_here = f"{NOT_HERE}: the run was on a CPU"
    if device == "gpu":
        not_here = f"{NOT_HERE}: the session times one inference whole, which holds it"
    no_stream = f"{NOT_HERE}: bench feeds arrays that are ready"
    parts = [SidePart(name="compute", stage="session", kind="work", latency=Distribution.from_summary(summarize(ns)))]
    parts += [
        SidePart(name=DEVICE_PARTS[key], stage=key, kind="work", latency=None, reason=not_here) for key in DEVICE_PARTS
    ]
    parts += [
        SidePart(name=name, stage=stage, kind=kind, latency=None, reason=no_stream)
        for name, stage, kind in (
            ("capture and decode", "decode", "work"),
            ("preprocess", "preprocess", "work"),
            ("postprocess", "postprocess", "work"),
            ("queue wait: session", "wait.session", "wait"),
        )
    ]
    return tuple(parts)


def _compression(identity: _Identity, bench: _Bench) -> SideCompression:
    bytes_of = {reading.role: reading.state_bytes for point in bench.points[-1:] for reading in point.sides}
    after, before = bytes_of.get("bundle"), bytes_of.get("baseline")
    ran = [name for name in identity.graphs if len(identity.sha256) > 1]
    sites = tuple(site for site in identity.sites if not ran or site.site.rpartition("/")[0] in ran)
    flops = identity.flops.total if identity.flops else None
    tokens = tokens_of_sample(sites)
    no_cache = f"{NOT_HERE}: the result does not record a key-value cache"
    reasons = {
        **({} if before is not None else {"kv_bytes_before": f"{NOT_HERE}: no baseline" if bytes_of else no_cache}),
        **({} if after is not None else {"kv_bytes_after": no_cache}),
        "selector_ns": f"{NOT_HERE}: it takes a profiler, and none is attached to a timed run",
    }
    if tokens is None:
        reasons |= dict.fromkeys(("tokens_in", "tokens_out"), why_no_tokens(sites))
    for name, value in (("flops", flops), ("baseline_flops", identity.baseline_flops)):
        if value is None:
            reasons[name] = "the bundle does not say"
    return SideCompression(
        sites=sites,
        levels=(),
        tokens_in=None if tokens is None else float(tokens[0]),
        tokens_out=None if tokens is None else float(tokens[1]),
        kv_bytes_before=before,
        kv_bytes_after=after,
        flops=flops,
        baseline_flops=identity.baseline_flops,
        selector_ns=None,
        switches=0,
        reasons=reasons,
    )


def _quality(bench: _Bench) -> tuple[QualityMetric, ...]:
    against = f"baseline, on {'the given arrays' if bench.protocol.inputs == 'file' else 'random inputs'}"
    return tuple(
        QualityMetric(name=f"{output} {name}", value=float(value), n=int(metrics.get("n", 0)), against=against)
        for output, metrics in (bench.quality or {}).items()
        for name, value in metrics.items()
        if name != "n"
    )
