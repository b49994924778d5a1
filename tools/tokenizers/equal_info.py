"""Files as tokens of Equal-Info Windows, and back."""

import io
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trt_compress.errors import ConfigError, InternalError
from trt_compress.files import read_regular, write_whole
from trt_compress.foreign import reading, shown
from trt_compress.runtime.text.equal_info.model import ByteModel
from trt_compress.runtime.text.equal_info.windows import check_bits, decode, encode, tokens_of, words_of

_LARGEST = 1 << 28


@dataclass(frozen=True, slots=True, kw_only=True)
class Windowed:
    """A file in windows.

    Attributes:
        name: Of the file.
        num_bytes: Of the file.
        windows: How many there are.
        literals: How many of them stand for a single byte.
        bits: Of a window.
        chunk: Of a token.
        tokens: The tokens.
    """

    name: str
    num_bytes: int
    windows: int
    literals: int
    bits: int
    chunk: int
    tokens: tuple[int, ...]

    @property
    def bytes_per_token(self) -> float | None:
        """None of an empty file."""
        return self.num_bytes / len(self.tokens) if self.tokens else None

    def to_json(self, *, ids: bool) -> dict[str, Any]:
        """Write as plain JSON data, the tokens as a number or all of them."""
        found = {**asdict(self), "bytes_per_token": self.bytes_per_token, "tokens": len(self.tokens)}
        return {**found, "ids": list(self.tokens)} if ids else found


def read_data(path: Path) -> bytes:
    """The bytes of a file, whatever they are.

    Raises:
        ConfigError: It cannot be read, or has more than 256 MiB.
    """
    with reading(f"'{shown(str(path))}'", "give a file of at most 256 MiB"):
        return read_regular(path, limit=_LARGEST)


def windowed(name: str, data: bytes, model: ByteModel, *, bits: int, chunk: int) -> Windowed:
    """Encode, and see that it comes back.

    Raises:
        ConfigError: Bits or chunk are out of range, or do not go together.
        InternalError: It does not come back.
    """
    check_bits(bits)
    tokens_of((), bits, chunk)
    found = encode(data, model, bits)
    if decode(found.words, model, bits) != data:
        raise InternalError(f"'{name}' does not come back from its windows.")
    return Windowed(
        name=name,
        num_bytes=len(data),
        windows=len(found.words),
        literals=found.literals,
        bits=bits,
        chunk=chunk,
        tokens=tuple(tokens_of(found.words, bits, chunk)),
    )


def write_tokens(found: Windowed, model: ByteModel, path: Path) -> None:
    """Write the tokens and what decodes them, as an .npz.

    Raises:
        OSError: It cannot be written.
    """
    file = io.BytesIO()
    tokens = np.array(found.tokens, np.uint8 if found.chunk == 8 else np.uint16)
    about = {"bits": np.int64(found.bits), "chunk": np.int64(found.chunk), "model": np.array(model.sha256)}
    np.savez(file, tokens=tokens, **about)  # type: ignore[arg-type]
    write_whole(path, file.getvalue())


def read_tokens(path: Path, model: ByteModel) -> bytes:
    """The bytes of a file that `write_tokens` wrote.

    Raises:
        ConfigError: It is something else, or was encoded with another model.
    """
    content = read_data(path)
    with (
        reading(f"'{shown(str(path))}'", "give a file that equal-info wrote"),
        np.load(io.BytesIO(content), allow_pickle=False) as archive,
    ):
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError("it is one array")
        tokens, made_by = archive["tokens"], str(archive["model"])
        bits, chunk = (int(archive[name]) for name in ("bits", "chunk"))
        if tokens.ndim != 1 or tokens.dtype.kind != "u":
            raise ValueError("its tokens are no row of whole numbers")
    if made_by != model.sha256:
        raise ConfigError(
            f"'{path}' was encoded with the model {shown(made_by)[:12]}…, and this one is {model.sha256[:12]}…; give "
            "that one with --model."
        )
    check_bits(bits)
    return decode(words_of(tokens.tolist(), bits, chunk), model, bits)
