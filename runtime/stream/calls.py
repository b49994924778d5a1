"""Which call each thread of a stream is in, and since when: what never comes back is noticed, and can be named."""

import logging
import threading
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from trt_compress.errors import InternalError, StreamError, TrtCompressError

_LOGGER = logging.getLogger("trt_compress")
_STOPPED_NS = 1_000_000_000  # looking twice took so long: the process was stopped, or the machine asleep

THREADS = "stream "
"""How the name of every thread of a stream begins."""


class Stalled(StreamError):
    """A stage stayed in one call for too long; its thread is left behind, as nothing can end it."""


class Call(NamedTuple):
    """One call into a stage.

    Attributes:
        thread: Who is in it.
        stage: "decode", "session", "sink", or what is done to a part: "open", "close".
        part: The source or sink that is called, or None.
        frame: Number of the frame, or None.
    """

    thread: str
    stage: str
    part: Any
    frame: int | None
    since_ns: int

    def __str__(self) -> str:
        where = f"'{self.stage}' of {name_of(self.part)}" if self.part is not None else f"'{self.stage}'"
        return where if self.frame is None else f"frame {self.frame} in {where}"


class Calls:
    """The calls that threads are in. A thread notes only its own, under a name that no other uses; any thread looks."""

    def __init__(self) -> None:
        self._open: dict[str, Call | None] = {}
        self._looked_ns = time.monotonic_ns()
        self._awake_ns = 0  # since when the process has been running without a stop

    def begin(self, thread: str, stage: str, part: Any = None, frame: int | None = None) -> None:
        """A thread goes into a call."""
        self._open[thread] = Call(thread, stage, part, frame, time.monotonic_ns())

    def end(self, thread: str) -> None:
        """It has come back."""
        self._open[thread] = None

    def of(self, thread: str) -> Call | None:
        """The call that a thread is in."""
        return self._open.get(thread)

    def leave(self, call: Call) -> None:
        """A call is waited for no more."""
        if self._open.get(call.thread) is call:
            self._open[call.thread] = None

    def all(self) -> list[Call]:
        """The calls that go on, the longest first."""
        return sorted((call for call in list(self._open.values()) if call), key=lambda call: call.since_ns)

    def overdue(self, stall_s: float) -> Call | None:
        """The call that has gone on for longest, if that is longer than this; it is to be asked every second or so."""
        now = time.monotonic_ns()
        if now - self._looked_ns > _STOPPED_NS:
            self._awake_ns = now
        self._looked_ns = now
        longest = next(iter(self.all()), None)
        if longest is None or now - max(longest.since_ns, self._awake_ns) <= stall_s * 1e9:
            return None
        return longest


def name_of(part: Any) -> str:
    """What a source or sink is called in a message: its file, or its kind."""
    name = getattr(part, "name", None)
    return f"'{name}'" if name else type(part).__name__


def stalled(call: Call, source: Any, stall_s: float) -> Stalled:
    """The error of a call that does not come back."""
    longer = "or allow a longer time with --stall-s."
    if call.part is source:
        doing = {"open": " when it was opened", "close": " when it was closed"}.get(call.stage, "")
        frame = f" The next frame would have been {call.frame}." if call.frame is not None else ""
        return Stalled(
            f"The source '{source.name}' gave nothing for {stall_s:g} s{doing}; check the device or the connection, or "
            f"allow a longer silence with --stall-s.{frame}"
        )
    if call.stage == "open":
        return Stalled(
            f"{name_of(call.part)} could not be opened in {stall_s:g} s; a pipe opens when somebody reads it: start "
            f"its reader first, give another file, {longer}"
        )
    if call.stage == "close":
        return Stalled(
            f"{name_of(call.part)} could not be finished in {stall_s:g} s; see that its reader or its disk takes what "
            f"is written, {longer}"
        )
    frame = "The first frame" if call.frame is None else f"Frame {call.frame}"
    if call.part is not None:
        return Stalled(
            f"{frame} of '{source.name}' stayed in '{call.stage}' for {stall_s:g} s: {name_of(call.part)} took nothing "
            f"more; see that its reader or its disk takes what is written, {longer}"
        )
    return Stalled(
        f"{frame} of '{source.name}' stayed in '{call.stage}' for {stall_s:g} s; give a smaller model or a faster "
        f"backend, {longer}"
    )


def stream_error(what: str, cause: BaseException) -> StreamError:
    """One sentence for an error of a part: ours keeps its exit code, any other is a fault inside (exit 1)."""
    ours = isinstance(cause, TrtCompressError)
    text = cause.message if isinstance(cause, TrtCompressError) else f"{type(cause).__name__}: {cause}"
    error = StreamError(
        f"{what}: {text}",
        hint=cause.hint if isinstance(cause, TrtCompressError) else None,
        exit_code=cause.exit_code if isinstance(cause, TrtCompressError) else InternalError.exit_code,
    )
    error.__cause__ = cause if not ours else None
    return error


def no_frame(source: Any, reason: str | None = None) -> StreamError:
    """The error of a source that gives nothing."""
    why = f"none of its frames is good ({reason})" if reason else "it ended at once"
    return StreamError(f"The source '{source.name}' gave no frame: {why}. Check that it plays elsewhere.")


def say(message: str) -> None:
    """Log a warning on a thread of its own: a terminal that has stopped holds nobody up."""
    threading.Thread(target=_LOGGER.warning, args=(message,), name=f"{THREADS}notice", daemon=True).start()


def left_behind() -> Sequence[threading.Thread]:
    """The threads of streams that are in a call which has not come back."""
    return [thread for thread in threading.enumerate() if thread.name.startswith(THREADS)]
