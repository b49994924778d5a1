"""What a tuning is asked for, looked at before anything is loaded, and how its samples are parted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trt_compress.errors import ConfigError
from trt_compress.export.api import check_int8
from trt_compress.export.int8_form import INT8
from trt_compress.export.recipe import OF_INT8, Recipe, recipe_from_options
from trt_compress.export.trust import trusted
from trt_compress.models.hosts.catalog import check_model
from trt_compress.runtime.labelled.open import HELD_OUT, Request
from trt_compress.tools.evaluate import check_numbers, request_of
from trt_compress.tools.held_out import check_held_out
from trt_compress.tools.machine import cpu_cores
from trt_compress.tools.report.budget import Limit
from trt_compress.tools.tune.result import limits_from, rounds_for
from trt_compress.tools.tune.schedule import methods_from, tunable


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneRequest:
    """What was asked for, checked."""

    model: str
    methods: Mapping[str, Mapping[str, Any]]
    limits: Sequence[Limit]
    recipes: Mapping[str, Recipe]
    request: Request | None
    data: Mapping[str, Any]
    options: Mapping[str, Any]
    min_gain: float
    trials: int
    finalists: int
    samples: int
    batch: int
    rounds: int
    warmup: int
    threads: int
    limit: int | None
    seed: int
    native: bool | None
    trust_paths: bool
    folder: Path

    @property
    def base(self) -> str:
        """The precision that schedules are searched in, and whose dense model everything is held against."""
        return next(iter(self.recipes))

    def to_json(self) -> dict[str, Any]:
        """What an interrupted tuning must have been asked for, too, to go on."""
        return {
            "model": self.model,
            "methods": list(self.methods),
            "precision": self.base,
            **{name: None if value is None else str(value) for name, value in self.data.items()},
            **{
                name: None if value is None else str(value)
                for name, value in options_of(self.options, self.base).items()
                if name != "precision"
            },
            "samples": self.samples,
            "limit": self.limit,
            "batch": self.batch,
            "threads": self.threads,
            "seed": self.seed,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleParts:
    """How the data are parted: the search looks at some, and what it found is scored on the others.

    Attributes:
        searched: Samples that the search looks at.
        scored: Samples that settings are scored with.
        apart: Whether none is among both.
    """

    searched: int
    scored: int
    apart: bool

    def sentence(self) -> str:
        """For a report."""
        if self.apart:
            return f"The search looked at {self.searched} samples; the scores are of the {self.scored} others."
        return (
            f"The scores are of all {self.scored} samples, and the search looked at {self.searched} of them: there are "
            f"too few to keep both apart."
        )


def read_asked(
    model: str,
    *,
    compress: str | Sequence[str] | None,
    budget: str | None,
    precision: str | Sequence[str] | None,
    data: dict[str, Any],
    options: dict[str, Any],
    min_gain: float,
    rounds: int | None,
    warmup: int,
    threads: int | None,
    batch: int,
    limit: int | None,
    trials: int,
    finalists: int,
    samples: int,
    trust_paths: bool,
    **rest: Any,
) -> TuneRequest:
    """Look at everything that was given, before anything is loaded."""
    texts = [compress] if isinstance(compress, str) else list(compress or ())
    methods = methods_from(texts or tunable())
    limits = limits_from(budget)
    if precision is None:
        precision = recipe_from_options(model).precision
    names = [precision] if isinstance(precision, str) else list(precision)
    names = list(dict.fromkeys(name.strip().lower() for text in names for name in text.split(",")))
    if not min_gain >= 1 or min_gain == float("inf"):
        raise ConfigError(f"min_gain={min_gain:g}; give 1 or more: how many times as fast as dense it must be.")
    numbers = {"batch": batch, "rounds": rounds, "threads": threads, "limit": limit, "trials": trials}
    check_numbers(**numbers, finalists=finalists, samples=samples)
    if warmup < 0:
        raise ConfigError(f"warmup={warmup}; give 0 or more.")
    counted = rounds_for(limits, rounds)
    recipes = {}
    if INT8 not in names and (given := [name for name in OF_INT8 if options.get(name) is not None]):
        raise ConfigError(
            f"--{given[0].replace('_', '-')} is for precision int8, and int8 is not among the precisions; give "
            f"--precision {','.join([*names, INT8])}, or leave it out."
        )
    for name in names:
        recipe = recipe_from_options(model, **options_of(options, name), batch=f"1:{batch}:{max(8, batch)}")
        if not trust_paths:
            said = {"weights": options.get("weights"), "calibrate": options.get("calibrate")}
            recipe = trusted(model, recipe, named=[key for key, value in said.items() if value is not None])
        check_int8(recipe)
        recipes[name] = recipe
    base = recipes[names[0]]
    check_model(base.model, base.weights)
    if data["data"] is None and data["labels"] is None and base.model.startswith("zoo:"):
        data = {**data, "data": HELD_OUT}
    request = request_of(data["data"], data["labels"], data["classes"], resample=data["resample"])
    if request is None:
        check_held_out(base.model)
    return TuneRequest(
        model=model,
        methods=methods,
        limits=limits,
        recipes=recipes,
        request=request,
        data={**data, "resample": data["resample"] or None},
        options=options,
        min_gain=min_gain,
        trials=trials,
        finalists=finalists,
        samples=samples,
        batch=batch,
        rounds=counted,
        warmup=warmup,
        threads=threads or cpu_cores(),
        limit=limit,
        trust_paths=trust_paths,
        **rest,
    )


def options_of(options: Mapping[str, Any], precision: str) -> dict[str, Any]:
    """The options of an export in one precision: all that were given, those of INT8 where it is that."""
    own = {name: value for name, value in options.items() if precision == INT8 or name not in OF_INT8}
    return {**own, "precision": precision}
