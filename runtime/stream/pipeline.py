"""Frames through stages on threads of their own, with every frame accounted for however the stream ends.

    source and decode → [queue] → preprocess and session → [queue] → postprocess and sinks

There are three roles, and a thread for each. Where the next role's thread only waits, a frame stays on its thread and
the two threads trade their roles: to wake a thread takes some 80 µs, and then no frame waits for it. Where it is busy,
the frame goes through the queue, and a thread keeps its role.

The drop policy holds for the first queue, so a state never sees a frame that is later dropped, no work is done on a
frame that will be, and a result is never dropped: the second queue always blocks. A dropped frame leaves the states as
they were: the next frame meets the history of the last one that ran. Preprocessing is part of the session's role.

The last role is the sinks' writer: while the stream runs it alone calls them, and what was dropped or failed comes to
it through the same bounded queue. A sink that is slow holds up the stream from there: a closed loop and the policy
"block" slow down, the other policies drop frames. No call is waited for without limit: one that takes longer than the
stall time ends the stream, and its thread is left behind.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from trt_compress.errors import ConfigError, StreamError, TrtCompressError
from trt_compress.runtime.stream.branch import Branch
from trt_compress.runtime.stream.calls import THREADS, Call, no_frame, say, stream_error
from trt_compress.runtime.stream.frame import ROWS_KEPT, Array, Frame, Ledger
from trt_compress.runtime.stream.guard import POLL_S, Guard, Job, NotBegun
from trt_compress.runtime.stream.pace import Clock, MonotonicClock, Pace
from trt_compress.runtime.stream.parts import BadFrame, Item, Sink, Source
from trt_compress.runtime.stream.queues import DROPPED_FOR, FrameQueue, Traded
from trt_compress.runtime.stream.result import Ended, Outcome, Policy
from trt_compress.suggest import not_known

_GRACE_S = 5.0  # for threads to end, and for frames on their way after an interruption
_READ_GRACE_S = 1.0  # for a source that is being read, and for all threads after an interruption
_HURRIED_S = 0.5  # for all threads, once the end is hurried
_DELIVERED = ("watcher", "progress")  # stages behind the sinks
_TOLD_S = 1.0  # of waiting after an interruption, until it is said for what

_Turn = tuple[str, Frame | None]  # a role, and the frame that comes along


@dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """What is done to a frame.

    Attributes:
        preprocess: Data of the source → inputs of the session.
        run: Runs the session on `frame.inputs` and sets `frame.outputs`, `level` and `tokens`.
        postprocess: Sets `frame.summary` from `frame.outputs`.
        delivered: Is told of every delivered frame, before its arrays are let go.
        anywhere: `run` may be called on another thread for each frame; False: its thread keeps its role.
    """

    preprocess: Callable[[Any], dict[str, Array]]
    run: Callable[[Frame], None]
    postprocess: Callable[[Frame], None]
    delivered: Callable[[Frame], None] = lambda frame: None
    anywhere: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a stream runs.

    Attributes:
        queue_depth: Frames that may wait before each stage.
        frames: Frames after which the stream ends, or None.
        stall_s: Time in one call (reading a frame, running the session, writing to a sink) after which the stream gives
            up.

    Raises:
        ConfigError: A number out of range.
    """

    pace: Pace = Pace()
    policy: Policy = "block"
    queue_depth: int = 2
    deadline_ns: int | None = None
    frames: int | None = None
    stall_s: float = 10.0
    rows_kept: int = ROWS_KEPT

    def __post_init__(self) -> None:
        for name in ("deadline_ns", "frames", "queue_depth", "rows_kept"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ConfigError(f"{name}={value}; give at least 1.")
        if not self.stall_s > 0:
            raise ConfigError(f"stall_s={self.stall_s}; give a time above 0.")
        if self.policy not in ("block", *DROPPED_FOR):
            raise ConfigError(not_known("policy", self.policy, ("block", *DROPPED_FOR)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A stream that has ended."""

    ledger: Ledger
    ended: Ended
    error: StreamError | None
    wall_ns: int


class Pipeline:
    """One stream. `prepare` opens the parts, `run` runs it to its end, once.

    Args:
        source: Where frames come from.
        stages: What is done to them.
        sinks: Where results go, in this order.
        settings: How.
        clock: The stream's one clock.
        watchers: Sinks that are told of a frame when it counts as delivered: they are no part of its time.
        progress: Is told after every delivered frame how many frames have come.
        interrupt: Ends the stream when it is set, as KeyboardInterrupt in the thread of `run` does: what is on its way
            arrives, if it does so in time.
        hurry: Ends the end: nothing is waited for any more, as after a second KeyboardInterrupt.
    """

    def __init__(
        self,
        source: Source,
        stages: Stages,
        sinks: Sequence[Sink] = (),
        settings: Settings | None = None,
        clock: Clock | None = None,
        progress: Callable[[int], None] = lambda frames: None,
        interrupt: threading.Event | None = None,
        *,
        watchers: Sequence[Sink] = (),
        hurry: threading.Event | None = None,
    ) -> None:
        self._interrupt = interrupt or threading.Event()
        self._hurry = hurry or threading.Event()
        self._source = source
        self._stages = stages
        self._sinks, self._watchers = sinks, watchers
        self._settings = settings or Settings()
        self._clock = clock or MonotonicClock()
        self._progress = progress
        self._origin_ns = self._index = 0  # and the number of the frame that is read next
        self._guard = Guard(source, (*sinks, *watchers), self._settings.stall_s, self._interrupt, self._hurry)
        self._calls = self._guard.calls
        self._over = False  # no thread of the stream may call a sink any more
        self._roles: dict[str, Callable[[Frame | None], _Turn | None]] = {
            "deliver": self._deliver,
            "session": self._run_session,
            "source": self._read_source,
        }
        self._left: set[str] = set()  # roles whose thread is waited for no more
        self._gone: dict[str, threading.Event] = {}  # roles that have ended: as `Job.over`
        # frames in a call that does not come back → their outcome
        self._kept: dict[int, tuple[Outcome, str | None]] = {}
        self._giving: tuple[Frame, int] | None = None  # the sinks' writer: a frame, and how many have taken it
        self._queues = {
            "preprocess": FrameQueue(self._settings.queue_depth, self._settings.policy),
            "postprocess": FrameQueue(self._settings.queue_depth, "block"),
        }
        self._stop = threading.Event()  # no more frames are taken up
        self._finished = threading.Event()  # the last frame has its outcome, or the stream failed
        self._failure: StreamError | None = None
        self._failure_lock = threading.Lock()
        self._ended: Ended = "end of source"
        self._opened: list[Sink] = []

    def prepare(self, warm_up: Callable[[dict[str, Array]], None] | None = None) -> None:
        """Open source and sinks; with `warm_up`, give it the inputs of the first good frame.

        A live source has given that frame away. Any other is opened again, and the stream starts with the same frame.

        Raises:
            StreamError: The source gives nothing.
            Stalled: Something does not come back in `stall_s`.
            NotBegun: The stream is to end; its sinks hold nothing.
        """
        try:
            if self._interrupt.is_set():
                raise NotBegun
            self._guard.call("open", self._source, self._source.open)
            if warm_up is not None:
                warm = warm_up
                self._guard.call("warm-up", self._source, lambda: warm(self._first_inputs()), marked=False)
                if not self._source.live:
                    self._guard.call("close", self._source, self._source.close)
                    self._guard.call("open", self._source, self._source.open)
            self._open((*self._sinks, *self._watchers))
        except NotBegun:
            with suppress(NotBegun, TrtCompressError):
                self._open([sink for sink in self._sinks if sink not in self._opened])
                for sink in self._sinks:  # their files hold no frame, as the result does
                    sink.start(self._clock.now_ns())
            self._close_parts()
            raise
        except BaseException:
            self._close_parts()
            raise

    def warming(self) -> None:
        """`warm_up` runs the session, once more.

        Raises:
            NotBegun: The stream is to end.
        """
        if self._interrupt.is_set():
            raise NotBegun
        self._calls.begin("prepare", "session")

    def unstarted(self, error: StreamError | None) -> Finished:
        """The end of a stream that `prepare` did not let begin: stalled, or interrupted where there is no error."""
        now = self._clock.now_ns()
        return Finished(
            ledger=Ledger(now, expected=1), ended="error" if error else "interrupted", error=error, wall_ns=0
        )

    def run(self) -> Finished:
        """Run the stream until its source ends, its frames are enough, it is interrupted, or something breaks.

        Returns:
            What became of it. An error is in it, not raised: the frames before it count.
        """
        settings = self._settings
        known = [number for number in (settings.frames, self._source.length) if number is not None]
        self._origin_ns = self._clock.now_ns()
        for sink in self._opened:
            sink.start(self._origin_ns)
        self._ledger = Ledger(
            self._origin_ns,
            deadline_ns=settings.deadline_ns,
            expected=min(known, default=None),
            rows_kept=settings.rows_kept,
        )
        self._gone = {role: threading.Event() for role in self._roles}
        threads = {
            role: threading.Thread(target=self._work, args=(role,), name=f"{THREADS}{number}", daemon=True)
            for number, role in enumerate(self._roles)
        }
        interrupted = False
        try:
            for thread in threads.values():
                thread.start()
            interrupted = self._watch()
        except KeyboardInterrupt:
            interrupted = True
        if interrupted and all(thread.ident for thread in threads.values()):
            self._drain()
        self._abort()
        now = self._clock.now_ns()
        self._join(threads, _READ_GRACE_S if interrupted else _GRACE_S)
        self._over = True
        left = self._queues["postprocess"].left()
        if self._giving is not None and self._giving[0].outcome is not None:
            left.insert(0, self._giving[0])
        left += self._ledger.close(now, f"the stream {'was interrupted' if interrupted else 'stopped'}", self._kept)
        for frame in left:
            frame.release()
        self._close_parts([frame for frame in left if frame.outcome != "delivered"])
        self._ledger.counts()  # every frame is accounted for, or this raises
        ended: Ended = "error" if self._failure else "interrupted" if interrupted else self._ended
        return Finished(ledger=self._ledger, ended=ended, error=self._failure, wall_ns=now - self._origin_ns)

    # The roles. Each goes on with a frame that has come along, and gives the role that its thread trades it for.

    def _read_source(self, _: Frame | None) -> _Turn | None:
        clock, most = self._clock, self._settings.frames
        while not self._stop.is_set():
            index = self._index
            if most is not None and index >= most:
                self._ended = "frame limit"
                break
            due = self._wait_until_due(index)
            if self._stop.is_set():
                break
            asked = clock.now_ns()
            self._calls.begin("source", "decode", self._source, index)
            try:
                item = self._source.read()
            except Exception as error:
                self._fail_with(f"The source '{self._source.name}' failed at frame {index}", error)
                return None
            finally:
                self._calls.end("source")
            done = clock.now_ns()
            if item is None:
                if index == 0:
                    self._fail(no_frame(self._source))
                break
            frame = self._take_up(index, item, due, asked, done)
            if not self._ledger.enter(frame):
                return None
            self._index += 1
            if item.error is not None:
                self._leave(frame, "failed", item.error)
            elif self._stages.anywhere and self._queues["preprocess"].relieve():
                return "session", frame
            else:
                self._hand_over("preprocess", frame)
        self._queues["preprocess"].end()
        return None

    def _run_session(self, frame: Frame | None) -> _Turn | None:
        before, behind = self._queues["preprocess"], self._queues["postprocess"]
        try:
            while (frame := frame or before.get()) is not None:
                self._end_wait("preprocess", frame)
                if self._do("preprocess", frame, self._preprocess) and self._do("session", frame, self._stages.run):
                    if self._stages.anywhere and not before.has_frames and behind.relieve():
                        return "deliver", frame
                    self._hand_over("postprocess", frame)
                frame = None
        except Traded:
            return "source", None
        behind.end()
        return None

    def _deliver(self, frame: Frame | None) -> _Turn | None:
        try:
            while (frame := frame or self._queues["postprocess"].get()) is not None:
                if frame.outcome is not None:
                    self._note(frame)
                else:
                    self._end_wait("postprocess", frame)
                    done = self._do("postprocess", frame, self._stages.postprocess)
                    if done and self._do("sink", frame, partial(self._give_to, self._sinks)):
                        self._settle_delivered(frame)
                frame = None
        except Traded:
            return "session", None
        self._finished.set()
        return None

    def _preprocess(self, frame: Frame) -> None:
        frame.inputs = self._stages.preprocess(frame.data)

    def _settle_delivered(self, frame: Frame) -> None:
        """A frame is with its sinks: tell who is no part of its time, and let it go."""
        self._give_to(self._watchers, frame, "watcher", len(self._sinks))
        self._calls.begin("deliver", "progress", None, frame.id)
        self._stages.delivered(frame)
        self._ledger.settle(frame, "delivered", frame.mark_ns)
        frame.release()
        self._progress(frame.id + 1)
        self._calls.end("deliver")

    def _end_wait(self, stage: str, frame: Frame) -> None:
        """A stage takes a frame: its wait ends here."""
        now = self._clock.now_ns()
        frame.wait_ns[stage], frame.mark_ns = now - frame.mark_ns, now

    # One frame.

    def _wait_until_due(self, index: int) -> int | None:
        """Wait for a frame's turn; return when it arrives by schedule."""
        pace, clock = self._settings.pace, self._clock
        if pace.waits_for_delivery:
            while not self._ledger.wait_until_empty(POLL_S) and not self._stop.is_set():
                pass
            for sink in self._opened:
                if isinstance(sink, Branch):
                    sink.wait_for_room(self._stop)
            if pause := pace.pause_ns(index):
                clock.sleep_until(clock.now_ns() + pause, self._stop)
        if (due := pace.due_ns(index)) is None:
            return None
        clock.sleep_until(self._origin_ns + due, self._stop)
        return self._origin_ns + due

    def _take_up(self, index: int, item: Item, due: int | None, asked: int, done: int) -> Frame:
        """Make a frame of what the source gave, with the times of its arrival and decoding."""
        start = asked if item.arrived_ns is None else item.arrived_ns
        arrival = start if due is None else due
        return Frame(
            id=index,
            source=self._source.name,
            arrival_ns=arrival,
            start_ns=start,
            mark_ns=done,
            data=item.data,
            capture_ns=item.capture_ns,
            first_after_idle=self._settings.pace.is_first_after_idle(index),
            stage_ns={"decode": done - start},
            wait_ns={"source": start - arrival},
        )

    def _do(self, stage: str, frame: Frame, work: Callable[[Frame], None]) -> bool:
        """Do one stage's work on a frame and time it; False if the frame goes no further."""
        begin = frame.mark_ns
        role = "session" if stage in ("preprocess", "session") else "deliver"
        self._calls.begin(role, stage, None, frame.id)
        try:
            work(frame)
        except BadFrame as bad:
            self._leave(frame, "failed", str(bad), role)
            return False
        except Exception as error:
            self._giving = None
            self._fail_with(f"Frame {frame.id} of '{frame.source}' failed in '{stage}'", error)
            self._leave(frame, "failed", f"'{stage}' raised {type(error).__name__}", role)
            return False
        finally:
            self._calls.end(role)
        frame.mark_ns = self._clock.now_ns()
        frame.stage_ns[stage] = frame.mark_ns - begin
        return True

    def _give_to(self, sinks: Sequence[Sink], frame: Frame, stage: str = "sink", taken: int = 0) -> None:
        for number, sink in enumerate(sinks, start=taken):
            self._calls.begin("deliver", stage, sink, frame.id)  # before it looks: either side sees the other
            if self._over:  # this thread was left behind, and has come back
                return
            self._giving = frame, number
            sink.deliver(frame, self._clock.now_ns() - self._origin_ns)
        self._giving = None
        self._calls.end("deliver")

    def _hand_over(self, stage: str, frame: Frame) -> None:
        queue = self._queues[stage]
        for dropped in queue.make_room():  # nothing else is put in before the frame
            self._leave(dropped, "dropped", DROPPED_FOR[self._settings.policy])
        queue.put(frame)

    def _leave(self, frame: Frame, outcome: Outcome, reason: str, role: str = "source") -> None:
        """A frame goes no further; the sinks' writer tells them."""
        self._ledger.settle(frame, outcome, self._clock.now_ns(), reason)
        frame.release()
        if role == "deliver":
            self._note(frame)
        else:
            self._queues["postprocess"].note(frame)

    def _note(self, frame: Frame) -> None:
        """Tell the sinks of a frame without a result."""
        for number, sink in enumerate(self._opened):
            self._calls.begin("deliver", "sink", sink, frame.id)
            if self._over:
                return
            self._giving = frame, number
            self._skip(sink, frame)
        self._giving = None
        self._calls.end("deliver")

    def _skip(self, sink: Sink, frame: Frame) -> None:
        try:
            sink.skip(frame)
        except Exception as error:
            self._fail_with(f"Frame {frame.id} of '{frame.source}', {frame.outcome}, was not noted", error)

    # The stream.

    def _watch(self) -> bool:
        """Wait for the end, and notice a call that does not come back. Return whether the stream was interrupted."""
        while not self._finished.wait(POLL_S):
            if self._interrupt.is_set():
                return True
            if (late := self._guard.overdue()) is not None:
                call, error = late
                if call.frame is not None:
                    self._kept[call.frame] = "failed", f"'{call.stage}' did not come back"
                self._leave_behind(call)
                self._fail(error)
        return False

    def _drain(self) -> None:
        """After an interruption: take up nothing more and let what is on its way arrive, until a second one."""
        self._stop.set()
        self._queues["preprocess"].end()
        began_s, told = time.monotonic(), False
        try:
            while not self._finished.wait(POLL_S) and not self._hurry.is_set():
                waited_s = time.monotonic() - began_s
                if waited_s > _GRACE_S:
                    return
                if waited_s > _TOLD_S and not told:
                    told = True
                    say(
                        f"The stream was interrupted; waiting for {self._guard.going_on()}, at most {_GRACE_S:g} s. "
                        "Interrupt again to leave it behind."
                    )
        except KeyboardInterrupt:
            self._hurry.set()

    def _abort(self) -> None:
        self._stop.set()
        for queue in self._queues.values():
            queue.abort()

    def _join(self, threads: Mapping[str, threading.Thread], grace_s: float) -> None:
        """Wait for the threads, but not for ever: a driver may never come back."""
        end_s = time.monotonic() + grace_s
        for name, thread in reversed(list(threads.items())):
            if not thread.ident:
                continue
            reading = name == "source" and self._calls.of(name) is not None
            limit_s = min(end_s, time.monotonic() + _READ_GRACE_S) if reading else end_s
            while not self._gone[name].is_set() and name not in self._left:
                try:
                    if self._hurry.is_set():
                        end_s = limit_s = min(limit_s, time.monotonic() + _HURRIED_S)
                        self._gone[name].wait(max(0.0, limit_s - time.monotonic()))
                        break
                    if (left_s := limit_s - time.monotonic()) <= 0:
                        break
                    self._gone[name].wait(min(POLL_S, left_s))
                except KeyboardInterrupt:
                    self._hurry.set()
            if not self._gone[name].is_set():
                if name == "deliver":
                    self._over = True
                self._leave_behind(self._calls.of(name))

    def _work(self, role: str) -> None:
        """One thread: its roles, until one ends. A fault of ours in it must not let the others wait for ever."""
        turn: _Turn | None = (role, None)
        try:
            while turn is not None:
                role, frame = turn
                turn = self._roles[role](frame)
        except BaseException as error:
            self._fail_with("The stream", error)
        finally:
            self._gone[role].set()

    def _fail(self, error: StreamError) -> None:
        """The stream ends with the first error."""
        with self._failure_lock:
            if self._failure is None:
                self._failure = error
        self._abort()
        self._finished.set()

    def _fail_with(self, what: str, cause: BaseException) -> None:
        self._fail(stream_error(what, cause))

    def _open(self, sinks: Sequence[Sink]) -> None:
        for sink in sinks:
            self._opened.append(sink)
            self._guard.call("open", sink, sink.open)

    def _first_inputs(self) -> dict[str, Array]:
        """The inputs of the first frame that is good."""
        reason = None
        while True:
            self._calls.begin("prepare", "decode", self._source)
            if (item := self._source.read()) is None:
                raise no_frame(self._source, reason)
            self._calls.begin("prepare", "preprocess")
            try:
                if item.error is not None:
                    raise BadFrame(item.error)
                return self._stages.preprocess(item.data)
            except BadFrame as bad:
                reason = str(bad)
            except Exception as error:
                raise stream_error(f"The first frame of '{self._source.name}' failed in 'preprocess'", error) from error

    def _leave_behind(self, call: Call | None) -> None:
        """A thread is waited for no more, and what it is in is called no more."""
        if call is not None:
            self._left.add(call.thread)
            if call.stage in _DELIVERED and call.frame is not None:  # its result is with all sinks
                self._kept[call.frame] = "delivered", None
            if call.part is not None:
                self._guard.left.append(call.part)

    def _close_parts(self, left: Sequence[Frame] = ()) -> None:
        """Tell the sinks of the frames that are left, and close all parts but those that a thread is stuck in."""

        def closing(number: int, part: Any) -> Callable[[], None]:
            tell = [
                frame
                for frame in left
                if self._giving is None or frame is not self._giving[0] or number > self._giving[1]
            ]
            return lambda: self._finish(f"close {number}", part, tell if part is not self._source else ())

        jobs = [
            Job("close", part, closing(number, part))
            for number, part in enumerate((*self._opened, self._source))
            if not self._guard.is_left(part)
        ]
        self._guard.finish(jobs, self._fail)
        self._opened = []

    def _finish(self, thread: str, part: Any, left: Sequence[Frame]) -> None:
        try:
            for frame in left:
                self._calls.begin(thread, "sink", part, frame.id)
                self._skip(part, frame)
            if not isinstance(part, Branch):  # it says itself what it is in
                self._calls.begin(thread, "close", part)
            part.close()
        except Exception as error:
            source = f"The source '{self._source.name}' could not be closed"
            self._fail_with(source if part is self._source else "A sink could not be finished", error)
        finally:
            self._calls.end(thread)
