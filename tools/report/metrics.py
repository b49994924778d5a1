"""The numbers of a report by name, as `compare` and its budgets call them."""

import re
from dataclasses import dataclass
from typing import Literal

from trt_compress.tools.report.record import Distribution, Report, ReportSide, SidePart

Better = Literal["lower", "higher", "neither"]

STATISTICS = {
    "min": "min_ns",
    "mean": "mean_ns",
    "p50": "median_ns",
    "p90": "p90_ns",
    "p95": "p95_ns",
    "p99": "p99_ns",
    "p99_9": "p99_9_ns",
    "max": "max_ns",
    "std": "std_ns",
}


_OF_LABELS = ("accuracy", "map", "translation_error_m")  # of a stream with labels
_OF_OUTPUTS = re.compile(r"\w+_(max_abs|cosine|top1_agreement)")  # of a bench beside a baseline
_OF_PARTS = re.compile(rf"\w+_(({'|'.join(STATISTICS)})_ms|n|cv)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One number; None comes with the reason why it is not there."""

    name: str
    value: float | None
    reason: str | None
    unit: str
    better: Better
    of: str = ""
    n: int | None = None


def metrics_of(report: Report, side: ReportSide) -> dict[str, Metric]:
    """All numbers of one side, by name.

    `p99_ms` and the like are of the end-to-end time where frames arrived, else of one inference (`of` says which);
    `end_to_end_p99_ms` and `inference_p99_ms` are what they say.
    """
    latency = side.latency
    found: list[Metric] = []
    kind, headline = latency.headline
    found += _statistics("", headline, latency.reasons.get("end_to_end"), of=kind)
    found += _statistics("end_to_end_", latency.end_to_end, latency.reasons.get("end_to_end"))
    found += _statistics("inference_", latency.inference, latency.reasons.get("inference"))
    found += _statistics("after_idle_", latency.after_idle, latency.reasons.get("after_idle"))
    for part in side.split:
        found += _statistics(f"{_slug(part)}_", part.latency, part.reason)
    found += _single(report, side)
    for quality in side.quality:
        better: Better = "lower" if "max_abs" in quality.name or "error" in quality.name else "higher"
        name = re.sub(r"\W+", "_", quality.name).strip("_").lower()
        found.append(Metric(name=name, value=quality.value, reason=None, unit="", better=better))
    by_name: dict[str, Metric] = {}
    for metric in found:
        by_name.setdefault(metric.name, metric)
    return by_name


def absent_metric(name: str, side: ReportSide) -> Metric | None:
    """A number that other reports have and this one has not, with the reason; None: no report has it."""
    if name in _OF_LABELS or _OF_OUTPUTS.fullmatch(name):
        reason = side.quality_reason or "the run compared other outputs"
    elif _OF_PARTS.fullmatch(name):
        reason = "the run has no such part"
    else:
        return None
    return Metric(name=name, value=None, reason=reason, unit="", better="neither")


def _slug(part: SidePart) -> str:
    return part.stage.replace(".", "_")


def _statistics(prefix: str, part: Distribution | None, why: str | None, *, of: str = "") -> list[Metric]:
    found = []
    for short, field in STATISTICS.items():
        ns = getattr(part, field) if part is not None else None
        reason = (part.reasons.get(field) if part is not None else why) or "not known"
        found.append(
            Metric(
                name=f"{prefix}{short}_ms",
                value=None if ns is None else ns / 1e6,
                reason=reason if ns is None else None,
                unit="ms",
                better="lower",
                of=of,
                n=part.n if part is not None else None,
            )
        )
    count = None if part is None else float(part.n)
    found.append(
        Metric(name=f"{prefix}n", value=count, reason=why or "not known", unit="results", better="neither", of=of)
    )
    cv = part.cv if part is not None else None
    no_cv = None if cv is not None else (part.reasons.get("cv") if part is not None else why) or "not known"
    found.append(Metric(name=f"{prefix}cv", value=cv, reason=no_cv, unit="", better="lower", of=of))
    return found


def _single(report: Report, side: ReportSide) -> list[Metric]:
    latency, part, frames, compression = side.latency, side.resources, side.accounting, side.compression
    power, ratio = part.power, report.speedup if side.role == "bundle" else None
    no_frames = "the run had no frames"
    no_power = (power.reasons.get("energy_j") or power.reasons.get("total")) if power else part.reasons.get("power")
    no_net = no_power or (power.reasons.get("idle_mw") if power else None)
    no_pairs = "no baseline ran interleaved with it" if ratio is None else ratio.reason
    missed = latency.deadline_missed
    delivered = frames.delivered if frames else 0
    rows: list[tuple[str, float | None, str | None, str, Better]] = [
        ("fps", latency.throughput_per_s, latency.reasons.get("throughput_per_s"), "per s", "higher"),
        ("speedup", ratio.median if ratio else None, no_pairs, "×", "higher"),
        ("speedup_low", ratio.low if ratio else None, no_pairs, "×", "higher"),
        ("missed", missed, latency.reasons.get("deadline_missed"), "frames", "lower"),
        (
            "missed_percent",
            None if missed is None or not delivered else missed / delivered * 100,
            latency.reasons.get("deadline_missed") or "no frame was delivered",
            "%",
            "lower",
        ),
        ("dropped", frames.dropped if frames else None, no_frames, "frames", "lower"),
        (
            "dropped_percent",
            frames.dropped / frames.frames_in * 100 if frames and frames.frames_in else None,
            no_frames,
            "%",
            "lower",
        ),
        ("failed", frames.failed if frames else None, no_frames, "frames", "lower"),
        ("jitter_ms", _ms(latency.inter_result_std_ns), latency.reasons.get("inter_result_std_ns"), "ms", "lower"),
        (
            "first_inference_ms",
            _ms(latency.first_inference_ns),
            latency.reasons.get("first_inference_ns"),
            "ms",
            "lower",
        ),
        ("tokens_in", compression.tokens_in, compression.reasons.get("tokens_in"), "tokens", "neither"),
        ("tokens_out", compression.tokens_out, compression.reasons.get("tokens_out"), "tokens", "neither"),
        ("flops", compression.flops, compression.reasons.get("flops"), "FLOPs", "lower"),
        ("kv_bytes", compression.kv_bytes_after, compression.reasons.get("kv_bytes_after"), "bytes", "lower"),
        ("peak_rss_mib", _mib(part.peak_rss_bytes), part.reasons.get("peak_rss_bytes"), "MiB", "lower"),
        ("device_memory_mib", _mib(part.device_memory_bytes), part.reasons.get("device_memory_bytes"), "MiB", "lower"),
        ("model_mib", _mib(part.model_bytes), part.reasons.get("model_bytes"), "MiB", "lower"),
        ("power_w", power.mean_mw / 1000 if power and power.mean_mw is not None else None, no_power, "W", "lower"),
        ("energy_per_inference_j", power.energy_per_inference_j if power else None, no_power, "J", "lower"),
        ("net_energy_per_inference_j", power.net_energy_per_inference_j if power else None, no_net, "J", "lower"),
    ]
    return [
        Metric(
            name=name,
            value=None if value is None else float(value),
            reason=(why or "not known") if value is None else None,
            unit=unit,
            better=better,
        )
        for name, value, why, unit, better in rows
    ]


def _ms(ns: float | None) -> float | None:
    return None if ns is None else ns / 1e6


def _mib(count: int | None) -> float | None:
    return None if count is None else count / 2**20
