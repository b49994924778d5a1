"""What a model is asked in its verification: consecutive runs of each graph, or scenarios of a procedure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from trt_compress.errors import ExportError, ShapeError
from trt_compress.export.recipe import Recipe
from trt_compress.export.sample_inputs import SEED, make_inputs, read_arrays, read_inputs
from trt_compress.format.graphs import BATCH_SYMBOL, Range
from trt_compress.format.procedure import Procedure, range_of
from trt_compress.models.hosts.base import GraphSpec, LoadedHost, Scenario, Steps

Array = np.ndarray[Any, np.dtype[Any]]

REAL, SEEDED, SEEDED_TOKENS = "held-out examples of the model", "seeded standard-normal numbers", "seeded tokens"
_LEAST_STEPS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Questions:
    """What both sides are asked, and where it comes from.

    Attributes:
        steps: By graph, sequences of consecutive runs.
        labels: By graph, where these come from.
        scenarios: Of a procedure, in place of them.
        label: Where the scenarios come from.
    """

    steps: Mapping[str, Sequence[Steps]] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    scenarios: Sequence[Scenario] = ()
    label: str = ""


def default_questions(host: LoadedHost, graphs: Sequence[GraphSpec], recipe: Recipe) -> Questions:
    """The host's own examples, or seeded ones in the ranges that its graphs declare.

    Raises:
        ExportError: There is neither for an input of whole numbers.
    """
    if host.procedure is None:
        found = {graph.name: _inputs(graph, recipe) for graph in graphs}
        steps = {name: sequences for name, (sequences, _) in found.items()}
        return Questions(steps=steps, labels={name: label for name, (_, label) in found.items()})
    batches = sorted({recipe.batch.min, recipe.batch.opt})
    if host.scenarios is not None:
        return Questions(scenarios=[s for size in batches for s in host.scenarios(size)], label=REAL)
    procedure = host.procedure(graphs)
    return Questions(scenarios=[_scenario(procedure, graphs, size) for size in batches], label=SEEDED_TOKENS)


def read_questions(path: Path, host: LoadedHost, graphs: Sequence[GraphSpec]) -> Questions:
    """The same from an .npz file; of a procedure it holds `prompt`, int64 [B, N], and may hold `steps`, [B, S].

    Raises:
        ShapeError: It cannot be read, or does not fit.
    """
    if host.procedure is None:
        found = read_inputs(path, graphs)
        return Questions(steps=found, labels=dict.fromkeys(found, str(path)))
    arrays = read_arrays(path, "prompt")
    prompt, steps = arrays.get("prompt"), arrays.get("steps", np.zeros((len(arrays.get("prompt", ())), 0), np.int64))
    if prompt is None or any(x.dtype != np.int64 or x.ndim != 2 for x in (prompt, steps)) or len(prompt) != len(steps):
        raise ShapeError(
            f"inputs: {path} must hold 'prompt', int64 [batch, tokens], and may hold 'steps', int64 [batch, tokens]; "
            f"it has {', '.join(f'{name} {x.dtype} {list(x.shape)}' for name, x in arrays.items()) or 'nothing'}."
        )
    low, high = token_values(host.procedure(graphs), graphs)
    if (
        min(prompt.min(initial=low), steps.min(initial=low)) < low
        or max(prompt.max(initial=low), steps.max(initial=low)) > high
    ):
        raise ShapeError(f"inputs: {path} holds tokens that are not from {low} to {high}, which the model has.")
    return Questions(scenarios=[Scenario(prompt=list(prompt), steps=list(steps))], label=str(path))


def _inputs(graph: GraphSpec, recipe: Recipe) -> tuple[list[Steps], str]:
    batch = recipe.batch
    if graph.examples is not None:
        return [graph.examples(size) for size in sorted({batch.min, batch.opt, batch.max})], REAL
    ends = [
        {BATCH_SYMBOL: getattr(batch, end), **{name: getattr(recipe.lengths[name], end) for name in graph.lengths}}
        for end in ("min", "opt", "max")
    ]
    different = [lengths for place, lengths in enumerate(ends) if lengths not in ends[:place]]
    return make_inputs(graph, different), SEEDED


def token_values(procedure: Procedure, graphs: Sequence[GraphSpec]) -> tuple[int, int]:
    """Smallest and largest token.

    Raises:
        ExportError: The host does not say.
    """
    for graph in graphs:
        for spec in graph.inputs:
            if procedure.feeds.get(f"{graph.name}.{spec.name}") == "tokens":
                if spec.values is None:
                    raise ExportError(
                        f"graph '{graph.name}': the input '{spec.name}' takes tokens, and its host says neither which "
                        "values they have nor gives scenarios; declare one of them."
                    )
                return spec.values
    raise ExportError("the procedure feeds no graph with tokens; name the input in its feeds.")


def _scenario(procedure: Procedure, graphs: Sequence[GraphSpec], batch: int) -> Scenario:
    """Prompts of a chunk and a half and shorter ones, then steps until what is due now and then came, and came twice.

    Where something is due behind the prompt or a chunk of it, the prompt is long enough for that and for what is due in
    it to have come before. Both are shorter where there is less room.
    """
    if procedure.media:
        raise ExportError("the procedure reads media, of which there are no seeded ones; give scenarios in the host.")
    lengths = {
        symbol: Range(min=low, opt=usual, max=high)
        for graph in graphs
        for symbol, (low, usual, high) in graph.lengths.items()
    }
    _, high = range_of(procedure.prompt, lengths)
    tokens = procedure.prompt.tokens
    usual = tokens if isinstance(tokens, int) else lengths[tokens].opt
    longest = max(usual if procedure.prompt.whole else high + (high + 1) // 2, 1)
    if any(entry.after in ("prompt", "chunk") for entry in procedure.upkeep) and not procedure.prompt.whole:
        due = [entry.at_least or 0 for entry in procedure.upkeep if entry.after != "step"]
        longest = max([longest, *(at_least + (high + 1) // 2 for at_least in due)])
    unequal = "count" in procedure.feeds.values() and not procedure.prompt.whole
    periods = [entry.at_least or 1 for entry in procedure.upkeep if entry.after in ("step", "run")]
    steps = max(_LEAST_STEPS, 2 * max(periods, default=0) + 2)
    room = [
        lengths[each.symbol].max
        for graph in graphs
        for each in graph.capacities
        if each.used is None and any(each.adds.values())
    ]
    if not procedure.prompt.whole:
        longest = max(min([longest, *(length - steps for length in room)]), 1)
    steps = max(min([steps, *(length - longest for length in room)]), 0)
    for each in {each.symbol: each for graph in graphs for each in graph.capacities if each.used is not None}.values():
        if "tokens" not in each.adds.values():
            continue
        most = lengths[each.symbol].max
        made = [entry for entry in procedure.upkeep if entry.capacity == each.symbol]
        if not any(entry.after in ("chunk", "run") for entry in made) and not procedure.prompt.whole:
            longest = min(longest, most)
        if not any(entry.after in ("step", "run") for entry in made):
            kept = min([longest, *(int(entry.at_least or 1) - 1 for entry in made)])
            steps = max(min(steps, most - kept), 0)
    counts = [max(longest - 3 * row, 1) if unequal else longest for row in range(batch)]
    least, most = token_values(procedure, graphs)
    generator = np.random.default_rng(SEED)
    texts = [generator.integers(least, most + 1, count + steps) for count in counts]
    return Scenario(
        prompt=[text[:count] for text, count in zip(texts, counts, strict=True)],
        steps=[text[count:] for text, count in zip(texts, counts, strict=True)],
        enough=_LEAST_STEPS,
    )
