"""Every frame comes in once and gets one outcome; what cannot be is a fault, never a number."""

import numpy as np
import pytest

from trt_compress.errors import InternalError
from trt_compress.runtime.stream.frame import Frame, Ledger
from trt_compress.runtime.stream.result import OUTCOMES


def frame(number: int, arrival: int = 100) -> Frame:
    return Frame(id=number, source="s", arrival_ns=arrival, start_ns=arrival + 1, mark_ns=arrival + 2)


def test_counts_and_rows_say_what_happened() -> None:
    ledger = Ledger(100, deadline_ns=50)
    frames = [frame(number, 100 + 10 * number) for number in range(4)]
    for one in frames:
        assert ledger.enter(one)
    frames[0].stage_ns |= {"decode": 1, "session": 5}
    frames[0].level, frames[0].tokens = "dense", (65, 33)
    ledger.settle(frames[2], "dropped", 125, "a newer frame came")
    ledger.settle(frames[0], "delivered", 150)  # exactly at the deadline is in time
    ledger.settle(frames[1], "delivered", 161)
    ledger.settle(frames[3], "failed", 140, "no good")
    counts = ledger.counts()
    assert (counts.frames_in, counts.delivered, counts.dropped, counts.failed) == (4, 2, 1, 1)
    assert counts.deadline_missed == 1
    assert counts.reasons == {"a newer frame came": 1, "no good": 1}
    rows = ledger.frames()
    assert rows.id == (0, 1, 2, 3)
    assert rows.arrival_ns == (0, 10, 20, 30)
    assert rows.end_ns == (50, 61, 25, 40)
    assert rows.deadline_missed == (False, True, None, None)
    assert rows.outcome == ("delivered", "delivered", "dropped", "failed")
    assert rows.reason == (None, None, "a newer frame came", "no good")
    assert rows.level == ("dense", None, None, None)
    assert (rows.tokens_in, rows.tokens_out) == ((65, None, None, None), (33, None, None, None))
    assert rows.stage_ns["session"] == (5, None, None, None)
    assert rows.stage_ns["sink"] == (None,) * 4


def test_a_second_outcome_is_a_fault() -> None:
    ledger = Ledger(0)
    one = frame(0)
    ledger.enter(one)
    ledger.settle(one, "delivered", 5)
    with pytest.raises(InternalError, match="frame 0 is dropped, and was delivered before"):
        ledger.settle(one, "dropped", 6, "late")


def test_a_frame_out_of_turn_is_a_fault() -> None:
    with pytest.raises(InternalError, match="frame 1 came in where frame 0 was due"):
        Ledger(0).enter(frame(1))


def test_a_frame_without_an_outcome_does_not_pass_as_accounted_for() -> None:
    ledger = Ledger(0)
    ledger.enter(frame(0))
    assert ledger.counts().frames_in == 1  # still on its way
    del ledger._in_flight[0]  # what a fault of ours would do
    with pytest.raises(InternalError, match="1 frames came in and 0 have an outcome"):
        ledger.counts()


def test_closing_drops_what_is_on_its_way_and_lets_nothing_in_after() -> None:
    ledger = Ledger(0)
    frames = [frame(number) for number in range(3)]
    for one in frames:
        ledger.enter(one)
    ledger.settle(frames[1], "delivered", 7)
    assert [one.id for one in ledger.close(9, "the stream stopped")] == [0, 2]
    ledger.settle(frames[0], "delivered", 10)  # a thread that was left behind comes back
    assert not ledger.enter(frame(3))
    counts = ledger.counts()
    assert (counts.frames_in, counts.delivered, counts.dropped) == (3, 1, 2)
    assert ledger.frames().reason == ("the stream stopped", None, "the stream stopped")


@pytest.mark.parametrize("expected", [None, 5, 50_000])
@pytest.mark.parametrize("rows_kept", [1, 7, 10_000])
def test_rows_of_the_newest_frames_are_kept_and_all_count(expected: int | None, rows_kept: int) -> None:
    total = 20_000
    generator = np.random.default_rng(0)
    ledger = Ledger(0, expected=expected, rows_kept=rows_kept)
    outcomes = generator.choice(3, total)
    for number in range(total):
        one = frame(number, number)
        ledger.enter(one)
        ledger.settle(one, OUTCOMES[outcomes[number]], number + 3, None if outcomes[number] == 0 else "why")
    counts = ledger.counts()
    assert [counts.delivered, counts.dropped, counts.failed] == np.bincount(outcomes, minlength=3).tolist()
    rows = ledger.frames()
    assert rows.id == tuple(range(total - rows_kept, total))
    assert rows.outcome == tuple(OUTCOMES[value] for value in outcomes[-rows_kept:])
    assert rows.end_ns == tuple(number + 3 for number in rows.id)


def test_many_different_reasons_do_not_grow_for_ever() -> None:
    ledger = Ledger(0)
    for number in range(1000):
        one = frame(number)
        ledger.enter(one)
        ledger.settle(one, "failed", 5, f"reason {number}")
    reasons = ledger.counts().reasons
    assert len(reasons) <= 201
    assert sum(reasons.values()) == 1000
    assert reasons["other"] == 800
