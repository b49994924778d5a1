"""Imports go one way, every module has one name and says what it is for, and what is public is pinned."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("export", "models", "plugins", "runtime", "tools")
MODULES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
GROUND = ROOT / "src" / "trt_compress"
MODULES += sorted([*GROUND.glob("*.py"), *(GROUND / "format").rglob("*.py"), *(GROUND / "methods").rglob("*.py")])

ALLOWED = {
    "tools": ("tools", "export", "models", "plugins", "runtime"),
    "export": (
        "export",
        "models",
        "plugins",
        "runtime.arrays",
        "runtime.tokens",
        "runtime.backends.cuda",
        "runtime.backends.ort",
        "runtime.labelled.data",
        "runtime.labelled.files",
        "runtime.onnx_nodes",
        "runtime.onnx_source",
        "runtime.stream.preprocess",
    ),
    "models": ("models", "plugins", "runtime.detection_metric"),
    "plugins": ("plugins",),
    "runtime": ("runtime", "plugins.library"),
}
FOR_ALL = (
    "cache",
    "chat_template",
    "chat_worker",
    "children",
    "current_folder",
    "digest",
    "errors",
    "files",
    "foreign",
    "format",
    "locks",
    "memory",
    "methods",
    "model_file",
    "model_name",
    "paths",
    "strays",
    "suggest",
    "version",
)
ONLY_BY = {"models.zoo": ("models/zoo/", "tools/"), "tools.cli": ("tools/cli/", "src/")}
"""What others of the folder do not import."""

STARTS = {"subprocess", "multiprocessing", "runpy", "pty", "popen2", "commands"}
STARTS_BY_NAME = {"ProcessPoolExecutor", "create_subprocess_exec", "create_subprocess_shell", "system", "popen"}
STARTS_BY_START = ("exec", "spawn", "posix_spawn", "fork")  # of os
MAY = {
    "src/trt_compress/children.py": {"subprocess", "sys.executable", "shutil.which"},  # and in its text, what it starts
    "plugins/ptxas.py": {"subprocess", "shutil.which"},  # it stands alone, in the environment that children gave CMake
    "plugins/build.py": {"sys.executable"},  # what CMake starts, in isolated mode
    "tools/demo.py": {"sys.executable"},  # whose folder it shows
}

PUBLIC = {
    "trt_compress.runtime": ["Bundle", "Generator", "Manifest", "Sampling", "Session", "States"],
}


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports_of(path: Path) -> Iterator[str]:
    """What a file imports of this package, lazily or not: `runtime.manifest.Manifest`."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name.removeprefix("trt_compress.") for name in names if name.startswith("trt_compress."))


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_imports_go_one_way() -> None:
    wrong: dict[str, list[str]] = {}
    for path in MODULES:
        folder, file = path.relative_to(ROOT).parts[0], relative(path)
        public = FOLDERS if path.parent == GROUND and path.stem.startswith("__") else ()  # the doors; loaded when used
        allowed = (*ALLOWED.get(folder, public), *FOR_ALL)
        closed = [room for room, importers in ONLY_BY.items() if not file.startswith(importers)]
        for name in imports_of(path):
            if not starts_with_one_of(name, allowed) or starts_with_one_of(name, closed):
                wrong.setdefault(file, []).append(name)
    assert wrong == {}, "ALLOWED, FOR_ALL and ONLY_BY say what may be imported"


def starts_with_one_of(name: str, rooms: Iterable[str]) -> bool:
    return any(f"{name}.".startswith(f"{room}.") for room in rooms)


def modules_by_name() -> dict[str, Path]:
    """Every module without `trt_compress.`; a package by its own name, the outermost one as an empty one."""
    paths = {path: path.relative_to(GROUND if GROUND in path.parents else ROOT).with_suffix("") for path in MODULES}
    return {".".join(place.parts).removesuffix("__init__").removesuffix("."): path for path, place in paths.items()}


def needs(name: str, modules: Mapping[str, Path]) -> set[str]:
    """The modules that a module imports at any time: at once, lazily, for types, or by a name in a string."""
    strings = {
        node.value.removeprefix("trt_compress.")
        for node in ast.walk(tree_of(modules[name]))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"[\w.]+", node.value)
    }
    found = {text for text in strings if "." in text and text in modules}
    found |= {inner for text in strings if "." in text and (inner := f"{name.partition('.')[0]}.{text}") in modules}
    for imported in imports_of(modules[name]):
        while imported not in modules:
            imported = imported.rpartition(".")[0]
        found.add(imported)
    return found - {name}


def test_no_module_needs_itself_by_way_of_others() -> None:
    modules = modules_by_name()
    sorter = TopologicalSorter({name: needs(name, modules) for name in modules})
    try:
        sorter.prepare()
    except CycleError as error:
        pytest.fail(f"each needs the one before it: {', '.join(error.args[1])}")


def test_a_cycle_of_any_kind_is_seen(tmp_path: Path) -> None:
    modules = {"models.a": tmp_path / "a.py", "models.b": tmp_path / "b.py"}
    modules["models.b"].write_text("def f():\n    from trt_compress.models.a import g\n")
    texts = (
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from trt_compress.models import b",
        "NAMES = {'x': 'trt_compress.models.b'}",
        "import trt_compress.models.b as b",
    )
    for number, text in enumerate(texts):
        modules["models.a"] = tmp_path / f"a{number}.py"  # a tree is kept by its path
        modules["models.a"].write_text(text)
        assert (needs("models.a", modules), needs("models.b", modules)) == ({"models.b"}, {"models.a"})


def starts_in(tree: ast.AST) -> Iterator[str]:
    """What in a file starts programs, or looks for one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.partition(".")[0] in STARTS)
        elif isinstance(node, ast.ImportFrom):
            if (node.module or "").partition(".")[0] in STARTS:
                yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names if starts(str(node.module), alias.name))
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name | ast.Attribute):
            owner = node.value.id if isinstance(node.value, ast.Name) else node.value.attr
            if starts(owner, node.attr):
                yield f"{owner}.{node.attr}"
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("__import__", "import_module", "find_spec"):
            named = [argument.value for argument in node.args[:1] if isinstance(argument, ast.Constant)]
            yield from (str(name) for name in named if str(name).partition(".")[0] in STARTS)


def starts(owner: str, name: str) -> bool:
    found = owner == "os" and name.startswith(STARTS_BY_START)
    return found or f"{owner}.{name}" in ("sys.executable", "shutil.which") or name in STARTS_BY_NAME and owner != "re"


def test_programs_are_started_in_one_place_only() -> None:
    """Anything else would look for modules or programs in the current folder, which may be a stranger's bundle."""
    found = {relative(path): set(starts_in(tree_of(path))) - MAY.get(relative(path), set()) for path in MODULES}
    assert {file: starts for file, starts in found.items() if starts} == {}, "use trt_compress.children"


@pytest.mark.parametrize(
    "text",
    [
        "import subprocess",
        "from subprocess import run",
        "import multiprocessing.pool",
        "import sys\ncommand = [sys.executable, '-m', 'x']",
        "from sys import executable",
        "import os\nos.execv('/bin/sh', [])",
        "import os\nos.system('ls')",
        "from os import fork",
        "from concurrent.futures import ProcessPoolExecutor",
        "import concurrent.futures\nconcurrent.futures.ProcessPoolExecutor()",
        "import asyncio\nasyncio.create_subprocess_exec('ls')",
        "from importlib import import_module\nimport_module('runpy')",
        "import shutil\nshutil.which('cmake')",
    ],
)
def test_another_way_to_start_a_program_is_seen(text: str) -> None:
    assert list(starts_in(ast.parse(text)))


def test_every_module_says_what_it_is_for() -> None:
    assert [relative(path) for path in MODULES if not ast.get_docstring(tree_of(path))] == []


def test_no_source_file_is_long() -> None:
    """One file, one thought: whoever opens it reads it."""
    native = [path for kind in ("*.h", "*.cuh", "*.cpp", "*.cu") for path in (ROOT / "plugins").rglob(kind)]
    long = {relative(path): lines for path in [*MODULES, *native] if (lines := path.read_text().count("\n")) > 600}
    assert native and long == {}, "split it by what it is about"


def test_no_file_is_loaded_under_two_names() -> None:
    paths = [path.relative_to(GROUND if GROUND in path.parents else ROOT) for path in MODULES]
    names = [".".join(("trt_compress", *path.with_suffix("").parts)).removesuffix(".__init__") for path in paths]
    program = f"""
import importlib, json, os, sys
for name in {names!r}:
    importlib.import_module(name)
files = [(os.path.realpath(getattr(module, "__file__", None) or ""), name) for name, module in sys.modules.items()]
print(json.dumps([(file, name) for file, name in files if os.path.isfile(file) and name != "__main__"]))
"""
    command = [sys.executable, "-c", program]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    ours = {str(path) for path in MODULES}
    loaded = [(file, name) for file, name in json.loads(output) if file in ours]
    assert {name for _, name in loaded} >= set(names)
    assert [name for _, name in loaded if not f"{name}.".startswith("trt_compress.")] == []
    assert len({file for file, _ in loaded}) == len(loaded)


def test_no_two_classes_have_one_name() -> None:
    """One word for one thing: whoever reads a name in a message, a signature or a search finds what is meant."""
    places: dict[str, list[str]] = {}
    for path in MODULES:
        for node in tree_of(path).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(relative(path))
    assert {name: files for name, files in places.items() if len(files) > 1} == {}


@pytest.mark.parametrize("module", PUBLIC)
def test_what_is_public_is_pinned(module: str) -> None:
    exported = import_module(module)
    assert sorted(exported.__all__) == PUBLIC[module]
    assert all(hasattr(exported, name) for name in PUBLIC[module])


def test_files_of_a_bundle_are_read_in_one_way() -> None:
    """By `read`, `chunks`, `copy` and `open_file`, which check what they give; a path can lead to something else."""
    by_path = re.compile(r"\b(bundle|opened|session\.bundle|self\._bundle)\.(file\(|(path|root) / )")
    own = {GROUND / "format" / "bundle.py", ROOT / "export" / "bundle.py"}
    found = [relative(path) for path in MODULES if path not in own and by_path.search(path.read_text())]
    assert found == []


def test_messages_and_records_have_one_voice() -> None:
    """A name that is not known is refused by `suggest.not_known`; a record is written by `tools/bench/records.py`."""
    refuses = re.compile(r"is not known; (there (is|are)|give one of)|[Uu]nknown \w+ '\{")
    found = [relative(path) for path in MODULES if path.name != "suggest.py" and refuses.search(path.read_text())]
    assert found == [], "use trt_compress.suggest.not_known"
    hashes = [relative(path) for path in MODULES if re.search(r"\bhashlib\b", path.read_text())]
    assert hashes == ["src/trt_compress/digest.py"], "use trt_compress.digest"
    writes = re.compile(r"\bappend_line\(|rev-parse")
    found = [relative(path) for path in (ROOT / "tools").rglob("*.py") if writes.search(path.read_text())]
    assert sorted(found) == ["tools/bench/records.py", "tools/machine.py"], (
        "records are written, and the commit found, there"
    )
