"""Hold the engines of a bundle against ONNX Runtime: the same inputs into both, and every output and state compared.

Both sides are sessions of this package, as Polygraphy's runners carry no states and follow no procedure; what they give
is compared by Polygraphy's own comparators. Needs neither torch nor onnx, so that it runs on the device.
"""

import math
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from trt_compress.errors import ConfigError, GateError
from trt_compress.export.verify_report import FEW_CODES, LEAST_COSINE, TOLERANCE, OutputCheck, VerifyReport
from trt_compress.foreign import needs_extra
from trt_compress.format.bundle import Bundle
from trt_compress.format.manifest import Manifest, State
from trt_compress.format.procedure import Procedure, range_of
from trt_compress.runtime.backends import OF_ENGINES
from trt_compress.runtime.backends.engines import PRODUCTS
from trt_compress.runtime.seeded import load_inputs, random_array, random_inputs, usual_lengths
from trt_compress.runtime.sequences import Sequences
from trt_compress.runtime.session import Session
from trt_compress.runtime.states import States
from trt_compress.suggest import not_known

Array = np.ndarray[Any, np.dtype[Any]]
Values = dict[str, Array]

ALLOWED = {**TOLERANCE, "fp32": TOLERANCE["fp16"]}
"""Largest error relative to the largest value. TensorRT multiplies float32 in TF32, whose mantissa is that of float16,
unless a build forbids it, and `trt-compress build` does not."""

_STEPS = 4  # runs of a bundle with states, so that an error that grows shows
_MOST_STEPS = 64
_MOST_ROOM = 4096


@dataclass(frozen=True, slots=True)
class _Moment:
    """What one side gave at one moment: arrays by `graph.tensor` of outputs, and by their key of states."""

    batch: int
    step: int
    moment: str
    outputs: Values
    states: Values


def verify_engines(
    bundle: str | Path,
    *,
    backend: str,
    inputs: str | Path | None = None,
    native: bool | str | Path = False,
    require_digest: str | Collection[str] | None = None,
    progress: Callable[[str], None] | None = None,
) -> VerifyReport:
    """Compare the engines of a bundle with its ONNX files in ONNX Runtime, per output and per state.

    Args:
        bundle: The bundle's directory.
        backend: "tensorrt" or "rtx".
        inputs: .npz file with an array for each input; with states, steps along one more axis in front. None: seeded
            ones, at the smallest, usual and largest batch. A bundle with a procedure reads seeded tokens.
        native: The native operators of the side of ONNX Runtime, as `Session.open` takes them.
        require_digest: The digest that the bundle must have, as `Bundle.open` takes it.
        progress: Called with the name of each step.

    Raises:
        GateError: An output or a state is too far from what ONNX Runtime gives; `report` holds the VerifyReport.
        ConfigError: The backend runs no engines, or an input is missing, unknown or does not fit.
        UnsupportedError: Polygraphy or the backend is not installed, or the engines do not fit this machine.
    """
    step = progress or (lambda text: None)
    if backend not in OF_ENGINES:
        raise ConfigError(not_known("backend with engines", backend, OF_ENGINES))
    with needs_extra("polygraphy"):
        import polygraphy.comparator  # noqa: F401 - said before anything is loaded
    opened = Bundle.open(bundle, require_digest=require_digest)
    given = None if inputs is None else load_inputs(Path(inputs))
    if given is not None and opened.manifest.procedure is not None:
        raise ConfigError(
            f"'{opened.path}' reads tokens by its procedure, and --inputs gives arrays of one run; leave it out."
        )
    step("loading the engines")
    with Session.open(opened, backend=backend) as theirs, Session.open(opened, native=native) as ours:
        step("comparing")
        checks = list(_compared(ours, theirs, given))
        records = theirs.engines
    record = next(iter(records.values()))
    paths: dict[str, dict[str, int]] = {}
    for each in records.values():
        for operator, forms in each.paths.items():
            counts = paths.setdefault(operator, dict.fromkeys(forms, 0))
            counts.update({form: counts.get(form, 0) + count for form, count in forms.items()})
    missed = next((check for check in checks if not check.passed), None)
    report = VerifyReport(
        precision=opened.manifest.precision,
        inputs="seeded" if inputs is None else str(inputs),
        outputs=tuple(checks),
        sites=(),
        paths=paths,
        first_divergence=None if missed is None else _place(missed),
        method=f"engines for '{record.target}' by {PRODUCTS[record.library]} {record.library_version}, beside ONNX "
        "Runtime",
    )
    if missed is not None:
        raise GateError(
            f"The engine of '{missed.graph}' is apart from ONNX Runtime at {_place(missed)}: "
            f"{missed.relative_error:.1e} of the largest value, and {missed.tolerance:.1e} is allowed.",
            hint=f"'trt-compress debug {opened.path} --target {record.target}' writes what finds the node.",
            report=report,
        )
    return report


def _place(check: OutputCheck) -> str:
    when = f"batch {check.batch}" + (f", step {check.step}" if check.step else "")
    return f"output {check.name} ({when}{f': {check.moment}' if check.moment else ''})"


# ---- what is run -----------------------------------------------------------------------------------------------------


def _compared(ours: Session, theirs: Session, given: Values | None) -> Iterator[OutputCheck]:
    """Both sides on the same way, run by run."""
    manifest = ours.bundle.manifest
    states = {state.key: state for state in manifest.states}
    for left, right in zip_longest(_moments(ours, given), _moments(theirs, given)):
        found = _Found(manifest, left, states)
        yield from found.outputs(left.outputs, right.outputs)
        yield from found.states(left.states, right.states)


def _moments(session: Session, given: Values | None) -> Iterator[_Moment]:
    if session.bundle.manifest.procedure is not None:
        for batch in _batches(session.bundle.manifest)[:2]:
            yield from _read_tokens(session, batch)
        return
    for batch, feeds in _feeds(session, given):
        states = session.new_states() if session.loaded.states else None
        for number, feed in enumerate(feeds, start=1):
            outputs = session.run(feed, states, handed_on=True)
            if len(session.graphs) == 1:
                outputs = {f"{session.graphs[0]}.{name}": value for name, value in outputs.items()}
            yield _Moment(batch, number if states else 0, "", outputs, _values(states))


def _feeds(session: Session, given: Values | None) -> Iterator[tuple[int, Sequence[Values]]]:
    """Batch, and what each of consecutive runs is fed."""
    manifest, count = session.bundle.manifest, _STEPS if session.loaded.states else 1
    if given is not None:
        taken = {name: value for name, value in given.items() if name in session.inputs}
        if unknown := given.keys() - taken.keys():
            raise ConfigError(not_known("input", min(unknown), session.inputs))
        steps: Sequence[Values] = [taken]
        if session.loaded.states and taken:
            lengths = {len(value) if value.ndim else 0 for value in taken.values()}
            if len(lengths) != 1 or 0 in lengths:
                raise ConfigError("The bundle has states: give each input its steps along one more axis in front.")
            steps = [{name: value[at] for name, value in taken.items()} for at in range(*lengths)]
        yield _batch_of(session, steps[0]), steps
        return
    for batch in _batches(manifest):
        yield batch, [random_inputs(session, batch, seed) for seed in range(count)]


def _batch_of(session: Session, feed: Values) -> int:
    for name, info in session.inputs.items():
        if "batch" in info.shape and name in feed and feed[name].ndim == len(info.shape):
            return int(feed[name].shape[info.shape.index("batch")])
    return 1


def _batches(manifest: Manifest) -> list[int]:
    """The batches at which something is compared: the smallest, the usual and the largest."""
    if manifest.fixed_batch is not None:
        return [manifest.fixed_batch]
    return sorted({manifest.batch.min, manifest.batch.opt, manifest.batch.max})


def _read_tokens(session: Session, batch: int) -> Iterator[_Moment]:
    """A prompt and steps, as the procedure says; the tokens are seeded, so that both sides read the same ones."""
    manifest, draw, number = session.bundle.manifest, np.random.default_rng(batch), 0
    procedure = manifest.procedure
    assert procedure is not None
    vocabulary = _vocabulary(manifest, procedure)
    sequences = Sequences(session, batch=batch)
    if procedure.media:
        sequences.attend(_media(session, procedure, batch, draw))
        number += 1
        yield _Moment(batch, number, "media", {}, _values(sequences.states))
    room = min([limit for limit in sequences.states.limits.values() if limit is not None], default=_MOST_ROOM)
    prompt = _prompts(manifest, procedure, batch, room, vocabulary, draw)
    number += 1
    read, gives = sequences.read(prompt), procedure.prompt.logits or procedure.step.logits or "logits"
    yield _Moment(batch, number, "prompt", {gives: read}, _values(sequences.states))
    upkeeps, most = sequences.upkeeps, min(_MOST_STEPS, room - max(map(len, prompt)))
    for at in range(most):
        if at >= _STEPS and sequences.upkeeps - upkeeps >= len(procedure.upkeep):
            break
        logits = sequences.step(_tokens(procedure, vocabulary, batch, draw))
        number += 1
        moment = f"step {at + 1}"
        yield _Moment(batch, number, moment, {procedure.step.logits or gives: logits}, _values(sequences.states))
    if procedure.score is not None:
        others = Sequences(session, batch=batch)
        if procedure.media:
            others.attend(_media(session, procedure, batch, draw))
        scores = others.score(prompt)
        yield _Moment(batch, number + 1, "score", {str(procedure.score.logits): np.concatenate(scores)}, {})


def _vocabulary(manifest: Manifest, procedure: Procedure) -> int:
    """How many tokens there are, as the shape of the logits says."""
    for part in (procedure.prompt, procedure.step):
        if part.logits is not None and part.rows != "next":
            graph, _, tensor = part.logits.partition(".")
            last = next(info.shape[-1] for info in manifest.graph(graph).outputs if info.name == tensor)
            if isinstance(last, int):
                return last
    return 2


def _tokens(procedure: Procedure, vocabulary: int, count: int, draw: np.random.Generator) -> Array:
    """Tokens that stand for text."""
    placed = [each.token for each in procedure.media if each.token is not None]
    text = np.setdiff1d(np.arange(vocabulary), placed)
    return draw.choice(text, count).astype(np.int64)


def _prompts(
    manifest: Manifest, procedure: Procedure, batch: int, room: int, vocabulary: int, draw: np.random.Generator
) -> list[Array]:
    """Prompts that are read in more runs than one, where the bundle reads them so, and leave room for steps."""
    low, high = range_of(procedure.prompt, manifest.lengths)
    half = max(room // 2, 1)
    whole = procedure.prompt.whole or 2 * high + low > half
    length = max(low, min(high, half)) if whole else 2 * high + low
    rows = [token for each in procedure.media if each.token is not None for token in [each.token] * (each.rows or 0)]
    rest = max(length - len(rows), 1)
    return [np.array([*rows, *_tokens(procedure, vocabulary, rest, draw)], np.int64) for _ in range(batch)]


def _media(session: Session, procedure: Procedure, batch: int, draw: np.random.Generator) -> Values:
    """Something for every input that stands beside the tokens."""
    manifest = session.bundle.manifest
    lengths = {"batch": batch, **usual_lengths(manifest)}
    links = {link.to for link in manifest.links}
    taken = {
        f"{graph}.{name}": info
        for graph in dict.fromkeys(name for each in procedure.media for name in each.graphs)
        for name, info in session.inputs_of(graph).items()
    }
    return {name: random_array(name, info, lengths, draw) for name, info in taken.items() if name not in links}


def _values(states: States | None) -> Values:
    """What all states hold that a run has needed by now."""
    if states is None:
        return {}
    held = {info.name: states.value(info.name) for info in states.infos()}
    return {name: value for name, value in held.items() if value is not None}


# ---- how it is compared ----------------------------------------------------------------------------------------------


class _Found:
    """The checks of one moment, by the rule of each output and state."""

    def __init__(self, manifest: Manifest, at: _Moment, states: Mapping[str, State]) -> None:
        self._at, self._specs = at, states
        self._in_int8 = manifest.precision not in ALLOWED
        self._allowed = ALLOWED.get(manifest.precision, ALLOWED["fp16"])

    def outputs(self, ours: Values, theirs: Values) -> Iterator[OutputCheck]:
        for name, value in ours.items():
            graph, _, tensor = name.partition(".")
            yield self._check(graph, tensor, value, theirs.get(name), exact=value.dtype.kind != "f")

    def states(self, ours: Values, theirs: Values) -> Iterator[OutputCheck]:
        for name, value in ours.items():
            state, got = self._specs[name], theirs.get(name, np.empty(0, value.dtype))
            if state.comparison == "codes":
                yield self._check_codes(state, name, value, got)
            elif state.dtype == "bfloat16":
                yield self._check(state.graph, name, _from_bfloat16(value), _from_bfloat16(got), exact=False)
            else:
                exact = value.dtype.kind != "f" or state.comparison == "equal"
                yield self._check(state.graph, name, value, got, exact=exact)

    def _check(self, graph: str, name: str, ours: Array, theirs: Array | None, *, exact: bool) -> OutputCheck:
        """Compare by the largest error, relative to the largest value; of a bundle in INT8 by the cosine."""
        finite = ours[np.isfinite(ours)] if ours.dtype.kind == "f" else ours
        largest = max(float(np.abs(_wide(finite)).max(initial=0)), 1e-6)
        by_angle = self._in_int8 and not exact
        allowed = 0.0 if exact else self._allowed
        atol = np.inf if by_angle else allowed * largest
        found = _by_polygraphy(name, ours, np.empty(0) if theirs is None else theirs, atol)
        return OutputCheck(
            graph=graph,
            name=name,
            batch=self._at.batch,
            step=self._at.step,
            moment=self._at.moment,
            max_abs_error=found.worst,
            relative_error=found.worst / largest,
            cosine=found.cosine,
            tolerance=allowed,
            ties=0,
            passed=found.cosine >= LEAST_COSINE if by_angle else found.close,
        )

    def _check_codes(self, state: State, name: str, ours: Array, theirs: Array) -> OutputCheck:
        """Compare packed codes: where they differ, by one step, and so few that what they stand for is close."""
        bits = state.bits or 8
        left, right = _codes(ours, bits), _codes(theirs, bits)
        found, turned, mean = _by_polygraphy(name, left, right, 1.0), left.size, 1.0
        if left.shape == right.shape:
            used = max(int(((left != 0) | (right != 0)).sum()), 1)
            turned = int((left != right).sum())
            mean = float(np.abs(left - right).sum()) / used / (2**bits - 1)
        return OutputCheck(
            graph=state.graph,
            name=name,
            batch=self._at.batch,
            step=self._at.step,
            moment=self._at.moment,
            max_abs_error=found.worst,
            relative_error=mean,
            cosine=found.cosine,
            tolerance=self._allowed,
            ties=0,
            turned=turned,
            passed=found.close and (mean <= self._allowed or turned <= FEW_CODES),
        )


@dataclass(frozen=True, slots=True)
class _Apart:
    """What Polygraphy says: whether no element is further apart than allowed, the largest error, the cosine."""

    close: bool
    worst: float
    cosine: float


def _by_polygraphy(name: str, ours: Array, theirs: Array, atol: float) -> _Apart:
    from polygraphy.comparator import (
        Comparator,
        CosineSimilarityCompareFunc,
        IterationResult,
        RunResults,
        SimpleCompareFunc,
    )
    from polygraphy.logger import G_LOGGER

    if ours.shape != theirs.shape:
        return _Apart(False, math.inf, 0.0)
    if not ours.size:
        return _Apart(True, 0.0, 1.0)
    if not ours.any() and not theirs.any():
        return _Apart(True, 0.0, 1.0)  # which have no direction
    one, other = (_wide(values) for values in (ours, theirs))
    sides = ("ONNX Runtime", one), ("engine", other)
    runs = RunResults([(side, [IterationResult({name: value}, runner_name=side)]) for side, value in sides])
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL), warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        how = [
            SimpleCompareFunc(atol=atol, rtol=0.0, infinities_compare_equal=True),
            CosineSimilarityCompareFunc(),
        ]
        simple, angle = Comparator.compare_accuracy(runs, compare_func=how)
    (found,), (turned,) = (next(iter(result.values())) for result in (simple, angle))
    worst = float(found[name].max_absdiff)
    return _Apart(bool(found[name]), math.inf if math.isnan(worst) else worst, float(turned[name].cosine_similarity))


def _wide(values: Array) -> Array:
    """The same numbers in a dtype in which a difference is exact enough."""
    return values.astype(np.int64) if values.dtype.kind in "biu" else values.astype(np.float64)


def _codes(packed: Array, bits: int) -> Array:
    """The codes in bytes, along one more axis."""
    shifts = np.arange(0, 8, bits)
    codes: Array = (packed.view(np.uint8)[..., None].astype(np.int32) >> shifts) & (2**bits - 1)
    return codes


def _from_bfloat16(carried: Array) -> Array:
    return (carried.astype(np.uint32) << 16).view(np.float32)
