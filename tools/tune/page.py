"""The page of a tuning: what is taken or why nothing is, the staircase, the Pareto front, and what was refused."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trt_compress.tools.report.escaping import escape
from trt_compress.tools.report.html import figure_html, page_html, rows_html
from trt_compress.tools.report.numbers import number
from trt_compress.tools.report.plots import Figure, drawn
from trt_compress.tools.report.svg import Board, linear, nice_ticks, tick_text
from trt_compress.tools.sweep.page import CSS, PointLabels, ends, series_kind, together
from trt_compress.tools.sweep.text import cells_of, columns_of, measure_title, sorted_rows

if TYPE_CHECKING:
    from trt_compress.tools.sweep.result import Row, SweepResult
    from trt_compress.tools.tune.result import TuneResult

_CSS = ".line.front { stroke: var(--ink); stroke-opacity: 0.5; }\n"
_LEAST_SPAN = 5.0  # points below dense that are drawn at least, so that noise does not fill the plot


def page_from_tune(result: "TuneResult") -> str:
    """Make the page: one file that loads nothing."""
    found = result.winner is not None
    points = _points(result)
    figures = [_staircase(result), _front(result, points)]
    body = [
        _head(result),
        f'<div class="verdict {"stable" if found else "unstable"}">'
        f"<strong>{'take' if found else 'refused'}</strong><span>{escape(' '.join(result.advice))}</span></div>",
        _tiles(result),
        *(figure_html(figure) for figure in figures if figure is not None),
        "<h2>The Pareto front</h2>",
        _table(("point", "method", "precision", "tokens behind each layer", "ms", _measure(result)), _rows(points)),
        *_measured(result),
        *_refused(result),
        "<h2>How it was measured</h2>",
        _table((), _facts(result)),
        "<footer>Settings were searched in PyTorch against what a layer takes here, then exported, proven against "
        "PyTorch, scored and timed in turns with dense and with random at as many tokens, and the fastest once more "
        "beside dense in sessions of its own. Latency is that of this machine.</footer>",
    ]
    return page_html(f"{result.request['model']}: tuning", body, more_css=CSS + _CSS)


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontPoint:
    """A setting that was measured, in the plane of latency and answers.

    Attributes:
        tokens: Those that come in and those behind each layer; empty for dense and random.
        on_front: No other but a random is at least as fast and as good, and one of them more.
        taken: It is the result.
    """

    row: "Row"
    precision: str
    ms: float
    percent: float
    tokens: tuple[int, ...]
    on_front: bool
    taken: bool

    @property
    def method(self) -> str:
        """Its name."""
        return "dense" if self.row.kind == "dense" else self.row.spec.partition(":")[0]

    @property
    def title(self) -> str:
        """What is said where it is pointed at: method, precision, schedule, both numbers."""
        if self.row.kind == "random":
            what = f"random beside {', '.join(self.row.beside)} in {self.precision}"
        else:
            what = f"{self.method} in {self.precision}"
        schedule = f", tokens {arrows(self.tokens)}" if self.tokens else ""
        return f"{what}: {number(self.percent)} %, {number(self.ms)} ms{schedule}"


def arrows(tokens: Sequence[int]) -> str:
    """`65 → 60 → 52`; layers that remove nothing are counted: `65 ×3 → 60`."""
    parts: list[list[int]] = []
    for count in tokens:
        if parts and parts[-1][0] == count:
            parts[-1][1] += 1
        else:
            parts.append([count, 1])
    return " → ".join(f"{count}" if times == 1 else f"{count} ×{times}" for count, times in parts)


def _points(result: "TuneResult") -> list[FrontPoint]:
    """What was timed and scored, dense of each precision among it, the fastest first."""
    found = [
        (precision, sweep, row, row.latency.median_ns / 1e6, 100 * value)
        for precision, sweep in result.sweeps.items()
        for row in sweep.rows
        if row.latency is not None and (value := row.value(sweep.measure)) is not None
    ]
    rivals = [(ms, percent) for _, _, row, ms, percent in found if row.kind != "random"]
    winner = result.winner

    def beaten(ms: float, percent: float) -> bool:
        return any(x <= ms and y >= percent and (x, y) != (ms, percent) for x, y in rivals)

    made = [
        FrontPoint(
            row=row,
            precision=precision,
            ms=ms,
            percent=percent,
            tokens=result.tokens.get(row.spec, ()) if row.kind == "asked" else (),
            on_front=row.kind != "random" and not beaten(ms, percent),
            taken=winner is not None and (winner.precision, winner.row.spec) == (precision, row.spec),
        )
        for precision, _, row, ms, percent in found
    ]
    return sorted(made, key=lambda point: point.ms)


def _measure(result: "TuneResult") -> str:
    return measure_title(_base(result))


def _base(result: "TuneResult") -> "SweepResult":
    return next(iter(result.sweeps.values()))


def _head(result: "TuneResult") -> str:
    base, device = _base(result), result.device
    lines = [
        f"Budget {', '.join(result.request['budget'])}; at least {result.request['min_gain']:g}× as fast as dense; "
        f"batch {result.request['batch']}, {base.protocol['threads']} threads",
        f"{base.data['form']}; {base.model['weights']}",
        f"{device.get('cpu')} ({device.get('cores')} cores), {result.started_at[:19].replace('T', ' ')}",
    ]
    title = f"{result.request['model']}, compressed for this device"
    return f"<header><h1>{escape(title)}</h1>{''.join(f'<p>{escape(line)}</p>' for line in lines)}</header>"


def _tiles(result: "TuneResult") -> str:
    cells: list[tuple[str, str, str]] = []
    if (winner := result.winner) is not None:
        sides = winner.bench.sides
        gain = winner.gain
        interval = f"95 % interval {gain.low:.2f} to {gain.high:.2f}" if gain.low and gain.high else ""
        tokens = result.tokens.get(winner.row.spec, ())
        cells = [
            (
                "take",
                f"{winner.row.spec.partition(':')[0]} in {winner.precision}",
                f"{tokens[0]} → {tokens[-1]} tokens" if tokens else "",
            ),
            ("speed-up here", f"{gain.median:.2f}×", interval),
            (
                "median",
                f"{number(sides[0].latency.median_ns / 1e6)} ms",
                f"dense {number(sides[1].latency.median_ns / 1e6)} ms",
            ),
        ]
        cells += [
            (str(held.limit), "not known" if held.value is None else f"{held.value:.3g}", "kept")
            for held in winner.held
        ]
    steps = result.staircase
    if steps["floor_tokens"] > steps["counts"][0]:
        cells.append((f"nothing is gained below, at batch {steps['batch']}", f"{steps['floor_tokens']} tokens", ""))
    cells.append(("trials of the search", f"{result.trials}", f"{len(result.refused)} measured settings refused"))
    shown = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(text)}<small>{escape(note)}</small></dd></div>"
        for name, text, note in cells
    )
    return f'<dl class="tiles">{shown}</dl>'


def _staircase(result: "TuneResult") -> Figure:
    steps = result.staircase
    counts: list[int] = steps["counts"]
    batches: dict[str, list[float]] = steps["block_ms"]
    title = "The latency staircase: a layer against its tokens"
    high = max(max(times) for times in batches.values())
    low_x, high_x = ends(counts, 0.04)

    def draw(board: Board) -> None:
        size = board.size
        bottom, right = size.top + size.inner_height, size.left + size.inner_width
        to_x, to_y = linear(max(low_x, 0), high_x, size.left, right), linear(0, high * 1.08, bottom, size.top)
        board.axes(
            [(to_x(value), tick_text(value)) for value in nice_ticks(max(low_x, 0), high_x, size.inner_width // 80)],
            [(to_y(value), tick_text(value)) for value in nice_ticks(0, high * 1.08, 5)],
            "tokens",
            "ms",
            (to_x, to_y),
        )
        if steps["floor_tokens"] > counts[0]:
            floor = to_x(steps["floor_tokens"])
            board.line(floor, size.top, floor, bottom, "deadline")
            board.text(floor + 6, size.top + 12, "nothing is gained below", kind="label deadline halo")
        for index, (batch, times) in enumerate(batches.items()):
            x, y = [to_x(count) for count in counts], [to_y(time) for time in times]
            board.polyline(x, y, series_kind(index))
            for count, time in zip(counts, times, strict=True):
                words = f"{count} tokens, batch {batch}: {number(time)} ms"
                board.mark(to_x(count), to_y(time), series_kind(index), words)

    caption = (
        "One layer, exported alone and timed at every count in turns: its fastest round. What a schedule saves is "
        "predicted from this line; steps are where fewer tokens gain nothing."
    )
    return Figure(
        title=title,
        caption=caption,
        svgs=drawn(draw, "staircase", title, caption),
        columns=("tokens", *(f"batch {batch}" for batch in batches)),
        rows=tuple(
            (str(count), *(f"{number(times[place])} ms" for times in batches.values()))
            for place, count in enumerate(counts)
        ),
        legend=tuple((series_kind(index), f"batch {batch}") for index, batch in enumerate(batches)),
    )


def _front(result: "TuneResult", points: Sequence[FrontPoint]) -> Figure | None:
    base = _base(result)
    dense = [point for point in points if point.row.kind == "dense"]
    if len(points) < 2 or not dense:
        return None
    several = len(result.sweeps) > 1
    measure = measure_title(base)
    title = f"{measure.capitalize()} over latency"
    series = list(dict.fromkeys(_series(point, several) for point in points if point.row.kind == "asked"))
    most = [limit for limit in result.request["budget"] if limit.startswith("accuracy_drop")]
    reference = next((point.percent for point in dense if point.precision == next(iter(result.sweeps))), None)
    floor_y = None
    if most and reference is not None:
        floor_y = reference - float(most[0].rpartition("=")[2])
    low_x, high_x = ends([point.ms for point in points], 0.08)
    heights = [point.percent for point in points]
    low_y, high_y = ends([*heights, max(heights) - _LEAST_SPAN, *([] if floor_y is None else [floor_y])], 0.1)
    high_y = min(high_y, 100 + 0.04 * (high_y - low_y))
    front = [point for point in points if point.on_front]

    def draw(board: Board) -> None:
        size = board.size
        bottom, right = size.top + size.inner_height, size.left + size.inner_width
        to_x, to_y = linear(low_x, high_x, size.left, right), linear(low_y, high_y, bottom, size.top)
        board.axes(
            [(to_x(value), tick_text(value)) for value in nice_ticks(low_x, high_x, size.inner_width // 80)],
            [(to_y(value), f"{value:g}%") for value in nice_ticks(low_y, high_y, 5) if value <= 100],
            f"median latency, ms, batch {result.request['batch']}",
            f"{measure}, %",
            (to_x, to_y),
        )
        if floor_y is not None:
            board.line(size.left, to_y(floor_y), right, to_y(floor_y), "deadline")
            board.text(right, to_y(floor_y) + 14, f"{most[0]}", anchor="end", kind="label deadline halo")
        board.polyline([to_x(point.ms) for point in front], [to_y(point.percent) for point in front], "front")
        kinds = [_kind(point, series, several) for point in points]
        for kind in dict.fromkeys(kinds):  # as dots too, whose values the page's script tells
            own = [point for point, its in zip(points, kinds, strict=True) if its == kind]
            board.dots([to_x(point.ms) for point in own], [to_y(point.percent) for point in own], kind)
        for point, kind in zip(points, kinds, strict=True):
            board.mark(to_x(point.ms), to_y(point.percent), kind, point.title)
        labels = PointLabels(board)
        for point in sorted(points, key=lambda each: (not each.taken, each.row.kind != "dense", not each.on_front)):
            x, y = to_x(point.ms), to_y(point.percent)
            if point.taken:
                board.mark(x, y, "chosen", f"taken: {point.title}")
            if point.row.kind == "dense":
                labels.write(x, y, f"dense, {point.precision}" if several else "dense", "label halo")
            elif point.on_front:
                labels.write(x, y, str(front.index(point) + 1), f"label{' good' if point.taken else ''} halo")

    legend = [("dense", "dense"), *((series_kind(index), name) for index, name in enumerate(series))]
    if any(point.row.kind == "random" for point in points):
        legend.append(("random", "random with as many tokens"))
    rows = [(point.title.partition(":")[0], f"{number(point.percent)} %", f"{number(point.ms)} ms") for point in points]
    caption = (
        "Up and to the left is better. The line joins what no other setting beats, its numbers are those of the table "
        "below; point at a mark for method, precision and schedule."
        + (" Each precision was timed in a run of its own, one after the other." if several else "")
        + (" The dashed line is what may be lost." if floor_y is not None else "")
    )
    return Figure(
        title=title,
        caption=caption,
        svgs=drawn(draw, "front", title, caption, height=370),
        columns=("setting", measure, "latency"),
        rows=tuple(rows),
        legend=tuple(legend),
    )


def _series(point: FrontPoint, several: bool) -> str:
    return f"{point.method}, {point.precision}" if several else point.method


def _kind(point: FrontPoint, series: Sequence[str], several: bool) -> str:
    return series_kind(series.index(_series(point, several))) if point.row.kind == "asked" else point.row.kind


def _rows(points: Sequence[FrontPoint]) -> list[tuple[str, ...]]:
    return [
        (
            f"{place}{', taken' if point.taken else ''}",
            point.method,
            point.precision,
            arrows(point.tokens) or "all",
            number(point.ms),
            f"{point.percent:.2f}%",
        )
        for place, point in enumerate((point for point in points if point.on_front), start=1)
    ]


def _measured(result: "TuneResult") -> list[str]:
    parts = []
    for precision, found in result.sweeps.items():
        rows = [cells_of(row, found) for row in sorted_rows(found)]
        shown = [(row[0], *map(together, row[1:-1]), row[-1]) for row in rows]
        parts += [
            f"<h2>Measured in {escape(precision)}</h2>",
            _table((*columns_of(found)[:-1], "what to know"), shown),
        ]
    return parts


def _refused(result: "TuneResult") -> list[str]:
    parts = ["<h2>Refused, and why</h2>"]
    rows = [(spec, precision, f"{reason[:1].upper()}{reason[1:]}.") for precision, spec, reason in result.refused]
    if rows:
        parts.append(_table(("setting", "precision", "reason"), [(a, b, c.replace("..", ".")) for a, b, c in rows]))
    else:
        parts.append("<p>No setting that was measured was refused.</p>")
    if result.misfits:
        parts += ["<h3>Methods that do not fit the model</h3>", _table(("method", "reason"), result.misfits)]
    return parts


def _facts(result: "TuneResult") -> list[tuple[str, str]]:
    base, request = _base(result), result.request
    return [
        ("model", f"{base.model['source']}, weights {base.model['weights']}"),
        ("methods", ", ".join(request["methods"])),
        ("precisions", ", ".join(request["precisions"])),
        ("samples", result.samples["said"]),
        ("classes", base.data["classes"] or "no labels: answers are compared with dense's"),
        ("search", f"NSGA-II, {result.trials} trials, seed {request['seed']}"),
        ("timing", f"{base.protocol['kind']}; {request['rounds']} rounds of each, then once more beside dense"),
        ("interval", base.protocol["interval"]),
        ("versions", ", ".join(f"{name} {version}" for name, version in result.versions.items())),
    ]


def _table(columns: Sequence[str], rows: Sequence[Sequence[str | None]]) -> str:
    return f'<div class="scroll">{rows_html(columns, rows)}</div>'
