"""`trt-compress tokenizer equal-info`: files become tokens and files again, and what is refused."""

import json
import random
from pathlib import Path

import numpy as np
import pytest

from tests.typed_commands import Typed
from trt_compress.runtime.text.equal_info.model import read_model
from trt_compress.tools.tokenizers.train_bytes import trained

TEXT = b"The ship was under sail, and the men were at their work. \xff\x00\x01 end"


def test_a_file_becomes_tokens_and_the_same_file(tokenizer_commands: Typed, tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(TEXT)
    for window, chunk in ((16, 8), (16, 16), (64, 16)):
        options = ("-o", "a.npz", "--window", window, "--chunk", chunk, "--json", "--ids")
        ended = tokenizer_commands("tokenizer", "equal-info", "a.bin", *options, folder=tmp_path)
        assert ended.code == 0, ended.err
        (found,) = json.loads(ended.out)["files"]
        assert found["num_bytes"] == len(TEXT) and found["tokens"] == found["windows"] * window // chunk
        assert len(found["ids"]) == found["tokens"] and max(found["ids"]) < 1 << chunk
        assert np.load(tmp_path / "a.npz")["tokens"].tolist() == found["ids"]
        again = tokenizer_commands(
            "tokenizer", "equal-info", "a.npz", "--decode", "-o", "b.bin", "--json", folder=tmp_path
        )
        assert again.code == 0, again.err
        assert json.loads(again.out)["bytes"] == len(TEXT) and (tmp_path / "b.bin").read_bytes() == TEXT


def test_what_is_printed(tokenizer_commands: Typed, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(TEXT)
    (tmp_path / "none.txt").write_bytes(b"")
    ended = tokenizer_commands("tokenizer", "equal-info", "a.txt", "none.txt", folder=tmp_path)
    assert ended.code == 0, ended.err
    assert "Windows of 16 bits, tokens of 8; all come back" in ended.out and "none.txt" in ended.out


def test_another_model(tokenizer_commands: Typed, tmp_path: Path) -> None:
    (tmp_path / "mine.npz").write_bytes(trained(TEXT * 9, depth=3))
    (tmp_path / "a.txt").write_bytes(TEXT)
    given = ("tokenizer", "equal-info", "a.txt", "-o", "a.npz", "--model", "mine.npz", "--json")
    assert json.loads(tokenizer_commands(*given, folder=tmp_path).out)["files"][0]["bytes_per_token"] > 3
    back = ("tokenizer", "equal-info", "a.npz", "--decode", "-o", "b.txt")
    refused = tokenizer_commands(*back, folder=tmp_path)
    assert refused.is_one_sentence and "'a.npz' was encoded with the model" in refused.err
    assert not (tmp_path / "b.txt").exists()
    assert tokenizer_commands(*back, "--model", "mine.npz", folder=tmp_path).code == 0
    assert (tmp_path / "b.txt").read_bytes() == TEXT


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("a.txt", "--window", "9"), "a window of 9 bits; give 10 to 256"),
        (("a.txt", "--window", "20"), "tokens of 8 bits do not fill a window of 20; give 8 or 16"),
        (("a.txt", "--chunk", "4"), "tokens of 4 bits do not fill a window of 16"),
        (("a.txt", "a.txt", "-o", "x"), "-o takes what one file becomes, and there are 2; give one"),
        (("a.txt", "--decode"), "--decode writes bytes to a file; say which with -o"),
        (("a.txt", "--decode", "-o", "x"), "'a.txt' cannot be read ("),
        (("a.txt", "-o", "a.txt"), "-o a.txt is the file itself; give another name"),
        (("none.txt",), "'none.txt' cannot be read (No such file or directory)"),
        (("a.txt", "--model", "a.txt"), "'a.txt' cannot be read ("),
        (("a.txt", "--model", "none.npz"), "'none.npz' cannot be read (No such file or directory)"),
        (("half.npz", "--decode", "-o", "x"), "3 tokens end within a window, which has 2"),
        (("signed.npz", "--decode", "-o", "x"), "'signed.npz' cannot be read (its tokens are no row of whole numbers)"),
    ],
)
def test_bad_input(given: tuple[str, ...], said: str, tokenizer_commands: Typed, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(TEXT)
    about = {"bits": 16, "chunk": 8, "model": np.array(read_model().sha256)}
    np.savez(tmp_path / "half.npz", tokens=np.zeros(3, np.uint8), **about)
    np.savez(tmp_path / "signed.npz", tokens=np.zeros(4, np.float32), **about)
    ended = tokenizer_commands("tokenizer", "equal-info", *given, folder=tmp_path)
    assert ended.is_one_sentence, ended.err
    assert said in ended.err and not (tmp_path / "x").exists()


def test_a_long_file_that_is_damaged(tokenizer_commands: Typed, tmp_path: Path) -> None:
    """Tokens with a bit turned are still tokens: they give other bytes, and no traceback."""
    (tmp_path / "a.bin").write_bytes(random.Random(2).randbytes(40) + TEXT)
    assert tokenizer_commands("tokenizer", "equal-info", "a.bin", "-o", "a.npz", folder=tmp_path).code == 0
    with np.load(tmp_path / "a.npz") as archive:
        arrays = dict(archive)
    arrays["tokens"] ^= np.uint8(1)
    np.savez(tmp_path / "a.npz", **arrays)
    ended = tokenizer_commands("tokenizer", "equal-info", "a.npz", "--decode", "-o", "b.bin", folder=tmp_path)
    assert ended.code == 0 and (tmp_path / "b.bin").read_bytes() != (tmp_path / "a.bin").read_bytes()
