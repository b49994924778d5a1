"""How a bundle read tokens, at all points that were timed, as one table."""

from trt_compress.memory import format_bytes
from trt_compress.tools.report.numbers import number
from trt_compress.tools.report.record import Ratio, Report
from trt_compress.tools.report.sections import Section


def reading_section(report: Report) -> Section | None:
    """Prompts and steps by fill, a line for each side; None: no tokens were read."""
    if not report.points:
        return None
    several = len(report.sides) > 1
    rows = tuple(
        (
            f"{point.workload} at {point.fill}" + (f", {side.role}" if several else ""),
            str(side.latency.n),
            number(side.latency.median_ns / 1e6),
            "n too small" if side.latency.p90_ns is None else number(side.latency.p90_ns / 1e6),
            number(side.tokens_per_s),
            format_bytes(side.state_bytes),
            side.verdict,
            *([_ratio(point.speedup) if side.role == "bundle" else "-"] if several else []),
        )
        for point in report.points
        for side in point.sides
    )
    columns = ("", "n", "median ms", "p90 ms", "tokens/s", "states", "verdict", *(["speed-up"] if several else []))
    return Section(title="Prompts and steps", columns=columns, rows=rows)


def _ratio(ratio: Ratio | None) -> str:
    if ratio is None:
        return "-"
    interval = f"{ratio.low:.2f} to {ratio.high:.2f}" if ratio.low is not None and ratio.high is not None else None
    return f"{ratio.median:.2f}× ({interval or ratio.reason})"
