"""What a full queue does, for each policy, without and with threads."""

import threading
import time
from typing import Literal

import pytest

from tests.runtime.stream.stream_parts import WAIT_S
from trt_compress.errors import ConfigError
from trt_compress.runtime.stream.frame import Frame
from trt_compress.runtime.stream.queues import FrameQueue, Traded


def frame(number: int) -> Frame:
    return Frame(id=number, source="s", arrival_ns=0, start_ns=0, mark_ns=0)


def ids(frames: list[Frame]) -> list[int]:
    return [one.id for one in frames]


def test_latest_keeps_only_the_newest() -> None:
    queue = FrameQueue(3, "latest")
    dropped = [ids(queue.put(frame(number))) for number in range(4)]
    assert dropped == [[], [0], [1], [2]]
    taken = queue.get()
    assert taken is not None and taken.id == 3


def test_drop_oldest_makes_room_at_the_front_when_full() -> None:
    queue = FrameQueue(2, "drop-oldest")
    dropped = [ids(queue.put(frame(number))) for number in range(4)]
    assert dropped == [[], [], [0], [1]]
    assert [taken.id for _ in range(2) if (taken := queue.get())] == [2, 3]


def test_frames_and_notes_come_by_their_numbers() -> None:
    queue = FrameQueue(4, "latest")
    for number in (4, 0, 2, 5):
        queue.note(frame(number))
    queue.put(frame(1))
    assert ids(queue.make_room()) == [1] and queue.make_room() == []
    queue.put(frame(3))
    assert [taken.id for _ in range(3) if (taken := queue.get())] == [0, 2, 3]
    assert ids(queue.left()) == [4, 5]


def test_block_holds_the_writer_until_there_is_room() -> None:
    queue = FrameQueue(1, "block")
    queue.put(frame(0))
    written = threading.Event()

    def write() -> None:
        assert queue.put(frame(1)) == []
        written.set()

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    assert not written.wait(0.05)
    taken = queue.get()
    assert taken is not None and taken.id == 0
    assert written.wait(WAIT_S)


def test_the_end_comes_after_what_waits() -> None:
    queue = FrameQueue(2, "block")
    queue.put(frame(0))
    queue.end()
    assert queue.get() is not None
    assert queue.get() is None


@pytest.mark.parametrize("side", ["reader", "writer"])
def test_abort_lets_both_sides_go(side: Literal["reader", "writer"]) -> None:
    queue = FrameQueue(1, "block")
    if side == "writer":
        queue.put(frame(0))
    done = threading.Event()

    def act() -> None:
        _ = queue.get() if side == "reader" else queue.put(frame(1))
        done.set()

    threading.Thread(target=act, daemon=True).start()
    assert not done.wait(0.05)
    queue.abort()
    assert done.wait(WAIT_S)
    assert queue.get() is None


def waiting_reader(queue: FrameQueue) -> tuple[threading.Event, threading.Event]:
    """A thread that reads: whether it has been relieved, and whether `get` gave something."""
    traded, given = threading.Event(), threading.Event()

    def read() -> None:
        try:
            queue.get()
            given.set()
        except Traded:
            traded.set()

    threading.Thread(target=read, daemon=True).start()
    return traded, given


def relieved(queue: FrameQueue) -> bool:
    """Whether its reader, which is about to wait, could be relieved."""
    end_s = time.monotonic() + WAIT_S
    while not (done := queue.relieve()) and time.monotonic() < end_s:
        time.sleep(0.001)
    return done


def test_whoever_has_a_frame_takes_the_place_of_a_reader_that_waits() -> None:
    queue = FrameQueue(2, "block")
    assert not queue.relieve()  # there is none
    first = waiting_reader(queue)
    assert relieved(queue)
    queue.put(frame(0))  # is for the new reader, whether or not the other one has woken up
    assert first[0].wait(WAIT_S) and not first[1].is_set()
    assert queue.has_frames and not queue.relieve()
    taken = queue.get()
    assert taken is not None and taken.id == 0 and not queue.has_frames
    second = waiting_reader(queue)
    assert relieved(queue) and second[0].wait(WAIT_S)


@pytest.mark.parametrize("what", ["frame", "note", "end", "abort"])
def test_a_reader_that_has_something_to_take_is_not_relieved(what: str) -> None:
    queue = FrameQueue(2, "block")
    traded, given = waiting_reader(queue)
    {"frame": lambda: queue.put(frame(0)), "note": lambda: queue.note(frame(0)), "end": queue.end,
     "abort": queue.abort}[what]()  # fmt: skip
    assert not queue.relieve()
    assert given.wait(WAIT_S) and not traded.is_set() and not queue.relieve()


def test_a_queue_holds_at_least_one_frame() -> None:
    with pytest.raises(ConfigError, match="queue_depth=0; a queue holds at least 1 frame"):
        FrameQueue(0, "block")
