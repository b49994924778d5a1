"""A library that somebody else could have put into the cache is not loaded, and the one that was checked is."""

import ctypes
import grp
import hashlib
import json
import os
import pwd
import random
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trt_compress.cache import ForeignError, cache_folder, make_own_folder, named_path, own_path, passed_over
from trt_compress.errors import PluginError
from trt_compress.plugins import library
from trt_compress.plugins.library import Absent, Library
from trt_compress.runtime import Session

IS_ROOT = os.geteuid() == 0
STRANGER = 12345


@pytest.fixture(autouse=True)
def one_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sources are not what is attacked, and reading them takes longer than all the rest."""
    monkeypatch.setattr(library, "source_hash", {kind: library.source_hash(kind) for kind in library.KINDS}.__getitem__)


def plant(cache: Path) -> Path:
    """A library and its description as a build would leave them, but for what is in it: it would not load."""
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = cache / "trt-compress" / "plugins" / f"onnxruntime-{library.source_hash('onnxruntime')}"
    for folder in (path.parent.parent, path.parent, path):
        folder.mkdir(mode=0o700)
    file = path / "libtrtc_onnxruntime.so"
    file.write_bytes(b"code of somebody")
    info = {
        "kind": "onnxruntime",
        "version": "0.1.0",
        "source_hash": library.source_hash("onnxruntime"),
        "operators": [],
        "sha256": hashlib.sha256(b"code of somebody").hexdigest(),
    }
    file.with_suffix(".json").write_text(json.dumps(info))
    for made in (file, file.with_suffix(".json")):
        made.chmod(0o644)
    return file


def own_group_is_private() -> bool:
    user, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(os.getegid())
    others = {entry.pw_name for entry in pwd.getpwall() if entry.pw_gid == group.gr_gid} | set(group.gr_mem)
    return user.pw_gid == group.gr_gid and group.gr_name == user.pw_name and others <= {user.pw_name}


# What is done to one part of the way, and whether the library may still be taken.
Flaw = Callable[[Path], bool]


def with_mode(bits: int) -> Flaw:
    def change(part: Path) -> bool:
        mode = stat.S_IMODE(part.stat().st_mode) | bits
        if part.is_file():
            mode &= ~stat.S_ISVTX
        part.chmod(mode)
        os.chown(part, -1, os.getegid())
        others = bool(mode & stat.S_IWOTH) or (bool(mode & stat.S_IWGRP) and not own_group_is_private())
        return not others or (part.is_dir() and bool(mode & stat.S_ISVTX))

    return change


def of_another(user: int, group: int, bits: int = 0) -> Flaw:
    def change(part: Path) -> bool:
        os.chown(part, user, group)
        part.chmod(stat.S_IMODE(part.stat().st_mode) | bits)
        return user in (-1, 0) and not bits

    return change


def nothing(part: Path) -> bool:
    return True


FLAWS: list[Flaw] = [
    nothing,
    *map(with_mode, (0o002, 0o022, 0o007, 0o020, 0o070, 0o1002, 0o1777, 0o2770, 0o055, 0o1000)),
    *([of_another(STRANGER, -1), of_another(-1, STRANGER, 0o020), of_another(-1, STRANGER)] if IS_ROOT else []),
]


def one_case(chance: random.Random, base: Path) -> tuple[Path, bool]:
    """A cache with one flaw somewhere, perhaps behind links; where it is, and whether its library may be taken."""
    real = base / "real" / "deep"
    file = plant(real)
    parts = [real.parent, real, *reversed(file.parents[:3]), file, file.with_suffix(".json")]
    given = real
    if chance.random() < 0.4:  # a link on the way, in a folder of its own
        links = base / "links"
        links.mkdir(mode=0o700)
        given = links / "cache"
        given.symlink_to(chance.choice([real, Path("../real/deep")]))
        parts.append(links)
    flaw, part = chance.choice(FLAWS), chance.choice(parts)
    allowed = flaw(part)
    if IS_ROOT and given != real and chance.random() < 0.3:
        os.lchown(given, STRANGER, -1)
        allowed = False
    return given, allowed


def test_only_what_nobody_else_could_have_written_is_taken(
    attack: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = attack.random(11)
    taken = refused = 0
    for number in range(attack.count(150, 6000)):
        base = tmp_path / str(number)
        base.mkdir(mode=0o700)
        given, allowed = one_case(chance, base)
        monkeypatch.setenv("XDG_CACHE_HOME", str(given))
        found = library.look("onnxruntime")
        assert isinstance(found, Library) == allowed, f"case {number}: {found}"
        if isinstance(found, Library):
            taken += 1
            assert str(found.path) == os.path.realpath(found.path)
        else:
            refused += 1
            assert found.foreign and found.reason.count("\n") == 0 and found.reason.endswith("."), found.reason
            with pytest.raises(PluginError, match="is not taken"):
                library.require("onnxruntime")
            with pytest.raises(PluginError, match="is not taken"):
                library.describe(library.library_path("onnxruntime"))
        shutil.rmtree(base)
    assert taken and refused
    attack.saw(taken=taken, refused=refused, foreign_taken=0)


def test_a_session_goes_on_without_it_and_says_so(
    exported: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file = plant(tmp_path / "shared")
    (tmp_path / "shared").chmod(0o777)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "shared"))
    with Session.open(exported()) as session:
        assert session.native is None
        reason = session.native_reason or ""
        assert "is not taken, as everybody may write to" in reason and "chmod go-w" in reason
        assert reason in caplog.text  # it is said, not only there to be asked for
    with pytest.raises(PluginError, match="everybody may write to"):
        Session.open(exported(), native=True)
    with pytest.raises(PluginError, match="everybody may write to"):
        Session.open(exported(), native=file)
    (tmp_path / "shared").chmod(0o755)
    with pytest.raises(PluginError, match="ONNX Runtime .* cannot load"):  # now it is the user's, and would be loaded
        Session.open(exported())


def test_an_empty_folder_of_all_is_just_not_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o777)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "shared"))
    found = library.look("onnxruntime")
    assert isinstance(found, Absent) and not found.foreign and "are not built for this version" in found.reason


def test_nothing_is_built_where_others_may_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trt_compress.plugins import build as building

    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    monkeypatch.setenv("XDG_CACHE_HOME", str(shared))
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("cmake", "g++"):
        (tools / tool).write_text("#!/bin/sh\nexit 1\n")
        (tools / tool).chmod(0o755)
    monkeypatch.setenv("PATH", str(tools))
    with pytest.raises(PluginError, match="everybody may write to"):
        building.build(only=("onnxruntime",))
    assert not list(shared.iterdir())


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o022, 0o077])
def test_a_folder_of_the_cache_is_for_its_user_alone(
    umask: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "new" / "cache"))
    before = os.umask(umask)
    try:
        made = make_own_folder(cache_folder() / "plugins")
    finally:
        os.umask(before)
    for folder in (made, made.parent, made.parent.parent, made.parent.parent.parent):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert own_path(made) == made


@pytest.mark.parametrize("given", ["cache", "./cache", "../cache", "~/.cache", " /cache"])
def test_a_relative_folder_is_passed_over(given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", given)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "trt-compress"
    assert passed_over() == f"XDG_CACHE_HOME='{given}' is passed over, as it is no absolute path."
    found = library.look("onnxruntime")
    assert isinstance(found, Absent) and not found.foreign and passed_over() in found.reason


def test_a_library_that_is_named_is_not_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bare name is the file in the current folder, as everywhere; a loader would look for it somewhere else."""
    mine = plant(tmp_path / "mine")
    monkeypatch.chdir(mine.parent)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / mine.name).write_bytes(b"other code")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(elsewhere))
    found = library.choose("onnxruntime", mine.name)
    assert isinstance(found, Library) and found.path == mine and found.path.is_absolute()
    (elsewhere / "here.so").symlink_to(mine)
    (elsewhere / "here.json").symlink_to(mine.with_suffix(".json"))
    found = library.choose("onnxruntime", elsewhere / "here.so")
    assert isinstance(found, Library) and found.path == mine


def test_kernels_are_loaded_by_their_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trt_compress.plugins.cuda_library import CudaLibrary

    asked: list[str] = []

    def load(name: str) -> None:
        asked.append(name)
        raise OSError("it is none")

    monkeypatch.setattr(ctypes, "CDLL", load)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PluginError, match="does not load"):
        CudaLibrary(Path("libtrtc_cuda.so"))
    assert asked == [str(tmp_path.resolve() / "libtrtc_cuda.so")]


def test_one_that_is_named_may_be_of_another_but_not_of_everybody(tmp_path: Path) -> None:
    file = plant(tmp_path / "theirs")
    if IS_ROOT:
        for part in (tmp_path / "theirs", *list(file.parents)[:3], file, file.with_suffix(".json")):
            os.chown(part, STRANGER, STRANGER)
            with pytest.raises(ForeignError, match=f"belongs to the user {STRANGER}"):
                own_path(file)
    assert named_path(file) == file and isinstance(library.choose("onnxruntime", file), Library)
    for part in (file, file.with_suffix(".json"), file.parent, tmp_path / "theirs"):
        mode = stat.S_IMODE(part.stat().st_mode)
        part.chmod(mode | 0o002)
        with pytest.raises(ForeignError, match="everybody may write to"):
            library.choose("onnxruntime", file)
        part.chmod(mode)


@pytest.mark.parametrize("what", ["a pipe", "a device", "a folder", "a link to itself", "too large"])
def test_a_description_that_is_no_file(what: str, tmp_path: Path) -> None:
    file = plant(tmp_path / "mine")
    beside = file.with_suffix(".json")
    beside.unlink()
    if what == "a pipe":
        os.mkfifo(beside, 0o600)
    elif what == "a device":
        beside.symlink_to("/dev/zero")
    elif what == "a folder":
        beside.mkdir(mode=0o700)
    elif what == "a link to itself":
        beside.symlink_to(beside.name)
    else:
        with beside.open("wb") as written:
            written.truncate(1 << 30)
        beside.chmod(0o600)
    with pytest.raises(PluginError, match="does not describe a library|everybody may write") as caught:
        library.choose("onnxruntime", file)
    assert "\n" not in caught.value.message


WRONG: list[Any] = [None, [], {}, "", "x", 1, -1.5, True, [None], [{}], {"op_type": 1}, [[]], [1, "2"]]


def test_a_description_of_any_form_is_one_sentence(attack: Any, tmp_path: Path) -> None:
    chance = attack.random(12)
    file = plant(tmp_path / "mine")
    beside = file.with_suffix(".json")
    good = json.loads(beside.read_text()) | {"sms": [90], "ptx": 90, "tensorrt": "10.3", "cpu_features": []}
    refused = 0
    for _ in range(attack.count(200, 20000)):
        changed = dict(good)
        for name in chance.sample(sorted(good), chance.randint(1, 3)):
            if chance.random() < 0.2:
                del changed[name]
            else:
                changed[name] = chance.choice(WRONG)
        beside.write_text(chance.choice([json.dumps(changed), json.dumps([changed]), json.dumps(changed)[:-2]]))
        try:
            found = library.check(file, "onnxruntime", tensorrt="10.3", sms=[90])
            assert isinstance(found.operators, tuple)
        except PluginError as error:
            refused += 1
            assert error.message.endswith(".") and "\n" not in error.message
    assert refused
    attack.saw(foreign_errors=0)
