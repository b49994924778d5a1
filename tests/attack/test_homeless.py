"""A session needs no home: it may be missing, closed, a file, relative, or the user unknown to the system."""

import json
import os
import pwd
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

from tests.runtime.test_states import Tensors, bundle_of, graph_of
from trt_compress.cache import CacheError, cache_folder, passed_over
from trt_compress.errors import PluginError, UnsupportedError
from trt_compress.format.manifest import OperatorUse
from trt_compress.plugins import library
from trt_compress.plugins.library import Absent
from trt_compress.runtime import Session
from trt_compress.strays import temporary_folder

ROOT = Path(__file__).resolve().parents[2]
SEARCHED = os.pathsep.join(filter(None, (str(ROOT / "src"), os.environ.get("PYTHONPATH"))))
STRANGER = 12345


@pytest.fixture(scope="module")
def open_bundle() -> Iterator[Path]:
    """A bundle where every user can read it: one operator, of which there is a native form."""
    options: dict[str, Any] = {"num_kept": 2, "forced": [-1], "order": 0, "remainder": 0}
    made = ["kept", "index", "rest"]
    node = helper.make_node("TrtcTokenSelect", ["x", "score"], made, name="select", domain="trt_compress", **options)
    inputs: Tensors = {"x": ("float32", ("batch", 4, 3)), "score": ("float32", ("batch", 4))}
    graph = graph_of("model", [node], inputs, {"kept": ("float32", ("batch", 2, 3))})
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        place.chmod(0o755)
        used = OperatorUse(
            name="TokenSelect", op_type=node.op_type, domain=node.domain, version=1, nodes=1, lowering="function"
        )
        bundle_of(place / "bundle", [graph], operators=(used,))
        for path in (place / "bundle", *(place / "bundle").rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        yield place / "bundle"


def homes(folder: Path) -> dict[str, dict[str, str]]:
    """Environments in which there is no cache that could be used, by what is wrong."""
    (folder / "file").write_text("")
    (folder / "loop").symlink_to("loop")
    (folder / "dangling").symlink_to("nowhere")
    closed = folder / "closed"
    closed.mkdir(mode=0o755)
    (closed / ".cache").mkdir()
    closed.chmod(0o000)
    where = {
        "missing": folder / "missing",
        "a file": folder / "file",
        "a link to itself": folder / "loop",
        "a link to nothing": folder / "dangling",
        "closed": closed,
        "a device": Path("/dev/null"),
        "a system file": Path("/proc/self/status"),
        "a name that is too long": folder / ("x" * 300),
        "a path that is too long": Path("/" + "x/" * 5000),
    }
    found = {f"HOME is {what}": {"HOME": str(path)} for what, path in where.items()}
    found |= {f"XDG_CACHE_HOME is {what}": {"XDG_CACHE_HOME": str(path)} for what, path in where.items()}
    for relative in ("cache", "./x", "~", ""):
        found[f"relative '{relative}'"] = {"HOME": str(folder / "missing"), "XDG_CACHE_HOME": relative}
    return found


def in_place(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


def check_reason(reason: str | None) -> None:
    assert reason and reason.endswith(".") and "\n" not in reason
    advice = ("set XDG_CACHE_HOME", "plugins build", "let this user read the package")  # a checkout in a closed folder
    assert "not built" in reason and any(words in reason for words in advice), reason


def test_a_session_opens_wherever_home_is(
    attack: Any, open_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(library, "source_hash", lambda kind: "0123456789abcdef")  # takes longer than all the rest
    cases = homes(tmp_path)
    given = {"x": np.zeros((1, 4, 3), np.float32), "score": np.zeros((1, 4), np.float32)}
    try:
        for what, environment in cases.items():
            in_place(monkeypatch, environment)
            assert library.installed() == () or "closed" in what, what
            with Session.open(open_bundle, check_hashes=False) as session:
                assert session.native is None, what
                check_reason(session.native_reason)
                if what == "HOME is missing":
                    assert session.run(given)["kept"].shape == (1, 2, 3)
            with pytest.raises(PluginError):
                library.require("onnxruntime")
        assert not list(tmp_path.glob("cache")) and not (tmp_path / "missing").exists()
    finally:
        (tmp_path / "closed").chmod(0o700)
    attack.saw(cases=len(cases), failed=0)


def test_a_user_that_the_system_does_not_know(
    open_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(user: int) -> Any:
        raise KeyError(f"getpwuid(): uid not found: {user}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for given in ({}, {"HOME": "here"}, {"HOME": "", "XDG_CACHE_HOME": "cache"}):
        in_place(monkeypatch, given)
        with pytest.raises(
            CacheError, match="There is no home folder .*; set XDG_CACHE_HOME to a folder that may be w"
        ):
            cache_folder()
        found = library.look("onnxruntime")
        assert isinstance(found, Absent) and not found.foreign
        check_reason(found.reason)
        assert all(f"{name}='{value}'" in passed_over() for name, value in given.items() if value)
        with Session.open(open_bundle, check_hashes=False) as session:
            assert session.native_reason == found.reason


def test_native_operators_that_are_not_asked_for(open_bundle: Path) -> None:
    with Session.open(open_bundle, native=False) as session:
        assert session.native_reason == "The custom operators for ONNX Runtime on the CPU were not asked for."


PROGRAM = """
import json, os, sys
import numpy, onnxruntime
from trt_compress.runtime import Session
from trt_compress.plugins.library import installed
from trt_compress.tools import doctor
bundle, user, cases = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
given = {"x": numpy.zeros((1, 4, 3), numpy.float32), "score": numpy.zeros((1, 4), numpy.float32)}
with Session.open(bundle, native=False) as session:  # everything is imported while it can be
    session.run(given)
list(doctor._native())
if user:
    os.setgroups([]); os.setgid(user); os.setuid(user)
said = {}
for what, environment in cases.items():
    for name in ("HOME", "XDG_CACHE_HOME"):
        os.environ.pop(name, None)
    os.environ.update(environment)
    with Session.open(bundle) as session:
        session.run(given)
        rows = [check.found for check in doctor._native()]
        said[what] = [session.native is None, session.native_reason, len(installed()), rows]
print(json.dumps(said))
"""


def test_a_bare_user_whose_home_may_not_be_read(open_bundle: Path, tmp_path: Path) -> None:
    """As a container with a number for a user; where the tests do not run as root, their own user stands for it."""
    closed = tmp_path / "closed"
    (closed / ".cache" / "trt-compress" / "plugins").mkdir(parents=True)
    closed.chmod(0o000)
    cases = {
        "nothing is set": {},
        "closed": {"HOME": str(closed)},
        "closed cache": {"HOME": "/", "XDG_CACHE_HOME": str(closed / ".cache")},
        "missing": {"HOME": "/no/such/home"},
    }
    user = STRANGER if os.geteuid() == 0 else 0
    if not user:
        cases.pop("nothing is set")  # its own home is known, and may have the libraries
    command = [sys.executable, "-c", PROGRAM, str(open_bundle), str(user), json.dumps(cases)]
    environment = {**os.environ, "PYTHONPATH": SEARCHED}
    try:
        done = subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, timeout=300)
    finally:
        closed.chmod(0o700)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    said = json.loads(done.stdout)
    assert set(said) == set(cases)
    for absent, reason, installed, rows in said.values():
        assert absent and installed == 0 and "not built" in rows
        check_reason(reason)
    package = Path(library.__file__).resolve().parent
    if not all(folder.stat().st_mode & 0o005 == 0o005 for folder in (package, *package.parents)):
        return  # a checkout in a folder of one's own, which this user may not read either: that is said first
    assert "may not be looked at (Permission denied)" in said["closed"][1]
    if user:
        assert "There is no home folder" in said["nothing is set"][1]


def test_without_a_folder_for_temporary_files(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    with pytest.raises(UnsupportedError, match="no folder for temporary files that may be written; set TMPDIR to one"):
        with temporary_folder("build"):
            pass


def test_the_session_writes_nothing_into_its_home(open_bundle: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    program = f"from trt_compress.runtime import Session; Session.open({str(open_bundle)!r}).close()"
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": SEARCHED, "HOME": str(home)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    assert list(home.rglob("*")) == [] and stat.S_ISDIR(home.stat().st_mode)
