"""The drawing board of the plots: scales, axes and marks as SVG text. Colours are classes of `page.css`."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from trt_compress.tools.report.escaping import escape
from trt_compress.tools.report.numbers import number


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Maps low…high to the pixels start…end, equal steps to equal lengths or, logarithmic, equal ratios.

    `factor` is what a value is multiplied by for its ticks. `kind` is how the page's script reads a pixel: `linear`,
    `log`, or `nines` where a value is the number of nines of a share.
    """

    low: float
    high: float
    start: float
    end: float
    kind: str = "linear"
    factor: float = 1.0

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        low, high = self.low, self.high
        if self.kind == "log":
            low, high, value = math.log10(low), math.log10(high), math.log10(max(value, low))
        return self.start + (value - low) / ((high - low) or 1.0) * (self.end - self.start)

    def to_text(self) -> str:
        """For the script of the page."""
        numbers = (self.low, self.high, self.start, self.end, self.factor)
        return " ".join([self.kind, *(f"{number:.8g}" for number in numbers)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """Outer size of a plot and the room that its labels take, in CSS pixels at a width of 100 %."""

    name: str
    width: int
    height: int
    left: int = 52
    right: int = 16
    top: int = 24
    bottom: int = 40

    @property
    def inner_width(self) -> int:
        """Width of the area that is drawn on."""
        return self.width - self.left - self.right

    @property
    def inner_height(self) -> int:
        """Height of the area that is drawn on."""
        return self.height - self.top - self.bottom


SIZES = (Size(name="wide", width=880, height=310), Size(name="narrow", width=358, height=270, left=54, right=10))
"""Every plot is drawn twice, for a desk or paper and for a phone, so that its letters are never shrunk."""


@dataclass(slots=True)
class Board:
    """One SVG that is being drawn."""

    size: Size
    parts: list[str] = field(default_factory=list)
    scales: tuple[Scale, Scale] | None = None
    zooms: bool = False

    def text(self, x: float, y: float, words: str, *, anchor: str = "start", kind: str = "label") -> None:
        """Write words at a point."""
        self.parts.append(
            f'<text class="{escape(kind)}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'
        )

    def upright_text(self, x: float, y: float, words: str, *, kind: str = "label") -> None:
        """Write words from the bottom up, their middle at a point."""
        self.parts.append(
            f'<text class="{escape(kind)}" transform="translate({x:.1f} {y:.1f}) rotate(-90)" '
            f'text-anchor="middle">{escape(words)}</text>'
        )

    def line(self, x1: float, y1: float, x2: float, y2: float, kind: str) -> None:
        """Draw a straight line."""
        self.parts.append(f'<line class="{escape(kind)}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>')

    def dots(self, x: Sequence[float], y: Sequence[float], kind: str) -> None:
        """Draw a dot at every point, as one path."""
        if not x:
            return
        path = "".join(f"M{a:.2f} {b:.2f}h0" for a, b in zip(x, y, strict=True))
        self._data(f'<path class="dots {escape(kind)}" d="{path}"/>')

    def steps(self, x: Sequence[float], y: Sequence[float], kind: str) -> None:
        """Draw a line that goes right first and then up."""
        if not x:
            return
        path = f"M{x[0]:.2f} {y[0]:.2f}" + "".join(f"H{a:.2f}V{b:.2f}" for a, b in zip(x[1:], y[1:], strict=True))
        self._data(f'<path class="line {escape(kind)}" d="{path}"/>')

    def polyline(self, x: Sequence[float], y: Sequence[float], kind: str) -> None:
        """Draw a line from point to point."""
        path = "L".join(f"{a:.2f} {b:.2f}" for a, b in zip(x, y, strict=True))
        self._data(f'<path class="line {escape(kind)}" d="M{path}"/>')

    def area(self, x: Sequence[float], low: Sequence[float], high: Sequence[float], kind: str) -> None:
        """Fill what lies between two lines."""
        if not x:
            return
        there = "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(x, high, strict=True))
        back = "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(reversed(x), reversed(low), strict=True))
        self.parts.append(f'<path class="area {escape(kind)}" d="M{there}L{back}Z"/>')

    def bar(self, x: float, y: float, width: float, height: float, kind: str, title: str) -> None:
        """Draw a bar; it is never thinner than one pixel. The title shows when it is pointed at."""
        place = f'x="{x:.1f}" y="{y:.1f}" width="{max(width, 1):.1f}" height="{max(height, 1):.1f}"'
        self._data(f'<rect class="{escape(kind)}" {place}><title>{escape(title)}</title></rect>')

    def mark(self, x: float, y: float, kind: str, title: str) -> None:
        """Draw a mark for one point: a circle with a title; of a lost frame a triangle or a cross."""
        shapes = {
            "dropped": f"M{x - 4:.1f} {y - 3.5:.1f}h8l-4 7z",
            "failed": f"M{x - 4:.1f} {y - 4:.1f}l8 8m0 -8l-8 8",
        }
        default = f"M{x - 4:.1f} {y:.1f}a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z"
        path = shapes.get(kind, default)
        self.parts.append(
            f'<path class="mark {escape(kind)}" data-at="{x:.2f}" d="{path}"><title>{escape(title)}</title></path>'
        )

    def _data(self, part: str) -> None:
        """Draw what moves with the axis when a reader zooms."""
        self.parts.append(f'<g class="data">{part}</g>' if self.zooms else part)

    def axes(
        self,
        x_ticks: Sequence[tuple[float, str]],
        y_ticks: Sequence[tuple[float, str]],
        x_title: str,
        y_title: str,
        scales: tuple[Scale, Scale] | None = None,
        *,
        zooms: bool = False,
    ) -> None:
        """Draw grid, ticks (position and words) and the titles of both axes.

        With `scales` the page shows the value under the pointer; with `zooms` a reader may drag over a part of x.
        """
        self.scales, self.zooms = scales, zooms
        size = self.size
        floor, right = size.top + size.inner_height, size.left + size.inner_width
        for y, words in y_ticks:
            self.line(size.left, y, right, y, "grid")
            self.text(size.left - 6, y + 4, words, anchor="end", kind="tick")
        for x, words in x_ticks:
            self.line(x, floor, x, floor + 4, "axis old")
            self.text(x, floor + 16, words, anchor="middle", kind="tick")
        self.line(size.left, floor, right, floor, "axis")
        self.text(right, size.height - 6, x_title, anchor="end", kind="title")
        self.text(4, 10, y_title, kind="title")

    def svg(self, identifier: str, title: str, description: str) -> str:
        """Give the finished drawing; identifiers of a page must differ."""
        key = re.sub(r"\W+", "-", f"{identifier}-{self.size.name}")
        said = ""
        if self.scales is not None:
            x, y = (scale.to_text() for scale in self.scales)
            said = f'data-x="{escape(x)}" data-y="{escape(y)}" ' + ('data-zoom="x" ' if self.zooms else "")
        return (
            f'<svg class="{self.size.name}" viewBox="0 0 {self.size.width} {self.size.height}" role="img" {said}'
            f'aria-labelledby="{key}-t {key}-d" xmlns="http://www.w3.org/2000/svg">'
            f'<title id="{key}-t">{escape(title)}</title><desc id="{key}-d">{escape(description)}</desc>'
            f"{''.join(self.parts)}</svg>"
        )


def linear(low: float, high: float, start: float, end: float) -> Scale:
    """Map low…high to start…end."""
    return Scale(low=low, high=high, start=start, end=end)


def logarithmic(low: float, high: float, start: float, end: float) -> Scale:
    """Map low…high to start…end, equal ratios to equal lengths."""
    return Scale(low=low, high=high, start=start, end=end, kind="log")


def nice_ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers between low and high, at most about `most` and at least three: multiples of 1, 2 or 5 times a power
    of ten.
    """
    span = (high - low) or abs(high) or 1.0
    ticks: list[float] = []
    for wanted in (most, 2 * most, 4 * most):
        rough = span / max(wanted, 1)
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
        first = math.ceil(low / step - 1e-9)
        ticks = [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]
        if len(ticks) > 2:
            break
    return ticks


def decade_ticks(low: float, high: float, most: int = 8) -> list[float]:
    """Powers of ten between low and high, and 2 and 5 times them, or 3 times them, if these are at most `most`."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found: list[float] = []
    for factors, every in (((1, 2, 5), 1), ((1, 3), 1), ((1,), 1), ((1,), 2), ((1,), 3), ((1,), 5)):
        found = [
            value
            for power in powers
            for factor in factors
            if power % every == 0 and low * 0.999 <= (value := factor * 10.0**power) <= high * 1.001
        ]
        if len(found) <= most:
            break
    return found


def text_width(words: str) -> float:
    """About how wide a label of 12 px is."""
    return 6.6 * len(words)


def tick_text(value: float) -> str:
    """A tick's number without needless zeros."""
    return f"{value:g}" if abs(value) >= 1e-4 or value == 0 else number(value)
