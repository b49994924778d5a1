"""Video by PyAV: files, cameras (v4l2) and network streams (rtsp, http, tcp, udp)."""

import logging
import os
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from trt_compress.errors import ConfigError, StreamError, TrtCompressError
from trt_compress.runtime.stream.containers import is_cut_off
from trt_compress.runtime.stream.frame import Array
from trt_compress.runtime.stream.images import load_library
from trt_compress.runtime.stream.pace import Clock
from trt_compress.runtime.stream.parts import Item
from trt_compress.runtime.stream.pictures import too_large
from trt_compress.runtime.stream.upright import UNTURNED, Turn, turn_from_matrix

_LOGGER = logging.getLogger("trt_compress")

_NO_PACKET = "the packet cannot be decoded"
_DAMAGED = "the frame is damaged"
_MATRIX = "DISPLAYMATRIX"
_COVER = 0x400  # FFmpeg's disposition of a picture that belongs to a sound
_JPEG_TAIL = 64  # bytes in which the end marker of a JPEG lies; some cameras pad it
_PARTIAL_WITHIN = 4  # packets from the end of a file
_NO_COUNT = 1 << 30  # what FFmpeg writes into an AVI that goes into a pipe
_SQUARE = 0.02  # how far the sides of a pixel may differ without a word


class VideoSource:
    """Frames of a video as RGB, [H, W, 3] uint8, upright: turned as the file's display matrix says.

    Pixels are given as they are stored, also where a player would stretch them. A packet that cannot be decoded, and a
    frame that is marked as damaged, are frames that failed. A file that ends before its header says, and a change of
    resolution, end the stream with an error. The picture on the cover of a sound file is no video.

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
        except TrtCompressError:
            raise
        except Exception as error:  # FFmpegError and OSError mostly; a foreign file can bring others
            if self.live and self._clock.now_ns() - begin_ns > 0.9e9 * self._stall_s:  # FFmpeg names other reasons too
                raise self._silent() from None
            self._say_if_cut_off()
            reason = getattr(error, "strerror", None) or error
            what = (
                "is a camera that this machine has"
                if self.name.startswith("camera:")
                else "is a video and plays elsewhere"
            )
            raise ConfigError(f"'{self.name}' cannot be opened ({reason}); check that it {what}.") from None
        try:
            stream = self._stream()
        except ConfigError:
            self.close()
            self._say_if_cut_off()
            raise
        stream.thread_type = "SLICE"  # threads over frames would hold back as many frames as there are threads
        self.length = None if self.live else _count_of(stream)
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

    def _say_if_cut_off(self) -> None:
        """What cannot be opened may lack what stands at its end, as the index of an MP4."""
        if os.path.isfile(self.name) and is_cut_off(self.name):
            raise ConfigError(
                f"'{self.name}' ends too early to be opened: the file is truncated; copy it again."
            ) from None

    def _stream(self) -> Any:
        """The first video stream that is no cover picture."""
        videos = [stream for stream in self._container.streams.video if not stream.disposition.value & _COVER]
        if not videos and self._container.streams.video:
            raise ConfigError(
                f"'{self.name}' holds sound only (its picture is the cover); give a file with a video stream."
            )
        if not videos:
            raise ConfigError(f"'{self.name}' has no video stream; give a file with one.")
        if videos[0].codec_context is None:
            raise ConfigError(
                f"'{self.name}' holds video of a kind that PyAV cannot decode; convert it, for example to H.264."
            )
        return videos[0]

    def _open(self) -> Any:
        address, options, form = self.name, {}, None
        if address.startswith("camera:"):
            device = address.removeprefix("camera:")
            if not sys.platform.startswith("linux"):
                raise ConfigError(f"'{address}': cameras are read by v4l2, which only Linux has; give a file or a URL.")
            address, form = f"/dev/video{device}" if device.isdigit() else device, "v4l2"
        elif address.startswith("rtsp://"):
            options = {"rtsp_transport": "tcp"}
        elif not self.live:
            address = f"file:{address}"  # or FFmpeg would take what stands before a colon for a protocol
        timeout = (self._stall_s, self._stall_s) if "://" in address else None
        return self._av.open(address, format=form, options=options, timeout=timeout)

    def _frames(self, stream: Any) -> Iterator[Item]:
        """Demultiplex and decode; what arrives late arrived when its packet did."""
        given, size, end_ns, turn = 0, None, None, UNTURNED
        partial: set[int | None] = set()  # time stamps of packets that the file does not hold to their end
        last: Any = None
        since_partial = _PARTIAL_WITHIN  # packets since such a one; a format may give its last packets out of order
        joined = self._container.format.name == "mpegts"  # there the mark means that the packets do not join
        # AVI says when frames are decoded, and FFmpeg takes that for when they are shown, which B-frames mix up
        in_order_only, stamp = self._container.format.name == "avi", 0
        for packet, arrived_ns in self._packets(stream):
            if packet.size:
                last = packet
                since_partial += 1
                if packet.is_corrupt and not joined:
                    partial.add(packet.pts)
                    since_partial = 0
            try:
                frames = packet.decode()
            except Exception:  # whatever FFmpeg or PyAV makes of damaged data
                given += 1
                yield Item(error=_NO_PACKET, arrived_ns=arrived_ns)
                continue
            if not frames and packet.size and stream.codec_context.codec.intra_only:
                given += 1
                yield Item(error=_NO_PACKET, arrived_ns=arrived_ns)
            for frame in frames:
                if given == 0:
                    self._say_if_not_square(stream, frame)
                given += 1
                turn = self._turn(frame, turn)
                now = (frame.height, frame.width) if turn.swap else (frame.width, frame.height)
                if size is not None and now != size:
                    raise StreamError(
                        f"'{self.name}' changes from {size[0]}x{size[1]} to {now[0]}x{now[1]} pixels; "
                        "one stream has one resolution, so run the parts one by one."
                    )
                size = now
                shown_ns = _nanoseconds(frame.pts, frame.time_base)
                end_ns = shown_ns if shown_ns is not None else end_ns
                if in_order_only:
                    stamp = frame.dts if frame.dts is not None else stamp + 1
                    capture = _nanoseconds(stamp, frame.time_base)
                else:
                    capture = shown_ns
                error = (
                    _DAMAGED
                    if frame.is_corrupt or (frame.pts in partial and frame.pts is not None)
                    else too_large(*now)
                )
                pixels = None if error else _rgb(frame)
                if pixels is None:
                    yield Item(error=error or _DAMAGED, arrived_ns=arrived_ns, capture_ns=capture)
                else:
                    yield Item(data=turn(pixels), arrived_ns=arrived_ns, capture_ns=capture)
        if not self.live:
            self._check_whole(stream, given, end_ns, last, since_partial < _PARTIAL_WITHIN)

    def _turn(self, frame: Any, before: Turn) -> Turn:
        """How a frame is to be turned.

        Its decoder attaches the display matrix of the file to every frame, and that of a stream (SEI) to the one that
        brings it: it holds up to the next key frame.

        Args:
            frame: The frame.
            before: The turn of the frame before.
        """
        for data in frame.side_data:
            if data.type.name == _MATRIX:
                turn = turn_from_matrix(np.frombuffer(data, np.int32).tolist())
                if turn is None:
                    raise StreamError(
                        f"'{self.name}' is to be shown at an angle that is no quarter turn; turn it before, for "
                        "example with ffmpeg -i IN OUT, and give the result."
                    )
                return turn
        return UNTURNED if frame.key_frame else before

    def _say_if_not_square(self, stream: Any, frame: Any) -> None:
        ratio = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio
        if ratio and abs(ratio - 1) > _SQUARE:
            _LOGGER.warning(
                "'%s' has pixels %d:%d as wide as high, and its frames are taken as they are stored, %dx%d; to have "
                "them as players show them, convert it with ffmpeg -vf scale=iw*sar:ih,setsar=1.",
                self.name,
                ratio.numerator,
                ratio.denominator,
                frame.width,
                frame.height,
            )

    def _packets(self, stream: Any) -> Iterator[tuple[Any, int | None]]:
        packets = self._container.demux(stream)
        while True:
            try:
                packet = next(packets, None)
            except self._av.error.ExitError:
                raise self._silent() from None
            except Exception as error:
                reason = getattr(error, "strerror", None) or error
                raise StreamError(
                    f"'{self.name}' cannot be read further ({reason}); the file is damaged, or the device or "
                    "connection is gone."
                ) from None
            if packet is None:
                return
            yield packet, self._clock.now_ns() if self.live else None

    def _check_whole(self, stream: Any, given: int, end_ns: int | None, last: Any, partial: bool) -> None:
        """Refuse a file that ends before it should: by its own structure, its last packet, its count and duration.

        Where only count and duration speak, both must fall short: an edit list hides frames that are counted, and a
        longer sound track counts in the duration of the file.

        Args:
            stream: The video stream.
            given: Frames that came out, those that failed too.
            end_ns: Time stamp of the last one.
            last: The last packet that held data, or None.
            partial: Whether the file ends within it.
        """
        count, duration = _count_of(stream), None
        if count or not stream.frames:  # else the number is a placeholder, and the durations are made of it
            duration = _nanoseconds(stream.duration, stream.time_base)
            if duration is None and len(self._container.streams) == 1 and self._container.duration:
                duration = self._container.duration * 1000  # microseconds
        rate = stream.average_rate or stream.base_rate
        wanted = count or (round(duration * rate / 1_000_000_000) if duration and rate else None)
        cut_off = is_cut_off(self.name) if os.path.isfile(self.name) else None
        if cut_off or partial or (last is not None and _is_partial_jpeg(stream, last)):
            raise self._truncated(given, wanted)
        if cut_off is False or (count and given >= count):
            return
        if not duration or not rate:
            if count:
                raise self._truncated(given, count)
            return
        start = _nanoseconds(stream.start_time, stream.time_base) or 0
        frame_ns = round(1e9 / rate)
        lasts = max(frame_ns, _nanoseconds(last.duration, last.time_base) or 0) if last is not None else frame_ns
        seen = 0 if end_ns is None else end_ns + lasts - start
        if seen < duration - 3 * frame_ns // 2:
            raise self._truncated(given, wanted)

    def _truncated(self, given: int, wanted: int | None) -> StreamError:
        counted = f"{given} of {wanted}" if wanted and wanted > given else str(given)
        return StreamError(f"'{self.name}' ends after {counted} frames: the file is truncated; copy it again.")

    def _silent(self) -> StreamError:
        return StreamError(
            f"The source '{self.name}' gave nothing for {self._stall_s:g} s; check the device or the connection, or "
            "allow a longer silence with --stall-s."
        )


def _nanoseconds(ticks: int | None, base: Any) -> int | None:
    return None if ticks is None or base is None else round(ticks * base * 1_000_000_000)


def _count_of(stream: Any) -> int | None:
    """How many frames a file says that it has; None where it does not, or its writer never came back to put it in."""
    return stream.frames if 0 < stream.frames < _NO_COUNT else None


def _rgb(frame: Any) -> Array | None:
    """The pixels of a frame, or None if they cannot be had (a format that nothing converts, no memory)."""
    try:
        pixels: Array = frame.to_ndarray(format="rgb24")
    except Exception:
        return None
    return pixels


def _is_partial_jpeg(stream: Any, packet: Any) -> bool:
    """Whether a picture of Motion JPEG lacks its end marker; its decoder fills the rest with grey and says nothing."""
    return stream.codec_context.name == "mjpeg" and b"\xff\xd9" not in bytes(packet)[-_JPEG_TAIL:]
