"""The benchmark of what forms of weights cost, on a small model."""

from pathlib import Path
from typing import Any

import pytest
from gguf import GGMLQuantizationType as Type

from tests.export.test_gguf_export import with_text
from tests.models.decoders import config_json, reference
from tests.models.language.gguf_files import write
from trt_compress.tools.bench import language_quality


def test_a_form_that_keeps_the_weights_costs_next_to_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config: dict[str, Any] = config_json("qwen3")
    config["rope_theta"] = config["rope_parameters"]["rope_theta"]
    file = write(tmp_path / "a.gguf", config, reference("qwen3").state_dict(), types=Type.Q8_0, more=with_text)
    (tmp_path / "text").write_text("as better trees stand near the water " * 8)
    monkeypatch.setattr(language_quality, "_CONTEXT", 32)
    recorded: list[dict[str, Any]] = []
    monkeypatch.setattr(language_quality, "append_record", lambda path, name, figures: recorded.append(figures))
    given = [
        f"gguf:{file}",
        "--forms",
        "8",
        "--text",
        str(tmp_path / "text"),
        "--windows",
        "6",
        "--folder",
        str(tmp_path / "b"),
    ]
    assert language_quality.main(given) == 0
    (figures,) = recorded
    plain, whole = figures["forms"]
    assert [plain["form"], whole["form"]] == ["fp32", "8"] and plain["over_fp32"] is None
    assert plain["windows"] == whole["windows"] == 6 and plain["perplexity"]["tokens"] == whole["perplexity"]["tokens"]
    assert abs(whole["over_fp32"]["ratio"] - 1) < 0.01 and "8" in capsys.readouterr().out
    assert sum(form["bytes"] for form in whole["weights"]) < sum(form["bytes"] for form in plain["weights"])
    assert language_quality.main([*given, "--quick"]) == 0 and len(recorded) == 1  # with the bundles that are there
