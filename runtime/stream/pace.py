"""When frames come: the clock of a stream, and the protocols that say what arrives when."""

import threading
import time
from dataclasses import dataclass
from typing import Protocol

from trt_compress.errors import ConfigError
from trt_compress.runtime.stream.result import Kind

_COARSE_NS = 2_000_000
_SPIN_NS = 80_000  # a sleeping thread is woken late by about this much


class Clock(Protocol):
    """The one clock of a stream."""

    def now_ns(self) -> int:
        """Nanoseconds since some moment; never goes back."""
        ...

    def sleep_until(self, due_ns: int, stop: threading.Event) -> None:
        """Wait until then, or until `stop` is set."""
        ...


class MonotonicClock:
    """The system's monotonic clock. Its sleep ends within some ten microseconds of the moment asked for."""

    def now_ns(self) -> int:
        """Nanoseconds since some moment; never goes back."""
        return time.perf_counter_ns()

    def sleep_until(self, due_ns: int, stop: threading.Event) -> None:
        """Wait until then, or until `stop` is set: first interruptibly, then exactly."""
        while (left := due_ns - time.perf_counter_ns()) > _COARSE_NS:
            if stop.wait((left - _COARSE_NS) / 1e9):
                return
        if left > _SPIN_NS:
            time.sleep((left - _SPIN_NS) / 1e9)
        while time.perf_counter_ns() < due_ns:
            pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How frames come.

    - "closed loop": the next one when the one before was delivered.
    - "fixed rate": frame i at i / fps, whatever happens.
    - "bursts": `burst` frames, then a pause of `gap_ns`; within a burst at 1 / fps, or as a closed loop without fps.
    - "live": when the device gives one.

    Raises:
        ConfigError: A number is missing or out of range, or does not belong to the kind.
    """

    kind: Kind = "closed loop"
    fps: float | None = None
    burst: int | None = None
    gap_ns: int | None = None

    def __post_init__(self) -> None:
        if self.fps is not None and not 0 < self.fps <= 1e6:
            raise ConfigError(f"fps={self.fps:g}; give frames a second above 0 and at most 1000000.")
        if self.kind == "fixed rate" and self.fps is None:
            raise ConfigError("A fixed rate needs its fps.")
        if self.kind in ("closed loop", "live") and self.fps is not None:
            raise ConfigError(f"fps={self.fps:g} with the protocol '{self.kind}'; it goes with a fixed rate or bursts.")
        bursts = self.kind == "bursts"
        if bursts != (self.burst is not None) or bursts != (self.gap_ns is not None):
            raise ConfigError(
                f"burst={self.burst}, gap_ns={self.gap_ns} with the protocol '{self.kind}'; bursts need both, and "
                "nothing else takes them."
            )
        if bursts and (self.burst or 0) < 1 or (self.gap_ns or 0) < 0:
            raise ConfigError(
                f"burst={self.burst}, gap_ns={self.gap_ns}; give at least 1 frame and a gap of at least 0."
            )

    @property
    def waits_for_delivery(self) -> bool:
        """Whether a frame is asked for only when the one before has its outcome."""
        return self.kind == "closed loop" or (self.kind == "bursts" and self.fps is None)

    def due_ns(self, index: int) -> int | None:
        """When a frame arrives, counted from the start; None if no schedule says so."""
        if self.fps is None:
            return None
        pauses = (index // self.burst) * (self.gap_ns or 0) if self.burst else 0
        return round(index * 1e9 / self.fps) + pauses

    def pause_ns(self, index: int) -> int:
        """The pause before a frame where delivery, not a schedule, says when it comes."""
        return (self.gap_ns or 0) if self.waits_for_delivery and self.is_first_after_idle(index) else 0

    def is_first_after_idle(self, index: int) -> bool:
        """Whether a pause comes before this frame."""
        return self.burst is not None and index > 0 and index % self.burst == 0
