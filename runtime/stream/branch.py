"""A sink beside the stream: on a thread of its own, it may fall behind and never holds a frame up."""

import copy
import os
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from typing import Any, Protocol

from trt_compress.runtime.stream.calls import THREADS, Calls
from trt_compress.runtime.stream.frame import Frame
from trt_compress.runtime.stream.parts import Sink
from trt_compress.runtime.stream.result import OverlayCounts

BEHIND = "the overlay was behind"
"""Reason that a delivered frame has when it is handed to `Sink.skip`, as there was no room for its picture."""

UNMARKED = "the overlay was far behind"
"""Reason of a frame without a picture that is only to be counted, as `MOST_MARKS` others wait behind it."""

MOST_MARKS = 250
"""Frames without a picture that wait. Beyond that the sink could never catch up with a stream that has no end."""

MOST_BYTES = 128 << 20
"""Data of the frames that wait; one may wait however large it is."""

_POLL_S = 0.1
_OVERLAY, _CLOSING = "overlay", "close overlay"


class CountingSink(Sink, Protocol):
    """A sink that knows what became of the frames that came to it."""

    @property
    def counts(self) -> OverlayCounts:
        """What was drawn, and what was not."""
        ...


class Branch:
    """Hands frames to a sink in order of their numbers, outside of the stream's time.

    What waits is bounded. A closed loop waits between frames until there is room; otherwise a delivered frame for which
    there is none comes to the sink's `skip` without its data, with the outcome "delivered" and the reason `BEHIND`.
    Where more than `MOST_MARKS` such frames, or dropped ones, wait, the first have the reason `UNMARKED`: they are only
    to be counted. An error of the sink ends the stream at the next frame, or when it is closed. Its thread is the only
    one that calls the sink while the stream runs, and `calls` says which call it is in: `close` waits as long as the
    sink goes on from frame to frame, and it is the stream that leaves behind what stays in one call.

    Args:
        sink: Reads data, summary and times of a frame; inputs and outputs are gone when it comes to it.
        in_latency: `deliver` comes back when the sink is done with the frame: none is left out, and the sink's work is
            part of the frame's time.
        most_bytes: As `MOST_BYTES`.
    """

    def __init__(self, sink: CountingSink, *, in_latency: bool = False, most_bytes: int = MOST_BYTES) -> None:
        self.sink = sink
        self.calls = Calls()
        self._in_latency = in_latency
        self._most_bytes = most_bytes
        self._changed = threading.Condition()
        self._waiting: dict[int, tuple[Frame, int]] = {}  # by number: what comes to the sink, and when it was delivered
        self._marks = 0  # of them, frames without data
        self._bytes = self._size = 0  # of all that waits, and of the last frame
        self._waited_ns = self._after_ns = 0
        self._next = 0  # number of the frame that is handed on next
        self._ending = False
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None

    @property
    def counts(self) -> OverlayCounts:
        """What became of the frames, and what the stream did not have to wait for."""
        return replace(self.sink.counts, waited_ns=self._waited_ns, after_ns=self._after_ns)

    @property
    def name(self) -> str | None:
        """What the sink is called in messages."""
        return getattr(self.sink, "name", None)

    def wait_for_room(self, stop: threading.Event) -> None:
        """Wait until a frame like the last one has room, or `stop` is set; the time is counted.

        A stream without a clock asks for this between frames, where it is part of no frame's time.
        """
        begin = time.perf_counter_ns()
        with self._changed:
            while not (self._bytes == 0 or self._bytes + self._size <= self._most_bytes or self._error or self._ending):
                if stop.is_set():
                    break
                self._changed.wait(_POLL_S)
                self._waited_ns += time.perf_counter_ns() - begin
                begin = time.perf_counter_ns()

    def open(self) -> None:
        """Open the sink and start the thread."""
        self.sink.open()

    def start(self, origin_ns: int) -> None:
        """The stream starts now."""
        self.sink.start(origin_ns)
        self._thread = threading.Thread(target=self._run, name=f"{THREADS}overlay", daemon=True)
        self._thread.start()

    def deliver(self, frame: Frame, now_ns: int) -> None:
        """Take a frame with its data, if there is room."""
        event = copy.copy(frame)
        event.inputs, event.outputs = {}, {}
        size = _bytes_of(frame.data)
        with self._changed:
            self._raise_error()
            self._size = size
            if not self._in_latency and self._bytes and self._bytes + size > self._most_bytes:
                event.data, event.outcome, event.reason = None, "delivered", BEHIND
                self._marks += 1
            else:
                self._bytes += size
            self._waiting[frame.id] = event, now_ns
            self._changed.notify_all()
            if self._in_latency:
                while not (self._next > frame.id or self._error or self._ending):
                    self._changed.wait(_POLL_S)
                self._raise_error()

    def skip(self, frame: Frame) -> None:
        """Take note of a frame that was dropped or failed."""
        event = copy.copy(frame)
        event.data, event.inputs, event.outputs = None, {}, {}
        with self._changed:
            if frame.id >= self._next and frame.id not in self._waiting and self._error is None:
                self._waiting[frame.id] = event, 0
                self._marks += 1
                self._changed.notify_all()

    def close(self) -> None:
        """Let the sink finish what waits, and close it.

        Raises:
            BaseException: What the sink raised and no frame has told.
        """
        begin = time.perf_counter_ns()
        with self._changed:
            self._ending = True
            self._changed.notify_all()
        if self._thread is not None:
            while self._thread.is_alive():
                self._thread.join(_POLL_S)
            self._thread = None
        error, self._error = self._error, None
        self.calls.begin(_CLOSING, "close", self)
        try:
            self.sink.close()
        finally:
            self.calls.end(_CLOSING)
            self._after_ns = time.perf_counter_ns() - begin
            if error is not None:
                raise error

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        if not self._in_latency and sys.platform == "linux":  # the stream's threads may be real-time ones
            with suppress(OSError):  # a sandbox may forbid to ask
                os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        while (taken := self._take()) is not None:
            event, now_ns = taken
            self.calls.begin(_OVERLAY, "overlay", self, event.id)
            try:
                if event.data is None:
                    self.sink.skip(event)
                else:
                    self.sink.deliver(event, now_ns)
            except BaseException as error:
                with self._changed:
                    self._error = error
                    self._waiting.clear()
                    self._changed.notify_all()
                return
            finally:
                self.calls.end(_OVERLAY)
            with self._changed:
                self._bytes -= _bytes_of(event.data)
                self._next = event.id + 1
                self._changed.notify_all()

    def _take(self) -> tuple[Frame, int] | None:
        """The frame whose turn it is, waiting for it; at the end whichever is left, then None."""
        with self._changed:
            while not (self._next in self._waiting or self._ending):
                self._changed.wait(_POLL_S)
            number = self._next if self._next in self._waiting else min(self._waiting, default=None)
            if number is None:
                return None
            event, now_ns = self._waiting.pop(number)
            if event.data is None:
                self._marks -= 1
                event.reason = UNMARKED if self._marks >= MOST_MARKS else event.reason
            return event, now_ns


def _bytes_of(data: Any) -> int:
    if isinstance(data, dict):
        return sum(map(_bytes_of, data.values()))
    if isinstance(data, tuple):
        return sum(map(_bytes_of, data))
    return int(getattr(data, "nbytes", 0))
