"""What a file of weights is by how it begins, told without torch: a mistake is said before anything heavy is loaded."""

import zipfile
from typing import BinaryIO

_KINDS: tuple[tuple[bytes, str], ...] = (  # how files begin that are given by mistake
    (b"version https://git-lfs", "it is a pointer of Git LFS; run `git lfs pull` where it comes from"),
    (b"GGUF", "it is a GGUF file"),
    (b"\x89HDF", "it is an HDF5 file, as Keras writes them"),
    (b"<!DOCTYPE", "it is a web page"),
    (b"<html", "it is a web page"),
    (b"\x08", "it looks like an ONNX file"),
    (b"{", "it is a text file"),
)
LONGEST_HEADER = 100_000_000  # bytes; safetensors itself takes no more
_OLD_PICKLE = b"L119547037146038801333356L\n"  # how torch.save begins with protocol 0
_START = 512
_FORM = "give a .safetensors file, or one saved by torch.save(model.state_dict(), …)."


def no_weights(suffix: str, reason: str) -> str:
    """What is said of a file that is no file of weights, behind its name."""
    if suffix == ".safetensors":
        return f"is not a whole safetensors file ({reason}); copy or download it again."
    return f"is not a PyTorch checkpoint of tensors ({reason}); {_FORM}"


def kind_of(start: bytes) -> str | None:
    """What a file is that begins so, if it is of a kind that is given by mistake."""
    return next((what for beginning, what in _KINDS if start.startswith(beginning)), None)


def is_safetensors(start: bytes) -> bool:
    """Whether a file begins with the length of a header and a header; the length may begin as a pickle does."""
    return start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= LONGEST_HEADER


def foreign_kind(file: BinaryIO) -> str | None:
    """What a file is, if its first bytes show that it holds no weights; None: it may hold some."""
    start = file.read(_START)
    if is_safetensors(start) or start.startswith((b"\x80", _OLD_PICKLE[:20])):
        return None
    if start.startswith(b"PK"):
        return _archive(file)
    return kind_of(start) or ("it is empty" if not start else "it is a text file" if _is_text(start) else None)


def _archive(file: BinaryIO) -> str | None:
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except Exception:  # damaged: said by whoever reads it
        return None
    if any(name.endswith(".pkl") for name in names):
        return None
    return "it is an archive of numpy arrays" if any(name.endswith(".npy") for name in names) else "it is a zip archive"


def _is_text(start: bytes) -> bool:
    return not any(byte < 32 and byte not in b"\t\n\r\f\x1b" or byte == 127 for byte in start) and (
        len(start) >= 32 or start.isascii()
    )
