"""What every source of labelled data gives: samples that are read one by one, and what was left out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from trt_compress.errors import ConfigError

Array = np.ndarray[Any, np.dtype[Any]]
Runs = tuple[Mapping[str, Array], ...]
"""What one sample feeds, one run after another; arrays by input name with a batch axis of 1."""

Answer = Literal["last", "mean"]


class BadSample(Exception):
    """One sample cannot be read; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledSample:
    """One thing that a model answers.

    Attributes:
        name: A file as the user knows it, or the row of an array.
        label: The number of its class; None: not known.
        load: Its runs; raises BadSample.
    """

    name: str
    label: int | None
    load: Callable[[], Runs]


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledData:
    """Samples, and how they were read.

    Attributes:
        source: As the user gave it.
        form: What it is, in words.
        samples: In order.
        labelled_by: How a label became the number of a class; None: there are no labels.
        class_names: Names by number, where they are known.
        answer: Of a sample with several runs: the answer of the last, or the mean of all. A bundle with states answers
            with the last.
        left_out: What was found and not taken, with the reason.
    """

    source: str
    form: str
    samples: Sequence[LabelledSample]
    labelled_by: str | None = None
    class_names: tuple[str, ...] = ()
    answer: Answer = "last"
    left_out: tuple[tuple[str, str], ...] = ()

    @property
    def num_labelled(self) -> int:
        """Samples with a label."""
        return sum(sample.label is not None for sample in self.samples)


def limited(data: LabelledData, limit: int | None) -> LabelledData:
    """At most `limit` samples, evenly spread over all of them: a class that stands together keeps its share."""
    total = len(data.samples)
    if limit is None or limit >= total:
        return data
    chosen = [data.samples[index * total // limit] for index in range(limit)]
    return replace(data, samples=chosen, form=f"{data.form}, {limit} of {total} samples")


def without(data: LabelledData, apart: int) -> LabelledData:
    """The samples that `limited(data, apart)` does not take.

    Raises:
        ConfigError: None is left.
    """
    total = len(data.samples)
    if not apart:
        return data
    if apart >= total:
        raise ConfigError(f"apart={apart} leaves none of the {total} samples; give less.")
    taken = {index * total // apart for index in range(apart)}
    chosen = [sample for place, sample in enumerate(data.samples) if place not in taken]
    return replace(data, samples=chosen, form=f"{data.form}, without {apart} that a search looked at")


def remembered(data: LabelledData, *, most_bytes: int = 1 << 30) -> LabelledData:
    """The same data, which keeps what it has read, up to `most_bytes`, for the next time."""
    kept: dict[int, Runs] = {}
    left = most_bytes

    def load(place: int, sample: LabelledSample) -> Runs:
        nonlocal left
        if place in kept:
            return kept[place]
        runs = sample.load()
        size = sum(array.nbytes for run in runs for array in run.values())
        if size <= left:
            left -= size
            kept[place] = runs
        return runs

    def of(place: int, sample: LabelledSample) -> LabelledSample:
        return replace(sample, load=lambda: load(place, sample))

    return replace(data, samples=[of(place, sample) for place, sample in enumerate(data.samples)])
