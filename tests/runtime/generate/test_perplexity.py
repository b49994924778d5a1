"""Perplexity, its interval, and numbers that are to be found in long texts."""

import math
import re

import numpy as np
import pytest

from trt_compress.runtime.generate.perplexity import FEWEST_BLOCKS, change_of, perplexity_of, windows_of
from trt_compress.runtime.generate.questions import DEPTHS, MOST_PAIRS, TextQuestion, needles, recalls


def test_windows() -> None:
    assert windows_of(range(7), 3) == [[0, 1, 2], [3, 4, 5]]  # one token alone has nothing that it follows
    assert windows_of(range(5), 3, [9]) == [[9, 0, 1], [9, 2, 3], [9, 4]]
    assert windows_of([], 3, [9]) == [] and windows_of([4], 3) == []


def test_perplexity_is_the_mean_of_all_tokens() -> None:
    random = np.random.default_rng(0)
    scores = [-random.exponential(2, length) for length in (100, 64, 3, 200)]
    found = perplexity_of(scores, 1000)
    whole = np.concatenate(scores)
    assert found.value == pytest.approx(math.exp(-whole.mean())) and found.tokens == 367
    assert found.bits_per_byte == pytest.approx(-whole.sum() / math.log(2) / 1000)
    assert found.blocks == 2 + 1 + 1 + 4 < FEWEST_BLOCKS and found.low is None and found.high is None


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    random, held = np.random.default_rng(1), 0
    for _ in range(100):
        level = np.repeat(random.normal(0, 0.3, 40), 64)  # what is hard to tell comes in clusters
        found = perplexity_of([-(2 + level + random.normal(0, 1, level.size))], 1)
        assert found.low is not None and found.high is not None and found.low < found.value < found.high
        held += found.low <= math.exp(2) <= found.high
    assert 87 <= held <= 99
    assert perplexity_of([np.full(640, -1.0)], 1, seed=3) == perplexity_of([np.full(640, -1.0)], 1, seed=3)


def test_a_change_is_seen_on_the_same_blocks() -> None:
    random = np.random.default_rng(2)
    theirs = [-random.exponential(2, 6400)]
    ours = [theirs[0] - 0.01 - random.normal(0, 0.01, 6400)]
    change, each = change_of(ours, theirs), [perplexity_of(one, 1) for one in (ours, theirs)]
    assert change.low is not None and change.high is not None and each[0].low is not None and each[1].high is not None
    assert 1 < change.low < change.ratio < change.high < 1.011 and each[0].low < each[1].high  # alone they overlap
    assert change.ratio == pytest.approx(each[0].value / each[1].value)
    assert change.difference == pytest.approx(each[0].value - each[1].value)


def words(question: TextQuestion) -> int:
    return len(f"{question.text} {question.opening}".split())


def test_needles() -> None:
    made = needles(words, 200, 3, 7)
    assert made == needles(words, 200, 3, 7) != needles(words, 200, 3, 8) and len(made) == 3 * len(DEPTHS)
    for needle in made:
        assert 180 < words(needle) <= 200 and needle.text.endswith(f"number of {needle.key}?")
        lines = re.findall(r"[^.?]+[.?]", needle.text)[:-1]
        (place,) = (at for at, line in enumerate(lines) if needle.number in line)
        assert place / (len(lines) - 1) == pytest.approx(needle.depth, abs=0.03)
        assert needle.text.count(needle.number) == 1 and needle.number not in needle.opening
        assert f"{needle.opening} {needle.number}." in needle.text
    with pytest.raises(ValueError, match="a needle and its question have 20 tokens"):
        needles(words, 10, 1, 0)


def test_questions_to_one_text() -> None:
    for made in (needles(words, 400, 5, 7, together=2), recalls(words, 400, 5, 7, together=2)):
        assert [each.document for each in made] == [0] * 10 + [1] * 10 + [2] * 5
        assert [made[at].depth for at in (0, 1, 2, 9, 10, 20, 21)] == [0, 0, 0.25, 1, 0, 0, 0.25]
        for document in range(3):
            asked = [each for each in made if each.document == document]
            (text,) = {each.text.rpartition("\n\n")[0] for each in asked}
            assert len({each.key for each in asked}) == len({each.number for each in asked}) == len(asked)
            assert max(words(each) for each in asked) in range(400 - 25, 401)
            for each in asked:
                assert text.count(f"{each.opening} {each.number}.") == 1
                assert text.index(f" {each.number}.") / len(text) == pytest.approx(each.depth, abs=0.12)
    few = recalls(words, 400, 1, 0, pairs=3, together=1)
    assert [each.text.splitlines().index(f"{each.opening} {each.number}.") for each in few] == [0, 0, 0, 1, 2]
    with pytest.raises(ValueError, match="10 needles and a question have"):
        needles(words, 60, 2, 0, together=2)


@pytest.mark.parametrize("pairs", [None, 5])
def test_recall(pairs: int | None) -> None:
    made = recalls(words, 200, 3, 7, pairs)
    assert made == recalls(words, 200, 3, 7, pairs) != recalls(words, 200, 3, 8, pairs)
    for question in made:
        lines = question.text.splitlines()[:-2]
        assert words(question) <= 200 and len(lines) == (pairs or (200 - 12) // 6)
        told = dict(re.findall(r"The number of (\w+) is (\d{4})\.", "\n".join(lines)))
        assert len(told) == len(lines) and told[question.key] == question.number
        assert lines[round(question.depth * (len(lines) - 1))] == f"{question.opening} {question.number}."
    assert len(recalls(words, 10**6, 1, 0)[0].text.splitlines()) == MOST_PAIRS + 2
    with pytest.raises(ValueError, match=r"30 pairs and their question have 19\d tokens"):
        recalls(words, 100, 1, 0, 30)


@pytest.mark.parametrize(
    ("answer", "is_right"),
    [
        (" 48213.", True),
        ("It is 48,213, I think", True),
        ("48 213", True),
        ("482133", False),
        ("", False),
        ("7, or 48213", False),
    ],
)
def test_answers(answer: str, is_right: bool) -> None:
    question = TextQuestion(document=0, kind="needle", depth=0, key="Oslo", number="48213", text="", opening="")
    assert question.is_right(answer) == is_right
    said = [question.settled(answer[:count]) for count in range(len(answer) + 1)]
    assert set(said) <= {None, is_right}, "an answer is settled only if nothing that follows changes it"
    assert question.settled(f"{answer} x") is (is_right if any(each.isdigit() for each in answer) else None)
