"""How a graph in INT8 answers beside the model in floating point, on the same inputs: never as an absolute error.

INT8 rounds every factor, so that no bound on an error follows from it; what matters is whether the answers stay the
same. Outputs are compared sample by sample, by the cosine of both answers and, of classes, by which comes first; so are
the tokens that leave each site, and the indices that were kept there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from trt_compress.export.course import Course, Event
from trt_compress.export.sample_inputs import lengths_of
from trt_compress.export.sides import OnnxSide, Part, TorchSide
from trt_compress.export.verify_report import LEAST_COSINE, AgreementCheck
from trt_compress.models.hosts.base import GraphSpec, Steps
from trt_compress.plugins.library import Library

LEAST_TOP1 = 0.9
"""Of real samples, the share whose first class is the same, below which it fails; of whole numbers, such as the codes
of a codec, the share that is equal."""
FEWEST = 20
"""Samples from which on that share is judged."""


@dataclass(slots=True)
class _Found:
    """What was seen of one value, sample by sample."""

    cosines: list[float] = field(default_factory=list)
    same: list[float] = field(default_factory=list)


def agreement(
    part: Part,
    inputs: Sequence[Steps],
    *,
    label: str,
    real: bool,
    classes: str | None,
    native: Library | None = None,
) -> tuple[AgreementCheck, ...]:
    """Compare a graph in INT8 with the torch model in floating point, each with states of its own.

    Args:
        part: The graph, the module in floating point, and the file in INT8.
        inputs: Sequences of consecutive runs.
        label: Where they come from, for the report.
        real: Whether they are real samples, whose classes mean something.
        classes: The output with a number for each class; None: there is none.
        native: The native operators to run in place of the bodies; None: the bodies.

    Returns:
        One for each output and new state, one for each site; that of an output of which nothing is close has not
        passed. Sites are not judged: what is kept there may change as long as the outputs do not.

    Raises:
        GateError: ONNX Runtime cannot load the file.
    """
    graph = part.graph
    ours = TorchSide({graph.name: (graph, part.module)})
    theirs = OnnxSide(parts={graph.name: part}, native=native)
    outputs: dict[str, _Found] = {spec.name: _Found() for spec in graph.all_outputs}
    sites: dict[str, _Found] = {}
    for steps in inputs:
        runs = zip(_runs(ours, graph, steps), _runs(theirs, graph, steps), strict=False)
        for expected, actual in runs:
            for name, found in outputs.items():
                if name in actual.outputs:
                    _compare(found, expected.outputs[name], actual.outputs[name], first=name == classes)
            _compare_sites(sites, expected.sites, actual.sites)
    if theirs.failure is not None:
        first = next(iter(outputs))
        return (_said(graph.name, first, "output", outputs[first], label, passed=False, failure=theirs.failure),)
    states = {state.output for state in graph.states}
    rows = []
    for name, found in outputs.items():
        close = (_mean(found.cosines) or 0.0) >= LEAST_COSINE if found.cosines else True
        is_whole = bool(found.same) and not found.cosines
        is_judged = real and (is_whole or (name == classes and len(found.same) >= FEWEST))
        same = (_mean(found.same) or 0.0) >= LEAST_TOP1 if is_judged else True
        judged = name not in states
        rows.append(_said(graph.name, name, "output", found, label, passed=not judged or (close and same)))
    return (*rows, *(_said(graph.name, name, "site", found, label, passed=True) for name, found in sites.items()))


def _runs(side: TorchSide | OnnxSide, graph: GraphSpec, steps: Steps) -> Sequence[Event]:
    states = [state.of(graph.name) for state in graph.states]
    return list(Course(side).runs(graph.name, states, steps, lengths_of(graph, steps)))


def _compare(found: _Found, expected: Tensor, got: Tensor, *, first: bool) -> None:
    """Compare sample by sample: numbers by their cosine, whole ones by the share that is equal."""
    if expected.shape != got.shape or not expected.dim():
        found.cosines += [0.0] * max(len(expected) if expected.dim() else 1, 1)
        return
    if not expected.is_floating_point():
        found.same += [float(share) for share in (expected == got).reshape(len(expected), -1).double().mean(dim=1)]
        return
    ones, others = (values.reshape(len(values), -1).double() for values in (expected, got))
    cosines = torch.nn.functional.cosine_similarity(ones, others, dim=1, eps=1e-30)
    alike = (ones == others).all(dim=1)
    found.cosines += [float(c) for c in torch.where(alike, torch.ones_like(cosines), cosines.nan_to_num(0.0))]
    if first:
        found.same += [float(x) for x in (ones.argmax(dim=1) == others.argmax(dim=1)).double()]


def _compare_sites(sites: dict[str, _Found], expected: Mapping[str, Tensor], got: Mapping[str, Tensor]) -> None:
    for name, tensor in expected.items():
        if name not in got:
            continue
        site = name.rpartition("/")[0]
        if name.rpartition("/")[2].startswith("tokens"):
            if tensor.shape == got[name].shape:
                _compare(sites.setdefault(site, _Found()), tensor, got[name], first=False)
        elif tensor.dtype == torch.int64 and tensor.shape == got[name].shape and tensor.dim():
            _compare(sites.setdefault(site.rpartition("/")[0] or site, _Found()), tensor, got[name], first=False)


def _said(
    graph: str, name: str, kind: str, found: _Found, label: str, *, passed: bool, failure: str = ""
) -> AgreementCheck:
    return AgreementCheck(
        graph=graph,
        name=name,
        kind=kind,
        samples=max(len(found.cosines), len(found.same)),
        cosine=_mean(found.cosines),
        least_cosine=min(found.cosines, default=None),
        same=_mean(found.same),
        inputs=label,
        passed=passed,
        failure=failure,
    )


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
