"""The page: self-contained, escaped, accessible, and drawn from the numbers that the report has."""

import base64
import hashlib
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from trt_compress.runtime.measure.power import PowerResult
from trt_compress.runtime.stream.result import StreamResult
from trt_compress.tools.gen_schemas import schema_of
from trt_compress.tools.report.from_stream import report_from_stream
from trt_compress.tools.report.html import page_from_report
from trt_compress.tools.report.record import Report
from trt_compress.tools.report.series import ecdf, gather, thin
from trt_compress.tools.report.svg import decade_ticks, linear, logarithmic, nice_ticks

MakeStream = Callable[..., StreamResult]
Attributes = dict[str, str | None]

SCHEMA = schema_of("report")
VOID = {"meta"}
EVIL = "<script>alert('1')</script>\"&<img src=x onerror=alert(2)>"


class Page(HTMLParser):
    """The elements of a page, checked for nesting."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, Attributes]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def of(self, tag: str, kind: str | None = None) -> list[Attributes]:
        found = [attributes for name, attributes in self.elements if name == tag]
        return found if kind is None else [a for a in found if kind in (a.get("class") or "").split()]


@pytest.fixture
def stream(make_stream: MakeStream, power: PowerResult) -> StreamResult:
    return make_stream(700, drop_every=69, fail_at=(5,), spikes=4, power=power.to_json())


@pytest.fixture
def page(stream: StreamResult) -> Page:
    return Page(page_from_report(report_from_stream(stream)))


def test_the_page_loads_nothing_and_runs_its_own_script_alone(stream: StreamResult, page: Page) -> None:
    text = page_from_report(report_from_stream(stream))
    tags = {tag for tag, _ in page.elements}
    assert tags & {"link", "img", "iframe", "object", "embed", "base", "form", "use", "image"} == set()
    for _, attributes in page.elements:
        assert not {"src", "href", "xlink:href", "srcset", "action", "background"} & set(attributes)
        assert not any(name.startswith("on") for name in attributes)
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style and "@import" not in style and "@font-face" not in style
    assert set(re.findall(r"https?://[^\s\"'<]+", text)) <= {"http://www.w3.org/2000/svg"}
    policy = next(a["content"] for a in page.of("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and "default-src 'none'" in policy
    ((script,),) = [re.findall(r"<script>(.*?)</script>", text, re.DOTALL)]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert re.findall(r"script-src ([^;]*)", policy) == [f"'sha256-{digest}'"]
    assert not re.search(r"innerHTML|eval\(|Function\(|fetch\(|https?:", script)


def test_whatever_comes_from_a_result_is_escaped(make_stream: MakeStream) -> None:
    text = make_stream(700, drop_every=70, name=EVIL).to_text().replace("a newer frame came", "<b>&amp;</b>")
    text = text.replace("tome:num_merged=5", EVIL.replace('"', '\\"')).replace("AMD EPYC", "<svg onload=x>")
    page_text = page_from_report(report_from_stream(StreamResult.from_text(text)))
    page = Page(page_text)
    assert len(page.of("script")) == 1 and not page.of("img") and not page.of("b") and "<svg onload" not in page_text
    assert EVIL in "".join(page.words)
    assert "<b>&amp;</b>" in "".join(page.words)


def test_a_report_that_was_tampered_with_cannot_leave_its_text(stream: StreamResult) -> None:
    """A report file may come from anywhere: every string of it, names of kinds and roles too, is made evil."""

    def poison(value: Any) -> Any:
        if isinstance(value, dict):
            return {poison(name) if name not in known else name: poison(item) for name, item in value.items()}
        if isinstance(value, list):
            return [poison(item) for item in value]
        return EVIL if isinstance(value, str) else value

    data = json.loads(report_from_stream(stream).to_text())
    known = {name for schema in (SCHEMA, *SCHEMA["$defs"].values()) for name in schema["properties"]}
    evil = poison(data) | {"schema_version": "1.0"}
    page = Page(page_from_report(Report.from_data(evil, "the report")))
    assert len(page.of("script")) == 1 and not page.of("img")
    assert all(not name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert "".join(page.words).count(EVIL) > 50


def test_every_plot_has_a_title_words_and_a_table(page: Page) -> None:
    drawings = [a for a in page.of("svg") if a.get("role") == "img"]
    identifiers = [a["id"] for _, a in page.elements if a.get("id")]
    assert len(identifiers) == len(set(identifiers))
    for attributes in drawings:
        labels = (attributes["aria-labelledby"] or "").split()
        assert len(labels) == 2 and set(labels) <= set(identifiers)
    assert all(a.get("aria-hidden") == "true" for a in page.of("svg") if a.get("role") != "img")
    figures = len(page.of("figure"))
    assert figures == 7  # latency, distribution, two waterfalls, tokens, lost frames, power
    assert len(page.of("svg", "wide")) == len(page.of("svg", "narrow")) == figures
    assert len(page.of("details")) == figures
    assert all(a.get("scope") in ("col", "row") for a in page.of("th"))
    assert page.of("html") == [{"lang": "en"}]


def test_the_page_fits_phones_dark_rooms_and_paper(stream: StreamResult) -> None:
    text = page_from_report(report_from_stream(stream))
    assert 'content="width=device-width, initial-scale=1"' in text
    for rule in ("@media (prefers-color-scheme: dark)", "@media print", "@media screen and (max-width: 640px)"):
        assert rule in text
    assert len(text.encode()) < 300_000


def test_drops_misses_deadline_and_percentiles_are_drawn(page: Page) -> None:
    sizes = 2
    assert len(page.of("line", "deadline")) == sizes
    assert len([a for a in page.of("path", "dropped") if a["d"]]) >= 10 * sizes
    assert len(page.of("path", "failed")) >= 1 * sizes
    late = [a["d"] or "" for a in page.of("path", "late")]
    assert [path.count("M") for path in late if path.count("M") > 1] == [4] * sizes
    words = " ".join(page.words)
    assert all(f"{name}: " in words for name in ("p50", "p90", "p95", "p99")) and "p99.9: " not in words
    assert "n too small: 690 of 6636" not in words and "n too small: 689 of 6636" in words
    assert "deadline 33.0 ms" in words


def test_positions_are_those_of_the_numbers(page: Page) -> None:
    """The deadline line lies at its value between the ticks of its axis."""
    line = page.of("line", "deadline")[0]
    grid = [float(a["y1"] or 0) for a in page.of("line", "grid")[:6]]
    labels = [word for word in page.words if re.fullmatch(r"\d+", word)]
    values = [float(label) for label in labels[:20]]
    low, high = grid[0], grid[1]
    first, second = values[values.index(0.0)], values[values.index(0.0) + 1]
    at = first + (float(line["y1"] or 0) - low) / (high - low) * (second - first)
    assert at == pytest.approx(33.0, abs=0.3)


def test_power_that_was_measured_is_shown(page: Page) -> None:
    words = " ".join(page.words)
    for seen in ("20.0 W", "8.00 W", "800 J", "480 J", "0.800 J", "0.480 J", "VDD_NEW (unknown rail)"):
        assert seen in words


def test_a_run_without_results_still_has_a_page(make_stream: MakeStream) -> None:
    page = Page(page_from_report(report_from_stream(make_stream(30, drop_every=1))))
    words = " ".join(page.words)
    assert "invalid" in words and "no frame was delivered" in words


def test_thinning_keeps_every_extreme() -> None:
    generator = np.random.default_rng(0)
    y = generator.exponential(size=100_000)
    y[31_234], y[77_777] = 99.0, -3.0
    x = np.arange(len(y)) / 30
    kept_x, kept_y = thin(x.tolist(), y.tolist(), buckets=500)
    assert len(kept_x) <= 1000 and list(kept_x) == sorted(kept_x)
    assert 99.0 in kept_y and -3.0 in kept_y
    for part in np.array_split(np.arange(len(y)), 500):
        inside = [b for a, b in zip(kept_x, kept_y, strict=True) if x[part[0]] <= a <= x[part[-1]]]
        assert (min(inside), max(inside)) == (y[part].min(), y[part].max())
    assert thin([1, 2], [3, 4]) == ((1.0, 2.0), (3.0, 4.0))


@pytest.mark.parametrize("n", [1, 7, 400, 401, 50_000])
def test_the_distribution_is_exact_where_it_is_drawn(n: int) -> None:
    values = np.random.default_rng(n).exponential(size=n)
    points, shares = ecdf(values.tolist())
    assert len(points) <= 400 and points[-1] == values.max() and shares[-1] == 1
    for point, share in zip(points, shares, strict=True):
        assert (values <= point).mean() == pytest.approx(share)


def test_gathering_loses_no_frame() -> None:
    x = [index / 10 for index in range(5000)]
    kinds = ["dropped" if index % 3 else "failed" for index in range(5000)]
    at, counts, outcomes = gather(x, kinds, 500.0)
    assert len(at) <= 1200
    for kind in ("dropped", "failed"):
        assert sum(c for c, o in zip(counts, outcomes, strict=True) if o == kind) == kinds.count(kind)


def test_ticks_are_round_and_inside() -> None:
    assert nice_ticks(0, 10, 5) == [0, 2, 4, 6, 8, 10]
    assert nice_ticks(13.2, 17.9, 5) == [14, 15, 16, 17]
    assert decade_ticks(0.8, 30) == [1, 2, 5, 10, 20]
    assert linear(0, 10, 100, 0)(2.5) == 75
    assert logarithmic(1, 100, 0, 2)(10) == pytest.approx(1)
