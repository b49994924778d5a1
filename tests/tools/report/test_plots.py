"""What the plots show and where their words stand, and how a short run and noise are named."""

import json
import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trt_compress.runtime.stream.findings import Findings
from trt_compress.runtime.stream.result import StreamResult
from trt_compress.tools.report.from_bench import report_from_bench
from trt_compress.tools.report.from_stream import report_from_stream
from trt_compress.tools.report.html import page_from_report
from trt_compress.tools.report.plots import Figure, figures_of
from trt_compress.tools.report.record import Report
from trt_compress.tools.report.svg import decade_ticks, nice_ticks, text_width

MakeStream = Callable[..., StreamResult]
MakeBench = Callable[..., dict[str, Any]]
Cli = Callable[..., "subprocess.CompletedProcess[str]"]
Write = Callable[..., Path]


def figures(report: Report) -> dict[str, Figure]:
    deadline = report.protocol.deadline_ns
    return {figure.title: figure for figure in figures_of(report.sides, deadline and deadline / 1e6)}


def texts(svg: str, kind: str) -> list[tuple[float, float, str, str]]:
    """x, y, anchor and words of every text of a kind."""
    pattern = rf'<text class="{kind}" x="([\d.]+)" y="([\d.]+)" text-anchor="(\w+)">([^<]*)</text>'
    return [(float(x), float(y), anchor, words) for x, y, anchor, words in re.findall(pattern, svg)]


def test_results_on_time_are_drawn_and_named(make_stream: MakeStream) -> None:
    latency = figures(report_from_stream(make_stream(700, spikes=4)))["End-to-end latency over time"]
    assert latency.legend == (
        ("series0", "result on time"), ("late", "result after the deadline"), ("deadline", "deadline 33.0 ms"),
    )  # fmt: skip
    for svg in latency.svgs:
        assert not [text for text in texts(svg, "label deadline halo")] and "deadline 33" not in svg.split("</desc>")[1]
        on_time = re.search(r'<path class="dots series0" d="([^"]*)"', svg)
        assert on_time is not None and on_time[1].count("M") == 696
    all_late = figures(report_from_stream(make_stream(100, deadline_ms=1.0)))["End-to-end latency over time"]
    assert [words for _, words in all_late.legend] == ["result after the deadline", "deadline 1.00 ms"]


@pytest.mark.parametrize("n", [5, 20, 700, 7000])
@pytest.mark.parametrize("noise", [0.01, 0.2])
def test_words_of_percentiles_lie_off_the_line_and_inside(make_stream: MakeStream, n: int, noise: float) -> None:
    figure = figures(report_from_stream(make_stream(n, noise=noise)))["Distribution of the end-to-end latency"]
    for svg in figure.svgs:
        width = float(re.findall(r'viewBox="0 0 (\d+)', svg)[0])
        path = re.search(r'<path class="line series0" d="M([\d.]+) ([\d.]+)([^"]*)"', svg)
        assert path is not None
        corners = [(float(path[1]), float(path[2]))]
        for x, y in re.findall(r"H([\d.]+)V([\d.]+)", path[3]):
            corners += [(float(x), corners[-1][1]), (float(x), float(y))]
        labels = texts(svg, "label halo")
        assert labels
        for x, y, anchor, words in labels:
            left = x - text_width(words) if anchor == "end" else x
            box = (left, y - 9, left + text_width(words), y + 2)
            assert box[0] > 0 and box[2] < width
            for (x1, y1), (x2, y2) in zip(corners, corners[1:], strict=False):
                over = min(x1, x2) < box[2] and max(x1, x2) > box[0]
                assert not (over and min(y1, y2) < box[3] and max(y1, y2) > box[1]), (words, n)
        rows = sorted(y for _, y, _, _ in labels)
        assert all(below - above >= 11 for above, below in zip(rows, rows[1:], strict=False))


@pytest.mark.parametrize("n", [1, 2, 3, 30, 900])
def test_every_axis_has_ticks_at_every_width(make_stream: MakeStream, n: int) -> None:
    for figure in figures(report_from_stream(make_stream(n, drop_every=3 if n > 3 else 0))).values():
        for svg in figure.svgs:
            ticks = texts(svg, "tick")
            across = sorted({x for x, _, anchor, _ in ticks if anchor == "middle"})
            up = {words for _, _, anchor, words in ticks if anchor == "end"}
            assert len(across) >= 3, (figure.title, n)
            assert len(up) >= 2 or not up
            widest = max(text_width(words) for _, _, anchor, words in ticks if anchor == "middle")
            assert min(b - a for a, b in zip(across, across[1:], strict=False)) > 0.8 * widest


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 0.0086), (3, 7), (13.2, 17.9), (0, 1e6), (0.4, 0.45)])
def test_at_least_three_ticks(low: float, high: float) -> None:
    for most in (2, 4, 9):
        ticks = nice_ticks(low, high, most)
        assert len(ticks) >= 3 and all(low - 1e-9 <= tick <= high + 1e-9 for tick in ticks)


@pytest.mark.parametrize("most", [5, 8])
def test_ticks_of_a_logarithmic_axis_are_never_too_many(most: int) -> None:
    for high in (15, 300, 1e4, 1e6, 1e9):
        assert 2 <= len(decade_ticks(1, high, most)) <= most
    assert decade_ticks(0.8, 30) == [1, 2, 5, 10, 20]


def test_a_run_too_short_to_be_judged_is_not_called_invalid(
    cli: Cli, stream_file: Write, bench_file: Write, make_stream: MakeStream
) -> None:
    page = page_from_report(report_from_stream(make_stream(3)))
    assert '<div class="verdict few"><strong>too few frames to judge the timing</strong>' in page
    assert "3 frames, and it takes 15" in page and "nvalid" not in page.split("</style>")[1]
    one = page_from_report(report_from_stream(make_stream(1)))
    assert "1 frame, and it takes 15" in one and "Distribution of" not in one
    stream_file("a.json", n=3)
    bench_file("b.json", pairs=8)
    out = cli("report", "a.json").stdout
    assert "too few frames to judge the timing" in out and "nvalid" not in out
    assert cli("report", "b.json").stdout.count("too few runs to judge the timing") == 2
    words = " ".join(cli("compare", "a.json", "b.json").stdout.split())
    assert "Verdicts: A too few frames to judge the timing, B too few runs to judge the timing." in words


def test_what_is_invalid_stays_so(make_stream: MakeStream) -> None:
    broken = replace(make_stream(3), ended="error", error="the camera is gone")
    page = page_from_report(report_from_stream(broken))
    assert '<div class="verdict invalid"><strong>invalid</strong>' in page and "the camera is gone" in page
    nothing = page_from_report(report_from_stream(make_stream(5, drop_every=1)))
    assert '<div class="verdict invalid">' in nothing


def test_cards_on_noise_say_so(make_bench: MakeBench) -> None:
    noise = page_from_report(report_from_bench(make_bench(pairs=30), "a"))
    assert "The inputs are noise (random numbers)" in noise
    assert noise.count("n 4, on noise: random numbers, no real inputs") == 3
    real = make_bench(pairs=30)
    real["protocol"]["inputs"] = "file"
    assert "noise" not in page_from_report(report_from_bench(real, "a")).split("</style>")[1]


def test_a_benchmark_that_says_when_it_ran_is_shown_with_it(make_bench: MakeBench) -> None:
    dated = make_bench(pairs=30) | {"started_at": "2026-11-28T16:10:00+00:00"}
    report = report_from_bench(dated, "a")
    assert report.started_at == "2026-11-28T16:10:00+00:00" and "2026-11-28 16:10:00" in page_from_report(report)


def test_what_was_found_is_on_the_page_and_survives(make_stream: MakeStream) -> None:
    found = Findings(
        kind="seen", results=40, classes={}, boxes={"car": 30, "<b>truck</b>": 7}, with_boxes=21, words=(),
        words_left_out=0,
    )  # fmt: skip
    report = report_from_stream(replace(make_stream(40), findings=found))
    page = page_from_report(report)
    assert "37: car 30, &lt;b&gt;truck&lt;/b&gt; 7" in page and "21 of 40" in page
    assert Report.from_data(json.loads(report.to_text()), "the report") == report


def test_pixels_mean_what_the_page_says(make_stream: MakeStream) -> None:
    """The script reads values off the pixels, so the scales that it is given must give the numbers back."""
    report = report_from_stream(make_stream(30))
    svg = figures(report)["End-to-end latency over time"].svgs[0]
    x, y = ([float(number) for number in re.findall(rf'data-{axis}="linear ([^"]+)"', svg)[0].split()] for axis in "xy")
    pixels = [(float(a), float(b)) for a, b in re.findall(r"M([\d.]+) ([\d.]+)h0", svg)]

    def value(pixel: float, scale: list[float]) -> float:
        low, high, start, end, _ = scale
        return low + (pixel - start) / (end - start) * (high - low)

    found = sorted((value(a, x), value(b, y)) for a, b in pixels)
    plots = report.sides[0].plots
    wanted = sorted(zip(plots.latency_x, plots.latency_ms, strict=True))
    assert len(found) == 30 and np.allclose(found, wanted, rtol=2e-3, atol=2e-3) and 'data-zoom="x"' in svg
