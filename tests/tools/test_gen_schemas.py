"""The schemas that other programs get are those of the records, whole and valid."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from trt_compress.tools.gen_schemas import DOCUMENTS, main, schema_of


def test_the_command_writes_every_schema_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "schemas"
    assert main(["--output", str(folder)]) == 0
    for name in DOCUMENTS:
        written = json.loads((folder / f"{name}-1.schema.json").read_text())
        jsonschema.Draft202012Validator.check_schema(written)
        assert written == schema_of(name)
        assert main([name]) == 0
        assert json.loads(capsys.readouterr().out) == written
    (folder / "report-1.schema.json").unlink()
    assert main(["--output", str(folder / "manifest-1.schema.json")]) == 2
    assert "--output" in capsys.readouterr().err


def test_a_schema_says_what_a_field_means_and_what_it_may_be() -> None:
    graph: dict[str, Any] = schema_of("manifest")["$defs"]["graphs.Graph"]["properties"]
    assert {"model", "step", "flush"} <= {*graph["role"]["enum"]}
    assert graph["role"]["description"].startswith("What it is for")
    state = schema_of("manifest")["$defs"]["graphs.State"]
    assert set(state["required"]) == {"graph", "shape"}
    assert state["properties"]["layer"]["type"] == ["integer", "null"]
    assert "Where the graph takes it" in state["properties"]["input"]["description"]  # said in the class that it is
    link = schema_of("manifest")["$defs"]["graphs.Link"]
    assert link["required"] == ["from", "to"]  # as JSON has them
