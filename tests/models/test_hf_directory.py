"""Files beside a model of save_pretrained are foreign files: what is wrong with one is a sentence."""

from pathlib import Path

import pytest

from trt_compress.errors import ConfigError
from trt_compress.models.hosts.hf_directory import read_json


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 100_000 + b"]" * 100_000, r"config\.json is not JSON \(it is nested deeper than 64 levels\); copy"),
        (b"{bad", r"config\.json is not JSON \(Expecting property name"),
        (b"\xff\xfe", r"config\.json is not JSON \(Expecting value"),
        (b"[]", r"config\.json holds no JSON object"),
    ],
)
def test_a_damaged_file_is_one_sentence(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_json(tmp_path / "config.json")
