"""How the next token is chosen from logits: repetition penalty, temperature, top-k, top-p, min-p, as transformers has
them, and in its order.

Sources: top-k, Fan et al. 2018, arXiv:1805.04833; top-p, Holtzman et al. 2020, arXiv:1904.09751; min-p, Nguyen et al.
2024, arXiv:2407.01082; repetition penalty, Keskar et al. 2019, arXiv:1909.05858.

No vocabulary is sorted: what top-k and top-p leave lies within the tokens whose probability is at least some fraction
of the largest, as soon as these are enough or weigh enough, and only they are looked at.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from trt_compress.errors import ConfigError, UnsupportedError
from trt_compress.suggest import not_known

Array = np.ndarray[Any, np.dtype[Any]]

_FRACTIONS = (2.0**-5, 2.0**-9, 2.0**-14, 2.0**-20)
_LOGARITHMS = np.log(_FRACTIONS)
_BLOCK = 256  # weights that are added up before it is looked which is drawn
_BINS, _DEEPEST = 4096, 24.0  # of logarithms of weights; what is below is in the last
_FEW = 4  # at most one in so many tokens is looked at apart from all others
_COLDEST = 1e-6  # below it, what is drawn is the largest
_LARGEST_SEED = 2**63
_MOST_TOP_LOGPROBS = 1000
_MOST_STOPS = 64
_LONGEST_STOP = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the tokens of one sequence are chosen, and what ends it.

    Attributes:
        temperature: What the logits are divided by; 0 takes the token of the largest logit, of equal ones the smaller
            number.
        top_k: Only so many of the most probable tokens, and those as probable as the last of them; 0: all.
        top_p: Only the most probable tokens that together have this probability; 1: all.
        min_p: Only tokens whose probability is at least this fraction of the largest; 0: all.
        repetition_penalty: What positive logits of tokens of the prompt and of the answer are divided by, and negative
            ones multiplied by; 1: nothing.
        seed: Where the sequence's own random numbers begin, so that it gets the same answer alone as beside others;
            None: each time elsewhere, and the result says where.
        stop: Texts that end the answer, which they are no part of.
        stop_ids: Tokens that end the answer, beside those of the bundle.
        ignore_stop_ids: Neither these nor those of the bundle do.
        logprobs: How many of the most probable tokens are given with each token; None: not even its own probability.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()
    ignore_stop_ids: bool = False
    logprobs: int | None = None

    def __post_init__(self) -> None:
        _number("temperature", self.temperature, 0, 1000)
        _integer("top_k", self.top_k, 0, 2**31)
        _number("top_p", self.top_p, 0, 1, open_low=True)
        _number("min_p", self.min_p, 0, 1)
        _number("repetition_penalty", self.repetition_penalty, 0, 1000, open_low=True)
        if self.seed is not None:
            _integer("seed", self.seed, 0, _LARGEST_SEED)
        if self.logprobs is not None:
            _integer("logprobs", self.logprobs, 0, _MOST_TOP_LOGPROBS)
        for name in ("stop", "stop_ids"):  # whoever has no type checker may give lists, or one text
            given: object = getattr(self, name)
            if isinstance(given, list):
                object.__setattr__(self, name, tuple(given))
            elif not isinstance(given, tuple):
                raise ConfigError(f"{name}={given!r:.100}; give a list.")
        if not all(isinstance(text, str) and text for text in self.stop):
            raise ConfigError(f"stop={self.stop!r:.100}; give texts of at least one character.")
        if len(self.stop) > _MOST_STOPS or any(len(text) > _LONGEST_STOP for text in self.stop):
            raise ConfigError(f"At most {_MOST_STOPS} stop texts of {_LONGEST_STOP} characters may be given.")
        for number in self.stop_ids:
            _integer("stop_ids", number, 0, 2**31)

    @classmethod
    def of(cls, settings: Mapping[str, Any], defaults: "Sampling | None" = None) -> "Sampling":
        """Settings by name, on top of defaults.

        If one of top_k, top_p and min_p is given without a temperature, and the default is to take the largest logit,
        the temperature is 1: the setting would have no effect.

        Raises:
            ConfigError: A name is unknown, or a value is not allowed.
        """
        names = [field.name for field in fields(cls)]
        for name in settings:
            if name not in names:
                raise ConfigError(not_known("setting", name, names))
        given = {name: value for name, value in settings.items() if value is not None}
        base = defaults or cls()
        chooses = any(name in given for name in ("top_k", "top_p", "min_p"))
        if chooses and "temperature" not in given and base.temperature == 0:
            given["temperature"] = 1.0
        return replace(base, **given)


class Room:
    """Memory to work in, kept from token to token: new memory of a vocabulary's size costs more than what is done."""

    def __init__(self) -> None:
        self._held: dict[str, Array] = {}

    def of(self, name: str, size: int, dtype: Any) -> Array:
        """`size` numbers under a name, whatever they held."""
        held = self._held.get(name)
        if held is None or len(held) < size:
            held = self._held[name] = np.empty(size, dtype)
        return held[:size]


class Chooser:
    """Chooses the tokens of B sequences, each with settings, random numbers and a memory of its own.

    Attributes:
        seeds: Where the random numbers of each sequence begin.
    """

    def __init__(self, settings: Sequence[Sampling], prompts: Sequence[Sequence[int]]) -> None:
        self._settings = list(settings)
        self.seeds = [one.seed if one.seed is not None else _any_seed() for one in settings]
        self._random = [np.random.default_rng(seed) for seed in self.seeds]
        self._room = Room()
        self._read = [
            np.unique(np.asarray(prompt, np.int64)) if one.repetition_penalty != 1 else None
            for one, prompt in zip(settings, prompts, strict=True)
        ]

    def choose(self, rows: Sequence[int], logits: Array) -> list[int]:
        """The next tokens.

        Args:
            rows: Which sequences.
            logits: Of these, [B, V]; those that are penalised are changed.

        Raises:
            UnsupportedError: No token is left: all logits are -inf, or one is NaN.
        """
        self._penalise(rows, logits)
        found: list[int] = logits.argmax(axis=1).tolist()
        largest = [float(logits.item(place, best)) for place, best in enumerate(found)]
        if not all(map(math.isfinite, largest)):
            raise _nothing_to_choose(largest)
        for place, row in enumerate(rows):
            settings = self._settings[row]
            if settings.temperature > 0:
                found[place] = _draw(logits[place], largest[place], settings, self._random[row], self._room)
        for place, row in enumerate(rows):
            read = self._read[row]
            if read is not None and found[place] not in read:
                self._read[row] = np.append(read, found[place])
        return found

    def changes(self, rows: Iterable[int]) -> bool:
        """Whether the logits of one of these sequences are changed where they are."""
        return any(self._read[row] is not None for row in rows)

    def _penalise(self, rows: Sequence[int], logits: Array) -> None:
        for place, row in enumerate(rows):
            read = self._read[row]
            if read is not None:
                penalty = np.float32(self._settings[row].repetition_penalty)
                values = logits[place, read]
                logits[place, read] = np.where(values < 0, values * penalty, values / penalty)


def log_probabilities(logits: Array) -> Array:
    """Natural logarithms of the probabilities of logits [B, V], float32; -inf where a logit is."""
    found: Array = logits - logits.max(axis=1, keepdims=True)
    found -= np.log(np.exp(found).sum(axis=1, keepdims=True))
    return found


def most_probable(values: Array, count: int) -> list[int]:
    """The numbers of the `count` largest of logarithms [V], the largest first, of equal ones the smaller number."""
    count = min(count, len(values))
    if count == 0:
        return []
    found = _near(values, float(values.max()) + _LOGARITHMS, lambda few: len(few) >= count, Room())
    near = np.arange(len(values)) if found is None else found
    few = values[near]
    least = np.partition(few, -count)[-count]
    above = near[few > least]
    among = np.concatenate([above, near[few == least][: count - len(above)]])
    return [int(number) for number in among[np.argsort(-values[among], kind="stable")]]


def left(logits: Array, largest: float, settings: Sampling, room: Room | None = None) -> tuple[Array | None, Array]:
    """What the settings leave of logits [V]: the numbers of tokens (None: all), and their weights, of which the largest
    token's is 1, in memory of the room."""
    room = Room() if room is None else room
    temperature = max(settings.temperature, _COLDEST)
    tokens: Array | None = None
    if 0 < settings.top_k < len(logits):  # of their weights some that differ are equal
        near = _near(logits, largest + temperature * _LOGARITHMS, lambda few: len(few) >= settings.top_k, room)
        few = logits if near is None else logits[near]
        tokens = np.flatnonzero(few >= np.partition(few, -settings.top_k)[-settings.top_k])
        tokens = tokens if near is None else near[tokens]
        logits = logits[tokens]
    weights = room.of("weights", len(logits), np.float32)
    np.subtract(logits, np.float32(largest), out=weights)
    if temperature != 1:
        weights *= np.float32(1 / temperature)
    np.exp(weights, out=weights)

    def keep(chosen: Array) -> None:
        nonlocal tokens, weights
        tokens, weights = (chosen if tokens is None else tokens[chosen]), weights[chosen]

    if settings.top_p < 1:
        wanted = settings.top_p * float(weights.sum())
        near = _near(weights, _FRACTIONS, lambda few: float(few.sum()) >= wanted, room)
        if near is None:
            keep(_nucleus(logits, weights, largest, temperature, wanted, room))
        else:
            keep(near[_nucleus(logits[near], weights[near], largest, temperature, wanted, room)])
    if settings.min_p > 0:
        keep(np.flatnonzero(weights >= np.float32(settings.min_p)))
    return tokens, weights


def _nucleus(logits: Array, weights: Array, largest: float, temperature: float, wanted: float, room: Room) -> Array:
    """The numbers of the fewest of the largest logits whose weights come to what is wanted, ascending.

    They are counted into bins by their size; only what is in the bin where the end lies is sorted.
    """
    size = len(logits)
    depths, bins = room.of("depths", size, np.float32), room.of("bins", size, np.intp)
    counted, chosen = room.of("counted", size, np.float64), room.of("chosen", size, np.bool_)
    np.subtract(np.float32(largest), logits, out=depths)
    depths *= np.float32(_BINS / _DEEPEST / temperature)
    np.minimum(depths, np.float32(_BINS - 1), out=depths)
    np.copyto(bins, depths, casting="unsafe")
    np.copyto(counted, weights)
    ends = np.cumsum(np.bincount(bins, counted, _BINS))
    last = min(int(np.searchsorted(ends, wanted)), _BINS - 1)
    inside = np.flatnonzero(np.equal(bins, last, out=chosen))
    order = inside[np.argsort(-logits[inside], kind="stable")]
    before = float(ends[last - 1]) if last else 0.0
    count = int(np.searchsorted(np.cumsum(weights[order], dtype=np.float64), wanted - before)) + 1
    np.less(bins, last, out=chosen)
    chosen[order[:count]] = True
    return np.flatnonzero(chosen)


def _draw(logits: Array, largest: float, settings: Sampling, random: np.random.Generator, room: Room) -> int:
    """Draw a token by its probability, from those that the settings leave."""
    tokens, weights = left(logits, largest, settings, room)
    ends = np.cumsum(np.add.reduceat(weights, np.arange(0, len(weights), _BLOCK)), dtype=np.float64)
    drawn = random.random() * ends[-1]
    block = _first_above(ends, drawn)
    part = np.cumsum(weights[block * _BLOCK : (block + 1) * _BLOCK], dtype=np.float64)
    place = block * _BLOCK + _first_above(part, drawn - (ends[block - 1] if block else 0.0))
    return place if tokens is None else int(tokens[place])


def _first_above(sums: Array, value: float) -> int:
    """Where ascending sums first are above a value, but no place that adds nothing to the whole."""
    return int(min(np.searchsorted(sums, value, side="right"), np.searchsorted(sums, sums[-1])))


def _near(values: Array, least: Iterable[float], enough: Callable[[Array], bool], room: Room) -> Array | None:
    """The numbers of the largest values, as few as a coarse look tells, that are enough; None: all are to be looked at,
    as most would be."""
    mask = room.of("near", len(values), np.bool_)
    for one in least:
        np.greater_equal(values, np.float32(one), out=mask)
        if _FEW * np.count_nonzero(mask) > len(values):
            return None
        near = np.flatnonzero(mask)
        if enough(values[near]):
            return near
    return None


def _nothing_to_choose(largest: Sequence[float]) -> UnsupportedError:
    if any(map(math.isnan, largest)):
        return UnsupportedError(
            "The bundle gave logits that are no numbers (NaN); verify it, or export it in a precision of more range."
        )
    return UnsupportedError(
        "No token can follow: every logit is -inf, or one is +inf; the hook on the logits has to leave a token, and a "
        "bundle that gives such logits is to be verified."
    )


def _any_seed() -> int:
    return int(np.random.SeedSequence().generate_state(1, np.uint64)[0] >> np.uint64(1))


def _number(name: str, value: object, low: float, high: float, *, open_low: bool = False) -> None:
    fits = isinstance(value, int | float | np.floating | np.integer) and not isinstance(value, bool)
    number = float(value) if fits else math.nan  # type: ignore[arg-type]
    if not (low < number <= high if open_low else low <= number <= high):
        said = f"above {low:g} and at most {high:g}" if open_low else f"from {low:g} to {high:g}"
        raise ConfigError(f"{name}={value!r:.50}; give a number {said}.")


def _integer(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not low <= value < high:
        raise ConfigError(f"{name}={value!r:.50}; give a whole number from {low} to {high - 1}.")
