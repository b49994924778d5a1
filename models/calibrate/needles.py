"""Needles: a few tokens among many, asked for by those in front of them; which heads look at them, and what eviction
of others costs.

Source: CompressKV, arXiv:2508.02401: the score of retrieval heads (Wu et al., arXiv:2404.15574) with the attention to
    the whole needle.
Differs: see the method's entry, `methods.cache_heads.COMPRESSKV`.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trt_compress.errors import ConfigError
from trt_compress.methods.config import CompressorConfig
from trt_compress.models.cache.contract import CacheLayer, Memory, NewEntries
from trt_compress.models.compressors.calibration import Alphabet, Batch, CalibrationData, CalibrationHost

CUE, ANSWER = 8, 8
"""Tokens that ask, and tokens of the answer, which stand behind them."""
_LONGEST, _SHORTEST = 256, 6 * CUE
_BATCHES, _HELD_OUT, _AT_ONCE = 4, 1, 4
_SEED = 14
_ENOUGH = 0.5  # of an answer; ROUGE-1's recall of a sample that counts
_SMALL = 1e-5

Choose = Callable[[CacheLayer, Tensor, Tensor, Tensor, int], Tensor]
"""Of a layer, its last queries [B, H, W, D], keys [B, G, L, D] and lengths [B], so many entries: index [B, G, K]."""


def samples(alphabet: Alphabet) -> CalibrationData:
    """Prompts of random tokens, which end with those in front of the needle, and the answers.

    Raises:
        ConfigError: The model reads too few tokens, or knows too few.
    """
    total = min(_LONGEST, alphabet.context - ANSWER)
    if total < _SHORTEST or len(alphabet.tokens) < CUE + ANSWER:
        raise ConfigError(
            f"calibrate: a model of {alphabet.context} tokens of context and {len(alphabet.tokens)} tokens that stand "
            f"for text is too small for needles; {_SHORTEST + ANSWER} and {CUE + ANSWER} are needed."
        )
    generator = np.random.default_rng(_SEED)
    batches = [_batch(alphabet, total, generator) for _ in range(_BATCHES + _HELD_OUT)]
    return CalibrationData(fit=batches[:_BATCHES], held_out=batches[_BATCHES:])


def _batch(alphabet: Alphabet, total: int, generator: np.random.Generator) -> Batch:
    prompts, answers = [], []
    for _ in range(_AT_ONCE):
        prompt = generator.choice(alphabet.tokens, total)
        needle = generator.choice(alphabet.tokens, CUE + ANSWER, replace=False)
        place = int(generator.integers(1, total - 2 * CUE - ANSWER))
        prompt[place : place + CUE + ANSWER] = needle
        prompt[-CUE:] = needle[:CUE]
        if alphabet.first is not None:
            prompt[0] = alphabet.first
        prompts.append(prompt)
        answers.append(needle[CUE:])
    return {"prompt": np.stack(prompts).astype(np.int64), "steps": np.stack(answers).astype(np.int64)}


@dataclass(frozen=True, slots=True, kw_only=True)
class NeedleAttention:
    """What heads do where the answer is asked for.

    Attributes:
        scores: Share of its attention that each head gives to the answer in the prompt, [layers, H] in float32.
        answered: Share of the samples of whose answer the model says more than a half.
    """

    scores: Tensor
    answered: float


def attention(host: CalibrationHost, batches: Iterable[Batch]) -> NeedleAttention:
    """Where an answer's token is right, the attention of each head to the whole answer; the mean over samples that are
    answered, or over all, where none is.

    Raises:
        ConfigError: An answer does not stand in its prompt.
    """
    sums, every = _Mean(), _Mean()
    answered = count = 0
    for batch in batches:
        asked = _Asked(batch)
        masses: dict[int, Tensor] = {}

        def look(layer: CacheLayer, reading: NewEntries, memory: Memory, asked: _Asked = asked) -> None:
            if asked.asks(reading):
                given = _attention(layer, reading.query[:, :, -1:], memory["keys"], asked.read)[:, :, 0]
                masses[layer.place] = (given * asked.span(given.shape[2])[:, None]).sum(dim=2)  # noqa: B023

        found: list[Tensor] = []
        right: list[Tensor] = []
        for step, outputs in enumerate(asked.runs(host.watch_caches([batch], look))):
            found.append(torch.stack([masses[place] for place in sorted(masses)], dim=1))
            right.append(asked.right(outputs, step))
        mass, is_right = torch.stack(found, dim=1), torch.stack(right, dim=1)  # [B, S, layers, H] and [B, S]
        enough = is_right.float().mean(dim=1) > _ENOUGH
        weight = is_right.float()[..., None, None]
        sums.add((mass * weight).sum(dim=1)[enough] / weight.sum(dim=1)[enough].clamp(min=1))
        every.add(mass.mean(dim=1))
        answered, count = answered + int(enough.sum()), count + len(enough)
    if not count:
        raise ConfigError("calibrate: there are no samples; give data, or leave it out.")
    return NeedleAttention(scores=(sums if answered else every).value(), answered=answered / count)


def eviction_errors(
    host: CalibrationHost, batches: Iterable[Batch], choose: Choose, *, window: int, budget: int
) -> Tensor:
    """How much what a layer gives to the tokens of an answer changes if entries of the prompt are evicted.

    ‖o_evicted − o‖ / ‖o‖ behind the layer's projection, each layer for itself; means, [layers], of the sum 1.

    Args:
        host: The model.
        batches: Samples.
        choose: What is kept.
        window: Queries that it is given.
        budget: Entries that are kept, and a quarter of the prompt at most.

    Raises:
        ConfigError: Nothing is evicted, so that there are no errors.
    """
    errors = _Mean()
    for batch in batches:
        asked = _Asked(batch)
        kept = max(min(budget, asked.total // 4), window + 1)
        if kept >= asked.total:
            raise ConfigError(f"calibrate: prompts of {asked.total} tokens are too short; give more than {kept}.")
        windows: dict[int, Tensor] = {}
        masks: dict[int, Tensor] = {}
        rows: dict[int, Tensor] = {}

        def look(
            layer: CacheLayer, reading: NewEntries, memory: Memory, asked: _Asked = asked, kept: int = kept
        ) -> None:
            place, keys = layer.place, memory["keys"]
            read = asked.seen_behind(reading)
            if read <= asked.total:
                older = [windows[place]] if place in windows else []  # noqa: B023
                windows[place] = torch.cat([*older, reading.query], dim=2)[:, :, -window:]  # noqa: B023
            if read == asked.total:
                length = torch.full((len(keys),), read, dtype=torch.int64)
                index = choose(layer, windows[place], keys, length, kept)  # noqa: B023
                masks[place] = torch.zeros(keys.shape[:3], dtype=torch.bool).scatter(2, index, True)  # noqa: B023
            elif read > asked.total:
                rows[place] = _error(layer, reading, memory, masks[place], asked.total, read)  # noqa: B023

        for step, _ in enumerate(asked.runs(host.watch_caches([batch], look))):
            if step:
                errors.add(torch.stack([rows[place] for place in sorted(rows)], dim=1))
    mean = errors.value()
    return mean / mean.sum().clamp(min=1e-30)


def _error(layer: CacheLayer, reading: NewEntries, memory: Memory, kept: Tensor, total: int, read: int) -> Tensor:
    """The relative error of one token's attention without what is not kept of the prompt, [B]."""
    assert reading.project is not None
    behind = torch.ones(*kept.shape[:2], read - total, dtype=torch.bool)
    allowed = torch.cat([kept[:, :, :total], behind], dim=2)
    outputs = []
    for mask in (None, allowed):
        weights = _attention(layer, reading.query, memory["keys"], read, mask)
        values = memory["values"][:, :, :read].float().repeat_interleave(layer.heads // layer.groups, dim=1)
        y = (weights @ values).transpose(1, 2).flatten(2)
        outputs.append(reading.project(y.to(reading.query.dtype)).float().flatten(1))
    whole, evicted = outputs
    error: Tensor = (evicted - whole).norm(dim=1) / (whole.norm(dim=1) + _SMALL)
    return error


def _attention(layer: CacheLayer, query: Tensor, keys: Tensor, read: int, allowed: Tensor | None = None) -> Tensor:
    """Attention of the last token [B, H, 1, D] to the entries that were read, [B, H, 1, read], in float32."""
    repeats = layer.heads // layer.groups
    own = keys[:, :, :read].float().repeat_interleave(repeats, dim=1)
    products = query.float() @ own.transpose(2, 3) * layer.scale
    if layer.softcap:
        products = (products / layer.softcap).tanh() * layer.softcap
    if allowed is not None:
        hidden = ~allowed.repeat_interleave(repeats, dim=1)[:, :, None]
        products = products.masked_fill(hidden, -torch.inf)
    return products.softmax(dim=3)


@dataclass(frozen=True, slots=True, kw_only=True)
class NeedleAnswers:
    """How well a model says what it is asked for.

    Attributes:
        right: Share of the tokens of the answers that are right, each behind the right ones.
        probability: Of a right token, the geometric mean.
    """

    right: float
    probability: float


def answers(host: CalibrationHost, batches: Iterable[Batch], config: CompressorConfig | None) -> NeedleAnswers:
    """What a model answers.

    Args:
        host: The model.
        batches: Samples.
        config: Options of the method that is in place; None: it is not.

    Raises:
        ConfigError: There are no answers.
    """
    right, logs = _Mean(), _Mean()
    for batch in batches:
        asked = _Asked(batch)
        said = [_logits(outputs) for outputs in host.outputs([batch], config) if _says(outputs)]
        logits = torch.stack(said[-asked.answer.shape[1] - 1 : -1], dim=1).float()  # behind the prompt and the steps
        right.add((logits.argmax(dim=2) == asked.answer).float().flatten())
        logs.add(logits.log_softmax(dim=2).gather(2, asked.answer[..., None]).flatten())
    if not right.count:
        raise ConfigError("calibrate: there are no samples; give data, or leave it out.")
    return NeedleAnswers(right=float(right.value()), probability=math.exp(float(logs.value())))


def _says(outputs: Mapping[str, Tensor]) -> bool:
    """Whether a run says a token, and is none that only scores or packs."""
    return any(name.endswith(".logits") for name in outputs)


def _logits(outputs: Mapping[str, Tensor]) -> Tensor:
    (logits,) = (value for name, value in outputs.items() if name.endswith(".logits"))
    return logits


class _Asked:
    """One batch while it is read: prompts of one length, and answers behind them.

    Attributes:
        total: Tokens of a prompt.
        answer: Tokens of the answers, [B, S].
        read: Tokens of a sequence that have been read with the run that is going on.
    """

    def __init__(self, batch: Batch) -> None:
        if "steps" not in batch:
            raise ConfigError("calibrate: the data hold no `steps`, the answers; give them beside `prompt`.")
        prompt, self.answer = batch["prompt"], torch.as_tensor(batch["steps"])
        self.total, self.read = prompt.shape[1], 0
        self._start = [_place_of(row, answer) for row, answer in zip(prompt, batch["steps"], strict=True)]

    def seen_behind(self, reading: NewEntries) -> int:
        """Tokens of a sequence behind the run."""
        self.read = int(reading.seen[0] + reading.count[0])
        return self.read

    def asks(self, reading: NewEntries) -> bool:
        """Whether the run's last token stands in front of one of the answer's."""
        return bool(self.total <= self.seen_behind(reading) < self.total + self.answer.shape[1])

    def span(self, read: int) -> Tensor:
        """1 where the answer stands in the prompt, [B, read]."""
        slot, start = torch.arange(read), torch.tensor(self._start)[:, None]
        return ((slot >= start) & (slot < start + self.answer.shape[1])).float()

    def runs(self, runs: Iterator[Mapping[str, Tensor]]) -> Iterator[Mapping[str, Tensor]]:
        """Of all runs those behind which a token of the answer is said."""
        for outputs in runs:
            if _says(outputs) and self.total <= self.read < self.total + self.answer.shape[1]:
                yield outputs

    def right(self, outputs: Mapping[str, Tensor], step: int) -> Tensor:
        """Which sequences say the right token, [B]."""
        return _logits(outputs).argmax(dim=1) == self.answer[:, step]


@dataclass(slots=True)
class _Mean:
    """The mean of rows that come in parts."""

    total: Any = 0.0
    count: int = field(default=0)

    def add(self, rows: Tensor) -> None:
        self.total, self.count = self.total + rows.double().sum(dim=0), self.count + len(rows)

    def value(self) -> Tensor:
        found: Tensor = self.total / max(self.count, 1)
        return found.float()


def _place_of(prompt: np.ndarray[Any, Any], answer: np.ndarray[Any, Any]) -> int:
    """Where the answer stands in the prompt, the first place."""
    windows = (
        np.lib.stride_tricks.sliding_window_view(prompt, len(answer)) if len(answer) <= len(prompt) else prompt[:0]
    )
    found = np.flatnonzero((windows == answer).all(axis=1) if len(windows) else np.zeros(0, bool))
    if len(found) == 0:
        raise ConfigError(
            "calibrate: a sample's `steps` do not stand in its `prompt`; give texts that hold the answer."
        )
    return int(found[0])
