"""`trt-compress tokenizer count`, and the files that no tokenizer command takes."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tools.tokenizers.made import LINES, byte_level, written

Cli = Callable[..., "subprocess.CompletedProcess[str]"]


def test_tokens_of_files(cli: Cli, tmp_path: Path) -> None:
    tokenizer = byte_level()
    written(tokenizer, tmp_path / "mine")
    (tmp_path / "a.txt").write_text(LINES[0])
    (tmp_path / "b.txt").write_text("".join(LINES) + "<|end|>")
    (tmp_path / "none.txt").write_text("")
    done = cli("tokenizer", "count", "a.txt", "b.txt", "none.txt", "-t", "mine", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["tokenizer"], found["kind"]) == ("mine", "BPE")
    texts = [LINES[0], "".join(LINES) + "<|end|>", ""]
    for row, text in zip(found["files"], texts, strict=True):
        expected = len(tokenizer.encode(text, add_special_tokens=False).ids)
        assert (row["bytes"], row["characters"], row["tokens"]) == (len(text.encode()), len(text), expected)
    shown = cli("tokenizer", "count", "a.txt", "-t", "mine/tokenizer.json")
    assert "Tokens by mine (BPE)" in shown.stdout and "a.txt" in shown.stdout


MODEL = {"type": "BPE", "vocab": {"a": 0}, "merges": []}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("text.txt", b"ab\ncd\xff", "'text.txt' is no UTF-8: byte 5 (0xff, line 2) begins no character; convert it"),
        ("text.txt", b"\x7fELF\x00\x01", "'text.txt' is no text: byte 4 is 0, as in binary files"),
        ("text.txt", None, "'text.txt' cannot be read (No such file or directory); give a file of UTF-8 text."),
        ("tokenizer.json", b"{}", "'tokenizer.json' cannot be read (it has no 'model'); give a tokenizer.json"),
        ("tokenizer.json", b'{"model": {"type": "Morfessor"}}', "is of the kind 'Morfessor', which is not known here"),
        ("tokenizer.json", b'{"model": {"type": "BPE", "vocab": 3}}', "'tokenizer.json' cannot be read ("),
        ("tokenizer.json", b"\x00\x01", "'tokenizer.json' cannot be read ("),
    ],
)
def test_bad_input(cli: Cli, tmp_path: Path, name: str, content: bytes | None, said: str) -> None:
    (tmp_path / "text.txt").write_text("text")
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": MODEL}))
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    done = cli("tokenizer", "count", "text.txt", "-t", "tokenizer.json")
    assert done.returncode == 2 and "Traceback" not in done.stderr and done.stdout == ""
    sentence, *hints = done.stderr.splitlines()
    assert said in sentence and all(hint.startswith("Hint:") for hint in hints)


def test_a_folder_without_a_tokenizer(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("text")
    (tmp_path / "empty").mkdir()
    done = cli("tokenizer", "count", "text.txt", "-t", "empty")
    assert done.returncode == 2 and "'empty' holds none of tokenizer.json" in done.stderr
