"""What a stream writes as it goes: nothing is lost before it starts, and a kill leaves what can be read."""

import json
import resource
import signal
import subprocess
import sys
import wave
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from av.error import FFmpegError

from tests.processes import environment
from tests.runtime.stream.media import picture
from trt_compress.errors import StreamError
from trt_compress.runtime.stream.frame import Frame
from trt_compress.runtime.stream.overlay import Overlay
from trt_compress.runtime.stream.parts import Sink
from trt_compress.runtime.stream.sinks import JsonLines, SoundSink


def sound(path: Path) -> SoundSink:
    return SoundSink(path, output="sound", sample_rate=8000)


def frame_of(number: int) -> Frame:
    frame = Frame(id=number, source="s", arrival_ns=10, start_ns=11, mark_ns=12, data=picture(9, 64, 96), summary={})
    frame.outputs = {"sound": np.full((1, 800), 0.5, np.float32)}
    return frame


@pytest.mark.parametrize(("make", "name"), [(JsonLines, "r.jsonl"), (sound, "s.wav"), (Overlay, "o.mp4")])
def test_what_was_there_stays_until_the_stream_starts(tmp_path: Path, make: Callable[[Path], Sink], name: str) -> None:
    old, new = tmp_path / name, tmp_path / f"new-{name}"
    old.write_text("what was there")
    for path in (old, new):  # another sink may not open, or the source may stay silent
        sink = make(path)
        sink.open()
        sink.close()
    assert old.read_text() == "what was there" and not new.exists()
    sink = make(old)
    sink.open()
    sink.start(0)
    sink.deliver(frame_of(0), 0)
    sink.close()
    assert b"what was there" not in old.read_bytes() and old.stat().st_size > 40


def test_a_stream_without_frames_leaves_no_old_results(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text("what was there")
    sink = JsonLines(path)
    sink.open()
    sink.start(0)
    sink.close()
    assert path.read_bytes() == b""


def test_a_full_disk_leaves_no_half_line(tmp_path: Path) -> None:
    sink = JsonLines(tmp_path / "r.jsonl")
    sink.open()
    sink.start(0)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(StreamError, match="cannot be written any more"):
            for number in range(100):
                sink.deliver(frame_of(number), 0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    sink.close()
    lines = (tmp_path / "r.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == list(range(len(lines))) and lines


_KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from tests.runtime.stream.test_files_that_grow import frame_of, sound
from trt_compress.runtime.stream.overlay import Overlay
from trt_compress.runtime.stream.sinks import JsonLines
folder = Path(sys.argv[1])
sinks = [JsonLines(folder / "r.jsonl"), sound(folder / "s.wav"), *(Overlay(folder / name) for name in sys.argv[2:])]
for sink in sinks:
    sink.open()
    sink.start(0)
for number in range(120):
    frame = frame_of(number)
    frame.data = np.random.default_rng(number).integers(0, 255, (96, 128, 3), np.uint8)
    for sink in sinks:
        sink.deliver(frame, 0)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_kill_leaves_files_that_can_be_read(tmp_path: Path) -> None:
    videos = ["o.mp4" if av.library_versions["libavformat"] >= (61, 7, 0) else "o.mkv"]
    command = [sys.executable, "-c", _KILLED, str(tmp_path), *videos]
    done = subprocess.run(
        command,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert [json.loads(line)["id"] for line in (tmp_path / "r.jsonl").read_text().splitlines()] == list(range(120))
    with wave.open(str(tmp_path / "s.wav")) as file:
        assert file.getnframes() == 120 * 800 and len(file.readframes(120 * 800)) == 2 * 120 * 800
    for name in videos:
        shown = 0
        with av.open(str(tmp_path / name)) as container:
            try:
                for _ in container.decode(video=0):
                    shown += 1
            except FFmpegError:  # the packet that was cut
                pass
        assert shown >= 30, f"{name}: {shown} of 120 pictures"
