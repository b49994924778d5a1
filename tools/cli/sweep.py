"""The command sweep: which compressor, how much, and will my accuracy hold?"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trt_compress.errors import ConfigError
from trt_compress.files import write_whole
from trt_compress.foreign import needs_extra
from trt_compress.model_name import parse_model
from trt_compress.tools.cli.evaluate import (
    Classes,
    Data,
    Labels,
    LimitSamples,
    check_outputs,
    show_left_out,
)
from trt_compress.tools.cli.habits import TrustPaths, with_export_options
from trt_compress.tools.cli.options import JsonFile, Native, Resample, write_json
from trt_compress.tools.console import print_json, print_table, print_text, progress, say

if TYPE_CHECKING:
    from trt_compress.tools.sweep.result import SweepResult

_RESULT_FILE, PAGE_FILE = "sweep.json", "sweep.html"
_INTERRUPTED = 130


@with_export_options(sweep=True)
def sweep(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="As export takes it.")],
    data: Data = None,
    labels: Labels = None,
    classes: Classes = None,
    compress: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SPEC",
            help="Repeatable; a value may be a range in quotes, 'evit:keep_ratio=0.7|0.5' (default: every method that "
            "fits the model, at three levels).",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Keep bundles, sweep.json and sweep.html there."),
    ] = None,
    max_drop: Annotated[
        float, typer.Option(metavar="POINTS", help="What a recommended setting may lose, in points of 100.")
    ] = 1.0,
    random: Annotated[
        bool, typer.Option("--random/--no-random", help="Put random with as many tokens beside each setting.")
    ] = True,
    batch: Annotated[int, typer.Option(metavar="N", help="Samples of a timed run.")] = 1,
    rounds: Annotated[int, typer.Option(metavar="N", help="Timed runs of each setting, all in turns.")] = 64,
    warmup: Annotated[int, typer.Option(metavar="N", help="Runs of each before them.")] = 5,
    threads: Annotated[
        int | None, typer.Option(metavar="N", help="Of each setting while it is timed (default: one a core).")
    ] = None,
    limit: LimitSamples = None,
    resample: Resample = False,
    native: Native = None,
    trust_paths: TrustPaths = False,
    json: JsonFile = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the page with the plots there.")] = None,
    **options: Any,
) -> None:
    """Sweep compressors and settings of MODEL: accuracy, agreement with dense, FLOPs and latency, and which to take.

    Ctrl-C ends it early: what is done is shown and kept.
    """
    with progress(f"Sweeping {model}") as step:
        own = {} if output is None else {f"-o ({name})": output / name for name in (_RESULT_FILE, PAGE_FILE)}
        files = {"--json": json, "--html": html}
        check_outputs(files, data, labels, classes, more=_read(model, options["weights"]), in_folder=own)
        with needs_extra("export"):
            from trt_compress.tools.sweep.run import sweep as sweep_model
        result = sweep_model(
            model,
            data=data,
            labels=labels,
            classes=classes,
            compress=compress,
            output=output,
            max_drop=max_drop,
            random=random,
            batch=batch,
            rounds=rounds,
            warmup=warmup,
            threads=threads,
            limit=limit,
            resample=resample,
            native=native,
            trust_paths=trust_paths,
            progress=step,
            **options,
        )
    if json is not None and str(json) == "-":
        print_json(result.to_json())
    else:
        show_sweep(result)
        if json is not None:
            write_json(json, result.to_json())
    pages = [path for path in (html, output / PAGE_FILE if output is not None else None) if path is not None]
    for path in pages:  # the table is there before one of them cannot be written
        from trt_compress.tools.sweep.page import page_from_sweep

        _write_text(path, page_from_sweep(result))
    if output is not None:
        say(f"Wrote {output / 'sweep.json'}")
    if result.interrupted:
        raise typer.Exit(_INTERRUPTED)


def _read(model: str, weights: str | None) -> dict[str, list[Path]]:
    """What is read besides the data."""
    own = Path(model) if model.endswith(".toml") else parse_model(model).path
    given = None if weights in (None, "pretrained") else Path(str(weights))
    files = {"the model": own, "--weights": given}
    return {name: [path] for name, path in files.items() if path is not None}


def show_sweep(result: "SweepResult") -> None:
    """Print what a sweep found."""
    from trt_compress.tools.sweep.text import cells_of, columns_of, sorted_rows

    data, protocol = result.data, result.protocol
    print_text(f"{result.model['source']} on {data['source']}: {data['form']}, {data['answered']} samples answered.")
    if data["classes"]:
        print_text(f"Labels: {data['classes']}.")
    timed = result.dense.latency is not None
    timing = f"{protocol['rounds']} rounds in turns, batch {protocol['batch']}, {protocol['threads']} threads"
    title = f"{timing if timed else 'Not timed'}; in brackets the 95 % interval"
    print_table(title, columns_of(result), [cells_of(row, result) for row in sorted_rows(result)])
    show_left_out("Settings that do not fit the model, or failed", result.misfits, shown=12)
    show_left_out("Settings without random beside them", result.alone)
    show_left_out("Samples that could not be read", result.failures)
    if result.interrupted:
        print_text("Interrupted: only what was done until then is shown.")
    for sentence in result.advice:
        print_text(sentence)


def _write_text(path: Path, text: str) -> None:
    try:
        write_whole(path, text)
    except OSError as error:
        raise ConfigError(f"'{path}' cannot be written ({error.strerror}); give another file.") from None
    say(f"Wrote {path}")
