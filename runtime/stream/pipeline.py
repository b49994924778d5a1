"""Frames through stages on threads of their own, with every frame accounted for however the stream ends.

    source and decode → [queue] → preprocess and session → [queue] → postprocess and sinks

The drop policy holds for the first queue, so a state never sees a frame that is later dropped, no work is done on a
frame that will be, and a result is never dropped: the second queue always blocks. A dropped frame leaves the states as
they were: the next frame meets the history of the last one that ran. Preprocessing shares the session's thread, as each
change of thread costs some 80 µs and lets a frame grow old.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from trt_compress.errors import ConfigError, InternalError, StreamError, TrtCompressError
from trt_compress.runtime.stream.branch import Branch
from trt_compress.runtime.stream.frame import ROWS_KEPT, Array, Frame, Ledger
from trt_compress.runtime.stream.pace import Clock, MonotonicClock, Pace
from trt_compress.runtime.stream.parts import BadFrame, Item, Sink, Source
from trt_compress.runtime.stream.queues import DROPPED_FOR, FrameQueue
from trt_compress.runtime.stream.result import Ended, Outcome, Policy

T = TypeVar("T")

_POLL_S = 0.1
_GRACE_S = 5.0  # for threads to end, and for frames on their way after an interruption
_READ_GRACE_S = 1.0  # for a source that is being read


@dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """What is done to a frame.

    Attributes:
        preprocess: Data of the source → inputs of the session.
        run: Runs the session on `frame.inputs` and sets `frame.outputs`, `level` and `tokens`.
        postprocess: Sets `frame.summary` from `frame.outputs`.
        delivered: Is told of every delivered frame, before its arrays are let go.
    """

    preprocess: Callable[[Any], dict[str, Array]]
    run: Callable[[Frame], None]
    postprocess: Callable[[Frame], None]
    delivered: Callable[[Frame], None] = lambda frame: None


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a stream runs.

    Attributes:
        queue_depth: Frames that may wait before each stage.
        frames: Frames after which the stream ends, or None.
        stall_s: Silence of a source after which the stream gives up.

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
        for name, least in (("deadline_ns", 1), ("frames", 1), ("queue_depth", 1), ("rows_kept", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name}={value}; give at least {least}.")
        if not self.stall_s > 0:
            raise ConfigError(f"stall_s={self.stall_s}; give a time above 0.")
        if self.policy not in ("block", *DROPPED_FOR):
            raise ConfigError(f"Unknown policy '{self.policy}'; allowed are block, {', '.join(DROPPED_FOR)}.")


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
        interrupt: Ends the stream when it is set, as KeyboardInterrupt in the thread of `run` does.
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
    ) -> None:
        self._interrupt = interrupt or threading.Event()
        self._source = source
        self._stages = stages
        self._sinks, self._watchers = sinks, watchers
        self._settings = settings or Settings()
        self._clock = clock or MonotonicClock()
        self._progress = progress
        self._origin_ns = 0
        self._queues = {
            "preprocess": FrameQueue(self._settings.queue_depth, self._settings.policy),
            "postprocess": FrameQueue(self._settings.queue_depth, "block"),
        }
        self._stop = threading.Event()  # no more frames are taken up
        self._finished = threading.Event()  # the last frame has its outcome, or the stream failed
        self._failure: StreamError | None = None
        self._failure_lock = threading.Lock()
        self._reading_since_ns: int | None = None
        self._ended: Ended = "end of source"
        self._opened: list[Sink] = []

    def prepare(self, warm_up: Callable[[dict[str, Array]], None] | None = None) -> None:
        """Open source and sinks; with `warm_up`, give it the inputs of the first good frame.

        A live source has given that frame away. Any other is opened again, and the stream starts with the same frame.

        Raises:
            StreamError: The source does not open in `stall_s`, or gives nothing.
        """
        try:
            self._guarded("open", self._source.open)
            if warm_up is not None:
                warm_up(self._first_inputs())
                if not self._source.live:
                    self._source.close()
                    self._guarded("open", self._source.open)
            for sink in (*self._sinks, *self._watchers):
                self._opened.append(sink)
                sink.open()
        except BaseException:
            self._close_parts()
            raise

    def run(self) -> Finished:
        """Run the stream until its source ends, its frames are enough, it is interrupted, or something breaks.

        Returns:
            What became of it. An error is in it, not raised: the frames before it count.
        """
        settings = self._settings
        length = self._source.length
        known = [number for number in (settings.frames, length) if number is not None]
        self._origin_ns = self._clock.now_ns()
        for sink in self._opened:
            sink.start(self._origin_ns)
        self._ledger = Ledger(
            self._origin_ns,
            deadline_ns=settings.deadline_ns,
            expected=min(known, default=None),
            rows_kept=settings.rows_kept,
        )
        threads = [
            threading.Thread(target=self._shielded, args=(target,), name=f"stream {name}", daemon=True)
            for name, target in (
                ("deliver", self._deliver),
                ("session", self._run_session),
                ("source", self._read_source),
            )
        ]
        interrupted = False
        try:
            for thread in threads:
                thread.start()
            interrupted = self._watch()
        except KeyboardInterrupt:
            interrupted = True
        if interrupted and all(thread.ident for thread in threads):
            self._drain()
        self._abort()
        now = self._clock.now_ns()
        source_is_back = self._join(threads)
        reason = "the stream was interrupted" if interrupted else "the stream stopped"
        for frame in self._ledger.close(now, reason):
            self._skip(frame)
            frame.release()
        self._close_parts(with_source=source_is_back)
        self._ledger.counts()  # every frame is accounted for, or this raises
        ended: Ended = "error" if self._failure else "interrupted" if interrupted else self._ended
        return Finished(ledger=self._ledger, ended=ended, error=self._failure, wall_ns=now - self._origin_ns)

    # The threads.

    def _read_source(self) -> None:
        settings, clock = self._settings, self._clock
        index = 0
        while not self._stop.is_set():
            if settings.frames is not None and index >= settings.frames:
                self._ended = "frame limit"
                break
            due = self._wait_until_due(index)
            if self._stop.is_set():
                break
            asked = self._reading_since_ns = clock.now_ns()
            try:
                item = self._source.read()
            except Exception as error:
                self._fail_with(f"The source '{self._source.name}' failed at frame {index}", error)
                return
            done = clock.now_ns()
            self._reading_since_ns = None
            if item is None:
                if index == 0:
                    self._fail(_no_frame(self._source))
                break
            frame = self._take_up(index, item, due, asked, done)
            if not self._ledger.enter(frame):
                return
            if item.error is not None:
                self._leave(frame, "failed", item.error)
            else:
                self._hand_over("preprocess", frame)
            index += 1
        self._queues["preprocess"].end()

    def _run_session(self) -> None:
        def preprocess(frame: Frame) -> None:
            frame.inputs = self._stages.preprocess(frame.data)

        while (frame := self._next_frame("preprocess")) is not None:
            if self._do("preprocess", frame, preprocess) and self._do("session", frame, self._stages.run):
                self._hand_over("postprocess", frame)
        self._queues["postprocess"].end()

    def _deliver(self) -> None:
        def to_sinks(frame: Frame) -> None:
            self._give_to(self._sinks, frame)

        while (frame := self._next_frame("postprocess")) is not None:
            if self._do("postprocess", frame, self._stages.postprocess):
                if self._do("sink", frame, to_sinks):
                    self._give_to(self._watchers, frame)
                    self._stages.delivered(frame)
                    self._ledger.settle(frame, "delivered", frame.mark_ns)
                    frame.release()
                    self._progress(frame.id + 1)
        self._finished.set()

    def _next_frame(self, stage: str) -> Frame | None:
        """Take the next frame of a queue; its wait ends here."""
        if (frame := self._queues[stage].get()) is not None:
            now = self._clock.now_ns()
            frame.wait_ns[stage], frame.mark_ns = now - frame.mark_ns, now
        return frame

    # One frame.

    def _wait_until_due(self, index: int) -> int | None:
        """Wait for a frame's turn; return when it arrives by schedule."""
        pace, clock = self._settings.pace, self._clock
        if pace.waits_for_delivery:
            while not self._ledger.wait_until_empty(_POLL_S) and not self._stop.is_set():
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
        try:
            work(frame)
        except BadFrame as bad:
            self._leave(frame, "failed", str(bad))
            return False
        except Exception as error:
            what = f"Frame {frame.id} of '{frame.source}' failed in '{stage}'"
            self._fail_with(what, error)
            self._leave(frame, "failed", f"'{stage}' raised {type(error).__name__}")
            return False
        frame.mark_ns = self._clock.now_ns()
        frame.stage_ns[stage] = frame.mark_ns - begin
        return True

    def _give_to(self, sinks: Sequence[Sink], frame: Frame) -> None:
        for sink in sinks:
            sink.deliver(frame, self._clock.now_ns() - self._origin_ns)

    def _hand_over(self, stage: str, frame: Frame) -> None:
        for dropped in self._queues[stage].put(frame):
            self._leave(dropped, "dropped", DROPPED_FOR[self._settings.policy])

    def _leave(self, frame: Frame, outcome: Outcome, reason: str) -> None:
        self._ledger.settle(frame, outcome, self._clock.now_ns(), reason)
        self._skip(frame)
        frame.release()

    def _skip(self, frame: Frame) -> None:
        for sink in self._opened:
            try:
                sink.skip(frame)
            except Exception as error:
                self._fail_with(f"Frame {frame.id} of '{frame.source}', {frame.outcome}, was not noted", error)

    # The stream.

    def _watch(self) -> bool:
        """Wait for the end, and notice a source that gives nothing. Return whether the stream was interrupted."""
        while not self._finished.wait(_POLL_S):
            if self._interrupt.is_set():
                return True
            since = self._reading_since_ns
            if since is not None and self._clock.now_ns() - since > self._settings.stall_s * 1e9:
                self._fail(_stalled(self._source, self._settings.stall_s))
        return False

    def _drain(self) -> None:
        """After an interruption: take up nothing more and let what is on its way arrive, until a second one."""
        self._stop.set()
        self._queues["preprocess"].end()
        try:
            self._finished.wait(_GRACE_S)
        except KeyboardInterrupt:
            pass

    def _abort(self) -> None:
        self._stop.set()
        for queue in self._queues.values():
            queue.abort()

    def _join(self, threads: Sequence[threading.Thread]) -> bool:
        """Wait for the threads, but not for ever: a driver may never come back. Return whether the source's did."""
        source = threads[-1]
        for thread in reversed(threads):
            if thread.ident:
                reading = thread is source and self._reading_since_ns is not None
                thread.join(_READ_GRACE_S if reading else _GRACE_S)
        return not source.is_alive()

    def _shielded(self, target: Callable[[], None]) -> None:
        """A fault of ours in a thread must not let the others wait for ever."""
        try:
            target()
        except BaseException as error:
            self._fail_with("The stream", error)

    def _fail(self, error: StreamError) -> None:
        """The stream ends with the first error."""
        with self._failure_lock:
            if self._failure is None:
                self._failure = error
        self._abort()
        self._finished.set()

    def _fail_with(self, what: str, cause: BaseException) -> None:
        self._fail(_stream_error(what, cause))

    def _guarded(self, what: str, call: Callable[[], T]) -> T:
        """Call into a source that may never come back, on a thread that can be left behind."""
        results: list[T] = []
        errors: list[BaseException] = []

        def target() -> None:
            try:
                results.append(call())
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=target, name=f"stream {what}", daemon=True)
        thread.start()
        thread.join(self._settings.stall_s)
        if thread.is_alive():
            raise _stalled(self._source, self._settings.stall_s)
        if errors:
            raise errors[0]
        return results[0]

    def _first_inputs(self) -> dict[str, Array]:
        """The inputs of the first frame that is good."""
        reason = None
        while (item := self._guarded("read", self._source.read)) is not None:
            try:
                if item.error is not None:
                    raise BadFrame(item.error)
                return self._stages.preprocess(item.data)
            except BadFrame as bad:
                reason = str(bad)
            except Exception as error:
                raise _stream_error(
                    f"The first frame of '{self._source.name}' failed in 'preprocess'", error
                ) from error
        raise _no_frame(self._source, reason)

    def _close_parts(self, *, with_source: bool = True) -> None:
        """Close what was opened; a source that another thread is stuck in is left alone."""
        for sink in self._opened:
            try:
                sink.close()
            except Exception as error:
                self._fail_with("A sink could not be finished", error)
        self._opened = []
        if with_source:
            self._source.close()


def _stream_error(what: str, cause: BaseException) -> StreamError:
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


def _no_frame(source: Source, reason: str | None = None) -> StreamError:
    why = f"none of its frames is good ({reason})" if reason else "it ended at once"
    return StreamError(f"The source '{source.name}' gave no frame: {why}. Check that it plays elsewhere.")


def _stalled(source: Source, stall_s: float) -> StreamError:
    return StreamError(
        f"The source '{source.name}' gave nothing for {stall_s:g} s; check the device or the connection, or allow a "
        "longer silence with --stall-s."
    )
