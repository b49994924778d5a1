"""Frames of a GStreamer pipeline that is given as text, by PyGObject: of a Jetson's own cameras and decoders, too."""

from typing import Any

import numpy as np

from trt_compress.errors import ConfigError, StreamError, UnsupportedError
from trt_compress.foreign import reason_of, shown
from trt_compress.runtime.stream.pace import Clock
from trt_compress.runtime.stream.parts import Item
from trt_compress.runtime.stream.pictures import too_large

_SINK = "trt_compress_frames"
_BEHIND = f"videoconvert ! video/x-raw,format=RGB ! appsink name={_SINK} max-buffers=4 sync=false"
_INSTALL = (
    "apt install python3-gi gir1.2-gst-plugins-base-1.0 gstreamer1.0-plugins-good, and take an environment made with "
    "python3 -m venv --system-site-packages"
)


class PipelineSource:
    """Frames as RGB, [H, W, 3] uint8, of a pipeline such as `videotestsrc ! video/x-raw,width=640`.

    Its last element gives raw video; what makes RGB of it and hands it over is put behind it here.

    Args:
        description: The pipeline without a sink, as `gst-launch-1.0` takes it.
        clock: Stamps the frames.
        stall_s: How long it may give nothing.
    """

    live = True

    def __init__(self, description: str, clock: Clock, stall_s: float) -> None:
        self.name = description
        self.length: int | None = None
        self._clock = clock
        self._stall_s = stall_s
        self._gst: Any = None
        self._video: Any = None
        self._pipeline: Any = None
        self._sink: Any = None
        self._size: tuple[int, int] | None = None

    def open(self) -> None:
        """Make the pipeline and let it run.

        Raises:
            ConfigError: It does not parse, or does not start.
            UnsupportedError: PyGObject or GStreamer is not installed.
        """
        try:
            import gi  # pyright: ignore[reportMissingImports] - it comes with the system

            for name in ("Gst", "GstApp", "GstVideo"):
                gi.require_version(name, "1.0")
            # GstApp gives the sink its methods
            from gi.repository import GLib, Gst, GstApp, GstVideo  # noqa: F401  # pyright: ignore[reportMissingImports]
        except (ImportError, ValueError) as error:
            raise UnsupportedError(
                "A GStreamer pipeline needs PyGObject and GStreamer, and they cannot be imported "
                f"({reason_of(error)}).",
                hint=_INSTALL,
            ) from None
        Gst.init(None)
        self._gst, self._video, self._size = Gst, GstVideo, None
        try:
            self._pipeline = Gst.parse_launch(f"{self.name} ! {_BEHIND}")
        except GLib.Error as error:
            raise ConfigError(
                f"'{shown(self.name)}' is no pipeline that GStreamer can make ({_said(error)}); give one that ends in "
                "raw video and has no sink, and try it with gst-launch-1.0."
            ) from None
        self._sink = self._pipeline.get_by_name(_SINK)
        if self._pipeline.set_state(Gst.State.PLAYING) == Gst.StateChangeReturn.FAILURE:
            reason = self._error() or "it does not start"
            self.close()
            raise ConfigError(
                f"'{shown(self.name)}' does not start ({reason}); check the device, and try it with gst-launch-1.0."
            )

    def read(self) -> Item | None:
        """Give the next frame, or None at the end.

        Raises:
            StreamError: The pipeline failed or fell silent, or the resolution changed.
        """
        sample = self._sink.try_pull_sample(round(self._stall_s * 1e9))
        arrived_ns = self._clock.now_ns()
        if sample is None:
            if (reason := self._error()) is not None:
                raise StreamError(
                    f"'{shown(self.name)}' cannot be read further ({reason}); the device or the connection is gone, or "
                    "the pipeline gives no raw video."
                )
            if self._sink.is_eos():
                return None
            raise StreamError(
                f"The source '{shown(self.name)}' gave nothing for {self._stall_s:g} s; check the device or the "
                "connection, or allow a longer silence with --stall-s."
            )
        info = self._video.VideoInfo.new_from_caps(sample.get_caps())
        now = (info.width, info.height)
        if self._size is not None and now != self._size:
            raise StreamError(
                f"'{shown(self.name)}' changes from {self._size[0]}x{self._size[1]} to {now[0]}x{now[1]} pixels; one "
                "stream has one resolution, so put videoscale and a size into the pipeline."
            )
        self._size = now
        buffer = sample.get_buffer()
        capture_ns = None if buffer.pts == self._gst.CLOCK_TIME_NONE else int(buffer.pts)
        if (wrong := too_large(*now)) is not None:
            return Item(error=wrong, arrived_ns=arrived_ns, capture_ns=capture_ns)
        readable, memory = buffer.map(self._gst.MapFlags.READ)
        if not readable:
            return Item(error="the frame cannot be read", arrived_ns=arrived_ns, capture_ns=capture_ns)
        try:
            stride = info.stride[0]
            rows = np.frombuffer(memory.data, np.uint8)[: stride * info.height].reshape(info.height, stride)
            pixels = rows[:, : 3 * info.width].reshape(info.height, info.width, 3).copy()
        finally:
            buffer.unmap(memory)
        return Item(data=pixels, arrived_ns=arrived_ns, capture_ns=capture_ns)

    def close(self) -> None:
        """Stop the pipeline and let go of its devices."""
        if self._pipeline is not None:
            self._pipeline.set_state(self._gst.State.NULL)
        self._pipeline = self._sink = None

    def _error(self) -> str | None:
        """What the pipeline failed with, if it did."""
        message = self._pipeline.get_bus().pop_filtered(self._gst.MessageType.ERROR)
        return None if message is None else _said(message.parse_error()[0])


def is_pipeline(text: str) -> bool:
    """Whether a text is a GStreamer pipeline: elements with `!` in between."""
    return "!" in text.split()


def _said(error: Any) -> str:
    return shown(str(error.message).strip().split("\n")[0]).rstrip(".")
