"""`trt-compress tokenizer morphology`: what it prints, and what it refuses."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from trt_compress.runtime.text.turkish.tables import FOLDER

Cli = Callable[..., "subprocess.CompletedProcess[str]"]


def test_the_share_that_is_lost_is_printed(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "tr.txt").write_text("Kitapları okuyorum.\nİstanbul büyük\n\nİstanbul 你\n")
    done = cli("tokenizer", "morphology", "tr.txt", "--json")
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)["files"]
    assert (found["texts"], found["tokens"], found["kinds"]["unknown"], found["kinds"]["suffix"]) == (4, 16, 1, 2)
    assert (found["texts_lost"]["count"], found["texts_lost"]["n"]) == (2, 3)
    assert (found["words_lost"]["count"], found["words_lost"]["n"]) == (3, 6)
    assert found["lost"][0] == {"word": "İstanbul", "decoded": "Istanbul", "count": 2}
    shown = cli("tokenizer", "morphology", "tr.txt").stdout
    assert "66.7% (20.8%" in shown and "tr.txt, lost words: İstanbul → Istanbul, 你 → ▁u▁." in shown
    mended = json.loads(cli("tokenizer", "morphology", "tr.txt", "--json", "--mended").stdout)["files"][0]
    assert mended["texts_lost"]["count"] == 1


def test_tokens_become_texts(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "ids.json").write_text("[[0, 2573, 20000], [], [40000]]")
    assert cli("tokenizer", "morphology", "ids.json", "--decode").stdout == "Evlar\n\n▁\n"
    done = cli("tokenizer", "morphology", "ids.json", "--decode", "--mended", "--json")
    assert json.loads(done.stdout) == {"texts": ["Evler", "", "▁"]}


def test_other_tables_are_said(cli: Cli, tmp_path: Path) -> None:
    shutil.copytree(FOLDER, tmp_path / "mine")
    pieces = json.loads((FOLDER / "bpe_tokenler.json").read_bytes())
    (tmp_path / "mine/bpe_tokenler.json").write_text(json.dumps({**pieces, "你": 32_768}))
    (tmp_path / "tr.txt").write_text("你")
    done = cli("tokenizer", "morphology", "tr.txt", "--tables", "mine")
    assert "The tables are not those that were published." in done.stdout and "0.0%" in done.stdout


@pytest.mark.parametrize(
    ("name", "content", "options", "said"),
    [
        ("a.txt", b"\xff", (), "'a.txt' is no UTF-8: byte 0"),
        ("a.txt", None, (), "'a.txt' cannot be read (No such file or directory); give a file of UTF-8 text."),
        ("a.json", b'{"a": 1}', (), "'a.json' cannot be read (it is no list); give a .json that holds a list of texts"),
        ("a.json", b'["a", 1]', (), "'a.json' holds something that is no text"),
        ("a.json", b"[[1, -1]]", ("--decode",), "'a.json' holds '[1, -1]'; --decode takes a list of lists of tokens"),
        ("a.json", b"[[1.5]]", ("--decode",), "'a.json' holds '[1.5]'; --decode takes"),
        ("a.txt", b"a", ("--decode",), "'a.txt' cannot be read ("),
        ("a.txt", b"a", ("--tables", "."), "'kokler.json' cannot be read (No such file or directory); give a folder"),
    ],
)
def test_bad_input(
    cli: Cli, tmp_path: Path, name: str, content: bytes | None, options: tuple[str, ...], said: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    done = cli("tokenizer", "morphology", name, *options)
    assert done.returncode == 2 and "Traceback" not in done.stderr and done.stdout == ""
    sentence, *hints = done.stderr.splitlines()
    assert said in sentence and hints == []


def test_tables_of_another_version(cli: Cli, tmp_path: Path) -> None:
    shutil.copytree(FOLDER, tmp_path / "mine")
    suffixes = json.loads((FOLDER / "ekler.json").read_bytes())
    shifted = {form: min(number + 1, 20_255) for form, number in suffixes.items()}
    (tmp_path / "mine/ekler.json").write_text(json.dumps(shifted))
    (tmp_path / "tr.txt").write_text("ev")
    done = cli("tokenizer", "morphology", "tr.txt", "--tables", "mine")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "do not fit the rules of the decoder (number 20000 is missing, and the rule is for 'lar'" in done.stderr
