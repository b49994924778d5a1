"""The tables of a stream that has just run."""

from typing import Any

from trt_compress.runtime.measure.latency import WINDOW_SAMPLES, WINDOWS, summarize, verdict
from trt_compress.runtime.measure.power.session import PowerResult, RailPower
from trt_compress.runtime.measure.power.stream import power_of
from trt_compress.runtime.stream.result import Identity, Resources, StreamResult
from trt_compress.tools.console import print_pairs, print_table, print_text
from trt_compress.tools.report.found import found_section
from trt_compress.tools.report.numbers import number
from trt_compress.tools.report.tables import print_wrapped


def print_stream(result: "StreamResult") -> None:
    """Print what a stream was and how it went."""
    found = found_section(result.findings)
    if found is not None:
        print_pairs(found.title, [(str(row[0]), row[1]) for row in found.rows])
    counts, protocol, frames = result.counts, result.protocol, result.frames
    times = frames.end_to_end_ns()
    rate = result.throughput_per_s or 0.0
    missed = None if counts.deadline_missed is None else f"{counts.deadline_missed} of {counts.delivered} delivered"
    kind = protocol.kind if protocol.fps is None else f"{protocol.kind}, {protocol.fps:g} fps"
    realtime = ", real-time threads" if protocol.scheduling == "realtime" else ""
    pairs: list[tuple[str, object]] = [
        ("bundle", result.identity.bundle),
        ("native operators", _native(result.identity)),
        ("protocol", f"{kind}, policy {protocol.policy}, warm-up {protocol.warmup}{realtime}"),
        ("frames in", counts.frames_in),
        ("delivered", f"{counts.delivered}, {rate:.1f} a second"),
        ("dropped", counts.dropped),
        ("failed", counts.failed),
        *((f"  {number}", reason) for reason, number in counts.reasons.items()),
        ("deadline missed", missed),
        ("first inference", _milliseconds(result.first_inference_ns)),
        ("ended", result.ended),
        *((name, f"{metric.value:.4f}, n={metric.n}") for name, metric in result.quality.items()),
        *_power(result.resources),
    ]
    print_pairs("Stream", [(name, value) for name, value in pairs if value is not None])
    columns: dict[str, Any] = {"end to end": times}
    columns |= {name: [ns for ns in column if ns is not None] for name, column in frames.stage_ns.items()}
    columns |= {
        f"wait: {name}": [ns for ns in column if ns is not None] for name, column in frames.queue_wait_ns.items()
    }
    rows = []
    for name, values in columns.items():
        if values:
            summary = summarize(values)
            shown = (summary.median_ns, summary.p90_ns, summary.p95_ns, summary.p99_ns, summary.max_ns)
            rows.append((name, summary.n, *(None if ns is None else f"{ns / 1e6:.3f}" for ns in shown)))
    if rows:
        print_table("Latency in ms", ("", "n", "p50", "p90", "p95", "p99", "max"), rows)
    if result.controller is not None:
        used = {level.name: frames.level.count(level.name) for level in result.identity.levels}
        listed = ", ".join(f"{name} {number}" for name, number in used.items())
        print_text(f"Keep levels, frames of each: {listed}; {len(result.controller.switches)} switches.")
    if times:
        if len(times) < WINDOWS * WINDOW_SAMPLES:
            print_text(f"Too few frames to judge the timing: {len(times)}, and it takes {WINDOWS * WINDOW_SAMPLES}.")
            return
        judged = verdict(times, device="cpu" if result.identity.backend.endswith("cpu") else "gpu")
        print_wrapped(f"{judged.status.capitalize()}: {judged.reason}.")


def _native(identity: Identity) -> str | None:
    """Whether they ran, and else why not; a result of an earlier version does not say."""
    if identity.native_library is not None:
        return "taken"
    return None if identity.native_reason is None else f"none: {identity.native_reason.rstrip('.')}"


def _milliseconds(ns: int | None) -> str | None:
    return None if ns is None else f"{ns / 1e6:.2f} ms"


def _power(resources: Resources) -> list[tuple[str, str]]:
    """Mean power and energy of a frame; what is not known says why, and is never 0."""
    power = power_of(resources)
    if power is None:
        why = resources.power_reason
        return [] if why is None else [("power", f"not measured here: {why[:1].lower()}{why[1:]}")]
    missing = power.reasons.get("energy_j") or power.reasons.get("total") or "not known"
    rails = _rails(power)
    if power.mean_mw is None:
        return [("power", f"not stated: {power.reasons.get('total') or missing}"), *rails]
    idle = f", idle {number(power.idle_mw / 1000)} W" if power.idle_mw is not None else ""
    shown = f"{number(power.mean_mw / 1000)} W{idle}; {power.num_samples} samples of {power.reader}"
    energy = power.energy_per_inference_j
    rows = [("power", shown), ("power covers", power.total_covers or "not known"), *rails]
    if power.faults:
        rows.append(("unread samples", str(power.faults)))
    if energy is None:
        return [*rows, ("energy per frame", f"not stated: {missing}")]
    net = power.net_energy_per_inference_j
    net_text = f", {number(net)} J net of idle" if net is not None else ""
    return [*rows, ("energy per frame", f"{number(energy)} J{net_text}")]


def _rails(power: PowerResult) -> list[tuple[str, str]]:
    """Every rail by itself where there are several, those that no total holds with a word about it."""
    known = [rail for rail in power.rails if rail.mean_mw is not None]
    if len(known) < 2 and all(rail.in_total for rail in known):
        return []

    def shown(rail: RailPower) -> str:
        note = "" if rail.in_total else " (part)" if rail.known else " (unknown, in no total)"
        return f"{rail.name} {number((rail.mean_mw or 0.0) / 1000)} W{note}"

    rows = [("rails", ", ".join(shown(rail) for rail in known))]
    if power.total_covers is None:
        sum_w = sum(rail.mean_mw or 0.0 for rail in known) / 1000
        rows.append(("sum of rails", f"{number(sum_w)} W; no total, for rails may be parts of others"))
    return rows
