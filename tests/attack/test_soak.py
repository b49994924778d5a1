"""A stream that does not end: what a frame leaves behind in memory, and what the ledger says it keeps."""

import gc
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.attack.small_bundles import counter_bundle, ones
from trt_compress.runtime.session import Session
from trt_compress.runtime.stream.frame import ROWS_KEPT, Frame, Ledger
from trt_compress.runtime.stream.levels import levels_from_sessions
from trt_compress.runtime.stream.parts import Item
from trt_compress.runtime.stream.pipeline import Settings
from trt_compress.runtime.stream.run import StreamOptions, run_stream
from trt_compress.runtime.stream.sinks import JsonLines
from trt_compress.runtime.stream.watcher import Watcher

PAGE = 4096
MIB = 1 << 20


class Endless:
    """Frames that come for as long as the soak lasts; every thousandth is damaged."""

    name = "endless"
    live = False
    length: int | None = None

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._end = 0.0
        self._count = 0

    def open(self) -> None:
        self._end = time.monotonic() + self._seconds
        self._count = 0

    def read(self) -> Item | None:
        self._count += 1
        if time.monotonic() > self._end:
            return None
        if self._count % 1000 == 0:
            return Item(error="damaged")
        return Item(data=ones(self._count % 7), capture_ns=self._count * 1_000_000)

    def close(self) -> None:
        pass


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the system does not say what is in memory")
def test_memory_is_flat_after_the_first_minute(attack: Any, tmp_path: Path) -> None:
    seconds = 330.0 if attack.long else 6.0
    first = 60.0 if attack.long else 1.5
    seen: list[tuple[float, int, int]] = []  # time, frames, bytes
    begin = time.monotonic()

    def progress(frames: int) -> None:
        now = time.monotonic()
        if not seen or now - seen[-1][0] > seconds / 60:
            seen.append((now, frames, resident()))

    with Session.open(counter_bundle(tmp_path / "b"), threads=1, spin=False) as session:
        result = run_stream(
            levels_from_sessions([session]),
            Endless(seconds),
            options=StreamOptions(settings=Settings(deadline_ns=1_000_000)),
            sinks=[JsonLines("/dev/null")],
            watchers=[Watcher(heard=False, live=False)],
            progress=progress,
        )
    counts = result.counts
    late = [(frames, size) for at, frames, size in seen if at - begin > first]
    frames = np.array([number for number, _ in late], float)
    sizes = np.array([size for _, size in late], float)
    growth = float(np.polyfit(frames, sizes, 1)[0]) * 1000  # bytes a thousand frames
    attack.saw(
        cases=counts.frames_in,
        bytes_grown_per_1000_frames=round(growth),
        grown_after_the_first_minute_mib=round(float(sizes[-1] - sizes[0]) / MIB, 2),
        resident_mib=round(float(sizes[-1]) / MIB),
        accounting_wrong=int(counts.frames_in != counts.delivered + counts.dropped + counts.failed),
    )
    assert counts.failed == counts.frames_in // 1000 and counts.delivered == counts.frames_in - counts.failed
    assert sizes[-1] - sizes[0] < 2 * MIB and growth < 2_000 * (1 if attack.long else 100), attack.figures


@pytest.mark.parametrize("expected", [None, 1000])
def test_the_ledger_holds_what_it_says_and_no_frame_waits_for_it(attack: Any, expected: int | None) -> None:
    count = attack.count(ROWS_KEPT // 20, 2 * ROWS_KEPT)
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        ledger = Ledger(0, expected=expected)
        laid_out = tracemalloc.get_traced_memory()[0] - before
        for number in range(count):
            frame = Frame(id=number, source="s", arrival_ns=number, start_ns=number, mark_ns=number)
            frame.stage_ns = {"decode": number, "session": number * 3}
            frame.level = f"level {number % 3}"
            ledger.enter(frame)
            ledger.settle(frame, "failed" if number % 5 == 0 else "delivered", number + 9, f"reason {number % 1000}")
        held = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    attack.saw(held_bytes=held, bytes_a_row=round(held / ROWS_KEPT, 1))
    assert ledger.counts().frames_in == count
    assert held <= 160 * ROWS_KEPT + MIB  # what ROWS_KEPT says; the names of reasons, and what else the tests hold
    assert expected is not None or held - laid_out < MIB  # nothing comes with the frames
