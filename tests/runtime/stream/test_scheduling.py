"""Real-time threads: asked for, inherited, given back, or refused with the way to get them."""

import os
import sys
import threading

import pytest

from trt_compress.errors import UnsupportedError
from trt_compress.runtime.stream import scheduling
from trt_compress.runtime.stream.scheduling import scheduled

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="SCHED_FIFO is of Linux")


def may_be_realtime() -> bool:
    try:
        with scheduled("realtime"):
            return True
    except UnsupportedError:
        return False


@pytest.mark.skipif(not may_be_realtime(), reason="this user may not have real-time threads")
def test_threads_that_start_in_the_block_are_realtime_and_those_after_it_are_not() -> None:
    found: list[int] = []

    def look() -> None:
        found.append(os.sched_getscheduler(0))

    def start() -> None:
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()

    before = os.sched_getscheduler(0)
    with scheduled("realtime"):
        start()
        look()
    start()
    with scheduled("default"):
        start()
    assert found == [os.SCHED_FIFO, os.SCHED_FIFO, before, before] and os.sched_getscheduler(0) == before


def test_without_the_right_to_it_the_sentence_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    with pytest.raises(UnsupportedError, match="rtprio 10 in /etc/security/limits.conf.*or leave out --realtime"):
        with scheduled("realtime"):
            raise AssertionError("not reached")
    with scheduled("default"):
        pass


def test_another_system_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduling.sys, "platform", "darwin")
    with pytest.raises(UnsupportedError, match="Real-time scheduling needs Linux, and this is darwin"):
        with scheduled("realtime"):
            raise AssertionError("not reached")
