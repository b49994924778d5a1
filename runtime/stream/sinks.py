"""Where results go: one JSON line a frame, a video with the results drawn in, or the sound that was made."""

import json
import math
import threading
import wave
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from trt_compress.errors import ConfigError, StreamError
from trt_compress.runtime.draw3d import draw_bev, draw_boxes
from trt_compress.runtime.manifest import Compression
from trt_compress.runtime.stream.frame import Array, Frame
from trt_compress.runtime.stream.images import load_library

_BEV_SIDE = 320
_SMALLEST = 160  # pixels of the shorter side of an overlay; smaller frames are shown larger


class JsonLines:
    """One JSON object a line for every frame, those too that were dropped or failed; each is written at once.

    A line holds id, source, capture_ns, arrival_ns, start_ns, finished_ns (when the line was written, on the stream's
    clock), stages_ns, waits_ns, outcome, reason, level, tokens, and for a delivered frame its results.

    Args:
        path: The file; it is replaced.
        tokens: Level → tokens in and out of every site.
    """

    def __init__(self, path: str | Path, tokens: dict[str, tuple[Compression, ...]] | None = None) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._file: Any = None
        self._origin_ns = 0
        self._sites = {
            level: {part.site: [part.tokens_in, part.tokens_out] for part in parts}
            for level, parts in (tokens or {}).items()
        }

    def open(self) -> None:
        """Make the file.

        Raises:
            ConfigError: It cannot be made.
        """
        try:
            self._file = open(self._path, "wb", buffering=0)
        except OSError as error:
            raise ConfigError(
                f"'{self._path}' cannot be written ({error.strerror}); give another file to --out."
            ) from None

    def start(self, origin_ns: int) -> None:
        """Count times from here."""
        self._origin_ns = origin_ns

    def deliver(self, frame: Frame, now_ns: int) -> None:
        """Write the line of a delivered frame."""
        self._write(frame, now_ns, {"outcome": "delivered", "reason": None}, frame.summary)

    def skip(self, frame: Frame) -> None:
        """Write the line of a frame that was dropped or failed."""
        now_ns = (frame.end_ns or self._origin_ns) - self._origin_ns
        self._write(frame, now_ns, {"outcome": frame.outcome, "reason": frame.reason}, {})

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, frame: Frame, now_ns: int, outcome: dict[str, Any], summary: dict[str, Any]) -> None:
        line = {
            "id": frame.id,
            "source": frame.source,
            "capture_ns": frame.capture_ns,
            "arrival_ns": frame.arrival_ns - self._origin_ns,
            "start_ns": frame.start_ns - self._origin_ns,
            "finished_ns": now_ns,
            "stages_ns": frame.stage_ns,
            "waits_ns": frame.wait_ns,
            **outcome,
            "level": frame.level,
            "tokens": self._sites.get(frame.level or ""),
            **summary,
        }
        data = json.dumps(line, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode() + b"\n"
        with self._lock:
            try:
                written = self._file.write(data)
            except OSError as error:
                raise _full(self._path, error) from None
            if written != len(data):
                raise StreamError(
                    f"'{self._path}' took half a line and no more; free some space, or give another file."
                )


class Overlay:
    """A video of the delivered frames with their results drawn in: classes as text; 3D boxes from above, and in the
    images where the frame holds `img2lidar`.

    Frames are images, or arrays of a scene among which `images` or `image` holds some: several side by side.

    Args:
        path: Its name gives the format: .mp4, .mkv, .avi.
        fps: Of the file. It has nothing to do with when the frames came.
        range_m: Half the side of the bird's-eye view.
    """

    def __init__(self, path: str | Path, fps: float = 30.0, range_m: float = 30.0) -> None:
        self._path = str(path)
        self._fps = fps
        self._range_m = range_m
        self._av: Any = None
        self._container: Any = None
        self._stream: Any = None

    def open(self) -> None:
        """Make the file.

        Raises:
            ConfigError: It cannot be made, or its name gives no known format.
            UnsupportedError: PyAV or Pillow is not installed.
        """
        self._av = load_library("av", "av", "video", "An overlay")
        load_library("PIL.Image", "pillow", "video", "An overlay")
        self._av.logging.set_level(None)  # its lines on stderr; errors come as exceptions
        try:
            Path(self._path).open("wb").close()  # PyAV would notice only at the first frame
            self._container = self._av.open(self._path, "w")
        except (self._av.error.FFmpegError, OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ConfigError(
                f"The overlay '{self._path}' cannot be written ({reason}); give a name such as out.mp4, in a folder "
                "that exists."
            ) from None

    def start(self, origin_ns: int) -> None:
        """Nothing depends on the clock."""

    def deliver(self, frame: Frame, now_ns: int) -> None:
        """Draw and encode a frame."""
        image = self._draw(_images_of(frame.data), frame)
        with self._disk_errors():
            if self._stream is None:
                codec = "libx264" if "libx264" in self._av.codecs_available else "mpeg4"
                self._stream = self._container.add_stream(codec, rate=Fraction(self._fps).limit_denominator(1001))
                self._stream.width, self._stream.height = image.shape[1], image.shape[0]
                self._stream.pix_fmt = "yuv420p"
            for packet in self._stream.encode(self._av.VideoFrame.from_ndarray(image, format="rgb24")):
                self._container.mux(packet)

    def skip(self, frame: Frame) -> None:
        """A frame without results is not in the video."""

    def close(self) -> None:
        """Finish the file."""
        if self._container is None:
            return
        container, self._container = self._container, None
        with self._disk_errors():
            try:
                for packet in self._stream.encode() if self._stream is not None else ():
                    container.mux(packet)
            finally:
                container.close()

    def _draw(self, images: Sequence[Array], frame: Frame) -> "np.ndarray[Any, np.dtype[np.uint8]]":
        """The images, each with its own text, and behind them the boxes from above; sides are even numbers."""
        from PIL import Image, ImageDraw

        results = frame.summary.get("results", [])
        height = max(_SMALLEST, *(image.shape[0] for image in images))
        height -= height % 2
        boxes = results[0].get("boxes", []) if results else []
        cameras = _projections(frame.data, len(images))
        tiles: list[Any] = []
        for number, image in enumerate(images):
            width = max(2, round(image.shape[1] * height / image.shape[0] / 2) * 2)
            tile = Image.fromarray(image).convert("RGB").resize((width, height), Image.Resampling.NEAREST)
            if boxes and cameras is not None:
                zoom = np.diag([width / image.shape[1], height / image.shape[0], 1.0, 1.0])
                tile = draw_boxes(tile, boxes, zoom @ cameras[number])
            if number < len(results) and "class" in results[number]:
                found = results[number]
                text = f"{found.get('label', found['class'])}  {found['score']:.0%}"
                ImageDraw.Draw(tile).text(
                    (5, 4), text, fill="yellow", stroke_width=2, stroke_fill="black", font_size=16
                )
            tiles.append(tile)
        above = None
        if any("boxes" in found for found in results):
            side = max(height if len(tiles) < 2 else 2 * height, _BEV_SIDE)
            above = draw_bev(results[0]["boxes"], range_m=self._range_m, size=side)
        canvas = _sheet(tiles, above)
        text = f"frame {frame.id}"
        ImageDraw.Draw(canvas).text(
            (5, canvas.height - 18), text, fill="white", stroke_width=2, stroke_fill="black", font_size=12
        )
        return np.asarray(canvas)

    @contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except (self._av.error.FFmpegError, OSError) as error:
            raise _full(self._path, error) from None


class Sound:
    """The sound of the delivered frames, one behind the other: a WAV file of 16 bits, one channel.

    Args:
        path: The file; it is replaced.
        output: Name of the output [1, samples], from -1 to 1; what is beyond is clipped.
        sample_rate: In Hz.
        samples: Of a frame; what is behind them is padding. None: all.
    """

    def __init__(self, path: str | Path, *, output: str, sample_rate: int, samples: int | None = None) -> None:
        self._path, self._output = path, output
        self._rate, self._samples = sample_rate, samples
        self._file: Any = None
        self._wave: wave.Wave_write | None = None

    def open(self) -> None:
        """Make the file.

        Raises:
            ConfigError: It cannot be made.
        """
        try:
            self._file = open(self._path, "wb")
        except OSError as error:
            raise ConfigError(
                f"'{self._path}' cannot be written ({error.strerror}); give another name, such as out.wav."
            ) from None
        self._wave = wave.open(self._file, "wb")
        self._wave.setparams((1, 2, self._rate, 0, "NONE", "not compressed"))

    def start(self, origin_ns: int) -> None:
        """Nothing depends on the clock."""

    def deliver(self, frame: Frame, now_ns: int) -> None:
        """Write the sound of a frame.

        Raises:
            ConfigError: The query has several streams.
            StreamError: The disk is full.
        """
        sound = frame.outputs[self._output]
        if len(sound) != 1:
            raise ConfigError(f"The query has {len(sound)} streams, and '{self._path}' holds the sound of one.")
        numbers = np.round(np.clip(sound[0, : self._samples], -1, 1) * 32767).astype("<i2")
        assert self._wave is not None
        try:
            self._wave.writeframes(numbers.tobytes())
            self._file.flush()
        except OSError as error:
            raise _full(self._path, error) from None

    def skip(self, frame: Frame) -> None:
        """A frame without results is not in the file."""

    def close(self) -> None:
        """Finish the file."""
        if self._file is None:
            return
        file, self._file = self._file, None
        try:
            try:
                if self._wave is not None:
                    self._wave.close()
            finally:
                file.close()
        except OSError as error:
            raise _full(self._path, error) from None


def _sheet(tiles: Sequence[Any], above: Any | None) -> Any:
    """Tiles of one height side by side; in two rows if the boxes from above stand behind them, twice as high."""
    from PIL import Image

    columns = len(tiles) if above is None else math.ceil(len(tiles) / 2)
    rows = [tiles[:columns], tiles[columns:]]
    width = max(sum(tile.width for tile in row) for row in rows)
    height = sum(row[0].height for row in rows if row)
    size = (width, height) if above is None else (width + above.width, max(height, above.height))
    canvas = Image.new("RGB", size)
    for number, row in enumerate(rows):
        left = 0
        for tile in row:
            canvas.paste(tile, (left, number * tile.height))
            left += tile.width
    if above is not None:
        canvas.paste(above, (width, 0))
    return canvas


def _images_of(data: Any) -> list[Array]:
    """The images of a frame as uint8, [H, W, 3] or [H, W]."""
    if isinstance(data, tuple):
        return [image for part in data for image in _images_of(part)]
    if isinstance(data, dict):
        name = next((name for name in ("images", "image") if name in data), None)
        if name is None:
            raise ConfigError(f"An overlay needs images, and the source gives {', '.join(data)}; leave --overlay out.")
        array = np.asarray(data[name])
        array = array.reshape(-1, *array.shape[-3:])
        return [_as_bytes(image) for image in array]
    array = np.asarray(data)
    if array.dtype != np.uint8 or array.ndim not in (2, 3):
        raise ConfigError("An overlay needs images, and the source gives sound; leave --overlay out.")
    return [array]


def _projections(data: Any, count: int) -> Array | None:
    """From the ego frame into each image, [V, 4, 4], if the frame says how: its `img2lidar` is the way back."""
    if not isinstance(data, dict) or "img2lidar" not in data:
        return None
    back = np.asarray(data["img2lidar"], np.float64).reshape(-1, 4, 4)
    return np.linalg.inv(back) if len(back) == count else None


def _as_bytes(image: Array) -> Array:
    """An image [C, H, W] of any range as [H, W, 3] or [H, W] uint8: 0 to 255 as it is, any other range stretched."""
    image = image.transpose(1, 2, 0) if image.shape[0] in (1, 3) else image
    image = image[..., 0] if image.shape[-1] == 1 else image
    low, high = float(image.min()), float(image.max())
    if image.dtype != np.uint8 and (low < 0 or high <= 1):
        image = (image - low) * (255.0 / max(high - low, 1e-9))
    return image.clip(0, 255).astype(np.uint8)


def _full(path: str | Path, error: Any) -> StreamError:
    reason = getattr(error, "strerror", None) or error
    return StreamError(f"'{path}' cannot be written any more ({reason}); free some space, or give another file.")
