"""The report of a stream."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from trt_compress.errors import ConfigError
from trt_compress.runtime.measure.latency import WINDOW_TOLERANCE, verdict, window_spread
from trt_compress.runtime.measure.power.stream import power_of
from trt_compress.runtime.stream.result import StreamResult
from trt_compress.runtime.tokens import token_flows, tokens_of_sample, why_no_tokens
from trt_compress.tools.describe import sites_text
from trt_compress.tools.report.numbers import number
from trt_compress.tools.report.record import (
    NOT_HERE,
    Accounting,
    Distribution,
    Latency,
    Machine,
    Plots,
    QualityMetric,
    Report,
    ReportProtocol,
    ReportSide,
    SideCompression,
    SideIdentity,
    SideLevel,
    SidePart,
    SideResources,
    SideVerdict,
    Step,
    Waterfall,
)
from trt_compress.tools.report.series import ecdf, gather, thin

PART_NAMES = {
    "decode": "capture and decode",
    "preprocess": "preprocess",
    "session": "compute",
    "postprocess": "postprocess",
    "sink": "delivery to sinks",
}
"""The stages of a stream, by the names that reports use."""

DEVICE_PARTS = {"enqueue": "enqueue time", "h2d": "host to device", "plugins": "plugin time", "d2h": "device to host"}
"""What only a device can time."""


def report_from_stream(result: StreamResult) -> Report:
    """Make the report of a stream.

    Raises:
        ConfigError: Its power readings are not those of a power session.
    """
    identity, protocol = result.identity, result.protocol
    if not identity.levels:
        raise ConfigError("The result names no keep level, so nothing can be said of what ran; run the stream again.")
    device: Literal["cpu", "gpu"] = "cpu" if identity.backend.endswith("cpu") else "gpu"
    first = identity.levels[0]
    side = ReportSide(
        role="stream",
        identity=SideIdentity(
            name=identity.bundle,
            model=identity.model,
            weights=identity.weights,
            compression=" | ".join(dict.fromkeys(sites_text(level.compression) for level in identity.levels)),
            precision=identity.precision,
            opset=identity.opset,
            backend=identity.backend,
            graphs={f"{level.name}/{file}": h for level in identity.levels for file, h in level.graphs.items()}
            if len(identity.levels) > 1
            else first.graphs,
            engines={file: h for level in identity.levels for file, h in level.engines.items()},
            plugins=identity.native_library,
            operator_paths=None,
            precision_achieved=None,
            reasons={
                **({"plugins": identity.native_reason} if identity.native_reason else {}),
                "operator_paths": "a stream does not inspect its graphs; `trt-compress bench` does",
                "precision_achieved": f"{NOT_HERE}: only an engine reports it"
                if not first.engines
                else "it is in the bundle's manifest, by engine",
            },
        ),
        accounting=Accounting(
            frames_in=result.counts.frames_in,
            delivered=result.counts.delivered,
            dropped=result.counts.dropped,
            failed=result.counts.failed,
            rows=len(result.frames.id),
            causes=result.counts.reasons,
        ),
        latency=_latency(result),
        split=_split(result, device),
        compression=_compression(result),
        quality=tuple(
            QualityMetric(name=name, value=metric.value, n=metric.n, against="labels")
            for name, metric in result.quality.items()
        ),
        quality_reason=None if result.quality else "the source has no labels, and no baseline ran beside it",
        resources=_resources(result, device),
        verdict=_verdict(result, device),
        plots=_plots(result),
    )
    settings = {
        "sources": list(identity.sources),
        "queue depth": protocol.queue_depth,
        "burst": protocol.burst,
        "gap in s": None if protocol.gap_ns is None else protocol.gap_ns / 1e9,
        "scheduling": "real-time threads" if protocol.scheduling == "realtime" else None,
        "resampling": "sound of another rate is made to fit, by soxr" if protocol.resample else None,
        "controller": result.controller.settings if result.controller else None,
        "ended": result.ended,
        "wall time in s": result.wall_ns / 1e9,
    }
    return Report(
        title=identity.bundle,
        source=result.document,
        started_at=result.started_at,
        machine=machine(identity.device, identity.versions),
        protocol=ReportProtocol(
            kind=protocol.kind,
            fps=protocol.fps,
            policy=protocol.policy,
            deadline_ns=_deadline_ns(result),
            deadline_is_period=protocol.deadline_ns is None and protocol.fps is not None,
            warmup=protocol.warmup,
            threads=protocol.threads,
            streams=protocol.streams,
            settings={name: value for name, value in settings.items() if value is not None},
        ),
        sides=(side,),
        speedup=None,
        sound=result.sound,
        findings=result.findings,
    )


def machine(device: dict[str, Any], versions: dict[str, str]) -> Machine:
    """The machine section, of what a result recorded."""
    mode = device.get("power_mode")
    reasons = {} if mode else {"power_mode": f"{NOT_HERE}: this machine has no power modes that it tells of"}
    return Machine(device=device, versions=versions, power_mode=mode, reasons=reasons)


def _deadline_ns(result: StreamResult) -> int | None:
    """The frame budget: what was set, else 1/fps."""
    protocol = result.protocol
    if protocol.deadline_ns is not None or not protocol.fps:
        return protocol.deadline_ns
    return round(1e9 / protocol.fps)


def _missed(result: StreamResult) -> tuple[int | None, str]:
    """Delivered frames over the budget; None comes with the reason."""
    budget = _deadline_ns(result)
    if budget is None:
        return None, "there was no deadline, and no frame rate to take one from"
    if result.counts.deadline_missed is not None:
        return result.counts.deadline_missed, ""
    end_to_end = result.frames.end_to_end_ns()
    if len(end_to_end) < result.counts.delivered:
        return None, "no deadline was set, and the result did not keep every frame to count those over 1/fps"
    return sum(ns > budget for ns in end_to_end), ""


def _delivered(result: StreamResult) -> list[int]:
    return [row for row, outcome in enumerate(result.frames.outcome) if outcome == "delivered"]


def _present(column: Sequence[int | None], rows: Sequence[int]) -> list[int]:
    return [value for row in rows if (value := column[row]) is not None]


def _latency(result: StreamResult) -> Latency:
    rows = _delivered(result)
    stages = result.frames.stage_ns
    inference = _present(stages["session"], rows) if "session" in stages else []
    end_to_end = result.frames.end_to_end_ns()
    gaps = np.diff(np.sort([result.frames.end_ns[row] for row in rows])).astype(np.float64)
    missed, why_not = _missed(result)
    reasons = {}
    for name, missing, why in (
        ("inference", not inference, "no frame was delivered" if not rows else "the result does not time the session"),
        ("end_to_end", not end_to_end, "no frame was delivered"),
        ("max_minus_median_ns", not end_to_end, "no frame was delivered"),
        ("throughput_per_s", result.throughput_per_s is None, "the stream took no time"),
        ("inter_result_std_ns", len(gaps) < 2, f"n too small: {len(gaps)} of 2 times between results"),
        ("inter_result_max_minus_median_ns", len(gaps) < 1, f"n too small: {len(gaps)} of 1 times between results"),
        ("deadline_missed", missed is None, why_not),
        ("first_inference_ns", result.first_inference_ns is None, "the first inference was not timed"),
        ("after_idle", not result.after_idle_ns, "no frame came after a pause"),
    ):
        if missing:
            reasons[name] = why
    return Latency(
        inference=Distribution.of(inference),
        end_to_end=Distribution.of(end_to_end),
        throughput_per_s=result.throughput_per_s,
        inter_result_std_ns=float(gaps.std(ddof=1)) if len(gaps) > 1 else None,
        inter_result_max_minus_median_ns=float(gaps.max() - np.median(gaps)) if len(gaps) else None,
        max_minus_median_ns=float(max(end_to_end) - np.median(end_to_end)) if end_to_end else None,
        deadline_missed=missed,
        first_inference_ns=result.first_inference_ns,
        after_idle=Distribution.of(result.after_idle_ns),
        reasons=reasons,
    )


def _split(result: StreamResult, device: Literal["cpu", "gpu"]) -> tuple[SidePart, ...]:
    rows, frames = _delivered(result), result.frames
    why = f"{NOT_HERE}: the run was on a CPU"
    if device == "gpu":
        why = f"{NOT_HERE}: the session times one inference whole, which holds it"
    parts = []
    waits = dict(frames.queue_wait_ns)
    if "source" in waits:
        parts.append(_part("queue wait: source", "wait.source", _present(waits.pop("source"), rows)))
    for stage in result.protocol.order:
        if stage in waits:
            parts.append(_part(f"queue wait: {stage}", f"wait.{stage}", _present(waits.pop(stage), rows)))
        if stage == "session":
            for key in ("enqueue", "h2d"):
                parts.append(SidePart(name=DEVICE_PARTS[key], stage=key, kind="work", latency=None, reason=why))
        timed = _present(frames.stage_ns[stage], rows) if stage in frames.stage_ns else []
        parts.append(_part(PART_NAMES.get(stage, stage), stage, timed))
        if stage == "session":
            for key in ("plugins", "d2h"):
                parts.append(SidePart(name=DEVICE_PARTS[key], stage=key, kind="work", latency=None, reason=why))
    return tuple(parts)


def _part(name: str, stage: str, ns: list[int]) -> SidePart:
    kind = "wait" if stage.startswith("wait.") else "work"
    reason = None if ns else "no delivered frame came here"
    return SidePart(name=name, stage=stage, kind=kind, latency=Distribution.of(ns), reason=reason)


def _compression(result: StreamResult) -> SideCompression:
    rows, frames, levels = _delivered(result), result.frames, result.identity.levels
    used = Counter(frames.level[row] for row in rows)
    tokens = _tokens(result)
    tokens_in, tokens_out = ([pair[end] for row in rows if (pair := tokens[row])] for end in (0, 1))
    first = levels[0]
    reasons = {
        "kv_bytes_before": f"{NOT_HERE}: the result does not record a key-value cache",
        "kv_bytes_after": f"{NOT_HERE}: the result does not record a key-value cache",
        "selector_ns": f"{NOT_HERE}: it takes a profiler, and none is attached to a timed run",
    }
    for name, missing in (("tokens_in", not tokens_in), ("tokens_out", not tokens_out)):
        if missing:
            reasons[name] = "no frame was delivered" if not rows else why_no_tokens(first.compression)
    for name in ("flops", "baseline_flops"):
        if getattr(first, name) is None:
            reasons[name] = "the bundle does not say"
    return SideCompression(
        sites=first.compression,
        levels=tuple(
            SideLevel(
                name=level.name,
                frames=used.get(level.name, 0),
                flops=level.flops,
                compression=sites_text(level.compression),
            )
            for level in levels
        ),
        tokens_in=float(np.median(tokens_in)) if tokens_in else None,
        tokens_out=float(np.median(tokens_out)) if tokens_out else None,
        kv_bytes_before=None,
        kv_bytes_after=None,
        flops=first.flops,
        baseline_flops=first.baseline_flops,
        selector_ns=None,
        switches=len(result.controller.switches) if result.controller else 0,
        reasons=reasons,
    )


def _tokens(result: StreamResult) -> list[tuple[int, int] | None]:
    """Tokens of each frame, before and after.

    Earlier versions recorded the first site's input and the last one's output, whatever lies between: where the sites
    of a level do not follow each other, what they say together counts.
    """
    frames = result.frames
    recorded = [
        None if a is None or b is None else (a, b) for a, b in zip(frames.tokens_in, frames.tokens_out, strict=True)
    ]
    flows = {level.name: token_flows(level.compression) for level in result.identity.levels}
    apart = {
        level.name: tokens_of_sample(level.compression)
        for level in result.identity.levels
        if len(flows[level.name]) > 1 or any(not flow.chain for flow in flows[level.name])
    }
    return [apart.get(level or "", pair) for level, pair in zip(frames.level, recorded, strict=True)]


def _resources(result: StreamResult, device: Literal["cpu", "gpu"]) -> SideResources:
    given = result.resources
    power = power_of(given)
    reasons = {}
    for name, value, why in (
        (
            "device_memory_bytes",
            given.device_memory_bytes,
            f"{NOT_HERE}: the run was on a CPU" if device == "cpu" else f"{NOT_HERE}: the device was not asked",
        ),
        ("peak_rss_bytes", given.peak_rss_bytes, NOT_HERE),
        ("model_bytes", given.engine_bytes, "no engine ran" if not result.identity.levels[0].engines else NOT_HERE),
        ("power", power, f"{NOT_HERE}: {_lower_first(given.power_reason or 'the run had no power reader')}"),
    ):
        if value is None:
            reasons[name] = why
    return SideResources(
        device_memory_bytes=given.device_memory_bytes,
        peak_rss_bytes=given.peak_rss_bytes,
        model_bytes=given.engine_bytes,
        power=power,
        reasons=reasons,
    )


def _lower_first(words: str) -> str:
    return words[:1].lower() + words[1:]


def _verdict(result: StreamResult, device: Literal["cpu", "gpu"]) -> SideVerdict:
    rows, frames = _delivered(result), result.frames
    inference = _present(frames.stage_ns["session"], rows) if "session" in frames.stage_ns else []
    end_to_end = frames.end_to_end_ns()
    base = verdict(inference, device=device)
    invalid = []
    if result.ended == "error":
        invalid.append(f"the stream ended on an error: {result.error}")
    if end_to_end and min(end_to_end) < 0:
        invalid.append("a result came before its frame; check the clock")
    if base.status == "invalid":
        invalid.append(base.reason)
    unstable = [f"inference: {base.reason}"] if base.status == "unstable" else []
    spread = window_spread(end_to_end)
    if spread is not None and spread > WINDOW_TOLERANCE:
        unstable.append(
            f"end-to-end: median latency differs by {spread:.1%} between windows, more than {WINDOW_TOLERANCE:.0%}"
        )
    if unstable and result.controller and result.controller.switches:
        unstable.append(f"the controller changed the keep level {len(result.controller.switches)} times")
    status = "invalid" if invalid else "unstable" if unstable else "stable"
    return SideVerdict(
        status=status,
        reasons=tuple(invalid + unstable) or (f"inference: {base.reason}",),
        cv=base.cv,
        cv_bound=base.cv_bound,
        window_tolerance=base.window_tolerance,
    )


def _plots(result: StreamResult) -> Plots:
    frames, rows = result.frames, _delivered(result)
    seconds = [frames.arrival_ns[row] / 1e9 for row in rows]
    end_to_end_ms = [(frames.end_ns[row] - frames.arrival_ns[row]) / 1e6 for row in rows]
    latency_x, latency_ms = thin(seconds, end_to_end_ms)
    tokens = _tokens(result)
    with_tokens = [(frames.arrival_ns[row] / 1e9, pair[1]) for row in rows if (pair := tokens[row])]
    tokens_x, tokens_out = thin([x for x, _ in with_tokens], [count for _, count in with_tokens])
    lost = [row for row, outcome in enumerate(frames.outcome) if outcome != "delivered"]
    lost_x, lost_count, lost_outcome = gather(
        [frames.arrival_ns[row] / 1e9 for row in lost], [frames.outcome[row] for row in lost], result.wall_ns / 1e9
    )
    ecdf_ms, ecdf_share = ecdf(end_to_end_ms) if rows else ((), ())
    return Plots(
        x="time in s",
        latency_x=latency_x,
        latency_ms=latency_ms,
        ecdf_ms=ecdf_ms,
        ecdf_share=ecdf_share,
        tokens_x=tokens_x,
        tokens_out=tokens_out,
        lost_x=lost_x,
        lost_count=lost_count,
        lost_outcome=lost_outcome,
        waterfalls=_waterfalls(result, rows, end_to_end_ms),
    )


def _waterfalls(result: StreamResult, rows: Sequence[int], end_to_end_ms: Sequence[float]) -> tuple[Waterfall, ...]:
    """The delivered frame whose end-to-end time is nearest to the median, and the slowest one."""
    if not rows:
        return ()
    order = sorted(range(len(rows)), key=lambda index: end_to_end_ms[index])
    median = float(np.median(end_to_end_ms))
    typical = min(order, key=lambda index: abs(end_to_end_ms[index] - median))
    of = "is the median" if end_to_end_ms[typical] == median else f"is nearest to the median of {number(median)} ms"
    title = f"A typical frame: its end-to-end time {of}" if len(order) > 1 else "The only frame"
    chosen = {title: typical}
    if len(order) > 1:
        chosen["The slowest frame"] = order[-1]
    return tuple(
        Waterfall(title=title, frame=result.frames.id[rows[index]], steps=frame_steps(result, rows[index]))
        for title, index in chosen.items()
    )


def frame_steps(result: StreamResult, row: int) -> tuple[Step, ...]:
    """The parts of one frame's way from its arrival on, in order; what did not happen is absent."""
    frames = result.frames
    steps = []
    at = 0
    parts = [("queue wait: source", "wait", frames.queue_wait_ns.get("source"))]
    for stage in result.protocol.order:
        if stage in frames.queue_wait_ns and stage != "source":
            parts.append((f"queue wait: {stage}", "wait", frames.queue_wait_ns[stage]))
        parts.append((PART_NAMES.get(stage, stage), "work", frames.stage_ns.get(stage)))
    for name, kind, column in parts:
        ns = column[row] if column is not None else None
        if ns is not None:
            steps.append(Step(name=name, kind=kind, start_ms=at / 1e6, ms=ns / 1e6))
            at += ns
    return tuple(steps)
