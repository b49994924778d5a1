"""Reports and comparisons of what was measured: what stands behind `trt-compress report` and `compare`."""

from collections.abc import Callable
from pathlib import Path

from trt_compress.errors import ConfigError
from trt_compress.foreign import refusals_said
from trt_compress.paths import check_apart
from trt_compress.runtime.stream.result import StreamResult
from trt_compress.tools.bench.result import BenchResult
from trt_compress.tools.report.budget import parse_budget
from trt_compress.tools.report.compare import Comparison, compare_reports, compare_sides
from trt_compress.tools.report.from_bench import report_from_bench
from trt_compress.tools.report.from_stream import report_from_stream
from trt_compress.tools.report.names import files_of_report
from trt_compress.tools.report.read import LoadedReport, load
from trt_compress.tools.report.record import Report
from trt_compress.tools.report.write import write_all, write_page, write_trace

Measured = str | Path | StreamResult | BenchResult | Report
"""What can be reported: a file that run, bench or report wrote, the directory of a run, or the result itself."""


@refusals_said()
def report(
    result: Measured,
    *,
    html: bool = False,
    trace: bool = False,
    output: str | Path | None = None,
    name: str | None = None,
    wrote: Callable[[Path], None] = lambda path: None,
) -> Report:
    """Report a measurement.

    Args:
        result: A file that run, bench or report wrote, the directory of a run, or what `run` or `bench` returned.
        html: Write NAME.report.html, one file with plots, beside the result.
        trace: Write NAME.trace.json, for Perfetto, beside the result; of a stream.
        output: A directory for JSON, page and trace.
        name: What the files are called; None: as the result's file or directory, else "result".
        wrote: Is told each file.

    Raises:
        ConfigError: It cannot be read, is no result, has no trace, or a file cannot be written.
    """
    loaded, own_name = opened(result)
    for path in write_files(loaded, name or own_name, html=html, trace=trace, output=output):
        wrote(path)
    return loaded.report


@refusals_said()
def compare(a: Measured, b: Measured | None = None, *, budget: str | None = None) -> Comparison:
    """Compare two measurements.

    Args:
        a: The one before; see `report`.
        b: The one after. None: the baseline in `a` is compared with its bundle.
        budget: Limits for the second, such as "p99_ms<=33,accuracy>=0.98"; `broken()` of the result says which do not
            hold.

    Raises:
        ConfigError: One cannot be read or is no result, or the budget has a wrong form.
    """
    limits = parse_budget(budget) if budget is not None else []
    first = opened(a)[0].report
    return compare_sides(first, limits) if b is None else compare_reports(first, opened(b)[0].report, limits)


def write_files(
    loaded: LoadedReport, name: str, *, html: bool, trace: bool, output: str | Path | None
) -> tuple[Path, ...]:
    """Write the files that are asked for; see `report`."""
    if trace and loaded.stream is None:
        raise ConfigError(f"'{loaded.path}' is no stream, so it has no trace; leave out --trace.")
    written = files_of(loaded, name, html=html, trace=trace, output=output)
    check_apart({f"-o ({path.name})": path for path in written}, {"the result": [loaded.path]})
    if output is not None:
        return tuple(write_all(loaded.report, loaded.stream, Path(output), name, loaded.path.parent))
    beside = loaded.path.parent
    pages = (write_page(loaded.report, beside, name),) if html else ()
    return (*pages, write_trace(loaded.stream, beside, name)) if trace and loaded.stream else pages


def files_of(
    loaded: LoadedReport, name: str, *, html: bool, trace: bool, output: str | Path | None
) -> tuple[Path, ...]:
    """What `write_files` would write."""
    document, page, events = (Path(output or loaded.path.parent) / file for file in files_of_report(name))
    if output is not None:
        return (document, page) if loaded.stream is None else (document, page, events)
    return (*([page] if html else ()), *([events] if trace and loaded.stream else ()))


def _name(given: Path) -> str:
    return given.resolve().name if given.is_dir() else given.name.removesuffix(".json").removesuffix(".report")


def opened(result: Measured) -> tuple[LoadedReport, str]:
    """A measurement that was read or handed over, and the name of its files."""
    here = Path("result.json")
    if isinstance(result, StreamResult):
        return LoadedReport(path=here, report=report_from_stream(result), stream=result), "result"
    if isinstance(result, BenchResult):
        return LoadedReport(path=here, report=report_from_bench(result.to_json(), "the result"), stream=None), "result"
    if isinstance(result, Report):
        return LoadedReport(path=here, report=result, stream=None), "result"
    if not isinstance(result, str | Path):
        raise ConfigError(
            f"a result was expected, and a {type(result).__name__} was given; give a file that run, bench or report "
            "wrote, or what `run` or `bench` returned."
        )
    return load(Path(result)), _name(Path(result))
