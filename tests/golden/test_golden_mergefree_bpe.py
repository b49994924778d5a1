"""Encoding with a vocabulary alone, against vectors that a restatement and brute force made."""

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.typed_commands import Typed
from trt_compress.runtime.text.merge_free import MergeFree

FOLDER = Path(__file__).parent / "mergefree_bpe"
MODELS = ("o200k", "qwen", "deepseek", "trained")
CASES = (*MODELS, "ties", "gaps")


def read(case: str) -> dict[str, Any]:
    with np.load(FOLDER / f"{case}.npz", allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    return {name: json.loads(str(value)) if value.ndim == 0 else value for name, value in arrays.items()}


def by_piece(ids: "np.ndarray[Any, Any]", lengths: "np.ndarray[Any, Any]") -> list[list[int]]:
    ends = np.cumsum(lengths)
    return [part.tolist() for part in np.split(ids, ends[:-1])]


def entries(case: dict[str, Any]) -> dict[bytes, int]:
    return {bytes.fromhex(text): int(number) for text, number in zip(case["vocab_hex"], case["vocab_ids"], strict=True)}


def strings(case: dict[str, Any]) -> list[bytes]:
    if "strings" in case:
        return [bytes.fromhex(text) for text in case["strings"]]
    return [text.encode() for text in case["pretokens"]]


def test_every_case_is_compared() -> None:
    assert {path.stem for path in FOLDER.glob("*.npz")} == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_pieces_of_each_string(name: str) -> None:
    case = read(name)
    encoder = MergeFree(entries(case))
    pieces = strings(case)
    greedy, exact = (by_piece(case[f"{mode}_ids"], case[f"{mode}_len"]) for mode in ("greedy", "exact"))
    stops = case["greedy_stop"].tolist() if "greedy_stop" in case else [len(piece) for piece in pieces]
    possible = case["exact_ok"].tolist() if "exact_ok" in case else [1] * len(pieces)
    assert len(pieces) == len(greedy) == len(exact)
    for piece, wanted, stop, shortest, can in zip(pieces, greedy, stops, exact, possible, strict=True):
        assert encoder.greedy(piece) == (wanted, stop)
        assert encoder.exact(piece) == (shortest if can else None)
        assert encoder.encode(piece, "exact") == encoder.encode(piece, "exact") == (shortest if can else None)
        assert encoder.encode(piece, "greedy") == (wanted if stop == len(piece) else None)


def test_ties_are_broken_as_stated() -> None:
    case = read("ties")
    mirrored = by_piece(case["exact_first_rule_ids"], case["exact_first_rule_len"])
    numbers = entries(case)
    differ = 0
    for piece, every, other in zip(strings(case), case["min_all"], mirrored, strict=True):
        ways = [[bytes.fromhex(part) for part in way] for way in every]
        best = max(ways, key=lambda way: [len(part) for part in reversed(way)])
        found = MergeFree(numbers).exact(piece)
        assert found == [numbers[part] for part in best]
        differ += found != other
    assert differ == case["meta"]["strings_where_mirror_rule_differs"]


def ranks_file(numbers: dict[bytes, int]) -> bytes:
    """In the form of tiktoken, filled up with bytes that no string has."""
    free = max(numbers.values()) + 1
    whole = dict(numbers)
    for byte in (bytes([byte]) for byte in range(256)):
        if byte not in whole:
            whole[byte], free = free, free + 1
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in whole.items())


def typed(commands: Typed, folder: Path, *arguments: object) -> dict[str, Any]:
    ended = commands(*arguments, folder=folder)
    assert ended.code == 0, ended.err
    found: dict[str, Any] = json.loads(ended.out)
    return found


@pytest.mark.parametrize("mode", ["greedy", "exact"])
@pytest.mark.parametrize("name", ["o200k", "qwen", "trained"])
def test_through_the_command(commands: Typed, tmp_path: Path, name: str, mode: str) -> None:
    """Texts as they are: the command splits them, too. DeepSeek's rule has no name; its own file is another test."""
    case = read(name)
    (tmp_path / "vocabulary.tiktoken").write_bytes(ranks_file(entries(case)))
    for number, text in enumerate(case["texts"]):
        (tmp_path / f"{number}.txt").write_bytes(text.encode())
    files = [f"{number}.txt" for number in range(len(case["texts"]))]
    rule = "gpt2" if name == "trained" else name
    options = ("-t", "vocabulary.tiktoken", "--pattern", rule, "--vocabulary-only", mode, "--whole", "--json")
    found = typed(commands, tmp_path, "tokenizer", "encode", *files, *options)
    ids = [number for text in found["texts"] for number in text["tokens"]]
    assert ids == case[f"{mode}_ids"].tolist()
    wanted = case["meta"]["pretokens_differing_from_bpe"][mode]
    assert found["pieces"] == case["meta"]["pretokens"]
    assert found["pieces_that_differ"] == wanted
    assert found["tokens_bpe"] == len(case["bpe_ids"])
    plain = typed(commands, tmp_path, "tokenizer", "encode", *files, "-t", "vocabulary.tiktoken", "--pattern", rule,
                  "--whole", "--json")  # fmt: skip
    assert [number for text in plain["texts"] for number in text["tokens"]] == case["bpe_ids"].tolist()
