"""The plots of a report's page, drawn as SVG by ourselves.

A library was tried on the same page (uPlot 1.6.32, a stream of 1,800 frames, its latency and its distribution drawn by
it) and is not used: the page was 166 KB instead of 138 (compressed 51 instead of 37), without scripts the plots were
empty, letters and lines were pixels (printed as PDF 603 KB instead of 266), no text of a plot could be searched or read
aloud, and of our own code only the 111 lines of `page.js` became 50: waterfalls, bands, words over sound and percentile
labels have to be drawn by ourselves either way. Both had values under the pointer and zoom along the axis of time.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from trt_compress.runtime.tokens import token_flows
from trt_compress.tools.report.numbers import number
from trt_compress.tools.report.record import Distribution, Plots, ReportSide, Waterfall
from trt_compress.tools.report.svg import (
    SIZES,
    Board,
    Scale,
    Size,
    decade_ticks,
    linear,
    logarithmic,
    nice_ticks,
    text_width,
    tick_text,
)

Rows = list[tuple[str, ...]]

_LOG_FROM = 12  # a largest value this many times the smallest is drawn on a logarithmic axis
_SLICES = 10
_SECONDS = "time in s"  # as the series of a stream say what their axis is
_FEW = 60  # results up to this many are drawn as large dots
_FEWEST_SPREAD = 5  # results below which a distribution says nothing
_WATERFALL_TOP = 6
_LINE = 13  # height of a line of labels


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A plot in every size, its caption, and its numbers as a table."""

    title: str
    caption: str
    svgs: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    legend: tuple[tuple[str, str], ...] = ()


def figures_of(sides: Sequence[ReportSide], deadline_ms: float | None) -> list[Figure]:
    """All plots that the numbers of these sides allow."""
    figures = [_latency(sides, deadline_ms), _ecdf(sides)]
    for index, side in enumerate(sides):
        name = f"-{side.role}" if len(sides) > 1 else ""
        figures += [
            _waterfall(fall, f"waterfall{name}-{index}-{place}") for place, fall in enumerate(side.plots.waterfalls)
        ]
        if len(set(side.plots.tokens_out)) > 1:  # a number that stays is on its card
            figures.append(_tokens(side, f"tokens{name}"))
        if side.accounting is not None:
            figures.append(_lost(side, f"lost{name}"))
        if side.resources.power is not None and side.resources.power.times_s:
            figures.append(_power(side, f"power{name}"))
    return [figure for figure in figures if figure is not None]


def drawn(draw: Callable[[Board], None], identifier: str, title: str, caption: str, **changes: int) -> tuple[str, ...]:
    """Draw a plot in every size; `changes` are to the size's own numbers."""
    svgs = []
    for base in SIZES:
        values = {"left": base.left, "right": base.right, "height": base.height} | changes
        size = Size(name=base.name, width=base.width, top=base.top, bottom=base.bottom, **values)
        board = Board(size)
        draw(board)
        svgs.append(board.svg(identifier, title, caption))
    return tuple(svgs)


def _series_kind(index: int) -> str:
    return f"series{index}"


def _value_scale(low: float, high: float, start: float, end: float) -> tuple[Scale, list[float], bool]:
    """A scale for latencies: from 0, or logarithmic where they differ by much."""
    if low > 0 and high / low > _LOG_FROM:
        bottom, top = low / 1.2, high * 1.2
        return logarithmic(bottom, top, start, end), decade_ticks(bottom, top, 6), True
    top = high * 1.08 or 1.0
    return linear(0, top, start, end), nice_ticks(0, top, 5), False


def _span(x: Sequence[float]) -> tuple[float, float]:
    """Ends of an axis from 0 on, never the same."""
    first, last = min(0.0, min(x)), max(x)
    return first, last if last > first else first + 1.0


def _per_unit(x: str, last: float) -> float:
    """What a value of the axis is multiplied by for its ticks: a stream of less than a second is in milliseconds."""
    return 1000.0 if x == _SECONDS and last < 1 else 1.0


def _x_title(x: str, last: float) -> str:
    if x == "run":
        return "run, in order of time"
    return "time in ms" if _per_unit(x, last) != 1 else x


def time_ticks(scale: Scale, low: float, high: float, size: Size, per_unit: float = 1.0) -> list[tuple[float, str]]:
    """Positions and words of the ticks of an axis of time."""
    most = max(4, size.inner_width // 90)
    values = nice_ticks(low * per_unit, high * per_unit, most)
    return [(scale(value / per_unit), tick_text(value)) for value in values]


def _latency(sides: Sequence[ReportSide], deadline_ms: float | None) -> Figure | None:
    plots = [side.plots for side in sides if side.plots.latency_ms]
    if not plots:
        return None
    kind = "End-to-end latency" if plots[0].x != "run" else "Latency of one inference"
    title = f"{kind} over {'time' if plots[0].x != 'run' else 'the run'}"
    values = [value for part in plots for value in part.latency_ms]
    values += [deadline_ms] if deadline_ms is not None else []
    low, high = min(values), max(values)
    ends = [x for part in plots for x in (*part.latency_x, *part.lost_x)]
    first, last = _span(ends)
    few = " few" if max(len(part.latency_ms) for part in plots) <= _FEW else ""

    def draw(board: Board) -> None:
        size = board.size
        floor = size.top + size.inner_height
        rug = 16 if any(part.lost_x for part in plots) else 0
        to_x = linear(first, last, size.left + 6, size.left + size.inner_width - 6)
        to_y, ticks, log = _value_scale(low, high, floor - rug, size.top)
        y_title = f"{kind.lower()}, ms{', logarithmic' if log else ''}"
        board.axes(
            time_ticks(to_x, first, last, size, _per_unit(plots[0].x, last)),
            [(to_y(value), tick_text(value)) for value in ticks],
            _x_title(plots[0].x, last),
            y_title,
            (replace(to_x, factor=_per_unit(plots[0].x, last)), to_y),
            zooms=True,
        )
        limit = math.inf if deadline_ms is None else deadline_ms
        for index, part in enumerate(plots):
            for kind_of, late in ((_series_kind(index), False), ("late", True)):
                points = [p for p in zip(part.latency_x, part.latency_ms, strict=True) if (p[1] > limit) == late]
                board.dots([to_x(x) for x, _ in points], [to_y(y) for _, y in points], kind_of + few)
        if deadline_ms is not None:
            board.line(size.left, to_y(deadline_ms), size.left + size.inner_width, to_y(deadline_ms), "deadline")
        for part in plots:
            for x, count, outcome in zip(part.lost_x, part.lost_count, part.lost_outcome, strict=True):
                at = f"{tick_text(round(x, 3))} s: {count} {outcome}"
                board.mark(to_x(x), floor - 7, outcome, at)

    caption = "Each dot is a result."
    if any(
        len(p.latency_x) < whole.n for p, side in zip(plots, sides, strict=False) if (whole := side.latency.headline[1])
    ):
        caption = "Each dot is a result; of many neighbours the smallest and the largest are drawn."
    legend = _legend(sides)
    if deadline_ms is not None:
        results = [value for part in plots for value in part.latency_ms]
        if not legend and min(results) <= deadline_ms:
            legend += [(_series_kind(0), "result on time")]
        if max(results) > deadline_ms:
            legend += [("late", "result after the deadline")]
        legend += [("deadline", f"deadline {number(deadline_ms)} ms")]
    outcomes = sorted({outcome for part in plots for outcome in part.lost_outcome})
    if outcomes:
        caption += " Marks above the axis are frames without a result, at their arrival."
        legend += [(outcome, f"{outcome} frame") for outcome in outcomes]
    rows: Rows = []
    for side, part in zip(sides, plots, strict=False):
        rows += [(*([side.role] if len(sides) > 1 else []), *row) for row in _slices(part.latency_x, part.latency_ms)]
    columns = ("from", "to", "smallest ms", "largest ms")
    return Figure(
        title=title,
        caption=caption,
        svgs=drawn(draw, "latency", title, _range_text(kind, low, max(max(p.latency_ms) for p in plots), deadline_ms)),
        columns=(("side", *columns) if len(sides) > 1 else columns),
        rows=tuple(rows),
        legend=tuple(legend),
    )


def _range_text(kind: str, low: float, high: float, deadline_ms: float | None) -> str:
    words = f"{kind} lies between {number(low)} and {number(high)} ms."
    return words if deadline_ms is None else f"{words} The deadline is {number(deadline_ms)} ms."


def _legend(sides: Sequence[ReportSide]) -> list[tuple[str, str]]:
    if len(sides) < 2:
        return []
    return [
        (_series_kind(index), f"{side.role}: {side.identity.name}" if side.role != side.identity.name else side.role)
        for index, side in enumerate(sides)
    ]


def _slices(x: Sequence[float], y: Sequence[float]) -> Rows:
    """Smallest and largest value of equal slices of x: exact even where a plot is thinned out."""
    first, last = x[0], x[-1]
    if first == last:
        return [(tick_text(first), tick_text(last), number(min(y)), number(max(y)))]
    rows: Rows = []
    width = (last - first) / _SLICES
    for index in range(_SLICES):
        low, high = first + index * width, first + (index + 1) * width
        inside = [b for a, b in zip(x, y, strict=True) if low <= a < high or (index == _SLICES - 1 and a == last)]
        if inside:
            rows.append((f"{low:.4g}", f"{high:.4g}", number(min(inside)), number(max(inside))))
    return rows


def _nines(share: float, n: int) -> float:
    """Position of a share on an axis on which 90 %, 99 % and 99.9 % are evenly spread; all lies above n - 1 of n."""
    return -math.log10(max(1 - share, 0.5 / n))


def _percentiles(part: Distribution) -> list[tuple[str, float, float]]:
    tails = (("p90", 0.9, part.p90_ns), ("p95", 0.95, part.p95_ns), ("p99", 0.99, part.p99_ns))
    named = [("p50", 0.5, part.median_ns), *tails, ("p99.9", 0.999, part.p99_9_ns)]
    return [(name, share, ns / 1e6) for name, share, ns in named if ns is not None]


def _ecdf(sides: Sequence[ReportSide]) -> Figure | None:
    shown = [
        (index, side.plots, part)
        for index, side in enumerate(sides)
        if (part := side.latency.headline[1]) is not None and side.plots.ecdf_ms and part.n >= _FEWEST_SPREAD
    ]
    if not shown:
        return None
    kind = sides[0].latency.headline[0]
    title = f"Distribution of the {kind} latency"
    low = min(min(plots.ecdf_ms) for _, plots, _ in shown)
    high = max(max(plots.ecdf_ms) for _, plots, _ in shown)
    most = max(part.n for _, _, part in shown)
    top = _nines(1, most)

    def draw(board: Board) -> None:
        size = board.size
        floor, right = size.top + size.inner_height, size.left + size.inner_width
        to_y = linear(0, top, floor, size.top + 6)
        log = low > 0 and high / low > _LOG_FROM
        margin = 0.06 * (high - low) or high * 0.1 or 1.0
        start, end = (low / 1.15, high * 1.15) if log else (max(0.0, low - margin), high + margin)
        to_x = (logarithmic if log else linear)(start, end, size.left, right)
        ticks = (
            decade_ticks(start, end, size.inner_width // 45) if log else nice_ticks(start, end, size.inner_width // 70)
        )
        shares = [share for share in (0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999) if _nines(share, most) < top]
        board.axes(
            [(to_x(value), tick_text(value)) for value in ticks],
            [(floor, "0%"), *((to_y(_nines(share, most)), f"{share * 100:g}%") for share in shares)],
            f"{kind} latency, ms{', logarithmic' if log else ''}",
            "share of results at or below, %",
            (to_x, replace(to_y, kind="nines")),
        )
        for index, plots, part in shown:
            heights = [to_y(_nines(share, part.n)) for share in plots.ecdf_share]
            board.steps([to_x(value) for value in plots.ecdf_ms], heights, _series_kind(index))
            for name, share, value in _percentiles(part):
                board.mark(to_x(value), to_y(_nines(share, part.n)), _series_kind(index), f"{name}: {number(value)} ms")
        fastest = min(shown, key=lambda item: item[2].median_ns)[0]
        for index, _, part in shown:
            _label_percentiles(
                board,
                [
                    (to_x(value), to_y(_nines(share, part.n)), f"{name} {number(value)}" if len(shown) == 1 else name)
                    for name, share, value in _percentiles(part)
                ],
                above=index == fastest,
            )

    caption = (
        "How large a share of all results was at least this fast. The upward axis spreads the tail: 90%, 99% and "
        "99.9% are evenly apart. Marked are the percentiles that n supports."
    )
    rows: Rows = []
    for index, _, part in shown:
        lead = (sides[index].role,) if len(sides) > 1 else ()
        rows += [(*lead, name, f"{number(value)} ms", str(part.n)) for name, _, value in _percentiles(part)]
        missing = {"p90_ns": "p90", "p95_ns": "p95", "p99_ns": "p99", "p99_9_ns": "p99.9"}
        rows += [(*lead, missing[key], why, str(part.n)) for key, why in part.reasons.items() if key in missing]
        rows.append((*lead, "max", f"{number(part.max_ns / 1e6)} ms", str(part.n)))
    columns = ("percentile", "latency", "n")
    description = "; ".join(
        f"{sides[i].role}: n {part.n}, median {number(part.median_ns / 1e6)} ms" for i, _, part in shown
    )
    return Figure(
        title=title,
        caption=caption,
        svgs=drawn(draw, "ecdf", title, description, left=72),
        columns=(("side", *columns) if len(sides) > 1 else columns),
        rows=tuple(rows),
        legend=tuple(_legend(sides)),
    )


def _label_percentiles(board: Board, marks: Sequence[tuple[float, float, str]], *, above: bool) -> None:
    """Write beside marks of a rising line where it does not go: left and above it, or right and below.

    A mark so near to the one before that their words would touch has none; the table has it.
    """
    right, last = board.size.left + board.size.inner_width, math.inf
    for x, y, words in marks:
        if last - y < _LINE:
            continue
        last = y
        fits_left, fits_right = (
            x - 8 - text_width(words) > board.size.left,
            x + 9 + text_width(words) < right and y + 15 < board.size.top + board.size.inner_height,
        )
        if (above and fits_left) or not fits_right:
            board.text(x - 8, y - 6, words, anchor="end", kind="label halo")
        else:
            board.text(x + 9, y + 15, words, kind="label halo")


def _waterfall(fall: Waterfall, identifier: str) -> Figure:
    title = f"Where the time goes: {fall.title.partition(':')[0].lower()} ({fall.frame})"
    total = max((step.start_ms + step.ms for step in fall.steps), default=0.0) or 1.0
    row_height = 24

    def draw(board: Board) -> None:
        size = board.size
        narrow = size.name == "narrow"
        right = size.left + size.inner_width
        to_x = linear(0, total, size.left, right - 66)
        ticks = nice_ticks(0, total, max(2, size.inner_width // 110))
        for value in ticks:
            board.line(to_x(value), size.top, to_x(value), size.height - size.bottom, "grid")
            board.text(to_x(value), size.height - size.bottom + 16, tick_text(value), anchor="middle", kind="tick")
        for index, step in enumerate(fall.steps):
            y = size.top + index * row_height
            name = step.name.removeprefix("queue ") if narrow else step.name
            board.text(size.left - 8, y + 15, name, anchor="end", kind="label")
            words = f"{number(step.ms)} ms"
            board.bar(
                to_x(step.start_ms),
                y + 4,
                to_x(step.start_ms + step.ms) - to_x(step.start_ms),
                15,
                step.kind,
                f"{step.name}: {words}",
            )
            board.text(max(to_x(step.start_ms + step.ms), to_x(step.start_ms) + 1) + 5, y + 15, words, kind="label")
        board.text(right, size.height - 6, "ms since the frame's arrival", anchor="end", kind="title")

    svgs = []
    for base in SIZES:
        left = 172 if base.name == "wide" else 134
        height = _WATERFALL_TOP + row_height * max(1, len(fall.steps)) + base.bottom
        board = Board(
            Size(name=base.name, width=base.width, height=height, left=left, right=base.right, top=_WATERFALL_TOP)
        )
        draw(board)
        words = ", ".join(f"{step.name} {number(step.ms)} ms" for step in fall.steps)
        svgs.append(board.svg(identifier, title, f"{fall.title}. {words}."))
    rows = [
        (step.name, step.kind, number(step.start_ms), number(step.ms), f"{step.ms / total:.1%}") for step in fall.steps
    ]
    return Figure(
        title=title,
        caption=f"{fall.title}; this one took {number(total)} ms. Blue bars are work, grey ones are waiting.",
        svgs=tuple(svgs),
        columns=("part", "kind", "from ms", "ms", "share"),
        rows=tuple(rows),
        legend=(("work", "work"), ("wait", "waiting")),
    )


def _tokens(side: ReportSide, identifier: str) -> Figure:
    plots = side.plots
    flows = token_flows(side.compression.sites)
    keeps = any(flow.keeps_rest for flow in flows)
    title = "Tokens of a frame that a site computes, at most" if keeps else "Tokens per frame after the last compressor"
    high = max(plots.tokens_out)
    top = max(high, side.compression.tokens_in or 0) * 1.08 or 1.0
    first, last = _span(plots.tokens_x)

    def draw(board: Board) -> None:
        size = board.size
        floor, right = size.top + size.inner_height, size.left + size.inner_width
        to_x = linear(first, last, size.left + 6, right - 6)
        to_y = linear(0, top, floor, size.top)
        board.axes(
            time_ticks(to_x, first, last, size, _per_unit(plots.x, last)),
            [(to_y(value), tick_text(value)) for value in nice_ticks(0, top, 4)],
            _x_title(plots.x, last),
            "tokens",
            (replace(to_x, factor=_per_unit(plots.x, last)), to_y),
            zooms=True,
        )
        if side.compression.tokens_in is not None:
            y = to_y(side.compression.tokens_in)
            board.line(size.left, y, right, y, "reference")
            words = f"{'all tokens' if keeps else 'tokens in'}: {tick_text(side.compression.tokens_in)}"
            board.text(right, y - 5, words, anchor="end", kind="label")
        board.steps([to_x(x) for x in plots.tokens_x], [to_y(y) for y in plots.tokens_out], _series_kind(0))

    rows = _slices(plots.tokens_x, plots.tokens_out)
    low = min(plots.tokens_out)
    span = f"{tick_text(high)}" if low == high else f"Between {tick_text(low)} and {tick_text(high)}"
    description = f"{span} tokens a frame."
    return Figure(
        title=title,
        caption=f"{description} The line goes from frame to frame; the dotted line is what "
        + ("the frame has; the tokens that are not computed are kept." if keeps else "the model gets uncompressed."),
        svgs=drawn(draw, identifier, title, description, height=200),
        columns=("from", "to", "fewest", "most"),
        rows=tuple(rows),
    )


def _lost(side: ReportSide, identifier: str) -> Figure | None:
    plots, accounting = side.plots, side.accounting
    if accounting is None or not plots.lost_x:
        return None
    title = "Frames without a result"
    ends = [*plots.lost_x, *plots.latency_x]
    first, last = _span(ends)
    outcomes = sorted(set(plots.lost_outcome))
    bins = {outcome: _binned(plots, outcome, first, last) for outcome in outcomes}
    most = max(sum(counts) for counts in zip(*bins.values(), strict=True))

    def draw(board: Board) -> None:
        size = board.size
        floor, right = size.top + size.inner_height, size.left + size.inner_width
        to_x = linear(first, last, size.left + 6, right - 6)
        to_y = linear(0, most * 1.08, floor, size.top)
        ticks = [value for value in nice_ticks(0, most, 4) if value == round(value)]
        x_ticks = time_ticks(to_x, first, last, size, _per_unit(plots.x, last))
        board.axes(x_ticks, [(to_y(v), tick_text(v)) for v in ticks], _x_title(plots.x, last), "frames")
        width = (to_x(last) - to_x(first)) / _BINS
        for place in range(_BINS):
            base = 0
            for outcome in outcomes:
                number_lost = bins[outcome][place]
                if number_lost:
                    x, y = to_x(first) + place * width, to_y(base + number_lost)
                    board.bar(
                        x + 0.5, y, width - 1, to_y(base) - y, f"bar {outcome}", f"{number_lost} {outcome} frames"
                    )
                    base += number_lost

    caption = (
        f"{accounting.dropped} dropped and {accounting.failed} failed of {accounting.frames_in}, by their arrival."
    )
    rows = [(cause, str(lost)) for cause, lost in accounting.causes.items()]
    return Figure(
        title=title,
        caption=caption,
        svgs=drawn(draw, identifier, title, caption, height=180),
        columns=("cause", "frames"),
        rows=tuple(rows),
        legend=tuple((outcome, outcome) for outcome in outcomes),
    )


_BINS = 60


def _binned(plots: Plots, outcome: str, first: float, last: float) -> list[int]:
    counts = [0] * _BINS
    width = (last - first) / _BINS or 1.0
    for x, lost, kind in zip(plots.lost_x, plots.lost_count, plots.lost_outcome, strict=True):
        if kind == outcome:
            counts[min(int((x - first) / width), _BINS - 1)] += lost
    return counts


def _power(side: ReportSide, identifier: str) -> Figure | None:
    power = side.resources.power
    if power is None:
        return None
    title = "Power of the rails"
    times = power.times_s
    high = max((value for curve in power.power_mw.values() for value in curve), default=0.0) / 1000

    def draw(board: Board) -> None:
        size = board.size
        floor, right = size.top + size.inner_height, size.left + size.inner_width
        to_x = linear(0, power.seconds, size.left, right)
        to_y = linear(0, high * 1.08 or 1.0, floor, size.top)
        board.axes(
            time_ticks(to_x, 0, power.seconds, size),
            [(to_y(value), tick_text(value)) for value in nice_ticks(0, high * 1.08 or 1.0, 5)],
            "time in s",
            "W",
            (to_x, to_y),
            zooms=True,
        )
        for index, curve in enumerate(power.power_mw.values()):
            board.polyline([to_x(t) for t in times], [to_y(max(p, 0) / 1000) for p in curve], _series_kind(index % 4))

    rows = [
        (
            rail.name,
            "-" if rail.mean_mw is None else f"{number(rail.mean_mw / 1000)} W",
            "yes" if rail.in_total else "no",
        )
        for rail in power.rails
    ]
    caption = f"{power.num_samples} raw samples of {power.reader}; smoothing: {power.smoothing}."
    return Figure(
        title=title,
        caption=caption,
        svgs=drawn(draw, identifier, title, caption, height=220),
        columns=("rail", "mean", "in the total"),
        rows=tuple(rows),
        legend=tuple((_series_kind(index % 4), name) for index, name in enumerate(power.power_mw)),
    )
