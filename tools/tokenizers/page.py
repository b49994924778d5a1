"""The report of tokenizers as tables and as a page, with the plots and the style of the other reports."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from trt_compress.tools.report.escaping import escape
from trt_compress.tools.report.html import figure_html, page_html, rows_html
from trt_compress.tools.report.numbers import number
from trt_compress.tools.report.plots import Figure
from trt_compress.tools.report.sections import Section
from trt_compress.tools.report.svg import (
    SIZES,
    Board,
    Size,
    decade_ticks,
    linear,
    logarithmic,
    nice_ticks,
    text_width,
    tick_text,
)
from trt_compress.tools.tokenizers.measure import SizeAdvice, TextFigures, TokenizerFigures

_ROW, _TOP, _COLOURS = 20, 6, 4
_LONGEST_WORD = 24  # characters of a word that are shown


def sections(figures: Sequence[TokenizerFigures], advice: Sequence[SizeAdvice]) -> list[Section]:
    """The tables of a report."""
    found = [
        Section(
            title="Tokens",
            columns=(
                "text",
                "tokenizer",
                "tokens",
                "bytes a token",
                "premium",
                "95 %",
                "vocabulary used",
                "bits a token",
                "encode MB/s",
                "decode MB/s",
                "comes back",
            ),  # fmt: skip
            rows=tuple(_row(one, text) for one in figures for text in one.texts),
        ),
        Section(
            title="Vocabularies",
            columns=("tokenizer", "kind", "size", "used", "share", "bits a token"),
            rows=tuple(
                (
                    one.name,
                    one.kind,
                    str(one.size),
                    str(one.used),
                    f"{one.used / one.size:.1%}",
                    f"{one.entropy_bits:.2f}",
                )
                for one in figures
            ),  # fmt: skip
        ),
        Section(
            title="Words that cost most",
            columns=("text", "tokenizer", "word (occurrences × tokens)"),
            rows=tuple(
                (
                    text.name,
                    one.name,
                    ", ".join(f"{_begun(word)} ({times} × {tokens})" for word, times, tokens in text.worst_words),
                )
                for one in figures
                for text in one.texts
                if text.worst_words
            ),
        ),
    ]
    if advice:
        found.append(
            Section(
                title="Tokens by the size of the vocabulary: a·V^(-b) + c",
                columns=("text", "a", "b", "c", "largest error", "wanted tokens", "vocabulary for them"),
                rows=tuple(
                    (
                        item.text,
                        number(item.law.a),
                        number(item.law.b),
                        number(item.law.c),
                        f"{item.law.worst:.1%}",
                        number(item.target),
                        "no size" if item.size is None else str(item.size),
                    )
                    for item in advice
                ),  # fmt: skip
            )
        )
    return found


def _begun(word: str) -> str:
    """A word, of a long one its beginning: scripts without spaces have whole sentences as words."""
    return word if len(word) <= _LONGEST_WORD else f"{word[: _LONGEST_WORD - 1]}…"


def _row(one: TokenizerFigures, text: TextFigures) -> tuple[str | None, ...]:
    over = text.premium
    interval = None if over is None or over.low is None else f"{over.low:.2f} to {over.high:.2f}"
    ratio = text.bytes_a_token
    return (
        text.name,
        one.name,
        str(text.tokens),
        None if ratio is None else f"{ratio:.2f}",
        None if over is None else f"{over.ratio:.2f}",
        interval,
        f"{text.used / one.size:.1%}",
        f"{text.entropy_bits:.2f}",
        _speed(text.num_bytes, text.encode_s),
        _speed(text.num_bytes, text.decode_s),
        "yes" if text.comes_back else "no",
    )


def _speed(num_bytes: int, seconds: float) -> str | None:
    return number(num_bytes / 1e6 / seconds) if seconds and num_bytes else None


def page(figures: Sequence[TokenizerFigures], advice: Sequence[SizeAdvice], made: dict[str, Any]) -> str:
    """The whole page.

    Args:
        figures: Each tokenizer on all texts.
        advice: The fits; may be empty.
        made: With what it was measured, as `records.measured_with` gives it.
    """
    names = ", ".join(one.name for one in figures)
    machine = f"{made['device'].get('cpu')}, {str(made['date'])[:10]}, commit {made['commit']}"
    body = [
        f"<header><h1>Tokenizers: {escape(names)}</h1><p>{escape(machine)}</p></header>",
        "<h2>Plots</h2>",
        *map(figure_html, plots(figures, advice)),
        "<h2>Numbers</h2>",
    ]
    for section in sections(figures, advice):
        table = rows_html(section.columns, section.rows)
        body.append(f'<h3>{escape(section.title)}</h3><div class="scroll">{table}</div>')
    body.append(
        "<footer>Times are medians of three. Premiums are tokens over those of the same lines in the language of "
        "reference; their intervals draw lines again.</footer>"
    )
    css = "".join(f".fill{at} {{ fill: var(--s{at}); }} " for at in range(_COLOURS))
    return page_html(f"Tokenizers: {names}", body, more_css=css)


def plots(figures: Sequence[TokenizerFigures], advice: Sequence[SizeAdvice]) -> list[Figure]:
    """Bytes a token, premiums where the texts are parallel, and the fits where there are any."""
    found = [_bars(figures, "Bytes a token", "bytes-a-token", lambda text: text.bytes_a_token, "More is fewer tokens.")]
    if any(text.premium is not None for one in figures for text in one.texts):
        found.append(
            _bars(
                figures,
                "Tokens over those of the reference",
                "premium",
                lambda text: None if text.premium is None else text.premium.ratio,
                "1 is as many tokens as the same lines have in the language of reference.",
            )
        )
    if advice:
        found.append(_fits(figures, advice))
    return found


def _bars(
    figures: Sequence[TokenizerFigures],
    title: str,
    identifier: str,
    value: Callable[[TextFigures], float | None],
    caption: str,
) -> Figure:
    texts = [text.name for text in figures[0].texts]
    values = [[value(text) for text in one.texts] for one in figures]
    top = max((item for row in values for item in row if item is not None), default=1.0) or 1.0
    each = _ROW * len(figures) + 8

    def draw(board: Board) -> None:
        size = board.size
        to_x = linear(0, top, size.left, size.left + size.inner_width - 44)
        for tick in nice_ticks(0, top, max(2, size.inner_width // 110)):
            board.line(to_x(tick), size.top, to_x(tick), size.height - size.bottom, "grid")
            board.text(to_x(tick), size.height - size.bottom + 16, tick_text(tick), anchor="middle", kind="tick")
        for place, name in enumerate(texts):
            y = size.top + place * each
            board.text(size.left - 8, y + each / 2, _short(name, size.left - 12), anchor="end")
            for row, one in enumerate(figures):
                found = values[row][place]
                if found is None:
                    continue
                at = y + row * _ROW + 3
                words = f"{found:.2f}"
                board.bar(to_x(0), at, to_x(found) - to_x(0), _ROW - 5, _fill(row), f"{name}, {one.name}: {words}")
                board.text(to_x(found) + 5, at + 12, words)
        board.text(size.left + size.inner_width, size.height - 6, title.lower(), anchor="end", kind="title")

    svgs = []
    for base in SIZES:
        height = _TOP + each * len(texts) + base.bottom
        board = Board(Size(name=base.name, width=base.width, height=height, left=150 if base.name == "wide" else 110,
                           right=base.right, top=_TOP))  # fmt: skip
        draw(board)
        svgs.append(board.svg(identifier, title, f"{caption} The largest is {number(top)}."))
    rows = [
        (name, *("-" if (item := values[row][place]) is None else f"{item:.3f}" for row in range(len(figures))))
        for place, name in enumerate(texts)
    ]
    return Figure(
        title=title,
        caption=caption,
        svgs=tuple(svgs),
        columns=("text", *(one.name for one in figures)),
        rows=tuple(rows),
        legend=tuple((f"series{row % _COLOURS}", one.name) for row, one in enumerate(figures)),
    )


def _fits(figures: Sequence[TokenizerFigures], advice: Sequence[SizeAdvice]) -> Figure:
    title = "Tokens by the size of the vocabulary"
    sizes = [one.size for one in figures]
    low, high = min(sizes) / 1.3, max(sizes) * 1.3
    steps = [low * (high / low) ** (at / 60) for at in range(61)]
    curves = [[item.law.tokens(size) for size in steps] for item in advice]
    points = [[one.texts[place].tokens for one in figures] for place in range(len(advice))]
    top = max(max(max(curve) for curve in curves), max(max(point) for point in points)) * 1.05 or 1.0

    def draw(board: Board) -> None:
        size = board.size
        floor = size.top + size.inner_height
        to_x = logarithmic(low, high, size.left, size.left + size.inner_width)
        to_y = linear(0, top, floor, size.top)
        board.axes(
            [(to_x(tick), tick_text(tick)) for tick in decade_ticks(low, high, max(3, size.inner_width // 90))],
            [(to_y(tick), tick_text(tick)) for tick in nice_ticks(0, top, 5)],
            "entries of the vocabulary, logarithmic",
            "tokens",
            (to_x, to_y),
        )
        for place, (curve, dots) in enumerate(zip(curves, points, strict=True)):
            kind = f"series{place % _COLOURS}"
            board.polyline([to_x(step) for step in steps], [to_y(value) for value in curve], kind)
            board.dots([to_x(value) for value in sizes], [to_y(value) for value in dots], f"{kind} few")

    svgs = []
    for base in SIZES:
        board = Board(base)
        draw(board)
        svgs.append(board.svg("fit", title, f"Fits of {len(advice)} texts over {len(sizes)} vocabularies."))
    return Figure(
        title=title,
        caption="Dots are tokenizers, lines the fits a·V^(-b) + c.",
        svgs=tuple(svgs),
        columns=("text", *(str(size) for size in sizes)),
        rows=tuple((item.text, *map(str, row)) for item, row in zip(advice, points, strict=True)),
        legend=tuple((f"series{place % _COLOURS}", item.text) for place, item in enumerate(advice)),
    )


def _fill(row: int) -> str:
    return f"work fill{row % _COLOURS}"


def _short(name: str, width: float) -> str:
    """A name that fits; its end tells more than its beginning."""
    most = max(6, math.floor(width / text_width("x")))
    return name if len(name) <= most else f"…{name[1 - most :]}"
