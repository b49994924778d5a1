"""Sinks, stages and sources that stop, in every place where they can: the stream ends, with a sentence and a result."""

import itertools
import json
import os
import re
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.attack.small_bundles import Around, counter_bundle, ones
from trt_compress.errors import StreamError
from trt_compress.runtime.session import Session
from trt_compress.runtime.stream.branch import Branch
from trt_compress.runtime.stream.calls import THREADS
from trt_compress.runtime.stream.frame import Frame
from trt_compress.runtime.stream.levels import levels_from_sessions
from trt_compress.runtime.stream.pace import Pace
from trt_compress.runtime.stream.parts import Item
from trt_compress.runtime.stream.pipeline import Settings
from trt_compress.runtime.stream.result import OverlayCounts, StreamResult
from trt_compress.runtime.stream.run import StreamOptions, run_stream

STALL_S = 0.4
FRAMES = 60
PLACES = (
    "source open", "source read", "source close", "session", "sink open", "sink deliver", "sink skip", "sink close",
    "overlay deliver", "overlay skip", "overlay close", "watcher deliver", "progress",
)  # fmt: skip


class Hang:
    """Does not come back from one call in one place, until the test is over."""

    def __init__(self, place: str, frame: int) -> None:
        self.place, self.frame = place, frame
        self.over, self.there = threading.Event(), threading.Event()

    def at(self, place: str, frame: int) -> None:
        if place == self.place and frame == self.frame:
            self.there.set()
            self.over.wait(60)


class Numbers:
    """A source of damaged and good frames."""

    name = "numbers"
    live = False

    def __init__(self, hang: Hang, bad: int) -> None:
        self.hang, self.bad = hang, bad
        self.length: int | None = FRAMES
        self._next = 0

    def open(self) -> None:
        self.hang.at("source open", 0)
        self._next = 0

    def read(self) -> Item | None:
        number, self._next = self._next, self._next + 1
        self.hang.at("source read", number)
        if number >= FRAMES:
            return None
        return Item(error="damaged") if number == self.bad else Item(data=ones())

    def close(self) -> None:
        self.hang.at("source close", 0)


class Lines:
    """A sink that remembers what it was given, and who called it."""

    def __init__(self, hang: Hang, kind: str) -> None:
        self.name = kind
        self.hang = hang
        self.told: list[int] = []
        self.closed = False
        self.inside = 0
        self.together = False

    def _at(self, place: str, frame: int = 0) -> None:
        self.together |= self.inside > 0
        self.inside += 1
        try:
            self.hang.at(f"{self.name} {place}", frame)
        finally:
            self.inside -= 1

    @property
    def counts(self) -> OverlayCounts:
        return OverlayCounts(drawn=len(self.told), behind=0, without_result=0)

    def open(self) -> None:
        self._at("open")

    def start(self, origin_ns: int) -> None:
        pass

    def deliver(self, frame: Frame, now_ns: int) -> None:
        self._at("deliver", frame.id)
        self.told.append(frame.id)

    def skip(self, frame: Frame) -> None:
        self._at("skip", frame.id)
        self.told.append(frame.id)

    def close(self) -> None:
        self._at("close")
        self.closed = True


@pytest.fixture(scope="module")
def open_session(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Session]:
    """A session of its own for each stream: one that hangs keeps its states."""
    bundle = counter_bundle(tmp_path_factory.mktemp("bundle") / "b")
    return lambda: Session.open(bundle, threads=1, spin=False)


def stream(session: Session, hang: Hang, *, bad: int, fps: float | None, interrupt: bool) -> tuple[Any, ...]:
    """Run a stream that hangs; the result, the error, the seconds it took, and the sinks."""
    sink, overlay, watcher = (Lines(hang, kind) for kind in ("sink", "overlay", "watcher"))
    other = Lines(Hang("", -1), "other")
    ran = itertools.count(-4)  # warm-up

    def before() -> None:
        number = next(ran)
        if number > 0:
            hang.at("session", number - (number <= bad))

    Around(session, "model", before)
    pace = Pace() if fps is None else Pace(kind="fixed rate", fps=fps)
    asked = threading.Event()
    if interrupt:
        threading.Thread(target=lambda: hang.there.wait(30) and (time.sleep(0.05), asked.set()), daemon=True).start()
    begin, error = time.monotonic(), None
    try:
        result = run_stream(
            levels_from_sessions([session]),
            Numbers(hang, bad),
            options=StreamOptions(settings=Settings(pace=pace, stall_s=60 if interrupt else STALL_S)),
            sinks=[Branch(overlay), sink, other],
            watchers=[watcher],
            progress=lambda frames: hang.at("progress", frames - 1),
            interrupt=asked,
            hurry=asked,
        )
    except StreamError as broken:
        error, result = broken, broken.result
    return result, error, time.monotonic() - begin, (sink, overlay, watcher, other)


@pytest.fixture
def hangs() -> Iterator[list[Hang]]:
    made: list[Hang] = []
    yield made
    for hang in made:
        hang.over.set()


def cases(attack: Any, seed: int, few: int, many: int) -> Iterator[tuple[str, int, int, float | None]]:
    random = attack.random(seed)
    for number in range(attack.count(few, many)):
        place = PLACES[number % len(PLACES)]
        bad = random.randrange(1, FRAMES - 1)
        frame = bad if place.endswith("skip") else 0
        if place.endswith(("read", "deliver", "session", "progress")):
            frame = random.choice([n for n in range(1, FRAMES) if n != bad])
        yield place, frame, bad, random.choice([None, 2000.0, 100_000.0])


@pytest.mark.parametrize("how", ["stall", "interrupt"])
def test_whatever_hangs_the_stream_ends_with_a_result(
    attack: Any, open_session: Callable[[], Session], hangs: list[Hang], how: str
) -> None:
    missing = wrong = hung = 0
    for place, frame, bad, fps in cases(attack, 6 if how == "stall" else 7, len(PLACES), 12 * len(PLACES)):
        hang = Hang(place, frame)
        hangs.append(hang)
        result, error, took, sinks = stream(open_session(), hang, bad=bad, fps=fps, interrupt=how == "interrupt")
        where = f"{place} at {frame}, bad {bad}, fps {fps}: {error}"
        hung += took > 8
        if not isinstance(result, StreamResult):
            missing += 1
            print("no result:", where)
            continue
        counts = result.counts
        ok = counts.frames_in == counts.delivered + counts.dropped + counts.failed == len(result.frames.id)
        told = sinks[3].told  # a sink that hangs nowhere hears of every frame, once
        ok &= sorted(told) == list(range(counts.frames_in)) and (sinks[3].closed or not counts.frames_in)
        ok &= not any(sink.together for sink in sinks)
        if how == "stall":
            ok &= result.ended == "error" and error is not None and error.exit_code == 2
            ok &= f"{STALL_S:g} s" in str(error) and "--stall-s" in str(error)
            ok &= place.split()[0] in str(error) and (not frame or str(frame) in str(error))
        elif not place.endswith("close") and "overlay" not in place:  # else the stream may have been over before
            ok &= result.ended == "interrupted" and error is None
        if not ok:
            print("wrong:", where, counts, sorted(told)[-3:], result.ended)
        wrong += not ok
        hang.over.set()
    attack.saw(result_missing=missing, accounting_wrong=wrong, hung=hung)
    assert (missing, wrong, hung) == (0, 0, 0)


def test_what_comes_back_late_changes_nothing(open_session: Callable[[], Session], hangs: list[Hang]) -> None:
    hang = Hang("sink deliver", 20)
    hangs.append(hang)
    result, _, _, (sink, overlay, _, other) = stream(open_session(), hang, bad=5, fps=2000.0, interrupt=False)
    before = result.to_text(), list(sink.told), list(overlay.told), list(other.told)
    hang.over.set()
    deadline, names = time.monotonic() + 60, [f"{THREADS}{number}" for number in range(3)]
    while time.monotonic() < deadline and any(one.name in names for one in threading.enumerate()):
        time.sleep(0.01)
    assert (result.to_text(), overlay.told, other.told) == (before[0], before[2], before[3])
    assert set(sink.told) - set(before[1]) <= {20}  # the call that it was in


# As a user types it.

SLOW = "import sys,time\nwhile sys.stdin.buffer.readline(): time.sleep(0.02)\n"
STALLED = "import sys,time\nsys.stdin.buffer.read(1); time.sleep({})\n"
CLOSED = "import sys\nsys.stdin.buffer.readline()\n"


def typed(bundle: Path, folder: Path, *arguments: str, reader: str | None = None, out: str = "/dev/stdout") -> Any:
    """Run `trt-compress run` with a reader on its stdout; code, result, stderr, seconds."""
    command = [sys.executable, "-m", "trt_compress", "run", str(bundle), "--source", str(folder / "scene.npz")]
    command += ["--report", str(folder / "report"), "--out", out, "--threads", "1", *arguments]
    begin = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ)
    assert process.stdout is not None and process.stderr is not None
    if reader is not None:
        other = subprocess.Popen([sys.executable, "-c", reader], stdin=process.stdout)
        process.stdout.close()
        err = process.stderr.read().decode()
        process.wait(60)
        took = time.monotonic() - begin
        other.kill()
        other.wait(120)
        process.stderr.close()
    else:
        err = process.communicate(timeout=300)[1].decode()
        took = time.monotonic() - begin
    return process.returncode, StreamResult.read(folder / "report" / "result.json"), err, took


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    x = np.ones((1500, 64), np.float32)
    np.savez(tmp_path / "scene.npz", x=x)
    return tmp_path


def test_a_reader_that_stops_ends_the_stream(scene: Path) -> None:
    bundle = counter_bundle(scene / "b").path
    code, result, err, took = typed(bundle, scene, "--stall-s", "1", reader=STALLED.format(60))
    assert code == 2 and result.ended == "error" and took < 20
    assert "stayed in 'sink' for 1 s: '/dev/stdout' took nothing more" in err and "Traceback" not in err
    counts = result.counts
    assert counts.failed == 1 and counts.reasons["'sink' did not come back"] == 1 and counts.delivered > 20


@pytest.mark.parametrize("out", [False, True])
def test_a_report_that_finds_a_full_disk_takes_neither_the_result_nor_the_first_error_with_it(
    scene: Path, out: bool
) -> None:
    command = [sys.executable, "-m", "trt_compress", "run", str(counter_bundle(scene / "b").path), "--json"]
    command += ["--source", str(scene / "scene.npz"), "--report", str(scene / "report"), "--threads", "1"]
    command += ["--out", str(scene / "out.jsonl")] * out
    limit = resource.RLIMIT_FSIZE, (6000, 6000)  # less than the result of a few frames
    done = subprocess.run(command, preexec_fn=lambda: resource.setrlimit(*limit), capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert re.search(r"report/result\.(report\.)?json' cannot be written \(File too large\); ", done.stderr)
    assert ("out.jsonl' cannot be written any more (File too large)" in done.stderr) == out
    found = json.loads(done.stdout)
    assert found["counts"]["delivered"] > 0 and found["error"]["exit_code"] == 2
    assert not [path for path in (scene / "report").iterdir() if path.name != "result.json"]


def test_what_is_started_without_stdin_stdout_and_stderr_writes_its_files_and_nothing_else_into_them(
    scene: Path,
) -> None:
    command = [sys.executable, "-m", "trt_compress", "run", str(counter_bundle(scene / "b").path), "--threads", "1"]
    command += ["--source", str(scene / "scene.npz"), "--frames", "50", "--out", str(scene / "out.jsonl")]
    command += ["--report", str(scene / "report")]
    done = subprocess.run(command, preexec_fn=lambda: os.closerange(0, 3), timeout=300, check=False)
    assert done.returncode == 0
    assert StreamResult.read(scene / "report" / "result.json").counts.delivered == 50
    lines = (scene / "out.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == list(range(50))


def test_a_reader_that_is_gone_is_said(scene: Path) -> None:
    code, result, err, _ = typed(counter_bundle(scene / "b").path, scene, reader=CLOSED)
    assert code == 2 and result.ended == "error" and "'/dev/stdout' is read no more (Broken pipe)" in err
    assert "Traceback" not in err and "Exception ignored" not in err


@pytest.mark.parametrize("policy", ["block", "latest"])
def test_a_slow_reader_slows_down_or_drops_as_the_policy_says(scene: Path, policy: str) -> None:
    arguments = ("--fps", "1000", "--frames", "200", "--policy", policy)
    code, result, err, _ = typed(counter_bundle(scene / "b").path, scene, *arguments, reader=SLOW)
    counts = result.counts
    assert code == 0, err
    assert counts.frames_in == 200 == counts.delivered + counts.dropped
    assert (counts.dropped == 0) == (policy == "block")


def test_a_full_disk_fails_the_frame_that_did_not_fit(scene: Path) -> None:
    code, result, err, _ = typed(counter_bundle(scene / "b").path, scene, out="/dev/full")
    assert code == 2 and "'/dev/full' cannot be written any more (No space left on device)" in err
    assert (result.counts.delivered, result.counts.failed) == (0, 1)


def test_a_pipe_that_nobody_reads_is_said_at_once(scene: Path) -> None:
    os.mkfifo(scene / "fifo")
    command = [sys.executable, "-m", "trt_compress", "run", str(counter_bundle(scene / "b").path), "--json"]
    command += ["--source", str(scene / "scene.npz"), "--out", str(scene / "fifo")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and "fifo' cannot be written (no program reads from it)" in done.stderr
    assert json.loads(done.stdout)["error"]["exit_code"] == 2
