"""The wheel holds the package, all of it and nothing else; what stands in several places says the same."""

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from trt_compress import __version__
from trt_compress.tools.machine import PACKAGES

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"export", "models", "plugins", "runtime", "tools"}
PLANTED = {"plugins/token_merge/kernel.cu", "plugins/common/launch.cuh", "models/zoo/digits_vit/planted.safetensors"}
NOT_SHIPPED = shutil.ignore_patterns(".*", "__pycache__", "*.pyc", "_lib", "*.engine", "dist", "out")


@pytest.fixture(scope="module")
def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, with files of the kinds that must travel too."""
    copy = tmp_path_factory.mktemp("packaging") / "tree"
    shutil.copytree(ROOT, copy, symlinks=True, ignore=NOT_SHIPPED)
    for name in PLANTED:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes(b"planted")
    return copy


@pytest.fixture(scope="module")
def wheel(tree: Path) -> zipfile.ZipFile:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tree.parent)]
    subprocess.run(build, cwd=tree, check=True, capture_output=True)
    return zipfile.ZipFile(next(tree.parent.glob("*.whl")))


def test_nothing_generic_lands_in_site_packages(wheel: zipfile.ZipFile) -> None:
    assert {name.split("/")[0] for name in wheel.namelist()} == {
        "trt_compress",
        f"trt_compress-{__version__}.dist-info",
    }


def test_the_wheel_is_whole_and_holds_no_tests(wheel: zipfile.ZipFile, tree: Path) -> None:
    folders = [tree / folder for folder in FOLDERS] + [tree / "src" / "trt_compress"]
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    wanted = {
        str(
            Path("trt_compress")
            / path.relative_to(tree / "src" / "trt_compress" if tree / "src" in path.parents else tree)
        )
        for path in files
        if not any((tree / "src" / "trt_compress" / folder) in path.parents for folder in FOLDERS)
    }
    held = {name for name in wheel.namelist() if name.startswith("trt_compress/")}
    assert held == wanted
    assert {f"trt_compress/{name}" for name in PLANTED} <= held
    assert "trt_compress/py.typed" in held


def test_the_wheel_says_what_it_is(wheel: zipfile.ZipFile) -> None:
    folder = f"trt_compress-{__version__}.dist-info"
    metadata = wheel.read(f"{folder}/METADATA").decode()
    assert "License-Expression: Apache-2.0" in metadata and "Requires-Python: >=3.10" in metadata
    assert f"{folder}/licenses/LICENSE" in wheel.namelist()
    assert "trt-compress = trt_compress.__main__:main" in wheel.read(f"{folder}/entry_points.txt").decode()


def test_the_five_names_agree(pyproject: dict[str, Any]) -> None:
    links = {path.name: path for path in (ROOT / "src" / "trt_compress").iterdir() if path.is_symlink()}
    assert {name: path.readlink() for name, path in links.items()} == {name: Path(f"../../{name}") for name in FOLDERS}
    tool = pyproject["tool"]
    build = tool["hatch"]["build"]
    assert {name for name in build["only-include"] if "/" not in name} == FOLDERS
    assert build["targets"]["wheel"]["sources"] == {
        "src/trt_compress": "trt_compress",
        **{name: f"trt_compress/{name}" for name in FOLDERS},
    }
    assert set(tool["ruff"]["lint"]["flake8-tidy-imports"]["banned-api"]) == FOLDERS
    assert {Path(name).name for name in tool["pyright"]["include"]} == FOLDERS | {"tests"}


def test_the_extras_are_what_doctor_looks_for(pyproject: dict[str, Any]) -> None:
    project = pyproject["project"]
    extras = {"base": project["dependencies"], **project["optional-dependencies"]}
    wanted = {extra: _names(extras[extra]) for extra in extras if extra != "dev"}
    assert {extra: set(names) for extra, names in PACKAGES.items()} == wanted


def test_every_dependency_has_an_upper_bound_on_its_major_version(pyproject: dict[str, Any]) -> None:
    project = pyproject["project"]
    extras = {"base": project["dependencies"], **project["optional-dependencies"]}
    open_ended = [need for extra, needs in extras.items() if extra != "dev" for need in needs if "<" not in need]
    assert open_ended == []


def test_the_constraints_pin_every_direct_dependency(pyproject: dict[str, Any]) -> None:
    pinned = set(re.findall(r"^([\w-]+)==", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE))
    project = pyproject["project"]
    extras = {"base": project["dependencies"], **project["optional-dependencies"]}
    of_nvidia = ("gpu", "cuda")
    direct = {name for extra, needs in extras.items() if extra not in of_nvidia for name in _names(needs)}
    assert direct - pinned == set()


def test_the_changelog_has_this_version() -> None:
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[0] == __version__


def _names(needs: list[str]) -> set[str]:
    """Names of the dependencies that every Python version has."""
    found = [re.match(r"[\w-]+", need) for need in needs if "python_version" not in need]
    return {match.group() for match in found if match}
