"""What the commands print: results to stdout; progress, logs and errors to stderr."""

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

LOGGER = logging.getLogger("trt_compress")

_NARROWEST = 80  # below this Rich drops columns; the terminal breaks the lines instead
_PIPED_WIDTH = 500  # a row stays on one line when the output is piped, so that grep and awk work

_UNBROKEN = 19  # words up to this length are not broken over two lines, however narrow the terminal

_KIBI = 1024


def print_json(data: object) -> None:
    """Print one JSON document to stdout."""
    sys.stdout.write(json.dumps(data, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def print_text(text: str) -> None:
    """Print one line of plain text to stdout."""
    sys.stdout.write(text + "\n")


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table to stdout; cells wrap and are never cut, and columns that hold only numbers align right.

    Args:
        title: Line above the table.
        columns: Headings.
        rows: Cells; None is shown as "-".
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, heading in enumerate(columns):
        cells = [row[index] for row in rows]
        numeric = any(cell is not None for cell in cells) and all(_is_numeric(cell) for cell in cells)
        texts = [heading, *("" if cell is None else str(cell) for cell in cells)]
        longest_word = max(len(word) for text in texts for word in (text.split() or [""]))
        table.add_column(
            heading,
            justify="right" if numeric else "left",
            overflow="fold",
            min_width=min(longest_word, _UNBROKEN),
            no_wrap=max(map(len, texts)) == longest_word <= _UNBROKEN,
        )
    for row in rows:
        table.add_row(*(Text("-" if cell is None else str(cell)) for cell in row))
    _print_compact(Text(title, style="bold"), table)
    print_text("")


def print_pairs(title: str, pairs: Sequence[tuple[str, object]]) -> None:
    """Print names and values to stdout, one pair a line."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in pairs:
        table.add_row(name, Text("-" if value is None else str(value)))
    _print_compact(Text(title, style="bold"), table)
    print_text("")


@contextmanager
def progress(title: str) -> Iterator[Callable[[str], None]]:
    """Show what is being done, with the time it has taken, until the block ends.

    Yields:
        A function that takes the name of the next step. Without a terminal the steps are log lines.
    """
    stderr = _stderr()
    if not stderr.is_terminal or any(isinstance(handler.formatter, _JsonLines) for handler in LOGGER.handlers):
        yield LOGGER.info
        return
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=stderr, transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda step: bar.update(task, description=f"{title}: {step}")


def configure_logging(*, verbose: bool, log_json: bool) -> None:
    """Send this package's log to stderr.

    Args:
        verbose: Everything, and the warnings of other libraries too; otherwise warnings of this package only.
        log_json: One JSON object a line, from level "info" on.
    """
    handler: logging.Handler
    if log_json:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_JsonLines())
    else:
        from rich.logging import RichHandler

        handler = RichHandler(console=_stderr(), show_path=False, show_time=False, markup=False)
        handler.setFormatter(logging.Formatter("%(message)s"))
    LOGGER.setLevel(logging.DEBUG if verbose else logging.INFO if log_json else logging.WARNING)
    LOGGER.propagate = False
    logging.captureWarnings(True)
    for logger, shown in (LOGGER, True), (logging.getLogger("py.warnings"), verbose):
        logger.handlers = [handler] if shown else [logging.NullHandler()]
    logging.getLogger("py.warnings").propagate = False


def format_bytes(count: int) -> str:
    """Write a number of bytes as B, KiB, MiB or GiB."""
    size = float(count)
    for unit in "B", "KiB", "MiB":
        if size < _KIBI:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= _KIBI
    return f"{size:.1f} GiB"


class _JsonLines(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, tz=timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def _is_numeric(cell: object) -> bool:
    """Whether a cell is a number, perhaps with a unit, or empty."""
    try:
        return cell is None or float(str(cell).partition(" ")[0].rstrip("%×")) is not None
    except ValueError:
        return False


def _print_compact(*parts: "RenderableType") -> None:
    """Print to stdout without the empty lines and trailing spaces that Rich fills its tables with."""
    from rich.console import Console

    console = Console(file=sys.stdout, highlight=False)
    sized = sys.stdout.isatty() or "COLUMNS" in os.environ
    console.width = max(console.width, _NARROWEST) if sized else _PIPED_WIDTH
    with console.capture() as captured:
        console.print(*parts, sep="\n", crop=False)  # a table too wide for the terminal loses nothing
    for line in captured.get().splitlines():
        if line.strip():
            print_text(line.rstrip())


def _stderr() -> "Console":
    from rich.console import Console

    return Console(file=sys.stderr, highlight=False)
