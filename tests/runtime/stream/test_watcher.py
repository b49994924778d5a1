"""What a stream says of its results while it runs, and what it counted at the end."""

import threading
import time
from typing import Any

import pytest

from trt_compress.runtime.stream.frame import Frame
from trt_compress.runtime.stream.watcher import MOST_HEARD, MOST_SEEN, Watcher, counts_text

SECOND = 1_000_000_000


def frame(number: int, *results: dict[str, Any], at_s: float | None = None) -> Frame:
    capture = None if at_s is None else round(at_s * SECOND)
    made = Frame(id=number, source="a", arrival_ns=5 * SECOND + number, start_ns=0, mark_ns=0, capture_ns=capture)
    made.summary = {"results": list(results)}
    return made


def word(text: str, score: float = 0.9) -> dict[str, Any]:
    return {"class": 1, "label": text, "score": score}


def watched(frames: list[Frame], **options: Any) -> tuple[list[str], Any]:
    lines: list[str] = []
    watcher = Watcher(**{"heard": False, "live": False, "say": lines.append, **options})
    watcher.open()
    watcher.start(4 * SECOND)
    for item in frames:
        watcher.deliver(item, 0)
    watcher.close()
    return lines, watcher.findings()


def test_words_are_said_as_they_change_and_summed_up_with_their_times() -> None:
    heard = ["yes", "yes", "no", "no", "yes"]
    frames = [frame(n, word(text), at_s=n) for n, text in enumerate(heard)]
    lines, found = watched(frames, heard=True, span_s=1.0)
    assert [line.split() for line in lines] == [
        ["0.0", "s", "yes", "90%"], ["2.0", "s", "no", "90%"], ["4.0", "s", "yes", "90%"],
    ]  # fmt: skip
    assert (found.kind, found.results, found.classes) == ("heard", 5, {"yes": 3, "no": 2})
    assert [(w.start_s, w.end_s, w.text) for w in found.words] == [(0, 2, "yes"), (2, 4, "no"), (4, 5, "yes")]


def test_boxes_are_counted_by_class_whatever_their_order() -> None:
    car, truck = {"class": 0, "label": "car"}, {"class": 1, "label": "truck"}
    frames = [
        frame(0, {"boxes": [car, truck, car]}),
        frame(1, {"boxes": [truck, car, car]}),
        frame(2, {"boxes": []}),
        frame(3, {"boxes": [{"class": 2}]}),
    ]
    lines, found = watched(frames)
    assert lines[-2:] == ["frame     2  nothing", "frame     3  class 2 1"]
    assert found.boxes == {"car": 4, "truck": 2, "class 2": 1} and (found.with_boxes, found.results) == (3, 4)
    assert found.words == () and found.classes == {}


@pytest.mark.parametrize(("heard", "most"), [(False, MOST_SEEN), (True, MOST_HEARD)])
def test_many_changes_at_once_are_the_last_ones_and_a_number(heard: bool, most: int) -> None:
    frames = [frame(n, word(f"w{n}"), at_s=n) for n in range(300)]
    lines, found = watched(frames, heard=heard)
    assert lines[0].split()[1:] == [str(300 - most), "changes", "between"] and len(lines) == most + 1
    assert lines[-1].split()[2] == "w299" and len(found.words) == 300


def test_a_slow_terminal_delays_no_frame() -> None:
    begun, held = threading.Event(), threading.Event()

    def slow(line: str) -> None:
        begun.set()
        held.wait(60)

    watcher = Watcher(heard=False, live=True, say=slow)
    watcher.open()
    watcher.start(4 * SECOND)
    watcher.deliver(frame(0, word("a")), 0)
    assert begun.wait(60)
    begin = time.perf_counter()
    for number in range(100):
        watcher.deliver(frame(number, word(f"w{number}")), 0)
    assert time.perf_counter() - begin < 30  # half of what each would wait
    held.set()
    watcher.close()


def test_a_live_source_counts_from_the_start_and_several_streams_stand_side_by_side() -> None:
    lines, found = watched([frame(0, word("a"), word("b"), at_s=99.0)], live=True)
    assert lines == ["     1.0 s  a, b"] and found.words == () and found.classes == {"a": 1, "b": 1}


def test_results_without_classes_or_boxes_say_nothing() -> None:
    assert watched([frame(0, {"samples": 7, "rms": 0.1}), frame(1)]) == ([], None)


def test_a_terminal_that_went_away_ends_nothing() -> None:
    def gone(line: str) -> None:
        raise BrokenPipeError

    _, found = watched([frame(0, word("a"), at_s=0.0)], say=gone)
    assert found.classes == {"a": 1}


def test_counts_in_words() -> None:
    assert counts_text({"b": 1, "a": 1, "c": 5}) == "c 5, a 1, b 1"
    assert counts_text({str(n): 20 - n for n in range(14)}, most=12).endswith(", 2 others 15")
