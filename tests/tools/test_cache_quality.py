"""The benchmark of cache policies on a tiny model: in pieces, skipped where on record, and its table."""

import json
from pathlib import Path
from typing import Any

import pytest
from gguf import GGMLQuantizationType as Type

from tests.export.test_gguf_export import with_text
from tests.models.decoders import config_json, reference
from tests.models.language.gguf_files import write
from trt_compress.errors import ConfigError
from trt_compress.tools import gen_tables
from trt_compress.tools.bench import cache_figures, cache_quality
from trt_compress.tools.bench.cache_settings import FP16, FP32, CacheSetting, bytes_figures, in_order, usual_settings

NUMBERS = (
    *("--tokens", "260", "--windows", "4", "--trials", "1", "--together", "1"),
    *("--batch", "4", "--chunk", "32", "--threads", "1"),
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    config: dict[str, Any] = config_json("qwen3")
    config["rope_theta"] = config["rope_parameters"]["rope_theta"]
    path = tmp_path_factory.mktemp("gguf") / "a.gguf"
    return f"gguf:{write(path, config, reference('qwen3').state_dict(), types=Type.Q8_0, more=with_text)}"


def test_settings_are_all_methods_and_what_they_are_compared_with() -> None:
    names = usual_settings(204)
    assert names[:3] == [FP16, FP32, "random_kv:budget=204"]
    assert {"h2o:budget=204", "razorattention", "int8", "gear"} <= set(names) and "plain" not in names
    asked = ["int8", "tova:budget=7", "snapkv:budget=40+int8"]
    assert in_order(asked) == [FP16, FP32, "random_kv:budget=7", *asked]


@pytest.mark.parametrize(
    ("name", "of_a_token", "formula", "at_8k"),
    [  # of 2 layers with 2 KV heads of 32 channels
        (FP32, 1024, "2·(keys 64·4 + values 64·4)", 2),
        (FP16, 512, "2·(keys 64·2 + values 64·2)", 1),
        ("int4:group=32", 160, None, 160 / 512),
        ("kivi:bits=4,group=32,residual=64", 160, None, 160 / 512),
        ("snapkv:budget=800,window=16", 512, None, (800 * 512 + 2 * 4 * 16 * 33 * 4) / (8192 * 512)),
        ("random_kv:budget=2000", None, None, None),
    ],
)
def test_bytes_are_the_count_of_the_policies(
    name: str, of_a_token: float | None, formula: str | None, at_8k: float | None, model: str
) -> None:
    spec = "none" if name in (FP16, FP32) else name
    found = bytes_figures(model, CacheSetting(name=name, spec=spec), 256)
    if of_a_token is not None:
        assert found["of_a_token"] == of_a_token
    if formula is not None:
        assert found["formula"] == formula
    if at_8k is not None:
        assert found["at"]["8192"]["of_fp16"] == pytest.approx(at_8k, abs=1e-4)


def test_in_pieces_until_all_is_on_record(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text").write_text("as better trees stand near the water " * 90)
    record, folder = tmp_path / "record.jsonl", tmp_path / "kept"
    specs = ("--specs", "knorm:budget=24")
    places = ("--text", str(tmp_path / "text"), "--folder", str(folder), "--record", str(record))
    monkeypatch.setattr(cache_quality, "_CONTINUATION", 33)
    monkeypatch.setattr(cache_quality, "_TIMED", {"prefill": 2, "decode": 8})
    given = [model, *specs, *NUMBERS, *places]
    assert cache_quality.main([*given, "--within", "0.001"]) == 0
    assert "0 of 4 settings are on record" in capsys.readouterr().out
    assert cache_quality.main(given) == 0
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    assert [line["setting"] for line in lines] == [FP16, FP32, "random_kv:budget=24", "knorm:budget=24"]
    half, single, floor, norms = lines
    assert half["change"] is None and abs(single["change"]["ratio"] - 1) < 1e-3
    assert norms["perplexity"]["tokens"] == half["perplexity"]["tokens"] == 4 * 32
    assert norms["change"]["ratio"] != 1 and norms["over_random"]["perplexity"]["ratio"] == pytest.approx(
        norms["perplexity"]["value"] / floor["perplexity"]["value"], rel=1e-6
    )
    assert floor["over_random"] is None and norms["needle"]["n"] == norms["recall"]["n"] == 5
    assert set(norms["speed"]["decode"]) == {"knorm:budget=24", FP16, FP32}
    assert len(norms["speed"]["prefill"][FP16]["ns"]) == 2
    assert len([path for path in folder.iterdir() if path.name.startswith("bundle-")]) == 2, "the plain ones are kept"
    monkeypatch.setattr(cache_quality.Judging, "_figures", None)
    assert cache_quality.main(given) == 0, "what is on record is not judged again"
    assert len(record.read_text().splitlines()) == 4
    monkeypatch.setattr(cache_figures, "RESULTS", record)
    monkeypatch.setattr(cache_figures.records, "__defaults__", (record,))
    table = gen_tables.TABLES["cache_quality"]()
    assert "| `knorm:budget=24` |" in table and table.index("| `fp32` |") < table.index("| `fp16` |")
    assert "Worse than random entries at the same budget: " in table


def test_what_lost_is_named() -> None:
    def over(ratio: float, low: float, needle: float, high: float) -> dict[str, Any]:
        return {
            "perplexity": {"ratio": ratio, "low": low},
            "needle": {"value": needle, "high": high},
            "recall": {"value": 0.0, "high": 0.1},
        }

    found = [
        {"setting": "a", "over_random": over(1.2, 1.1, 0.0, 0.1)},
        {"setting": "b", "over_random": over(0.9, 0.8, -0.1, 0.02)},
        {"setting": "c", "over_random": over(0.9, 0.8, 0.2, 0.3)},
        {"setting": "d", "over_random": None},
    ]
    assert list(cache_figures.lost_to_random(found)) == [
        ("a", "perplexity (1.200×)"),
        ("b", "needle (-10.0 points, within the interval)"),
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--windows", "0"), "--windows 0 is out of range"),
        (("--together", "3"), "--together 3 is out of range; give 2 at most"),
        (("--specs", "snapkv:budget=4"), "budget=4 has no room beside window="),
        (("--specs", "snapkvs:budget=40"), "snapkvs"),
    ],
)
def test_bad_words(words: tuple[str, ...], said: str, model: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        cache_quality.main([model, "--folder", str(tmp_path), "--text", str(tmp_path), *words])
