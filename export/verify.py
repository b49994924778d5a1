"""Proof that an ONNX file computes what the torch model computes: outputs, and what was decided at every site."""

import contextlib
import importlib
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from trt_compress.errors import GateError, ShapeError, UnsupportedError
from trt_compress.export.lower import operator_nodes
from trt_compress.models.compressors.compose import SitePlan
from trt_compress.plugins.library import Library
from trt_compress.plugins.operator import recording
from trt_compress.plugins.registry import operators
from trt_compress.plugins.spec import DOMAIN
from trt_compress.runtime.ort import operator_paths, register_native

Array = np.ndarray[Any, np.dtype[Any]]

# Largest error relative to the largest value. Half precision: 11 bits, some 20 roundings in a row.
TOLERANCE = {"fp32": 1e-4, "fp16": 2e-2}
# Two scores that are closer than this (cosine, or a share of the largest score) are a tie that rounding may turn.
TIE = {"fp32": 1e-4, "fp16": 1e-2}
SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputCheck:
    """One output at one batch size. Items that met a near tie at a site are counted in `ties` and not compared."""

    name: str
    batch: int
    max_abs_error: float
    relative_error: float
    cosine: float
    tolerance: float
    ties: int
    passed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteCheck:
    """One compressor site at one batch size: tokens left, indices kept, and the tokens themselves."""

    site: str
    compressor: str
    batch: int
    tokens_in: int
    tokens_out: int
    tokens_out_onnx: int
    indices_equal: bool
    ties: int
    relative_error: float
    tolerance: float
    passed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """All checks.

    `first_divergence` names the first site or output that fails; `paths` counts, for each operator, the nodes that
    ONNX Runtime ran as a native kernel and those that it ran as a function; `failure` is what it said if it could not
    run the graph to its end.
    """

    precision: str
    inputs: str
    outputs: tuple[OutputCheck, ...]
    sites: tuple[SiteCheck, ...]
    paths: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    first_divergence: str | None = None
    failure: str | None = None

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return self.first_divergence is None

    @property
    def max_abs_error(self) -> float:
        """Largest error of an output."""
        return max((check.max_abs_error for check in self.outputs), default=0.0)

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON values; a number that is not finite becomes null."""
        report = {"passed": self.passed, "max_abs_error": self.max_abs_error, **asdict(self)}
        return {key: _json_safe(value) for key, value in report.items()}


@dataclass(slots=True)
class _Run:
    """One batch while it is compared: what torch and ONNX Runtime had, and which items are still comparable."""

    reference: Mapping[str, Tensor]
    got: Mapping[str, Tensor]
    comparable: Tensor
    tied_here: int = 0
    equal_here: bool = True
    wrong_here: bool = False


def make_inputs(shape: Sequence[int], batches: Sequence[int]) -> list[Array]:
    """Seeded standard-normal inputs, one array for each batch size."""
    generator = np.random.default_rng(SEED)
    return [generator.standard_normal((batch, *shape), dtype=np.float32) for batch in batches]


def read_inputs(path: Path, name: str, shape: Sequence[int]) -> list[Array]:
    """Inputs from a .npz file: the array called `name`, or the only one.

    Raises:
        ShapeError: it cannot be read, has another shape or dtype, or is not finite.
    """
    wanted = f"float32 [batch, {', '.join(map(str, shape))}]"
    try:
        with path.open("rb") as file:
            content = np.load(file, allow_pickle=False)
            arrays: dict[str, Array] = dict(content) if isinstance(content, np.lib.npyio.NpzFile) else {name: content}
    except FileNotFoundError as error:
        raise ShapeError(f"inputs: {path} is not there; give a .npz file.") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ShapeError(
            f"inputs: {path} is not a .npz file of arrays ({error}); save one with numpy.savez."
        ) from error
    if name not in arrays and len(arrays) != 1:
        raise ShapeError(f"inputs: {path} has {', '.join(arrays) or 'nothing'}; it must hold '{name}', {wanted}.")
    array = arrays[name] if name in arrays else next(iter(arrays.values()))
    if array.dtype != np.float32 or array.ndim != len(shape) + 1 or array.shape[1:] != tuple(shape) or not len(array):
        raise ShapeError(f"inputs: '{name}' in {path} is {array.dtype} {list(array.shape)}; it must be {wanted}.")
    if not np.isfinite(array).all():
        raise ShapeError(f"inputs: '{name}' in {path} holds NaN or infinity; verification needs finite numbers.")
    return [array]


def verify_onnx(
    path: Path,
    module: nn.Module,
    *,
    plan: Sequence[SitePlan],
    input_name: str,
    inputs: Sequence[Array],
    inputs_label: str,
    precision: str,
    native: Library | None = None,
) -> VerifyReport:
    """Run the same inputs through torch and through ONNX Runtime on the CPU and compare.

    Args:
        path: The ONNX file, with function bodies.
        module: The torch model in the same precision, in eval mode.
        plan: The compressor sites in order.
        input_name: The graph's input.
        inputs: Arrays [B, …]; one run each.
        inputs_label: Where they come from, for the report.
        precision: fp32 or fp16.
        native: The native operators to run in place of the bodies; None: the bodies.

    Returns:
        The report; nothing is raised for a difference.

    Raises:
        GateError: ONNX Runtime cannot load the file, and there is no site that could show from where on.
    """
    model = onnx.load(path, load_external_data=False)
    output_name = model.graph.output[0].name
    _expose_sites(model)
    failure: str | None = None
    runners: tuple[_Runner, ...] = ()
    try:
        runners = (_Runner(path, path.parent, native), _Runner(model, path.parent, native))
    except _OrtError as error:
        failure = f"ONNX Runtime cannot load {path.name}: {error}"
        if not plan:
            raise GateError(f"verification failed: {failure}") from error

    outputs: list[OutputCheck] = []
    sites: list[SiteCheck] = []
    for array in inputs:
        with torch.no_grad(), recording() as reference:
            expected = module(torch.from_numpy(array))
        feed = {input_name: array}
        try:
            ran = [runner(feed) for runner in runners]
        except _OrtError as error:
            failure, ran = failure or str(error), []
        actual, got = ran or ({}, _before_failure(model, path.parent, feed, native))
        run = _Run(reference=reference, got=got, comparable=torch.ones(len(array), dtype=torch.bool))
        sites += _compare_sites(run, plan, model, precision)
        output = actual.get(output_name, torch.empty(0))
        outputs.append(_compare_output(output_name, expected, output, run.comparable, precision))
    paths = {} if failure else _paths(path, model, native)
    return VerifyReport(
        precision=precision,
        inputs=inputs_label,
        outputs=tuple(outputs),
        sites=tuple(sites),
        paths=paths,
        first_divergence=_first_divergence(outputs, sites),
        failure=failure,
    )


def load_onnxruntime() -> ModuleType:
    """The module onnxruntime.

    Raises:
        UnsupportedError: it is not installed.
    """
    try:
        return importlib.import_module("onnxruntime")
    except ImportError as error:
        raise UnsupportedError(
            f"verification runs ONNX Runtime, and {error}.", hint="pip install 'trt-compress[cpu]'"
        ) from error


class _OrtError(Exception):
    """Something went wrong inside ONNX Runtime, whose exceptions have no common base."""


@contextlib.contextmanager
def _ort_errors() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise _OrtError((str(error).strip().splitlines() or [type(error).__name__])[0]) from error


class _Runner:
    """A model in ONNX Runtime on the CPU; a call returns every output by name."""

    def __init__(self, model: Path | onnx.ModelProto, folder: Path, native: Library | None) -> None:
        onnxruntime = load_onnxruntime()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what fails comes back as an exception
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
        if native is not None:
            register_native(options, native)
        source = str(model) if isinstance(model, Path) else model.SerializeToString()
        with _ort_errors():
            self._session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
            self._names = [output.name for output in self._session.get_outputs()]

    def __call__(self, feed: Mapping[str, Array]) -> dict[str, Tensor]:
        with _ort_errors():
            results = self._session.run(self._names, feed)
        return {name: torch.from_numpy(value) for name, value in zip(self._names, results, strict=True)}


def _paths(path: Path, model: onnx.ModelProto, native: Library | None) -> dict[str, dict[str, int]]:
    """How ONNX Runtime runs the nodes of each operator."""
    forms = operator_paths(path, native)
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
            values = _Runner(part, folder, native)(feed)
        except _OrtError:
            break
    return values


def _json_safe(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _json_safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_safe(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _first_divergence(outputs: Sequence[OutputCheck], sites: Sequence[SiteCheck]) -> str | None:
    """The first failing site of the smallest failing batch, else the first failing output."""
    for site in sites:
        if not site.passed:
            return f"{site.site} ({site.compressor}, batch {site.batch})"
    for output in outputs:
        if not output.passed:
            return f"output {output.name} (batch {output.batch})"
    if all(output.ties == output.batch for output in outputs):
        return f"output {outputs[0].name}, which was never compared, for every input met a near tie; give other inputs"
    return None


def _expose_sites(model: onnx.ModelProto) -> None:
    """Make every named value of a site an output of `model`."""
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
    differs = (expected != got).flatten(1).any(dim=1) & run.comparable
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
    run.tied_here += int(tied.sum())
    run.comparable &= ~tied


def _compare_tokens(run: _Run, site: SitePlan, name: str, expected: Tensor, precision: str) -> SiteCheck:
    got = run.got.get(name, torch.empty(0, 0))
    fits = got.shape == expected.shape and got.shape[1] == site.tokens_out
    error = _relative_error(expected[run.comparable], got[run.comparable])[1] if fits else float("inf")
    return SiteCheck(
        site=site.name,
        compressor=site.compressor,
        batch=len(expected),
        tokens_in=site.tokens_in,
        tokens_out=site.tokens_out,
        tokens_out_onnx=got.shape[1],
        indices_equal=run.equal_here,
        ties=run.tied_here,
        relative_error=error,
        tolerance=TOLERANCE[precision],
        passed=not run.wrong_here and error <= TOLERANCE[precision],
    )


def _compare_output(name: str, expected: Tensor, got: Tensor, comparable: Tensor, precision: str) -> OutputCheck:
    if got.shape != expected.shape:
        got = torch.full_like(expected, torch.nan)
    absolute, relative = _relative_error(expected[comparable], got[comparable])
    cosine = torch.nn.functional.cosine_similarity(
        expected[comparable].double().flatten(), got[comparable].double().flatten(), dim=0
    )
    return OutputCheck(
        name=name,
        batch=len(expected),
        max_abs_error=absolute,
        relative_error=relative,
        cosine=float(cosine),
        tolerance=TOLERANCE[precision],
        ties=int((~comparable).sum()),
        passed=relative <= TOLERANCE[precision],
    )


def _relative_error(expected: Tensor, got: Tensor) -> tuple[float, float]:
    """Largest absolute error, and the same divided by the largest expected value; NaN is infinite."""
    if not expected.numel():
        return 0.0, 0.0
    difference = (expected.double() - got.double()).abs().nan_to_num(nan=torch.inf, posinf=torch.inf).max()
    return float(difference), float(difference / expected.double().abs().max().clamp_min(1e-6))
