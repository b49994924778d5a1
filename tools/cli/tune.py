"""The command tune: compress for this device to a budget, or refuse."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from trt_compress.errors import GateError
from trt_compress.foreign import needs_extra
from trt_compress.model_name import parse_model
from trt_compress.tools.cli.evaluate import Classes, Data, Labels, LimitSamples, check_outputs, show_left_out
from trt_compress.tools.cli.habits import TrustPaths, with_export_options
from trt_compress.tools.cli.options import JsonFile, Native, Resample, write_json
from trt_compress.tools.console import print_json, print_table, print_text, progress, say

if TYPE_CHECKING:
    from trt_compress.tools.tune.result import TuneResult


_FILES = ("tune.json", "tune.html", "recipe.toml", "trials.jsonl", "staircase.json", "look.json")


@with_export_options(sweep=True)
def tune(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="As export takes it.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Where the bundle, its recipe and all trials go.")
    ],
    compress: Annotated[
        list[str] | None,
        typer.Option(metavar="METHOD", help="Method whose schedule is searched; repeatable (default: all that fit)."),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(metavar="LIMITS", help="In quotes: 'p95_ms<=20,accuracy_drop<=0.5' (default: accuracy_drop<=1)."),
    ] = None,
    data: Data = None,
    labels: Labels = None,
    classes: Classes = None,
    min_gain: Annotated[
        float, typer.Option(metavar="X", help="How many times as fast as dense it must be at least.")
    ] = 1.02,
    trials: Annotated[int, typer.Option(metavar="N", help="Schedules that the search tries.")] = 64,
    finalists: Annotated[int, typer.Option(metavar="N", help="Of them, how many are exported and measured.")] = 5,
    samples: Annotated[
        int, typer.Option(metavar="N", help="Samples that the search compares with dense; all are used to measure.")
    ] = 64,
    batch: Annotated[int, typer.Option(metavar="N", help="Samples of a timed run.")] = 1,
    rounds: Annotated[
        int | None,
        typer.Option(metavar="N", help="Timed runs of each setting (default: 64, or what the budget takes)."),
    ] = None,
    warmup: Annotated[int, typer.Option(metavar="N", help="Runs of each before them.")] = 5,
    threads: Annotated[int | None, typer.Option(metavar="N", help="Of each setting (default: one a core).")] = None,
    limit: LimitSamples = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Of the search.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted tuning in DIR.")] = False,
    resample: Resample = False,
    native: Native = None,
    trust_paths: TrustPaths = False,
    json: JsonFile = None,
    **options: Any,
) -> None:
    """Tune MODEL for this device: the fastest method, schedule and precision within a budget, or a refusal (exit 3).

    --precision takes several, as in fp32,int8. Ctrl-C ends it; --resume goes on.
    """
    with progress(f"Tuning {model}") as step:
        own = {f"-o ({name})": output / name for name in _FILES}
        more = _read(model, options["weights"], options["calibrate"])
        check_outputs({"--json": json}, data, labels, classes, more=more, in_folder=own)
        with needs_extra("export"):
            from trt_compress.tools.tune.run import tune as tune_model
        try:
            result = tune_model(
                model,
                output=output,
                compress=compress,
                budget=budget,
                precision=options.pop("precision"),
                data=data,
                labels=labels,
                classes=classes,
                min_gain=min_gain,
                trials=trials,
                finalists=finalists,
                samples=samples,
                batch=batch,
                rounds=rounds,
                warmup=warmup,
                threads=threads,
                limit=limit,
                seed=seed,
                resample=resample,
                native=native,
                resume=resume,
                trust_paths=trust_paths,
                progress=step,
                **options,
            )
        except KeyboardInterrupt:
            if (output / "trials.jsonl").exists():
                say(f"Interrupted; what was found is kept in {output}: give the same with --resume to go on.")
            raise
        except GateError as error:
            refused = cast("TuneResult | None", error.report)
            if refused is not None and json is not None and str(json) != "-":
                write_json(json, refused.to_json())
            if refused is not None and str(json) != "-":
                _show(refused)
            if refused is not None:
                say(f"Wrote {output / 'tune.html'}")
            raise
    if json is not None and str(json) == "-":
        print_json(result.to_json())
        return
    _show(result)
    say(f"Wrote {output / 'tune.html'}")
    for sentence in result.advice:
        print_text(sentence)
    if json is not None:
        write_json(json, result.to_json())


def _read(model: str, weights: str | None, calibrate: str | None) -> dict[str, list[Path]]:
    """What is read besides the data."""
    own = Path(model) if model.endswith(".toml") else parse_model(model).path
    given = None if weights in (None, "pretrained") else Path(str(weights))
    files = {"the model": own, "--weights": given, "--calibrate": None if calibrate is None else Path(calibrate)}
    return {name: [path] for name, path in files.items() if path is not None}


def _show(result: "TuneResult") -> None:
    steps = result.staircase
    rows = [
        (count, *(f"{times[place]:.3f}" for times in steps["block_ms"].values()))
        for place, count in enumerate(steps["counts"])
    ]
    print_table("A layer against its tokens, ms", ("tokens", *(f"batch {b}" for b in steps["block_ms"])), rows)
    if steps["floor_tokens"] > steps["counts"][0]:
        print_text(f"Below {steps['floor_tokens']} tokens nothing is gained here at batch {steps['batch']}.")
    shown = [
        (
            one["method"],
            f"{one['tokens'][0]} → {one['tokens'][-1]}",
            f"{one['predicted_ms']:.3f}",
            f"{one['distance']:.2e}",
            "" if one["drop_points"] is None else f"{one['drop_points']:.2g}",
        )
        for one in result.front
    ]
    print_table(
        f"The best of {result.trials} trials, by the staircase and against dense",
        ("method", "tokens", "predicted ms", "distance", "points lost"),
        shown,
    )
    print_text(result.samples["said"])
    from trt_compress.tools.sweep.text import cells_of, columns_of, sorted_rows

    for precision, found in result.sweeps.items():
        title = f"Measured in {precision}: {found.protocol['rounds']} rounds in turns, batch {found.protocol['batch']}"
        print_table(title, columns_of(found), [cells_of(row, found) for row in sorted_rows(found)])
    show_left_out("Methods that do not fit the model", result.misfits)
    show_left_out(
        "Refused", tuple((f"{spec} in {precision}", reason) for precision, spec, reason in result.refused), shown=12
    )
