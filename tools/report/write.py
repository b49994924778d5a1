"""Write a report's files: JSON, page and trace."""

import json
from pathlib import Path

from trt_compress.errors import ConfigError
from trt_compress.files import write_whole
from trt_compress.runtime.stream.result import StreamResult
from trt_compress.tools.report.html import page_from_report
from trt_compress.tools.report.names import files_of_report
from trt_compress.tools.report.record import Report
from trt_compress.tools.report.sound import players_of
from trt_compress.tools.report.trace import trace_from_stream


def write_all(
    report: Report, stream: StreamResult | None, directory: Path, name: str, beside: Path | None = None
) -> list[Path]:
    """Write `name.report.json`, `name.report.html` and, of a stream, `name.trace.json`; the directory is made.

    Args:
        report: What to write.
        stream: The stream it was made from, or None.
        directory: Where to.
        name: What the files are called.
        beside: Where the result lies, and the files of its sound; None: in the directory.

    Raises:
        ConfigError: A file cannot be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"'{directory}' cannot be made ({error.strerror}); give another directory.") from None
    paths = [write_json(report, directory, name), write_page(report, directory, name, beside)]
    return paths if stream is None else [*paths, write_trace(stream, directory, name)]


def write_json(report: Report, directory: Path, name: str) -> Path:
    """Write the report's JSON document."""
    return _write(directory / files_of_report(name)[0], report.to_text())


def write_page(report: Report, directory: Path, name: str, beside: Path | None = None) -> Path:
    """Write the report's HTML page, one file that needs nothing else; sound is taken from `beside`."""
    page = page_from_report(report, players_of(report.sound, beside or directory))
    return _write(directory / files_of_report(name)[1], page)


def write_trace(stream: StreamResult, directory: Path, name: str) -> Path:
    """Write the stream's trace."""
    text = json.dumps(trace_from_stream(stream), allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    return _write(directory / files_of_report(name)[2], text + "\n")


def _write(path: Path, text: str) -> Path:
    """Write a file whole or not at all."""
    try:
        write_whole(path, text)
    except OSError as error:
        raise ConfigError(
            f"'{path}' cannot be written ({error.strerror}); free some space, or give another directory."
        ) from None
    return path
