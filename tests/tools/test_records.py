"""What stands in a record of a benchmark."""

import json
import re
from pathlib import Path

import pytest

from trt_compress.tools.bench.records import append_record

NAMES = {
    "gguf:/models/of/M.gguf none": "gguf:M.gguf none",
    "hf:/models/y?lora=/adapters/q": "hf:y?lora=q",
    "tokens/s, GQA 32/8": "tokens/s, GQA 32/8",
    "https://example.org/a/b": "https://example.org/a/b",
    "zoo:digits_vit": "zoo:digits_vit",
}


@pytest.mark.parametrize("given", NAMES)
def test_a_file_is_named_without_its_folders(given: str, tmp_path: Path) -> None:
    append_record(tmp_path / "r.jsonl", "b", {"bundle": {"model": given, "all": [given]}})
    found = json.loads((tmp_path / "r.jsonl").read_text())["bundle"]
    assert found == {"model": NAMES[given], "all": [NAMES[given]]}


def test_committed_records_name_no_folder() -> None:
    for path in (Path(__file__).parents[2] / "tools" / "bench" / "results").glob("*.jsonl"):
        assert not re.search(r"[\s\"':=]/(?:tmp|root|home|work|mnt|var)/", path.read_text()), path.name
