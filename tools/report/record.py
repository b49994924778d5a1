"""What a report says.

A number that was not measured, or that its samples do not support, is null, and `reasons` of the same section says why
under the name of the field; null is never 0. Words and rules are those of `runtime/measure/latency.py`. A newer minor
version is read and what it added is kept; a newer major version is refused.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from trt_compress.errors import BundleError, ConfigError
from trt_compress.format.manifest import Compression
from trt_compress.format.record import VERSION, Record, one_of
from trt_compress.runtime.measure.latency import LatencySummary, Speedup, summarize
from trt_compress.runtime.measure.power.session import PowerResult
from trt_compress.runtime.stream.findings import Features as Features
from trt_compress.runtime.stream.findings import Findings
from trt_compress.runtime.stream.sound_result import Sound
from trt_compress.runtime.stream.sound_result import Track as Track
from trt_compress.runtime.stream.sound_result import Word as Word
from trt_compress.version import __version__

SCHEMA_VERSION = "1.0"
DOCUMENT = "trt-compress report"

NOT_HERE = "not measured here"

Reasons = dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution(Record):
    """Latencies summarized; a percentile that n does not support is None, and `reasons` says so."""

    n: int
    min_ns: float
    mean_ns: float
    median_ns: float
    p90_ns: float | None
    p95_ns: float | None
    p99_ns: float | None
    p99_9_ns: float | None
    max_ns: float
    std_ns: float
    cv: float | None
    reasons: Reasons

    @classmethod
    def of(cls, ns: "list[int] | tuple[int, ...]") -> "Distribution | None":
        """Summarize latencies; None if there are none."""
        return cls.from_summary(summarize(ns)) if ns else None

    @classmethod
    def from_summary(cls, summary: LatencySummary) -> "Distribution":
        """Take over a summary."""
        values, reasons = summary.to_json(), dict(summary.reasons)
        if not summary.mean_ns:
            values["cv"], reasons["cv"] = None, "the mean is 0"
        return cls(**{**values, "reasons": reasons})


@dataclass(frozen=True, slots=True, kw_only=True)
class SideIdentity(Record):
    """What was measured.

    Attributes:
        graphs: ONNX file → sha256.
        engines: Engine file → sha256; empty if the backend ran the ONNX files.
        plugins: Hash of the native or plugin library whose operators ran, or None.
        operator_paths: Form ("native", "function", "plugin") → nodes that ran so; None if unknown.
        precision_achieved: Layers by precision, of an engine.
    """

    name: str
    model: str
    weights: str
    compression: str
    precision: str
    opset: int
    backend: str
    graphs: dict[str, str]
    engines: dict[str, str]
    plugins: str | None
    operator_paths: dict[str, int] | None
    precision_achieved: dict[str, int] | None
    reasons: Reasons


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine(Record):
    """Where it was measured."""

    device: dict[str, Any]
    versions: dict[str, str]
    power_mode: str | None
    reasons: Reasons


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportProtocol(Record):
    """How it was measured; what does not apply is None.

    Attributes:
        kind: "closed loop", "closed loop, interleaved ABAB", "fixed rate", "bursts" or "live".
        deadline_ns: Frame budget: what was set, else the time between two frames of a fixed rate.
        deadline_is_period: Whether it is that time, because none was set.
        warmup: Runs before the measured ones, which no number includes.
        settings: The rest, by name, for the reader.
    """

    kind: str
    fps: float | None
    policy: str | None
    deadline_ns: int | None
    deadline_is_period: bool
    warmup: int
    threads: int | None
    streams: int
    settings: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Accounting(Record):
    """What became of the frames: `frames_in = delivered + dropped + failed`.

    Attributes:
        rows: Frames that the distributions of the report were computed from; fewer than `frames_in` if a long stream
            kept only its last rows.
        causes: Why frames were dropped or failed → how many.
    """

    frames_in: int
    delivered: int
    dropped: int
    failed: int
    rows: int
    causes: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency(Record):
    """Section latency.

    Attributes:
        inference: Host-to-device + compute + device-to-host of one inference.
        end_to_end: From a frame's arrival to its result's delivery, queueing included.
        throughput_per_s: Completed / wall time; a batch, or a query of several cameras, counts once.
        inter_result_std_ns: Standard deviation of the times between results.
        inter_result_max_minus_median_ns: Largest of the times between results, less their median.
        max_minus_median_ns: Largest end-to-end time (of a benchmark: inference) less the median.
        deadline_missed: Delivered frames whose end-to-end time was above the deadline.
        first_inference_ns: The very first one, before warm-up.
        after_idle: End-to-end times of the frames that came first after a pause.
    """

    inference: Distribution | None
    end_to_end: Distribution | None
    throughput_per_s: float | None
    inter_result_std_ns: float | None
    inter_result_max_minus_median_ns: float | None
    max_minus_median_ns: float | None
    deadline_missed: int | None
    first_inference_ns: int | None
    after_idle: Distribution | None
    reasons: Reasons

    @property
    def headline(self) -> tuple[str, Distribution | None]:
        """The latency that a reader asks for first: end-to-end if frames arrived, else that of one inference."""
        return ("end-to-end", self.end_to_end) if self.end_to_end else ("inference", self.inference)


@dataclass(frozen=True, slots=True, kw_only=True)
class SidePart(Record):
    """One part of the way of a frame; `latency` is None where it was not measured, and `reason` says why.

    Attributes:
        name: As the reports call it: "capture and decode", "preprocess", "compute", "queue wait: session", …
        stage: As the result calls it: "decode", "session", "wait.session", …
        kind: "work" or "wait".
    """

    name: str
    stage: str
    kind: str = field(metadata=one_of("work", "wait"))
    latency: Distribution | None
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SideLevel(Record):
    """One keep level and the delivered frames that it ran."""

    name: str
    frames: int
    flops: float | None
    compression: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SideCompression(Record):
    """Section compression.

    Attributes:
        sites: Tokens in and out of every site, of the first level.
        tokens_in, tokens_out: Median over the delivered frames, or what the manifest says.
        selector_ns: What choosing the tokens cost per inference.
        switches: Changes of the level by the controller.
    """

    sites: tuple[Compression, ...]
    levels: tuple[SideLevel, ...]
    tokens_in: float | None
    tokens_out: float | None
    kv_bytes_before: int | None
    kv_bytes_after: int | None
    flops: float | None
    baseline_flops: float | None
    selector_ns: float | None
    switches: int
    reasons: Reasons


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityMetric(Record):
    """One number about the results themselves, over n of them; `against` says what they were compared with."""

    name: str
    value: float
    n: int
    against: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SideResources(Record):
    """Section resources.

    Attributes:
        device_memory_bytes: As the device reports it; the process's memory does not hold it.
        peak_rss_bytes: Largest resident memory of the process, on the host.
        model_bytes: Size of the ONNX or engine files that ran.
        power: Raw rail samples and what they integrate to.
    """

    device_memory_bytes: int | None
    peak_rss_bytes: int | None
    model_bytes: int | None
    power: PowerResult | None
    reasons: Reasons


@dataclass(frozen=True, slots=True, kw_only=True)
class SideVerdict(Record):
    """Section verdict: "stable", "unstable" or "invalid", with reasons; the bounds are those that were applied."""

    status: str = field(metadata=one_of("stable", "unstable", "invalid"))
    reasons: tuple[str, ...]
    cv: float | None
    cv_bound: float
    window_tolerance: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Step(Record):
    """One bar of a waterfall."""

    name: str
    kind: str = field(metadata=one_of("work", "wait"))
    start_ms: float
    ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Waterfall(Record):
    """The way of one frame that there was."""

    title: str
    frame: int
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plots(Record):
    """What the plots show, thinned out: of many points those that are the largest and smallest of their neighbours.

    Attributes:
        x: What the axis of the series is: "time in s" or "run".
        latency_x, latency_ms: Latency over time.
        ecdf_ms, ecdf_share: Share of all latencies that a latency is not exceeded by.
        tokens_x, tokens_out: Tokens of the frames.
        lost_x, lost_count, lost_outcome: Frames that were dropped or failed, gathered by time.
    """

    x: str
    latency_x: tuple[float, ...] = ()
    latency_ms: tuple[float, ...] = ()
    ecdf_ms: tuple[float, ...] = ()
    ecdf_share: tuple[float, ...] = ()
    tokens_x: tuple[float, ...] = ()
    tokens_out: tuple[float, ...] = ()
    lost_x: tuple[float, ...] = ()
    lost_count: tuple[int, ...] = ()
    lost_outcome: tuple[str, ...] = ()
    waterfalls: tuple[Waterfall, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportSide(Record):
    """Everything about one of the things measured in a run; `role` is "stream", "bundle" or "baseline"."""

    role: str = field(metadata=one_of("stream", "bundle", "baseline"))
    identity: SideIdentity
    accounting: Accounting | None
    latency: Latency
    split: tuple[SidePart, ...]
    compression: SideCompression
    quality: tuple[QualityMetric, ...]
    quality_reason: str | None
    resources: SideResources
    verdict: SideVerdict
    plots: Plots


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio(Record):
    """How many times faster the bundle is than its baseline: median of pairwise ratios, with its 95 % interval."""

    median: float
    low: float | None
    high: float | None
    n: int
    reason: str | None

    @classmethod
    def of(cls, speedup: Speedup) -> "Ratio":
        """Take over a speed-up."""
        return cls(**speedup.to_json())


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadingSide(Record):
    """How one side read tokens at one point: bytes are those of its states there, `verdict` as in `Verdict`."""

    role: str = field(metadata=one_of("bundle", "baseline"))
    latency: Distribution
    tokens_per_s: float
    state_bytes: int
    verdict: str = field(metadata=one_of("stable", "unstable", "invalid"))


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadingPoint(Record):
    """A workload, "prefill" (a prompt of `fill` tokens) or "decode" (a step behind them), and what it took."""

    workload: str = field(metadata=one_of("prefill", "decode"))
    fill: int
    sides: tuple[ReadingSide, ...]
    speedup: Ratio | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Report(Record):
    """One run. With a baseline it has two sides, measured in turns; then `speedup` compares their pairs.

    Attributes:
        source: What it was made from: "trt-compress stream" or "trt-compress bench".
        started_at: Wall-clock time, ISO 8601, or None.
        sound: What a stream heard.
        findings: Classes and boxes of a stream, counted.
        points: Of a bundle that reads tokens all that was timed; the sides are those of the last point.
    """

    schema_version: str = field(default=SCHEMA_VERSION, metadata=VERSION)
    document: str = field(default=DOCUMENT, metadata=one_of(DOCUMENT))
    made_with: str = field(default_factory=lambda: f"trt-compress {__version__}")
    title: str
    source: str
    started_at: str | None
    machine: Machine
    protocol: ReportProtocol
    sides: tuple[ReportSide, ...] = field(metadata={"schema": {"minItems": 1}})
    speedup: Ratio | None
    sound: Sound | None = None
    findings: Findings | None = None
    points: tuple[ReadingPoint, ...] = ()

    def to_text(self) -> str:
        """Write the JSON document."""
        return json.dumps(self.to_json(), allow_nan=False, ensure_ascii=False, indent=1) + "\n"

    @classmethod
    def from_data(cls, data: dict[str, Any], where: str) -> "Report":
        """Read a report from parsed JSON.

        Raises:
            ConfigError: It has a newer schema, or does not fit the schema.
        """
        version = data.get("schema_version")
        if not isinstance(version, str) or not re.fullmatch(r"\d+\.\d+", version):
            raise ConfigError(f"{where} has no 'schema_version' such as \"{SCHEMA_VERSION}\"; make the report again.")
        ours = SCHEMA_VERSION.split(".")[0]
        if version.split(".")[0] != ours:
            raise ConfigError(
                f"{where} has schema version {version}, and this trt-compress reads {ours}.x; install the trt-compress "
                "that wrote it, or make the report again."
            )
        try:
            report = cls.from_json(data, where)
        except BundleError as error:  # a record says so of a bundle's files; this is none
            raise ConfigError(f"{error.message.rstrip('.')}; make the report again.") from None
        if not report.sides:
            raise ConfigError(f"{where} has no side, so it reports nothing; make the report again.")
        return report

    def check(self, where: str) -> None:
        """Check what the types do not say: that columns which belong together are equally long, and counts possible.

        Raises:
            ConfigError: They do not fit; the message names the part.
        """
        if self.sound is not None:
            self.sound.check(where)
        for number, side in enumerate(self.sides):
            at = f"{where}.sides[{number}]"
            for name, part in _distributions(side):
                if part is not None and part.n < 1:
                    raise ConfigError(f"{at}.{name} says n = {part.n}; it must be at least 1. Make the report again.")
            for name, columns in _columns(side):
                lengths = {column: len(values) for column, values in columns.items()}
                if len(set(lengths.values())) > 1:
                    shown = ", ".join(f"{column} {length}" for column, length in lengths.items())
                    raise ConfigError(f"{at}.{name} has columns of unequal length ({shown}); make the report again.")
            for name, value, least in _counts(side):
                if value < least:
                    raise ConfigError(
                        f"{at}.{name} is {value}; it must be at least {least}. Run the measurement again."
                    )


def _distributions(side: ReportSide) -> Iterator[tuple[str, Distribution | None]]:
    latency = side.latency
    yield "latency.inference", latency.inference
    yield "latency.end_to_end", latency.end_to_end
    yield "latency.after_idle", latency.after_idle
    yield from ((f"split['{part.stage}'].latency", part.latency) for part in side.split)


def _columns(side: ReportSide) -> Iterator[tuple[str, dict[str, tuple[Any, ...]]]]:
    plots, power = side.plots, side.resources.power
    for names in (("latency_x", "latency_ms"), ("ecdf_ms", "ecdf_share"), ("tokens_x", "tokens_out")):
        yield "plots", {name: getattr(plots, name) for name in names}
    yield "plots", {name: getattr(plots, name) for name in ("lost_x", "lost_count", "lost_outcome")}
    if power is not None:
        yield "resources.power", {"times_s": power.times_s, **power.power_mw}


def _counts(side: ReportSide) -> Iterator[tuple[str, float, int]]:
    if side.accounting is not None:
        for name in ("frames_in", "delivered", "dropped", "failed", "rows"):
            yield f"accounting.{name}", getattr(side.accounting, name), 0
    yield from ((f"plots.lost_count[{place}]", count, 1) for place, count in enumerate(side.plots.lost_count))
    if side.resources.power is not None:
        yield "resources.power.seconds", side.resources.power.seconds, 0
