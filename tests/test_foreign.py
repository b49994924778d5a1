"""What a stranger's file makes a library raise comes out as one sentence of ours."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from trt_compress.errors import BundleError, ShapeError, StreamError
from trt_compress.foreign import reading, reason_of, shown, strict_json
from trt_compress.runtime.stream.images import load_npz


class Numbered(ValueError):
    """As FFmpeg's errors are: no OSError, with its number in the text and the reason beside it."""

    strerror = "Invalid data found when processing input"


@pytest.mark.parametrize(
    ("cause", "reason"),
    [
        (Numbered("[Errno 1094995529] Invalid data found: 'x()'"), "Invalid data found when processing input"),
        (struct.error("unpack requires a buffer of 4 bytes"), "unpack requires a buffer of 4 bytes"),
        (FileNotFoundError(2, "No such file or directory", "x"), "No such file or directory"),
        (OSError("broken data stream"), "broken data stream"),
        (MemoryError(), "it would take more memory than there is"),
        (RecursionError("maximum recursion depth exceeded"), "it is nested too deeply"),
        (ValueError("first line.\nsecond line"), "first line"),
        (ValueError("it holds a pickle. Load it unsafely with allow_pickle=True"), "it holds a pickle"),
        (KeyError(), "KeyError"),
        (ValueError("\x1b[31mred\x1b[0m"), "\\x1b[31mred\\x1b[0m"),
        (ValueError("x" * 500), "x" * 159 + "…"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_one_sentence_with_the_file_and_what_to_do(cause: Exception, reason: str) -> None:
    assert reason_of(cause) == reason
    with pytest.raises(BundleError) as caught:
        with reading("'a.bin'", "copy it again", error=BundleError):
            raise cause
    assert caught.value.message == f"'a.bin' cannot be read ({reason}); copy it again."
    assert caught.value.__cause__ is cause


def test_our_own_errors_and_interrupts_go_through() -> None:
    for cause in (ShapeError("ours"), KeyboardInterrupt(), SystemExit(3)):
        with pytest.raises(type(cause)) as caught:
            with reading("'a.bin'", "copy it again"):
                raise cause
        assert caught.value is cause


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": NaN}', "NaN is not a JSON number"),
        ("[-Infinity]", "-Infinity is not a JSON number"),
        ("[1e999]", "the number 1e999 is too large"),
        ("[" + "9" * 5000 + "]", "the number 999999999999…, of 5000 characters, is too large"),
        ("[" * 65 + "]" * 65, "nested deeper than 64 levels"),
        ("[" * 200_000, "nested deeper than 64 levels"),
        ('{"a": "\\ud800"}', "'\\ud800' holds half of a character"),
        ('{"\\udfff": 1}', "'\\udfff' holds half of a character"),
        ("{'a': 1}", "Expecting property name"),
        ("", "Expecting value"),
        (b"\xff\xfe", "Expecting value"),
        (b"\xff\xff", "it is not a text"),
        ('["' + "x" * 70_000 + '"]', "a text of 70000 characters stands there"),
    ],
)
def test_json_is_read_strictly(text: str | bytes, said: str) -> None:
    with pytest.raises(ValueError) as caught:
        strict_json(text)
    assert said in str(caught.value)


def test_good_json_is_read_as_it_is() -> None:
    data = {"a": [1, -2.5e-3, True, None, "ä\U0001f600"], "b": {"c": [[]]}, "n": 2**63}
    text = json.dumps(data)
    assert strict_json(text) == strict_json(text.encode()) == strict_json(b"\xef\xbb\xbf" + text.encode()) == data
    assert strict_json("[" * 64 + "]" * 64)[0] is not None


def test_a_length_without_end_is_read_where_it_may_stand() -> None:
    text = json.dumps({"model_max_length": int(1e30)})
    assert strict_json(text, wide=True) == {"model_max_length": 1000000000000000019884624838656}
    for given, options in ((text, {}), ("[" + "9" * 65 + "]", {"wide": True})):
        with pytest.raises(ValueError, match="is too large"):
            strict_json(given, **options)


def test_characters_that_would_reach_into_the_terminal_are_shown() -> None:
    assert shown("a\x1b[2Jb\u202ec\x9bd\nä") == "a\\x1b[2Jb\\u202ec\\x9bd\\nä"


def test_arrays_that_were_damaged_anywhere_are_refused_in_a_sentence(tmp_path: Path) -> None:
    whole = tmp_path / "whole.npz"
    np.savez_compressed(whole, x=np.arange(300, dtype=np.float32).reshape(3, 100), timestamp_ns=np.arange(3))
    content = whole.read_bytes()
    random, path, refused = np.random.default_rng(0), tmp_path / "scene.npz", 0
    for _ in range(400):
        damaged = bytearray(content[: random.integers(len(content) // 2, len(content) + 1)])
        for place in random.integers(len(damaged), size=random.integers(1, 6)):
            damaged[place] = random.integers(256)
        path.write_bytes(damaged)
        try:
            load_npz(str(path))
        except StreamError as error:
            refused += 1
            assert error.message.startswith(f"'{path}' cannot be read (")
            assert error.message.endswith("); write it with numpy.savez.")
    assert refused > 300
