"""Tokens and texts of Tokens with Meaning's own code (malibayram/turkish-tokenizer 0f179b0), through the command."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.golden.golden_data import cases_on_disk
from tests.golden.golden_text import parted, read_text_case
from tests.typed_commands import Typed
from trt_compress.runtime.text.turkish.decode import decode
from trt_compress.runtime.text.turkish.encode import encode
from trt_compress.runtime.text.turkish.tables import read_tables

TEXTS, SEQUENCES = ("words", "sentences", "edges"), ("harmony", "root_forms")
KINDS = ("root", "suffix", "piece")


def test_every_case_is_compared() -> None:
    assert cases_on_disk("turkish") == {*TEXTS, *SEQUENCES}


def said(commands: Typed, folder: Path, content: Any, *options: str) -> Any:
    file = folder / "given.json"
    file.write_text(json.dumps(content))
    ended = commands("tokenizer", "morphology", file, "--json", *options)
    assert ended.code == 0, ended.err
    return json.loads(ended.out)


@pytest.mark.parametrize("case", TEXTS)
def test_texts_through_the_command(case: str, commands: Typed, tmp_path: Path) -> None:
    arrays, meta = read_text_case("turkish", case)
    document = said(commands, tmp_path, arrays["texts"], "--ids")
    assert document["official_tables"]
    (found,) = document["files"]
    of_texts = found["of_texts"]
    kinds = [KINDS.index(kind) for text in of_texts for kind in text["kinds"]]
    assert [text["ids"] for text in of_texts] == parted(arrays["ids"], arrays["lens"])
    assert [text["tokens"] for text in of_texts] == arrays["tokens"]
    assert kinds == arrays["types"].tolist()
    assert [text["decoded"] for text in of_texts] == arrays["decoded"]
    assert [text["comes_back"] for text in of_texts] == [bool(value) for value in arrays["roundtrip"]]
    assert found["tokens"] == len(arrays["ids"])
    assert found["texts_lost"]["count"] == meta["roundtrip_failures"]


@pytest.mark.parametrize("case", SEQUENCES)
def test_sequences_through_the_command(case: str, commands: Typed, tmp_path: Path) -> None:
    arrays, _ = read_text_case("turkish", case)
    document = said(commands, tmp_path, parted(arrays["seqs"], arrays["seq_lens"]), "--decode")
    assert document["texts"] == arrays["decoded"]


@pytest.mark.parametrize("case", (*TEXTS, *SEQUENCES))
def test_the_tables_hold_what_the_cases_carry(case: str) -> None:
    arrays, _ = read_text_case("turkish", case)
    tables = read_tables()
    for form, number, kind in zip(arrays["table_forms"], arrays["table_ids"], arrays["table_kind"], strict=True):
        assert tables.kinds[KINDS[kind]][form] == number


def test_what_is_mended_comes_back() -> None:
    tables = read_tables()
    texts = ("İstanbul", "Ağacın", "kedilik", "köpekçik", "gelmek", "İĞNE", "saatin", "\n", "Evler", "a\n \tb")
    for text in texts:
        numbers = [token.number for token in encode(text, tables, mended=True)]
        assert decode(numbers, tables, mended=True) == text
        plain = [token.number for token in encode(text, tables)]
        assert text in ("köpekçik", "a\n \tb", "Evler") or decode(plain, tables) != text
