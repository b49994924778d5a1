"""What the commands print: results to stdout; progress, logs and errors to stderr.

The one place that prints. Names of files, models and classes, and what libraries say, may hold anything: control and
direction characters are shown as `\\x…`, so that the only escapes on a terminal are those that are made here.
"""

import io
import logging
import os
import re
import shutil
import sys
import textwrap
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from trt_compress.foreign import plain_json, shown, shown_lines

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

LOGGER = logging.getLogger("trt_compress")

_NARROWEST = 80  # below this Rich drops columns; the terminal breaks the lines instead
_PADDED = 44  # a column of a table that is piped is padded so far; longer cells stand out
_UNBROKEN = (19, 14, 10)  # words up to this length are not broken over two lines; the less, the narrower the table

_NUMERIC = 24  # a number with its unit is no longer than this


def print_json(data: object) -> None:
    """Print one JSON document to stdout."""
    _put(plain_json(data, indent=2))


def print_text(text: str) -> None:
    """Print a line of plain text to stdout; on a terminal a long one breaks between words."""
    _put(_line(text, sys.stdout))


def print_piece(text: str) -> None:
    """Print a piece of a text that goes on, to stdout, at once; lines and tabs stay."""
    with _named():
        sys.stdout.write("\t".join(map(shown_lines, text.split("\t"))))
        sys.stdout.flush()


def _put(text: str) -> None:
    with _named():
        sys.stdout.write(text + "\n")


def flush() -> None:
    """Bring to stdout what was printed.

    Raises:
        BrokenPipeError: Its reader has gone.
        OSError: It takes no more; `filename` says that it was stdout.
    """
    with _named():
        sys.stdout.flush()


@contextmanager
def _named() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        error.filename = error.filename or "stdout"
        raise


def say(text: str) -> None:
    """Print a line of plain text to stderr, beside the results; on a terminal a long one breaks between words."""
    sys.stderr.write(_line(text, sys.stderr) + "\n")
    sys.stderr.flush()


def say_error(message: str, hint: str | None = None, *, raised: BaseException | None = None) -> None:
    """Print an error to stderr: a line, and its hint, which may have several.

    Args:
        message: What is wrong.
        hint: What to do.
        raised: Its traceback is printed first.
    """
    if raised is not None:
        sys.stderr.write(_traceback(type(raised), raised, raised.__traceback__))
    say(f"error: {message}")
    for line in f"Hint: {hint}".split("\n") if hint else ():
        say(line)


def _line(text: str, stream: TextIO) -> str:
    text = shown(text)
    width = shutil.get_terminal_size().columns if stream.isatty() else 0
    if not width or len(text) <= width:
        return text
    return textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)


def guard_streams() -> None:
    """What no command prints is safe too: tracebacks are shown as all text, and every character can be written."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.excepthook = lambda kind, error, trace: _print_traceback(kind, error, trace)
    threading.excepthook = lambda given: _print_traceback(given.exc_type, given.exc_value, given.exc_traceback)


def _print_traceback(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    if kind is not SystemExit:  # of a thread: it has ended
        sys.stderr.write(_traceback(kind, error, trace))


def _traceback(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> str:
    return shown_lines("".join(traceback.format_exception(kind, error, trace)))


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table to stdout; cells are never cut, and columns that hold only numbers align right.

    On a terminal, or where COLUMNS is set, cells wrap so that the table fits; where it would not, every row becomes a
    block of names and values. Otherwise a row is one line, for grep and awk, and a long cell widens only its own line.

    Args:
        title: Line above the table.
        columns: Headings.
        rows: Cells; None is shown as "-".
    """
    title = shown_lines(title)
    columns = [shown(heading) for heading in columns]
    texts = [["-" if cell is None else shown_lines(str(cell)) for cell in row] for row in rows]
    numeric = [
        any(row[at] is not None for row in rows) and all(_is_numeric(row[at]) for row in rows)
        for at in range(len(columns))
    ]
    width = _width()
    if width is None:
        _print_lines(title, columns, texts, numeric)
    elif not _print_wrapped(title, columns, texts, numeric, width):
        for row in texts:
            pairs = [(heading, cell) for heading, cell in zip(columns, row, strict=True) if heading]
            print_pairs(title if len(texts) == 1 else f"{title}: {row[0]}", pairs)
        return
    print_text("")


def _print_wrapped(
    title: str, columns: Sequence[str], texts: Sequence[Sequence[str]], numeric: Sequence[bool], width: int
) -> bool:
    """Print a table that fits the width; says whether there is one."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(file=sys.stdout, highlight=False, width=width)
    for unbroken in _UNBROKEN:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for at, heading in enumerate(columns):
            cells = [heading, *(row[at] for row in texts)]
            longest_word = max(len(word) for text in cells for word in (text.split() or [""]))
            table.add_column(
                Text(heading),
                justify="right" if numeric[at] else "left",
                overflow="fold",
                min_width=min(longest_word, unbroken),
                no_wrap=max(map(len, cells)) == longest_word <= unbroken,
            )
        for row in texts:
            table.add_row(*map(Text, row))
        lines = _rendered(console, Text(title, style="bold"), table)
        if max(map(_cells, lines)) <= width:
            _print_rendered(lines)
            return True
    return False


def _print_lines(title: str, columns: Sequence[str], texts: Sequence[Sequence[str]], numeric: Sequence[bool]) -> None:
    """Print a row a line; a column is padded to its longest cell, but for those that are very long."""
    rows = [columns, *([cell.replace("\n", "; ") for cell in row] for row in texts)]
    widths = [min(_PADDED, max(len(row[at]) for row in rows)) for at in range(len(columns))]
    for line in title.split("\n"):
        print_text(line)
    for number, row in enumerate(rows):
        cells = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ]
        print_text(f" {'   '.join(cells)}".rstrip())
        if number == 0:
            print_text(" " + "   ".join("─" * width for width in widths))


def print_pairs(title: str, pairs: Sequence[tuple[str, object]]) -> None:
    """Print names and values to stdout, one pair a line; on a terminal long values wrap beside their names."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    texts = [(shown(name), "-" if value is None else shown_lines(str(value))) for name, value in pairs]
    width = _width()
    longest = max((len(name) for name, _ in texts), default=0)
    if width is None:
        print_text(title)
        for name, text in texts:
            print_text(f"{name.ljust(min(_PADDED, longest))}  {text.replace(chr(10), '; ')}".rstrip())
    else:
        table = Table.grid(padding=(0, 2))
        # no name, however long, takes the room of the values
        table.add_column(style="dim", overflow="fold", no_wrap=longest <= width // 2, max_width=width // 2)
        table.add_column(overflow="fold")
        for name, text in texts:
            table.add_row(Text(name), Text(text))
        console = Console(file=sys.stdout, highlight=False, width=width)
        _print_rendered(_rendered(console, Text(shown(title), style="bold"), table))
    print_text("")


@contextmanager
def progress(title: str) -> Iterator[Callable[[str], None]]:
    """Show what is being done, with the time it has taken, until the block ends.

    Yields:
        A function that takes the name of the next step. Without a terminal the steps are log lines.
    """
    # that of the log, whose lines then come above the one of progress
    consoles: list[Console | None] = [getattr(handler, "console", None) for handler in LOGGER.handlers]
    stderr = next((one for one in consoles if one is not None and one.file is sys.stderr), None) or _stderr()
    if not stderr.is_terminal or _logs_json():
        yield LOGGER.info
        return
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn()
    bar = Progress(*columns, console=stderr, transient=True)
    bar.start()
    task = bar.add_task(shown(title), total=None)
    try:
        yield lambda step: bar.update(task, description=shown(f"{title}: {step}"))
    finally:
        with suppress(OSError):  # a terminal that went away
            bar.stop()


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
        handler.setFormatter(_Shown("%(message)s"))
    LOGGER.setLevel(logging.DEBUG if verbose else logging.INFO if log_json else logging.WARNING)
    LOGGER.propagate = False
    logging.captureWarnings(True)
    for logger, is_shown in (LOGGER, True), (logging.getLogger("py.warnings"), verbose):
        logger.handlers = [handler] if is_shown else [logging.NullHandler()]
    logging.getLogger("py.warnings").propagate = False


def is_watched() -> bool:
    """Whether somebody reads stderr at a terminal: what happens may be said there as it happens."""
    return sys.stderr.isatty() and not _logs_json()


def _logs_json() -> bool:
    return any(isinstance(handler.formatter, _JsonLines) for handler in LOGGER.handlers)


class _Shown(logging.Formatter):
    """Lines for people."""

    def format(self, record: logging.LogRecord) -> str:
        return shown_lines(super().format(record))


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
        return plain_json(line)


def _is_numeric(cell: object) -> bool:
    """Whether a cell is a number, perhaps with a unit, or empty; a sentence that begins with one is none."""
    try:
        return (
            cell is None or len(str(cell)) <= _NUMERIC and float(str(cell).partition(" ")[0].rstrip("%×")) is not None
        )
    except ValueError:
        return False


def _width() -> int | None:
    """Columns there are, or None where nothing says so: a pipe, a file."""
    if not (sys.stdout.isatty() or "COLUMNS" in os.environ):
        return None
    return max(shutil.get_terminal_size().columns, _NARROWEST)


def _print_rendered(lines: Sequence[str]) -> None:
    """Print what Rich made of text that was shown."""
    _put("\n".join(lines))


def _rendered(console: "Console", *parts: "RenderableType") -> list[str]:
    """The lines without the empty ones and the trailing spaces that Rich fills its tables with."""
    with console.capture() as captured:
        console.print(*parts, sep="\n", crop=False)
    return [line.rstrip() for line in captured.get().splitlines() if line.strip()]


def _cells(line: str) -> int:
    """Width of a line on the terminal, without what colours it."""
    from rich.cells import cell_len

    return cell_len(re.sub("\x1b\\[[0-9;]*m", "", line))


def _stderr() -> "Console":
    from rich.console import Console

    return Console(file=sys.stderr, highlight=False)
