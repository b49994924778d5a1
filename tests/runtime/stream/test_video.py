"""Videos: whole ones give every frame, broken ones an error or a frame that failed, never less without a word."""

import socket
import threading
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from media import cut, picture, write_video
from stream_parts import WAIT_S, by_outcome, identity_stages, run_pipeline

from trt_compress.errors import ConfigError, StreamError, UnsupportedError
from trt_compress.runtime.stream.pace import MonotonicClock, Pace
from trt_compress.runtime.stream.parts import Item
from trt_compress.runtime.stream.video import VideoSource


def open_video(path: object, stall_s: float = 5.0) -> VideoSource:
    source = VideoSource(str(path), MonotonicClock(), stall_s)
    source.open()
    return source


def read_all(source: VideoSource) -> list[Item]:
    items = []
    while (item := source.read()) is not None:
        items.append(item)
    return items


def brightness(items: list[Item]) -> list[int]:
    return [round(float(item.data.mean()) / 16) for item in items]


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.avi", "mpeg4")])
def test_a_video_gives_every_frame_in_order_and_again_when_opened_again(tmp_path: Path, name: str, codec: str) -> None:
    source = open_video(write_video(tmp_path / name, 12, codec=codec))
    for _ in range(2):
        items = read_all(source)
        assert brightness(items) == list(range(12))
        assert all(item.data.shape == (48, 64, 3) and item.data.dtype == np.uint8 for item in items)
        # 25 frames a second; formats shift the start.
        stamps = [item.capture_ns or 0 for item in items]
        assert np.diff(stamps).tolist() == [40_000_000] * 11
        source.close()
        source.open()
    source.close()


def test_colours_are_rgb(tmp_path: Path) -> None:
    path = tmp_path / "red.mp4"
    red = np.zeros((48, 64, 3), np.uint8)
    red[..., 0] = 200
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(red, format="rgb24")))
        container.mux(stream.encode())
    (item,) = read_all(open_video(path))
    assert np.abs(item.data.astype(int) - red).max() <= 4


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [("a.mp4", "libx264", {"movflags": "faststart"}), ("a.mkv", "libx264", {}), ("a.avi", "mpeg4", {})],
)
def test_a_truncated_file_ends_with_an_error_after_its_frames(
    tmp_path: Path, name: str, codec: str, options: dict[str, str]
) -> None:
    path = cut(write_video(tmp_path / name, 40, codec=codec, options=options), 0.8)
    stages = identity_stages(preprocess=lambda data: {"x": np.float32(data.mean())})
    finished, sink = run_pipeline(VideoSource(str(path), MonotonicClock(), 5.0), stages)
    counts = finished.ledger.counts()
    assert finished.error is not None and finished.error.exit_code == 2
    assert "of 40 frames: the file is truncated; copy it again." in finished.error.message
    assert 3 < counts.delivered < 39 and counts.dropped == 0
    assert counts.frames_in == counts.delivered + counts.failed


def test_a_file_cut_before_its_index_cannot_be_opened(tmp_path: Path) -> None:
    path = cut(write_video(tmp_path / "a.mp4"), 0.5)
    with pytest.raises(ConfigError, match=r"'.*' cannot be opened \(Invalid data found.*\); check that it is a video"):
        open_video(path)


def test_damaged_packets_are_frames_that_failed(tmp_path: Path) -> None:
    """Every packet is a whole picture here, so damage does not spread, and which frames are hit is known."""
    path = write_video(tmp_path / "a.avi", 20, codec="mjpeg")
    data = bytearray(path.read_bytes())
    starts = [
        at for at in range(len(data) - 4) if data[at : at + 4] == b"00dc" and data[at + 8 : at + 10] == b"\xff\xd8"
    ]
    assert len(starts) == 20
    for number in (4, 9):
        start = starts[number] + 8
        length = int.from_bytes(data[start - 4 : start], "little")
        data[start : start + length] = bytes(length)
    path.write_bytes(bytes(data))
    stages = identity_stages(preprocess=lambda data: {"x": np.float32(data.mean())})
    finished, sink = run_pipeline(VideoSource(str(path), MonotonicClock(), 5.0), stages)
    assert finished.ended == "end of source"
    assert by_outcome(finished)["failed"] == [4, 9]
    assert sum(finished.ledger.counts().reasons.values()) == 2
    values = [round(summary["results"][0]["value"] / 16) for summary in sink.summaries]
    assert values == [n % 16 for n in range(20) if n not in (4, 9)]


def test_random_bytes_are_no_video(tmp_path: Path) -> None:
    path = tmp_path / "noise.mp4"
    path.write_bytes(np.random.default_rng(0).bytes(5000))
    with pytest.raises(ConfigError, match="cannot be opened"):
        open_video(path)


def test_a_change_of_resolution_ends_the_stream(tmp_path: Path) -> None:
    """An MPEG transport stream is joined by joining files."""
    path = tmp_path / "joined.ts"
    parts = [write_video(tmp_path / f"{n}.ts", 15, size=size) for n, size in enumerate([(48, 64), (64, 96)])]
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    stages = identity_stages(preprocess=lambda data: {"x": np.float32(data.mean())})
    finished, sink = run_pipeline(VideoSource(str(path), MonotonicClock(), 5.0), stages)
    assert finished.error is not None
    assert "changes from 64x48 to 96x64 pixels; one stream has one resolution" in finished.error.message
    assert finished.error.message.startswith(f"The source '{path}' failed at frame {len(sink.delivered)}: ")
    assert 10 <= finished.ledger.counts().delivered <= 15


def test_a_sound_file_has_no_video(tmp_path: Path) -> None:
    from media import write_wav

    with pytest.raises(ConfigError, match="has no video stream; give a file with one"):
        open_video(write_wav(tmp_path / "a.wav", np.zeros(100)))


def test_a_camera_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match=r"'camera:97' cannot be opened \(.+\); check that it is a camera that this"):
        open_video("camera:97")


def serve(data: bytes, *, hold: threading.Event | None = None) -> int:
    """Send bytes to whoever connects to the port that is returned; with `hold`, stay silent after them until then."""
    server = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        connection, _ = server.accept()
        with server, connection:
            try:
                connection.sendall(data)
                if hold is not None:
                    hold.wait(WAIT_S)
            except OSError:
                pass  # the other side had enough

    threading.Thread(target=answer, daemon=True).start()
    return int(server.getsockname()[1])


def test_a_network_stream_is_live(tmp_path: Path) -> None:
    port = serve(write_video(tmp_path / "a.ts", 30).read_bytes())
    source = VideoSource(f"tcp://127.0.0.1:{port}", MonotonicClock(), 5.0)
    stages = identity_stages(preprocess=lambda data: {"x": np.float32(data.mean())})
    finished, sink = run_pipeline(source, stages, pace=Pace(kind="live"))
    assert source.live and finished.ended == "end of source"
    values = [round(summary["results"][0]["value"] / 16) for summary in sink.summaries]
    assert values == [n % 16 for n in range(30)]
    frames = finished.ledger.frames()
    assert all(arrival == start for arrival, start in zip(frames.arrival_ns, frames.start_ns, strict=True))


def test_a_network_stream_that_falls_silent_is_reported(tmp_path: Path) -> None:
    hold = threading.Event()
    port = serve(write_video(tmp_path / "a.ts", 60).read_bytes(), hold=hold)
    source = VideoSource(f"tcp://127.0.0.1:{port}", MonotonicClock(), 0.7)
    stages = identity_stages(preprocess=lambda data: {"x": np.float32(data.mean())})
    finished, sink = run_pipeline(source, stages, pace=Pace(kind="live"), stall_s=5.0)
    hold.set()
    assert finished.error is not None and len(sink.delivered) > 10
    assert (
        f"tcp://127.0.0.1:{port}' gave nothing for 0.7 s; check the device or the connection" in finished.error.message
    )


def test_a_server_that_never_answers_is_reported() -> None:
    hold = threading.Event()
    port = serve(b"", hold=hold)
    with pytest.raises(StreamError, match=r"rtsp://127\.0\.0\.1:\d+/cam' gave nothing for 0\.5 s"):
        open_video(f"rtsp://127.0.0.1:{port}/cam", stall_s=0.5)
    hold.set()


def test_nobody_listens() -> None:
    with pytest.raises(ConfigError, match=r"cannot be opened \(Connection refused\)"):
        open_video("rtsp://127.0.0.1:9/cam")


def test_without_pyav_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UnsupportedError, match=r'Reading video needs .av.*\nHint: pip install "trt-compress\[video\]"'):
        open_video(tmp_path / "a.mp4")


def test_pictures_can_be_told_apart() -> None:
    assert [round(float(picture(n).mean()) / 16) for n in range(16)] == list(range(16))
