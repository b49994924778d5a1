"""Read whatever can be reported: the result of a stream or of a benchmark, or a report."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trt_compress.errors import ConfigError
from trt_compress.files import RECORD_LIMIT, read_regular
from trt_compress.foreign import strict_json
from trt_compress.runtime.stream.result import DOCUMENT as STREAM
from trt_compress.runtime.stream.result import StreamResult
from trt_compress.tools.bench.result import DOCUMENT as BENCH
from trt_compress.tools.report.from_bench import report_from_bench
from trt_compress.tools.report.from_stream import report_from_stream
from trt_compress.tools.report.record import DOCUMENT as REPORT
from trt_compress.tools.report.record import Report


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedReport:
    """One file: its report, and the stream's result if it is one."""

    path: Path
    report: Report
    stream: StreamResult | None


def load(path: Path) -> LoadedReport:
    """Read a file, or the `result.json` of a directory that `trt-compress run` wrote.

    Raises:
        ConfigError: It cannot be read, is none of the three documents, or its parts do not fit.
    """
    if _is_directory(path):
        if not (path / "result.json").exists():
            raise ConfigError(f"'{path}' is a directory without a result.json; {_GIVE}.")
        path = path / "result.json"
    where = f"'{path}'"
    data = _read_json(path, where)
    document = data.get("document") if isinstance(data, dict) else None
    stream = None
    if document == STREAM:
        stream = StreamResult.from_data(data, where)
        report = report_from_stream(stream)
    elif document == BENCH or (document is None and _is_old_bench(data)):
        report = report_from_bench(data, where)
    elif document == REPORT:
        report = Report.from_data(data, where)
    else:
        raise ConfigError(
            f"{where} is no result that can be reported; give what `trt-compress run`, `trt-compress bench --json` or "
            "`trt-compress report` wrote."
        )
    report.check(where)
    return LoadedReport(path=path, report=report, stream=stream)


def _is_directory(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError) as error:  # a name that is too long, or holds a null
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"'{str(path)[:60]}…' cannot be read ({reason}); {_GIVE}.") from None


def _read_json(path: Path, where: str) -> Any:
    """One JSON document, in any of the Unicode encodings, with or without a byte-order mark."""
    try:
        raw = read_regular(path, limit=RECORD_LIMIT)
    except OSError as error:
        raise ConfigError(f"{where} cannot be read ({error.strerror}); {_GIVE}.") from None
    if not raw.strip(b"\0 \t\r\n"):
        raise ConfigError(f"{where} is empty; run the measurement again.")
    try:
        return strict_json(raw, largest=_LARGEST)
    except ValueError as error:
        raise ConfigError(f"{where} is not valid JSON ({error}); run the measurement again.") from None


_GIVE = "give the result of `trt-compress run --report` or `trt-compress bench --json`"

_LARGEST = 2.0**63
"""No number of a measurement is as large; beyond it, integers and floats of the machine end."""


def _is_old_bench(data: Any) -> bool:
    return isinstance(data, dict) and "result_version" in data and "sides" in data
