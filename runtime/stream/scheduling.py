"""Threads of a stream that no ordinary thread of the machine interrupts."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from trt_compress.errors import UnsupportedError
from trt_compress.runtime.stream.result import Scheduling

PRIORITY = 10
"""Real-time priority, of 1 to 99: above all ordinary threads, below the interrupt threads of the kernel (50)."""


@contextmanager
def scheduled(how: Scheduling) -> Iterator[None]:
    """Run the calling thread, and every thread that it starts in the block, as asked.

    With "realtime" (SCHED_FIFO) a thread that wakes up runs at once, and runs until it waits: the scheduler's slices of
    some 3 ms for other programs are no part of a latency. It is meant for a frame rate that the machine sustains:
    threads that compute without a pause starve the rest of the machine, until the kernel stops them for 50 ms of a
    second (`sched_rt_runtime_us`), and that is a latency again.

    Raises:
        UnsupportedError: The system has no such scheduling, or this user may not ask for it.
    """
    if how == "default":
        yield
        return
    if sys.platform != "linux":
        raise UnsupportedError(f"Real-time scheduling needs Linux, and this is {sys.platform}; leave out --realtime.")
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY))
    except PermissionError:
        raise UnsupportedError(
            "Real-time scheduling was asked for, and this user may not have it; run as root, let an administrator "
            f"allow it (rtprio {PRIORITY} in /etc/security/limits.conf, or CAP_SYS_NICE), or leave out --realtime."
        ) from None
    try:
        yield
    finally:
        os.sched_setscheduler(0, *before)
