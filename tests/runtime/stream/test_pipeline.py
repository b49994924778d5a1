"""What becomes of frames: by policy, by protocol, and however the stream ends."""

import re
import threading
import time
from typing import Any

import numpy as np
import pytest

from tests.runtime.stream.stream_parts import WAIT_S, KeepingSink, ListSource, by_outcome, identity_stages, run_pipeline
from trt_compress.errors import ConfigError, ShapeError, StreamError
from trt_compress.runtime.stream.branch import Branch
from trt_compress.runtime.stream.frame import Frame
from trt_compress.runtime.stream.guard import NotBegun
from trt_compress.runtime.stream.pace import Pace
from trt_compress.runtime.stream.parts import BadFrame, Item
from trt_compress.runtime.stream.pipeline import Pipeline, Settings
from trt_compress.runtime.stream.result import QUEUES, STAGES, OverlayCounts, Policy

FAST = Pace(kind="fixed rate", fps=1e6)  # the source waits for nobody


class Gate:
    """A session that takes one frame and holds it until the test lets it go."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.open = threading.Event()
        self.ran: list[int] = []

    def run(self, frame: Frame) -> None:
        self.ran.append(frame.id)
        self.entered.set()
        assert self.open.wait(WAIT_S)
        frame.outputs = {"y": frame.inputs["x"]}


class Slow(KeepingSink):
    """Takes its time with a frame, and looks at its arrays."""

    def deliver(self, frame: Frame, now_ns: int) -> None:
        time.sleep(0.02)
        assert frame.data is not None and frame.outputs
        super().deliver(frame, now_ns)


def test_a_watcher_is_no_part_of_a_frames_time() -> None:
    watcher = Slow()
    sink = KeepingSink()
    pipeline = Pipeline(ListSource([float(n) for n in range(8)]), identity_stages(), [sink], watchers=[watcher])
    pipeline.prepare()
    finished = pipeline.run()
    frames = finished.ledger.frames()
    assert watcher.delivered == sink.delivered == list(range(8)) and watcher.state == "closed"
    assert finished.wall_ns > 8 * 20_000_000
    assert np.median(np.subtract(frames.end_ns, frames.arrival_ns)) < 10_000_000
    assert all((ns or 0) < 20_000_000 for ns in frames.stage_ns["sink"])


def test_a_watcher_that_raises_ends_the_stream_with_every_frame_accounted_for() -> None:
    watcher = KeepingSink(fail_at=3)
    pipeline = Pipeline(ListSource([float(n) for n in range(8)]), identity_stages(), watchers=[watcher])
    pipeline.prepare()
    finished = pipeline.run()
    assert finished.ended == "error" and finished.error is not None and watcher.state == "closed"
    assert by_outcome(finished)["delivered"] == [0, 1, 2]


class SlowPicture(KeepingSink):
    counts = OverlayCounts(drawn=0, behind=0, without_result=0)

    def deliver(self, frame: Frame, now_ns: int) -> None:
        time.sleep(0.02)
        super().deliver(frame, now_ns)


@pytest.mark.parametrize("policy", ["latest", "drop-oldest"])
def test_an_overlay_in_latency_that_is_slow_drops_frames_and_holds_nothing_up(policy: Policy) -> None:
    """It takes frames by their numbers, and so has to hear of a dropped one before those behind it."""
    sink = SlowPicture()
    items: list[Any] = [Item(error="damaged") if number % 7 == 3 else float(number) for number in range(200)]
    settings = Settings(pace=Pace(kind="fixed rate", fps=500), policy=policy, stall_s=2.0)
    pipeline = Pipeline(ListSource(items), identity_stages(), [Branch(sink, in_latency=True)], settings)
    pipeline.prepare()
    finished = pipeline.run()
    counts = finished.ledger.counts()
    assert (finished.ended, finished.error, counts.frames_in) == ("end of source", None, 200)
    assert sink.delivered == by_outcome(finished)["delivered"] and counts.dropped > 100
    assert sorted(sink.delivered + [number for number, _, _ in sink.skipped]) == list(range(200))


def test_all_frames_are_delivered_in_order_with_a_time_for_everything() -> None:
    finished, sink = run_pipeline(ListSource([float(n) for n in range(50)]))
    assert sink.delivered == list(range(50))
    assert [summary["results"][0]["value"] for summary in sink.summaries] == [float(n) for n in range(50)]
    assert (finished.ended, finished.error, sink.state) == ("end of source", None, "closed")
    frames = finished.ledger.frames()
    assert set(frames.stage_ns) == set(STAGES) and set(frames.queue_wait_ns) == set(QUEUES)
    for row in range(50):
        parts = [frames.stage_ns[name][row] for name in STAGES] + [frames.queue_wait_ns[name][row] for name in QUEUES]
        assert all(part is not None and part >= 0 for part in parts)
        assert sum(part or 0 for part in parts) == frames.end_ns[row] - frames.arrival_ns[row]  # nothing is missing
    assert finished.wall_ns >= frames.end_ns[-1]


def test_a_closed_loop_has_one_frame_on_its_way() -> None:
    finished, _ = run_pipeline(ListSource([0.0] * 30))
    frames = finished.ledger.frames()
    assert all(end <= arrival for end, arrival in zip(frames.end_ns, frames.arrival_ns[1:], strict=False))


@pytest.mark.parametrize(
    ("policy", "depth", "delivered"),
    [
        # The session holds frame 0 while 1 to 9 come. One waits before it, or what the depth allows.
        ("latest", 2, [0, 9]),
        ("drop-oldest", 1, [0, 9]),
        ("drop-oldest", 3, [0, 7, 8, 9]),
        ("block", 2, list(range(10))),
    ],
)
def test_a_slow_session_drops_what_the_policy_says(policy: Policy, depth: int, delivered: list[int]) -> None:
    gate, prepared = Gate(), threading.Semaphore(0)
    last_read = threading.Event()

    def before(index: int) -> None:
        if index == 1:
            assert gate.entered.wait(WAIT_S)  # frame 0 is in the session; the others come now
        if policy != "block" and index > 1:
            assert prepared.acquire(timeout=WAIT_S)  # the frame before waits in front of the session
        if index == (3 if policy == "block" else 10):
            last_read.set()

    def preprocess(data: Any) -> dict[str, Any]:
        return {"x": np.float32(data)}

    source = ListSource([float(n) for n in range(10)], before)
    sink = KeepingSink()
    stages = identity_stages(gate.run, preprocess=preprocess)
    pipeline = Pipeline(source, stages, [sink], Settings(pace=FAST, policy=policy, queue_depth=depth))
    queue = pipeline._queues["preprocess"]
    put = queue.put

    def counting_put(frame: Frame) -> list[Frame]:
        dropped = put(frame)
        if frame.id > 0:
            prepared.release()
        return dropped

    queue.put = counting_put  # type: ignore[method-assign]
    pipeline.prepare()
    release = threading.Thread(target=lambda: (last_read.wait(WAIT_S), gate.open.set()), daemon=True)
    release.start()
    finished = pipeline.run()
    assert by_outcome(finished)["delivered"] == delivered == gate.ran
    dropped = sorted(set(range(10)) - set(delivered))
    assert by_outcome(finished)["dropped"] == dropped
    reason = {"latest": "a newer frame came", "drop-oldest": "the queue was full"}.get(policy, "")
    assert sorted(sink.skipped) == [(number, "dropped", reason) for number in dropped]


@pytest.mark.parametrize("anywhere", [True, False])
def test_a_frame_stays_on_its_thread_where_nobody_is_busy(anywhere: bool) -> None:
    """Then it waits for no thread to wake up. What may not move keeps its own."""
    count = 24
    on: dict[str, list[int]] = {"preprocess": [], "session": [], "sink": []}

    def both_wait(index: int) -> None:
        end_s = time.monotonic() + WAIT_S
        while not all(queue._reading for queue in pipeline._queues.values()) and time.monotonic() < end_s:
            time.sleep(0.001)

    def preprocess(data: Any) -> dict[str, Any]:
        on["preprocess"].append(threading.get_ident())
        return {"x": np.float32(data)}

    def run(frame: Frame) -> None:
        on["session"].append(threading.get_ident())
        frame.outputs = {"y": frame.inputs["x"]}

    class Noting(KeepingSink):
        def deliver(self, frame: Frame, now_ns: int) -> None:
            on["sink"].append(threading.get_ident())
            super().deliver(frame, now_ns)

    sink = Noting()
    stages = identity_stages(run, preprocess=preprocess, anywhere=anywhere)
    pipeline = Pipeline(ListSource([0.0] * count, both_wait), stages, [sink])
    pipeline.prepare()
    finished = pipeline.run()
    assert sink.delivered == list(range(count)) and finished.ended == "end of source"
    assert on["preprocess"] == on["session"]
    if anywhere:
        assert on["session"] == on["sink"] and len(set(on["session"])) == 3
    else:
        assert len(set(on["session"])) == len(set(on["sink"])) == 1 and on["session"] != on["sink"]


@pytest.mark.parametrize("anywhere", [True, False])
def test_a_slow_sink_does_not_hold_up_the_session(anywhere: bool) -> None:
    ran = [threading.Event() for _ in range(3)]

    def run(frame: Frame) -> None:
        frame.outputs = {"y": frame.inputs["x"]}
        ran[frame.id].set()

    class Waiting(KeepingSink):
        def deliver(self, frame: Frame, now_ns: int) -> None:
            assert ran[min(frame.id + 1, 2)].wait(WAIT_S)  # the next frame runs while this one is written
            super().deliver(frame, now_ns)

    sink = Waiting()
    finished, _ = run_pipeline(
        ListSource([0.0] * 3), identity_stages(run, anywhere=anywhere), sink=sink, pace=Pace(kind="fixed rate", fps=100)
    )
    assert (sink.delivered, finished.ended) == ([0, 1, 2], "end of source")


def test_queueing_counts_from_the_schedule_not_from_when_the_source_got_round_to_it() -> None:
    def slow(frame: Frame) -> None:
        time.sleep(0.02)
        frame.outputs = {"y": frame.inputs["x"]}

    finished, _ = run_pipeline(
        ListSource([0.0] * 12), identity_stages(slow), pace=Pace(kind="fixed rate", fps=1000), deadline_ns=100_000_000
    )
    frames = finished.ledger.frames()
    assert frames.arrival_ns == tuple(n * 1_000_000 for n in range(12))
    latencies = frames.end_to_end_ns()
    # Frame n waits for the n before it, 20 ms each, and arrived n ms after the start.
    assert all(latencies[n] >= (n + 1) * 20_000_000 - n * 1_000_000 for n in range(12))
    missed = [latency > 100_000_000 for latency in latencies]
    assert list(frames.deadline_missed) == missed
    assert finished.ledger.counts().deadline_missed == sum(missed) >= 6


def test_bursts_mark_the_first_frame_after_a_pause() -> None:
    gap = 30_000_000
    finished, _ = run_pipeline(ListSource([0.0] * 9), pace=Pace(kind="bursts", burst=3, gap_ns=gap))
    frames = finished.ledger.frames()
    assert [n for n, first in enumerate(frames.first_after_idle) if first] == [3, 6]
    assert all(frames.arrival_ns[n] - frames.end_ns[n - 1] >= gap for n in (3, 6))


def test_the_stream_ends_after_so_many_frames() -> None:
    finished, sink = run_pipeline(ListSource([0.0] * 50), frames=7)
    assert (sink.delivered, finished.ended) == (list(range(7)), "frame limit")


@pytest.mark.parametrize("stage", ["source", "preprocess", "run"])
def test_a_bad_frame_is_counted_and_the_stream_goes_on(stage: str) -> None:
    items: list[Any] = [float(n) for n in range(6)]

    def preprocess(data: Any) -> dict[str, Any]:
        if stage == "preprocess" and data == 3:
            raise BadFrame("the input 'x' is not finite")
        return {"x": np.float32(data)}

    def run(frame: Frame) -> None:
        if stage == "run" and frame.id == 3:
            raise BadFrame("the input 'x' is not finite")
        frame.outputs = {"y": frame.inputs["x"]}

    if stage == "source":
        items[3] = Item(error="the input 'x' is not finite")
    finished, sink = run_pipeline(ListSource(items), identity_stages(run, preprocess=preprocess))
    assert (sink.delivered, finished.ended) == ([0, 1, 2, 4, 5], "end of source")
    assert sink.skipped == [(3, "failed", "the input 'x' is not finite")]
    assert finished.ledger.counts().reasons == {"the input 'x' is not finite": 1}


@pytest.mark.parametrize("stage", ["preprocess", "session", "postprocess", "sink"])
def test_a_stage_that_raises_ends_the_stream_and_names_the_frame(stage: str) -> None:
    def fail(frame: Frame) -> None:
        if frame.id == 4:
            raise ShapeError("it has 5 axes.", hint="give 4.")
        frame.outputs = {"y": frame.inputs["x"]}
        frame.summary = {"results": [{}]}

    def preprocess(data: Any) -> dict[str, Any]:
        if stage == "preprocess" and data == 4:
            raise ShapeError("it has 5 axes.", hint="give 4.")
        return {"x": np.float32(data)}

    parts: dict[str, Any] = {"preprocess": preprocess}
    if stage == "postprocess":
        parts["postprocess"] = fail
    stages = identity_stages(fail if stage == "session" else None, **parts)
    sink = KeepingSink(fail_at=4 if stage == "sink" else None)
    finished, _ = run_pipeline(ListSource([float(n) for n in range(9)]), stages, sink=sink)
    assert finished.ended == "error" and finished.error is not None
    where = f"Frame 4 of 'list' failed in '{stage}'"
    if stage == "sink":
        assert finished.error.message == f"{where}: OSError: [Errno 28] No space left on device"
        assert finished.error.exit_code == 1  # an error that is not ours
    else:
        assert finished.error.message == f"{where}: it has 5 axes."
        assert (finished.error.exit_code, finished.error.hint) == (2, "give 4.")
    assert sink.delivered == [0, 1, 2, 3] and sink.state == "closed"
    found = by_outcome(finished)
    assert found["failed"] == [4] and found["delivered"] == [0, 1, 2, 3]


def test_a_source_that_raises_ends_the_stream_and_names_the_frame() -> None:
    source = ListSource([0.0, 1.0, StreamError("the cable is gone.")])
    finished, sink = run_pipeline(source)
    assert finished.error is not None
    assert finished.error.message == "The source 'list' failed at frame 2: the cable is gone."
    assert (sink.delivered, finished.error.exit_code, source.closed) == ([0, 1], 2, 1)


def test_a_source_that_ends_at_once_is_an_error() -> None:
    finished, _ = run_pipeline(ListSource([]))
    assert finished.error is not None and finished.ledger.counts().frames_in == 0
    assert "The source 'list' gave no frame: it ended at once." in finished.error.message


def test_a_source_that_stalls_is_reported_and_does_not_hang() -> None:
    forever = threading.Event()

    def before(index: int) -> None:
        if index == 3:
            forever.wait(WAIT_S)

    begin = time.monotonic()
    finished, sink = run_pipeline(ListSource([0.0] * 5, before), stall_s=0.2)
    assert time.monotonic() - begin < WAIT_S / 2
    forever.set()
    assert finished.error is not None
    message = "The source 'list' gave nothing for 0.2 s; check the device or the connection"
    assert finished.error.message.startswith(message)
    assert sink.delivered == [0, 1, 2] and finished.ledger.counts().frames_in == 3


@pytest.mark.parametrize("when", ["open", "first frame"])
def test_a_source_that_stalls_before_the_stream_is_reported(when: str) -> None:
    forever = threading.Event()

    class Stalling(ListSource):
        def open(self) -> None:
            if when == "open":
                forever.wait(WAIT_S)

    source = Stalling([0.0], lambda index: None if when == "open" else (forever.wait(WAIT_S), None)[1])
    pipeline = Pipeline(source, identity_stages(), [], Settings(stall_s=0.1))
    with pytest.raises(StreamError, match="The source 'list' gave nothing for 0.1 s"):
        pipeline.prepare(lambda inputs: None)
    forever.set()


def test_warm_up_takes_the_first_good_frame_and_gives_it_back() -> None:
    seen: list[float] = []
    source = ListSource([Item(error="damaged"), 5.0, 6.0])
    sink = KeepingSink()
    pipeline = Pipeline(source, identity_stages(), [sink])
    pipeline.prepare(lambda inputs: seen.append(float(inputs["x"])))
    finished = pipeline.run()
    assert seen == [5.0] and source.opened == 2
    assert by_outcome(finished) == {"delivered": [1, 2], "dropped": [], "failed": [0]}


def test_a_live_source_does_not_give_a_frame_twice() -> None:
    class Live(ListSource):
        live = True

        def read(self) -> Item | None:
            item = super().read()
            now = time.perf_counter_ns()
            return None if item is None else Item(data=item.data, arrived_ns=now)

    source, sink = Live([1.0, 2.0, 3.0]), KeepingSink()
    pipeline = Pipeline(source, identity_stages(), [sink], Settings(pace=Pace(kind="live")))
    pipeline.prepare(lambda inputs: None)
    finished = pipeline.run()
    assert source.opened == 1 and [s["results"][0]["value"] for s in sink.summaries] == [2.0, 3.0]
    assert all(wait == 0 for wait in finished.ledger.frames().queue_wait_ns["source"])


def interrupt_main(after: threading.Event) -> None:
    import _thread

    def wait() -> None:
        after.wait(WAIT_S)
        _thread.interrupt_main()

    threading.Thread(target=wait, daemon=True).start()


def test_an_interruption_lets_what_is_on_its_way_arrive() -> None:
    reached = threading.Event()

    def before(index: int) -> None:
        if index == 20:
            reached.set()
            time.sleep(0.05)

    interrupt_main(reached)
    finished, sink = run_pipeline(ListSource([0.0] * 100_000, before), pace=FAST)
    counts = finished.ledger.counts()
    assert (finished.ended, finished.error, sink.state) == ("interrupted", None, "closed")
    assert counts.frames_in >= 20
    assert counts.delivered == len(sink.delivered) >= 18
    assert counts.dropped == len(sink.skipped) == counts.frames_in - counts.delivered


@pytest.mark.parametrize("hung", [False, True])
def test_an_interruption_before_the_first_frame_closes_nothing_that_is_being_called(hung: bool) -> None:
    gate, source = Gate(), ListSource([0.0] * 100_000)
    closed: list[int] = []

    def warm_up(inputs: Any) -> None:
        time.sleep(0.1)  # the thread has been started
        gate.entered.set()
        gate.open.wait(WAIT_S if hung else 0.3)
        closed.append(source.closed)

    interrupt_main(gate.entered)
    pipeline = Pipeline(source, identity_stages(), [KeepingSink()])
    if hung:
        with pytest.raises(NotBegun):
            pipeline.prepare(warm_up)
        assert source.closed == 0 and not closed
        gate.open.set()
    else:
        pipeline.prepare(warm_up)
        assert pipeline.run().ended == "interrupted"
        assert closed == [0]


def test_a_second_interruption_ends_the_wait_for_a_stuck_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trt_compress.runtime.stream.pipeline._GRACE_S", 0.5)
    gate = Gate()
    interrupt_main(gate.entered)
    finished, sink = run_pipeline(ListSource([0.0] * 4), identity_stages(gate.run), pace=FAST)
    gate.open.set()
    assert finished.ended == "interrupted"
    counts = finished.ledger.counts()
    assert (counts.delivered, counts.dropped) == (0, counts.frames_in)
    assert set(counts.reasons) == {"the stream was interrupted"}


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("policy", ["block", "latest", "drop-oldest"])
def test_no_frame_is_unaccounted_for_whatever_happens(policy: Policy, seed: int) -> None:
    """Random bad frames, delays and an error, against what the sinks were told."""
    generator = np.random.default_rng(seed)
    count = 300
    bad = set(generator.choice(count, 20, replace=False).tolist())
    broken = int(generator.integers(100, 400))  # beyond the end: nothing breaks
    naps = generator.random(count) < 0.05

    def preprocess(data: Any) -> dict[str, Any]:
        if int(data) in bad:
            raise BadFrame("no good")
        return {"x": np.float32(data)}

    def run(frame: Frame) -> None:
        if naps[frame.id]:
            time.sleep(0.001)
        if frame.id >= broken:
            raise RuntimeError("broken")
        frame.outputs = {"y": frame.inputs["x"]}

    stages = identity_stages(run, preprocess=preprocess)
    finished, sink = run_pipeline(ListSource(list(range(count))), stages, pace=Pace(kind="fixed rate", fps=20_000),
                                  policy=policy)  # fmt: skip
    counts, found = finished.ledger.counts(), by_outcome(finished)
    assert counts.frames_in == counts.delivered + counts.dropped + counts.failed
    told = sorted([*sink.delivered, *(number for number, _, _ in sink.skipped)])
    assert told == list(range(counts.frames_in))  # each once
    assert found["delivered"] == sink.delivered == sorted(sink.delivered)
    assert set(found["failed"]) - {broken} <= bad | set(range(broken, count))
    if finished.ended == "end of source":
        assert counts.frames_in == count
        if policy == "block":
            assert found["failed"] == sorted(bad) and counts.dropped == 0
    else:
        assert finished.error is not None
        assert re.match(r"Frame \d+ of 'list' failed in 'session': RuntimeError: broken", finished.error.message)


def test_parts_are_closed_when_preparing_fails() -> None:
    class Refusing(KeepingSink):
        def open(self) -> None:
            super().open()
            raise ConfigError("no such folder.")

    source, first, second = ListSource([0.0]), KeepingSink(), Refusing()
    pipeline = Pipeline(source, identity_stages(), [first, second])
    with pytest.raises(ConfigError, match="no such folder"):
        pipeline.prepare()
    assert (source.closed, first.state, second.state) == (1, "closed", "closed")


def test_a_sink_that_cannot_be_finished_is_an_error() -> None:
    class Unfinished(KeepingSink):
        def close(self) -> None:
            raise StreamError("the disk is full.")

    finished, sink = run_pipeline(ListSource([0.0, 1.0]), sink=Unfinished())
    assert finished.ended == "error" and finished.error is not None and sink.delivered == [0, 1]
    assert finished.error.message == "A sink could not be finished: the disk is full."


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"queue_depth": 0}, "queue_depth=0; give at least 1"),
        ({"frames": 0}, "frames=0; give at least 1"),
        ({"deadline_ns": -5}, "deadline_ns=-5; give at least 1"),
        ({"stall_s": 0.0}, "stall_s=0.0; give a time above 0"),
        ({"policy": "newest"}, "policy 'newest' is not known; there are block, latest, drop-oldest"),
    ],
)
def test_wrong_settings_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Settings(**fields)


def test_memory_does_not_grow_with_frames() -> None:
    """Arrays are let go as soon as a frame has its outcome: few of them live at any time."""
    alive: list[int] = [0, 0]

    class Counted(np.ndarray):  # type: ignore[type-arg]
        def __del__(self) -> None:
            alive[0] -= 1

    def preprocess(data: Any) -> dict[str, Any]:
        alive[0] += 1
        alive[1] = max(alive)
        return {"x": np.zeros(3).view(Counted)}

    def run(frame: Frame) -> None:
        frame.outputs = {"y": np.zeros(())}

    finished, _ = run_pipeline(ListSource([0.0] * 500), identity_stages(run, preprocess=preprocess), pace=FAST)
    assert finished.ledger.counts().delivered == 500
    assert alive[1] <= 12
