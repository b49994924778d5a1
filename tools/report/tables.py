"""Reports and comparisons on the terminal."""

from trt_compress.tools.console import print_pairs, print_table, print_text
from trt_compress.tools.report.compare import Comparison
from trt_compress.tools.report.numbers import count, number
from trt_compress.tools.report.record import Ratio, Report
from trt_compress.tools.report.sections import Section, run_sections, side_sections, speedup_text

_COMPARED = (
    *(
        f"{kind}_{statistic}_ms"
        for kind in ("end_to_end", "inference")
        for statistic in ("p50", "p95", "p99", "p99_9", "max")
    ),
    *("end_to_end_n", "inference_n"),
    *("fps", "speedup", "jitter_ms", "missed_percent", "dropped_percent", "failed", "first_inference_ms"),
    *("after_idle_p50_ms", "tokens_out", "flops", "peak_rss_mib", "power_w", "energy_per_inference_j"),
    "net_energy_per_inference_j",
)
"""What the table of a comparison shows, next to the metrics of quality; `--json` has everything."""


def print_report(report: Report) -> None:
    """Print every section of a report."""
    for section in run_sections(report):
        _print(section, report.title)
    for side in report.sides:
        for section in side_sections(side):
            _print(section, side.role)
    if text := speedup_text(report):
        print_text(f"Speed-up: {text}.")


def print_comparison(comparison: Comparison) -> None:
    """Print a comparison, and what its budget says."""
    a, b = comparison.names
    rows = []
    for row in comparison.rows:
        is_quality = row.a.unit == "" and not row.a.name.endswith("cv")
        if row.a.name not in _COMPARED and not is_quality:
            continue
        change = "-" if row.change is None else f"{row.change:+.1%}"
        rows.append(
            (
                row.a.name,
                _value(row.a.value) or row.a.reason,
                _value(row.b.value) or row.b.reason,
                row.a.unit or row.b.unit,
                change,
            )
        )
    print_table(f"A: {a}\nB: {b}", ("", "A", "B", "unit", "B − A"), rows)
    print_text(f"Verdicts: A {comparison.verdicts[0]}, B {comparison.verdicts[1]}.")
    if comparison.ratio is not None:
        print_text(f"B is {_ratio(comparison.ratio)} as fast as A ({comparison.claim}).")
    else:
        print_text(f"B against A: {comparison.claim}.")
    for name, ratio in zip(("A", "B"), comparison.own, strict=True):
        if ratio is not None:
            print_text(f"{name} is {_ratio(ratio)} as fast as its own baseline.")
    if comparison.differs:
        print_text("")
        print_table("What else differs", ("", "A", "B"), comparison.differs)
    if comparison.budget:
        print_text("")
        held = [
            (str(item.limit), _value(item.value), item.reason, "held" if item.passed else "BROKEN")
            for item in comparison.budget
        ]
        print_table("Budget of B", ("limit", "seen", "of", ""), held)


def _print(section: Section, title: str) -> None:
    heading = f"{section.title}: {title}"
    if section.columns:
        print_table(heading, section.columns, section.rows)
    else:
        print_pairs(heading, [(row[0] or "", row[1]) for row in section.rows])


def _ratio(ratio: Ratio) -> str:
    interval = ratio.reason
    if ratio.low is not None and ratio.high is not None:
        interval = f"95 % interval {ratio.low:.2f} to {ratio.high:.2f}"
    return f"{ratio.median:.2f} times ({interval}, {ratio.n} pairs)"


def _value(value: float | None) -> str | None:
    return count(value) if value is None or float(value).is_integer() else number(value)
