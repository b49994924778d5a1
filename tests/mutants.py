"""Plants small mistakes in the product and runs the tests that name the changed file: who survives shows a gap.

    python -m tests.mutants --count 20 --seed 1 plugins export/soundness.py
    python -m tests.mutants --list runtime/states.py

A mistake is one of those that people make: a comparison that is off by its end or turned round, one more or one less, a
clamp that is left out, another axis, another dtype, `and` for `or`, a condition that is turned round, the least for the
largest. Each is planted alone, in a copy of the tree as it is committed, so that nothing here changes; the copy goes
when all is done. Files whose tests need most of the suite take long: give files, not folders, and look at `--list`.

Exit code 3 if one survived. Not every survivor is a gap: a mistake may change nothing that can be seen.
"""

import argparse
import ast
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.processes import ROOT

FOLDERS = ("src/trt_compress", "plugins", "models", "export", "runtime", "tools")
COMPARISONS = {ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "=="}
NAMES = {"min": "max", "max": "min", "amin": "amax", "amax": "amin", "argmin": "argmax", "argmax": "argmin"}
NAMES |= {"floor": "ceil", "ceil": "floor", "any": "all", "all": "any"}
LEFT_OUT = ("clamp", "clamp_min", "clamp_max", "clip", "abs", "contiguous", "transpose", "flip")
AXES = ("dim", "axis", "start_dim")
DTYPES = {"float32": "float16", "float64": "float32", "int64": "int32", "float16": "float32"}
MOST_FILES = 6
LONGEST_S = 240.0


@dataclass(frozen=True, slots=True)
class Mutant:
    """One mistake: `old` at this place of the file becomes `new`."""

    file: Path
    line: int
    place: int
    old: str
    new: str

    @property
    def said(self) -> str:
        return f"{self.file}:{self.line}: {self.old} -> {self.new or 'nothing'}"

    def plant(self, root: Path) -> None:
        text = (root / self.file).read_text(encoding="utf-8")
        assert text[self.place :].startswith(self.old), self.said
        (root / self.file).write_text(text[: self.place] + self.new + text[self.place + len(self.old) :], "utf-8")


def mutants_of(file: Path) -> list[Mutant]:
    """Every mistake that there is for a file, by its path in the repository."""
    text = (ROOT / file).read_text(encoding="utf-8")
    starts = [0]
    for line in text.encode().splitlines(keepends=True):
        starts.append(starts[-1] + len(line))

    def place(line: int, column: int) -> int:
        return len(text.encode()[: starts[line - 1] + column].decode())

    def span(node: ast.expr) -> tuple[int, int]:
        assert node.end_lineno is not None and node.end_col_offset is not None
        return place(node.lineno, node.col_offset), place(node.end_lineno, node.end_col_offset)

    def changes(node: ast.AST) -> Iterator[tuple[int, str, str]]:
        if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in COMPARISONS:
            begin, end = span(node.left)[1], span(node.comparators[0])[0]
            between = text[begin:end]
            if found := re.search(r"[<>=!]=|[<>]", between):
                yield begin + found.start(), found[0], COMPARISONS[type(node.ops[0])]
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub) and _is_one(node.right):
            begin, end = span(node.left)[1], span(node.right)[1]
            yield begin, text[begin:end], ""
        elif isinstance(node, ast.BoolOp):
            begin, end = span(node.values[0])[1], span(node.values[1])[0]
            word, other = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
            if found := re.search(rf"\b{word}\b", text[begin:end]):
                yield begin + found.start(), word, other
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            yield span(node)[0], "not ", ""
        elif isinstance(node, ast.Call):
            yield from calls(node)

    def calls(node: ast.Call) -> Iterator[tuple[int, str, str]]:
        function = node.func
        if isinstance(function, ast.Attribute) and function.attr in LEFT_OUT:
            begin, end = span(function.value)[1], span(node)[1]
            yield begin, text[begin:end], ""
        name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        if name in NAMES:
            yield span(function)[1] - len(name), name, NAMES[name]
        for word in node.keywords:
            if word.arg in AXES and isinstance(word.value, ast.Constant) and isinstance(word.value.value, int):
                begin, end = span(word.value)
                yield begin, text[begin:end], str(word.value.value - 1)

    found = []
    for node in ast.walk(ast.parse(text)):
        for begin, old, new in changes(node):
            found.append(Mutant(file, text.count("\n", 0, begin) + 1, begin, old, new))
    for match in re.finditer(r"\b(?:torch|np|TensorProto)\.(\w+)\b", text):
        if match[1] in DTYPES:
            line = text.count("\n", 0, match.start()) + 1
            found.append(Mutant(file, line, match.start(1), match[1], DTYPES[match[1]]))
    return sorted(found, key=lambda mutant: (mutant.place, mutant.new))


def _python_files(path: Path) -> list[Path]:
    return sorted(path.rglob("*.py")) if path.is_dir() else [path]


def _is_one(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value == 1 and type(node.value) is int


def tests_of(file: Path) -> list[str]:
    """Arguments of pytest: the tests that name this file's module, nearest first."""
    if file.match("plugins/*/*.py") and (ROOT / file.parent / "spec.py").exists():
        return ["tests/plugins", "-k", f"{file.parent.name} and not rtx and not RTX"]
    inside = file.relative_to("src/trt_compress") if file.parts[0] == "src" else file
    module = ".".join(["trt_compress", *inside.with_suffix("").parts])
    named = re.compile(rf"\b{re.escape(module)}\b|from {re.escape(module.rpartition('.')[0])} import .*\b{file.stem}\b")
    by_name = {path: path.stem == f"test_{file.stem}" for path in (ROOT / "tests").rglob("test_*.py")}
    users = [path for path, is_own in by_name.items() if is_own or named.search(path.read_text(encoding="utf-8"))]
    users.sort(key=lambda path: (not by_name[path], inside.parts[0] not in path.parts, path.stat().st_size))
    return [str(path.relative_to(ROOT)) for path in users[:MOST_FILES]]


def copied_tree(folder: Path) -> Path:
    """What is committed, in a folder of its own."""
    subprocess.run(["git", "clone", "--quiet", "--shared", str(ROOT), str(folder)], check=True)
    return folder


def killed_by(mutant: Mutant, tree: Path) -> str | None:
    """The test that fails on it; None: it survived."""
    whole = (tree / mutant.file).read_bytes()
    mutant.plant(tree)
    variables = {**os.environ, "PYTHONPATH": str(tree / "src"), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-n", "0", "-p", "no:cacheprovider", *tests_of(mutant.file)]
    try:
        done = subprocess.run(command, cwd=tree, env=variables, capture_output=True, text=True, timeout=LONGEST_S)
    except subprocess.TimeoutExpired:
        return f"no end within {LONGEST_S:.0f} s"
    finally:
        (tree / mutant.file).write_bytes(whole)
    if done.returncode == 0:
        return None
    if done.returncode == 5:
        raise SystemExit(f"error: no test is chosen for {mutant.file}.")
    lines = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return lines[0][:160] if lines else (done.stdout + done.stderr)[-160:]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", default=FOLDERS, help="files or folders of the product")
    parser.add_argument("--count", type=int, default=60, help="how many mistakes, spread over the files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--list", action="store_true", help="plant nothing; say what there is, and with which tests")
    given = parser.parse_args(arguments)
    files = [path for name in given.paths for path in _python_files(ROOT / name)]
    if missing := [str(path) for path in files if not path.is_file()]:
        parser.error(f"{missing[0]} is not there; give files or folders of the product.")
    known = {file: mutants_of(file) for file in (path.resolve().relative_to(ROOT) for path in files)}
    generator = random.Random(given.seed)
    queues = [generator.sample(found, len(found)) for file, found in known.items() if found and tests_of(file)]
    generator.shuffle(queues)
    chosen = [queue[turn] for turn in range(max(map(len, queues), default=0)) for queue in queues if turn < len(queue)]
    if given.list:
        for mutant in chosen[: given.count]:
            print(mutant.said, "|", *tests_of(mutant.file))
        return 0
    survivors = 0
    with tempfile.TemporaryDirectory() as place:
        tree = copied_tree(Path(place) / "tree")
        for mutant in chosen[: given.count]:
            began = time.monotonic()
            killer = killed_by(mutant, tree)
            survivors += killer is None
            took = f"{time.monotonic() - began:.0f} s"
            print(f"{'SURVIVED' if killer is None else 'killed'} {mutant.said} ({took}) {killer or ''}", flush=True)
    print(f"{min(given.count, len(chosen))} mistakes, {survivors} survived")
    return 3 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
