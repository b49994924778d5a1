"""Vocabularies of packages and manuals of Debian: slow, and skipped with the reason where there is no network."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.real_vocabularies import PACKAGES, vocabulary
from trt_compress.errors import UnsupportedError
from trt_compress.runtime.generate.tokenizer import Tokenizer
from trt_compress.runtime.text.growing import GrowingText, count_tokens, split_text
from trt_compress.tools.tokenizers.debian_reference import LANGUAGES, align, fetch, paragraphs_of, unpacked_package
from trt_compress.tools.tokenizers.sources import open_tokenizer

GOLDEN = Path(__file__).parents[2] / "golden" / "mergefree_bpe"
Cli = Callable[..., "subprocess.CompletedProcess[str]"]


def test_paragraphs_and_their_alignment() -> None:
    page = """<html><p>Before.</p><h2><a id="one"></a>Title</h2><p>First  <b>bold</b>
    text &amp; more of it.</p><pre>code</pre><p></p><a id="two"></a><li><p>Item that is long enough.</p></li></html>"""
    english = paragraphs_of(page)
    assert english == {
        "": ["Before."],
        "one": ["First bold text & more of it.", ""],
        "two": ["Item that is long enough."],
    }
    german = {"": ["Vorher."], "one": ["Erster fetter Text und mehr.", ""], "two": ["Ein Punkt, lang genug."]}
    found = align({"en": english, "de": german})
    assert found == {"en": [english["one"][0], english["two"][0]], "de": [german["one"][0], german["two"][0]]}
    assert align({"en": english, "de": {**german, "one": ["Nur einer."]}})["de"] == [german["two"][0]]
    assert align({"en": english, "de": {**german, "two": english["two"]}})["en"] == [english["one"][0]]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in PACKAGES if (GOLDEN / f"{name}.npz").is_file()])
@pytest.mark.parametrize("mode", ["greedy", "exact"])
def test_golden_encodings_by_the_whole_vocabularies(cli: Cli, tmp_path: Path, name: str, mode: str) -> None:
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as archive:
        arrays = {key: archive[key] for key in archive.files}
    texts = json.loads(str(arrays["texts"]))
    for number, text in enumerate(texts):
        (tmp_path / f"{number:02}.txt").write_bytes(text.encode())
    files = sorted(path.name for path in tmp_path.glob("*.txt"))
    options = ("-t", vocabulary(name), "--vocabulary-only", mode, "--whole", "--json")
    done = cli("tokenizer", "encode", *files, *options)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [number for text in found["texts"] for number in text["tokens"]] == arrays[f"{mode}_ids"].tolist()
    assert found["tokens_bpe"] == len(arrays["bpe_ids"])
    assert found["pieces_that_differ"] == json.loads(str(arrays["meta"]))["pretokens_differing_from_bpe"][mode]


@pytest.mark.slow
@pytest.mark.parametrize("name", PACKAGES)
def test_real_texts_grow_and_are_cut(name: str) -> None:
    encoder = open_tokenizer(vocabulary(name)).encoder
    assert isinstance(encoder, Tokenizer)
    with np.load(GOLDEN / "qwen.npz", allow_pickle=False) as archive:
        text = "\n".join(json.loads(str(archive["texts"])) * 3)
    growing = GrowingText(encoder)
    assert growing.why_whole is None
    for start in range(0, len(text), 7):
        growing.append(text[start : start + 7])
        assert growing.tokens == encoder.encode(text[: start + 7], special=False)
    assert growing.num_settled > 0.9 * growing.num_tokens and count_tokens(encoder, text) == growing.num_tokens
    parts = split_text(encoder, text, 64)
    assert "".join(parts) == text and max(len(encoder.encode(part, special=False)) for part in parts) <= 64


@pytest.mark.slow
def test_manuals_in_ten_languages(cli: Cli, tmp_path: Path) -> None:
    try:
        texts = fetch(tmp_path / "packages")
    except UnsupportedError as error:
        pytest.skip(error.message)
    assert set(texts) == set(LANGUAGES) and len({len(lines) for lines in texts.values()}) == 1
    assert len(texts["en"]) > 1000
    for language in ("en", "de", "ja"):
        (tmp_path / f"{language}.txt").write_text("\n".join(texts[language]))
    done = cli("tokenizer", "report", "en.txt", "de.txt", "ja.txt", "-t", vocabulary("gpt2"), "--parallel", "--json")
    assert done.returncode == 0, done.stderr
    found = {row["text"]: row for row in json.loads(done.stdout)["tokenizers"][0]["texts"]}
    ratios = {name: row["premium"]["ratio"] for name, row in found.items()}
    assert ratios["en.txt"] == 1 and 1.2 < ratios["de.txt"] < ratios["ja.txt"]
    assert all(row["premium"]["low"] <= row["premium"]["ratio"] <= row["premium"]["high"] for row in found.values())
    (tmp_path / "short.txt").write_text("\n".join(texts["de"][:-1]))
    refused = cli("tokenizer", "report", "en.txt", "short.txt", "-t", vocabulary("gpt2"), "--parallel")
    assert refused.returncode == 2 and "parallel texts have one line for" in refused.stderr


@pytest.mark.slow
def test_a_real_genome(cli: Cli, tmp_path: Path) -> None:
    """The phage lambda, out of the examples of bowtie 2."""
    try:
        files = unpacked_package("bowtie2-examples", tmp_path / "packages")
    except UnsupportedError as error:
        pytest.skip(error.message)
    genome = next(files.rglob("lambda_virus.fa*"))
    done = cli("tokenizer", "train", genome, "--kind", "dna", "--size", 1024, "-o", "dna", "--json")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["size"] == 1024 and record["characters"] == 48_502
    encoder = open_tokenizer(tmp_path / "dna").encoder
    assert isinstance(encoder, Tokenizer)
