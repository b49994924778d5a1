"""Answers of a bundle whose logits numpy can tell: alone, side by side, streamed, stopped, and on from a prefix."""

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.runtime.generate.toy import CONTEXT, SPECIAL, VOCABULARY, logits_of, tokenizer_json, write
from trt_compress.errors import BundleError, ConfigError, ShapeError, UnsupportedError
from trt_compress.runtime import Generator, Sampling, Session
from trt_compress.runtime.generate import memory
from trt_compress.runtime.generate.tokenizer import Tokenizer
from trt_compress.runtime.sequences import Sequences

END = SPECIAL.index("</s>")
PROMPTS = ["the fox", "a", "jumps over the lazy dog, the quick brown fox jumps"]
DRAWN = Sampling(temperature=1.2, top_k=50, top_p=0.95, min_p=0.01, repetition_penalty=1.1, seed=3)


def greedy(tokens: Sequence[int], count: int, *, stops: Sequence[int] = (END,)) -> list[int]:
    """What follows, by numpy."""
    known, found = list(tokens), []
    while len(found) < count and (not found or found[-1] not in stops):
        found.append(int(logits_of(known)[-1].argmax()))
        known.append(found[-1])
    return found


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Generator]:
    folder = tmp_path_factory.mktemp("toy") / "b"
    write(folder)
    with Generator.open(folder) as generator:
        yield generator


def test_answers_are_those_of_the_model(generator: Generator) -> None:
    answers = generator.generate(PROMPTS, max_new=30)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        tokens = generator.encode(prompt)
        assert answer.ids == greedy(tokens, 30)
        assert answer.prompt_tokens == len(tokens) and answer.reused == 0
        assert answer.text == generator.decode([token for token in answer.ids if token != END])
        assert answer.reason == ("stop" if answer.ids[-1] == END else "length")
    numbers = generator.generate(generator.encode("the fox"), max_new=4)
    assert numbers[0].ids == answers[0].ids[:4]


@pytest.mark.parametrize(("count", "every"), [(True, False), (False, True)])
def test_a_batch_is_its_single_runs(tmp_path: Path, count: bool, every: bool) -> None:
    """Also where a bundle cannot tell filling from tokens, so that what runs side by side is of equal length."""
    write(tmp_path / "b", count=count, every=every, batch=3)
    prompts = [*PROMPTS, "the dog", "a", *PROMPTS]
    sampling = [Sampling.of({"seed": at, "stop": ["o"] if at == 2 else []}, DRAWN) for at in range(len(prompts))]
    most = [1, 30, 20, 11, 5, 8, 40, 3]
    with Generator.open(tmp_path / "b") as generator:
        together = generator.generate(prompts, sampling=sampling, max_new=most, logprobs=2)
        for at, answer in enumerate(together):
            (alone,) = generator.generate(prompts[at], sampling=sampling[at], max_new=most[at], logprobs=2)
            assert (alone.text, alone.ids, alone.reason, alone.seed) == (answer.text, answer.ids, answer.reason, at)
            for one, other in zip(alone.tokens, answer.tokens, strict=True):
                assert one.logprob == pytest.approx(other.logprob, abs=1e-5)
        assert generator.generate(prompts, sampling=sampling, max_new=most, batch=1) == [
            generator.generate(prompt, sampling=one, max_new=count)[0]
            for prompt, one, count in zip(prompts, sampling, most, strict=True)
        ]


def test_seeds(generator: Generator) -> None:
    first, again, other = (generator.generate("a", temperature=2.0, seed=seed, max_new=20)[0] for seed in (1, 1, 2))
    assert first == again and first.ids != other.ids
    drawn = generator.generate(["a"] * 3, temperature=2.0, max_new=20)
    assert len({tuple(answer.ids) for answer in drawn}) == 3
    repeated = generator.generate("a", temperature=2.0, seed=drawn[1].seed, max_new=20)[0]
    assert repeated == drawn[1]


def test_log_probabilities_are_the_model_s_own(generator: Generator) -> None:
    answer = generator.generate("the fox", sampling=DRAWN, max_new=10, logprobs=3)[0]
    known = generator.encode("the fox")
    for chosen in answer.tokens:
        logits = logits_of(known)[-1].astype(np.float64)
        wanted = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
        assert chosen.logprob == pytest.approx(wanted[chosen.token], abs=1e-4)
        assert [number for number, _ in chosen.top] == np.argsort(-wanted, kind="stable")[:3].tolist()
        known.append(chosen.token)


def test_what_ends_an_answer(generator: Generator) -> None:
    tokens = generator.encode("the fox")
    whole = greedy(tokens, 40, stops=())
    text = generator.decode(whole)
    third = whole[2]
    answer = generator.generate("the fox", max_new=40, stop_ids=(third,))[0]
    assert (answer.ids, answer.reason) == (whole[:3], "stop")
    assert generator.generate("the fox", max_new=40, stop_ids=(third,), ignore_stop_ids=True)[0].ids == whole
    stop = text[6:9]  # over the borders of tokens
    with generator.stream("the fox", max_new=40, stop=[stop], ignore_stop_ids=True) as stream:
        pieces = list(stream)
    assert "".join(piece.text for piece in pieces) == text[: text.index(stop)] == stream.results()[0].text
    assert pieces[-1].reason == "stop" and [piece.reason for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    special = generator.generate("the fox", max_new=3, stop=["<|im_end|>"], hook=lambda new, logits: only(logits, 3))[0]
    assert (special.ids, special.text, special.reason) == ([3], "", "stop")


def only(logits: np.ndarray, *tokens: int) -> np.ndarray:
    """Logits that leave these tokens."""
    left = np.full_like(logits, -np.inf)
    left[:, tokens] = logits[:, tokens]
    return left


def test_the_context_ends_answers_and_refuses_prompts(generator: Generator) -> None:
    assert generator.context == CONTEXT
    full = [5] * CONTEXT
    answer = generator.generate([full[:-4]], max_new=100, ignore_stop_ids=True)[0]
    assert answer.reason == "context" and len(answer.ids) == 5
    assert generator.generate([full], max_new=1)[0].reason == "length"
    with pytest.raises(ConfigError, match=r"The prompt 2 of 2 has 97 tokens, and the bundle reads up to 96; shorten"):
        generator.generate([[1], [5] * 97])


def test_a_sequence_that_is_full_does_not_hold_up_those_beside_it(tmp_path: Path) -> None:
    write(tmp_path / "b", batch=3)
    prompts = [[5] * (CONTEXT - 2), [1], [6]]
    with Generator.open(tmp_path / "b") as generator:
        together = generator.generate(prompts, max_new=10, ignore_stop_ids=True)
        alone = [generator.generate([prompt], max_new=10, ignore_stop_ids=True)[0] for prompt in prompts]
    assert [answer.reason for answer in together] == ["context", "length", "length"]
    assert [answer.ids for answer in together] == [answer.ids for answer in alone]


def test_a_hook_sees_every_sequence_in_its_place(generator: Generator) -> None:
    seen: list[list[int]] = []

    def allow(new: list[list[int]], logits: np.ndarray) -> np.ndarray:
        assert logits.shape == (3, VOCABULARY) and logits.dtype == np.float32
        seen.append([len(one) for one in new])
        left = np.full_like(logits, -np.inf)
        for row, one in enumerate(new):  # row r writes 10 + r, and ends after r + 1 tokens
            left[row, END if len(one) > row else 10 + row] = 0
        return left

    answers = generator.generate(PROMPTS, max_new=9, hook=allow)
    assert [answer.ids for answer in answers] == [[10, END], [11, 11, END], [12, 12, 12, END]]
    assert seen == [[0, 0, 0], [1, 1, 1], [2, 2, 2], [2, 3, 3]]
    with pytest.raises(ConfigError, match=r"The hook on the logits gave float32 \[1\]; give float32 \[1, 300\]"):
        generator.generate("a", hook=lambda new, logits: logits[0, :1])
    with pytest.raises(UnsupportedError, match="No token can follow"):
        generator.generate("a", hook=lambda new, logits: logits - np.inf)


def test_a_prefix_is_read_once(generator: Generator) -> None:
    tokens = generator.encode("the quick brown fox jumps over")
    prefix = generator.prefix(tokens[:7])
    prompts = [tokens, tokens[:7], [*tokens, 9, 9, 9]]
    wanted = generator.generate(prompts, sampling=DRAWN, max_new=12)
    with generator.stream(prompts, sampling=DRAWN, max_new=12, prefix=prefix) as stream:
        for _ in stream:
            pass
        found = stream.results()
    assert [(one.ids, one.text, one.reused) for one in found] == [(one.ids, one.text, 7) for one in wanted]
    assert stream.timing.prompt_tokens == sum(map(len, prompts)) - 21
    assert generator.generate([tokens[:7]], sampling=DRAWN, max_new=12, prefix=prefix)[0].ids == wanted[1].ids
    with pytest.raises(ConfigError, match="Prompt 1 does not begin with the 7 tokens of the prefix"):
        generator.generate([[9, 9, 9]], prefix=prefix)


def test_a_conversation_goes_on_where_it_was(generator: Generator) -> None:
    messages = [{"role": "user", "content": "the fox"}]
    prompt = generator.chat(messages)
    assert generator.decode(prompt) == "user\nthe fox\nassistant\n" and prompt[0] == SPECIAL.index("<|im_start|>")
    with generator.stream(prompt, max_new=6, keep=True, detached=True) as stream:
        first = "".join(piece.text for piece in stream)
    assert stream.kept is not None and stream.kept.tokens == (*prompt, *stream.results()[0].ids[:-1])
    longer = [*stream.kept.tokens, *generator.encode("and", special=False)]
    again = generator.generate([longer], max_new=5, prefix=stream.kept)[0]
    assert again.ids == greedy(longer, 5) and again.reused == len(stream.kept.tokens)
    assert first == generator.generate(prompt, max_new=6)[0].text


def test_streams_are_cancelled(generator: Generator) -> None:
    wanted = generator.generate(PROMPTS, max_new=60, ignore_stop_ids=True)
    with generator.stream(PROMPTS, max_new=60, ignore_stop_ids=True) as stream:
        texts = ["", "", ""]
        for count, piece in enumerate(stream):
            texts[piece.sequence] += piece.text
            if count == 12:
                stream.cancel(1)
            if count == 40:
                threading.Thread(target=stream.cancel).start()
    found = stream.results()
    assert [answer.text for answer in found] == texts
    assert found[1].reason == "cancelled" and found[1].ids == wanted[1].ids[:5]
    assert all(one.ids == two.ids[: len(one.ids)] for one, two in zip(found, wanted, strict=True))
    with generator.stream(PROMPTS, max_new=60) as stream:
        stream.cancel()
        assert [piece.reason for piece in stream] == ["cancelled"] * 3
    assert stream.timing.prompt_tokens == 0
    with generator.stream(PROMPTS, max_new=60) as stream:
        next(stream)
    assert [answer.reason for answer in stream.results()] == ["cancelled"] * 3


def test_timing(generator: Generator) -> None:
    with generator.stream(PROMPTS, max_new=4, ignore_stop_ids=True) as stream:
        list(stream)
    timing = stream.timing
    assert (timing.new_tokens, timing.decode_tokens, timing.prompt_tokens) == (12, 9, sum(
        len(generator.encode(prompt)) for prompt in PROMPTS
    ))  # fmt: skip
    assert timing.first_token_s is not None and 0 < timing.prompt_s <= timing.first_token_s
    assert 0 < timing.session_s < timing.decode_s and timing.cache_bytes == 3 * 8 * (1 + 16)


def test_scores(tmp_path: Path, generator: Generator) -> None:
    with pytest.raises(ConfigError, match="gives the logits of the last token only, and scores none"):
        generator.score("the fox")
    for count in (True, False):
        write(tmp_path / f"{count}", every=True, count=count)
        with Generator.open(tmp_path / f"{count}") as scorer:
            for text, found in zip(PROMPTS, scorer.score(PROMPTS), strict=True):
                tokens = scorer.encode(text)
                logits = logits_of(tokens).astype(np.float64)
                wanted = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
                np.testing.assert_allclose(found, wanted[np.arange(len(tokens) - 1), tokens[1:]], atol=1e-4)


def test_what_the_makers_want_is_the_default(tmp_path: Path) -> None:
    generation = {"do_sample": True, "top_k": 3, "temperature": 0.7, "max_new_tokens": 5, "repetition_penalty": 1.5}
    write(tmp_path / "b", generation=generation)
    with Generator.open(tmp_path / "b") as generator:
        wanted = Sampling(temperature=0.7, top_k=3, repetition_penalty=1.5)
        assert generator.text.sampling == wanted and len(generator.generate("a", ignore_stop_ids=True)[0].ids) == 5
    write(tmp_path / "c", generation={**generation, "do_sample": False})
    with Generator.open(tmp_path / "c") as generator:
        assert generator.text.sampling == Sampling(repetition_penalty=1.5)


def test_bundles_that_write_nothing_are_refused(tmp_path: Path) -> None:
    large = Tokenizer.read(tokenizer_json(), "t")._library
    large.add_tokens([f"<{number}>" for number in range(40)])
    write(tmp_path / "large", tokenizer=large.to_str().encode())
    with pytest.raises(BundleError, match=r"has tokens up to 3\d\d, and the model knows 300 \(0 to 299\)"):
        Generator.open(tmp_path / "large")
    write(tmp_path / "broken", tokenizer=b"{}")
    with pytest.raises(BundleError, match="'text/tokenizer.json' of '.*' cannot be read"):
        Generator.open(tmp_path / "broken")
    write(tmp_path / "bare", text=False)
    with Generator.open(tmp_path / "bare") as generator:
        assert generator.generate([[5, 6]], max_new=3)[0].ids == greedy([5, 6], 3)
        with pytest.raises(ConfigError, match="has no tokenizer; give the numbers of tokens"):
            generator.generate("a")
        with pytest.raises(ConfigError, match="has no tokenizer, so that no text stops it"):
            generator.generate([[5]], stop=["a"])
        with pytest.raises(ConfigError, match="has no chat template"):
            generator.chat([{"role": "user", "content": "a"}])


def test_prompts_that_are_refused(generator: Generator) -> None:
    for prompts, said in [
        ([], "No prompt was given"),
        ([[]], "has no token"),
        ([[300]], "has the token 300; the model knows 0 to 299"),
        ([[-1]], "has the token -1"),
        (["a", 5.0], "A prompt is a text or the numbers of tokens, and 5.0 was given"),
        ("a\ud800", "surrogates not allowed"),
    ]:
        with pytest.raises(ConfigError, match=said):
            generator.generate(prompts)  # type: ignore[arg-type]
    for settings, said in [
        ({"max_new": 0}, "max_new=0; give a whole number of at least 1"),
        ({"max_new": [1, 2]}, "give one, or one for each of the 1 prompts"),
        ({"batch": 0}, "batch=0"),
        ({"top_q": 1}, "setting 'top_q' is not known"),
    ]:
        with pytest.raises(ConfigError, match=said):
            generator.generate("a", **settings)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="are no messages; give a list of"):
        generator.chat([{"content": "a"}])


def test_too_little_memory_is_said_before_any_is_taken(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = generator.session.bundle.manifest
    assert memory.state_bytes(manifest, 3, 60) == 3 * 8 * (1 + 64) and memory.weight_bytes(manifest) > 4 * 300 * 300
    free = memory.available_bytes()
    assert free is not None and free > 1 << 20
    monkeypatch.setattr(memory, "available_bytes", lambda: 1000)
    with pytest.raises(UnsupportedError, match=r"The states of 3 sequences of .* B are free; ask for fewer tokens"):
        generator.generate(PROMPTS, max_new=60)
    assert generator.generate("a", max_new=20)[0].reason


def test_a_fixed_batch_is_read_as_it_is_or_refused_in_a_sentence(tmp_path: Path) -> None:
    write(tmp_path / "one", fixed=1)
    write(tmp_path / "two", fixed=2)
    write(tmp_path / "any")
    with Generator.open(tmp_path / "any") as free, Generator.open(tmp_path / "one") as one:
        wanted = free.generate(PROMPTS, max_new=8)
        found = one.generate(PROMPTS, max_new=8, prefix=None)
        assert [answer.ids for answer in found] == [answer.ids for answer in wanted]
        prefix = one.prefix(one.encode("the"))
        assert one.generate("the fox", max_new=5, prefix=prefix)[0].ids == free.generate("the fox", max_new=5)[0].ids
        single = [Sequences(free.session) for _ in range(2)]
        with Session.open(tmp_path / "two") as session:
            both = Sequences(session, batch=2)
            texts = [np.array([5, 6, 7, 8, 9, 10, 11]), np.array([9, 8])]
            read = [alone.read([text]) for alone, text in zip(single, texts, strict=True)]
            np.testing.assert_array_equal(both.read(texts), np.concatenate(read))
            forked = both.fork()
            forked.keep([0, 1])
            stepped = [alone.step([token]) for alone, token in zip(single, (4, 5), strict=True)]
            np.testing.assert_array_equal(forked.step([4, 5]), np.concatenate(stepped))
            with pytest.raises(ConfigError, match="batch=3; '.*two' was exported for a fixed batch: begin 2 sequences"):
                Sequences(session, batch=3)
            with pytest.raises(UnsupportedError, match="no axis of sequences, as it was exported for a fixed batch"):
                both.keep([1])
    with pytest.raises(UnsupportedError, match="'.*two' reads 2 sequences at once and no others, .*--batch 1:2:4"):
        Generator.open(tmp_path / "two")


def row_of(sequences: Sequences, state: str, row: int) -> np.ndarray[Any, Any]:
    value = sequences.states.value(state)
    assert value is not None
    return np.array(value[row])


def test_a_sequence_at_its_limit_stays_as_it_is_while_others_read(generator: Generator) -> None:
    random = np.random.default_rng(0)
    full, short = random.integers(4, VOCABULARY, CONTEXT - 2), np.array([5, 6, 7])
    three = Sequences(generator.session, batch=3)
    alone = [Sequences(generator.session) for _ in range(2)]
    three.read([short, full, short + 1])
    for each, text in zip(alone, (short, short + 1), strict=True):
        each.read([text])
    three.step([9, 8, 7], ended=[True, False, True])
    held = three.step([9, 8, 7], ended=[True, False, True])  # now it is full
    assert three.seen == (3, CONTEXT, 3)
    states = {name: row_of(three, name, 1) for name in ("total", "cache")}
    wanted = [each.read([np.arange(4, 13)]) for each in alone]
    found = three.read([np.arange(4, 13), np.zeros(0, np.int64), np.arange(4, 13)])
    np.testing.assert_array_equal(found[[0, 2]], np.concatenate(wanted))
    for token in range(20, 24):
        found = three.step([token] * 3, ended=[False, True, False])
        np.testing.assert_array_equal(found[[0, 2]], np.concatenate([each.step([token]) for each in alone]))
    assert three.seen == (16, CONTEXT, 16) and held.shape == found.shape
    for name, before in states.items():
        np.testing.assert_array_equal(row_of(three, name, 1), before)
    with pytest.raises(ShapeError, match="97 slots are needed on 'slots', and these states may have 96"):
        three.step([1, 1, 1])
    assert three.seen == (16, CONTEXT, 16)  # refused, and nothing has changed
    three.keep([2, 1])
    np.testing.assert_array_equal(three.step([30, 0], ended=[False, True])[:1], alone[1].step([30]))
