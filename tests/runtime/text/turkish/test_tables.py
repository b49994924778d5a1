"""Tables that come along are the published ones; others are taken only if the rules fit them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trt_compress.errors import ConfigError
from trt_compress.runtime.text.turkish.tables import FOLDER, RULES, read_tables

ROOTS, SUFFIXES, PIECES = "kokler.json", "ekler.json", "bpe_tokenler.json"


@pytest.fixture
def changed(tmp_path: Path) -> Callable[..., Path]:
    """A folder of the tables in which one is another."""

    def change(name: str, how: Callable[[dict[str, Any]], object]) -> Path:
        for file in (ROOTS, SUFFIXES, PIECES):
            data = json.loads((FOLDER / file).read_bytes())
            if file == name:
                how(data)
            (tmp_path / file).write_text(json.dumps(data))
        return tmp_path

    return change


def test_sizes_of_the_published_tables() -> None:
    tables = read_tables()
    assert {kind: len(table) for kind, table in tables.kinds.items()} == {"root": 22231, "suffix": 361, "piece": 12512}
    assert (tables.size, len(tables.forms)) == (32768, 32768)
    assert tables.longest == {"root": 17, "suffix": 13, "piece": 9}
    assert tables.official
    assert {len(tables.forms[number]) for number in range(20_033, 20_256)} == {1}
    assert len(RULES) == 33


def test_another_piece_is_taken_and_said(changed: Callable[..., Path]) -> None:
    tables = read_tables(changed(PIECES, lambda data: data.update({"你": 32_768})))
    assert not tables.official
    assert tables.size == 32_769


@pytest.mark.parametrize(
    ("name", "how", "said"),
    [
        (SUFFIXES, lambda data: data.pop("ler"), r"number 20000 is lar, and the rule is for 'lar' in 2 forms"),
        (SUFFIXES, lambda data: data.update(yor=20_042, ar=20_041), "number 20041 has to be 'yor'"),
        (SUFFIXES, lambda data: data.update(daşı=20_048), "number 20048 has 2 forms and no rule"),
        (SUFFIXES, lambda data: data.update(ev=20_100), "'ev' is a root and a suffix"),
        (SUFFIXES, lambda data: data.update(xx=20_256), "those of a suffix are 20000 to 20255"),
        (SUFFIXES, lambda data: data.update(xx="1"), "'xx' has the number 1, and those"),
        (ROOTS, lambda data: data.update({"<unknown>": 7}), "'<unknown>' has to have the number 1"),
        (ROOTS, lambda data: data.update({"": 8}), "'' has the number 8"),
        (PIECES, lambda data: data.clear(), "no JSON object of forms"),
    ],
)
def test_tables_whose_version_does_not_fit(
    name: str, how: Callable[[dict[str, Any]], object], said: str, changed: Callable[..., Path]
) -> None:
    with pytest.raises(ConfigError, match=said) as raised:
        read_tables(changed(name, how))
    assert "give a folder with kokler.json" in raised.value.message


def test_a_folder_without_tables(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"kokler.json' cannot be read \(No such file"):
        read_tables(tmp_path)
    (tmp_path / ROOTS).write_bytes(b"\xff\xfe{")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_tables(tmp_path)
