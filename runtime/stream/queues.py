"""The bounded queue between two stages, and what it does when it is full."""

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


class FrameQueue:
    """A queue of frames for one reader, and one writer of frames that go on; any thread may add a note.

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
        self._notes: deque[Frame] = deque()
        self._note_was_last = False
        lock = threading.Lock()
        self._filled = threading.Condition(lock)
        self._drained = threading.Condition(lock)
        self._ended = False
        self._aborted = False

    def put(self, frame: Frame) -> list[Frame]:
        """Add a frame and return those that were dropped for it; nothing is added once the queue was aborted."""
        dropped: list[Frame] = []
        with self._filled:
            if self._policy == "latest":
                dropped.extend(self._frames)
                self._frames.clear()
            elif self._policy == "drop-oldest" and len(self._frames) >= self._depth:
                dropped.append(self._frames.popleft())
            while len(self._frames) >= self._depth and not self._aborted:
                self._drained.wait(_POLL_S)
            if not self._aborted:
                self._frames.append(frame)
                self._filled.notify()
        return dropped

    def note(self, frame: Frame) -> None:
        """Hand on a frame that has its outcome already; after `abort` it is among those that are `left`."""
        with self._filled:
            while len(self._notes) >= MOST_NOTES and not self._aborted:
                self._drained.wait(_POLL_S)
            self._notes.append(frame)
            self._filled.notify()

    def get(self) -> Frame | None:
        """Take the next frame or note, in turns where both wait.

        Returns:
            None when the writer has ended and nothing is left, or after `abort`.
        """
        with self._filled:
            while not (self._frames or self._notes or self._ended or self._aborted):
                self._filled.wait(_POLL_S)
            if self._aborted or not (self._frames or self._notes):
                return None
            self._note_was_last = bool(self._notes) and not (self._frames and self._note_was_last)
            frame = (self._notes if self._note_was_last else self._frames).popleft()
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
            notes = list(self._notes)
            self._notes.clear()
            return notes
