"""`--source` as a GStreamer pipeline: by a fake of the few calls where PyGObject is not, and for real where it is."""

import sys
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from trt_compress.errors import ConfigError, StreamError, UnsupportedError
from trt_compress.runtime.stream.gstreamer import PipelineSource, is_pipeline
from trt_compress.runtime.stream.pace import MonotonicClock
from trt_compress.runtime.stream.sources import check_source, file_of_url, is_live, source_from_text

pytestmark = pytest.mark.filterwarnings("ignore:DynamicImporter:ImportWarning")  # of older versions of PyGObject
TEST = "videotestsrc num-buffers=3 pattern=blue ! video/x-raw,width=18,height=6"
CAMERA = "nvarguscamerasrc ! nvvidconv ! video/x-raw"


def opened(text: str, stall_s: float = 5.0) -> PipelineSource:
    source = PipelineSource(text, MonotonicClock(), stall_s)
    source.open()
    return source


def test_which_texts_are_pipelines() -> None:
    assert is_pipeline(TEST) and is_pipeline("rtspsrc location=rtsp://a/b ! decodebin")
    assert not is_pipeline("holiday!.mp4") and not is_pipeline("rtsp://a/b!c") and not is_pipeline("a!b ! c"[:3])
    assert is_live(TEST) and check_source(TEST) == [] and file_of_url("filesrc location=file:///x ! decodebin") == []
    how: dict[str, Any] = {"inputs": {}, "audio": None, "clock": MonotonicClock(), "stall_s": 1.0}
    for text in (TEST, "filesrc location=a.png ! pngdec", "rtspsrc location=rtsp://a/b ! decodebin"):
        assert isinstance(source_from_text(text, **how), PipelineSource)


def test_without_pygobject_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gi", None)
    with pytest.raises(UnsupportedError, match=r"^A GStreamer pipeline needs PyGObject and GStreamer, and") as raised:
        opened(CAMERA)
    assert "apt install python3-gi gir1.2-gst-plugins-base-1.0" in str(raised.value.hint)


# ---- for real --------------------------------------------------------------------------------------------------------


@pytest.fixture
def real() -> None:
    gi = pytest.importorskip("gi", reason="PyGObject comes with the system: apt install python3-gi")
    try:
        gi.require_version("GstApp", "1.0")
        gi.require_version("GstVideo", "1.0")
    except ValueError as error:
        pytest.skip(f"{error}; apt install gir1.2-gst-plugins-base-1.0")


def test_frames_of_a_test_picture(real: None) -> None:
    source = opened(TEST)
    frames = []
    while (item := source.read()) is not None:
        frames.append(item)
    source.close()
    assert len(frames) == 3 and all(frame.error is None for frame in frames)
    for frame in frames:
        assert frame.data.shape == (6, 18, 3) and frame.data.dtype == np.uint8  # a row of 54 bytes is padded to 56
        assert (np.abs(frame.data.astype(int) - [0, 0, 255]) <= 2).all()
    stamps = [frame.capture_ns for frame in frames]
    assert stamps == sorted(stamps) and stamps[1] - stamps[0] == pytest.approx(1e9 / 30, rel=0.01)
    assert [frame.arrived_ns for frame in frames] == sorted(frame.arrived_ns for frame in frames)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("videotestsrc ! nosuchelement", r"nosuchelement.*; give one that ends in raw video"),
        ("videotestsrc colour=3 ! identity", r"is no pipeline that GStreamer can make \(.*colour"),
        ("videotestsrc ! ! identity", "is no pipeline that GStreamer can make"),
        ("videotestsrc ! fakesink", "is no pipeline that GStreamer can make"),
    ],
)
def test_what_does_not_parse_is_a_sentence(real: None, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as raised:
        opened(text)
    assert "\n" not in raised.value.message


def test_what_cannot_start_or_gives_no_video(real: None) -> None:
    with pytest.raises((ConfigError, StreamError), match="No such file|cannot be read further|does not start"):
        opened("filesrc location=/nowhere/at/all ! rawvideoparse width=8 height=8").read()
    silent = opened("videotestsrc ! identity drop-probability=1.0", stall_s=0.2)
    with pytest.raises(StreamError, match=r"gave nothing for 0\.2 s; check the device"):
        silent.read()
    silent.close()


# ---- by a fake of the calls ------------------------------------------------------------------------------------------


class _Error(Exception):
    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Install a `gi` whose pipelines give these frames (H, W, bytes with padded rows), and note what is launched."""

    def install(*frames: tuple[int, int, int], fails: str | None = None, broken: str | None = None) -> list[str]:
        launched: list[str] = []
        left = list(frames)

        class Sink:
            def try_pull_sample(self, timeout: int) -> Any:
                assert timeout > 0 and launched[-1] == "PLAYING"
                if not left:
                    return None
                height, width, value = left.pop(0)
                stride = -(-3 * width // 4) * 4
                row = bytes([value]) * (3 * width) + b"\xee" * (stride - 3 * width)
                buffer = types.SimpleNamespace(
                    pts=7, map=lambda flags: (True, types.SimpleNamespace(data=row * height)), unmap=lambda memory: None
                )
                caps = types.SimpleNamespace(width=width, height=height, stride=[stride])
                return types.SimpleNamespace(get_caps=lambda: caps, get_buffer=lambda: buffer)

            def is_eos(self) -> bool:
                return not left and broken is None

        def message(kind: int) -> Any:
            return broken and types.SimpleNamespace(parse_error=lambda: (_Error(str(broken)), "debug"))

        class Pipeline:
            def get_by_name(self, name: str) -> Sink:
                assert f"appsink name={name} " in launched[0]
                return Sink()

            def set_state(self, state: str) -> int:
                launched.append(state)
                return 1

            def get_bus(self) -> Any:
                return types.SimpleNamespace(pop_filtered=message)

        def parse(text: str) -> Pipeline:
            launched.append(text)
            if fails:
                raise _Error(fails)
            return Pipeline()

        gst = types.SimpleNamespace(
            init=lambda arguments: None,
            parse_launch=parse,
            State=types.SimpleNamespace(PLAYING="PLAYING", NULL="NULL"),
            StateChangeReturn=types.SimpleNamespace(FAILURE=0),
            MessageType=types.SimpleNamespace(ERROR=2),
            MapFlags=types.SimpleNamespace(READ=1),
            CLOCK_TIME_NONE=2**64 - 1,
        )
        info = types.SimpleNamespace(new_from_caps=lambda caps: caps)
        gi, repository = types.ModuleType("gi"), types.ModuleType("gi.repository")
        vars(gi).update(require_version=lambda name, version: None, repository=repository)
        vars(repository).update(
            GLib=types.SimpleNamespace(Error=_Error),
            Gst=gst,
            GstApp=types.SimpleNamespace(),
            GstVideo=types.SimpleNamespace(VideoInfo=info),
        )
        monkeypatch.setitem(sys.modules, "gi", gi)
        monkeypatch.setitem(sys.modules, "gi.repository", repository)
        return launched

    return install


def test_frames_come_without_the_padding_of_rows(fake: Callable[..., list[str]]) -> None:
    launched = fake((2, 3, 10), (2, 3, 20))
    source = opened(CAMERA)
    assert launched[0].startswith(f"{CAMERA} ! videoconvert ! video/x-raw,format=RGB ! appsink ")
    for value in (10, 20):
        item = source.read()
        assert item is not None and item.capture_ns == 7
        np.testing.assert_array_equal(item.data, np.full((2, 3, 3), value, np.uint8))
    assert source.read() is None
    source.close()
    assert launched[1:] == ["PLAYING", "NULL"]


def test_failures_are_sentences(fake: Callable[..., list[str]]) -> None:
    fake(fails='no element "nvarguscamerasrc"\nmore')
    with pytest.raises(ConfigError, match=r'can make \(no element "nvarguscamerasrc"\); give one that ends in raw'):
        opened(CAMERA)
    fake((2, 3, 1), broken="The camera went away.")
    source = opened(CAMERA)
    assert source.read() is not None
    with pytest.raises(StreamError, match=r"cannot be read further \(The camera went away\); the device"):
        source.read()
    fake((2, 3, 1), (4, 3, 1))
    source = opened(CAMERA)
    source.read()
    with pytest.raises(StreamError, match="changes from 3x2 to 3x4 pixels; one stream has one resolution"):
        source.read()
