"""Signals at any moment of `trt-compress run`: its result is there, and every frame is in it."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile

from tests.attack.small_bundles import PICTURES, SOUND, counter_bundle
from trt_compress.runtime.stream.result import StreamResult

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="the system does not say who has handlers"
)

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LIMIT_S = 60.0
FRAMES = 50
LASTS_S = 1.5  # about: the start, and then the stream with its report

AT = """
import os, sys, threading
number, file, name, times = int(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
del sys.argv[1:5]
left = [times]
def look(frame, event, arg):
    if event == "call" and left[0] and frame.f_code.co_name == name and frame.f_code.co_filename.endswith(file):
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), number)
from trt_compress.__main__ import main
sys.setprofile(look)
threading.setprofile(look)
main()
"""

OWN_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""

PLACES = [  # file, function, which call of it
    ("numpy/__init__.py", "<module>", 1),
    ("onnxruntime/__init__.py", "<module>", 1),
    ("runtime/session.py", "open", 1),
    ("stream/guard.py", "call", 1),
    ("stream/run.py", "_warm_up", 1),
    ("stream/sinks.py", "open", 1),
    ("stream/pipeline.py", "_read_source", 1),
    ("stream/sinks.py", "deliver", 17),
    ("stream/pipeline.py", "_close_parts", 1),
    ("trt_compress/files.py", "write_whole", 1),
    ("stream/listener.py", "sound", 1),
    ("report/write.py", "write_all", 1),
    ("tools/report/stream_tables.py", "print_stream", 1),
]


@dataclass(frozen=True)
class Scene:
    """Bundles and sources."""

    folder: Path
    video: Sequence[str]
    audio: Sequence[str]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    folder = tmp_path_factory.mktemp("signals")
    pictures = counter_bundle(folder / "pictures", **PICTURES).path
    sound = counter_bundle(folder / "sound", **SOUND).path
    with av.open(str(folder / "v.mp4"), "w") as container:
        made: Any = container.add_stream("libx264", rate=25)
        made.height, made.width, made.pix_fmt = 48, 64, "yuv420p"
        for number in range(FRAMES):
            image = np.full((48, 64, 3), 4 * number, np.uint8)
            container.mux(made.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(made.encode())
    noise = np.random.default_rng(0).normal(0, 0.1, FRAMES * 800).astype(np.float32)
    soundfile.write(folder / "a.wav", noise, 16000)
    return Scene(
        folder, (str(pictures), "--source", str(folder / "v.mp4")), (str(sound), "--source", str(folder / "a.wav"))
    )


@pytest.fixture(autouse=True)
def heard() -> Iterator[None]:
    """A test run that is started in the background ignores signals, and its children would too."""
    ignored = [number for number in NUMBERS if signal.getsignal(number) is signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, signal.SIG_DFL)
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


class Run:
    """One run as a user types it, and what it left."""

    def __init__(
        self, folder: Path, bundle: Sequence[str], *, overlay: bool, start: Sequence[str] = ("-m", "trt_compress")
    ):
        folder.mkdir()
        self.folder = folder
        command = [sys.executable, *start, "run", *bundle, "--fps", "50", "--threads", "1"]
        command += ["--report", str(folder / "r"), "--out", str(folder / "o.jsonl")]
        command += ["--overlay", str(folder / "o.mp4")] if overlay else []
        with open(folder / "out", "wb") as out, open(folder / "err", "wb") as err:
            self.process = subprocess.Popen(command, stdout=out, stderr=err, stdin=subprocess.DEVNULL)

    def wait_for_handlers(self) -> None:
        """Before that moment no program can know of a signal."""
        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline and self.process.poll() is None:
            status = Path(f"/proc/{self.process.pid}/status").read_text()
            caught = next(line for line in status.splitlines() if line.startswith("SigCgt"))
            if int(caught.split()[1], 16) & (1 << (signal.SIGHUP - 1)):
                return
            time.sleep(0.001)

    def wait_for_frames(self) -> None:
        """The stream has begun."""
        lines = self.folder / "o.jsonl"
        deadline = time.monotonic() + LIMIT_S
        while (
            time.monotonic() < deadline
            and self.process.poll() is None
            and not (lines.exists() and lines.stat().st_size)
        ):
            time.sleep(0.005)

    def end(self) -> bool:
        """Wait for its end; False if it had to be killed."""
        try:
            self.process.wait(LIMIT_S)
            return True
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return False

    @property
    def error(self) -> str:
        return (self.folder / "err").read_text()

    def result(self) -> StreamResult | None:
        path = self.folder / "r" / "result.json"
        return StreamResult.read(path) if path.exists() else None

    def problems(self, signals: int) -> list[str]:
        """What is wrong with what it left, after so many signals."""
        code, result, found = self.process.returncode, self.result(), []
        if code not in (0, 130) and not (signals >= 3 and code in [128 + number for number in NUMBERS]):
            found.append(f"code {code}")
        if "Traceback" in self.error or "Exception ignored" in self.error:
            found.append("traceback")
        begun = (self.folder / "o.jsonl").exists()
        if result is None:
            # A second signal while the bundle is opened leaves no stream to tell of; a third waits for nothing.
            if signals == 1 or (signals == 2 and begun):
                found.append("missing")
            return found
        counts = result.counts
        if (
            counts.frames_in != counts.delivered + counts.dropped + counts.failed
            or len(result.frames.id) != counts.frames_in
        ):
            found.append("accounting")
        lines = (self.folder / "o.jsonl").read_text().splitlines() if begun else []
        told = sorted(json.loads(line)["id"] for line in lines)
        outcomes = {json.loads(line)["id"]: json.loads(line)["outcome"] for line in lines}
        if signals < 3 and told != list(range(counts.frames_in)):
            found.append(f"accounting: {counts.frames_in} frames and {len(told)} lines")
        if [outcomes.get(n) for n in result.frames.id if n in outcomes] != [
            outcome for n, outcome in zip(result.frames.id, result.frames.outcome, strict=True) if n in outcomes
        ]:
            found.append("accounting: outcomes")
        if list(self.folder.glob("r/.*")) and signals < 3:
            found.append("strays")
        return found


def tally(attack: Any, found: list[tuple[str, Run, bool, list[str]]]) -> None:
    """Put what was found into the record, and refuse it if it is anything."""
    missing = sum("missing" in problems for _, _, _, problems in found)
    accounting = sum(any("accounting" in one for one in problems) for _, _, _, problems in found)
    hung = sum(not ended for _, _, ended, _ in found)
    ended = [run.result() for _, run, _, _ in found]
    assert any(result is not None and result.ended == "interrupted" for result in ended)
    attack.saw(
        result_missing=missing,
        accounting_wrong=accounting,
        hung=hung,
        interrupted=sum(result is not None and result.ended == "interrupted" for result in ended),
        before_the_first_frame=sum(result is not None and not result.counts.frames_in for result in ended),
    )
    wrong = [f"{what}: {problems}\n{run.error}" for what, run, ok, problems in found if problems or not ok]
    assert not wrong, "\n".join(wrong)


def test_a_stream_that_signals_end_has_its_result(attack: Any, scene: Scene, tmp_path: Path) -> None:
    random = attack.random(11)
    cases = [
        (
            number,
            [random.choice(NUMBERS) for _ in range(random.choice([1, 1, 1, 2, 2, 3]))],
            random.random() < 0.6,
            random.uniform(0, LASTS_S),
            random.choice([0.06, 0.2, 0.6]),
        )
        for number in range(attack.count(4, 150))
    ]

    def one(case: tuple[int, list[signal.Signals], bool, float, float]) -> tuple[str, Run, bool, list[str]]:
        number, signals, begun, moment, pause = case
        video = number % 2 == 0
        run = Run(tmp_path / str(number), scene.video if video else scene.audio, overlay=video and number % 4 == 0)
        run.wait_for_handlers()
        if begun:
            run.wait_for_frames()
        time.sleep(moment)
        for sent in signals:
            if run.process.poll() is None:
                run.process.send_signal(sent)
                time.sleep(pause)
        ended = run.end()
        after = "frames" if begun else "handlers"
        names = [one.name for one in signals]
        what = f"case {number}, {names} {moment:.2f} s after its {after}, {pause} s apart"
        return what, run, ended, run.problems(len(signals))

    with ThreadPoolExecutor(2) as pool:
        tally(attack, list(pool.map(one, cases)))


def test_a_signal_at_each_place_is_followed_by_a_result(attack: Any, scene: Scene, tmp_path: Path) -> None:
    random = attack.random(12)
    count = attack.count(3, 3 * len(PLACES))
    cases = [
        (number, PLACES[number % len(PLACES)], NUMBERS[number // len(PLACES) % 3]) for number in range(3 * len(PLACES))
    ]
    cases = cases if count == len(cases) else random.sample(cases, count)

    def one(case: tuple[int, tuple[str, str, int], signal.Signals]) -> tuple[str, Run, bool, list[str]]:
        number, (file, name, times), sent = case
        video = file != "stream/listener.py" and number % 2 == 0
        start = ("-c", AT, str(int(sent)), file, name, str(times))
        run = Run(tmp_path / str(number), scene.video if video else scene.audio, overlay=False, start=start)
        ended = run.end()
        problems = run.problems(1)
        if run.process.returncode != 130:
            problems.append(f"code {run.process.returncode}: the signal was not noted")
        return f"{sent.name} at {file}: {name}", run, ended, problems

    with ThreadPoolExecutor(2) as pool:
        tally(attack, list(pool.map(one, cases)))


@pytest.mark.parametrize("sent", NUMBERS)
def test_a_signal_is_not_lost_where_it_is_known_that_the_command_is_no_stream(sent: signal.Signals) -> None:
    program = (
        f"from trt_compress.tools.cli import signals; import os; signals.hold(); os.kill(os.getpid(), {int(sent)})"
    )
    done = subprocess.run([sys.executable, "-c", f"{program}; signals.let_go()"], capture_output=True, check=False)
    assert done.returncode == -sent, done.stderr


def test_a_signal_that_is_ignored_at_the_start_stays_ignored(scene: Scene, tmp_path: Path) -> None:
    start = (
        "-c",
        f"import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n{AT}",
        "1",
        "stream/sinks.py",
        "deliver",
        "9",
    )
    run = Run(tmp_path / "nohup", scene.audio, overlay=False, start=start)
    assert run.end() and run.process.returncode == 0, run.error
    result = run.result()
    assert result is not None and result.ended == "end of source" and result.counts.delivered == FRAMES


def test_a_terminal_that_closes_takes_no_result_with_it(scene: Scene, tmp_path: Path) -> None:
    """HUP comes, and nothing can be said any more."""
    command = ["-m", "trt_compress", "run", *scene.audio, "--fps", "25", "--report", str(tmp_path / "r")]
    ours, theirs = pty.openpty()
    start = [sys.executable, "-c", OWN_TERMINAL, *command]
    process = subprocess.Popen(start, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    deadline, said = time.monotonic() + LIMIT_S, b""
    while b" frames" not in said and time.monotonic() < deadline:
        said += os.read(ours, 4096)
    os.close(ours)
    process.wait(LIMIT_S)
    result = StreamResult.read(tmp_path / "r" / "result.json")
    assert result.ended == "interrupted" and 0 < result.counts.frames_in < FRAMES
