"""Both sides of one run held against each other: what was decided at every site, outputs, and states by their rule."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import onnx
import torch
from torch import Tensor

from trt_compress.export.apart import apart
from trt_compress.export.verify_report import FEW_CODES, TOLERANCE, OutputCheck, SiteCheck
from trt_compress.format.graphs import BATCH_SYMBOL, StateSpec
from trt_compress.models.compressors.place import SitePlan
from trt_compress.models.hosts.base import GraphSpec, TensorSpec
from trt_compress.plugins.registry import operators
from trt_compress.plugins.spec import DOMAIN

# Two scores that are closer than this (cosine, or a share of the largest score) are a tie that rounding may turn.
TIE = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 4e-2}
# What the torch model's own rounding, if it is measured, is allowed times over: both sides round, each in an order of
# its own. Beyond that many times the usual tolerance, rounding explains nothing.
OWN_ROUNDING, MOST = 4.0, 10.0
# Numbers that a graph keeps in half precision, and what it computes from them: two units in the last place.
_KEPT_IN_HALF = 2.0**-9


@dataclass(slots=True)
class Compared:
    """One run of a graph while it is compared: what torch and ONNX Runtime had, which items are still comparable."""

    graph: str
    batch: int
    step: int
    moment: str
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


def compare_sites(run: Compared, graph: GraphSpec, model: onnx.ModelProto, precision: str) -> list[SiteCheck]:
    """Compare what was decided at every site, and the tokens that leave it."""
    nodes = {node.name: node for node in model.graph.node if node.domain == DOMAIN}
    remaining = iter(graph.module.plan)
    checks = []
    for name, expected in run.reference.items():
        operator_name, _, output = name.rpartition("/")
        if _is_decision(name) and not (operator_name in nodes and name in run.got):
            run.equal_here, run.wrong_here = False, True  # the file has no such operator
        elif operator_name in nodes and name in run.got:
            _compare_decision(run, nodes[operator_name], output, precision)
        elif output.startswith("tokens"):
            checks.append(_compare_tokens(run, next(remaining), name, expected, _allowed(graph, precision)))
            run.tied_here, run.equal_here, run.wrong_here = 0, True, False
    return checks


def _is_decision(name: str) -> bool:
    """Whether a recorded value `<site>/<operator>/<output>` is an output of indices."""
    operator_name, _, output = name.rpartition("/")
    spec_name = operator_name.rpartition("/")[2].partition("_")[0]
    specs = {operator.spec.name: operator.spec for operator in operators().values()}
    return spec_name in specs and any(t.name == output and t.dtypes == ("int64",) for t in specs[spec_name].outputs)


def _compare_decision(run: Compared, node: onnx.NodeProto, output: str, precision: str) -> None:
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


def _compare_tokens(run: Compared, site: SitePlan, name: str, expected: Tensor, allowed: float) -> SiteCheck:
    got = run.got.get(name, torch.empty(0, 0))
    counted = site.cached or isinstance(site.tokens_out, str) or got.shape[1] == site.tokens_out
    fits = got.shape == expected.shape and counted
    rows = run.rows(len(expected))
    error = apart(_chosen(expected, rows), _chosen(got, rows)).relative if fits else float("inf")
    return SiteCheck(
        graph=run.graph,
        site=site.name,
        compressor=site.compressor,
        batch=run.batch,
        step=run.step,
        moment=run.moment,
        tokens_in=site.tokens_in,
        tokens_out=site.tokens_out,
        tokens_out_onnx=site.tokens_out if site.cached and isinstance(site.tokens_out, int) else got.shape[1],
        indices_equal=run.equal_here,
        ties=run.tied_here,
        relative_error=error,
        tolerance=allowed,
        passed=not run.wrong_here and error <= allowed,
    )


def compare_outputs(
    run: Compared,
    graph: GraphSpec,
    expected: Mapping[str, Tensor],
    got: Mapping[str, Tensor],
    precision: str,
    doubles: Mapping[str, Tensor] | None = None,
) -> list[OutputCheck]:
    """Compare every output, and every new state by its own rule.

    Args:
        run: Which run it is.
        graph: Whose.
        expected: By torch.
        got: By ONNX Runtime.
        precision: fp32, fp16 or bf16.
        doubles: By torch more precisely, to judge what fails by little: in float32 with matrix products in float64, for
            the rounding that is torch's own; in half precision computed in float32, for what is right.
    """
    states = {state.output: state for state in graph.states}
    allowed = _allowed(graph, precision)
    checks = []
    for spec in graph.all_outputs:
        state, theirs = states.get(spec.name), got.get(spec.name, torch.empty(0))
        if state is not None and state.comparison == "codes":
            checks.append(_compare_codes(run, spec, state, expected[spec.name], theirs, allowed))
            continue
        check = _compare_output(run, spec, state, expected[spec.name], theirs, allowed)
        if doubles is not None and may_be_rounding(check):
            precise = doubles[spec.name].to(expected[spec.name].dtype)
            own = _compare_output(run, spec, state, precise, expected[spec.name], 0.0)
            if precision == "fp32":
                check = _by_rounding(check, own)
            else:
                right = _compare_output(run, spec, state, precise, theirs, allowed)
                check = replace(right if right.passed else check, rounding=own.relative_error)
        checks.append(check)
    return checks


def may_be_rounding(check: OutputCheck | SiteCheck) -> bool:
    """Whether a check failed by so little that the rounding of the torch model itself may be as large."""
    close = isinstance(check, OutputCheck) and check.tolerance > 0 and not check.turned
    return close and not check.passed and check.relative_error <= MOST * check.tolerance


def _by_rounding(check: OutputCheck, own: OutputCheck) -> OutputCheck:
    tolerance = max(check.tolerance, min(OWN_ROUNDING * own.relative_error, MOST * check.tolerance))
    passed = check.relative_error <= tolerance
    return replace(check, rounding=own.relative_error, tolerance=tolerance, passed=passed)


def _allowed(graph: GraphSpec, precision: str) -> float:
    in_half = any(state.dtype == "float16" for state in graph.states)
    return max(TOLERANCE[precision], _KEPT_IN_HALF if in_half else 0.0)


def _compare_codes(
    run: Compared, spec: TensorSpec, state: StateSpec | None, expected: Tensor, got: Tensor, allowed: float
) -> OutputCheck:
    """Compare packed codes one by one: where they differ, by one step, and so few that what they stand for is close.

    The relative error is the mean difference of the codes that are in use, relative to their range.
    """
    bits = (state.bits if state is not None else None) or 8
    if got.dtype == expected.dtype and torch.equal(got, expected):
        apart_by, used, tolerance = torch.zeros(1), torch.ones(1, dtype=torch.bool), allowed
    elif got.shape != expected.shape or got.dtype != expected.dtype:
        apart_by, tolerance = torch.full(expected.shape, 2**bits), 0.0
        used = torch.ones(expected.shape, dtype=torch.bool)
    else:
        ours, theirs = _unpacked(expected, bits), _unpacked(got, bits)
        apart_by, used, tolerance = (ours - theirs).abs(), (ours != 0) | (theirs != 0), allowed
    turned = int((apart_by > 0).sum())
    mean = float(apart_by.double().sum() / used.sum().clamp_min(1)) / (2**bits - 1)
    return OutputCheck(
        graph=run.graph,
        name=spec.name,
        batch=run.batch,
        step=run.step,
        moment=run.moment,
        max_abs_error=float(apart_by.max()) if apart_by.numel() else 0.0,
        relative_error=mean,
        cosine=1.0 if not turned else apart(expected, got).cosine if got.shape == expected.shape else 0.0,
        tolerance=tolerance,
        ties=int((~run.comparable).sum()),
        turned=turned,
        passed=bool((apart_by <= 1).all()) and (mean <= tolerance or turned <= FEW_CODES),
    )


def _unpacked(packed: Tensor, bits: int) -> Tensor:
    """The codes in bytes, whatever their order, as int32 along one more axis."""
    shifts = torch.arange(0, 8, bits)
    codes: Tensor = (packed.view(torch.uint8)[..., None].int() >> shifts) & (2**bits - 1)
    return codes


def _compare_output(
    run: Compared, spec: TensorSpec, state: StateSpec | None, expected: Tensor, got: Tensor, allowed: float
) -> OutputCheck:
    exact = not expected.is_floating_point() or state is not None and state.comparison == "equal"
    if got.shape != expected.shape or got.dtype != expected.dtype:
        got, expected = torch.full(expected.shape, torch.nan), expected.float()
    if spec.shape[:1] == (BATCH_SYMBOL,):
        expected, got = _chosen(expected, run.comparable), _chosen(got, run.comparable)
    elif not run.comparable.all():  # it mixes the items, so that one tie may show anywhere in it
        expected, got = expected[:0], got[:0]
    found = apart(expected, got)
    tolerance = 0.0 if exact else allowed
    return OutputCheck(
        graph=run.graph,
        name=spec.name,
        batch=run.batch,
        step=run.step,
        moment=run.moment,
        max_abs_error=found.absolute,
        relative_error=found.relative,
        cosine=found.cosine,
        tolerance=tolerance,
        ties=int((~run.comparable).sum()),
        passed=found.relative <= tolerance,
    )


def _chosen(values: Tensor, rows: Tensor) -> Tensor:
    """Some rows of a tensor: itself, where it is all of them."""
    return values if bool(rows.all()) else values[rows]
