"""`python -O` leaves out every assert, and nothing that a user sees may change by it."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SEARCHED = os.pathsep.join(filter(None, (str(ROOT / "src"), os.environ.get("PYTHONPATH"))))


def test_an_assert_only_narrows_a_type() -> None:
    """What input decides is an error of ours; an assert may say no more than that something is there, or of a class."""

    def narrows(test: ast.expr) -> bool:
        if isinstance(test, ast.BoolOp):
            return all(map(narrows, test.values))
        if isinstance(test, ast.UnaryOp):
            return isinstance(test.op, ast.Not) and narrows(test.operand)
        if isinstance(test, ast.Compare):
            is_none = [isinstance(one, ast.Constant) and one.value is None for one in test.comparators]
            return all(is_none) and all(isinstance(op, ast.Is | ast.IsNot) for op in test.ops)
        if isinstance(test, ast.Call):
            return isinstance(test.func, ast.Name) and test.func.id == "isinstance"
        return isinstance(test, ast.Attribute)

    wrong = []
    for folder in ("export", "models", "plugins", "runtime", "tools", "src/trt_compress"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Assert) and not narrows(node.test):
                    wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)}")
    assert wrong == []


def said(flags: list[str], lines: list[list[str]], folder: Path) -> str:
    commands = folder / "commands.json"
    commands.write_text(json.dumps(lines))
    worker = Path(__file__).with_name("terminal_worker.py")
    done = subprocess.run(
        [sys.executable, *flags, worker, commands],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": SEARCHED, "PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-2000:]
    return re.sub(r"\d+\.\d+ GiB (available|free)", "", done.stdout)


def test_optimized_says_the_same(tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "manifest.json").write_text('{"schema_version": "1.0"}')
    (tmp_path / "bad.json").write_text("{}")
    np_file = tmp_path / "bad.npz"
    np_file.write_bytes(b"PK\x03\x04nothing")
    lines = [
        ["list", "compressors"],
        ["list", "targets", "--json"],
        ["inspect", "bad"],
        ["inspect", "bad", "--json"],
        ["report", "bad.json"],
        ["compare", "bad.json", "bad.json"],
        ["bench", "bad", "--inputs", "bad.npz"],
        ["run", "bad", "--source", "bad.npz", "--fps", "-1"],
        ["evaluate", "bad", "--data", "bad.npz"],
        ["export", "zoo:digits_vit", "--compress", "tome:num_merged=-1"],
        ["export", "zoo:digits_vit", "--compress", "static_reuse+tome"],
        ["preflight", "bad", "--target", "nothing"],
        ["plugins", "build", "--cuda", "1"],
        ["doctor", "--json"],
    ]
    plain, optimized = (said(flags, lines, tmp_path) for flags in ([], ["-O"]))
    assert plain == optimized and plain.count("error:") >= 8
