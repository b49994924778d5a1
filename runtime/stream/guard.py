"""Calls into parts that may never come back, on threads that can be left behind."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from trt_compress.runtime.stream.branch import Branch
from trt_compress.runtime.stream.calls import THREADS, Call, Calls, Stalled, name_of, say, stalled
from trt_compress.runtime.stream.parts import Source

T = TypeVar("T")

POLL_S = 0.1
_ASKED_S = 1.0  # for a call that goes on when the stream is interrupted before its start
_HURRIED_S = 1.0  # for parts that are being closed
_TOLD_S = 1.0  # after which it is said what is waited for


class NotBegun(Exception):
    """The stream is to end, and had not begun."""


class Job:
    """One piece of work on a thread of its own.

    Attributes:
        part: What is called; it is never called again if the thread had to be left behind.
        error: What the work ended with.
        over: Set when it has ended. (`Thread.is_alive` says so too early where an interruption came into its `join`.)
    """

    def __init__(self, name: str, part: Any, work: Callable[[], None]) -> None:
        self.part = part
        self.error: BaseException | None = None
        self.over = threading.Event()
        self._work = work
        threading.Thread(target=self._run, name=f"{THREADS}{name}", daemon=True).start()

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:
            self.error = error
        finally:
            self.over.set()


class Guard:
    """Sees to it that no part of a stream is waited for without limit.

    Args:
        source: The stream's source.
        parts: Its sinks.
        stall_s: How long a call may take.
        interrupt: Set when the stream is to end.
        hurry: Set when it is to end at once.

    Attributes:
        calls: What the stream's threads are in.
        left: Parts whose thread was left behind: nobody may call them.
    """

    def __init__(
        self,
        source: Source,
        parts: Sequence[Any],
        stall_s: float,
        interrupt: threading.Event,
        hurry: threading.Event,
    ) -> None:
        self.calls = Calls()
        self.left: list[Any] = []
        self._source, self._stall_s = source, stall_s
        self._interrupt, self._hurry = interrupt, hurry
        self._every = (self.calls, *(part.calls for part in parts if isinstance(part, Branch)))

    def overdue(self) -> tuple[Call, Stalled] | None:
        """A call that has taken too long, and the error that it is; to be asked every second or so."""
        for calls in self._every:
            if (call := calls.overdue(self._stall_s)) is not None:
                calls.leave(call)
                return call, stalled(call, self._source, self._stall_s)
        return None

    def is_left(self, part: Any) -> bool:
        """Whether a part may not be called any more."""
        return any(one is part for one in self.left)

    def going_on(self) -> str:
        """What is waited for, in words."""
        calls = [call for calls in self._every for call in calls.all()]
        return " and ".join(map(str, calls[:2])) or "the stream's threads"

    def call(self, stage: str, part: Any, work: Callable[[], T], *, marked: bool = True) -> T:
        """Call into a part before the stream begins.

        Args:
            stage: What is done: "open".
            part: Source or sink, or None.
            work: The call.
            marked: It is one call; otherwise the work itself notes its calls.

        Raises:
            Stalled: It took too long; the part is left behind.
            NotBegun: The stream is to end.
        """
        found: list[T] = []

        def noted() -> None:
            if marked:
                self.calls.begin("prepare", stage, part)
            try:
                found.append(work())
            finally:
                self.calls.end("prepare")

        job = Job(stage, part, noted)
        asked_s: float | None = None
        while not job.over.is_set():
            try:
                job.over.wait(POLL_S)
            except KeyboardInterrupt:  # what the thread is in must not be closed meanwhile
                (self._hurry if self._interrupt.is_set() else self._interrupt).set()
            if job.over.is_set():
                break
            if (late := self.overdue()) is not None:
                self._leave(job)
                raise late[1]
            if self._interrupt.is_set():
                asked_s = asked_s or time.monotonic()
                if time.monotonic() - asked_s > _ASKED_S or self._hurry.is_set():
                    self._leave(job)
                    raise NotBegun
        if job.error is not None:
            raise job.error
        return found[0]

    def finish(self, jobs: Sequence[Job], failed: Callable[[Stalled], None]) -> None:
        """Wait for work that ends the stream, all of it at the same time: until it is done, stays in one call for too
        long, or the stream is hurried.

        Args:
            jobs: The work.
            failed: Is told what took too long.
        """
        began_s = time.monotonic()
        hurried_s: float | None = None
        told = False
        while waiting := [job for job in jobs if not job.over.is_set()]:
            try:
                waiting[0].over.wait(POLL_S)
            except KeyboardInterrupt:
                self._hurry.set()
            if (late := self.overdue()) is not None:
                failed(late[1])
                for job in waiting:
                    if job.part is late[0].part:
                        self._leave(job)
                jobs = [job for job in jobs if not self.is_left(job.part)]
            if self._hurry.is_set():
                hurried_s = hurried_s or time.monotonic()
                if time.monotonic() - hurried_s > _HURRIED_S:
                    for job in waiting:
                        self._leave(job)
                        say(f"{name_of(job.part)} is left behind, and may be incomplete.")
                    return
            elif not told and self._interrupt.is_set() and time.monotonic() - began_s > _TOLD_S:
                told = True
                say(f"The stream was interrupted; waiting for {self.going_on()}. Interrupt again to leave it behind.")

    def _leave(self, job: Job) -> None:
        if job.part is not None:
            self.left.append(job.part)
