"""The commands report and compare."""

import os
from pathlib import Path
from typing import Annotated

import typer

from trt_compress.errors import ConfigError, GateError
from trt_compress.paths import check_apart
from trt_compress.tools.cli.habits import Json
from trt_compress.tools.console import print_json, say


def report(
    results: Annotated[
        list[Path], typer.Argument(metavar="RESULT…", help="What run, bench --json or report wrote; a run's directory.")
    ],
    html: Annotated[bool, typer.Option("--html", help="Write NAME.report.html: one file, with plots.")] = False,
    trace: Annotated[bool, typer.Option("--trace", help="Write NAME.trace.json, for Perfetto; of a stream.")] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Write JSON, page and trace there (default: nothing)."),
    ] = None,
    json: Json = False,
) -> None:
    """Report a measurement: tables, and as files JSON, an HTML page and a trace."""
    from trt_compress.tools.report.tables import print_report
    from trt_compress.tools.reporting import files_of, opened, write_files

    loaded = [opened(path) for path in results]
    places = [(os.path.realpath(output or item.path.parent), name) for item, name in loaded]
    if twice := [name for place, name in places if places.count((place, name)) > 1]:
        raise ConfigError(f"Two results would both be written as '{twice[0]}'; report them one by one.")
    written = [path for item, name in loaded for path in files_of(item, name, html=html, trace=trace, output=output)]
    check_apart({f"-o ({path.name})": path for path in written}, {"a result": [item.path for item, _ in loaded]})
    for item, _ in loaded:
        if trace and item.stream is None:
            raise ConfigError(f"'{item.path}' is no stream, so it has no trace; leave out --trace.")
    for item, name in loaded:
        for path in write_files(item, name, html=html, trace=trace, output=output):
            say(f"Wrote {path}")
    if json:
        reports = [item.report.to_json() for item, _ in loaded]
        print_json(reports[0] if len(reports) == 1 else {"reports": reports})
        return
    for item, _ in loaded:
        print_report(item.report)


def compare(
    a: Annotated[Path, typer.Argument(metavar="A.json", help="A result or report: the one before.")],
    b: Annotated[
        Path | None,
        typer.Argument(metavar="[B.json]", help="The one after. Without it A's baseline is compared with A's bundle."),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="LIMITS",
            help="Limits for B, in quotes: 'p99_ms<=33,accuracy>=0.98'. One that breaks, or whose figure is not known, "
            "exits 3.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Compare two measurements, and hold the second to a budget."""
    from trt_compress.tools.report.tables import print_comparison
    from trt_compress.tools.reporting import compare as compare_results

    comparison = compare_results(a, b, budget=budget)
    if not json:
        print_comparison(comparison)
    if broken := comparison.broken():
        sentences = "; ".join(held.sentence() for held in broken)
        raise GateError(f"{len(broken)} of {len(comparison.budget)} limits are broken: {sentences}.", report=comparison)
    if json:
        print_json(comparison.to_json())
