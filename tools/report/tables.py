"""Reports and comparisons on the terminal."""

import os
import re
import shutil
import sys
import textwrap

from trt_compress.foreign import shown as printable
from trt_compress.tools.console import print_pairs, print_table, print_text
from trt_compress.tools.report.compare import Comparison
from trt_compress.tools.report.found import found_section
from trt_compress.tools.report.numbers import count, large, number
from trt_compress.tools.report.reading import reading_section
from trt_compress.tools.report.record import Ratio, Report
from trt_compress.tools.report.sections import (
    Section,
    figure_sections,
    identity_section,
    latency_of_sides,
    run_sections,
    speedup_text,
    verdict_section,
    without_missing,
)

_NARROWEST = 60

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
    """Print a report: the figures first, then what ran how and where, and in one line what was not measured."""
    several = len({side.role for side in report.sides}) > 1
    missing: list[str] = []
    if text := speedup_text(report):
        print_wrapped(f"Speed-up: {text}.")
        print_text("")
    if points := reading_section(report):
        _print(points, report.title)
    if several:
        _print(latency_of_sides(report.sides), "one inference")
    for side in report.sides:
        latency, *others = figure_sections(side)
        if not several:
            _print(latency, side.role)
        _print(verdict_section(side), side.role)
        for section in others:
            shown, absent = without_missing(section)
            if shown.rows and not (section.title == "Split in ms" and len(shown.rows) == 1):
                _print(shown, side.role)
            missing += [name.removeprefix("jitter: ") for name, _ in absent]
    if found := found_section(report.findings):
        _print(found, report.title)
    for side in report.sides:
        _print(_with_short_hashes(without_missing(identity_section(side))[0]), side.role)
    for section in run_sections(report):
        _print(without_missing(section)[0], report.title)
    if missing:
        print_wrapped(f"Not measured: {', '.join(dict.fromkeys(missing))}; page and --json say why.")


def print_wrapped(text: str) -> None:
    """Print words as lines of the terminal; as one line where there is none."""
    sized = sys.stdout.isatty() or "COLUMNS" in os.environ
    width = max(shutil.get_terminal_size().columns, _NARROWEST)
    for line in textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False) if sized else (text,):
        print_text(line)


def _with_short_hashes(section: Section) -> Section:
    """The first digits of a hash tell two files apart; JSON and page have all."""
    rows = tuple(
        (row[0], re.sub(r"(?<=sha256 )([0-9a-f]{12})[0-9a-f]{52}", r"\1…", row[1] or "")) for row in section.rows
    )
    return Section(title=section.title, rows=rows)


def print_comparison(comparison: Comparison) -> None:
    """Print a comparison, and what its budget says."""
    a, b = comparison.names
    rows = []
    absent: dict[tuple[str, str], list[str]] = {}
    for row in comparison.rows:
        is_quality = row.a.unit == "" and not row.a.name.endswith("cv")
        if row.a.name not in _COMPARED and not is_quality:
            continue
        for side, metric in (("A", row.a), ("B", row.b)):
            if metric.value is None:
                absent.setdefault((side, metric.reason or "not known"), []).append(row.a.name)
        if row.change is None or row.a.name.endswith("_n"):
            change = None
        else:
            change = f"{row.change:+.1%}" if row.change else "same"
        unit = row.a.unit or row.b.unit
        shown = [large(metric.value) if unit == "FLOPs" else _value(metric.value) for metric in (row.a, row.b)]
        rows.append((row.a.name, *shown, unit, change))
    print_table(f"A: {printable(a)}\nB: {printable(b)}", ("", "A", "B", "unit", "B − A"), rows)
    for (side, why), names in absent.items():
        print_wrapped(f"Not known of {side}: {', '.join(names)} ({why}).")
    print_wrapped(f"Verdicts: A {comparison.judged[0]}, B {comparison.judged[1]}.")
    if comparison.ratio is not None:
        print_wrapped(f"B is {_ratio(comparison.ratio)} as fast as A ({comparison.claim}).")
    else:
        print_wrapped(f"B against A: {comparison.claim}.")
    for name, ratio in zip(("A", "B"), comparison.own, strict=True):
        if ratio is not None:
            print_wrapped(f"{name} is {_ratio(ratio)} as fast as its own baseline.")
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
