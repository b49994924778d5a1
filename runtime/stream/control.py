"""Which keep level the next frame gets, so that its deadline holds: chosen from measured latency."""

import math
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from trt_compress.errors import ConfigError
from trt_compress.runtime.stream.result import ControllerLog, Switch

_MOST_SWITCHES = 10_000  # a stream that runs for days must not grow


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerSettings:
    """How the level is chosen.

    Attributes:
        percentile: Of a level's measured latencies, taken as what it will need.
        window: Newest latencies of each level that count.
        margin: Share of the deadline that is left free.
        hold: Frames in a row that must have had room for a more expensive level before it is taken.
        up_margin: Further share of the budget that must be free for that, so that it does not come back at once.
        probe_every: Frames after which a level that was too slow is tried once more; doubled each time that fails.

    Raises:
        ConfigError: A number out of range.
    """

    percentile: float = 95.0
    window: int = 64
    margin: float = 0.05
    hold: int = 30
    up_margin: float = 0.05
    probe_every: int = 300

    def __post_init__(self) -> None:
        if not 50 <= self.percentile < 100:
            raise ConfigError(f"percentile={self.percentile}; give at least 50 and less than 100.")
        if min(self.window, self.hold, self.probe_every) < 1:
            raise ConfigError(
                f"window={self.window}, hold={self.hold}, probe_every={self.probe_every}; give at least 1."
            )
        if not (0 <= self.margin < 1 and 0 <= self.up_margin < 1):
            raise ConfigError(f"margin={self.margin}, up_margin={self.up_margin}; give shares from 0 to below 1.")


class Estimator:
    """The percentile of the newest latencies: the smallest that this share of them does not exceed."""

    def __init__(self, window: int, percentile: float) -> None:
        self._values: deque[int] = deque(maxlen=window)
        self._percentile = percentile
        self._sorted: list[int] | None = None

    def add(self, ns: int) -> None:
        """Take a latency in."""
        self._values.append(ns)
        self._sorted = None

    def restart(self, ns: int) -> None:
        """Forget what was, and go on from this latency."""
        self._values.clear()
        self.add(ns)

    def value(self) -> int | None:
        """What to expect; None before the first latency."""
        if not self._values:
            return None
        if self._sorted is None:
            self._sorted = sorted(self._values)
        return self._sorted[math.ceil(self._percentile / 100 * len(self._sorted)) - 1]


class Controller:
    """Gives every frame the most expensive level that its deadline still has room for.

    The budget of a frame is its deadline, less the margin, less the time since it arrived, less what the stages after
    the session take. A level fits if its measured percentile is within the budget. A cheaper level is taken at once; a
    more expensive one when it would have fitted, with `up_margin` to spare, `hold` frames in a row (hysteresis). As a
    level that is not run is not measured, one that was too slow is tried again after `probe_every` frames: with one
    frame, whose latency then replaces what was known.

    Args:
        levels: Names, most expensive first.
        deadline_ns: From arrival to delivery.
        measured_ns: Latencies from the warm-up, by level: without them the first frames try every level in turn.
    """

    def __init__(
        self,
        levels: Sequence[str],
        deadline_ns: int,
        settings: ControllerSettings | None = None,
        measured_ns: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        if not levels:
            raise ConfigError("A controller needs at least one level.")
        self.settings = settings or ControllerSettings()
        self._levels = list(levels)
        self._deadline_ns = deadline_ns
        self._sessions = [self._estimator() for _ in levels]
        self._rest = self._estimator()
        for estimator, name in zip(self._sessions, self._levels, strict=True):
            for ns in (measured_ns or {}).get(name, ()):
                estimator.add(ns)
        self._lock = threading.Lock()
        self._current: int | None = None
        self._roomy = 0  # frames in a row with room for more
        self._waited = 0  # frames since the level above was last run
        self._patience = self.settings.probe_every
        self._probing = False
        self._switches: list[Switch] = []

    def choose(self, frame: int, waited_ns: int) -> int:
        """Choose the level of a frame that arrived `waited_ns` ago; return its place in the list."""
        with self._lock:
            budget = self._budget_ns(waited_ns)
            unknown = next((i for i, estimator in enumerate(self._sessions) if estimator.value() is None), None)
            if unknown is not None:
                return unknown
            current = self._current
            fitting = self._fitting(budget)
            if current is None or fitting > current:
                self._roomy = 0
                return self._switch(frame, fitting, self._why(fitting - 1, budget, "over"))
            self._probing = False
            if current == 0:
                return current
            roomy = self._fitting(round(budget * (1 - self.settings.up_margin))) < current
            self._roomy = self._roomy + 1 if roomy else 0
            self._waited += 1
            if self._roomy >= self.settings.hold:
                self._roomy = 0
                return self._switch(frame, current - 1, self._why(current - 1, budget, "within"))
            if not roomy and self._waited >= self._patience:
                self._waited = 0
                self._probing = True
                return current - 1
            return current

    def observe(self, level: int, session_ns: int) -> None:
        """Take in how long the session took at a level."""
        with self._lock:
            if self._probing and self._current is not None and level == self._current - 1:
                self._sessions[level].restart(session_ns)
                fits = session_ns <= self._budget_ns(0) * (1 - self.settings.up_margin)
                self._patience = self.settings.probe_every if fits else min(self._patience * 2, 1 << 20)
            else:
                self._sessions[level].add(session_ns)

    def observe_rest(self, ns: int) -> None:
        """Take in how long a frame took from the end of the session to its delivery."""
        with self._lock:
            self._rest.add(ns)

    def log(self) -> ControllerLog:
        """Settings and switches, for the result."""
        with self._lock:
            settings = {**asdict(self.settings), "deadline_ns": self._deadline_ns, "levels": list(self._levels)}
            return ControllerLog(settings=settings, switches=tuple(self._switches))

    def _estimator(self) -> Estimator:
        return Estimator(self.settings.window, self.settings.percentile)

    def _budget_ns(self, waited_ns: int) -> int:
        return round(self._deadline_ns * (1 - self.settings.margin)) - waited_ns - (self._rest.value() or 0)

    def _fitting(self, budget_ns: int) -> int:
        """The most expensive level within the budget; the cheapest if none is."""
        for index, estimator in enumerate(self._sessions):
            if (estimator.value() or 0) <= budget_ns:
                return index
        return len(self._levels) - 1

    def _switch(self, frame: int, to: int, reason: str) -> int:
        before = self._current
        if to != before:
            if before is not None and len(self._switches) < _MOST_SWITCHES:
                self._switches.append(
                    Switch(frame=frame, from_level=self._levels[before], to_level=self._levels[to], reason=reason)
                )
            self._current = to
            self._waited = 0
        return to

    def _why(self, level: int, budget_ns: int, relation: str) -> str:
        """Say what decided: the level that does (not) fit, and the budget."""
        level = max(level, 0)
        expected = (self._sessions[level].value() or 0) / 1e6
        what = f"p{self.settings.percentile:g} of '{self._levels[level]}' {expected:.2f} ms"
        return f"{what}, {relation} the budget of {budget_ns / 1e6:.2f} ms"
