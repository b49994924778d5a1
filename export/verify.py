"""Proof that ONNX files compute what the torch model computes: outputs, states, and what was decided at every site.

There is one way: both sides go the same course (`trt_compress.export.course`), and every run of it is compared. Of a
graph without a procedure the course is its consecutive runs; of a bundle with one, what the procedure says.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from trt_compress.errors import GateError, TrtCompressError
from trt_compress.export.apart import apart
from trt_compress.export.compare import Compared, compare_outputs, compare_sites, may_be_rounding
from trt_compress.export.course import Compute, Course, Event, ProcedureCourse, of_layers
from trt_compress.export.doubles import Doubles, Wide
from trt_compress.export.sample_inputs import lengths_of
from trt_compress.export.sides import OnnxSide, Part, TorchSide
from trt_compress.export.verify_report import Distance, OutputCheck, SiteCheck, VerifyReport
from trt_compress.format.graphs import BATCH_SYMBOL
from trt_compress.format.manifest import Manifest
from trt_compress.format.wiring import Wiring
from trt_compress.models.hosts.base import GraphSpec, Scenario, Steps
from trt_compress.plugins.library import Library

Checks = list[SiteCheck | OutputCheck]


def verify_onnx(
    path: Path,
    module: nn.Module,
    *,
    graph: GraphSpec,
    inputs: Sequence[Steps],
    inputs_label: str,
    precision: str,
    native: Library | None = None,
) -> VerifyReport:
    """Run the same inputs through torch and through ONNX Runtime on the CPU and compare.

    Each side carries its own states from step to step, so that a difference that grows shows.

    Args:
        path: The ONNX file, with function bodies.
        module: The torch model in the same precision, in eval mode.
        graph: Names, states, and the plan of the compressor sites.
        inputs: Sequences of consecutive runs; each starts from the initial states.
        inputs_label: Where they come from, for the report.
        precision: fp32, fp16 or bf16.
        native: The native operators to run in place of the bodies; None: the bodies.

    Returns:
        The report; nothing is raised for a difference.

    Raises:
        GateError: ONNX Runtime cannot load the file, and there is no site that could show from where on.
    """
    parts = {graph.name: Part(graph=graph, module=module, file=path)}
    theirs = OnnxSide(parts=parts, native=native)
    checks: Checks = []
    for steps in inputs:

        def way(compute: Compute, _: bool, steps: Steps = steps) -> _Way:
            course = Course(compute)
            return _Way(course, _runs(course, graph, steps))

        batch = lengths_of(graph, steps)[BATCH_SYMBOL]
        found, _ = _compared(parts, way, theirs, batch, precision)
        checks += found
    return _report(checks, theirs, precision, inputs_label, _first_divergence(checks))


def verify_procedure(
    parts: Sequence[Part],
    *,
    ours: Manifest,
    theirs: Manifest,
    scenarios: Sequence[Scenario],
    inputs_label: str,
    precision: str,
    native: Library | None = None,
) -> VerifyReport:
    """Read scenarios on both sides, each as its own manifest says, and compare every run.

    Args:
        parts: All graphs.
        ours: What the host says of its graphs; the torch side follows its procedure.
        theirs: What the bundle says; the side of ONNX Runtime follows this one.
        scenarios: What is read.
        inputs_label: Where they come from, for the report.
        precision: fp32, fp16 or bf16.
        native: The native operators to run in place of the bodies; None: the bodies.

    Returns:
        The report; nothing is raised for a difference, also if one procedure runs another graph than the other.

    Raises:
        GateError: A procedure cannot go on, or no scenario runs a graph.
    """
    named = {part.graph.name: part for part in parts}
    side = OnnxSide(parts=named, native=native)
    short = [part.graph for part in parts if part.layers is not None]
    ours, theirs = of_layers(ours, short), of_layers(theirs, short)
    checks: Checks = []
    other: str | None = None
    for scenario in scenarios:

        def way(compute: Compute, in_torch: bool, scenario: Scenario = scenario) -> _Way:
            course = ProcedureCourse(compute, ours if in_torch else theirs, scenario)
            return _Way(course, course.events())

        found, other = _compared(named, way, side, len(scenario.prompt), precision)
        checks += found
        if other or not all(check.passed for check in found):
            break
    first = _first_divergence(checks) or other
    if first is None and (idle := named.keys() - side.models.keys()):
        raise GateError(
            f"verification failed: no scenario runs the graph '{sorted(idle)[0]}', so that nothing is known of it; "
            "give longer ones in the host."
        )
    failing = next((check for check in checks if not check.passed), None)
    return _report(checks, side, precision, inputs_label, f"graph {failing.graph}, {first}" if failing else first)


def _runs(course: Course, graph: GraphSpec, steps: Steps) -> Iterator[Event]:
    return course.runs(graph.name, [state.of(graph.name) for state in graph.states], steps, lengths_of(graph, steps))


class _Way(NamedTuple):
    """One side on its way through a course."""

    course: Course
    events: Iterator[Event]


def _compared(
    parts: Mapping[str, Part], way: Callable[[Compute, bool], _Way], side: OnnxSide, batch: int, precision: str
) -> tuple[Checks, str | None]:
    """Both sides on one course, and what is said if they run different graphs.

    What fails by little is judged once more. In float32 by the rounding that is torch's own: in a deep model with large
    values that cancel, two right computations may be further apart than is usual. In half precision by torch that
    computes in float32 between the same weights, which is nearer to the truth than either.
    """
    modules = {name: (part.graph, part.module) for name, part in parts.items()}
    ours = TorchSide(modules)
    checks, other = _follow(parts, way(ours, True), way(side, False), side, batch, precision)
    failed = [check for check in checks if not check.passed]
    if other or side.failure or not failed or not all(may_be_rounding(check) for check in failed):
        return checks, other
    doubles = way(TorchSide(modules, mode=Doubles if precision == "fp32" else Wide), True)
    return _follow(parts, way(ours, True), way(side, False), side, batch, precision, doubles)


def _follow(
    parts: Mapping[str, Part],
    ours: _Way,
    theirs: _Way,
    side: OnnxSide,
    batch: int,
    precision: str,
    doubles: _Way | None = None,
) -> tuple[Checks, str | None]:
    """Compare run by run, until a side ends or fails."""
    comparable = torch.ones(batch, dtype=torch.bool)
    checks: Checks = []
    for expected, actual in zip_longest(ours.events, theirs.events):
        if expected is None or actual is None or expected.graph != actual.graph:
            step = next(event.step for event in (expected, actual) if event is not None)
            said = [f"'{event.graph}' ({event.moment})" if event else "nothing more" for event in (expected, actual)]
            where = f"run {step} (batch {batch}), where the model's procedure runs {said[0]}"
            return checks, f"{where} and the bundle's {said[1]}"
        precise = _next(doubles, precision) if doubles is not None else None
        if precise is None or precise.graph != expected.graph:
            doubles = None  # other codes or other entries fill a cache otherwise
        graph = parts[expected.graph].graph
        run = Compared(
            graph=graph.name,
            batch=batch,
            step=expected.step,
            moment=expected.moment,
            reference=expected.sites,
            got=actual.sites,
            comparable=comparable,
        )
        checks += compare_sites(run, graph, side.models[graph.name], precision)
        exact = precise.outputs if doubles is not None and precise is not None else None
        found = compare_outputs(run, graph, expected.outputs, actual.outputs, precision, exact)
        checks += found
        if not actual.outputs:
            break
        comparable = run.comparable
        close = {check.name for check in found if check.passed}
        turned = {check.name for check in found if check.turned and check.passed}
        _go_on_with_ours(turned, close, graph, expected, theirs.course)
        if doubles is not None:
            every = {state.output for state in graph.states}
            codes = {state.output for state in graph.states if state.comparison == "codes"}
            _go_on_with_ours(codes, every, graph, expected, doubles.course)
    return checks, None


def _next(doubles: _Way, precision: str) -> Event | None:
    """The next run of the more precise side; None: there is none, or torch cannot compute it so."""
    try:
        return next(doubles.events, None)
    except (RuntimeError, TypeError, ValueError, TrtCompressError):
        if precision == "fp32":
            raise
        return None  # an operator that takes half precision only: what failed stays failed


def _go_on_with_ours(
    turned: Set[str | None], close: Set[str | None], graph: GraphSpec, expected: Event, course: Course
) -> None:
    """After codes that rounding turned, both sides go on with the same ones: a turned code is no error that grows.

    So they do with rows that are packed later, with scales and with scores: last bits of these decide how codes and
    scales are rounded and which rows are chosen, and all that is made of it.
    """
    for state in graph.states:
        if state.output in turned or (state.kind in ("tail", "scale", "score") and state.output in close):
            course.states[state.of(graph.name).key] = expected.outputs[str(state.output)].numpy()


def _report(
    checks: Checks, side: OnnxSide, precision: str, inputs_label: str, first_divergence: str | None
) -> VerifyReport:
    return VerifyReport(
        precision=precision,
        inputs=inputs_label,
        outputs=tuple(check for check in checks if isinstance(check, OutputCheck)),
        sites=tuple(check for check in checks if isinstance(check, SiteCheck)),
        paths={} if side.failure else side.paths(),
        first_divergence=first_divergence,
        failure=side.failure,
        method=side.method,
    )


def run_graph(side: Compute, graph: GraphSpec, inputs: Sequence[Steps]) -> list[Mapping[str, Tensor]]:
    """What every run of a graph gives on one side, one after the other."""
    return [event.outputs for steps in inputs for event in _runs(Course(side), graph, steps)]


def run_procedure(side: Compute, manifest: Manifest | Wiring, scenario: Scenario) -> Iterator[Event]:
    """Every run of a scenario on one side."""
    return ProcedureCourse(side, manifest, scenario).events()


def distances(
    graph: GraphSpec, of: str, ones: Sequence[Mapping[str, Tensor]], to: str, others: Sequence[Mapping[str, Tensor]]
) -> tuple[Distance, ...]:
    """How far the outputs of the same runs are from each other; integers have no distance."""
    found = []
    for spec in graph.outputs:
        pairs = [(other[spec.name], one[spec.name]) for one, other in zip(ones, others, strict=True)]
        if all(one.is_floating_point() and one.shape == other.shape for other, one in pairs):
            errors = [apart(other, one) for other, one in pairs]
            found.append(
                Distance(
                    graph=graph.name,
                    name=spec.name,
                    of=of,
                    to=to,
                    max_abs_error=max(error.absolute for error in errors),
                    relative_error=max(error.relative for error in errors),
                    cosine=min(error.cosine for error in errors),
                )
            )
    return tuple(found)


def _first_divergence(checks: Sequence[SiteCheck | OutputCheck]) -> str | None:
    """The first site, output or state that fails, in order of time."""
    for check in checks:
        if check.passed:
            continue
        when = f"batch {check.batch}" + (f", step {check.step}" if check.step else "")
        when += f": {check.moment}" if check.moment else ""
        if isinstance(check, SiteCheck):
            return f"{check.site} ({check.compressor}, {when})"
        return f"output {check.name} ({when})"
    outputs = [check for check in checks if isinstance(check, OutputCheck)]
    if outputs and all(output.ties == output.batch for output in outputs):
        return f"output {outputs[0].name}, which was never compared, for every input met a near tie; give other inputs"
    return None
