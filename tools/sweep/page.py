"""The page of a sweep: what to take, accuracy over latency and over FLOPs, and every setting as a table."""

from collections.abc import Callable, Sequence

from trt_compress.tools.report.escaping import escape
from trt_compress.tools.report.html import figure_html, page_html, rows_html
from trt_compress.tools.report.numbers import large, number
from trt_compress.tools.report.plots import Figure
from trt_compress.tools.report.svg import SIZES, Board, Size, linear, nice_ticks, tick_text
from trt_compress.tools.sweep.result import Measure, Row, SweepResult, points
from trt_compress.tools.sweep.text import cells_of, columns_of, measure_title, sorted_rows

_SERIES = 8
_LEAST_SPAN = 5.0  # points below dense that are drawn at least, so that noise does not fill the plot
CSS = """
:root { --s4: #0e7c86; --s5: #a8326e; --s6: #6b7000; --s7: #7a4b2a; }
@media (prefers-color-scheme: dark) { :root { --s4: #4cc4cf; --s5: #f07fb4; --s6: #c5cb4a; --s7: #d09b73; } }
.series4 { stroke: var(--s4); } .series5 { stroke: var(--s5); } .series6 { stroke: var(--s6); }
.series7 { stroke: var(--s7); } .mark.dense { fill: var(--ink); stroke: none; }
.mark.random { stroke: var(--soft); fill: none; } .line.random { stroke: var(--soft); stroke-dasharray: 3 3; }
.mark.chosen { fill: none; stroke: var(--good); stroke-width: 2.5; } .dots.dense { stroke: var(--ink); }
.dots.random { stroke: var(--soft); }
svg .label.good { fill: var(--good); font-weight: 600; }
.tiles dd { overflow-wrap: anywhere; } tbody th { min-width: 180px; overflow-wrap: anywhere; }
td { overflow-wrap: normal; }
"""


def page_from_sweep(result: SweepResult) -> str:
    """Make the page: one file that loads nothing."""
    figures = [figure for figure in (_over_latency(result), _over_flops(result)) if figure is not None]
    found = result.recommended is not None
    body = [
        _head(result),
        f'<div class="verdict {"stable" if found else "unstable"}">'
        f"<strong>{'take' if found else 'none'}</strong><span>{escape(' '.join(result.advice))}</span></div>",
        _tiles(result),
        *map(figure_html, figures),
        "<h2>Settings</h2>",
        _table(result),
        *_left_out(result),
        "<h2>How it was measured</h2>",
        f'<div class="scroll">{rows_html((), _facts(result))}</div>',
        "<footer>Every setting was exported, proven against PyTorch, judged on the same samples and timed in the same "
        "interleaved run. Latency is that of this machine; measure again on the device that you deploy on.</footer>",
    ]
    return page_html(f"{result.model['source']}: compressor sweep", body, more_css=CSS)


def _head(result: SweepResult) -> str:
    data, device = result.data, result.device
    lines = [
        f"{data['form']}, {data['answered']} samples; {result.model['weights']}, {result.model['precision']}",
        f"{device.get('cpu')} ({device.get('cores')} cores), {result.started_at[:19].replace('T', ' ')}",
    ]
    if result.interrupted:
        lines.append("Interrupted: only what was done until then is shown.")
    title = f"Which compressor for {result.model['source']}, and how much?"
    return f"<header><h1>{escape(title)}</h1>{''.join(f'<p>{escape(line)}</p>' for line in lines)}</header>"


def _tiles(result: SweepResult) -> str:
    best = next((row for row in result.rows if row.spec == result.recommended), None)
    dense = result.dense
    cells: list[tuple[str, str, str]] = []
    if best is not None and best.speedup is not None and best.latency is not None and dense.latency is not None:
        drop = best.drop_points(result.measure, dense.value(result.measure))
        cells = [
            ("take", best.spec, f"{best.tokens_in} → {best.tokens_out} tokens" if best.tokens_in else ""),
            (
                "speed-up here",
                f"{best.speedup.median:.2f}×",
                f"{number(dense.latency.median_ns / 1e6)} → {number(best.latency.median_ns / 1e6)} ms",
            ),
            (f"{measure_title(result)} lost", f"{drop or 0:.1f} points", f"n {best.scores.n}"),
        ]
        if best.flops and dense.flops:
            cells.append(("FLOPs", f"{dense.flops / best.flops:.2f}× fewer", f"{large(best.flops)} a sample"))
    value = dense.value(result.measure)
    if result.measure == "accuracy" and value is not None:
        cells.append(("accuracy of dense", f"{value:.1%}", f"n {dense.scores.n}"))
    shown = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(text)}<small>{escape(note)}</small></dd></div>"
        for name, text, note in cells
    )
    return f'<dl class="tiles">{shown}</dl>'


def _table(result: SweepResult) -> str:
    rows = [cells_of(row, result) for row in sorted_rows(result)]
    numbered = [
        (f"{place}. {row[0]}" if place else row[0], *map(together, row[1:-1]), row[-1])
        for place, row in enumerate(rows)
    ]
    return f'<div class="scroll">{rows_html((*columns_of(result)[:-1], "what to know"), numbered)}</div>'


def together(cell: str | None) -> str | None:
    """A cell whose interval and arrow are not broken over two lines."""
    return cell and cell.replace(", ", ",\u00a0").replace(" → ", "\u00a0→\u00a0")


def _left_out(result: SweepResult) -> list[str]:
    parts = []
    for title, columns, rows in (
        ("Do not fit the model, or failed", ("setting", "reason"), result.misfits),
        ("Without random beside them", ("setting", "reason"), result.alone),
        ("Samples that could not be read", ("sample", "reason"), result.failures),
    ):
        if rows:
            parts.append(f'<h3>{title}</h3><div class="scroll">{rows_html(columns, rows)}</div>')
    return parts


def _facts(result: SweepResult) -> list[tuple[str, str]]:
    data, protocol = result.data, result.protocol
    return [
        ("model", f"{result.model['source']}, weights {result.model['weights']}, {result.model['precision']}"),
        ("data", f"{data['source']}: {data['form']}; {data['answered']} of {data['samples']} samples answered"),
        ("classes", data["classes"] or "no labels"),
        *((name, "the backend's choice" if value is None else str(value)) for name, value in protocol.items()),
        ("largest loss", points(result.max_drop)),
        ("versions", ", ".join(f"{name} {version}" for name, version in result.versions.items())),
    ]


def _families(result: SweepResult) -> list[str]:
    """Names of the methods in the order of the plot's colours."""
    return list(dict.fromkeys(_family(row) for row in result.rows if row.kind == "asked"))


def _family(row: Row) -> str:
    return "+".join(part.partition(":")[0] for part in row.spec.split("+"))


def _over_latency(result: SweepResult) -> Figure | None:
    return _scatter(
        result,
        "latency",
        lambda row: None if row.latency is None else row.latency.median_ns / 1e6,
        lambda value: f"{number(value)} ms",
        f"median latency, ms, batch {result.protocol['batch']}",
    )


def _over_flops(result: SweepResult) -> Figure | None:
    dense = result.dense.flops
    if not dense:
        return None
    return _scatter(
        result,
        "FLOPs",
        lambda row: None if row.flops is None else row.flops / dense,
        lambda value: f"{value:.2f}",
        "FLOPs of a sample, dense is 1",
    )


def _scatter(
    result: SweepResult, name: str, place: Callable[[Row], float | None], text: Callable[[float], str], x_title: str
) -> Figure | None:
    measure = result.measure
    found = [
        (row, x, y)
        for row in result.rows
        if (x := place(row)) is not None and (y := _percent(row, measure)) is not None
    ]
    if len(found) < 2 or found[0][0].kind != "dense":
        return None
    numbers = {row.spec: str(index) for index, row in enumerate(sorted_rows(result))}
    families = _families(result)
    floor_y = found[0][2] - result.max_drop
    title = f"{measure_title(result).capitalize()} over {name}"
    low_x, high_x = ends([x for _, x, _ in found], 0.08)
    low_y, high_y = ends([*(y for _, _, y in found), floor_y, found[0][2] - _LEAST_SPAN], 0.1)
    high_y = min(high_y, 100 + 0.04 * (high_y - low_y))

    def draw(board: Board) -> None:
        size = board.size
        bottom, right = size.top + size.inner_height, size.left + size.inner_width
        to_x = linear(low_x, high_x, size.left, right)
        to_y = linear(low_y, high_y, bottom, size.top)
        board.axes(
            [(to_x(value), tick_text(value)) for value in nice_ticks(low_x, high_x, size.inner_width // 80)],
            [(to_y(value), f"{value:g}%") for value in nice_ticks(low_y, high_y, 5) if value <= 100],
            x_title,
            f"{measure_title(result)}, %",
            (to_x, to_y),
        )
        board.line(size.left, to_y(floor_y), right, to_y(floor_y), "deadline")
        words = f"dense less {points(result.max_drop)}"
        board.text(right, to_y(floor_y) + 14, words, anchor="end", kind="label deadline halo")
        board.line(to_x(found[0][1]), size.top, to_x(found[0][1]), bottom, "reference")
        for index, family in enumerate(families):
            own = sorted((x, y) for row, x, y in found if row.kind == "asked" and _family(row) == family)
            board.polyline([to_x(x) for x, _ in own], [to_y(y) for _, y in own], series_kind(index))
        for row, x, y in found:
            kind = row.kind if row.kind != "asked" else series_kind(families.index(_family(row)))
            board.mark(to_x(x), to_y(y), kind, f"{_name(row)}: {number(y)} %, {text(x)}")
        labels = PointLabels(board)
        for row, x, y in sorted(found, key=lambda each: (each[0].spec != result.recommended, each[0].kind != "dense")):
            chosen = row.spec == result.recommended
            if chosen:
                board.mark(to_x(x), to_y(y), "chosen", f"recommended: {row.spec}")
            if row.kind != "random":
                words = "dense" if row.kind == "dense" else numbers[row.spec]
                labels.write(to_x(x), to_y(y), words, f"label{' good' if chosen else ''} halo")

    legend = [("dense", "dense"), *((series_kind(index), family) for index, family in enumerate(families))]
    if any(row.kind == "random" for row, _, _ in found):
        legend.append(("random", "random with as many tokens"))
    rows = [(_name(row), f"{number(y)} %", text(x)) for row, x, y in found]
    caption = (
        "Up and to the left is better. Numbers are those of the table; lines join the "
        f"settings of one method. The dashed line is what may be lost, {points(result.max_drop)} below dense. A "
        "setting under it is not recommended, nor one to the right of dense."
    )
    described = "; ".join(f"{spec}: {y}, {x}" for spec, y, x in rows)
    svgs = []
    for base in SIZES:
        board = Board(Size(name=base.name, width=base.width, height=base.height + 60, left=base.left, right=base.right))
        draw(board)
        svgs.append(board.svg(f"sweep-{name}", title, described))
    return Figure(
        title=title,
        caption=caption,
        svgs=tuple(svgs),
        columns=("setting", measure_title(result), name),
        rows=tuple(rows),
        legend=tuple(legend),
    )


class PointLabels:
    """Writes labels beside points where they do not cover one another; one that finds no place is left out."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._taken: list[tuple[float, float, float, float]] = []

    def write(self, x: float, y: float, words: str, kind: str) -> None:
        """Write a label above the point, else below it, on the side where there is room."""
        width, size = 7.5 * len(words), self._board.size
        right = x + 7 + width <= size.left + size.inner_width
        start = x + 7 if right else x - 7 - width
        for base in (y - 6, y + 16):
            box = (start, base - 11, start + width, base + 2)
            free = all(box[2] <= t[0] or t[2] <= box[0] or box[3] <= t[1] or t[3] <= box[1] for t in self._taken)
            if free and base <= size.top + size.inner_height:
                self._taken.append(box)
                self._board.text(start if right else x - 7, base, words, anchor="start" if right else "end", kind=kind)
                return


def _percent(row: Row, measure: Measure) -> float | None:
    value = row.value(measure)
    return None if value is None else 100 * value


def _name(row: Row) -> str:
    if row.kind == "dense":
        return "dense"
    return f"random beside {', '.join(row.beside)}" if row.kind == "random" and row.beside else row.spec


def series_kind(index: int) -> str:
    """The class of a colour, one of eight."""
    return f"series{index % _SERIES}"


def ends(values: Sequence[float], margin: float) -> tuple[float, float]:
    """Ends of an axis: the least and the largest value with some room."""
    low, high = min(values), max(values)
    room = margin * (high - low) or 0.05 * abs(high) or 1.0
    return low - room, high + room
