"""`trt-compress tokenizer encode` and `split`: what they write, print and refuse, and the forms of tokenizers."""

import base64
import gzip
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import sentencepiece
from tokenizers import Tokenizer, models, pre_tokenizers

from tests.tools.tokenizers.made import LINES, byte_level, written
from trt_compress.runtime.text.pieces import TextPieces

Cli = Callable[..., "subprocess.CompletedProcess[str]"]


def test_lines_by_the_vocabulary_alone(cli: Cli, tmp_path: Path) -> None:
    library = byte_level()
    written(library, tmp_path / "mine")
    (tmp_path / "a.txt").write_text("".join(LINES))
    done = cli("tokenizer", "encode", "a.txt", "-t", "mine", "--vocabulary-only", "exact", "-o", "ids.jsonl", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    lines = [line for line in "".join(LINES).splitlines() if line.strip()]
    assert found["tie_rule"].startswith("fewest pieces; of several ways the longest last piece")
    own = [library.encode(line, add_special_tokens=False).ids for line in lines]
    assert [text["tokens_bpe"] for text in found["texts"]] == [len(ids) for ids in own]
    assert found["texts_that_differ"] == sum(
        text["tokens"] != ids for text, ids in zip(found["texts"], own, strict=True)
    )
    assert 0 < found["tokens"] <= found["tokens_bpe"] and 0 < found["pieces_that_differ"] < found["pieces"]
    for text, line in zip(found["texts"], lines, strict=True):
        assert library.decode(text["tokens"]) == line
    saved = [json.loads(line) for line in (tmp_path / "ids.jsonl").read_text().splitlines()]
    assert [(row["text"], row["tokens"]) for row in saved] == [(row["name"], row["tokens"]) for row in found["texts"]]
    shown = cli("tokenizer", "encode", "a.txt", "-t", "mine", "--vocabulary-only", "exact").stdout
    assert "texts that differ" in shown and "Ties: fewest pieces" in shown
    assert found["missing_bytes"] == 0 and "The vocabulary has all bytes: every text has an encoding." in shown


def test_parts_of_a_file(cli: Cli, tmp_path: Path) -> None:
    written(byte_level(), tmp_path / "mine")
    text = "".join(LINES) * 3
    (tmp_path / "a.txt").write_bytes(text.encode())
    done = cli("tokenizer", "split", "a.txt", "-t", "mine", "-n", 50, "-o", "parts", "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["parts"]
    files = sorted((tmp_path / "parts").iterdir())
    assert [file.name for file in files[:2]] == ["a.0001.txt", "a.0002.txt"] and len(files) == len(rows) > 5
    assert b"".join(file.read_bytes() for file in files).decode() == text
    assert max(row["tokens"] for row in rows) <= 50
    assert rows[1]["start"] == rows[0]["characters"]
    refused = cli("tokenizer", "split", "a.txt", "-t", "mine", "-n", 0)
    assert refused.returncode == 2 and "--tokens 0: a part has at least 1 token" in refused.stderr


def test_a_sentencepiece_model(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("\n".join(line.strip() for line in LINES * 9))
    for kind in ("bpe", "unigram"):
        (tmp_path / kind).mkdir()
        sentencepiece.SentencePieceTrainer.train(
            input=str(tmp_path / "lines.txt"), model_prefix=str(tmp_path / kind / "tokenizer"), vocab_size=700,
            model_type=kind, byte_fallback=True, character_coverage=0.99, minloglevel=2, hard_vocab_limit=False,
        )  # fmt: skip
        processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / kind / "tokenizer.model"))
        done = cli("tokenizer", "encode", "lines.txt", "-t", kind, "--vocabulary-only", "exact", "--json")
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert (found["tokenizer"], found["kind"]) == (kind, {"bpe": "BPE", "unigram": "Unigram"}[kind])
        assert found["tokens"] <= found["tokens_bpe"]
        lines = [line for line in (tmp_path / "lines.txt").read_text().splitlines() if line.strip()]
        for text, line in zip(found["texts"], lines, strict=True):
            own = processor.encode(line)
            assert text["tokens_bpe"] == len(own) and processor.decode(text["tokens"]) == processor.decode(own)
        split = cli("tokenizer", "split", "lines.txt", "-t", kind, "-n", 40, "--json")
        assert split.returncode == 0, split.stderr
        assert max(part["tokens"] for part in json.loads(split.stdout)["parts"]) <= 40


def test_a_vocabulary_in_the_form_of_tiktoken(cli: Cli, tmp_path: Path) -> None:
    library = byte_level(500)
    entries = TextPieces(library, "BPE").vocabulary
    ranks = {text: number for number, text in enumerate(sorted(entries, key=lambda text: entries[text]))}
    content = b"".join(base64.b64encode(text) + b" %d\n" % rank for text, rank in ranks.items())
    (tmp_path / "gpt2.tiktoken.gz").write_bytes(gzip.compress(content))
    (tmp_path / "mine.bpe").write_bytes(content)
    (tmp_path / "a.txt").write_text("".join(LINES))
    numbers = {number: ranks[text] for text, number in entries.items()}
    for options in (("gpt2.tiktoken.gz",), ("mine.bpe", "--pattern", "gpt2")):
        done = cli("tokenizer", "encode", "a.txt", "--whole", "--json", "-t", *options)
        assert done.returncode == 0, done.stderr
        own = library.encode("".join(LINES), add_special_tokens=False).ids
        assert json.loads(done.stdout)["texts"][0]["tokens"] == [numbers[number] for number in own]


GPT2 = b"IQ== 0\nIg== 1\n"


@pytest.mark.parametrize(
    ("name", "content", "options", "said"),
    [
        ("mine.bpe", GPT2, (), "does not say how text is split before its ranks are used; give --pattern, one of gpt2"),
        ("mine.bpe", GPT2, ("--pattern", "(a"), "--pattern '(a' of 'mine.bpe' is no regular expression"),
        ("gpt2.tiktoken", GPT2 + b"what\n", (), "cannot be read (line 3 is not 'base64 rank')"),
        ("gpt2.tiktoken", GPT2 + b"IQ== 2\n", (), "cannot be read (the token of line 3 stands there twice)"),
        ("gpt2.tiktoken", GPT2 + b"Iw== 1\n", (), "cannot be read (two tokens have one rank)"),
        ("gpt2.tiktoken.gz", b"\x1f\x8b\x08damaged", (), "cannot be read (it is damaged: "),
        ("gpt2.tiktoken", GPT2, ("--vocabulary-only", "exact"), "no piece for 254 of the 256 bytes (0x00, 0x01"),
        ("gpt2.tiktoken", GPT2, ("--vocabulary-only", "fewest"), "--vocabulary-only 'fewest' is not known; there are"),
        ("gpt2.tiktoken", GPT2, ("--vocabulary-only", "greedy"), "has no greedy encoding of b'text': no piece fits"),
        ("m.model", b"\x0a\xff\xff\xff", (), "'m.model' cannot be read (it ends inside a"),
        ("m.model", b"what is this", (), "'m.model' cannot be read ("),
        ("tokenizer.json", b"", ("-o", "text.txt"), "--output"),
    ],
)
def test_bad_input(cli: Cli, tmp_path: Path, name: str, content: bytes, options: tuple[str, ...], said: str) -> None:
    (tmp_path / "text.txt").write_text("text")
    (tmp_path / name).write_bytes(content)
    done = cli("tokenizer", "encode", "text.txt", "-t", name, *options)
    assert done.returncode == 2 and "Traceback" not in done.stderr and done.stdout == "", done.stderr
    assert said in done.stderr and (tmp_path / "text.txt").read_text() == "text"


def test_a_vocabulary_that_lacks_bytes(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "gpt2.tiktoken").write_bytes(GPT2)
    (tmp_path / "text.txt").write_text('!!""')
    given = ("tokenizer", "encode", "text.txt", "-t", "gpt2.tiktoken", "--vocabulary-only", "greedy")
    assert json.loads(cli(*given, "--json").stdout)["missing_bytes"] == 254
    assert "The vocabulary lacks 254 of the 256 bytes: a text may have no encoding." in cli(*given).stdout


def test_kinds_without_byte_strings(cli: Cli, tmp_path: Path) -> None:
    library = Tokenizer(models.WordLevel(vocab={"text": 0, "?": 1}, unk_token="?"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    written(library, tmp_path / "words")
    (tmp_path / "text.txt").write_text("text text")
    assert json.loads(cli("tokenizer", "encode", "text.txt", "-t", "words", "--json").stdout)["tokens"] == 2
    done = cli("tokenizer", "encode", "text.txt", "-t", "words", "--vocabulary-only", "greedy")
    assert done.returncode == 2 and "is of the kind WordLevel, whose pieces are no byte strings" in done.stderr


@pytest.mark.parametrize(
    "given",
    [
        ("count", "-t", "gpt2.tiktoken"),
        ("encode", "-t", "gpt2.tiktoken", "--vocabulary-only", "greedy"),
        ("train", "--kind", "bpe", "--size", 300, "-o", "out"),
    ],
)
def test_a_rule_that_takes_too_many_steps(cli: Cli, tmp_path: Path, given: tuple[object, ...]) -> None:
    """The library panics, which is no Exception; what it prints of that itself stands before the sentence."""
    (tmp_path / "gpt2.tiktoken").write_bytes(b"YQ== 0\nYmI= 1\n")
    (tmp_path / "text.txt").write_text("a" * 60)
    command, *options = given
    done = cli("tokenizer", command, "text.txt", *options, "--pattern", "(a|aa)+$b")
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    said = done.stderr.splitlines()[-1]
    assert (
        said.startswith("error: The text cannot be read (the library tokenizers failed: Onig")
        and "give another" in said
    )
    assert not (tmp_path / "out").exists()
