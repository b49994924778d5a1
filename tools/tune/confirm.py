"""Measure the fastest settings once more beside dense, until one holds; and the result in sentences."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from trt_compress.tools.bench.bundle import bench
from trt_compress.tools.evaluate import Progress, evaluate
from trt_compress.tools.sweep.result import Row, SweepResult
from trt_compress.tools.tune.asked import SampleParts, TuneRequest
from trt_compress.tools.tune.result import Confirmed, before_confirming, judged

_MOST = 4  # settings of a precision that are measured once more, until one is taken


def confirm(
    asked: TuneRequest, sweeps: Mapping[str, SweepResult], samples: SampleParts, say: Progress
) -> tuple[list[Confirmed], list[tuple[str, str, str]]]:
    """Measure the fastest settings once more beside dense, until one holds."""
    dense = sweeps[asked.base].dense.bundle
    assert dense is not None
    candidates: list[tuple[float, str, Row]] = []
    refused: list[tuple[str, str, str]] = []
    for precision, found in sweeps.items():
        asked_rows = [row for row in found.rows if row.kind == "asked"]
        good, bad = before_confirming(asked_rows, found, asked.limits, asked.min_gain)
        refused += [(precision, spec, reason) for spec, reason in bad]
        refused += [(precision, spec, reason) for spec, reason in found.misfits]
        candidates += [(row.latency.median_ns, precision, row) for row in good[:_MOST] if row.latency is not None]
    confirmed: list[Confirmed] = []
    for _, precision, row in sorted(candidates, key=lambda each: each[0]):
        assert row.bundle is not None
        say(f"confirming {row.spec} in {precision}")
        timed = bench(
            row.bundle,
            baseline=dense,
            batch=asked.batch,
            threads=asked.threads,
            pairs=asked.rounds,
            warmup=asked.warmup,
            native=asked.native,
        )
        answers = evaluate(
            row.bundle,
            baseline=dense,
            data=asked.data["data"],
            labels=asked.data["labels"],
            classes=asked.data["classes"],
            resample=bool(asked.data["resample"]),
            limit=asked.limit,
            apart=samples.searched if samples.apart else 0,
            threads=asked.threads,
            native=asked.native,
        )
        held, reason = judged(timed, answers, asked.limits, asked.min_gain)
        confirmed.append(
            Confirmed(precision=precision, row=row, bench=timed, evaluation=answers, held=held, reason=reason)
        )
        if reason is None:
            break
        refused.append((precision, row.spec, reason))
    return confirmed, refused


def advice_of(
    asked: TuneRequest,
    sweeps: Mapping[str, SweepResult],
    confirmed: Sequence[Confirmed],
    winner: Confirmed | None,
    target: Path,
) -> list[str]:
    """The result in sentences."""
    if winner is not None:
        sentences = [f"Take {winner.sentence()}; the bundle is {target}."]
        change = winner.row.random
        if winner.row.random_value is None:
            sentences.append("There is no random with as many tokens to hold it against: it was not compared with one.")
        elif change is not None and change.low <= 0:
            sentences.append("That it beats random with as many tokens is within the noise of these samples.")
        if any(side.verdict.status != "stable" for side in winner.bench.sides):
            sentences.append("The timing was not steady: repeat it on a quiet machine before you quote it.")
        return sentences
    count = sum(row.kind == "asked" for found in sweeps.values() for row in found.rows)
    limits = ", ".join(map(str, asked.limits))
    sentences = [
        f"{'The one setting that was' if count == 1 else f'None of the {count} settings that were'} measured is "
        f"{'not ' if count == 1 else ''}taken; asked for is at least {asked.min_gain:g}× as fast as dense, better than "
        f"random with as many tokens, and {limits}."
    ]
    if confirmed:
        best = max(confirmed, key=lambda one: one.gain.median)
        sentences.append(f"The best that was found is {best.sentence()}; {best.reason}.")
    else:
        rows = [(precision, row) for precision, found in sweeps.items() for row in found.rows if row.kind == "asked"]
        timed = [(precision, row) for precision, row in rows if row.speedup is not None]
        if timed:
            precision, row = max(timed, key=lambda each: each[1].speedup.median if each[1].speedup else 0.0)
            found = sweeps[precision]
            why = dict(before_confirming([row], found, asked.limits, asked.min_gain)[1]).get(row.spec, "")
            sentences.append(f"The fastest is {row.spec} in {precision}: {why}.")
    sentences.append(f"The dense bundle is {target}.")
    return sentences
