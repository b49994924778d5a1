"""`trt-compress evaluate` of a bundle that reads text: perplexity, needles, against a baseline."""

import json
import math
from collections.abc import Iterator

import numpy as np
import pytest

from tests.runtime.generate.toy import logits_of, tables, tokenizer_json, write
from tests.typed_commands import LIGHT, Typed
from trt_compress.runtime.generate.tokenizer import Tokenizer

CONTEXT = 200
TEXT = "The quick brown fox jumps over the lazy dog, and the other fox jumps too. " * 40


@pytest.fixture(scope="module")
def typed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Typed]:
    folder = tmp_path_factory.mktemp("text")
    write(folder / "b", every=True, context=CONTEXT)
    write(folder / "last")
    first, _ = tables()
    kept = first.copy()
    first[:] = np.round(first * 2) / 2  # coarser weights
    write(folder / "coarse", every=True, context=CONTEXT)
    first[:] = kept
    other = Tokenizer.read(tokenizer_json(), "t")._library
    other.add_tokens(["fox"])
    write(folder / "other", every=True, context=CONTEXT, tokenizer=other.to_str().encode())
    (folder / "t.txt").write_text(TEXT)
    (folder / "short.txt").write_text("a")
    (folder / "bad.txt").write_bytes(b"abc\xff")
    with Typed(folder, loaded=LIGHT) as typed:
        yield typed


def reference(window: int) -> tuple[float, int]:
    """Perplexity by numpy, and the tokens that were scored."""
    tokens = Tokenizer.read(tokenizer_json(), "t").encode(TEXT, special=False)
    total, count = 0.0, 0
    for start in range(0, len(tokens), window - 1):
        text = [0, *tokens[start : start + window - 1]]
        logits = logits_of(text).astype(np.float64)
        logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
        total += logits[np.arange(len(text) - 1), text[1:]].sum()
        count += len(text) - 1
    return math.exp(-total / count), count


def test_perplexity_and_needles_against_a_baseline(typed: Typed) -> None:
    done = typed(
        *("evaluate", "coarse", "--baseline", "b", "--perplexity", "t.txt", "--needle", "--json", "-"),
        *("--budget", "perplexity_ratio<=1000,needle>=0"),
    )
    assert done.code == 0, done.err
    document = json.loads(done.out)
    scores = document["scores"]
    value, count = reference(CONTEXT)
    assert scores["baseline_perplexity"]["value"] == pytest.approx(value, rel=1e-4)
    assert scores["baseline_perplexity"]["tokens"] == count
    assert scores["perplexity"]["value"] != scores["baseline_perplexity"]["value"]
    assert scores["change"]["ratio"] == pytest.approx(
        scores["perplexity"]["value"] / scores["baseline_perplexity"]["value"]
    )
    assert scores["change"]["low"] < scores["change"]["ratio"] < scores["change"]["high"]
    assert scores["perplexity"]["bits_per_byte"] == pytest.approx(
        math.log2(scores["perplexity"]["value"]) * count / len(TEXT)
    )
    assert scores["needle"]["n"] == 20 and scores["needle"]["count"] == 0
    assert [one["depth"] for one in scores["needle"]["by_depth"]] == [0, 0.25, 0.5, 0.75, 1]
    assert document["document"] == "trt-compress evaluation" and document["data"]["windows"] == math.ceil(
        count / (CONTEXT - 1)
    )
    assert all(held["passed"] for held in document["budget"])


def test_behind_prompts(typed: Typed) -> None:
    """Each window is a prompt and a continuation, of which what follows its first token is scored."""
    given = ("--perplexity", "t.txt", "--context-tokens", 40, "--window", 60)
    done = typed("evaluate", "b", "--baseline", "coarse", *given, "--batch", 3, "--json", "-")
    assert done.code == 0, done.err
    tokens = Tokenizer.read(tokenizer_json(), "t").encode(TEXT, special=False)
    texts = [[0, *tokens[start : start + 59]] for start in range(0, len(tokens), 59)]
    kept = [text for text in texts if len(text) >= 42]
    scored = []
    for text in kept:
        logits = logits_of(text).astype(np.float64)
        logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
        scored += [logits[at, text[at + 1]] for at in range(40, len(text) - 1)]
    document = json.loads(done.out)
    found = document["scores"]["perplexity"]
    assert found["tokens"] == len(scored) and found["value"] == pytest.approx(math.exp(-np.mean(scored)), rel=1e-4)
    assert document["data"]["windows"] == len(kept) and document["protocol"]["context_tokens"] == 40
    assert document["scores"]["change"]["ratio"] != 1 and document["protocol"]["caches_compressed"] == [False, False]
    done = typed("evaluate", "b", *given)
    assert done.code == 0 and f"{len(kept)} windows of 60, each behind a prompt of 40." in done.out, done.err
    assert "Scored as a whole" not in done.out


def test_recall(typed: Typed) -> None:
    done = typed("evaluate", "b", "--baseline", "coarse", "--recall", "--pairs", 2, "--trials", 3, "--json", "-")
    assert done.code == 0, done.err
    document = json.loads(done.out)
    scores = document["scores"]
    assert scores["recall"]["n"] == scores["recall_change"]["n"] == 15 and scores["needle"] is None
    assert scores["recall"]["low"] == 0 < scores["recall"]["high"] < 0.25
    assert [each["n"] for each in scores["baseline_recall"]["by_depth"]] == [3] * 5
    assert document["data"]["recalls"] == 15 and document["protocol"]["pairs"] == 2
    done = typed("evaluate", "b", "--recall", "--pairs", 2, "--budget", "recall_low>=0.5")
    assert done.code == 3 and "values recalled" in done.out and "recall_low (n 20) is 0" in done.err


def test_tables(typed: Typed) -> None:
    done = typed("evaluate", "b", "--baseline", "coarse", "--perplexity", "t.txt", "--window", 50, "--limit", 2)
    assert done.code == 0 and "b" in done.out, done.err
    line = next(line for line in done.out.splitlines() if line.lstrip().startswith("perplexity"))
    assert "too short a text for an interval" in line and "× " in line
    done = typed("evaluate", "b", "--perplexity", "t.txt", "--window", 50, "--budget", "perplexity<=1.5")
    value, count = reference(50)
    assert done.code == 3 and f"perplexity (n {count}) is {value:.0f}"[:-2] in done.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("last", "--perplexity", "t.txt"), "'last' gives the logits of the last token only, and scores no text"),
        (("b", "--perplexity", "no.txt"), "--perplexity: 'no.txt' cannot be read (No such file"),
        (("b", "--perplexity", "bad.txt"), "--perplexity: 'bad.txt' is no UTF-8 (the byte 0xff at 3); convert it"),
        (("b", "--perplexity", "t.txt", "--window", 201), "--window 201; the bundles read 2 to 200 tokens at a time"),
        (("b", "--needle", "--window", 40), "--needle: a needle and its question have"),
        (("b", "--perplexity", "t.txt", "--baseline", "other"), "'other' makes other tokens of the text than 'b'"),
        (
            ("b", "--perplexity", "t.txt", "--data", "x"),
            "--data is for labelled data; leave it out with --perplexity, --needle",
        ),
        (("b", "--window", 5), "--window is for text; give --perplexity FILE, --needle or --recall too"),
        (("b", "--seed", 5), "--seed is for text; give --perplexity FILE, --needle or --recall too"),
        (("b", "--needle", "--context-tokens", 5), "--context-tokens is of --perplexity; give that too"),
        (("b", "--perplexity", "t.txt", "--context-tokens", 0), "context-tokens"),
        (("b", "--perplexity", "t.txt", "--context-tokens", 199), "--context-tokens 199 leaves nothing to score; the"),
        (
            ("b", "--perplexity", "t.txt", "--context-tokens", 50, "--window", 51),
            "--window 51; the bundles read 52 to 200 tokens at a time behind --context-tokens 50",
        ),
        (("b", "--perplexity", "short.txt", "--context-tokens", 9), "'short.txt' has 1 tokens; give a text of 11 at"),
        (("b", "--perplexity", "t.txt", "--trials", 5), "--trials is of questions; give --needle or --recall too"),
        (("b", "--needle", "--pairs", 5), "--pairs is of questions; give --recall too"),
        (("b", "--recall", "--pairs", 81), "--pairs 81 is out of range; give 2 to 80"),
        (("b", "--recall", "--window", 40), "--recall: 2 pairs and their question have"),
        (
            ("b", "--perplexity", "t.txt", "--budget", "accuracy>=1"),
            "budget: metric 'accuracy' is not known; there are",
        ),
        (("b", "--perplexity", "t.txt", "--json", "t.txt"), "--json t.txt is --perplexity itself"),
        (("no", "--perplexity", "t.txt"), "'no' does not exist"),
    ],
)
def test_mistakes(typed: Typed, arguments: tuple[object, ...], said: str) -> None:
    done = typed("evaluate", *arguments)
    assert done.is_one_sentence and said in done.err, done.err
    assert {"onnxruntime", "torch"}.isdisjoint(done.loaded)
