"""The benchmark beside other runtimes, with the bundle alone: that each side reads what it is told, in turns."""

import json
from pathlib import Path

import pytest

from tests.runtime.generate.toy import write
from trt_compress.children import PIPE, python_command, run
from trt_compress.errors import ConfigError
from trt_compress.tools.bench import language_peers, records

PEER = "trt_compress.tools.bench.peer"


def test_a_side_reads_what_it_is_told(tmp_path: Path, native_library: Path) -> None:
    write(tmp_path / "b")
    told = '["prompt", [5, 6, 7]]\n["steps", [8, 9]]\n["prompt", [5, 6, 7, 8, 9]]\n'
    done = run(python_command(PEER, "trt-compress", tmp_path / "b", "1", "16"), given=told.encode(), errors=PIPE)
    assert done.returncode == 0, done.stderr
    began, prompt, steps, whole = map(json.loads, done.stdout.splitlines())
    assert began["load_ns"] > 0 and began["peak_bytes"] > 1 << 20
    assert (len(prompt["ns"]), len(steps["ns"])) == (1, 2) and min(*prompt["ns"], *steps["ns"]) > 0
    assert whole["largest"] == steps["largest"][-1:]  # at once or one by one: the same sequence


def test_a_small_run(
    tmp_path: Path, native_library: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "b")
    (tmp_path / "a.gguf").write_bytes(b"")
    alone = [
        "--gguf",
        str(tmp_path / "a.gguf"),
        "--without",
        "llama.cpp",
        "--without",
        "onnxruntime-genai",
        "--fill",
        "8",
    ]
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr(records, "write_line", lambda path, line: pytest.fail("a quick run records nothing"))
    write(tmp_path / "c")
    bundles = ["--bundle", str(tmp_path / "b"), "--bundle", str(tmp_path / "c")]
    assert language_peers.main([*alone, *bundles, "--threads", "1", "--quick"]) == 0
    shown = capsys.readouterr().out
    assert "trt-compress, not quantized, b" in shown and "trt-compress, not quantized, c" in shown
    with pytest.raises(ConfigError, match="is no file; give a model in GGUF"):
        language_peers.main(["--gguf", str(tmp_path / "none"), *bundles])
    with pytest.raises(ConfigError, match="give numbers of at least 1 within that"):
        language_peers.main([*alone, *bundles, "--fill", "8192"])
