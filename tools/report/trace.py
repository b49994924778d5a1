"""A stream as a trace that Perfetto (ui.perfetto.dev) and chrome://tracing open.

Form: Trace Event Format, JSON object form: `X` a stage's work on one frame (ts and dur in µs), `s`, `t`, `f` the flow
that joins the stages of a frame, `b`, `e` a frame's whole way and its waits, `i` a drop, a failure or a missed
deadline, `C` tokens, `M` names. Stages have one track each; work that overlaps gets a further track.
Source: "Trace Event Format", docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU.
"""

from dataclasses import dataclass, field
from typing import Any

from trt_compress.runtime.stream.result import StreamResult
from trt_compress.tools.report.from_stream import PART_NAMES, frame_steps

MAX_FRAMES = 20_000
"""The last frames of a longer stream; the trace says which it holds."""

Event = dict[str, Any]

_PID = 1
_FRAMES_TID = 1
_LANES = 100  # tracks that one stage may have


@dataclass(slots=True)
class _Tracks:
    """The tracks of every stage, and when each is free again."""

    order: list[str]
    free_ns: dict[int, int] = field(default_factory=dict)

    def take(self, stage: str, start_ns: int, end_ns: int) -> int:
        """The first track of this stage that is free at this time."""
        first = (self.order.index(stage) + 1) * _LANES
        tid = first
        while self.free_ns.get(tid, start_ns) > start_ns and tid < first + _LANES - 1:
            tid += 1
        self.free_ns[tid] = max(end_ns, self.free_ns.get(tid, 0))
        return tid

    def names(self) -> dict[int, str]:
        """Name of every track in use."""
        names = {}
        for tid in sorted(self.free_ns):
            stage, lane = self.order[tid // _LANES - 1], tid % _LANES
            names[tid] = stage if lane == 0 else f"{stage} ({lane + 1})"
        return names


def trace_from_stream(result: StreamResult, *, max_frames: int = MAX_FRAMES) -> dict[str, Any]:
    """Make the trace of a stream; events are in order of time."""
    frames = result.frames
    rows = range(max(0, len(frames.id) - max_frames), len(frames.id))
    tracks = _Tracks([PART_NAMES.get(stage, stage) for stage in result.protocol.order])
    events: list[Event] = []
    for row in rows:
        events += _frame_events(result, row, tracks)
    events.sort(key=lambda event: event["ts"])  # stable: of one moment, in the order in which they were made
    title = f"{result.identity.bundle} ({result.protocol.kind})"
    names = [_meta("process_name", 0, {"name": title}), _meta("thread_name", _FRAMES_TID, {"name": "frames"})]
    for tid, name in tracks.names().items():
        names.append(_meta("thread_name", tid, {"name": name}))
        names.append(_meta("thread_sort_index", tid, {"sort_index": tid}))
    return {
        "traceEvents": names + events,
        "displayTimeUnit": "ms",
        "otherData": {
            "bundle": result.identity.bundle,
            "started_at": result.started_at,
            "frames": f"{len(rows)} of {result.counts.frames_in}",
        },
    }


def _meta(name: str, tid: int, args: dict[str, Any]) -> Event:
    return {"name": name, "ph": "M", "pid": _PID, "tid": tid, "ts": 0, "args": args}


def _frame_events(result: StreamResult, row: int, tracks: _Tracks) -> list[Event]:
    frames = result.frames
    number, arrival, end = frames.id[row], frames.arrival_ns[row], frames.end_ns[row]
    outcome, reason = frames.outcome[row], frames.reason[row]
    args = {
        "outcome": outcome,
        "reason": reason,
        "level": frames.level[row],
        "tokens_in": frames.tokens_in[row],
        "tokens_out": frames.tokens_out[row],
    }
    args = {name: value for name, value in args.items() if value is not None}

    def event(ph: str, name: str, ns: int, tid: int = _FRAMES_TID, **more: Any) -> Event:
        return {"name": name, "cat": "frame", "ph": ph, "ts": ns / 1000, "pid": _PID, "tid": tid, **more}

    spans: list[Event] = []
    work: list[tuple[int, int]] = []
    for step in frame_steps(result, row):
        start_ns = arrival + round(step.start_ms * 1e6)
        step_end_ns = start_ns + round(step.ms * 1e6)
        if step.kind == "wait":
            spans.append(event("b", step.name, start_ns, id=number))
            spans.append(event("e", step.name, step_end_ns, id=number))
            continue
        tid = tracks.take(step.name, start_ns, step_end_ns)
        duration = (step_end_ns - start_ns) / 1000
        spans.append(event("X", step.name, start_ns, tid, dur=duration, args={"frame": number}))
        work.append((start_ns, tid))
    flow = []
    if len(work) > 1:
        for index, (start_ns, tid) in enumerate(work):
            ph = "s" if index == 0 else "f" if index == len(work) - 1 else "t"
            binding = {"bp": "e"} if ph == "f" else {}
            flow.append(event(ph, "frame", start_ns, tid, id=number, **binding))
    marks = []
    if outcome != "delivered":
        marks.append(event("i", f"{outcome}: {reason}" if reason else outcome, end, s="p", args={"frame": number}))
    elif frames.deadline_missed[row]:
        marks.append(event("i", "deadline missed", end, s="p", args={"frame": number}))
    tokens = frames.tokens_out[row]
    if outcome == "delivered" and tokens is not None:
        marks.append(event("C", "tokens", end, args={"tokens": tokens}))
    name = f"frame {number}"
    return [event("b", name, arrival, id=number, args=args), *spans, *flow, event("e", name, end, id=number), *marks]
