"""The sections of a report as rows of words: what the tables of the terminal and of the page have in common."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trt_compress.memory import format_bytes
from trt_compress.runtime.measure.latency import SAMPLES_NEEDED, WINDOW_SAMPLES, WINDOWS
from trt_compress.runtime.tokens import token_flows, tokens_text
from trt_compress.tools.report.numbers import Missing, count, large, ms, number, percent, reason
from trt_compress.tools.report.record import Distribution, Report, ReportSide, SideCompression

Cell = str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One table. A section without columns is a list of names and values."""

    title: str
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[Cell, ...], ...]


def run_sections(report: Report) -> list[Section]:
    """What all sides of a run have in common: protocol and machine."""
    protocol, machine = report.protocol, report.machine
    deadline = None if protocol.deadline_ns is None else ms(protocol.deadline_ns)
    rows: list[tuple[Cell, ...]] = [
        ("protocol", protocol.kind),
        ("started", report.started_at),
        ("frame rate", None if protocol.fps is None else f"{number(protocol.fps)} per s"),
        ("deadline", f"{deadline}{', 1/fps' if protocol.deadline_is_period else ''}" if deadline else "none"),
        ("policy of full queues", protocol.policy),
        ("warm-up", f"{protocol.warmup} runs, in no number"),
        ("streams of one query", str(protocol.streams) if protocol.streams > 1 else None),
        ("threads", "the backend's own choice" if protocol.threads is None else str(protocol.threads)),
        *((name, _text(value)) for name, value in protocol.settings.items()),
    ]
    where: list[tuple[Cell, ...]] = [
        *((name, _text(value)) for name, value in machine.device.items() if value not in (None, [], {})),
        ("power mode", machine.power_mode or reason(machine.reasons, "power_mode")),
        ("versions", ", ".join(f"{name} {version}" for name, version in machine.versions.items())),
        ("report made with", report.made_with),
    ]
    shown = tuple(row for row in rows if row[1] is not None)
    return [Section(title="Protocol", rows=shown), Section(title="Machine", rows=tuple(where))]


def side_sections(side: ReportSide) -> list[Section]:
    """The sections of one side, in the order of the contract."""
    latency, *others = figure_sections(side)
    frames = others[:1] if side.accounting else []
    return [identity_section(side), *frames, latency, *others[len(frames) :], verdict_section(side)]


def figure_sections(side: ReportSide) -> list[Section]:
    """What was measured of one side, its latency first."""
    return [
        _latency(side),
        *([_accounting(side)] if side.accounting else []),
        _latency_more(side),
        _split(side),
        *_compression(side),
        _quality(side),
        *_resources(side),
    ]


def without_missing(section: Section) -> tuple[Section, list[tuple[str, str]]]:
    """The section with the numbers that there are, and names and reasons of the others."""
    missing = [(str(row[0]), str(cell)) for row in section.rows for cell in row[1:] if isinstance(cell, Missing)]
    rows = tuple(row for row in section.rows if not any(isinstance(cell, Missing) for cell in row[1:]))
    columns = section.columns
    if columns and columns[-1] == "" and len(columns) > 2:  # the notes, which are all gone
        columns, rows = columns[:-1], tuple(row[:-1] for row in rows)
    return Section(title=section.title, columns=columns, rows=rows), missing


def speedup_text(report: Report) -> str | None:
    """The speed-up over the baseline in one sentence, or None without one."""
    ratio = report.speedup
    if ratio is None:
        return None
    interval = ratio.reason
    if ratio.low is not None and ratio.high is not None:
        interval = f"95 % interval {ratio.low:.2f} to {ratio.high:.2f}"
    return f"{ratio.median:.2f}× the baseline ({interval}, {ratio.n} pairs of one interleaved run)"


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}={_text(item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        return "; ".join(map(_text, value))
    return number(value) if isinstance(value, float) else str(value)


def _none(why: str | None) -> str:
    return "none" if why is None else f"none: {why.rstrip('.')}"


def identity_section(side: ReportSide) -> Section:
    identity = side.identity
    paths = identity.operator_paths
    forms = ", ".join(f"{form} ({nodes})" for form, nodes in paths.items()) if paths else "no operators of ours"
    achieved = identity.precision_achieved
    rows: list[tuple[Cell, ...]] = [
        ("bundle", identity.name),
        ("model", identity.model),
        ("weights", identity.weights),
        ("compression", identity.compression),
        ("precision", f"{identity.precision}, opset {identity.opset}"),
        ("precision achieved", _text(achieved) if achieved else reason(identity.reasons, "precision_achieved")),
        ("backend", identity.backend),
        ("operators run as", forms if paths is not None else reason(identity.reasons, "operator_paths")),
        *((f"ONNX {file}", f"sha256 {sha256}") for file, sha256 in identity.graphs.items()),
        *((f"engine {file}", f"sha256 {sha256}") for file, sha256 in identity.engines.items()),
        (
            "native library",
            f"sources {identity.plugins}" if identity.plugins else _none(identity.reasons.get("plugins")),
        ),
    ]
    return Section(title="Identity", rows=tuple(rows))


def _accounting(side: ReportSide) -> Section:
    part = side.accounting
    assert part is not None
    rows: list[tuple[Cell, ...]] = [
        ("in", str(part.frames_in), ""),
        *(
            (name, str(value), percent(value, part.frames_in))
            for name, value in (("delivered", part.delivered), ("dropped", part.dropped), ("failed", part.failed))
        ),
        *((f"because {cause}", str(value), percent(value, part.frames_in)) for cause, value in part.causes.items()),
    ]
    if part.rows != part.frames_in:
        rows.append(("kept for the numbers below", str(part.rows), percent(part.rows, part.frames_in)))
    return Section(title="Frames", columns=("", "frames", "share"), rows=tuple(rows))


_STATISTICS = ("n", "min", "mean", "median", "p90", "p95", "p99", "p99.9", "max", "std", "CV")


def _statistics(part: Distribution | None) -> list[str]:
    """The cells of one distribution; a percentile that n does not support says so."""
    if part is None:
        return ["-"] * len(_STATISTICS)
    values = [part.min_ns, part.mean_ns, part.median_ns]
    tails = {90.0: part.p90_ns, 95.0: part.p95_ns, 99.0: part.p99_ns, 99.9: part.p99_9_ns}
    cells = [number(value / 1e6) for value in values]
    cells += [
        f"n too small (needs {SAMPLES_NEEDED[percentile]})" if value is None else number(value / 1e6)
        for percentile, value in tails.items()
    ]
    cells += [number(value / 1e6) for value in (part.max_ns, part.std_ns)]
    return [str(part.n), *cells, "-" if part.cv is None else f"{part.cv:.1%}"]


def _latency(side: ReportSide) -> Section:
    """Statistics down, latencies across: a table that fits a phone."""
    latency = side.latency
    parts = {"end-to-end": latency.end_to_end, "inference": latency.inference, "after idle": latency.after_idle}
    shown = {name: _statistics(part) for name, part in parts.items() if part is not None}
    rows = tuple((name, *(cells[index] for cells in shown.values())) for index, name in enumerate(_STATISTICS))
    return Section(title="Latency in ms", columns=("", *shown), rows=rows)


def latency_of_sides(sides: Sequence[ReportSide]) -> Section:
    """The latency of one inference of all sides of a run, side by side."""
    shown = {side.role: _statistics(side.latency.inference) for side in sides}
    rows = tuple((name, *(cells[index] for cells in shown.values())) for index, name in enumerate(_STATISTICS))
    return Section(title="Latency in ms", columns=("", *shown), rows=rows)


def _latency_more(side: ReportSide) -> Section:
    latency, accounting = side.latency, side.accounting
    missed = None
    if latency.deadline_missed is not None and accounting is not None:
        missed = f"{latency.deadline_missed} of {accounting.delivered} delivered"
        missed += f" ({percent(latency.deadline_missed, accounting.delivered)})"
    throughput = latency.throughput_per_s
    values = {
        "throughput_per_s": ("throughput", None if throughput is None else f"{number(throughput)} per s"),
        "deadline_missed": ("deadline misses", missed),
        "inter_result_std_ns": ("jitter: std of times between results", ms(latency.inter_result_std_ns)),
        "inter_result_max_minus_median_ns": (
            "jitter: longest time between results − median",
            ms(latency.inter_result_max_minus_median_ns),
        ),
        "max_minus_median_ns": (f"jitter: {latency.headline[0]} max − median", ms(latency.max_minus_median_ns)),
        "first_inference_ns": ("first inference", ms(latency.first_inference_ns)),
        "after_idle": ("first after idle, median", ms(latency.after_idle.median_ns) if latency.after_idle else None),
    }
    rows = [(label, value or reason(latency.reasons, name)) for name, (label, value) in values.items()]
    if latency.end_to_end is None:
        rows.insert(0, ("end-to-end", reason(latency.reasons, "end_to_end")))
    return Section(title="Throughput, jitter and misses", rows=tuple(rows))


def _split(side: ReportSide) -> Section:
    rows: list[tuple[Cell, ...]] = []
    for part in side.split:
        if part.latency is None:
            rows.append((part.name, None, None, None, None, None, Missing(part.reason or "not known")))
            continue
        latency = part.latency
        tail = "n too small" if latency.p99_ns is None else number(latency.p99_ns / 1e6)
        rows.append(
            (
                part.name,
                str(latency.n),
                number(latency.median_ns / 1e6),
                number(latency.mean_ns / 1e6),
                tail,
                number(latency.max_ns / 1e6),
                "",
            )
        )
    return Section(title="Split in ms", columns=("part", "n", "median", "mean", "p99", "max", ""), rows=tuple(rows))


def _compression(side: ReportSide) -> list[Section]:
    part = side.compression
    flops = large(part.flops)
    if part.flops and part.baseline_flops and part.flops != part.baseline_flops:
        flops = f"{flops}, {part.baseline_flops / part.flops:.2f}× fewer than the {large(part.baseline_flops)} of dense"
    values = {
        "flops": ("FLOPs of one sample", flops),
        "kv_bytes_before": ("KV cache before", _bytes(part.kv_bytes_before)),
        "kv_bytes_after": ("KV cache after", _bytes(part.kv_bytes_after)),
        "selector_ns": ("selector's own cost", ms(part.selector_ns)),
    }
    rows = tokens_rows(part)
    rows += [(label, value or reason(part.reasons, name)) for name, (label, value) in values.items()]
    if len(part.levels) > 1:
        rows.append(("changes of the keep level", str(part.switches)))
    sections = [Section(title="Compression", rows=tuple(rows))]
    if part.sites:
        grouped = any(site.groups > 1 for site in part.sites)
        sites = tuple(
            (site.site, site.compressor, str(site.tokens_in), str(site.tokens_out), *([str(site.groups)] * grouped))
            for site in part.sites
        )
        columns = ("site", "compressor", "in", "out", *(["groups"] * grouped))
        sections.append(Section(title="Tokens per site", columns=columns, rows=sites))
    if len(part.levels) > 1:
        levels = tuple((level.name, str(level.frames), large(level.flops), level.compression) for level in part.levels)
        sections.append(Section(title="Keep levels", columns=("level", "frames", "FLOPs", "compression"), rows=levels))
    return sections


def tokens_rows(part: SideCompression) -> list[tuple[str, str]]:
    """What becomes of the tokens: in and out where sites follow each other, else what the sites say together."""
    text = tokens_parts(part)
    if text is not None:
        return [("tokens", f"{text[0]}, {text[1]}")]
    return [
        (f"{label}, median", count(value) or reason(part.reasons, name))
        for name, label, value in (
            ("tokens_in", "tokens in", part.tokens_in),
            ("tokens_out", "tokens out", part.tokens_out),
        )
    ]


def tokens_parts(part: SideCompression) -> tuple[str, str] | None:
    """Number and note where the sites are no chain from one to the next; None where they are, or there is none."""
    flows = token_flows(part.sites)
    if not flows or (len(flows) == 1 and flows[0].chain):
        return None
    if len(part.levels) > 1 and part.tokens_in is not None and part.tokens_out is not None:
        return f"{count(part.tokens_out)} of {count(part.tokens_in)}", "computed at a site, median over the frames"
    return tokens_text(part.sites) or "-", "; ".join(dict.fromkeys(flow.note for flow in flows))


def _quality(side: ReportSide) -> Section:
    if not side.quality:
        return Section(title="Quality", rows=(("quality", Missing(side.quality_reason or "not known")),))
    rows = tuple((metric.name, _metric(metric.value), str(metric.n), metric.against) for metric in side.quality)
    return Section(title="Quality", columns=("metric", "value", "n", "against"), rows=rows)


def _metric(value: float) -> str:
    return f"{value:.1e}" if 0 < abs(value) < 1e-3 else f"{value:.4f}"


def _resources(side: ReportSide) -> list[Section]:
    part, power = side.resources, side.resources.power
    rows: list[tuple[Cell, ...]] = [
        ("device memory", _bytes(part.device_memory_bytes) or reason(part.reasons, "device_memory_bytes")),
        ("process memory on the host, peak", _bytes(part.peak_rss_bytes) or reason(part.reasons, "peak_rss_bytes")),
        ("model files", _bytes(part.model_bytes) or reason(part.reasons, "model_bytes")),
    ]
    if power is None:
        return [Section(title="Resources", rows=(*rows, ("power", reason(part.reasons, "power"))))]
    why = {name: reason(power.reasons, name) for name in ("energy_j", "idle_mw", "total") if power.reasons.get(name)}
    energy = Missing(why.get("energy_j") or why.get("total") or "not known")
    net = Missing(why.get("energy_j") or why.get("total") or why.get("idle_mw") or "not known")
    each = power.energy_per_inference_j, power.net_energy_per_inference_j
    rows += [
        ("power read by", f"{power.reader}, {power.num_samples} samples over {number(power.seconds)} s"),
        ("smoothing", power.smoothing),
        ("total covers", power.total_covers or why.get("total")),
        ("mean power", _watts(power.mean_mw) or energy),
        ("idle power", _watts(power.idle_mw) or why.get("idle_mw") or energy),
        ("energy", _joules(power.energy_j) or energy),
        ("energy net of idle", _joules(power.net_energy_j) or net),
        ("energy of one inference", _joules(each[0]) or energy),
        ("the same net of idle", _joules(each[1]) or net),
    ]
    if power.faults:
        rows.append(("samples that could not be read", str(power.faults)))
    rails = tuple(
        (
            rail.name + ("" if rail.known else " (unknown rail)"),
            "yes" if rail.in_total else "no",
            _watts(rail.mean_mw),
            _watts(rail.idle_mw),
            _joules(rail.energy_j),
        )
        for rail in power.rails
    )
    columns = ("rail", "in the total", "mean", "idle", "energy")
    return [Section(title="Resources", rows=tuple(rows)), Section(title="Power rails", columns=columns, rows=rails)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A verdict as it is shown: its kind ("stable", "unstable", "invalid", "few"), word and reasons."""

    kind: str
    word: str
    reasons: tuple[str, ...]


def judged(side: ReportSide) -> Judged:
    """The verdict in words; a run that is merely too short to be judged is no invalid one."""
    verdict, part = side.verdict, side.latency.inference
    needed = WINDOWS * WINDOW_SAMPLES
    if verdict.status == "invalid" and part is not None and part.n < needed and len(verdict.reasons) == 1:
        what = "frame" if side.accounting is not None else "run"
        return Judged(
            kind="few",
            word=f"too few {what}s to judge the timing",
            reasons=(f"{part.n} {what}{'s' * (part.n != 1)}, and it takes {needed}",),
        )
    kind = verdict.status if verdict.status in ("stable", "unstable", "invalid") else "unstable"
    return Judged(kind=kind, word=verdict.status, reasons=verdict.reasons)


def verdict_section(side: ReportSide) -> Section:
    verdict, shown = side.verdict, judged(side)
    bounds = f"CV at most {verdict.cv_bound:.1%}, windows within {verdict.window_tolerance:.0%}"
    rows = [("verdict", shown.word), *(("because", why) for why in shown.reasons), ("bounds", bounds)]
    return Section(title="Verdict", rows=tuple(rows))


def _bytes(value: int | None) -> str | None:
    return None if value is None else format_bytes(value)


def _watts(milliwatts: float | None) -> str | None:
    return None if milliwatts is None else f"{number(milliwatts / 1000)} W"


def _joules(joules: float | None) -> str | None:
    return None if joules is None else f"{number(joules)} J"
