"""A frame on its way, and the ledger that knows what became of every one."""

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trt_compress.errors import InternalError
from trt_compress.runtime.stream.result import OUTCOMES, QUEUES, STAGES, Counts, Frames, Outcome

Array = np.ndarray[Any, np.dtype[Any]]

ROWS_KEPT = 1 << 18
"""Rows of the newest frames that stay in memory, 42 MB: 160 bytes each. A JSONL sink has a line for every frame.

They are laid out when the stream starts, so that memory is flat from there, and no frame waits until there is more.
The result that is made of them at the end takes some 140 MB more as Python's numbers, and its text 110 MB while it is
written.
"""

_MOST_REASONS = 200  # different sentences that are kept; a stream that runs for days must not grow
_NONE = np.iinfo(np.int64).min
_HEAD = ("id", "capture_ns", "arrival_ns", "start_ns", "end_ns", "deadline_missed", "outcome", "reason", "level")
_TAIL = ("tokens_in", "tokens_out", "first_after_idle")


@dataclass(slots=True, kw_only=True, eq=False)
class Frame:
    """One frame, from its arrival to its outcome. All times are the stream's clock, in nanoseconds.

    Attributes:
        source: Where it came from, for messages.
        data: What the source gave: an image, a chunk of samples, arrays by name; one of each stream of a query.
        inputs: What the session takes, by name.
        outputs: What the session gave, by name.
        summary: What the postprocessing made of the outputs, as JSON data.
        mark_ns: End of the last stage; the wait for the next one counts from here.
    """

    id: int
    source: str
    arrival_ns: int
    start_ns: int
    mark_ns: int
    data: Any = None
    capture_ns: int | None = None
    first_after_idle: bool = False
    inputs: dict[str, Array] = field(default_factory=dict)
    outputs: dict[str, Array] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    stage_ns: dict[str, int] = field(default_factory=dict)
    wait_ns: dict[str, int] = field(default_factory=dict)
    level: str | None = None
    tokens: tuple[int, int] | None = None
    end_ns: int | None = None
    outcome: Outcome | None = None
    reason: str | None = None
    deadline_missed: bool | None = None

    def release(self) -> None:
        """Let go of the arrays: a frame with an outcome needs only its times."""
        self.data = None
        self.inputs, self.outputs = {}, {}


class Ledger:
    """What became of every frame: each comes in once and gets exactly one outcome.

    Args:
        origin_ns: The stream's start on its clock; rows count from it.
        deadline_ns: End-to-end time above which a delivered frame has missed.
        expected: Frames that will come, if known: rows are laid out for them only. If more come, for all that are kept.
        rows_kept: As `ROWS_KEPT`.
    """

    def __init__(
        self,
        origin_ns: int,
        *,
        deadline_ns: int | None = None,
        expected: int | None = None,
        rows_kept: int = ROWS_KEPT,
    ) -> None:
        self._origin_ns = origin_ns
        self._deadline_ns = deadline_ns
        self._rows_kept = rows_kept
        self._lock = threading.Lock()
        self._empty = threading.Condition(self._lock)
        self._in_flight: dict[int, Frame] = {}
        self._count_in = 0
        self._missed = 0
        self._outcomes: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()
        self._names: dict[str, int] = {}  # reasons and levels, numbered
        self._closed = False
        self._table = self._new_rows(min(expected or rows_kept, rows_kept))

    def enter(self, frame: Frame) -> bool:
        """Count a frame in; False if the stream has been given up, and the frame is not of it."""
        with self._lock:
            if self._closed:
                return False
            if frame.id != self._count_in:
                raise InternalError(f"frame {frame.id} came in where frame {self._count_in} was due.")
            self._count_in += 1
            self._in_flight[frame.id] = frame
            return True

    def settle(self, frame: Frame, outcome: Outcome, now_ns: int, reason: str | None = None) -> None:
        """Give a frame its outcome. After `close` this does nothing: the frame has one already."""
        with self._lock:
            if not self._closed:
                self._settle(frame, outcome, now_ns, reason)

    def close(
        self, now_ns: int, reason: str, kept: Mapping[int, tuple[Outcome, str | None]] | None = None
    ) -> list[Frame]:
        """End the stream: what is still on its way is dropped for this reason, and given back.

        Args:
            now_ns: The stream's clock.
            reason: Why frames are dropped.
            kept: Frames that a stage has not given back → what has become of them, and why.
        """
        with self._lock:
            left = list(self._in_flight.values())
            for frame in left:
                outcome, why = (kept or {}).get(frame.id, ("dropped", reason))
                self._settle(frame, outcome, now_ns if outcome != "delivered" else frame.mark_ns, why)
            self._closed = True
            return left

    def wait_until_empty(self, timeout_s: float) -> bool:
        """Wait until no frame is on its way, at most this long."""
        with self._lock:
            return self._empty.wait_for(lambda: not self._in_flight or self._closed, timeout_s)

    def counts(self) -> Counts:
        """Count what came in and what became of it.

        Raises:
            InternalError: A frame is unaccounted for.
        """
        with self._lock:
            counts = Counts(
                frames_in=self._count_in,
                delivered=self._outcomes["delivered"],
                dropped=self._outcomes["dropped"],
                failed=self._outcomes["failed"],
                deadline_missed=None if self._deadline_ns is None else self._missed,
                reasons=dict(self._reasons),
            )
            left = sorted(self._in_flight)
        settled = counts.delivered + counts.dropped + counts.failed
        if counts.frames_in != settled + len(left) or (self._closed and left):
            raise InternalError(
                f"{counts.frames_in} frames came in and {settled} have an outcome; frames {left[:5]} are on their way."
            )
        return counts

    def frames(self) -> Frames:
        """The rows that are kept, as columns, in order of arrival."""
        with self._lock:
            count, rows = self._count_in, len(self._table)
            first = max(0, count - rows)
            table = self._table[np.arange(first, count) % rows]
            names = {number: name for name, number in self._names.items()}
        columns = iter(table.T)
        head = {name: next(columns) for name in _HEAD}
        stages, waits = ({name: _optional(next(columns)) for name in part} for part in (STAGES, QUEUES))
        tail = {name: next(columns) for name in _TAIL}
        return Frames(
            id=tuple(head["id"].tolist()),
            capture_ns=_optional(head["capture_ns"]),
            arrival_ns=tuple(head["arrival_ns"].tolist()),
            start_ns=_optional(head["start_ns"]),
            end_ns=tuple(head["end_ns"].tolist()),
            deadline_missed=tuple(None if v == _NONE else bool(v) for v in head["deadline_missed"].tolist()),
            outcome=tuple(OUTCOMES[value] for value in head["outcome"].tolist()),
            reason=tuple(names.get(value) for value in head["reason"].tolist()),
            level=tuple(names.get(value) for value in head["level"].tolist()),
            stage_ns=stages,
            queue_wait_ns=waits,
            tokens_in=_optional(tail["tokens_in"]),
            tokens_out=_optional(tail["tokens_out"]),
            first_after_idle=tuple(bool(value) for value in tail["first_after_idle"].tolist()),
        )

    def _settle(self, frame: Frame, outcome: Outcome, now_ns: int, reason: str | None) -> None:
        if self._in_flight.pop(frame.id, None) is None:
            raise InternalError(f"frame {frame.id} is {outcome}, and was {frame.outcome} before.")
        frame.outcome, frame.reason, frame.end_ns = outcome, reason, now_ns
        if outcome == "delivered" and self._deadline_ns is not None:
            frame.deadline_missed = now_ns - frame.arrival_ns > self._deadline_ns
            self._missed += frame.deadline_missed
        self._outcomes[outcome] += 1
        if reason is not None:
            if reason not in self._reasons and len(self._reasons) >= _MOST_REASONS:
                frame.reason = reason = "other"
            self._reasons[reason] += 1
        self._write_row(frame, now_ns)
        if not self._in_flight:
            self._empty.notify_all()

    def _write_row(self, frame: Frame, end_ns: int) -> None:
        if frame.id >= len(self._table) < self._rows_kept:
            self._table = np.concatenate([self._table, self._new_rows(self._rows_kept - len(self._table))])
        origin, missed = self._origin_ns, frame.deadline_missed
        tokens = frame.tokens or (_NONE, _NONE)
        stage, wait = frame.stage_ns.get, frame.wait_ns.get
        self._table[frame.id % len(self._table)] = (
            frame.id,
            _NONE if frame.capture_ns is None else frame.capture_ns,
            frame.arrival_ns - origin,
            frame.start_ns - origin,
            end_ns - origin,
            _NONE if missed is None else missed,
            OUTCOMES.index(frame.outcome or "failed"),
            self._number(frame.reason),
            self._number(frame.level),
            *(stage(name, _NONE) for name in STAGES),
            *(wait(name, _NONE) for name in QUEUES),
            *tokens,
            frame.first_after_idle,
        )

    def _number(self, name: str | None) -> int:
        return _NONE if name is None else self._names.setdefault(name, len(self._names))

    def _new_rows(self, count: int) -> Array:
        return np.full((count, len(_HEAD) + len(STAGES) + len(QUEUES) + len(_TAIL)), _NONE, np.int64)


def _optional(column: Array) -> tuple[int | None, ...]:
    return tuple(None if value == _NONE else value for value in column.tolist())
