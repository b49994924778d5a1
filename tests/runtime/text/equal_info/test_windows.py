"""Windows come back, on every thread and in every process; with tables of floating point they would not."""

import hashlib
import random
import subprocess
import sys
from fractions import Fraction
from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.processes import environment
from trt_compress.errors import ConfigError
from trt_compress.runtime.text.equal_info.model import BITS, ByteModel, Table, read_model
from trt_compress.runtime.text.equal_info.windows import (
    decode,
    decode_word,
    encode,
    tokens_of,
    words_of,
)

ENGLISH = (
    b"Call me Ishmael. Some years ago, never mind how long precisely, having little or no money in my purse, and "
    b"nothing particular to interest me on shore, I thought I would sail about a little. "
)


def any_bytes(chance: random.Random) -> bytes:
    """Bytes of every kind, English and noise in turn."""
    parts = []
    for _ in range(chance.randint(0, 5)):
        start = chance.randrange(len(ENGLISH))
        parts.append(
            chance.choice(
                (
                    chance.randbytes(chance.randint(0, 12)),
                    ENGLISH[start : start + chance.randint(0, 30)],
                    bytes([chance.randrange(256)]) * chance.randint(1, 20),
                    "q\0ü€𝄞qaqzq".encode(),
                )
            )
        )
    return b"".join(parts)


@pytest.mark.parametrize("bits", [10, 11, 16, 24, 64, 256])
def test_any_bytes_come_back(bits: int) -> None:
    model = read_model()
    chance = random.Random(bits)
    for _ in range(120):
        data = any_bytes(chance)
        found = encode(data, model, bits)
        assert decode(found.words, model, bits) == data
        assert all(0 <= word < 1 << bits for word in found.words)
        assert found.num_bytes == len(data)


_ANY = st.lists(
    st.one_of(
        st.binary(max_size=12),
        st.text(max_size=8).map(lambda text: text.encode(errors="surrogatepass")),
        st.integers(0, len(ENGLISH) - 30).map(lambda at: ENGLISH[at : at + 30]),
    ),
    max_size=5,
).map(b"".join)


@settings(max_examples=250, deadline=None)
@given(data=_ANY, bits=st.integers(10, 256), chunk=st.sampled_from((8, 16)))
def test_whatever_is_encoded_comes_back(data: bytes, bits: int, chunk: int) -> None:
    """Any bytes in windows of any size; every window stands by itself, so that a text may be cut between two."""
    model = read_model()
    found = encode(data, model, bits)
    parts = [decode_word(word, model, bits) for word in found.words]
    assert b"".join(parts) == data == decode(found.words, model, bits)
    assert all(parts) and all(0 <= word < 1 << bits for word in found.words)
    assert found.literals == sum(word >= (1 << bits) - 256 for word in found.words)
    cut = len(parts) // 2
    again = encode(b"".join(parts[cut:]), model, bits)
    assert again.words == found.words[cut:]
    if bits % chunk == 0:
        tokens = tokens_of(found.words, bits, chunk)
        assert all(0 <= token < 1 << chunk for token in tokens)
        assert len(tokens) == len(found.words) * bits // chunk
        assert words_of(tokens, bits, chunk) == list(found.words)


@settings(max_examples=250, deadline=None)
@given(st.integers(10, 128).flatmap(lambda bits: st.tuples(st.just(bits), st.integers(0, (1 << bits) - 1))))
def test_any_word_is_read(given_word: tuple[int, int]) -> None:
    """Also those that no encoder writes: they give bytes, and these come back."""
    (bits, word), model = given_word, read_model()
    data = decode([word], model, bits)
    assert decode(encode(data, model, bits).words, model, bits) == data


def test_every_byte_alone_and_every_word() -> None:
    model = read_model()
    for byte in range(256):
        assert decode(encode(bytes([byte]), model).words, model) == bytes([byte])
    assert [decode_word(word, model, 16) for word in range(65_280, 65_536)] == [bytes([b]) for b in range(256)]
    for word in range(0, 65_536, 97):  # also those that no text has
        assert decode(encode(decode_word(word, model, 16), model).words, model) == decode_word(word, model, 16)


def test_windows_take_what_fits() -> None:
    """Against exact fractions: no window holds more than its bits, and none could have taken two bytes more."""
    model = read_model()
    words = encode(ENGLISH, model, 16).words
    start = 0
    short = 0
    for word in words:
        taken = decode_word(word, model, 16)
        size = Fraction(1)
        for at in range(len(taken)):
            size *= Fraction(model.table(taken[:at]).span(taken[at])[1], 1 << BITS)
        assert size * (65_536 - 256) >= 1 or len(taken) == 1
        rest = ENGLISH[start + len(taken) : start + len(taken) + 2]
        for byte in rest:
            size *= Fraction(model.table(ENGLISH[start : start + len(taken)]).span(byte)[1], 1 << BITS)
        short += len(rest) == 2 and size * 65_280 >= 2
        start += len(taken)
    assert start == len(ENGLISH)
    assert short <= len(words) // 10
    assert len(ENGLISH) / len(words) > 4.5


def test_tokens_of_words() -> None:
    assert tokens_of([0x1234, 0xFF00], 16, 8) == [0x12, 0x34, 0xFF, 0x00]
    assert tokens_of([0x12345678], 32, 16) == [0x1234, 0x5678]
    assert words_of([0x12, 0x34, 0xFF, 0x00], 16, 8) == [0x1234, 0xFF00]
    for call, said in (
        (lambda: tokens_of([1], 20, 8), "tokens of 8 bits do not fill a window of 20"),
        (lambda: tokens_of([1], 16, 4), "tokens of 4 bits"),
        (lambda: words_of([1, 2, 3], 16, 8), "3 tokens end within a window, which has 2"),
        (lambda: words_of([1, 256], 16, 8), "a token is 256, which 8 bits do not hold"),
        (lambda: encode(b"a", read_model(), 9), "a window of 9 bits; give 10 to 256"),
        (lambda: decode([1 << 16], read_model()), "word 0 is 65536, which 16 bits do not hold"),
    ):
        with pytest.raises(ConfigError, match=said):
            call()


_CHILD = """
import hashlib, sys
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from trt_compress.runtime.text.equal_info.model import read_model
from trt_compress.runtime.text.equal_info.windows import decode, encode
data, threads = sys.stdin.buffer.read(), int(sys.argv[1])
parts = [data[at::threads] for at in range(threads)]
with ThreadPoolExecutor(threads) as pool:
    list(pool.map(lambda part: encode(part, read_model()), parts))
words = encode(data, read_model()).words
assert decode(words, read_model()) == data
print(hashlib.sha256(repr(words).encode()).hexdigest())
"""


def test_bit_exact_on_two_thread_counts_and_across_processes() -> None:
    data = ENGLISH * 4 + random.Random(3).randbytes(64)
    own = hashlib.sha256(repr(encode(data, read_model()).words).encode()).hexdigest()
    for threads in ("1", "2"):
        variables = environment(OMP_NUM_THREADS=threads, OPENBLAS_NUM_THREADS=threads, PYTHONHASHSEED=threads)
        done = subprocess.run(
            [sys.executable, "-c", _CHILD, threads], input=data, capture_output=True, env=variables, check=False
        )
        assert done.returncode == 0, done.stderr.decode()
        assert done.stdout.decode().strip() == own


class _Floats(ByteModel):
    """The same model as it would be in float32: each thread sums its part of a row, and the sums are added up."""

    def __init__(self, whole: ByteModel, threads: int) -> None:
        self._whole, self._threads = whole, threads
        self.deepest, self._tables = whole.deepest, {}

    def table(self, context: bytes) -> Table:
        key = context[-self.deepest :]
        if key not in self._tables:
            logits = np.log(self._whole.frequencies(key).astype(np.float32))
            powers = np.exp(logits - logits.max())
            total = np.float32(0)
            for part in np.array_split(powers, self._threads):
                total += np.cumsum(part, dtype=np.float32)[-1]  # one by one, as a thread does
            order = np.argsort(powers, kind="stable").astype(np.uint8)
            place = np.empty(256, np.uint8)
            place[order] = np.arange(256, dtype=np.uint8)
            shares = powers[order] / total
            lengths = 1 + np.floor(shares * np.float32((1 << BITS) - 256)).astype(np.int64)
            lengths[-1] += (1 << BITS) - int(lengths.sum())
            self._tables[key] = Table(order.tobytes(), tuple(accumulate(lengths.tolist())), place.tobytes())
        return self._tables[key]


def test_tables_of_floating_point_would_not_be_exact() -> None:
    """What one thread writes in float32 two threads do not read: a sum in another order is another number."""
    one, two = _Floats(read_model(), 1), _Floats(read_model(), 2)
    chance = random.Random(11)
    text = decode([chance.randrange(65_000) for _ in range(3000)], read_model())  # as the model would write
    contexts = sorted({text[max(0, at - size) : at] for at in range(len(text)) for size in range(4)})
    differ = [context for context in contexts if one.table(context) != two.table(context)]
    assert differ, "the two orders of summing agreed everywhere"
    lost = []
    for context in differ[:20]:
        moved = [byte for byte in range(256) if one.table(context).span(byte) != two.table(context).span(byte)]
        data = context + bytes(moved[:1]) + ENGLISH[:80]  # fills the window, so that it does hold the context
        for writer, reader in ((one, two), (two, one)):
            words = encode(data, writer, 128).words
            assert decode(words, writer, 128) == data
            if decode(words, reader, 128) != data:
                lost.append(data)
    assert lost, "tables differ, and everything was read all the same"
    whole = read_model()
    assert all(decode(encode(data, whole, 128).words, whole, 128) == data for data in lost)
