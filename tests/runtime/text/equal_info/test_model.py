"""The model of bytes: whole tables, against a reference that counts strings, and the file that comes along."""

import io
import json
import math
import random
from fractions import Fraction

import numpy as np
import pytest

from trt_compress.errors import ConfigError
from trt_compress.runtime.text.equal_info.model import BITS, FILE, ByteModel, coded, decoded, read_model
from trt_compress.tools.tokenizers.train_bytes import bits_per_byte, trained

TEXT = b"the cat sat on the mat; the hat of the cat was that. " * 3 + bytes(range(256))


def test_the_model_that_comes_along() -> None:
    card = json.loads(FILE.with_name("card.json").read_text())
    model = read_model()
    assert FILE.stat().st_size == card["bytes"] <= 1 << 20
    assert (model.sha256, model.deepest) == (card["sha256"], 5)
    assert card["bits_per_byte"] < 2.3 and card["license"] == "its text is in the public domain"
    english = b"It was a dark night, and the wind blew from the sea over the ship. "
    assert bits_per_byte(model, english * 3) < 2.5 < 8 < bits_per_byte(model, random.Random(1).randbytes(300))


def test_tables_are_whole() -> None:
    model = read_model()
    chance = random.Random(7)
    for _ in range(400):
        table = model.table(chance.choice((chance.randbytes(4), b"whale"[: chance.randint(0, 5)], b"the ")))
        assert sorted(table.order) == list(range(256))
        spans = [table.span(byte) for byte in table.order]
        lengths = [length for _, length in spans]
        assert lengths == sorted(lengths) and lengths[0] >= 1 and sum(lengths) == 1 << BITS
        assert [begin for begin, _ in spans] == [sum(lengths[:at]) for at in range(256)]


def expected(context: bytes, depth: int) -> list[Fraction]:
    """The same shares in fractions, by counting strings."""

    def count(string: bytes) -> int:
        found = sum(TEXT.startswith(string, at) for at in range(len(TEXT) - len(string) + 1))
        return decoded(coded(found))

    shares = [Fraction(1, 256)] * 256
    for length in range(min(len(context), depth) + 1):
        tail = context[len(context) - length :]
        counts = [count(tail + bytes([byte])) for byte in range(256)]
        if not sum(counts):
            break
        seen = count(tail) if tail else sum(counts)
        other = sum(map(bool, counts)) + max(0, seen - sum(counts))
        shares = [(c + other * share) / (sum(counts) + other) for c, share in zip(counts, shares, strict=True)]
    return shares


@pytest.mark.parametrize("context", [b"", b"t", b"the", b"e cat", b"\xff", b"zq", b"xx the"])
def test_against_fractions(context: bytes) -> None:
    model = ByteModel(trained(TEXT, depth=3), "a model")
    found = model.frequencies(context[-3:])
    whole = 1 << BITS
    wanted = [1 + math.floor(share * (whole - 256)) for share in expected(context, 3)]
    largest = int(found.argmax())
    for byte in range(256):
        if byte != largest:
            assert wanted[byte] - 1 <= int(found[byte]) <= wanted[byte]
    assert int(found.sum()) == whole and found.dtype == np.int64


def test_counts_in_a_byte() -> None:
    assert [decoded(coded(count)) for count in range(32)] == list(range(32))
    codes = [coded(count) for count in range(1 << 16)]
    assert codes == sorted(codes) and max(codes) < 256
    assert all(0.93 * count <= decoded(code) <= count for count, code in enumerate(codes))
    assert all(coded(decoded(code)) == code for code in range(256))


def test_the_same_text_gives_the_same_file() -> None:
    assert trained(TEXT) == trained(TEXT) != trained(TEXT + b"!")


def _with(content: bytes, **changed: object) -> bytes:
    with np.load(io.BytesIO(content)) as archive:
        arrays = {name: archive[name] for name in archive.files}
    arrays.update(changed)  # type: ignore[arg-type]
    file = io.BytesIO()
    np.savez(file, **{name: array for name, array in arrays.items() if array is not None})  # type: ignore[arg-type]
    return file.getvalue()


def test_damaged_files() -> None:
    good = trained(TEXT, depth=2)
    for content in (
        b"",
        good[: len(good) // 2],
        _with(good, symbols_2=np.zeros(3, np.uint8)),
        _with(good, counts_0=np.zeros(256, np.uint8)),
        _with(good, counts_0=np.ones(256, np.int64)),
        _with(good, symbols_2=None),
        _with(good, behind_1=np.ones((2, 2), np.uint16)),
        _with(good, symbols_0=None),
    ):
        with pytest.raises(ConfigError, match="'a model' cannot be read"):
            ByteModel(content, "'a model'")
    with pytest.raises(ConfigError, match="none.npz' cannot be read"):
        read_model(FILE.with_name("none.npz"))
