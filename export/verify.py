"""Proof that an ONNX file computes what the torch model computes: outputs, and what was decided at every site."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from trt_compress.errors import GateError, UnsupportedError
from trt_compress.export.lower import operator_nodes
from trt_compress.export.rounded import ROUNDED, has_bfloat16, rounded_to_bfloat16
from trt_compress.export.runners import OrtError, Runner
from trt_compress.export.sample_inputs import lengths_of
from trt_compress.export.verify_report import Distance, OutputCheck, SiteCheck, VerifyReport
from trt_compress.format.graphs import BATCH_SYMBOL, StateSpec
from trt_compress.models.compressors.place import SitePlan
from trt_compress.models.hosts.base import GraphSpec, Steps, TensorSpec
from trt_compress.plugins.library import Library
from trt_compress.plugins.operator import recording
from trt_compress.plugins.registry import operators
from trt_compress.plugins.spec import DOMAIN
from trt_compress.runtime.backends.ort import OperatorPath, operator_paths

Array = np.ndarray[Any, np.dtype[Any]]

# Largest error relative to the largest value. Half precision: 11 bits, some 20 roundings in a row; bfloat16 has 8.
TOLERANCE = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 8e-2}
# Two scores that are closer than this (cosine, or a share of the largest score) are a tie that rounding may turn.
TIE = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 4e-2}


@dataclass(slots=True)
class _Run:
    """One run while it is compared: what torch and ONNX Runtime had, and which items are still comparable."""

    graph: str
    batch: int
    step: int
    reference: Mapping[str, Tensor]
    got: Mapping[str, Tensor]
    comparable: Tensor
    tied_here: int = 0
    equal_here: bool = True
    wrong_here: bool = False

    def rows(self, count: int) -> Tensor:
        """Which of `count` rows are comparable: an item may have several, as an image of several cameras has."""
        if count % self.batch:
            return self.comparable.all().expand(count)
        return self.comparable.repeat_interleave(count // self.batch)

    def set_aside(self, tied: Tensor) -> None:
        """Compare the items that these rows belong to no further."""
        items = tied.any().expand(self.batch) if len(tied) % self.batch else tied.reshape(self.batch, -1).any(dim=1)
        self.tied_here += int(items.sum())
        self.comparable = self.comparable & ~items


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
    plain: Path | onnx.ModelProto = path
    model = onnx.load(path, load_external_data=False)
    exposed, method = _with_sites(model), ""
    if has_bfloat16(model):
        if native is not None:
            raise UnsupportedError(
                f"graph '{graph.name}' is in bf16, and of that ONNX Runtime runs the bodies of operators only; verify "
                "without the native operators."
            )
        plain, exposed, method = rounded_to_bfloat16(model), rounded_to_bfloat16(exposed), ROUNDED
    failure: str | None = None
    runners: tuple[Runner, ...] = ()
    try:
        runners = (Runner(plain, path.parent, native),)
        if len(exposed.graph.output) > len(model.graph.output):  # else there are no sites to look at
            runners += (Runner(exposed, path.parent, native),)
    except OrtError as error:
        failure = f"ONNX Runtime cannot load {path.name}: {error}"
        if not graph.module.plan:
            raise GateError(f"verification failed: {failure}") from error

    checks: list[SiteCheck | OutputCheck] = []
    for steps in inputs:
        lengths = lengths_of(graph, steps)
        initial = {state.input: initial_state(state, lengths) for state in graph.states if state.input is not None}
        carried = {name: torch.from_numpy(value) for name, value in initial.items()}
        carried_onnx = dict(initial)
        comparable = torch.ones(lengths[BATCH_SYMBOL], dtype=torch.bool)
        for step, arrays in enumerate(steps, start=1):
            given = [torch.from_numpy(np.ascontiguousarray(arrays[spec.name])) for spec in graph.inputs]
            with torch.no_grad(), recording() as reference:
                expected = call(module, (*given, *carried.values()), graph)
            feed = {**arrays, **carried_onnx}
            try:
                ran = [runner(feed) for runner in runners]
            except OrtError as error:
                failure, ran = failure or str(error), []
            actual, got = (ran[0], ran[-1]) if ran else ({}, _before_failure(exposed, path.parent, feed, native))
            run = _Run(
                graph=graph.name,
                batch=lengths[BATCH_SYMBOL],
                step=step if graph.states else 0,
                reference=reference,
                got=got,
                comparable=comparable,
            )
            checks += _compare_sites(run, graph.module.plan, model, precision)
            for spec in graph.all_outputs:
                output = actual.get(spec.name, torch.empty(0))
                checks.append(_compare_output(run, spec, expected[spec.name], output, precision))
            if not ran:
                break
            comparable = run.comparable
            carried |= {name: expected[output] for name, output in graph.carried.items()}
            carried_onnx |= {name: actual[output].numpy() for name, output in graph.carried.items()}
    return VerifyReport(
        precision=precision,
        inputs=inputs_label,
        outputs=tuple(check for check in checks if isinstance(check, OutputCheck)),
        sites=tuple(check for check in checks if isinstance(check, SiteCheck)),
        paths={} if failure else _paths(None if method else path, model, native),
        first_divergence=_first_divergence(checks),
        failure=failure,
        method=method,
    )


def run_torch(module: nn.Module, graph: GraphSpec, inputs: Sequence[Steps]) -> list[dict[str, Tensor]]:
    """The outputs (without states) of every run in torch, one after the other."""
    found = []
    for steps in inputs:
        carried = {name: torch.from_numpy(value) for name, value in _initial(graph, steps).items()}
        for arrays in steps:
            given = [torch.from_numpy(np.ascontiguousarray(arrays[spec.name])) for spec in graph.inputs]
            with torch.no_grad():
                made = call(module, (*given, *carried.values()), graph)
            carried |= {name: made[output] for name, output in graph.carried.items()}
            found.append({spec.name: made[spec.name] for spec in graph.outputs})
    return found


def run_onnx(path: Path, graph: GraphSpec, inputs: Sequence[Steps], accuracy: str) -> list[dict[str, Tensor]]:
    """The same of a file in ONNX Runtime."""
    model = onnx.load(path, load_external_data=False)
    runner = Runner(rounded_to_bfloat16(model) if has_bfloat16(model) else path, path.parent, None, accuracy)
    found = []
    for steps in inputs:
        carried = _initial(graph, steps)
        for arrays in steps:
            made = runner({**arrays, **carried})
            carried |= {name: made[output].numpy() for name, output in graph.carried.items()}
            found.append({spec.name: made[spec.name] for spec in graph.outputs})
    return found


def _initial(graph: GraphSpec, steps: Steps) -> dict[str, Array]:
    lengths = lengths_of(graph, steps)
    return {state.input: initial_state(state, lengths) for state in graph.states if state.input is not None}


def distances(
    graph: GraphSpec, of: str, ones: Sequence[Mapping[str, Tensor]], to: str, others: Sequence[Mapping[str, Tensor]]
) -> tuple[Distance, ...]:
    """How far the outputs of the same runs are from each other; integers have no distance."""
    found = []
    for spec in graph.outputs:
        pairs = [(other[spec.name], one[spec.name]) for one, other in zip(ones, others, strict=True)]
        if all(one.is_floating_point() and one.shape == other.shape for other, one in pairs):
            errors = [_relative_error(other, one) for other, one in pairs]
            found.append(
                Distance(
                    graph=graph.name,
                    name=spec.name,
                    of=of,
                    to=to,
                    max_abs_error=max(absolute for absolute, _ in errors),
                    relative_error=max(relative for _, relative in errors),
                    cosine=min(_cosine(other, one) for other, one in pairs),
                )
            )
    return tuple(found)


def call(module: nn.Module, tensors: Sequence[Tensor], graph: GraphSpec) -> dict[str, Tensor]:
    """The outputs and new states of one run in torch, by name."""
    results = module(*tensors)
    found = (results,) if isinstance(results, Tensor) else tuple(results)
    return {spec.name: tensor for spec, tensor in zip(graph.all_outputs, found, strict=True)}


def initial_state(state: StateSpec, lengths: Mapping[str, int]) -> Array:
    """What a state holds before the first run; an axis that no input knows is empty."""
    shape = [lengths.get(dim, 0) if isinstance(dim, str) else dim for dim in state.shape]
    value = 0 if isinstance(state.initial, str) else state.initial["fill"]
    return np.full(shape, value, np.dtype(state.dtype))


def _paths(path: Path | None, model: onnx.ModelProto, native: Library | None) -> dict[str, dict[str, int]]:
    """How ONNX Runtime runs the nodes of each operator; without a path, as their bodies."""
    forms = defaultdict[str, OperatorPath](lambda: "function") if path is None else operator_paths(path, native)
    counts = {operators()[op_type].spec.name: {"native": 0, "function": 0} for op_type in operator_nodes(model)}
    for node in model.graph.node:
        if node.domain == DOMAIN:
            counts[operators()[node.op_type].spec.name][forms[node.name]] += 1
    return counts


def _before_failure(
    model: onnx.ModelProto, folder: Path, feed: Mapping[str, Array], native: Library | None
) -> dict[str, Tensor]:
    """The values of the sites that a graph reaches before it fails."""
    values: dict[str, Tensor] = {}
    exposed = {output.name for output in model.graph.output}
    for end, node in enumerate(model.graph.node, start=1):
        if not exposed.intersection(node.output):
            continue
        made = {name for before in model.graph.node[:end] for name in before.output}
        part = onnx.ModelProto()
        part.CopyFrom(model)
        del part.graph.node[end:], part.graph.output[:]
        part.graph.output.extend(output for output in model.graph.output if output.name in made)
        try:
            values = Runner(part, folder, native)(feed)
        except OrtError:
            break
    return values


def _first_divergence(checks: Sequence[SiteCheck | OutputCheck]) -> str | None:
    """The first site, output or state that fails, in order of time."""
    for check in checks:
        if check.passed:
            continue
        when = f"batch {check.batch}" + (f", step {check.step}" if check.step else "")
        if isinstance(check, SiteCheck):
            return f"{check.site} ({check.compressor}, {when})"
        return f"output {check.name} ({when})"
    outputs = [check for check in checks if isinstance(check, OutputCheck)]
    if all(output.ties == output.batch for output in outputs):
        return f"output {outputs[0].name}, which was never compared, for every input met a near tie; give other inputs"
    return None


def _with_sites(structure: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with every named value of a site as an output."""
    model = onnx.ModelProto()
    model.CopyFrom(structure)
    present = {name for node in model.graph.node for name in node.output}
    named = [name for name in present if name.split("/")[-1].startswith("tokens") and "/" in name]
    for node in model.graph.node:
        if node.domain == DOMAIN:
            spec = operators()[node.op_type].spec
            named += [
                value for value, output in zip(node.output, spec.outputs, strict=False) if output.dtypes == ("int64",)
            ]
    exposed = sorted(set(named) - {output.name for output in model.graph.output} - {""})
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in exposed)
    return model


def _compare_sites(run: _Run, plan: Sequence[SitePlan], model: onnx.ModelProto, precision: str) -> list[SiteCheck]:
    nodes = {node.name: node for node in model.graph.node if node.domain == DOMAIN}
    remaining = iter(plan)
    checks = []
    for name, expected in run.reference.items():
        operator_name, _, output = name.rpartition("/")
        if _is_decision(name) and not (operator_name in nodes and name in run.got):
            run.equal_here, run.wrong_here = False, True  # the file has no such operator
        elif operator_name in nodes and name in run.got:
            _compare_decision(run, nodes[operator_name], output, precision)
        elif output.startswith("tokens"):
            checks.append(_compare_tokens(run, next(remaining), name, expected, precision))
            run.tied_here, run.equal_here, run.wrong_here = 0, True, False
    return checks


def _is_decision(name: str) -> bool:
    """Whether a recorded value `<site>/<operator>/<output>` is an output of indices."""
    operator_name, _, output = name.rpartition("/")
    spec_name = operator_name.rpartition("/")[2].partition("_")[0]
    specs = {operator.spec.name: operator.spec for operator in operators().values()}
    return spec_name in specs and any(t.name == output and t.dtypes == ("int64",) for t in specs[spec_name].outputs)


def _compare_decision(run: _Run, node: onnx.NodeProto, output: str, precision: str) -> None:
    """Compare indices. An item whose indices differ only by a near tie stays right, but is not compared any further."""
    operator = operators()[node.op_type]
    name = f"{node.name}/{output}"
    expected, got = run.reference[name], run.got[name]
    attributes = {a.name: run.reference[f"{node.name}/{a.name}"].tolist() for a in operator.spec.attributes}
    in_file = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute if a.name in attributes}
    if expected.shape != got.shape or attributes != in_file:
        run.equal_here, run.wrong_here = False, True
        return
    differs = (expected != got).flatten(1).any(dim=1) & run.rows(len(got))
    if not differs.any():
        return
    run.equal_here = False
    values = {t.name: run.reference[f"{node.name}/{t.name}"] for t in operator.spec.inputs}
    decided = {t.name: run.got.get(f"{node.name}/{t.name}", run.reference[f"{node.name}/{t.name}"])
               for t in operator.spec.outputs}  # fmt: skip
    regret = torch.full((len(got),), torch.inf) if operator.regret is None else operator.regret(
        values, attributes, decided
    )  # fmt: skip
    tied = differs & (regret <= TIE[precision])
    run.wrong_here = run.wrong_here or bool((differs & ~tied).any())
    run.set_aside(tied)


def _compare_tokens(run: _Run, site: SitePlan, name: str, expected: Tensor, precision: str) -> SiteCheck:
    got = run.got.get(name, torch.empty(0, 0))
    fits = got.shape == expected.shape and (isinstance(site.tokens_out, str) or got.shape[1] == site.tokens_out)
    rows = run.rows(len(expected))
    error = _relative_error(expected[rows], got[rows])[1] if fits else float("inf")
    return SiteCheck(
        graph=run.graph,
        site=site.name,
        compressor=site.compressor,
        batch=run.batch,
        step=run.step,
        tokens_in=site.tokens_in,
        tokens_out=site.tokens_out,
        tokens_out_onnx=got.shape[1],
        indices_equal=run.equal_here,
        ties=run.tied_here,
        relative_error=error,
        tolerance=TOLERANCE[precision],
        passed=not run.wrong_here and error <= TOLERANCE[precision],
    )


def _compare_output(run: _Run, spec: TensorSpec, expected: Tensor, got: Tensor, precision: str) -> OutputCheck:
    exact = not expected.is_floating_point()
    if got.shape != expected.shape or got.dtype != expected.dtype:
        got, expected = torch.full(expected.shape, torch.nan), expected.float()
    if spec.shape[:1] == (BATCH_SYMBOL,):
        expected, got = expected[run.comparable], got[run.comparable]
    elif not run.comparable.all():  # it mixes the items, so that one tie may show anywhere in it
        expected, got = expected[:0], got[:0]
    absolute, relative = _relative_error(expected, got)
    tolerance = 0.0 if exact else TOLERANCE[precision]
    return OutputCheck(
        graph=run.graph,
        name=spec.name,
        batch=run.batch,
        step=run.step,
        max_abs_error=absolute,
        relative_error=relative,
        cosine=_cosine(expected, got),
        tolerance=tolerance,
        ties=int((~run.comparable).sum()),
        passed=relative <= tolerance,
    )


def _cosine(expected: Tensor, got: Tensor) -> float:
    return float(nn.functional.cosine_similarity(expected.double().flatten(), got.double().flatten(), dim=0))


def _relative_error(expected: Tensor, got: Tensor) -> tuple[float, float]:
    """Largest absolute error, and the same divided by the largest expected value; NaN is infinite."""
    if not expected.numel():
        return 0.0, 0.0
    difference = (expected.double() - got.double()).abs().nan_to_num(nan=torch.inf, posinf=torch.inf).max()
    return float(difference), float(difference / expected.double().abs().max().clamp_min(1e-6))
