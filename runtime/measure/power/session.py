"""Measure power while something runs: sampled in a thread of its own.

Energy of a rail is the trapezoid sum of its raw power samples, or the advance of its energy counter with the wraps
taken into account. Net of idle means: less the mean power before the load, over the same time.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType

import numpy as np

from trt_compress.errors import ConfigError, TrtCompressError
from trt_compress.format.record import Record
from trt_compress.runtime.measure.power.rails import total_of, unknown_rails
from trt_compress.runtime.measure.power.reader import PowerReader
from trt_compress.runtime.measure.power.trace import Floats, Trace

SECONDS_NEEDED = 30.0
"""Shortest time over which an energy is stated."""

_PATIENCE_S = 10.0  # how long a sample is waited for at either end
_HURRIED_S = 1.0  # the same of a stream that was interrupted


@dataclass(frozen=True, slots=True, kw_only=True)
class RailPower(Record):
    """What one rail drew; None where it cannot be said."""

    name: str
    known: bool
    in_total: bool
    mean_mw: float | None
    idle_mw: float | None
    energy_j: float | None
    net_energy_j: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerResult(Record):
    """Power and energy over one window of time.

    Attributes:
        reader: Name of the source.
        smoothing: What the hardware or driver does to a value before it is read.
        seconds: Length of the window.
        num_samples: Samples taken in the window.
        longest_gap_s: Longest time between two of them.
        idle_seconds: Length of the idle measurement before the load, 0 without one.
        total_covers: What the sum of the rails that are `in_total` is the power of.
        mean_mw: Mean total power in the window; the others below are totals too.
        num_inferences: Results delivered in the window.
        faults: Samples that could not be read: how many.
        reasons: Name of a value that is None → why.
        times_s: Times of the samples from the start of the window; of a very long one some stand for several.
        power_mw: The samples by rail; where one stands for several, and of an energy counter, the mean power since the
            one before.
    """

    reader: str
    smoothing: str
    seconds: float
    num_samples: int
    longest_gap_s: float | None
    idle_seconds: float
    total_covers: str | None
    mean_mw: float | None
    idle_mw: float | None
    energy_j: float | None
    net_energy_j: float | None
    num_inferences: int
    energy_per_inference_j: float | None
    net_energy_per_inference_j: float | None
    rails: tuple[RailPower, ...]
    faults: int
    reasons: dict[str, str]
    times_s: tuple[float, ...]
    power_mw: dict[str, tuple[float, ...]]


class PowerSession:
    """Samples a reader while the block runs.

    ```
    with PowerSession(open_reader("ina"), idle_seconds=10) as power:  # measures idle before the block
        start_ns = time.perf_counter_ns()
        …                                                             # the load
        end_ns = time.perf_counter_ns()
    result = power.result(start_ns, end_ns, num_inferences=1000)
    ```

    Sampling never disturbs the load: if the source fails, the block goes on and `result` says from when. `interrupt`,
    once set, ends the idle measurement early.
    """

    def __init__(
        self,
        reader: PowerReader,
        *,
        idle_seconds: float = 0.0,
        interval_s: float = 0.1,
        clock: Callable[[], int] = time.perf_counter_ns,
        interrupt: threading.Event | None = None,
    ) -> None:
        if not interval_s > 0 or not idle_seconds >= 0:
            raise ConfigError(
                f"interval_s={interval_s}, idle_seconds={idle_seconds}; give interval_s > 0 and idle_seconds >= 0."
            )
        self._reader = reader
        self._idle_seconds = idle_seconds
        self._interval_s = interval_s
        self._clock = clock
        self._interrupt = interrupt or threading.Event()
        self._trace = Trace(reader.source)
        self._adding = threading.Lock()
        self._given_up = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="power", daemon=True)
        self._failure: str | None = None
        self._sampled = threading.Event()
        self._ended = False
        self._idle_ns = 0
        self._load_ns = 0

    def __enter__(self) -> "PowerSession":
        self._thread.start()
        self._sampled.wait(_PATIENCE_S)
        self._idle_ns = self._clock()
        if self._idle_seconds:
            self._interrupt.wait(self._idle_seconds)
        self._load_ns = self._clock()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        patience_s = _PATIENCE_S if not self._interrupt.is_set() else _HURRIED_S
        self._sampled.clear()
        if not self._ended:
            self._sampled.wait(patience_s)  # one more, so that the end of the load lies between two samples
        self._stop.set()
        self._reader.close()
        self._thread.join(patience_s)
        with self._adding:
            self._given_up = self._thread.is_alive()
        if self._given_up:  # its driver does not come back
            self._failure = self._failure or "it gave nothing any more"

    def result(self, start_ns: int, end_ns: int, *, num_inferences: int) -> PowerResult:
        """Integrate what was sampled.

        Args:
            start_ns: Start of the window by the session's clock: after the warm-up.
            end_ns: Its end.
            num_inferences: Results delivered in it.

        Raises:
            ConfigError: The window is empty or begins before the load.
        """
        if start_ns < self._load_ns or end_ns <= start_ns:
            raise ConfigError(
                f"The window {start_ns} to {end_ns} ns is empty or begins before the load ({self._load_ns} ns); "
                "give times of the session's clock, inside its block."
            )
        return power_result(
            self._trace,
            idle_ns=(self._idle_ns, self._load_ns) if self._idle_seconds else None,
            window_ns=(start_ns, end_ns),
            num_inferences=num_inferences,
            faults=self._reader.num_faults,
            failure=self._failure,
        )

    def _sample(self) -> None:
        try:
            while not self._stop.is_set() and (sample := self._reader.read()) is not None:
                with self._adding:
                    if self._given_up:
                        return
                    self._trace.add(sample)
                self._sampled.set()
                if not self._reader.paced:
                    self._stop.wait(self._interval_s)
        except TrtCompressError as error:
            self._failure = error.message
        except Exception as error:
            self._failure = f"the reader failed on {type(error).__name__}: {error}"
        finally:
            self._ended = True
            self._sampled.set()


def power_result(
    trace: Trace,
    *,
    window_ns: tuple[int, int],
    num_inferences: int,
    idle_ns: tuple[int, int] | None = None,
    faults: int = 0,
    failure: str | None = None,
) -> PowerResult:
    """Integrate samples over a window of time.

    Args:
        trace: What was sampled.
        window_ns: Start and end.
        num_inferences: Results delivered in the window.
        idle_ns: Start and end of the idle measurement before, or None.
        faults: Samples that could not be read.
        failure: Why the reader stopped early, or None.
    """
    seconds = (window_ns[1] - window_ns[0]) / 1e9
    idle_seconds = 0.0 if idle_ns is None else max(0.0, (idle_ns[1] - idle_ns[0]) / 1e9)
    source, times, names = trace.source, trace.times, trace.names
    slack = trace.gaps.max(initial=0.0)
    total = total_of(names)
    joules: dict[str, float | None] = {}
    idle_watts: dict[str, float | None] = dict.fromkeys(names)
    for name in names:
        energy = trace.energy(name)
        watts = _mean_watts(times, energy, window_ns, slack)
        joules[name] = None if watts is None else watts * seconds
        if idle_ns is not None and idle_seconds > 0:
            idle_watts[name] = _mean_watts(times, energy, idle_ns, slack)
    inside = (times >= window_ns[0]) & (times <= window_ns[1])
    reasons = _reasons(seconds, idle_seconds, joules, idle_watts, total is not None, failure)
    stated = "energy_j" not in reasons

    def rail(name: str) -> RailPower:
        energy, idle = joules[name], idle_watts[name]
        return RailPower(
            name=name,
            known=name not in unknown_rails(names),
            in_total=total is not None and name in total.rails,
            mean_mw=None if energy is None else energy / seconds * 1000,
            idle_mw=None if idle is None else idle * 1000,
            energy_j=energy if stated else None,
            net_energy_j=energy - idle * seconds if stated and energy is not None and idle is not None else None,
        )

    rails = tuple(rail(name) for name in names)
    energy_j = _sum(rails, "energy_j") if total else None
    net_energy_j = _sum(rails, "net_energy_j") if total else None
    numbers, gaps = trace.numbers[inside], trace.gaps[inside][1:]
    return PowerResult(
        reader=source.name,
        smoothing=source.smoothing,
        seconds=seconds,
        num_samples=int(numbers[-1] - numbers[0]) + 1 if len(numbers) else 0,
        longest_gap_s=float(gaps.max()) / 1e9 if len(gaps) else None,
        idle_seconds=idle_seconds,
        total_covers=total.covers if total else None,
        mean_mw=_sum(rails, "mean_mw") if total else None,
        idle_mw=_sum(rails, "idle_mw") if total else None,
        energy_j=energy_j,
        net_energy_j=net_energy_j,
        num_inferences=num_inferences,
        energy_per_inference_j=energy_j / num_inferences if energy_j is not None and num_inferences else None,
        net_energy_per_inference_j=net_energy_j / num_inferences
        if net_energy_j is not None and num_inferences
        else None,
        rails=rails,
        faults=faults,
        reasons=reasons,
        times_s=tuple(float(t) for t in (times[inside] - window_ns[0]) / 1e9),
        power_mw={name: tuple(float(p) for p in trace.power(name)[inside]) for name in names},
    )


def _mean_watts(times: Floats, energy: Floats, window_ns: tuple[int, int], slack: float) -> float | None:
    """Mean power between two times, between samples by interpolation; None if the samples do not cover them.

    At either end the nearest sample may lie inside the window by at most `slack`: the longest time between two samples.
    """
    if len(times) < 2 or times[0] > window_ns[0] + slack or times[-1] < window_ns[1] - slack:
        return None
    start, end = max(float(window_ns[0]), float(times[0])), min(float(window_ns[1]), float(times[-1]))
    if end <= start:
        return None
    return float(np.interp(end, times, energy) - np.interp(start, times, energy)) / ((end - start) / 1e9)


def _sum(rails: Sequence[RailPower], field: str) -> float | None:
    values = [getattr(rail, field) for rail in rails if rail.in_total]
    return None if any(value is None for value in values) else float(sum(values))


def _reasons(
    seconds: float,
    idle_seconds: float,
    joules: dict[str, float | None],
    idle_watts: dict[str, float | None],
    has_total: bool,
    failure: str | None,
) -> dict[str, str]:
    reasons: dict[str, str] = {}
    if failure is not None:
        reasons["energy_j"] = f"the reader stopped early: {failure.rstrip('.')}"
    elif not joules or None in joules.values():
        reasons["energy_j"] = "the samples do not cover the window"
    elif seconds < SECONDS_NEEDED:
        reasons["energy_j"] = f"n too small: {seconds:.1f} of {SECONDS_NEEDED:g} s"
    if joules and not has_total:
        reasons["total"] = f"no known set of rails is this machine's total; it has {', '.join(joules)}"
    if idle_seconds <= 0:
        reasons["idle_mw"] = "idle was not measured before the load"
    elif None in idle_watts.values():
        reasons["idle_mw"] = "the samples do not cover the idle time"
    return reasons
