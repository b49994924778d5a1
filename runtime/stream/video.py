"""Video by PyAV: files, cameras (v4l2) and network streams (rtsp, http, tcp, udp)."""

import sys
from collections.abc import Iterator
from typing import Any

from trt_compress.errors import ConfigError, StreamError
from trt_compress.runtime.stream.images import load_library
from trt_compress.runtime.stream.pace import Clock
from trt_compress.runtime.stream.parts import Item

_NO_PACKET = "the packet cannot be decoded"
_DAMAGED = "the frame is damaged"


class VideoSource:
    """Frames of a video as RGB, [H, W, 3] uint8.

    A packet that cannot be decoded, and a frame that the decoder marks as damaged, are frames that failed. A file that
    ends before its header says, and a change of resolution, end the stream with an error.

    Args:
        address: A file, `camera:0`, `camera:/dev/video0`, or a URL.
        clock: Stamps the frames of a live source.
        stall_s: How long a network stream may be silent.
    """

    def __init__(self, address: str, clock: Clock, stall_s: float) -> None:
        self.name = address
        self.live = address.startswith("camera:") or "://" in address
        self.length: int | None = None
        self._clock = clock
        self._stall_s = stall_s
        self._av: Any = None
        self._container: Any = None
        self._items: Iterator[Item] | None = None

    def open(self) -> None:
        """Open the file, device or connection.

        Raises:
            ConfigError: It does not exist, or is no video.
            StreamError: Nobody answers.
            UnsupportedError: PyAV is not installed.
        """
        self._av = load_library("av", "av", "video", "Reading video")
        self._av.logging.set_level(None)  # its lines on stderr; errors come as exceptions
        begin_ns = self._clock.now_ns()
        try:
            self._container = self._open()
        except (self._av.error.FFmpegError, OSError) as error:
            if self.live and self._clock.now_ns() - begin_ns > 0.9e9 * self._stall_s:  # FFmpeg names other reasons too
                raise self._silent() from None
            reason = getattr(error, "strerror", None) or error
            what = (
                "is a camera that this machine has"
                if self.name.startswith("camera:")
                else "is a video and plays elsewhere"
            )
            raise ConfigError(f"'{self.name}' cannot be opened ({reason}); check that it {what}.") from None
        if not self._container.streams.video:
            self.close()
            raise ConfigError(f"'{self.name}' has no video stream; give a file with one.")
        stream = self._container.streams.video[0]
        stream.thread_type = "SLICE"  # threads over frames would hold back as many frames as there are threads
        self.length = None if self.live else (stream.frames or None)
        self._items = self._frames(stream)

    def read(self) -> Item | None:
        """Give the next frame, or None at the end.

        Raises:
            StreamError: The file is truncated, the resolution changed, or a live source fell silent.
        """
        assert self._items is not None
        return next(self._items, None)

    def close(self) -> None:
        """Let go of the file, device or connection."""
        self._items = None
        if self._container is not None:
            self._container.close()
            self._container = None

    def _open(self) -> Any:
        address, options, form = self.name, {}, None
        if address.startswith("camera:"):
            device = address.removeprefix("camera:")
            if not sys.platform.startswith("linux"):
                raise ConfigError(f"'{address}': cameras are read by v4l2, which only Linux has; give a file or a URL.")
            address, form = f"/dev/video{device}" if device.isdigit() else device, "v4l2"
        elif address.startswith("rtsp://"):
            options = {"rtsp_transport": "tcp"}
        timeout = (self._stall_s, self._stall_s) if "://" in address else None
        return self._av.open(address, format=form, options=options, timeout=timeout)

    def _frames(self, stream: Any) -> Iterator[Item]:
        """Demultiplex and decode; what arrives late arrived when its packet did."""
        given, size, end_ns = 0, None, None
        for packet, arrived_ns in self._packets(stream):
            try:
                frames = packet.decode()
            except self._av.error.FFmpegError:
                given += 1
                yield Item(error=_NO_PACKET, arrived_ns=arrived_ns)
                continue
            if not frames and packet.size and stream.codec_context.codec.intra_only:
                given += 1
                yield Item(error=_NO_PACKET, arrived_ns=arrived_ns)
            for frame in frames:
                given += 1
                now = (frame.width, frame.height)
                if size is not None and now != size:
                    raise StreamError(
                        f"'{self.name}' changes from {size[0]}x{size[1]} to {now[0]}x{now[1]} pixels; "
                        "one stream has one resolution, so run the parts one by one."
                    )
                size = now
                capture = _nanoseconds(frame.pts, frame.time_base)
                end_ns = capture if capture is not None else end_ns
                if frame.is_corrupt:
                    yield Item(error=_DAMAGED, arrived_ns=arrived_ns, capture_ns=capture)
                else:
                    yield Item(data=frame.to_ndarray(format="rgb24"), arrived_ns=arrived_ns, capture_ns=capture)
        if not self.live:
            self._check_whole(stream, given, end_ns)

    def _packets(self, stream: Any) -> Iterator[tuple[Any, int | None]]:
        packets = self._container.demux(stream)
        while True:
            try:
                packet = next(packets, None)
            except self._av.error.ExitError:
                raise self._silent() from None
            except self._av.error.FFmpegError as error:
                raise StreamError(
                    f"'{self.name}' cannot be read further ({error.strerror}); the file is damaged, or the device or "
                    "connection is gone."
                ) from None
            if packet is None:
                return
            yield packet, self._clock.now_ns() if self.live else None

    def _check_whole(self, stream: Any, given: int, last_ns: int | None) -> None:
        """Refuse a file that ends before it should, by its number of frames and its duration.

        Both must fall short: an edit list hides frames that are counted, and a longer sound track counts in the
        duration of the file.
        """
        if stream.frames and given >= stream.frames:
            return
        duration = _nanoseconds(stream.duration, stream.time_base)
        if duration is None and len(self._container.streams) == 1 and self._container.duration:
            duration = self._container.duration * 1000  # microseconds
        rate = stream.average_rate or stream.base_rate
        if not duration or not rate:
            if stream.frames:
                raise self._truncated(given, stream.frames)
            return
        start = _nanoseconds(stream.start_time, stream.time_base) or 0
        frame_ns = round(1e9 / rate)
        seen = 0 if last_ns is None else last_ns + frame_ns - start
        if seen < duration - 3 * frame_ns // 2:
            raise self._truncated(given, stream.frames or round(duration / frame_ns))

    def _truncated(self, given: int, wanted: int) -> StreamError:
        return StreamError(
            f"'{self.name}' ends after {given} of {wanted} frames: the file is truncated; copy it again."
        )

    def _silent(self) -> StreamError:
        return StreamError(
            f"The source '{self.name}' gave nothing for {self._stall_s:g} s; check the device or the connection, or "
            "allow a longer silence with --stall-s."
        )


def _nanoseconds(ticks: int | None, base: Any) -> int | None:
    return None if ticks is None or base is None else round(ticks * base * 1_000_000_000)
