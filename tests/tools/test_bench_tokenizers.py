"""The benchmark of tokenizers: its record as tables, and what it refuses."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from trt_compress.tools.bench import tokenizers


def test_the_record_as_tables() -> None:
    record = tokenizers.last_record()
    speeds = tokenizers.speed_rows(record)
    assert [row[0] for row in speeds] == [tokenizers.LIBRARY, tokenizers.TIKTOKEN, tokenizers.GREEDY, tokenizers.EXACT]
    assert speeds[0][2] == "1" and all("×" in row[2] for row in speeds[1:])
    rows = tokenizers.saved_rows(record)
    assert len(rows) == 10 and all(len(row) == len(tokenizers.SAVED_COLUMNS) for row in rows)
    for row in record["saved"]:
        exact = row["modes"][tokenizers.EXACT]
        assert exact["tokens"] <= min(row["tokens_bpe"], row["modes"][tokenizers.GREEDY]["tokens"])
        assert exact["low"] <= exact["ratio"] <= exact["high"] <= 1
    trained = tokenizers.trained_rows(record)
    assert len(trained) == 10 and all(len(row) == len(tokenizers.TRAINED_COLUMNS) for row in trained)
    for row in record["trained"]:
        for found in row["modes"].values():
            assert found["low"] <= found["ratio"] <= found["high"]
            assert abs(found["tokens"] / row["tokens_bpe"] - found["ratio"]) < 1e-9


def test_what_it_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vocabulary = tmp_path / "gpt2.tiktoken"
    vocabulary.write_bytes(b"IQ== 0\n")
    call = ["--vocabulary", str(vocabulary), "--texts", str(tmp_path)]
    assert tokenizers.main(call) == 2 and "holds no en.txt" in capsys.readouterr().err
    (tmp_path / "en.txt").write_text("!")
    assert tokenizers.main([*call, "--rounds", "0"]) == 2 and "are at least 1" in capsys.readouterr().err
    if find_spec("tiktoken") is None:
        assert tokenizers.main(call) == 2 and "needs 'tiktoken', which is not installed" in capsys.readouterr().err
