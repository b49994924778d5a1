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
        (("b", "--perplexity", "t.txt", "--data", "x"), "--data is for labelled data; leave it out with --perplexity"),
        (("b", "--window", 5), "--window and --seed are for text; give --perplexity FILE or --needle too"),
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
