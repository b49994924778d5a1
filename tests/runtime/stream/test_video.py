"""Videos: whole ones give every frame, broken ones an error or a frame that failed, never less without a word."""

import socket
import struct
import threading
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from tests.runtime.stream.media import Array, cut, picture, write_video
from tests.runtime.stream.stream_parts import WAIT_S, by_outcome, identity_stages, run_pipeline
from trt_compress.errors import ConfigError, StreamError, UnsupportedError
from trt_compress.runtime.stream import video
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


@pytest.mark.parametrize("part", [b"moov", b"trak", b"stsd"])
def test_a_file_without_its_whole_index_is_truncated(tmp_path: Path, part: bytes) -> None:
    path = write_video(tmp_path / "a.mp4")
    data = path.read_bytes()
    path.write_bytes(data[: data.index(part) + 4])
    with pytest.raises(ConfigError, match=r"'.*a\.mp4' ends too early to be opened: the file is truncated; copy it"):
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


CORNERS = np.zeros((48, 64, 3), np.uint8)
CORNERS[:24, :32], CORNERS[:24, 32:], CORNERS[24:, :32] = (200, 0, 0), (0, 200, 0), (0, 0, 200)


def write_turned(path: Path, stored: Array, matrix: tuple[int, int, int, int], count: int = 3) -> Path:
    """An MP4 of one picture with a display matrix (a, b, c, d)."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = *stored.shape[:2], "yuv420p"
        for _ in range(count):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(stored), format="rgb24")))
        container.mux(stream.encode())
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 44
    a, b, c, d = (number << 16 for number in matrix)
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("stored", "matrix"),
    [
        (CORNERS, (1, 0, 0, 1)),
        (CORNERS, (0, 0, 0, 0)),  # never written
        (CORNERS[:, ::-1], (-1, 0, 0, 1)),
        (CORNERS[::-1, ::-1], (-1, 0, 0, -1)),
        (CORNERS[::-1], (1, 0, 0, -1)),
        (np.rot90(CORNERS), (0, 1, -1, 0)),
        (np.rot90(CORNERS, 3), (0, -1, 1, 0)),
        (CORNERS.swapaxes(0, 1), (0, 1, 1, 0)),
        (CORNERS[::-1, ::-1].swapaxes(0, 1), (0, -1, -1, 0)),
    ],
)
def test_video_is_shown_upright(tmp_path: Path, stored: Array, matrix: tuple[int, int, int, int]) -> None:
    items = read_all(open_video(write_turned(tmp_path / "a.mp4", stored, matrix)))
    assert len(items) == 3
    for item in items:
        assert item.data.shape == CORNERS.shape
        assert np.abs(item.data.astype(int) - CORNERS).mean() < 8


def test_a_display_matrix_in_the_stream_holds_up_to_the_next_key_frame(tmp_path: Path) -> None:
    """As a camera that was held upside down writes it: an SEI message of H.264 with key frames only."""
    message = bytes.fromhex("00000001062f0310000980")  # half a turn, until something else is said
    path = tmp_path / "a.ts"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=25, options={"g": "4", "bf": "0"})
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        pictures = [np.ascontiguousarray(CORNERS[::-1, ::-1])] * 8 + [CORNERS] * 2
        packets = [p for one in pictures for p in stream.encode(av.VideoFrame.from_ndarray(one, format="rgb24"))]
        for packet in (*packets, *stream.encode()):
            data = bytes(packet)
            at = data.find(b"\0\0\1\x65")  # an IDR picture
            if at >= 0 and packet.pts < 8:
                turned = av.Packet(data[:at] + message + data[at:])
                turned.stream, turned.pts, turned.dts = stream, packet.pts, packet.dts
                turned.time_base, turned.is_keyframe = packet.time_base, True
                packet = turned
            container.mux(packet)
    items = read_all(open_video(path))
    assert len(items) == 10
    assert all(np.abs(item.data.astype(int) - CORNERS).mean() < 8 for item in items)


def test_a_slanted_video_is_refused(tmp_path: Path) -> None:
    source = open_video(write_turned(tmp_path / "a.mp4", CORNERS, (1, 1, -1, 1)))
    with pytest.raises(
        StreamError, match=r"a\.mp4' is to be shown at an angle that is no quarter turn; turn it before"
    ):
        source.read()


def test_pixels_that_are_not_square_are_taken_as_stored_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(16, 9)
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(CORNERS, format="rgb24")))
        container.mux(stream.encode())
    assert [item.data.shape for item in read_all(open_video(path))] == [(48, 64, 3)] * 3
    (said,) = caplog.messages
    assert "a.mkv' has pixels 16:9 as wide as high, and its frames are taken as they are stored, 64x48; to have" in said


@pytest.mark.parametrize(("pixels", "most"), [("gray10le", 1023), ("gray12le", 4095), ("gray16le", 65535)])
def test_deep_grey_video_is_scaled_as_pictures_are(tmp_path: Path, pixels: str, most: int) -> None:
    ramp = np.tile(np.arange(64) * 4.0, (48, 1))
    frame = av.VideoFrame(64, 48, pixels)
    padded = np.zeros((48, frame.planes[0].line_size // 2), "<u2")
    padded[:, :64] = np.rint(ramp * most / 255)
    frame.planes[0].update(padded.tobytes())
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream: Any = container.add_stream("ffv1", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, pixels
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    (item,) = read_all(open_video(tmp_path / "a.mkv"))
    assert np.abs(item.data.astype(int) - ramp[..., np.newaxis]).max() <= 1


def write_any(path: Path, codec: str, *, options: dict[str, str] | None = None, sound: str | None = None) -> Path:
    """A video of 40 frames, with sound if a codec for it is given."""
    with av.open(str(path), "w", options=options or {}) as container:
        stream: Any = container.add_stream(codec, rate=25)
        stream.height, stream.width = 48, 64
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        voice: Any = container.add_stream(sound, rate=48000, layout="mono") if sound else None
        for number in range(40):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(number), format="rgb24")))
            if voice is not None:
                form = "s16" if sound == "pcm_s16le" else "fltp"
                silence: Any = np.zeros((1, 1920), np.int16 if form == "s16" else np.float32)
                samples = av.AudioFrame.from_ndarray(silence, format=form, layout="mono")
                samples.sample_rate, samples.pts = 48000, 1920 * number
                container.mux(voice.encode(samples))
        for one in (stream, voice):
            if one is not None:
                container.mux(one.encode())
    return path


_FRAGMENTS = {"movflags": "frag_keyframe+empty_moov"}
_CONTAINERS: list[tuple[str, str, dict[str, str], str | None]] = [
    ("a.avi", "mpeg4", {}, None),
    ("b.avi", "mjpeg", {}, None),
    ("c.avi", "mpeg4", {}, "pcm_s16le"),
    ("a.mp4", "libx264", {"movflags": "faststart"}, "aac"),
    ("b.mp4", "libx264", _FRAGMENTS, None),
    ("a.mov", "mjpeg", {"movflags": "faststart"}, None),
    ("a.mkv", "libx264", {}, None),
    ("b.mkv", "libx264", {}, "aac"),
    ("c.mkv", "libx264", {"live": "1"}, "aac"),  # sizes are unknown
    ("a.webm", "libvpx", {}, None),
    ("a.ts", "libx264", {}, None),
    ("a.asf", "wmv2", {}, None),
    ("a.flv", "flv", {}, None),
    ("b.flv", "flv", {}, "aac"),
    ("a.ogg", "libvpx", {}, None),
    ("a.ivf", "libvpx", {}, None),
    ("a.mjpeg", "mjpeg", {}, None),
    ("a.y4m", "wrapped_avframe", {}, None),
]


@pytest.mark.parametrize(("name", "codec", "options", "sound"), _CONTAINERS)
def test_any_container_that_is_cut_is_noticed_and_none_that_is_whole(
    tmp_path: Path, name: str, codec: str, options: dict[str, str], sound: str | None
) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no {codec}")
    path = write_any(tmp_path / name, codec, options=options, sound=sound)
    source = open_video(path)
    assert brightness(read_all(source)) == [number % 16 for number in range(40)]
    source.close()
    data = path.read_bytes()
    # An index, a part of a frame or more; odd, as a cut between two packets of a transport stream cannot be seen.
    for missing in (15, len(data) // 10 | 1, len(data) // 3 | 1):
        path.write_bytes(data[:-missing])
        with pytest.raises((StreamError, ConfigError), match=r"the file is truncated; copy it again|cannot be opened"):
            read_all(open_video(path))


def test_an_avi_from_a_pipe_is_whole(tmp_path: Path) -> None:
    """Its writer cannot go back to say how many frames there are, and leaves a number that is none."""
    data = bytearray(write_video(tmp_path / "a.avi", 12, codec="mpeg4").read_bytes())
    header, stream = data.index(b"avih") + 8, data.index(b"strh") + 8
    struct.pack_into("<I", data, 4, 0xFFFFFFFF)
    for place in (header + 16, stream + 32):
        assert struct.unpack_from("<I", data, place) == (12,)
        struct.pack_into("<I", data, place, 1 << 30)
    path = tmp_path / "pipe.avi"
    path.write_bytes(data[: data.index(b"idx1")])
    source = open_video(path)
    assert source.length is None and brightness(read_all(source)) == list(range(12))
    source.close()
    path.write_bytes(data[: data.index(b"idx1") - 100])
    with pytest.raises(StreamError, match="the file is truncated"):
        read_all(open_video(path))


def test_frames_of_an_avi_with_b_frames_have_their_own_times(tmp_path: Path) -> None:
    """It holds the times of decoding alone."""
    path = tmp_path / "a.avi"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=25, options={"b-adapt": "0", "sc_threshold": "0"})
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.codec_context.max_b_frames = 2
        for number in range(16):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(number), format="rgb24")))
        container.mux(stream.encode())
    items = read_all(open_video(path))
    assert brightness(items) == list(range(16))
    assert np.diff([item.capture_ns or 0 for item in items]).tolist() == [40_000_000] * 15


def test_a_last_frame_that_lasts_is_no_truncation(tmp_path: Path) -> None:
    """Screen recordings have frames when something changes, and a still end."""
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=25, options={"tune": "zerolatency"})
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for number, time_ms in enumerate((0, 40, 80, 900, 3000)):
            frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
            frame.pts, frame.time_base = time_ms, Fraction(1, 1000)
            for packet in stream.encode(frame):
                packet.duration = 5000 if number == 4 else 40
                container.mux(packet)
        container.mux(stream.encode())
    assert len(read_all(open_video(path))) == 5


def test_an_edit_list_that_hides_frames_is_no_truncation(tmp_path: Path) -> None:
    """40 frames are in the file, and its edit list shows the last 30."""
    path = write_any(tmp_path / "a.mp4", "libx264")
    data = bytearray(path.read_bytes())
    at = data.index(b"elst") + 12  # behind version, flags and the count: duration and start of the one edit
    duration, start = struct.unpack_from(">Ii", data, at)
    base = struct.unpack_from(">I", data, data.index(b"mdhd") + 16)[0]
    struct.pack_into(">Ii", data, at, duration * 3 // 4, start + base * 10 // 25)
    path.write_bytes(data)
    items = read_all(open_video(path))
    assert 25 <= len(items) < 40


def write_song(path: Path, codec: str) -> Path:
    """A second of silence with a picture on its cover."""
    with av.open(str(path), "w", format="mp4" if path.suffix == ".m4a" else None) as container:
        voice: Any = container.add_stream(codec, rate=44100, layout="mono")
        cover: Any = container.add_stream("mjpeg", rate=25)
        cover.height, cover.width, cover.pix_fmt = 48, 64, "yuvj420p"
        cover.disposition = 0x400  # attached picture
        form = voice.codec_context.format.name if voice.codec_context.format else "fltp"
        container.mux(cover.encode(av.VideoFrame.from_ndarray(picture(3), format="rgb24")))
        container.mux(cover.encode())
        for number in range(20):
            samples = av.AudioFrame.from_ndarray(np.zeros((1, 2205), np.int16), format="s16", layout="mono")
            samples.sample_rate, samples.pts = 44100, 2205 * number
            resampled = av.AudioResampler(form, "mono", 44100).resample(samples)
            container.mux([packet for part in resampled for packet in voice.encode(part)])
        container.mux(voice.encode())
    return path


@pytest.mark.parametrize(("name", "codec"), [("a.mp3", "libmp3lame"), ("a.m4a", "aac"), ("a.flac", "flac")])
def test_the_cover_of_a_song_is_no_video(tmp_path: Path, name: str, codec: str) -> None:
    path = write_song(tmp_path / name, codec)
    with pytest.raises(ConfigError, match=r"holds sound only \(its picture is the cover\); give a file with a video"):
        open_video(path)


def test_video_that_nothing_decodes_is_one_sentence(tmp_path: Path) -> None:
    path = write_any(tmp_path / "a.avi", "mpeg4")
    path.write_bytes(path.read_bytes().replace(b"FMP4", b"ZZZ9"))
    with pytest.raises(ConfigError, match="holds video of a kind that PyAV cannot decode; convert it"):
        open_video(path)


def test_a_name_with_a_colon_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_any(tmp_path / "a.mkv", "libx264").rename(tmp_path / "2026-11-28T10:00:00.mkv")
    assert len(read_all(open_video("2026-11-28T10:00:00.mkv"))) == 40


@pytest.mark.parametrize("error", [struct.error, OverflowError, MemoryError, ValueError, SystemError])
def test_whatever_a_decoder_raises_is_a_failed_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    source = open_video(write_video(tmp_path / "a.avi", 6, codec="mjpeg"))
    convert = video._rgb

    class Frame:
        def to_ndarray(self, **named: object) -> None:
            raise error("of the decoder")

    monkeypatch.setattr(video, "_rgb", lambda frame: convert(Frame() if frame.pts == 2 else frame))
    assert [item.error for item in read_all(source)] == [None, None, "the frame is damaged", None, None, None]


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
    from tests.runtime.stream.media import write_wav

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
