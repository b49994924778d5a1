"""What a verification found: every comparison, and how far rounded weights are from the model as it was."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

# Largest error relative to the largest value. Half precision: 11 bits, some 20 roundings in a row; bfloat16 has 8.
TOLERANCE = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 8e-2}

LEAST_COSINE = 0.95
"""Of an output of a graph in INT8: the mean cosine over all samples, below which a verification fails."""

FEW_CODES = 2
"""Codes that rounding may turn in any state, however few it holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputCheck:
    """One output or new state in one run. Items that met a near tie at a site are counted in `ties` and not compared.

    `step` counts the consecutive runs of a graph with states, or of a procedure, from 1; it is 0 for a graph without.
    `moment` is where in a procedure that is. Integers must be equal; of packed codes `max_abs_error` is in steps,
    `relative_error` is the mean difference relative to their range, and `turned` counts those one step apart.

    `rounding` is measured where the error is beyond what is usual; else it is 0. In float32 it is how far torch is here
    from itself with its matrix products summed in float64, relative as the error is, and allowed four times over. In
    half precision it is how far torch is from itself when it computes in float32 between the same weights; the error
    is then that to this, if it is within what is usual.
    """

    graph: str
    name: str
    batch: int
    step: int
    max_abs_error: float
    relative_error: float
    cosine: float
    tolerance: float
    ties: int
    passed: bool
    moment: str = ""
    turned: int = 0
    rounding: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteCheck:
    """One compressor site in one run: tokens left, indices kept, and the tokens themselves; `step` as in outputs."""

    graph: str
    site: str
    compressor: str
    batch: int
    step: int
    tokens_in: int | str
    tokens_out: int | str
    tokens_out_onnx: int
    indices_equal: bool
    ties: int
    relative_error: float
    tolerance: float
    passed: bool
    moment: str = ""


LOADED = "the model as loaded"
QUANTIZED = "the model with quantized weights"
DEPLOYED = "ONNX Runtime as it is deployed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Distance:
    """How far an output is from another model's, at most over all runs; the cosine at least.

    `of` and `to` say which two: `LOADED`, `QUANTIZED` (in the precision of the graph, which is what the graph is
    verified against) and `DEPLOYED`, where what is multiplied with quantized weights is rounded to 8 bits, too.
    """

    graph: str
    name: str
    of: str
    to: str
    max_abs_error: float
    relative_error: float
    cosine: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AgreementCheck:
    """How far a graph in INT8 answers as the model in floating point does, at one output or one site.

    Attributes:
        kind: "output" or "site". Outputs are judged; what is kept at a site may change as long as they stay.
        samples: How many were compared.
        cosine: Mean over the samples; None: nothing there is in floating point.
        least_cosine: Of the sample that is furthest.
        same: Of classes the share of samples whose first is the same; of whole numbers, such as the indices that were
            kept, the share that is equal; None: there are neither.
        inputs: Where the samples come from.
        failure: What ONNX Runtime said if it could not run the graph.
    """

    graph: str
    name: str
    kind: str
    samples: int
    cosine: float | None
    least_cosine: float | None
    same: float | None
    inputs: str
    passed: bool
    failure: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """All checks.

    Attributes:
        first_divergence: The first site or output that fails.
        paths: For each operator, the nodes that ONNX Runtime ran as a native kernel, and those it ran as a function.
        failure: What ONNX Runtime said if it could not run the graph to its end.
        method: How a graph was run that ONNX Runtime cannot run on the CPU as it is; "" as it is.
        distances: What the numbers of the graph cost, which is no error of the graph and not judged.
        agreements: Of a graph in INT8, how it answers beside the same graph in floating point, which is what `outputs`
            and `sites` are of.
        layers: How many layers were run, the first ones; None: all of the model was.
        layers_of: How many the model has.
        left_out: Methods of the model that do not act in these layers, and where they would.
    """

    precision: str
    inputs: str
    outputs: tuple[OutputCheck, ...]
    sites: tuple[SiteCheck, ...]
    paths: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    first_divergence: str | None = None
    failure: str | None = None
    method: str = ""
    distances: tuple[Distance, ...] = ()
    agreements: tuple[AgreementCheck, ...] = ()
    layers: int | None = None
    layers_of: int | None = None
    left_out: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return self.first_divergence is None

    @property
    def max_abs_error(self) -> float:
        """Largest error of an output or state; of packed codes, which are whole numbers, there is none."""
        return max((check.max_abs_error for check in self.outputs if not check.turned or not check.passed), default=0.0)

    def distance(self, of: str) -> float | None:
        """The largest relative distance of an output of this model from that which it is compared with."""
        return max((found.relative_error for found in self.distances if found.of == of), default=None)

    def with_agreements(self, agreements: Sequence[AgreementCheck]) -> "VerifyReport":
        """The report of a graph in floating point, and how the graph in INT8 that was made of it answers."""
        missed = next((row for row in agreements if not row.passed), None)
        first, failure = self.first_divergence, self.failure
        if missed is not None and first is None:
            first, failure = f"output {missed.name} of graph {missed.graph} in INT8", missed.failure or None
        return replace(self, agreements=tuple(agreements), first_divergence=first, failure=failure)

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON values; a number that is not finite becomes null."""
        report = {"passed": self.passed, "max_abs_error": self.max_abs_error, **asdict(self)}
        return {key: _json_safe(value) for key, value in report.items()}


def merge_reports(reports: Sequence[VerifyReport]) -> VerifyReport:
    """One report of several graphs."""
    if len(reports) == 1:
        return reports[0]
    paths: dict[str, dict[str, int]] = {}
    for report in reports:
        for operator, forms in report.paths.items():
            counts = paths.setdefault(operator, dict.fromkeys(forms, 0))
            counts.update({form: counts[form] + count for form, count in forms.items()})
    failing = next((report for report in reports if not report.passed), None)
    graph = failing.outputs[0].graph if failing and failing.outputs else None
    return VerifyReport(
        precision=reports[0].precision,
        inputs=", ".join(dict.fromkeys(report.inputs for report in reports)),
        outputs=tuple(check for report in reports for check in report.outputs),
        sites=tuple(check for report in reports for check in report.sites),
        paths=paths,
        first_divergence=f"graph {graph}, {failing.first_divergence}" if failing else None,
        failure=failing.failure if failing else None,
        method=next((report.method for report in reports if report.method), ""),
        distances=tuple(distance for report in reports for distance in report.distances),
        agreements=tuple(row for report in reports for row in report.agreements),
        layers=next((report.layers for report in reports if report.layers), None),
        layers_of=next((report.layers_of for report in reports if report.layers), None),
        left_out=tuple(dict.fromkeys(said for report in reports for said in report.left_out)),
    )


def _json_safe(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _json_safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_safe(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
