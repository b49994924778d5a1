"""Files of safetensors, read by our own reader: as the library reads them, refused where it refuses them."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save, save_file
from torch import Tensor

from trt_compress.errors import ConfigError
from trt_compress.models.hosts.safetensors_file import DTYPES, SafetensorsFile


def all_kinds() -> dict[str, Tensor]:
    """A tensor of each type, and shapes that are easily got wrong."""
    made = {name: torch.arange(24).reshape(4, 3, 2).to(getattr(torch, dtype)) for name, (dtype, _) in DTYPES.items()}
    return {
        **made,
        "number": torch.tensor(3.5),
        "none": torch.zeros(0, 7),
        "a name\u00e9": torch.ones(1, dtype=torch.bool),
    }


def same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and bytes_of(one) == bytes_of(other)


def bytes_of(tensor: Tensor) -> bytes:
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def file_of(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(first: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [first, end]}


def test_every_type_and_shape_is_read_as_the_library_does(tmp_path: Path) -> None:
    path, tensors = tmp_path / "w.safetensors", all_kinds()
    save_file(tensors, path, metadata={"format": "pt", "settings": "x" * 300_000})
    file = SafetensorsFile.open(path)
    assert file.tensors.keys() == tensors.keys()
    assert file.metadata["format"] == "pt"
    for name, expected in load(path.read_bytes()).items():
        stored = file.tensors[name]
        assert (getattr(torch, stored.dtype), stored.shape) == (expected.dtype, tuple(expected.shape))
        assert same(file.read(name), expected), name
    offsets = [stored.offset for stored in file.tensors.values()]
    assert offsets == sorted(offsets)


def test_rows_are_read_alone(tmp_path: Path) -> None:
    path, tensors = tmp_path / "w.safetensors", all_kinds()
    save_file(tensors, path)
    file = SafetensorsFile.open(path)
    for name in DTYPES:
        assert same(file.read(name, 1, 3), tensors[name][1:3].contiguous()), name
        assert same(file.read(name, 2), tensors[name][2:].contiguous()), name
        assert file.read(name, 4).shape == (0, 3, 2)
    for name, rows in (("F32", (3, 5)), ("F32", (-1, 2)), ("F32", (3, 2)), ("number", (0, 1))):
        with pytest.raises(ValueError, match="rows, and none from"):
            file.read(name, *rows)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "cut short"),
        (file_of({"a": entry(0, 4, [1])}, bytes(4))[:20], "ends within its header"),
        (file_of({"a": entry(0, 8, [2])}, bytes(4)), "its last 4 bytes are missing"),
        (file_of({"a": entry(0, 4, [1])}, bytes(9)), "5 bytes too many"),
        (file_of({"a": entry(0, 8, [2]), "b": entry(4, 8, [1])}, bytes(8)), "'b' overlaps 'a'"),
        (file_of({"a": entry(0, 4, [1]), "b": entry(8, 12, [1])}, bytes(12)), "before 'b' stand bytes"),
        (file_of({"a": entry(0, 4, [2])}, bytes(4)), "'a' of F32 [2] has 8 bytes, not 4"),
        (file_of({"a": entry(4, 0, [1])}, bytes(4)), "'a' of F32 [1] has 4 bytes, not -4"),
        (file_of({"a": entry(0, 4, [-1])}, bytes(4)), "are no sizes"),
        (file_of({"a": entry(0, 4, [True])}, bytes(4)), "are no sizes"),
        (file_of({"a": entry(0, 4, [1.0])}, bytes(4)), "are no sizes"),  # type: ignore[list-item]
        (file_of({"a": entry(0, 4, [2**63, 2**63, 2**63])}, bytes(4)), "bytes, not 4"),
        (file_of({"a": {"dtype": "F32", "shape": [1]}}, bytes(4)), "dtype, shape and data_offsets"),
        (file_of({"a": [1]}, bytes(4)), "dtype, shape and data_offsets"),
        (file_of({"__metadata__": {"a": 1}}), "not texts by name"),
        (file_of(b'{"a": 1, "a": 2}'), "'a' stands there twice"),
        (file_of(b'{"a": NaN}'), "NaN is not a JSON number"),
        (file_of(b"{" + b'"a":{' * 70 + b"}" * 71), "nested deeper"),
    ],
)  # fmt: skip
def test_what_the_header_says_must_be_so(content: bytes, reason: str, tmp_path: Path) -> None:
    (path := tmp_path / "w.safetensors").write_bytes(content)
    with pytest.raises(ConfigError, match=f"w.safetensors is not a whole safetensors file .*{re.escape(reason)}"):
        SafetensorsFile.open(path)
    if "twice" not in reason:  # of two equal names the library takes one
        with pytest.raises((SafetensorError, OverflowError)):
            load(content)


def test_a_type_that_torch_does_not_have_is_refused_by_name(tmp_path: Path) -> None:
    (path := tmp_path / "w.safetensors").write_bytes(file_of({"a": entry(0, 1, [2], "F4\x1b[31m")}, bytes(1)))
    with pytest.raises(ConfigError, match=r"holds 'a' of the type F4\\x1b\[31m, and what is read is F64, F32"):
        SafetensorsFile.open(path)


def test_truth_values_are_zero_or_one(tmp_path: Path) -> None:
    (path := tmp_path / "w.safetensors").write_bytes(file_of({"a": entry(0, 2, [2], "BOOL")}, b"\1\2"))
    with pytest.raises(ConfigError, match="'a' holds truth values that are neither 0 nor 1"):
        SafetensorsFile.open(path).read("a")


def test_a_file_that_lost_its_end_after_it_was_opened_is_said(tmp_path: Path) -> None:
    save_file({"a": torch.ones(5000), "b": torch.ones(5000)}, path := tmp_path / "w.safetensors")
    file = SafetensorsFile.open(path)
    with path.open("r+b") as other:
        other.truncate(30_000)
    assert file.read("a").sum() == 5000
    for read in (lambda: file.read("b"), lambda: file.origin.sha256, file.origin.require_unchanged):
        with pytest.raises(ConfigError, match="was changed while it was read; give it when it is complete"):
            read()


def test_what_is_replaced_by_name_stays_as_it_was_opened(tmp_path: Path) -> None:
    save_file({"a": torch.ones(3)}, path := tmp_path / "w.safetensors")
    file = SafetensorsFile.open(path)
    (new := tmp_path / "new").write_bytes(save({"a": torch.zeros(3)}))
    new.replace(path)
    assert file.read("a").tolist() == [1, 1, 1]
