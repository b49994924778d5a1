"""Search schedules and methods by NSGA-II: predicted latency, distance from dense; every trial is kept in a file."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trt_compress.errors import ConfigError, TrtCompressError
from trt_compress.tools.bench.records import write_line
from trt_compress.tools.tune.schedule import Shape, left_behind, spec_of, starts

DOCUMENT = "trt-compress tune trials"
_FEWEST = 8  # of a generation

Score = tuple[float, float]
"""Predicted nanoseconds of a run, and how far the answers are from dense's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One schedule of one method.

    Attributes:
        number: From 0.
        method: As it was asked for.
        removed: Tokens that were asked to leave at each layer.
        left: Tokens behind each layer.
        spec: Spec string; "" where none can be written.
        predicted_ns: Of a run, by the staircase; None: it does not fit.
        loss: How far its answers are from dense's, 0 if they are the same.
        refused: Why it does not fit.
        sampler: What the optimizer notes of it.
    """

    number: int
    method: str
    removed: tuple[int, ...]
    left: tuple[int, ...]
    spec: str
    predicted_ns: float | None
    loss: float | None
    refused: str | None
    sampler: Mapping[str, Any]


def search(
    methods: Mapping[str, Mapping[str, Any]],
    shape: Shape,
    score: Callable[[str, str, Sequence[int]], Score],
    *,
    trials: int,
    seed: int,
    kept: Sequence[Trial],
    keep: Callable[[Trial], None],
    say: Callable[[str], None],
) -> list[Trial]:
    """Try schedules until there are `trials` of them.

    Args:
        methods: As asked for → the options that stay.
        shape: Of the model.
        score: Method, spec string and tokens behind each layer → what is made small; raises what says that it does not
            fit.
        trials: How many, those that are kept counted.
        seed: Of the optimizer.
        kept: Trials of an interrupted search, in order.
        keep: Is given every new one.
        say: Is told what is tried.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    names = list(methods)
    begins = [{"method": method, **_layers(removed)} for removed in starts(shape) for method in names]
    ranges: dict[str, Any] = {"method": optuna.distributions.CategoricalDistribution(names)}
    ranges |= {name: optuna.distributions.IntDistribution(0, shape.most) for name in _layers([0] * shape.layers)}
    study = optuna.create_study(
        directions=["minimize", "minimize"],
        sampler=optuna.samplers.NSGAIISampler(
            population_size=max(_FEWEST, min(len(begins), trials // 2)), seed=seed + len(kept)
        ),
    )
    found = list(kept)
    scores: dict[str, Score] = {
        trial.spec: (trial.predicted_ns, trial.loss)
        for trial in kept
        if trial.predicted_ns is not None and trial.loss is not None
    }
    for trial in kept:
        if trial.predicted_ns is not None and trial.loss is not None:
            study.add_trial(
                optuna.trial.create_trial(
                    params={"method": trial.method, **_layers(trial.removed)},
                    distributions=ranges,
                    values=[trial.predicted_ns, trial.loss],
                    system_attrs=dict(trial.sampler),
                )
            )
    for begin in begins[len(kept) :]:
        study.enqueue_trial(begin)
    for number in range(len(kept), trials):
        asked = study.ask(ranges)
        method = str(asked.params["method"])
        removed = tuple(int(asked.params[name]) for name in _layers([0] * shape.layers))
        left = left_behind(shape, removed)
        say(f"trial {number + 1} of {trials}: {method}, {shape.tokens} → {left[-1]} tokens")
        spec, values, refused = "", None, None
        try:
            if left[-1] == shape.tokens:
                raise ConfigError("It removes no token.")
            spec = spec_of(method.partition(":")[0], methods[method], shape, left)
            values = scores[spec] if spec in scores else score(method, spec, left)
            scores[spec] = values
        except TrtCompressError as error:
            refused = error.message
        if values is None:
            study.tell(asked, state=optuna.trial.TrialState.FAIL)
        else:
            study.tell(asked, list(values))
        noted = study.trials[asked.number].system_attrs
        trial = Trial(
            number=number,
            method=method,
            removed=removed,
            left=left,
            spec=spec,
            predicted_ns=None if values is None else values[0],
            loss=None if values is None else values[1],
            refused=refused,
            sampler={name: value for name, value in noted.items() if name != "fixed_params"},
        )
        keep(trial)
        found.append(trial)
    return found


def front(trials: Iterable[Trial]) -> list[Trial]:
    """The trials that no other beats in both, the fastest first, each spec once."""
    found: list[Trial] = []
    least = float("inf")
    judged = [trial for trial in trials if trial.predicted_ns is not None and trial.loss is not None]
    for trial in sorted(judged, key=lambda each: (each.predicted_ns or 0.0, each.loss or 0.0)):
        if trial.loss is not None and trial.loss < least:
            least = trial.loss
            found.append(trial)
    return found


def read_trials(path: Path, request: Mapping[str, Any]) -> list[Trial]:
    """The trials of an interrupted search; a line that was cut off is none.

    Raises:
        ConfigError: The file is no such record, or was made for something else.
    """
    try:
        lines = path.read_text().splitlines()
        head = json.loads(lines[0])
        records = [record for line in lines[1:] for record in _whole(line)]
        same, trials = head["request"], [_trial(record) for record in records]
        if head["document"] != DOCUMENT:
            raise ValueError
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        raise ConfigError(f"'{path}' is no record of a search; give another folder with -o.") from None
    if changed := [name for name in request if request[name] != same.get(name)]:
        name = changed[0]
        raise ConfigError(
            f"'{path}' is of a search with {name} {same.get(name)!r}, and {request[name]!r} is given; give the same, "
            "or another folder with -o."
        )
    return trials


def begin_trials(path: Path, request: Mapping[str, Any]) -> None:
    """Begin the record of a search."""
    write_line(path, {"document": DOCUMENT, "request": dict(request)})


def keep_trial(path: Path, trial: Trial) -> None:
    """Add a trial to the record."""
    write_line(path, asdict(trial))


def _whole(line: str) -> list[dict[str, Any]]:
    try:
        return [json.loads(line)]
    except ValueError:
        return []


def _trial(record: Mapping[str, Any]) -> Trial:
    return Trial(**{**record, "removed": tuple(record["removed"]), "left": tuple(record["left"])})


def _layers(removed: Sequence[int]) -> dict[str, int]:
    return {f"layer_{layer}": count for layer, count in enumerate(removed)}
