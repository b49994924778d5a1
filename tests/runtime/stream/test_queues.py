"""What a full queue does, for each policy, without and with threads."""

import threading
from typing import Literal

import pytest

from tests.runtime.stream.stream_parts import WAIT_S
from trt_compress.errors import ConfigError
from trt_compress.runtime.stream.frame import Frame
from trt_compress.runtime.stream.queues import FrameQueue


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


def test_a_queue_holds_at_least_one_frame() -> None:
    with pytest.raises(ConfigError, match="queue_depth=0; a queue holds at least 1 frame"):
        FrameQueue(0, "block")
