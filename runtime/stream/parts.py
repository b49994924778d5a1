"""What a stream is made of: sources give items, sinks take frames; a bad frame is one thing, a broken part another."""

from dataclasses import dataclass
from typing import Any, Protocol

from trt_compress.runtime.stream.frame import Frame


class BadFrame(Exception):
    """This frame alone is no good: it is counted as failed, with this reason, and the stream goes on.

    Raised by preprocessing, or by a level before it runs. The reason is one of few: it names no numbers of the frame.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """What a source gives for one frame.

    Attributes:
        data: An image [H, W, 3] uint8 (RGB) or [H, W] (grey); samples [S] float32; or arrays by input name.
        capture_ns: The source's own time stamp, on its own clock.
        arrived_ns: When a live device gave it, on the stream's clock.
        error: Why the frame is no good; `data` is None then.
    """

    data: Any = None
    capture_ns: int | None = None
    arrived_ns: int | None = None
    error: str | None = None


class Source(Protocol):
    """Where frames come from. `open` and `read` may raise any error of this package: the stream ends with it.

    Attributes:
        name: For messages and the result.
        live: Frames come when the device gives them, and none is given twice; otherwise opening again starts anew.
        length: How many frames there are, if that is known before.
    """

    name: str
    live: bool
    length: int | None

    def open(self) -> None:
        """Start at the first frame."""
        ...

    def read(self) -> Item | None:
        """Give the next frame, decoded, or None at the end."""
        ...

    def close(self) -> None:
        """Let go of files and devices."""
        ...


class Sink(Protocol):
    """Where results go. Whatever is raised ends the stream: what cannot be written is not dropped silently.

    One thread at a time calls a sink. A call that does not come back ends the stream after the stall time; the sink is
    then left as it is, and never called again. A sink that has a `name` is called by it in messages.
    """

    def open(self) -> None:
        """Make ready, before the first frame."""
        ...

    def start(self, origin_ns: int) -> None:
        """The stream starts now, on its clock: results count times from here."""
        ...

    def deliver(self, frame: Frame, now_ns: int) -> None:
        """Take a frame with its outputs; `now_ns` is the stream's clock counted from its start."""
        ...

    def skip(self, frame: Frame) -> None:
        """Take note of a frame that was dropped or failed; its arrays are gone."""
        ...

    def close(self) -> None:
        """Finish what was written."""
        ...
