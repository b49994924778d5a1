"""Says what a stream sees and hears while it runs, and counts it.

Delivering a frame only notes what is new; a thread of its own says it, so that a slow terminal delays no frame.
"""

import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trt_compress.runtime.stream.calls import THREADS
from trt_compress.runtime.stream.findings import Features, Findings
from trt_compress.runtime.stream.frame import Frame
from trt_compress.runtime.stream.listener import Words

PERIOD_S = 0.25
"""How often news are said."""

MOST_SEEN = 2
MOST_HEARD = 25
"""Lines that are said at a time; of more the last ones, and how many were left out."""

_MOST_NOTED = 200
_LAST_WORDS_S = 2.0  # a terminal that has stopped is not waited for


class Watcher:
    """A sink that looks at the results of delivered frames.

    Args:
        heard: The bundle takes sound.
        live: The source has no clock that starts at 0; times are those of arrival.
        span_s: Length of what a result is of; 0 of a picture.
        say: Is told a line for every change, on a thread of its own; None: nothing is said.
    """

    def __init__(
        self, *, heard: bool, live: bool, span_s: float = 0.0, say: Callable[[str], None] | None = None
    ) -> None:
        self.name = "what is seen and heard"
        self._heard, self._live, self._span_s, self._say = heard, live, span_s, say
        self._origin_ns = 0
        self._results = self._with_boxes = 0
        self._classes: Counter[str] = Counter()
        self._boxes: Counter[str] = Counter()
        self._words = Words()
        self._features: list[int] = []  # frames of a result: the fewest, the most; their width; how many in all
        self._features_ms: float | None = 0.0
        self._last: str | None = None
        self._lock = threading.Lock()
        self._news: list[str] = []
        self._left_out = 0
        self._closing = threading.Event()
        self._speaker: threading.Thread | None = None

    def open(self) -> None:
        """Start to speak."""
        if self._say is not None:
            self._speaker = threading.Thread(target=self._speak, name=f"{THREADS}watcher", daemon=True)
            self._speaker.start()

    def start(self, origin_ns: int) -> None:
        """Count times from here."""
        self._origin_ns = origin_ns

    def deliver(self, frame: Frame, now_ns: int) -> None:
        """Count the results of a frame, and note them if they differ from those of the frame before."""
        results = frame.summary.get("results", [])
        self._results += len(results)
        texts = [self._count(result) for result in results]
        if not any(texts):
            return
        self._note_word(frame, results)
        text = ", ".join(text or "-" for text in texts) if len(texts) > 1 else str(texts[0])
        if text != self._last:
            self._last = text
            self._note(f"{self._when(frame)}  {self._with_score(text, results)}")

    def skip(self, frame: Frame) -> None:
        """A frame without results shows nothing."""

    def close(self) -> None:
        """Say what is left."""
        self._closing.set()
        if self._speaker is not None:
            self._speaker.join(_LAST_WORDS_S)
            self._speaker = None

    def findings(self) -> Findings | None:
        """What was counted; None where the results hold neither classes nor boxes nor features."""
        if self._last is None and not self._features:
            return None
        return Findings(
            kind="heard" if self._heard else "seen",
            results=self._results,
            classes=dict(self._classes.most_common()),
            boxes=dict(self._boxes.most_common()),
            with_boxes=self._with_boxes,
            words=tuple(self._words.words()),
            words_left_out=self._words.left_out,
            features=self._feature_sum(),
        )

    def _count(self, result: Mapping[str, Any]) -> str | None:
        """Count one result; what it shows, in words, or None where it shows neither a class nor boxes."""
        if "class" in result:
            text = class_text(result)
            self._classes[text] += 1
            return text
        if "frames" in result and "width" in result:
            self._count_features(result)
        if "boxes" not in result:
            return None
        found = Counter(class_text(box) for box in result["boxes"])
        self._boxes.update(found)
        self._with_boxes += bool(found)
        return counts_text(found) or "nothing"

    def _count_features(self, result: Mapping[str, Any]) -> None:
        frames, ms = int(result["frames"]), result.get("ms_per_frame")
        fewest, most, _, total = self._features or (frames, frames, 0, 0)
        self._features = [min(fewest, frames), max(most, frames), int(result["width"]), total + frames]
        self._features_ms = None if ms is None or self._features_ms is None else self._features_ms + ms * frames

    def _feature_sum(self) -> Features | None:
        if not self._features:
            return None
        fewest, most, width, total = self._features
        known = self._features_ms is not None and total > 0
        ms = round((self._features_ms or 0.0) / total, 3) if known else None
        return Features(frames=fewest, most_frames=most, width=width, ms_per_frame=ms)

    def _note_word(self, frame: Frame, results: Sequence[Mapping[str, Any]]) -> None:
        at = self._at_s(frame)
        if at is None or len(results) != 1 or "class" not in results[0]:
            return
        self._words.add(at, at + self._span_s, results[0])

    def _at_s(self, frame: Frame) -> float | None:
        """Seconds on the source's clock, or since the start of a live stream; None where the source has no clock."""
        if self._live:
            return (frame.arrival_ns - self._origin_ns) / 1e9
        return None if frame.capture_ns is None else frame.capture_ns / 1e9

    def _when(self, frame: Frame) -> str:
        at = self._at_s(frame)
        return f"frame {frame.id:>5}" if at is None else f"{at:8.1f} s"

    def _with_score(self, text: str, results: Sequence[Mapping[str, Any]]) -> str:
        score = results[0].get("score") if len(results) == 1 else None
        return f"{text}  {score:.0%}" if isinstance(score, float) else text

    def _note(self, line: str) -> None:
        if self._say is None:
            return
        with self._lock:
            if len(self._news) < _MOST_NOTED:
                self._news.append(line)
            else:
                self._news[-1] = line
                self._left_out += 1

    def _speak(self) -> None:
        while True:
            last = self._closing.wait(PERIOD_S)
            with self._lock:
                news, left_out = self._news, self._left_out
                self._news, self._left_out = [], 0
            most = MOST_HEARD if self._heard else MOST_SEEN
            assert self._say is not None
            try:
                if left_out := left_out + max(0, len(news) - most):
                    self._say(f"          … {left_out} change{'s' * (left_out > 1)} between")
                for line in news[-most:]:
                    self._say(line)
            except OSError:  # a terminal that went away; the stream goes on
                return
            if last:
                return


def class_text(result: Mapping[str, Any]) -> str:
    """The label of a result or box; "class 7" where the bundle names none."""
    return str(result.get("label", f"class {result['class']}"))


def counts_text(counts: Mapping[str, int], most: int = 12) -> str:
    """`car 3, truck 1`, the most frequent first, then by name."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    rest = sum(number for _, number in ordered[most:])
    more = [f"{len(ordered) - most} others {rest}"] if rest else []
    return ", ".join([*(f"{name} {number}" for name, number in ordered[:most]), *more])
