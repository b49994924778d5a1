"""The command evaluate: will my accuracy hold?"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trt_compress.errors import ConfigError, GateError
from trt_compress.foreign import needs_extra
from trt_compress.foreign import shown as printable
from trt_compress.paths import check_apart
from trt_compress.suggest import not_known
from trt_compress.tools.cli.habits import BundlePath, RequireDigest
from trt_compress.tools.cli.options import (
    Backend,
    BaselineGraph,
    GraphName,
    JsonFile,
    Native,
    Resample,
    Threads,
    try_file,
    write_json,
)
from trt_compress.tools.console import print_json, print_table, print_text, progress

if TYPE_CHECKING:
    from trt_compress.runtime.proportion import Difference, Share
    from trt_compress.tools.evaluate import Evaluation
    from trt_compress.tools.evaluate_text import TextEvaluation
    from trt_compress.tools.report.budget import Held, Limit

_SHOWN = 5

Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        "--images",
        metavar="DATA",
        help="A folder DIR/<class>/FILE, a flat one, an .npz file with 'label', or held-out: a zoo model's own data.",
    ),
]
Labels = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help='Lines {"file": "a.png", "label": 7}, or CSV; paths are relative to --data.'),
]
Classes = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="Names of the classes in the model's order, one a line; or sorted, or numbers: how folders are counted.",
    ),
]
LimitSamples = Annotated[
    int | None, typer.Option(metavar="N", help="At most N samples, evenly spread over the data (default: all).")
]


def evaluate(
    bundle: BundlePath,
    data: Data = None,
    labels: Labels = None,
    classes: Classes = None,
    baseline: Annotated[
        Path | None, typer.Option(metavar="BUNDLE", help="The uncompressed bundle: agreement, and what was lost.")
    ] = None,
    graph: GraphName = None,
    baseline_graph: BaselineGraph = None,
    backend: Backend = "ort-cpu",
    batch: Annotated[
        int | None, typer.Option(metavar="N", help="Samples of one run (default: the bundle's largest batch).")
    ] = None,
    threads: Threads = None,
    limit: LimitSamples = None,
    resample: Resample = False,
    native: Native = None,
    perplexity: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Of a language model: the perplexity of this text.")
    ] = None,
    needle: Annotated[
        bool, typer.Option("--needle", help="Of a language model: are numbers found again in long texts?")
    ] = False,
    recall: Annotated[
        bool, typer.Option("--recall", help="Of a language model: is one of many keys answered with its number?")
    ] = False,
    window: Annotated[
        int | None,
        typer.Option(metavar="N", help="Tokens that a language model reads at a time (default: 1024 or its context)."),
    ] = None,
    context_tokens: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="With --perplexity: the first N tokens of each window are a prompt; what follows is scored token by "
            "token, so that compressed caches act as when text is written.",
        ),
    ] = None,
    trials: Annotated[
        int | None, typer.Option(metavar="N", help="Questions at each of five depths (default: 4; 40 make 200).")
    ] = None,
    pairs: Annotated[
        int | None, typer.Option(metavar="N", help="Keys in each text of --recall (default: as many as fit, up to 80).")
    ] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Of the numbers and of the intervals of text.")] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="LIMITS",
            help="In quotes: 'accuracy>=0.98' or 'agreement>=0.99,drop_points<=1'; exit 3 if one breaks.",
        ),
    ] = None,
    require_digest: RequireDigest = None,
    json: JsonFile = None,
) -> None:
    """Judge a bundle: accuracy on labelled data and what was lost where; of a language model perplexity and questions.

    Needs no torch, so it runs on a device. Without labels the answers are compared with the baseline's.
    """
    if perplexity is not None or needle or recall:
        others = {"--data": data, "--labels": labels, "--classes": classes, "--graph": graph, "--resample": resample}
        if taken := [name for name, value in {**others, "--baseline-graph": baseline_graph}.items() if value]:
            raise ConfigError(
                f"{taken[0]} is for labelled data; leave it out with --perplexity, --needle and --recall."
            )
        if context_tokens is not None and perplexity is None:
            raise ConfigError("--context-tokens is of --perplexity; give that too, or leave it out.")
        for option, value in {"--trials": trials, "--pairs": pairs}.items():
            if value is not None and not (recall or needle and option == "--trials"):
                raise ConfigError(
                    f"{option} is of questions; give --{'needle or --' * (option == '--trials')}recall too."
                )
        more = {} if perplexity is None else {"--perplexity": [perplexity]}
        check_outputs({"--json": json}, None, None, None, bundles=[bundle, baseline], more=more)
        limits = _limits(budget, of_text=True)
        with progress("Evaluating") as step:
            with needs_extra("cpu"):
                from trt_compress.tools.evaluate_text import TRIALS, evaluate_text
            judged = evaluate_text(
                bundle,
                perplexity=perplexity,
                needle=needle,
                recall=recall,
                baseline=baseline,
                window=window,
                context_tokens=context_tokens,
                trials=TRIALS if trials is None else trials,
                pairs=pairs,
                seed=seed or 0,
                batch=batch,
                limit=limit,
                backend=backend,
                threads=threads,
                native=native,
                require_digest=require_digest,
                progress=step,
            )
        _finish(judged, limits, json)
        return
    of_text = {"--window": window, "--context-tokens": context_tokens, "--trials": trials, "--pairs": pairs}
    if taken := [name for name, value in {**of_text, "--seed": seed}.items() if value is not None]:
        raise ConfigError(f"{taken[0]} is for text; give --perplexity FILE, --needle or --recall too.")
    check_outputs({"--json": json}, data, labels, classes, bundles=[bundle, baseline])
    limits = _limits(budget)
    with progress("Evaluating") as step:
        with needs_extra("cpu"):
            from trt_compress.tools.evaluate import evaluate as evaluate_bundle
        result = evaluate_bundle(
            bundle,
            data=data,
            labels=labels,
            classes=classes,
            baseline=baseline,
            graph=graph,
            baseline_graph=baseline_graph,
            backend=backend,
            batch=batch,
            threads=threads,
            limit=limit,
            resample=resample,
            native=native,
            require_digest=require_digest,
            progress=step,
        )
    _finish(result, limits, json)


def _finish(result: "Evaluation | TextEvaluation", limits: "list[Limit]", json: Path | None) -> None:
    """Show a result, write it, and hold it to the budget."""
    from trt_compress.tools.evaluate import Evaluation
    from trt_compress.tools.report.budget import hold

    held = hold(limits, result.metrics())
    document = {**result.to_json(), "budget": [_held_json(each) for each in held]}
    broken = [each for each in held if not each.passed]
    stdout = json is not None and str(json) == "-"
    if not stdout:
        if isinstance(result, Evaluation):
            _show(result)
        else:
            _show_text(result)
        for each in held:
            print_text(f"{'holds' if each.passed else 'BROKEN'}: {each.sentence()}")
    if json is not None and not stdout:
        write_json(json, document)
    if broken:
        sentences = "; ".join(each.sentence() for each in broken)
        raise GateError(f"{len(broken)} of {len(held)} limits are broken: {sentences}.", report=document)
    if stdout:
        print_json(document)


def check_outputs(
    outputs: Mapping[str, Path | None],
    data: str | None,
    labels: Path | None,
    classes: str | None,
    *,
    bundles: Sequence[Path | None] = (),
    more: Mapping[str, Sequence[Path]] | None = None,
    in_folder: Mapping[str, Path] | None = None,
) -> None:
    """Refuse files that could not be written, or would be written over what is read.

    Args:
        outputs: Option → file; "-" and None are none.
        data: As the user gave it.
        labels: The same.
        classes: The same.
        bundles: Directories of bundles that are read.
        more: What else is read, as `check_apart` takes it.
        in_folder: Outputs in a folder that is made later, and tried then.

    Raises:
        ConfigError: One of them is.
    """
    files = {option: path for option, path in outputs.items() if path is not None and str(path) != "-"}
    for option, path in files.items():
        try_file(path, option)
    read = {"--data": data, "--labels": labels, "--classes": classes}
    inputs = {option: [Path(path)] for option, path in read.items() if path is not None}
    check_apart(
        {**files, **(in_folder or {})}, {**inputs, **(more or {})}, [path for path in bundles if path is not None]
    )


def _limits(budget: str | None, *, of_text: bool = False) -> "list[Limit]":
    """The limits of a budget, whose names are looked at before anything is run."""
    if budget is None:
        return []
    from trt_compress.tools.evaluate import METRICS, TEXT_METRICS
    from trt_compress.tools.report.budget import parse_budget

    limits, known = parse_budget(budget), TEXT_METRICS if of_text else METRICS
    for limit in limits:
        if limit.metric.lower() not in known:
            raise ConfigError(not_known("budget: metric", limit.metric, known))
    return limits


def _show(result: "Evaluation") -> None:
    scores, data = result.scores, result.data
    name = result.bundle["name"]
    print_text(f"{name} on {data['source']}: {data['form']}, {data['answered']} of {data['samples']} samples answered.")
    if str(result.bundle["weights"]).startswith("random"):
        print_text("Its weights are random, so its answers mean nothing; export it with --weights FILE.")
    if data["classes"]:
        print_text(f"Labels: {data['classes']}.")
    rows: list[tuple[str | None, ...]] = []
    if scores.accuracy is not None:
        rows.append(
            (
                "accuracy (top-1)",
                share_text(scores.accuracy),
                None if scores.baseline_accuracy is None else share_text(scores.baseline_accuracy, counted=False),
                None if scores.change is None else change_text(scores.change),
            )
        )
    if scores.top5 is not None:
        rows.append(("top-5", share_text(scores.top5), None, None))
    if scores.agreement is not None:
        rows.append(("same answer as the baseline", share_text(scores.agreement), None, None))
    for output in (each.to_json() for each in scores.outputs):
        mean, least = output["cosine_mean"], output["cosine_min"]
        cosine = "not finite" if mean is None else f"{mean:.6f}, least {least:.6f}"
        rows.append((f"cosine of '{output['name']}' to the baseline's", cosine, None, None))
    columns = ("", "bundle", "baseline", "change") if result.baseline is not None else ("", "bundle")
    print_table("In brackets the 95 % interval", columns, [row[: len(columns)] for row in rows])
    _show_classes(result)
    if scores.not_finite:
        print_text(f"{scores.not_finite} answers are not finite; they count as wrong.")
    show_left_out("Samples that could not be read", result.failures)
    show_left_out("Files not taken", result.left_out)


def _show_text(result: "TextEvaluation") -> None:
    name, data = result.bundle["name"], result.data
    if str(result.bundle["weights"]).startswith("random"):
        print_text("Its weights are random, so its answers mean nothing; export it with real ones.")
    rows: list[tuple[str | None, ...]] = []
    ours, theirs, change = result.perplexity, result.baseline_perplexity, result.change
    if ours is not None:
        prompt = result.protocol["context_tokens"]
        behind = "" if prompt is None else f", each behind a prompt of {prompt}"
        windows = f"{data['windows']} windows of {result.protocol['window']}{behind}"
        print_text(f"{name} on {data['text']}: {ours.tokens} tokens of {windows}.")
        if prompt is None and any(result.protocol["caches_compressed"]):
            print_text(
                "Scored as a whole, not as a compressed cache is used: --context-tokens N scores behind prompts."
            )
        ratio = None if change is None else f"× {_with_interval(change.ratio, change.low, change.high, 4)}"
        shown = [None if one is None else _with_interval(one.value, one.low, one.high, 3) for one in (ours, theirs)]
        rows.append(("perplexity", *shown, ratio))
        bits = [None if one is None else f"{one.bits_per_byte:.4f}" for one in (ours, theirs)]
        rows.append(("bits a byte", *bits, None))
    asked = (
        ("needles found", result.needle, result.baseline_needle, result.needle_change),
        ("values recalled", result.recall, result.baseline_recall, result.recall_change),
    )
    for what, mine, other, lost in asked:
        if mine is None:
            continue
        print_text(f"{name}: {mine.all.n} questions in texts of {result.protocol['window']} tokens.")
        counted = [None if one is None else share_text(one.all) for one in (mine, other)]
        rows.append((what, *counted, None if lost is None else change_text(lost)))
        for depth in mine.by_depth:
            shares = [None if one is None else f"{one.by_depth[depth].value:.0%}" for one in (mine, other)]
            rows.append((f"at depth {depth:g}", *shares, None))
    columns = ("", "bundle", "baseline", "change") if result.baseline is not None else ("", "bundle")
    print_table("In brackets the 95 % interval", columns, [row[: len(columns)] for row in rows])


def _with_interval(value: float, low: float | None, high: float | None, digits: int) -> str:
    if low is None or high is None:
        return f"{value:.{digits}f} (too short a text for an interval)"
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def _show_classes(result: "Evaluation") -> None:
    """The classes that lost most; without a baseline those that are worst."""
    rows = result.scores.classes
    if result.scores.change is not None:
        losses = sorted(rows, key=lambda row: (row.right - (row.baseline_right or 0)) / row.n)
        shown = [row for row in losses if row.right < (row.baseline_right or 0)][:_SHOWN]
        cells = [
            (_class_name(row.number, row.name), f"{row.baseline_right} of {row.n}", f"{row.right} of {row.n}")
            for row in shown
        ]
        if cells:
            print_table("Classes that lost most", ("class", "baseline right", "bundle right"), cells)
        elif rows:
            print_text("No class lost anything.")
        return
    worst = sorted((row for row in rows if row.right < row.n), key=lambda row: row.right / row.n)[:_SHOWN]
    if worst:
        cells = [
            (_class_name(row.number, row.name), f"{row.right} of {row.n}", f"{row.right / row.n:.1%}") for row in worst
        ]
        print_table("Classes with the most mistakes", ("class", "right", "share"), cells)


def _class_name(number: int, name: str) -> str:
    return f"{number} {name}" if name and name != str(number) else str(number)


def show_left_out(what: str, found: tuple[tuple[str, str], ...], *, shown: int = _SHOWN) -> None:
    """Print what was left out, each with its reason."""
    if not found:
        return
    print_text(f"{what}: {len(found)}")
    for name, reason in found[:shown]:
        said = reason.removeprefix(f"{name}: ").rstrip(".")
        print_text(f"  {printable(name)}: {printable(said)}")
    if len(found) > shown:
        print_text(f"  and {len(found) - shown} more; --json FILE lists them all.")


def share_text(share: "Share", *, counted: bool = True) -> str:
    """`98.3% [96.4, 99.2], 354 of 360`."""
    words = f"{share.value:.1%} [{share.low * 100:.1f}, {share.high * 100:.1f}]"
    return f"{words}, {share.count} of {share.n}" if counted else words


def change_text(change: "Difference") -> str:
    """`-0.8 points [-2.0, +0.4]`."""
    return f"{change.value * 100:+.1f} points [{change.low * 100:+.1f}, {change.high * 100:+.1f}]"


def _held_json(held: "Held") -> dict[str, Any]:
    return {"limit": str(held.limit), "value": held.value, "passed": held.passed, "reason": held.reason}
