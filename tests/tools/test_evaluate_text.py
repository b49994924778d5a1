"""Questions to one text: what they have in common is read once, and answers are cut short, which changes no verdict."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.generate.toy import write
from trt_compress.runtime import Generator
from trt_compress.runtime.generate.questions import MAX_NEW, TextQuestion
from trt_compress.tools.evaluate_text import answers_to, change_of_answers, found_of

TEXT = "the lazy dog and the other fox " * 8


def asked() -> list[TextQuestion]:
    same: dict[str, Any] = {"kind": "needle", "depth": 0.5, "number": "-", "opening": "the"}
    texts = [(at // 12, f"{TEXT}{at // 12} the fox {at % 12}?") for at in range(24)]
    return [TextQuestion(document=document, key=text[-2:], text=text, **same) for document, text in texts]


def test_verdicts_are_those_of_whole_answers_to_whole_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "b", context=300, template=None)
    with Generator.open(tmp_path / "b") as generator:
        prompts = [f"{one.text}\n{one.opening}" for one in asked()]
        plain = generator.generate(prompts, max_new=MAX_NEW, temperature=0.0, repetition_penalty=1.0)
        numbers = [re.sub(r"\D", "", (re.search(r"\d[\d,. ]*", each.text) or [""])[0]) for each in plain]
        questions = [replace(one, number=number or "7") for one, number in zip(asked(), numbers, strict=True)]
        wanted = [bool(number) for number in numbers]
        assert 2 < sum(wanted) < 22, "some are right"
        read, streams = list[int](), list[Any]()
        of_tokens, begin = generator.prefix, generator.stream

        def prefix(tokens: Any, **how: Any) -> Any:
            read.append(len(tokens))
            return of_tokens(tokens, **how)

        def stream(*given: Any, **how: Any) -> Any:
            streams.append(begin(*given, **how))
            return streams[-1]

        monkeypatch.setattr(generator, "prefix", prefix)
        monkeypatch.setattr(generator, "stream", stream)
        assert answers_to(generator, questions, 4, lambda text: None) == wanted
        assert len(read) == 2 and all(count % 5 == 0 and count > 50 for count in read), "whole runs of each text, once"
        results = [one for made in streams for one in made.results()]
        assert all(one.reused == read[0] for one in results[:12])
        assert sum(len(one.ids) for one in results) < sum(len(one.ids) for one in plain)
        read.clear()
        alone = [replace(one, document=at) for at, one in enumerate(questions)]
        assert answers_to(generator, alone, 4, lambda text: None) == wanted and read == []


def test_intervals_know_which_questions_are_of_one_text() -> None:
    questions = asked()
    right = [one.document == 0 for one in questions]
    alone = [replace(one, document=at) for at, one in enumerate(questions)]
    wide, narrow = (found_of(each, right).all for each in (questions, alone))
    assert wide.value == narrow.value and wide.high - wide.low > 1.5 * (narrow.high - narrow.low)
    nothing = [False] * 24
    wide_change, narrow_change = (change_of_answers(each, right, nothing) for each in (questions, alone))
    assert wide_change.value == narrow_change.value == 0.5
    assert wide_change.high - wide_change.low > 1.5 * (narrow_change.high - narrow_change.low)
