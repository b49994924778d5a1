"""The trace keeps the rules of the Trace Event Format, and says what the stream's result says."""

import json
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from trt_compress.runtime.stream.result import StreamResult
from trt_compress.tools.report.trace import trace_from_stream

MakeStream = Callable[..., StreamResult]
Event = dict[str, Any]


@pytest.fixture
def stream(make_stream: MakeStream) -> StreamResult:
    return make_stream(300, drop_every=60, fail_at=(10,), spikes=2)


@pytest.fixture
def events(stream: StreamResult) -> list[Event]:
    trace = json.loads(json.dumps(trace_from_stream(stream), allow_nan=False))
    assert set(trace) == {"traceEvents", "displayTimeUnit", "otherData"} and trace["displayTimeUnit"] == "ms"
    return list(trace["traceEvents"])


def of(events: list[Event], *phases: str) -> list[Event]:
    return [event for event in events if event["ph"] in phases]


def test_every_event_has_what_its_phase_needs(events: list[Event]) -> None:
    needs = {
        "M": {"args"},
        "X": {"cat", "dur"},
        "b": {"cat", "id"},
        "e": {"cat", "id"},
        "s": {"cat", "id"},
        "t": {"cat", "id"},
        "f": {"cat", "id", "bp"},
        "i": {"s"},
        "C": {"args"},
    }
    assert {event["ph"] for event in events} == set(needs)
    for event in events:
        assert needs[event["ph"]] | {"name", "ph", "ts", "pid", "tid"} <= set(event)
        assert event["ts"] >= 0 and isinstance(event["pid"], int) and isinstance(event["tid"], int)
    assert all(event["dur"] >= 0 for event in of(events, "X"))
    assert all(event["s"] in ("g", "p", "t") for event in of(events, "i"))
    assert all(isinstance(value, int | float) for event in of(events, "C") for value in event["args"].values())


def test_time_never_goes_back_and_tracks_do_not_overlap(events: list[Event]) -> None:
    times = [event["ts"] for event in events if event["ph"] != "M"]
    assert times == sorted(times)
    tracks: dict[int, float] = defaultdict(float)
    for event in of(events, "X"):
        assert event["ts"] >= tracks[event["tid"]] - 1e-6
        tracks[event["tid"]] = event["ts"] + event["dur"]
    named = {event["tid"]: event["args"]["name"] for event in of(events, "M") if event["name"] == "thread_name"}
    assert {event["tid"] for event in events if event["ph"] != "M"} <= set(named)
    assert {named[tid].partition(" (")[0] for tid in tracks} == {
        *("capture and decode", "preprocess", "compute", "postprocess", "delivery to sinks"),
    }


def test_spans_of_a_frame_open_and_close_inside_it(events: list[Event], stream: StreamResult) -> None:
    open_spans: dict[int, list[str]] = defaultdict(list)
    frames: dict[int, list[float]] = defaultdict(list)
    for event in of(events, "b", "e"):
        spans = open_spans[event["id"]]
        if event["ph"] == "b":
            spans.append(event["name"])
        else:
            assert spans.pop() == event["name"]
        if event["name"].startswith("frame "):
            frames[event["id"]].append(event["ts"])
    assert not any(open_spans.values())
    columns = stream.frames
    assert frames == {
        number: [columns.arrival_ns[row] / 1000, columns.end_ns[row] / 1000] for row, number in enumerate(columns.id)
    }


def test_flows_join_the_stages_of_one_frame(events: list[Event], stream: StreamResult) -> None:
    slices = defaultdict(list)
    for event in of(events, "X"):
        slices[event["args"]["frame"]].append((event["ts"], event["tid"]))
    flows = defaultdict(list)
    for event in of(events, "s", "t", "f"):
        flows[event["id"]].append(event)
    delivered = [n for n, o in zip(stream.frames.id, stream.frames.outcome, strict=True) if o == "delivered"]
    assert sorted(flows) == delivered
    for number, flow in flows.items():
        assert "".join(event["ph"] for event in flow) == "stttf"
        assert [(event["ts"], event["tid"]) for event in flow] == slices[number]
        assert flow[-1]["bp"] == "e"


def test_durations_and_marks_are_those_of_the_result(events: list[Event], stream: StreamResult) -> None:
    sessions = {e["args"]["frame"]: e["dur"] * 1000 for e in of(events, "X") if e["name"] == "compute"}
    expected = {n: ns for n, ns in enumerate(stream.frames.stage_ns["session"]) if ns is not None}
    assert sessions == pytest.approx(expected)
    marks = defaultdict(int)
    for event in of(events, "i"):
        marks[event["name"]] += 1
    assert marks == {"dropped: a newer frame came": 5, "failed: the image is corrupt": 1, "deadline missed": 2}
    assert len(of(events, "C")) == stream.counts.delivered


def test_work_that_overlaps_gets_a_further_track(make_stream: MakeStream) -> None:
    stream = make_stream(4, fps=1000.0)  # frames 1 ms apart, each computed for 12 ms
    metas = of(trace_from_stream(stream)["traceEvents"], "M")
    names = {event["args"]["name"] for event in metas if event["name"] == "thread_name"}
    assert {"compute", "compute (2)", "compute (3)", "compute (4)"} <= names


def test_a_long_stream_gives_its_last_frames(make_stream: MakeStream) -> None:
    trace = trace_from_stream(make_stream(300), max_frames=50)
    assert trace["otherData"]["frames"] == "50 of 300"
    assert {event["id"] for event in of(trace["traceEvents"], "b")} == set(range(250, 300))


def test_a_stream_without_frames_is_still_a_trace(make_stream: MakeStream) -> None:
    stream = make_stream(3)
    empty = {
        name: () if isinstance(column, tuple) else {key: () for key in column}
        for name, column in ((f, getattr(stream.frames, f)) for f in stream.frames.__slots__ if f != "extra")
    }
    trace = trace_from_stream(replace(stream, frames=replace(stream.frames, **empty)))
    assert {event["ph"] for event in trace["traceEvents"]} == {"M"}
