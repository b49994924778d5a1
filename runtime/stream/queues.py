"""The bounded queue between two stages, and what it does when it is full."""

import heapq
import threading
from collections import deque

from trt_compress.errors import ConfigError
from trt_compress.runtime.stream.frame import Frame
from trt_compress.runtime.stream.result import Policy

DROPPED_FOR = {"latest": "a newer frame came", "drop-oldest": "the queue was full"}
"""Policy → the reason that a dropped frame gets."""

MOST_NOTES = 1024
"""Frames without a result that wait beside the queue, to be told of; they hold no arrays."""

_POLL_S = 0.1  # nobody waits longer without looking whether the stream is over


class Traded(Exception):
    """Another thread has taken the reader's place."""


class FrameQueue:
    """A queue of frames for one reader, and one writer of frames that go on; any thread may add a note.

    A reader that waits may be relieved: whoever has a frame for it takes its place, and goes on with the frame.

    Args:
        depth: Frames that may wait.
        policy: "block": the writer waits for room (back-pressure). "latest": a new frame takes the place of all that
            wait. "drop-oldest": the frame that has waited longest makes room.
    """

    def __init__(self, depth: int, policy: Policy) -> None:
        if depth < 1:
            raise ConfigError(f"queue_depth={depth}; a queue holds at least 1 frame.")
        self._depth = depth
        self._policy = policy
        self._frames: deque[Frame] = deque()
        self._notes: list[tuple[int, Frame]] = []  # a heap by number
        lock = threading.Lock()
        self._filled = threading.Condition(lock)
        self._drained = threading.Condition(lock)
        self._ended = False
        self._aborted = False
        self._reading = False  # the reader waits
        self._relieved = 0  # readers so far

    @property
    def has_frames(self) -> bool:
        """Whether a frame waits at this moment."""
        return bool(self._frames)

    def relieve(self) -> bool:
        """Take the place of a reader that waits for its next frame; False if none does, and nothing has changed.

        The caller has that frame, and is the reader from then on; the other one leaves `get` with `Traded`.
        """
        with self._filled:
            idle = self._reading and not (self._frames or self._notes or self._ended or self._aborted)
            if idle:
                self._reading = False
                self._relieved += 1
                self._filled.notify()
            return idle

    def make_room(self) -> list[Frame]:
        """Take out what is dropped for the next frame, and give it back; after that its writer need not wait.

        Whoever has to tell of those does so before `put`, so that nobody hears of a later frame first.
        """
        with self._filled:
            return self._make_room()

    def put(self, frame: Frame) -> list[Frame]:
        """Add a frame and return those that were dropped for it; nothing is added once the queue was aborted."""
        with self._filled:
            dropped = self._make_room()
            while len(self._frames) >= self._depth and not self._aborted:
                self._drained.wait(_POLL_S)
            if not self._aborted:
                self._frames.append(frame)
                self._filled.notify()
        return dropped

    def _make_room(self) -> list[Frame]:
        if self._policy == "latest":
            dropped = list(self._frames)
            self._frames.clear()
            return dropped
        full = self._policy == "drop-oldest" and len(self._frames) >= self._depth
        return [self._frames.popleft()] if full else []

    def note(self, frame: Frame) -> None:
        """Hand on a frame that has its outcome already; after `abort` it is among those that are `left`."""
        with self._filled:
            while len(self._notes) >= MOST_NOTES and not self._aborted:
                self._drained.wait(_POLL_S)
            heapq.heappush(self._notes, (frame.id, frame))
            self._filled.notify()

    def get(self) -> Frame | None:
        """Take the next frame or note, the lower number first where both wait: a sink may wait for it.

        Returns:
            None when the writer has ended and nothing is left, or after `abort`.

        Raises:
            Traded: Another thread is the reader now.
        """
        with self._filled:
            mine = self._relieved
            while not (self._frames or self._notes or self._ended or self._aborted):
                self._reading = True
                self._filled.wait(_POLL_S)
                if self._relieved != mine:
                    raise Traded
            self._reading = False
            if self._aborted or not (self._frames or self._notes):
                return None
            note_is_next = self._notes and not (self._frames and self._frames[0].id < self._notes[0][0])
            frame = heapq.heappop(self._notes)[1] if note_is_next else self._frames.popleft()
            self._drained.notify_all()
            return frame

    def end(self) -> None:
        """Say that no more frames come; those that wait are still taken."""
        with self._filled:
            self._ended = True
            self._filled.notify_all()

    def abort(self) -> None:
        """Let reader and writer go at once; what waits is left to the ledger, and notes to `left`."""
        with self._filled:
            self._aborted = True
            self._filled.notify_all()
            self._drained.notify_all()

    def left(self) -> list[Frame]:
        """Take the notes that nobody has taken."""
        with self._filled:
            notes = [frame for _, frame in sorted(self._notes)]
            self._notes.clear()
            return notes
