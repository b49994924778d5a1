"""A video of the frames with their results drawn in, at the source's own times."""

import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from trt_compress.errors import ConfigError, TrtCompressError
from trt_compress.files import GrowingFile
from trt_compress.foreign import shown
from trt_compress.format.kinds import CameraInput, ClassOutput, ImageInput, input_kind, output_kind
from trt_compress.format.manifest import Manifest
from trt_compress.runtime.camera_frames import CAMERA_NAMES, TRUTH, Box, true_boxes
from trt_compress.runtime.stream.branch import BEHIND, UNMARKED
from trt_compress.runtime.stream.calls import THREADS
from trt_compress.runtime.stream.frame import Frame
from trt_compress.runtime.stream.images import load_library, load_npz
from trt_compress.runtime.stream.quality import BoxLabels, Labels, Scorer
from trt_compress.runtime.stream.result import OverlayCounts
from trt_compress.runtime.stream.sheet import Captions, draw_sheet, with_line
from trt_compress.runtime.stream.sinks import disk_full

_CODECS = ("libx264", "mpeg4", "libvpx-vp9", "libvpx", "mjpeg")
_TICKS = 90_000  # a second; whole numbers of them are a frame at 24, 25, 30, 50, 60 and 29.97 a second
_OPTIONS = {"libx264": {"preset": "veryfast", "crf": "20"}, "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8"}}
_NAME = 32  # characters of a name in a picture
_ENCODER_THREADS = 2  # the rest of the machine is the stream's
_NICE = 10
_CLOSEST_NS = 4_000_000  # a stream that drops a thousand frames a second is not drawn for longer than it lasts
_MOST_EARLY = 500
_LONGEST_NS = 600_000_000_000  # a gap above this is a jump of the source's clock
_FASTEST_NS, _SLOWEST_NS = 1_000_000, 100_000_000  # of a frame
_FRAGMENTED = (".mp4", ".m4v", ".mov")
_WRITES_FRAGMENTS = (61, 7, 0)  # libavformat of FFmpeg 7.1
_POLL_S = 0.1
_EDGE = 4  # pixels of the frame around a repeated picture
_DROPPED_INK, _BEHIND_INK = "#b3261e", "#8a5a00"


@dataclass(slots=True)
class _Picture:
    """A picture that is shown from a moment on."""

    image: Any
    time_ns: int


class Overlay:
    """A video of the frames of a stream with their results drawn in; see `draw_sheet` for what is drawn.

    Each frame is shown when the source says (`capture_ns`), counted from the first; a source without time stamps has a
    frame each 1/fps. A frame that was dropped or failed, and one for which a `Branch` had no room, repeats the last
    picture with a mark that says so: the video has a picture for every frame, and lasts as long as the source. (Marks
    that come less than 4 ms after a picture, and those of a branch that is far behind, are left out.)

    Args:
        path: Its name gives the format: .mp4, .mkv, .webm, .avi.
        fps: Of a source without time stamps.
        range_m: Half the side of the bird's-eye view.
        captions: Names of the images, and what is true.
    """

    def __init__(
        self, path: str | Path, fps: float = 30.0, range_m: float = 30.0, captions: Captions | None = None
    ) -> None:
        self._path = self.name = str(path)
        self._step_ns = round(1e9 / fps)
        self._range_m = range_m
        self._captions = captions or Captions()
        self._av: Any = None
        self._container: Any = None
        self._file: GrowingFile | None = None
        self._codec = ""
        self._stream: Any = None
        self._last: Any = None  # the last picture that was drawn, without marks
        self._early: list[tuple[Frame, int]] = []  # frames without a picture, before the first that has one
        self._held: _Picture | None = None  # is written when it is known how long it is shown
        self._time_ns: int | None = None  # when the last frame is shown
        self._offset_ns = 0  # of the source's clock
        self._ticks = -1
        self._drawn = self._behind = self._repeated = 0

    @property
    def counts(self) -> OverlayCounts:
        """What is in the video."""
        return OverlayCounts(drawn=self._drawn, behind=self._behind, without_result=self._repeated)

    def open(self) -> None:
        """Make the file.

        Raises:
            ConfigError: It cannot be made, or its name gives no format that holds video.
            UnsupportedError: PyAV or Pillow is not installed.
        """
        self._av = load_library("av", "av", "video", "An overlay")
        load_library("PIL.Image", "pillow", "video", "An overlay")
        self._av.logging.set_level(None)  # its lines on stderr; errors come as exceptions
        try:
            self._file = GrowingFile(self._path)  # PyAV would notice only at the first frame
            self._container = self._av.open(f"file:{self._path}", "w", options=self._muxing())
        except Exception as error:  # FFmpegError, OSError or ValueError, as the release of PyAV has it
            self._let_go()
            reason = getattr(error, "strerror", None) or error
            raise ConfigError(
                f"The overlay '{self._path}' cannot be written ({reason}); give a name such as out.mp4, in a folder "
                "that exists."
            ) from None
        fitting = self._container.supported_codecs & self._av.codecs_available
        if self._container.format.name != "image2":  # pictures, one a file
            self._codec = next((name for name in _CODECS if name in fitting), "")
        if not self._codec:
            self.close()
            raise ConfigError(
                f"The overlay '{self._path}' would hold no video of a kind that is written here; give a name such as "
                "out.mp4."
            )

    def start(self, origin_ns: int) -> None:
        """The stream starts: what was in the file goes."""
        if self._file is not None:
            self._file.begin()

    def deliver(self, frame: Frame, now_ns: int) -> None:
        """Draw a frame.

        Raises:
            ConfigError: It holds no images.
            StreamError: The file cannot be written any more.
        """
        image = draw_sheet(frame, self._captions, range_m=self._range_m)
        time_ns = self._moment(frame)
        if self._last is None:
            self._last = image.point(lambda value: 0)
            for early, early_ns in self._early:
                self._repeat(early, early_ns)
            self._early = []
        self._last = self._fitted(image)
        self._drawn += 1
        self._show(with_line(self._last, f"frame {frame.id}   {time_ns / 1e9:.2f} s"), time_ns)

    def skip(self, frame: Frame) -> None:
        """Repeat the last picture for a frame that has no result, or that came too fast to be drawn."""
        if frame.outcome == "delivered":
            self._behind += 1
        else:
            self._repeated += 1
        time_ns = self._moment(frame)
        if self._last is None:
            self._early = [*self._early[-_MOST_EARLY:], (frame, time_ns)]
        elif frame.reason != UNMARKED and (self._held is None or time_ns - self._held.time_ns >= _CLOSEST_NS):
            self._repeat(frame, time_ns)

    def close(self) -> None:
        """Finish the file; one without a picture is taken away.

        Raises:
            StreamError: The file cannot be written any more.
        """
        if self._container is None:
            return
        container, self._container = self._container, None
        with self._disk_errors():
            try:
                if self._held is not None:
                    self._write(container, self._held, self._step_ns)
                for packet in self._stream.encode() if self._stream is not None else ():
                    container.mux(packet)
            finally:
                try:
                    container.close()
                finally:
                    self._let_go()

    def _let_go(self) -> None:
        """Close the file, and take away one that was made or emptied here and has no picture."""
        file, self._file = self._file, None
        if file is not None:
            file.close()
            if file.begun and self._stream is None:
                Path(self._path).unlink(missing_ok=True)

    def _muxing(self) -> dict[str, str]:
        """Makes an MP4 that a kill cut off playable up to its last second; one that is finished is as any other."""
        knows = self._av.library_versions["libavformat"] >= _WRITES_FRAGMENTS
        if not knows or Path(self._path).suffix.lower() not in _FRAGMENTED:
            return {}
        return {"movflags": "hybrid_fragmented+delay_moov", "frag_duration": "1000000", "flush_packets": "1"}

    def _moment(self, frame: Frame) -> int:
        """When a frame is shown, counted from the first. Where the source's clock jumps, it goes on by one step."""
        if self._time_ns is None:
            self._offset_ns = frame.capture_ns or 0
            self._time_ns = 0
            return 0
        last_ns, stamp_ns = self._time_ns, frame.capture_ns
        time_ns = last_ns + self._step_ns if stamp_ns is None else stamp_ns - self._offset_ns
        if not last_ns < time_ns < last_ns + _LONGEST_NS:
            time_ns = last_ns + self._step_ns
            self._offset_ns = (stamp_ns or 0) - time_ns
        elif stamp_ns is not None:
            self._step_ns = time_ns - last_ns
        self._time_ns = time_ns
        return time_ns

    def _repeat(self, frame: Frame, time_ns: int) -> None:
        """Show the last picture again, marked."""
        from PIL import ImageDraw

        picture = self._last.copy()
        behind = frame.reason == BEHIND
        ink = _BEHIND_INK if behind else _DROPPED_INK
        ImageDraw.Draw(picture).rectangle([0, 0, picture.width - 1, picture.height - 1], outline=ink, width=_EDGE)
        why = f"not drawn: {frame.reason}" if behind else f"{frame.outcome}: {frame.reason}"
        self._show(with_line(picture, f"frame {frame.id}   {time_ns / 1e9:.2f} s   {why}", ground=ink), time_ns)

    def _fitted(self, image: Any) -> Any:
        """The picture in the size of the first one."""
        from PIL import Image, ImageOps

        size = self._last.size
        if image.size == size:
            return image
        return ImageOps.pad(image, size, Image.Resampling.BILINEAR)

    def _show(self, image: Any, time_ns: int) -> None:
        held, self._held = self._held, _Picture(image, time_ns)
        if held is not None:
            with self._disk_errors():
                self._write(self._container, held, time_ns - held.time_ns)

    def _write(self, container: Any, picture: _Picture, lasts_ns: int) -> None:
        if self._stream is None:
            self.start(0)
            self._stream = self._new_stream(container, picture.image, lasts_ns)
        base = self._stream.codec_context.time_base
        ticks = round(picture.time_ns / 1_000_000_000 / base)
        self._ticks = max(ticks, self._ticks + 1)
        size = (self._stream.width, self._stream.height)
        image = picture.image if picture.image.size == size else picture.image.crop((0, 0, *size))
        frame = self._av.VideoFrame.from_image(image)
        frame.pts, frame.time_base = self._ticks, base
        for packet in self._stream.encode(frame):
            container.mux(packet)

    def _new_stream(self, container: Any, image: Any, lasts_ns: int) -> Any:
        options = dict(_OPTIONS.get(self._codec, {}))
        if container.format.name == "avi":  # it has one rate, and says when frames are decoded, not when they are shown
            options["bf"] = "0"
            lasts_ns = min(lasts_ns, _SLOWEST_NS)
        if self._muxing():  # with frames out of order FFmpeg notes the length of the first fragments for the whole file
            options["bf"] = "0"
        rate = Fraction(1_000_000_000, max(lasts_ns, _FASTEST_NS)).limit_denominator(1001)
        stream = container.add_stream(self._codec, rate=rate, options=options)
        stream.width, stream.height = image.width & ~1, image.height & ~1
        stream.pix_fmt = "yuvj420p" if self._codec == "mjpeg" else "yuv420p"
        stream.codec_context.thread_count = _ENCODER_THREADS
        if container.format.name != "avi" and self._codec != "mpeg4":  # these two fill gaps
            stream.codec_context.time_base = Fraction(1, _TICKS)
        with self._disk_errors():
            _open_encoder(stream.codec_context)
        return stream

    @contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except TrtCompressError:
            raise
        except Exception as error:  # FFmpegError and OSError mostly
            raise disk_full(self._path, error) from None


def _open_encoder(context: Any) -> None:
    """Open an encoder whose own threads give way to those of the stream; encoding is most of an overlay's work.

    Threads inherit how nice the one is that starts them, and nobody but root can take it back: so it is a thread for
    this alone.
    """
    errors: list[BaseException] = []

    def opening() -> None:
        try:
            if sys.platform == "linux":
                with suppress(OSError):  # a sandbox may forbid it
                    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
            context.open()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=opening, name=f"{THREADS}encoder", daemon=True)
    thread.start()
    while thread.is_alive():  # the stream leaves behind whoever waits here for too long
        thread.join(_POLL_S)
    if errors:
        raise errors[0]


def captions_from(
    sources: Sequence[str], bundle: Manifest, labels: Scorer | None, labels_path: str | Path | None
) -> Captions:
    """What is written into the pictures: names of cameras or sources, and what is true as far as `--labels` says.

    Args:
        sources: As the stream was given them.
        bundle: The bundle that runs.
        labels: As they were read from `labels_path`.
        labels_path: Their file, or None.

    Raises:
        ConfigError: There is no such file.
        StreamError: A scene cannot be read.
    """
    settings, meaning = input_kind(bundle.preprocess), output_kind(bundle.postprocess)
    names: Sequence[str] = [_short(shown(source)) for source in sources]
    if len(sources) == 1:
        names = settings.cameras if isinstance(settings, CameraInput) else ()
        if sources[0].lower().endswith(".npz"):
            names = [str(name) for name in load_npz(sources[0], only=(CAMERA_NAMES,)).get(CAMERA_NAMES, names)]
    boxes: Mapping[int, Sequence[Box]] = {}
    if isinstance(labels, BoxLabels) and labels_path is not None:
        boxes = true_boxes(load_npz(str(labels_path), only=TRUTH))
    return Captions(
        names=names,
        classes=labels.classes if isinstance(labels, Labels) else {},
        boxes=boxes,
        labels=(meaning.labels if isinstance(meaning, ClassOutput) else None) or (),
        with_place=not (isinstance(settings, ImageInput) and settings.crop),
    )


def _short(source: str) -> str:
    """The end of a long name."""
    return source if len(source) <= _NAME else f"…{source[1 - _NAME :]}"
