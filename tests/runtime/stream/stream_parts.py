"""Sources, stages and sinks whose every step a test decides."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from trt_compress.runtime.stream.frame import Frame
from trt_compress.runtime.stream.parts import Item
from trt_compress.runtime.stream.pipeline import Finished, Pipeline, Settings, Stages

WAIT_S = 10.0  # a test that hangs fails after this long


class ListSource:
    """Gives the items of a list; `before` is called with a frame's number before it is given."""

    name = "list"
    live = False

    def __init__(self, items: Sequence[Any], before: Callable[[int], None] = lambda index: None) -> None:
        self.items = [item if isinstance(item, Item | Exception | None) else Item(data=item) for item in items]
        self.length: int | None = None
        self.before = before
        self.opened = 0
        self.closed = 0
        self._next = 0

    def open(self) -> None:
        self.opened += 1
        self._next = 0

    def read(self) -> Item | None:
        index = self._next
        self._next += 1
        self.before(index)
        item = self.items[index] if index < len(self.items) else None
        if isinstance(item, Exception):
            raise item
        return item

    def close(self) -> None:
        self.closed += 1


class KeepingSink:
    """Remembers what came, by outcome."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.delivered: list[int] = []
        self.skipped: list[tuple[int, str | None, str | None]] = []
        self.summaries: list[dict[str, Any]] = []
        self.state = "new"
        self.fail_at = fail_at
        self._lock = threading.Lock()

    def open(self) -> None:
        self.state = "open"

    def start(self, origin_ns: int) -> None:
        assert origin_ns > 0

    def deliver(self, frame: Frame, now_ns: int) -> None:
        if frame.id == self.fail_at:
            raise OSError(28, "No space left on device")
        self.delivered.append(frame.id)
        self.summaries.append(frame.summary)

    def skip(self, frame: Frame) -> None:
        with self._lock:
            self.skipped.append((frame.id, frame.outcome, frame.reason))

    def close(self) -> None:
        self.state = "closed"


def identity_stages(run: Callable[[Frame], None] | None = None, **stages: Any) -> Stages:
    """Stages that hand `data` on: input x, output y, summary."""

    def copy(frame: Frame) -> None:
        frame.outputs = {"y": frame.inputs["x"]}

    def summarize(frame: Frame) -> None:
        frame.summary = {"results": [{"value": float(frame.outputs["y"])}]}

    parts: dict[str, Any] = {
        "preprocess": lambda data: {"x": np.asarray(data, np.float32)},
        "run": run or copy,
        "postprocess": summarize,
    }
    return Stages(**(parts | stages))


def run_pipeline(source: Any, stages: Stages | None = None, **settings: Any) -> tuple[Finished, KeepingSink]:
    """Run a pipeline to its end; the ledger has checked that no frame is unaccounted for."""
    sink = settings.pop("sink", None) or KeepingSink()
    pipeline = Pipeline(source, stages or identity_stages(), [sink], Settings(**settings))
    pipeline.prepare()
    return pipeline.run(), sink


def by_outcome(finished: Finished) -> dict[str, list[int]]:
    """The frames of a finished stream by outcome."""
    frames = finished.ledger.frames()
    found: dict[str, list[int]] = {"delivered": [], "dropped": [], "failed": []}
    for number, outcome in zip(frames.id, frames.outcome, strict=True):
        found[outcome].append(number)
    return found
