"""Read whatever can be reported: the result of a stream or of a benchmark, or a report."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trt_compress.errors import ConfigError
from trt_compress.runtime.stream.result import DOCUMENT as STREAM
from trt_compress.runtime.stream.result import StreamResult
from trt_compress.tools.bench.bundle import DOCUMENT as BENCH
from trt_compress.tools.report.from_bench import report_from_bench
from trt_compress.tools.report.from_stream import report_from_stream
from trt_compress.tools.report.record import DOCUMENT as REPORT
from trt_compress.tools.report.record import Report


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """One file: its report, and the stream's result if it is one."""

    path: Path
    report: Report
    stream: StreamResult | None


def load(path: Path) -> Loaded:
    """Read a file, or the `result.json` of a directory that `trt-compress run` wrote.

    Raises:
        ConfigError: It cannot be read, or is none of the three documents.
    """
    if path.is_dir():
        path = path / "result.json"
    where = f"'{path}'"
    try:
        text = path.read_text(encoding="utf-8")
        data = json.loads(text, parse_constant=_refuse_constant)
    except OSError as error:
        raise ConfigError(
            f"{where} cannot be read ({error.strerror}); give the result of `trt-compress run` or `bench --json`."
        ) from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where} is not valid JSON ({error}); run the measurement again.") from None
    document = data.get("document") if isinstance(data, dict) else None
    if document == STREAM:
        result = StreamResult.from_text(text, where)
        return Loaded(path=path, report=report_from_stream(result), stream=result)
    if document == BENCH or (document is None and _is_old_bench(data)):
        return Loaded(path=path, report=report_from_bench(data, where), stream=None)
    if document == REPORT:
        return Loaded(path=path, report=Report.from_data(data, where), stream=None)
    raise ConfigError(
        f"{where} is no result that can be reported; give what `trt-compress run`, `trt-compress bench --json` or "
        "`trt-compress report` wrote."
    )


def _is_old_bench(data: Any) -> bool:
    return isinstance(data, dict) and "result_version" in data and "sides" in data


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")
