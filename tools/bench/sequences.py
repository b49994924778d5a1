"""Time how a bundle reads tokens: prompts and steps apart, each at several fills, beside its baseline in the same run.

A prompt is timed from new sequences to the logits behind its last token, which is the time to the first token but for
the choice of it. Steps are timed behind a prompt of `fill` tokens and the warm-up, one token of each sequence a step,
with the upkeep that is then due. Both sides read the same seeded random tokens.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trt_compress.errors import ConfigError, GateError
from trt_compress.format.manifest import Manifest
from trt_compress.runtime.measure.latency import interleave, speedup, summarize, verdict
from trt_compress.runtime.sequences import Sequences
from trt_compress.runtime.session import Session
from trt_compress.suggest import not_known
from trt_compress.tools.bench.result import ROLES, Array, Device, Point, Reading, Role, compare_outputs

WORKLOADS = ("prefill", "decode")
USUAL_FILLS = (128, 2048, 8192, 32768)
_LARGEST_UNASKED = 2048  # tokens that a prompt has unless somebody asks for more: on a CPU it takes seconds
_STEPS, _PROMPTS = 64, 15  # timed runs of a side, unless somebody says so
_WARMUP = {"prefill": 1, "decode": 5}


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPlan:
    """What is timed.

    Attributes:
        workloads: Some of `WORKLOADS`.
        fills: In ascending order.
        new: Timed steps at each fill.
        pairs: Timed prompts of each fill.
        warmup: Runs of each side before them, by workload, the first one not among them.
        batch: Sequences side by side.
        context: The most tokens of a sequence that was asked for; None: what the bundles allow.
        vocabulary: Tokens that there are.
        reserved: Tokens that stand for something else than text.
        seed: Of the tokens.
    """

    workloads: tuple[str, ...]
    fills: tuple[int, ...]
    new: int
    pairs: int
    warmup: dict[str, int]
    batch: int
    context: int | None
    vocabulary: int
    reserved: frozenset[int]
    seed: int

    def to_json(self, workload: str, fill: int) -> dict[str, Any]:
        """What a protocol says of one point."""
        return {
            "batch": self.batch,
            "pairs": self.pairs if workload == "prefill" else self.new,
            "warmup": self.warmup[workload],
            "inputs": f"random tokens, seed {self.seed}",
            "workload": workload,
            "fill": fill,
            "fills": list(self.fills),
            "context": self.context,
        }


def make_plan(
    manifests: Sequence[Manifest],
    *,
    workload: str | Sequence[str] | None,
    fill: int | Sequence[int] | None,
    context: int | None,
    new: int | None,
    pairs: int | None,
    warmup: int | None,
    batch: int | None,
    seed: int,
    whole: bool,
    inputs: bool,
) -> TokenPlan | None:
    """What is timed of bundles that read tokens; None: they read none, or single graphs of them are run.

    Args:
        manifests: Of the bundle, and of its baseline.
        workload, fill, context, new, pairs, warmup, batch, seed: As `bench` takes them.
        whole: No single graph is asked for.
        inputs: Arrays are given to be run on.

    Raises:
        ConfigError: A number is out of range, or it asks for tokens where none are read.
    """
    asked = {"workload": workload, "fill": fill, "context": context, "new": new}
    given = [name for name, value in asked.items() if value is not None]
    if not whole or all(manifest.procedure is None for manifest in manifests):
        if given:
            why = "a single graph is asked for" if not whole else f"'{manifests[0].name}' reads no tokens"
            raise ConfigError(f"--{given[0]} is of bundles that read tokens, and {why}; leave it out.")
        return None
    if without := [manifest.name for manifest in manifests if manifest.procedure is None]:
        raise ConfigError(f"'{without[0]}' reads no tokens, and the other bundle does; compare bundles of one model.")
    if inputs:
        raise ConfigError("--inputs: a bundle that reads tokens is timed on seeded random ones; leave it out.")
    names = [workload] if isinstance(workload, str) else list(workload or WORKLOADS)
    for name in names:
        if name not in WORKLOADS:
            raise ConfigError(not_known("workload", name, WORKLOADS))
    fills = [fill] if isinstance(fill, int) else sorted(set(fill or ()))
    new = _STEPS if new is None else new
    if new < 1 or any(count < 1 for count in fills) or (context is not None and context < 1):
        raise ConfigError(f"fill={fills}, new={new}, context={context}; give numbers of at least 1.")
    steps = (1 + (_WARMUP["decode"] if warmup is None else warmup) + new) if "decode" in names else 0
    longest = [found for found in map(longest_text, manifests) if found is not None]
    limits: list[int] = [*longest, *([] if context is None else [context])]
    most = min(limits) if limits else None
    largest = fills[-1] if fills else 1
    if most is not None and largest + steps > most:
        bound = "--context asks for" if context is not None and context == most else "the bundle allows"
        raise ConfigError(
            f"A prompt of {largest} and {steps} steps are more than the {most} tokens that {bound}; give a smaller "
            "--fill or --new, or a larger --context, within what the bundle was exported for."
        )
    vocabularies = [vocabulary_of(manifest) for manifest in manifests]
    if vocabularies[0] != vocabularies[-1]:
        raise ConfigError(
            f"The bundle knows {vocabularies[0]} tokens and the baseline {vocabularies[-1]}; compare bundles of one "
            "model."
        )
    return TokenPlan(
        workloads=tuple(name for name in WORKLOADS if name in names),
        fills=tuple(fills or _usual_fills(most, steps, asked=context is not None)),
        new=new,
        pairs=_PROMPTS if pairs is None else pairs,
        warmup=_WARMUP if warmup is None else dict.fromkeys(WORKLOADS, warmup),
        batch=batch or manifests[0].batch.opt,
        context=context,
        vocabulary=vocabularies[0],
        reserved=frozenset(
            media.token
            for manifest in manifests
            for media in (manifest.procedure.media if manifest.procedure else ())
            if media.token is not None
        ),
        seed=seed,
    )


def longest_text(manifest: Manifest) -> int | None:
    """The most tokens that a sequence can have, as far as its context and the capacities of its caches tell.

    None: nothing holds it up, as where caches are rings.
    """
    context = [] if manifest.text is None or manifest.text.context is None else [manifest.text.context]
    return min((*context, *(manifest.lengths[symbol].max for symbol in _caches(manifest))), default=None)


def _caches(manifest: Manifest) -> list[str]:
    """The capacities that hold a whole sequence, a slot a token: those that reading adds to, and no upkeep empties."""
    emptied = {entry.capacity for entry in (manifest.procedure.upkeep if manifest.procedure else ())}
    kept = [each for each in manifest.capacities if each.symbol not in emptied]
    return [each.symbol for each in kept if "tokens" in each.adds.values()]


def time_plan(
    plan: TokenPlan, sessions: Sequence[Session], device: Device, progress: Callable[[str], None]
) -> tuple[tuple[Point, ...], dict[str, dict[str, float | int]] | None]:
    """Time all points of a plan.

    Args:
        plan: The plan.
        sessions: Of the bundle, and of its baseline, with all graphs.
        device: Where they run.
        progress: Is told the name of each step.

    Returns:
        The points, prompts first, and how the logits behind the longest prompt compare with the baseline's.

    Raises:
        ConfigError, ShapeError, BundleError, UnsupportedError: As `Sequences.read`.
        GateError: Logits are not finite, so that the latency means nothing.
    """
    tokens = _tokens(plan)
    found: dict[str, list[Point]] = {name: [] for name in WORKLOADS}
    quality = None
    for fill in plan.fills:
        sides = [_Side(role, session, plan) for role, session in zip(ROLES, sessions, strict=False)]
        prompt = list(tokens[:, :fill])
        if "prefill" in plan.workloads:
            progress(f"prompts of {fill} tokens: {plan.pairs} {'pairs' if len(sides) > 1 else 'runs'}")
            calls = [side.reads(prompt) for side in sides]
            found["prefill"].append(_point("prefill", fill, sides, calls, plan, device))
        else:
            progress(f"reading {fill} tokens")
            for side in sides:
                side.reads(prompt)()
        logits = [side.checked_logits() for side in sides]
        quality = compare_outputs({"logits": logits[0]}, {"logits": logits[1]}) if len(sides) > 1 else None
        if "decode" in plan.workloads:
            progress(f"steps behind {fill} tokens: {plan.new} {'pairs' if len(sides) > 1 else 'runs'}")
            calls = [side.steps(tokens[:, fill:]) for side in sides]
            found["decode"].append(_point("decode", fill, sides, calls, plan, device))
            for side in sides:
                side.checked_logits()
    return (*found["prefill"], *found["decode"]), quality


class _Side:
    """One of the bundles, and the sequences that it reads."""

    def __init__(self, role: Role, session: Session, plan: TokenPlan) -> None:
        self.role: Role = role
        self._session, self._plan = session, plan
        self._capacity = _capacity(session.bundle.manifest, plan.context)
        self._sequences: Sequences | None = None
        self._logits: Array = np.zeros(0)
        self.upkeeps: list[int] = []
        self.bytes, self.memory_bytes = 0, 0

    def reads(self, prompt: Sequence[Array]) -> Callable[[], None]:
        """Begins sequences anew and reads a prompt."""

        def call() -> None:
            self._sequences = None  # or the memory of two of them would be there
            made = Sequences(self._session, batch=self._plan.batch, capacity=self._capacity)
            self._logits = made.read(prompt)
            self._sequences = made
            self.upkeeps.append(0)

        return call

    def steps(self, tokens: Array) -> Callable[[], None]:
        """Reads the next token of each sequence."""
        sequences = self._sequences
        assert sequences is not None  # a prompt was read
        columns = iter(np.ascontiguousarray(tokens.T))

        def call() -> None:
            before = sequences.upkeeps
            self._logits = sequences.step(next(columns))
            self.upkeeps.append(sequences.upkeeps - before)

        return call

    def begin(self) -> None:
        """A point begins: what was read before is in the states."""
        self.upkeeps = []
        self._measure()

    def _measure(self) -> None:
        if self._sequences is not None:
            self.bytes, self.memory_bytes = self._sequences.states.bytes, self._sequences.states.allocated_bytes

    def reading(self, first_ns: int, ns: tuple[int, ...], tokens: int, device: Device, *, alike: bool) -> Reading:
        """What was found of it."""
        if not alike:
            self._measure()  # the prompt itself filled them
        flags = self.upkeeps[len(self.upkeeps) - len(ns) :]
        with_upkeep = tuple(number for number, count in enumerate(flags) if count)
        plain = [value for value, count in zip(ns, flags, strict=True) if not count]
        return Reading(
            role=self.role,
            first_ns=first_ns,
            latencies_ns=ns,
            with_upkeep=with_upkeep,
            latency=summarize(ns),
            verdict=verdict(plain or ns, device=device),
            tokens_per_s=tokens * len(ns) / (sum(ns) / 1e9),
            state_bytes=self.bytes,
            state_memory_bytes=self.memory_bytes,
        )

    def checked_logits(self) -> Array:
        """The logits of the last run.

        Raises:
            GateError: They are not finite.
        """
        if not np.isfinite(self._logits).all():
            raise GateError(
                f"The logits of '{self._session.bundle.path}' are not finite, so its latency means nothing; run "
                "`trt-compress verify` on the bundle."
            )
        return self._logits


def _point(
    workload: str,
    fill: int,
    sides: Sequence[_Side],
    calls: Sequence[Callable[[], None]],
    plan: TokenPlan,
    device: Device,
) -> Point:
    """Time both sides in turns."""
    for side in sides:
        side.begin()
    firsts = []
    for call in calls:
        start = time.perf_counter_ns()
        call()
        firsts.append(time.perf_counter_ns() - start)
    runs = plan.pairs if workload == "prefill" else plan.new
    baseline = calls[1] if len(calls) > 1 else None
    samples = interleave(calls[0], baseline, warmup=plan.warmup[workload], pairs=runs)
    tokens = plan.batch * (fill if workload == "prefill" else 1)
    timed = zip(sides, firsts, (samples.a_ns, samples.b_ns), strict=False)
    return Point(
        workload=workload,
        fill=fill,
        sides=tuple(side.reading(first, ns, tokens, device, alike=workload == "decode") for side, first, ns in timed),
        speedup=speedup(samples.a_ns, samples.b_ns) if baseline else None,
    )


def _capacity(manifest: Manifest, context: int | None) -> dict[str, int] | None:
    """The most slots of each cache for a context."""
    if context is None:
        return None
    ranges = {symbol: manifest.lengths[symbol] for symbol in _caches(manifest)}
    return {symbol: min(max(context, one.min), one.max) for symbol, one in ranges.items()} or None


def _tokens(plan: TokenPlan) -> Array:
    """Random tokens of text, [B, N]."""
    text = np.setdiff1d(np.arange(plan.vocabulary), np.array(sorted(plan.reserved), np.int64))
    count = plan.fills[-1] + 1 + plan.warmup["decode"] + plan.new
    found: Array = np.random.default_rng(plan.seed).choice(text, (plan.batch, count))
    return found


def vocabulary_of(manifest: Manifest) -> int:
    """How many tokens there are, as the logits have it."""
    assert manifest.procedure is not None
    graph, _, tensor = str(manifest.procedure.step.logits).partition(".")
    last = next(info.shape[-1] for info in manifest.graph(graph).outputs if info.name == tensor)
    if not isinstance(last, int):
        raise ConfigError(f"'{manifest.name}' does not say how many tokens it knows, so that none can be made up.")
    return last


def _usual_fills(most: int | None, steps: int, *, asked: bool) -> list[int]:
    """Those of `USUAL_FILLS` that fit, and if a context was asked for, what fills it."""
    largest = USUAL_FILLS[-1] if most is None else most - steps
    if not asked:
        return [fill for fill in USUAL_FILLS if fill <= min(largest, _LARGEST_UNASKED)] or [largest]
    return [fill for fill in USUAL_FILLS if fill < largest] + [largest]
