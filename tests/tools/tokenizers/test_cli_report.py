"""`trt-compress tokenizer report`: its figures against counts made here, its files, and what it refuses."""

import json
import math
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.tools.tokenizers.made import byte_level, written
from trt_compress.errors import ConfigError
from trt_compress.tools.tokenizers.measure import ratio_interval
from trt_compress.tools.tokenizers.power_law import fit_power_law

Cli = Callable[..., "subprocess.CompletedProcess[str]"]

ENGLISH = [f"The {animal} jumps over the lazy dog {number} times." for number in range(30) for animal in ("fox", "cat")]
GERMAN = [f"Das Tier Nummer {number} springt über den großen faulen Hund." for number in range(60)]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "en.txt").write_text("\n".join(ENGLISH))
    (tmp_path / "de.txt").write_text("\n".join(GERMAN))
    for size in (300, 400, 600):
        written(byte_level(size), tmp_path / f"v{size}")
    return tmp_path


def test_the_figures(cli: Cli, files: Path) -> None:
    options = ("-t", "v300", "-t", "v600", "--parallel", "-o", "out")
    done = cli("tokenizer", "report", "en.txt", "de.txt", *options, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found == json.loads((files / "out" / "tokenizers.report.json").read_text())
    assert [one["tokenizer"] for one in found["tokenizers"]] == ["v300", "v600"] and found["reference"] == "en.txt"
    library = byte_level(600)
    size = library.get_vocab_size()
    one = found["tokenizers"][1]
    texts = {"en.txt": ENGLISH, "de.txt": GERMAN}
    every: Counter[int] = Counter()
    for row in one["texts"]:
        lines = texts[row["text"]]
        ids = library.encode("\n".join(lines)).ids
        counts = Counter(ids)
        every += counts
        total = len(ids)
        entropy = -sum(count / total * math.log2(count / total) for count in counts.values())
        assert (row["tokens"], row["used"], row["comes_back"]) == (total, len(counts), True)
        assert row["bytes_a_token"] == pytest.approx(len("\n".join(lines).encode()) / total)
        assert row["entropy_bits"] == pytest.approx(entropy)
        assert row["encode_s"] > 0 and row["decode_s"] > 0
        over, under = (sum(len(library.encode(line).ids) for line in part) for part in (lines, ENGLISH))
        assert row["premium"]["ratio"] == pytest.approx(over / under) and row["premium"]["lines"] == 60
        assert row["premium"]["low"] <= row["premium"]["ratio"] <= row["premium"]["high"]
    assert (one["vocabulary"], one["used"]) == (size, len(every))
    worst = one["texts"][0]["worst_words"]
    costs = [row["occurrences"] * (row["tokens"] - 1) for row in worst]
    assert costs == sorted(costs, reverse=True) and worst[0]["occurrences"] == ENGLISH.count(ENGLISH[0]) * 60
    for row in worst:
        assert row["tokens"] == len(library.encode(" " + row["word"]).ids)
    page = (files / "out" / "tokenizers.report.html").read_text()
    assert page.count("<figure>") == 2 and "Tokens over those of the reference" in page and "http://" not in (
        page.replace("http://www.w3.org/2000/svg", "")
    )  # fmt: skip
    shown = cli("tokenizer", "report", "en.txt", "de.txt", "-t", "v300").stdout
    assert "bytes a token" in shown and "premium" not in shown and "Words that cost most" in shown


def test_of_a_long_word_its_beginning_is_shown(cli: Cli, files: Path) -> None:
    """Scripts without spaces have whole sentences between two of them; the JSON has them whole."""
    word = "漢" * 40
    (files / "ja.txt").write_text(word)
    assert f" {word[:23]}… (1 × " in cli("tokenizer", "report", "ja.txt", "-t", "v300").stdout
    found = json.loads(cli("tokenizer", "report", "ja.txt", "-t", "v300", "--json").stdout)
    assert found["tokenizers"][0]["texts"][0]["worst_words"][0]["word"] == word


def test_a_fit_over_sizes(cli: Cli, files: Path) -> None:
    tokenizers = ("-t", "v300", "-t", "v400", "-t", "v600", "--fit")
    done = cli("tokenizer", "report", "en.txt", "de.txt", *tokenizers, "--target", 1100, "--json", "-o", "out")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    sizes = [byte_level(size).get_vocab_size() for size in (300, 400, 600)]
    for fit in found["fits"]:
        assert fit["fit"]["sizes"] == sizes and fit["target_tokens"] == 1100
        if fit["recommended"] is not None:
            a, b, c = (fit["fit"][name] for name in "abc")
            assert a * fit["recommended"] ** -b + c <= 1100 + 1e-6
            assert a * (fit["recommended"] - 1) ** -b + c > 1100
    assert "Tokens by the size of the vocabulary" in (files / "out" / "tokenizers.report.html").read_text()


def test_a_law_is_found_again() -> None:
    sizes = [1000, 2000, 4000, 8000, 16000]
    law = fit_power_law(sizes, [round(9e5 * size**-0.4 + 50_000) for size in sizes])
    assert (law.a, law.b, law.c) == pytest.approx((9e5, 0.4, 50_000), rel=2e-2) and law.worst < 1e-4
    assert law.size_for(law.tokens(3000.0)) == pytest.approx(3000, abs=1)
    assert law.size_for(law.c) is None and law.size_for(law.c + 1e-9) is None
    flat = fit_power_law(sizes, [7] * 5)
    assert flat.size_for(7) == 1000 and flat.size_for(6) is None
    with pytest.raises(ConfigError, match="needs 3 different ones, and there are 2"):
        fit_power_law([1, 2, 2], [3, 2, 2])


def test_intervals_hold_their_ratio_and_are_those_of_the_spread() -> None:
    chance = np.random.default_rng(3)
    under = chance.integers(5, 50, 400).astype(float)
    over = under * 1.5 + chance.normal(0, 2, 400)
    low, high = ratio_interval(over, under)
    assert low is not None and high is not None and low < over.sum() / under.sum() < high and high - low < 0.05
    assert ratio_interval(over[:19], under[:19]) == (None, None)
    assert ratio_interval(over, under) == (low, high)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--reference", "en.txt"), "give --parallel with it"),
        (("--target", "5"), "give --fit with it"),
        (("--fit", "--target", "0"), "--target 0: a text has at least 1 token"),
        (("--fit",), "--fit needs tokenizers of 3 different sizes, and 1 are given"),
        (
            ("--parallel", "--reference", "short.txt"),
            "'en.txt' has 60 lines and 'short.txt' 1; parallel texts have one",
        ),
        (("-t", "v600"), "Two tokenizers would both be shown as 'v600'"),
        (("-o", "en.txt"), "--output"),
    ],
)
def test_bad_input(cli: Cli, files: Path, options: tuple[str, ...], said: str) -> None:
    (files / "short.txt").write_text("one line")
    done = cli("tokenizer", "report", "en.txt", "de.txt", "-t", "v600", *options)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr and done.stdout == ""
