"""Imports go one way, every module has one name and says what it is for, and what is public is pinned."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("export", "models", "plugins", "runtime", "tools")
MODULES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
GROUND = ROOT / "src" / "trt_compress"
MODULES += sorted([*GROUND.glob("*.py"), *(GROUND / "methods").rglob("*.py")])

ALLOWED = {
    "tools": ("tools", "export", "models", "plugins", "runtime"),
    "export": (
        "export",
        "models",
        "plugins",
        "runtime.manifest",
        "runtime.tokens",
        "runtime.bundle",
        "runtime.ort",
        "runtime.onnx_nodes",
    ),
    "models": ("models", "plugins", "runtime.detection_metric"),
    "plugins": ("plugins",),
    "runtime": ("runtime", "plugins.library"),
}
FOR_ALL = (
    "children",
    "errors",
    "files",
    "foreign",
    "methods",
    "model_file",
    "model_name",
    "paths",
    "strays",
    "suggest",
    "__version__",
)

PUBLIC = {
    "trt_compress.runtime": ["Bundle", "Manifest", "Session"],
}


def imports_of(path: Path) -> Iterator[str]:
    """What a file imports of this package, lazily or not: `runtime.manifest.Manifest`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name.removeprefix("trt_compress.") for name in names if name.startswith("trt_compress."))


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_imports_go_one_way(path: Path) -> None:
    folder = path.relative_to(ROOT).parts[0]
    public = FOLDERS if path.parent == GROUND and path.stem.startswith("__") else ()  # the doors; loaded on first use
    allowed = (*ALLOWED.get(folder, public), *FOR_ALL)
    wrong = [name for name in imports_of(path) if not any(f"{name}.".startswith(f"{start}.") for start in allowed)]
    assert wrong == [], f"{relative(path)} may import {', '.join(allowed)} of trt_compress"


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_every_module_says_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), f"{relative(path)} has no docstring"


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


@pytest.mark.parametrize("module", PUBLIC)
def test_what_is_public_is_pinned(module: str) -> None:
    exported = import_module(module)
    assert sorted(exported.__all__) == PUBLIC[module]
    assert all(hasattr(exported, name) for name in PUBLIC[module])
