"""A bundle that reads tokens by its procedure, against a plain count of what it has read."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tests.runtime.counter_bundles import FLUSH, PERIOD, write, write_viewer
from trt_compress.errors import BundleError, ConfigError, ShapeError
from trt_compress.format.procedure import Pass, Upkeep
from trt_compress.runtime import Session
from trt_compress.runtime.sequences import Sequences, graphs_for


def expected(text: list[int], chunks: list[int], bias: float) -> list[float]:
    """Logits behind a text that was read in chunks: its sum, its last position, and what the flushes left."""
    held = 0
    for count in chunks[:-1]:
        held = 0 if held + count >= PERIOD else held + count
    return [sum(text), len(text) - 1, held + chunks[-1], bias]


def test_prompts_of_unequal_length_and_steps(tmp_path: Path) -> None:
    with Session.open(write(tmp_path / "b")) as session:
        pair = Sequences(session, batch=2)
        pair.attend({"look.picture": np.array([[1, 2], [3, 4]], np.float32)})
        texts = [[5, 6, 7, 8, 9, 1, 2], [4, 3]]
        logits = pair.read([np.array(text) for text in texts])
        chunks = [[3, 3, 1], [2]]
        wanted = [expected(text, parts, bias) for text, parts, bias in zip(texts, chunks, (3, 7), strict=True)]
        np.testing.assert_array_equal(logits, wanted)
        assert pair.seen == (7, 2) and pair.states.lengths["slots"] == 8
        chunks = [[3, 3, 1], [2, 0, 0]]
        for token in range(10, 17):
            logits = pair.step([token, token + 1])
            for text, parts, more in zip(texts, chunks, (0, 1), strict=True):
                text.append(token + more)
                parts.append(1)
            wanted = [expected(text, parts, bias) for text, parts, bias in zip(texts, chunks, (3, 7), strict=True)]
            np.testing.assert_array_equal(logits, wanted)
        before = pair.step([1, 1], ended=[False, True])[0]
        assert pair.seen == (15, 9) and before[1] == 14


def test_sequences_are_kept_and_forked(tmp_path: Path) -> None:
    with Session.open(write(tmp_path / "b")) as session:
        three = Sequences(session, batch=3)
        three.read([np.array([1]), np.array([2, 3]), np.array([4, 5, 6])])
        three.keep([2, 0])
        other = three.fork()
        assert three.seen == other.seen == (3, 1)
        np.testing.assert_array_equal(three.step([7, 8]), [[22, 3, 4, 0], [9, 1, 2, 0]])
        np.testing.assert_array_equal(other.step([1, 1]), [[16, 3, 4, 0], [2, 1, 2, 0]])
        np.testing.assert_array_equal(three.step([1, 1]), [[23, 4, 1, 0], [10, 2, 3, 0]])


def test_sequences_are_saved_and_go_on(tmp_path: Path) -> None:
    """Of unequal lengths, with what was attended to; in another session of the bundle, with a bound of its own."""
    with Session.open(write(tmp_path / "b")) as session:
        pair = Sequences(session, batch=2)
        pair.attend({"look.picture": np.array([[1, 2], [3, 4]], np.float32)})
        pair.save(tmp_path / "begun")
        pair.read([np.array([5, 6, 7, 8, 9]), np.array([4, 3])])
        pair.save(tmp_path / "read")
        session.load_states(tmp_path / "read")  # the states are there alone, too
        expected = pair.step([1, 2])
        session.new_states(batch=2).save(tmp_path / "states")
    with Session.open(tmp_path / "b") as session:
        again = Sequences.load(tmp_path / "read", session)
        assert again.seen == (5, 2)
        np.testing.assert_array_equal(again.step([1, 2]), expected)
        with pytest.raises(ConfigError, match="read before them; begin new sequences"):
            again.attend({"look.picture": np.ones((2, 2), np.float32)})
        begun = Sequences.load(tmp_path / "begun", session)
        begun.read([np.array([5, 6, 7, 8, 9]), np.array([4, 3])])
        np.testing.assert_array_equal(begun.step([1, 2]), expected)
        with pytest.raises(ConfigError, match="holds 8 slots on 'slots', and the capacity is 4"):
            Sequences.load(tmp_path / "read", session, capacity=4)
        bounded = Sequences.load(tmp_path / "read", session, capacity=8)
        with pytest.raises(ShapeError, match="these states may have 8"):
            bounded.states.reserve({"slots": 9})
        with pytest.raises(BundleError, match="holds states, and not how many tokens their sequences have read"):
            Sequences.load(tmp_path / "states", session)


@pytest.mark.parametrize("seen", [[5, -1], [5, 2, 1], [[5, 2]], 5, [], [5.0, 2.0]])
def test_saved_sequences_that_were_changed_are_refused(tmp_path: Path, seen: Any) -> None:
    with Session.open(write(tmp_path / "b")) as session:
        pair = Sequences(session, batch=2)
        pair.read([np.array([5, 6, 7, 8, 9]), np.array([4, 3])])
        pair.states.save(tmp_path / "s", beside={"seen": np.array(seen), "attended": np.array(False)})
        with pytest.raises(BundleError, match="does not say how many tokens its sequences have read; save them again"):
            Sequences.load(tmp_path / "s", session)


def test_tokens_that_stand_for_what_media_found(tmp_path: Path) -> None:
    with Session.open(write_viewer(tmp_path / "b")) as session:
        pair = Sequences(session, batch=2)
        pair.attend({"show.picture": np.array([[100, 200], [1000, 2000]], np.float32)})
        texts = [np.array([1, 9, 2, 3, 9, 4, 5]), np.array([9, 9, 1])]  # 9 stands in runs of three, and on their border
        with pytest.raises(ConfigError, match=r"^The text has the token 9 1 times, .* of which there are 2\.$"):
            pair.read([texts[0], np.array([9, 1])])
        assert pair.seen == (0, 0)
        np.testing.assert_array_equal(pair.read(texts), [[315], [3001]])
        other = pair.fork()
        np.testing.assert_array_equal(pair.step([9, 1]), [[324], [3002]])  # a token of a step is text
        with pytest.raises(ConfigError, match="9 1 times, and it stands for what 'show' finds, in the first text"):
            other.read([np.array([9]), np.array([1])])
        blind = Sequences(session)
        with pytest.raises(ConfigError, match="in the first text that is read after that was run"):
            blind.read([texts[0]])
        np.testing.assert_array_equal(blind.read([np.array([1, 2])]), [[3]])


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with Session.open(write(tmp_path / "b")) as session:
        one = Sequences(session)
        with pytest.raises(ConfigError, match="2 texts were given; there are 1 sequences"):
            one.read([np.array([1]), np.array([2])])
        with pytest.raises(ConfigError, match="There is no token to read"):
            one.read([np.array([], np.int64)])
        with pytest.raises(ConfigError, match=r"float64 \[1\]; give the numbers of its tokens"):
            one.read([np.array([1.5])])
        with pytest.raises(ConfigError, match="input 'look.sound' is not known; there is look.picture"):
            one.attend({"look.sound": np.zeros((1, 2), np.float32)})
        with pytest.raises(ConfigError, match="gives the logits of the last token only"):
            one.score([np.array([1, 2])])
        with pytest.raises(ConfigError, match="give 1 integers"):
            one.step([1, 2])
        one.step([1])
        with pytest.raises(ConfigError, match="read before them; begin new sequences"):
            one.attend({"look.picture": np.zeros((1, 2), np.float32)})
        small = Sequences(session, capacity=4)
        small.step([1])
        with pytest.raises(ShapeError, match="slots"):
            small.read([np.arange(9)])
    with Session.open(tmp_path / "b", graphs=["step"]) as session:
        with pytest.raises(ConfigError, match="runs the graph 'look', which is not loaded; open it, too"):
            Sequences(session)


def test_upkeep_that_makes_no_room_is_the_bundle_s_fault(tmp_path: Path) -> None:
    idle = FLUSH.replace("Where(is_part, length_in, i0)", "Where(is_part, length_in, length_in)")
    with Session.open(write(tmp_path / "b", flush=idle)) as session:
        sequence = Sequences(session)
        with pytest.raises(BundleError, match="procedure is at fault: 'flush' was run because 'slots' has 6 slots"):
            sequence.read([np.arange(9)])


def test_a_prompt_in_parts_is_kept_up_at_its_end(tmp_path: Path) -> None:
    due = Upkeep(graph="flush", after="prompt", capacity="slots", at_least=PERIOD)
    with Session.open(write(tmp_path / "b", upkeep=(due,))) as session:
        text, found = np.arange(1, 10), []
        for parts in ([9], [6, 3], [3, 3, 3]):
            sequence = Sequences(session)
            *first, last = np.split(text, np.cumsum(parts)[:-1])
            for part in first:
                sequence.read([part], goes_on=True)
                assert sequence.upkeeps == 0
            found.append(sequence.read([last]))
            assert sequence.upkeeps == 1 and sequence.seen == (9,)
        np.testing.assert_array_equal(found, [[[45, 8, 9, 0]]] * 3)
        early = Sequences(session)
        early.read([text[:6]])
        np.testing.assert_array_equal(early.read([text[6:]]), [[45, 8, 3, 0]])


def test_a_prompt_at_once(tmp_path: Path) -> None:
    whole = Pass(graphs=("step",), tokens="time", logits="step.logits", whole=True)
    with Session.open(write(tmp_path / "b", prompt=whole)) as session:
        np.testing.assert_array_equal(Sequences(session).read([np.array([5, 6, 7])]), [[18, 2, 3, 0]])
        with pytest.raises(ConfigError, match="The prompt has 4 tokens, and from 1 to 3 are read at once"):
            Sequences(session).read([np.arange(4)])


def test_texts_are_scored_in_runs(tmp_path: Path) -> None:
    score = Pass(graphs=("score",), tokens="time", logits="score.logarithms", rows="next")
    feeds = {"step.tokens": "tokens", "step.count": "count", "step.positions": "positions"}
    feeds |= {"score.tokens": "tokens", "score.following": "next"}
    with Session.open(write(tmp_path / "b", score=score, feeds=feeds)) as session:
        texts = [np.array([5, 9, 2, 2, 8, 1]), np.array([4, 6])]
        for found, text in zip(Sequences(session, batch=2).score(texts), texts, strict=True):
            np.testing.assert_array_equal(found, np.diff(text))
        read, both = (graphs_for(session.bundle.manifest, score=score) for score in (False, True))
        assert "step" in read and both == [*session.graphs] and {*both} - {*read} == {"score"}
    with Session.open(tmp_path / "b", graphs=read) as session:
        with pytest.raises(ConfigError, match="runs the graph 'score', which is not loaded; open it, too"):
            Sequences(session, batch=2).score(texts)
        assert Sequences(session).step([1]).shape == (1, 4)
    only = graphs_for(session.bundle.manifest, read=False, score=True)
    with Session.open(tmp_path / "b", graphs=only) as session:
        np.testing.assert_array_equal(Sequences(session).score(texts[:1])[0], np.diff(texts[0]))
        for refused in (lambda: Sequences(session).step([1]), lambda: Sequences(session).read(texts[:1])):
            with pytest.raises(ConfigError, match="runs the graph 'step', which is not loaded; open it, too"):
                refused()


def test_a_bundle_without_a_procedure(tmp_path: Path, make_bundle: Any) -> None:
    identity = [onnx.helper.make_node("Identity", ["x"], ["y"])]
    bundle = make_bundle({"model": (identity, {"x": ("float32", ["batch"])}, {"y": ("float32", ["batch"])})})
    with Session.open(bundle) as session, pytest.raises(ConfigError, match="has no procedure .* run it with Session"):
        Sequences(session)
