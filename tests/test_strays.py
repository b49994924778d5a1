"""What a killed run left is removed by the next one, and what a living one holds is not touched."""

import errno
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from trt_compress import locks, strays
from trt_compress.children import run_python

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("src/trt_compress", "export", "models", "plugins", "runtime", "tools")
PREFIX = """
import os, sys, time
from pathlib import Path
from trt_compress import locks, strays
place = Path(sys.argv[1])
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@contextmanager
def child(program: str, place: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that runs until its program has said something; killed at the end."""
    with subprocess.Popen(
        [sys.executable, "-c", PREFIX + textwrap.dedent(program), str(place)],
        env={**os.environ, "TMPDIR": str(place)},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None and process.stdout.readline()
        try:
            yield process
        finally:
            process.kill()


HOLD_TEMPORARY = """
    with strays.temporary_folder("build") as folder:
        (folder / "model.onnx").write_bytes(b"half")
        print("made", flush=True)
        time.sleep(60)
"""


def test_a_temporary_folder_is_ours_alone_and_gone_afterwards(temporary: Path) -> None:
    with strays.temporary_folder("build") as folder:
        assert re.fullmatch(r"trt-compress-build-[0-9a-f]{16}", folder.name) and folder.parent == temporary
        assert folder.stat().st_mode & 0o777 == 0o700
        (folder / "deep/er").mkdir(parents=True)
        assert strays.locks_of(folder / "deep") == strays.locks_of(folder) != ()
    assert names(temporary) == [] and strays.locks_of(folder) == ()
    with pytest.raises(KeyboardInterrupt), strays.temporary_folder("build") as folder:
        raise KeyboardInterrupt
    assert names(temporary) == []


def test_a_folder_of_a_killed_run_is_removed_and_that_of_a_living_one_is_not(temporary: Path) -> None:
    with child(HOLD_TEMPORARY, temporary):
        (held,) = names(temporary)
        with strays.temporary_folder("export"):
            assert held in names(temporary)
    assert names(temporary) == [held]
    with strays.temporary_folder("export") as own:
        assert names(temporary) == [own.name]


def test_what_is_not_by_our_pattern_or_not_ours_stays(temporary: Path) -> None:
    others = ["trt-compress-build-ab12cd_9", "trt-compress-build-0123456789abcdef.txt", "tmp0123456789abcdef"]
    for name in others:
        (temporary / name).mkdir()
    (temporary / "trt-compress-build-00000000000000aa").symlink_to(temporary / others[0])
    foreign = temporary / "trt-compress-build-00000000000000bb"
    foreign.mkdir()
    if os.geteuid() == 0:
        os.chown(foreign, 65534, 65534)
    else:
        foreign.rmdir()
    before = names(temporary)
    with strays.temporary_folder("build"):
        pass
    assert names(temporary) == before


def test_a_child_that_outlives_its_parent_keeps_the_folder(temporary: Path) -> None:
    """As `children.run_python` starts it: with the lock of the folder that it works in."""
    program = """
    import subprocess
    with strays.temporary_folder("build") as folder:
        code = "import time; time.sleep(60)"
        grandchild = subprocess.Popen([sys.executable, "-c", code], pass_fds=strays.locks_of(folder), stdout=2)
        print(grandchild.pid, flush=True)
        os.kill(os.getpid(), 9)
    """
    with subprocess.Popen(
        [sys.executable, "-c", PREFIX + textwrap.dedent(program), str(temporary)],
        env={**os.environ, "TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        number = int(process.stdout.readline())
        process.wait()
    try:
        (held,) = names(temporary)
        with strays.temporary_folder("build"):
            assert held in names(temporary)
    finally:
        os.kill(number, 9)
    while os.path.exists(f"/proc/{number}/fd/0"):
        pass
    with strays.temporary_folder("build") as own:
        assert names(temporary) == [own.name]


def test_run_python_passes_the_lock_on(temporary: Path) -> None:
    with strays.temporary_folder("build") as folder:
        (lock,) = strays.locks_of(folder)
        (folder / "here").mkdir()
        done = run_python("trt_compress.tools.cli.main", ["--version"], folder=folder / "here", pass_fds=())
        assert done.returncode == 0
        with open(f"/proc/self/fdinfo/{lock}", encoding="ascii") as info:
            assert "FLOCK" in info.read()


def test_nothing_of_ours_locks_in_another_way() -> None:
    sources = [path for room in ROOMS for path in (ROOT / room).rglob("*.py") if "flock" in path.read_text("utf-8")]
    using = [path for path in sources if re.search(r"\bfcntl\b|\blockf\b", path.read_text("utf-8"))]
    assert [str(path.relative_to(ROOT)) for path in using] == ["src/trt_compress/locks.py"]


def test_nothing_of_ours_makes_a_temporary_folder_in_another_way() -> None:
    """What `tempfile` makes stays behind when its process is killed, and nobody can tell whose it is."""
    made = re.compile(r"\b(TemporaryDirectory|mkdtemp|mkstemp|NamedTemporaryFile|TemporaryFile)\b")
    sources = [path for room in ROOMS for path in (ROOT / room).rglob("*.py")]
    assert len(sources) > 100
    assert [str(path) for path in sources if made.search(path.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize("name", ["n" * 255, "ü" * 127, "a" + "語" * 84])
def test_names_as_long_as_they_may_be(tmp_path: Path, name: str) -> None:
    """255 bytes, of letters that take one, two and three; another of the same beginning is not taken for it."""
    target, other = tmp_path / name, tmp_path / (name[:-1] + "b")
    other.mkdir()
    aside = strays.beside(other, "old")
    other.rename(aside)
    for content in ("one", "two"):
        with strays.staged_folder(target) as staged:
            (staged / "file").write_text(content)
            strays.put_in_place(staged, target)
        assert (target / "file").read_text() == content and names(tmp_path) == sorted([name, aside.name])
    assert strays.put_back(other) and names(tmp_path) == sorted([name, other.name])


# ---- beside an output -----------------------------------------------------------------------------------------------


def test_a_staged_folder_takes_the_place_of_another_whole(tmp_path: Path) -> None:
    target = tmp_path / "target"
    for content in ("one", "two"):
        with strays.staged_folder(target) as staged:
            (staged / "file").write_text(content)
            assert re.fullmatch(r"\.target\.[0-9a-f]{16}\.new", staged.name)
            strays.put_in_place(staged, target)
        assert (target / "file").read_text() == content and names(tmp_path) == ["target"]


def test_folders_above_are_made_and_removed_where_nothing_came(tmp_path: Path) -> None:
    with strays.staged_folder(tmp_path / "new/above/target") as staged:
        assert staged.parent == tmp_path / "new/above"
    assert names(tmp_path) == []


@pytest.fixture
def without_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(one: Path, other: Path) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(strays, "exchange", refuse)


BY_STEPS = """
    def refuse(one, other):
        raise OSError(22, "no")
    strays.exchange = refuse
    rename, calls = os.rename, []
    def counted(*args):
        rename(*args)
        calls.append(args)
        if len(calls) == int(place.name[-1]):
            print("now", flush=True)
            time.sleep(60)
    os.rename = counted
    with strays.staged_folder(place / "target") as staged:
        (staged / "file").write_text("new")
        with locks.locked(place / "target"):
            strays.put_in_place(staged, place / "target")
"""


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_kill_between_two_renames_is_healed(tmp_path: Path, step: int) -> None:
    place, target = tmp_path / str(step), tmp_path / str(step) / "target"
    target.mkdir(parents=True)
    (target / "file").write_text("old")
    with child(BY_STEPS, place):
        there = step > 1
        assert target.exists() == there == strays.put_back(target, patience=0), "its owner lives, and goes on"
    assert strays.put_back(target)
    assert (target / "file").read_text() == ("old" if step == 1 else "new")
    strays.remove_strays(target)
    assert names(place) == ["target"]


@pytest.mark.usefixtures("without_exchange")
@pytest.mark.parametrize("fails", [1, 2, 3])
@pytest.mark.parametrize("late", [False, True])
def test_a_failure_between_two_renames_leaves_old_or_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: int, late: bool
) -> None:
    target, rename, calls = tmp_path / "target", os.rename, []
    target.mkdir()
    (target / "file").write_text("old")

    def failing(*places: Path) -> None:
        calls.append(places)
        if late or len(calls) != fails:
            rename(*places)
        if len(calls) == fails:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), strays.staged_folder(target) as staged:
        (staged / "file").write_text("new")
        monkeypatch.setattr(os, "rename", failing)
        strays.put_in_place(staged, target)
    assert names(tmp_path) == ["target"]
    assert (target / "file").read_text() in ("old", "new")


def test_what_may_not_be_put_back_is_named(tmp_path: Path) -> None:
    assert not strays.put_back(tmp_path / "nothing")
    place, user = Path(tempfile.mkdtemp()), os.geteuid()
    (place / ".target.0123456789abcdef.old").mkdir()
    place.chmod(0o555)
    if user == 0:  # root may write anywhere, so be somebody else for a moment
        os.seteuid(65534)
    try:
        with pytest.raises(PermissionError) as caught:
            strays.put_back(place / "target")
    finally:
        os.seteuid(user)
        place.chmod(0o755)
        shutil.rmtree(place)
    assert caught.value.filename == str(place / ".target.0123456789abcdef.old")


# ---- one change at a time -------------------------------------------------------------------------------------------


def test_a_folder_is_changed_by_one_process_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "_HOW_LONG_TO_WAIT", 0.2)
    program = """
    with locks.locked(place):
        print("locked", flush=True)
        time.sleep(60)
    """
    with child(program, tmp_path), pytest.raises(TimeoutError, match="another process is changing it"):
        with locks.locked(tmp_path):
            pass
    with locks.locked(tmp_path):
        pass


@pytest.fixture
def on_nfs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "_file_system", lambda descriptor: "nfs4")


def test_the_file_system_of_a_descriptor_is_known() -> None:
    with open("/proc/self/mountinfo", "rb") as file:
        assert locks._file_system(file.fileno()) == "proc"


@pytest.mark.usefixtures("on_nfs")
def test_where_a_folder_cannot_be_locked_a_file_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On NFS the lock of a folder is known to one machine alone, and that of a file to all."""
    monkeypatch.setattr(locks, "_HOW_LONG_TO_WAIT", 0.1)
    file = tmp_path / "manifest.json"
    file.touch()
    with locks.locked(tmp_path, [file]):
        with pytest.raises(TimeoutError), locks.locked(tmp_path, [file]):
            pass


@pytest.mark.usefixtures("on_nfs")
def test_what_another_machine_may_hold_is_nobodys_stray(temporary: Path) -> None:
    theirs = temporary / f"trt-compress-build-{'0' * 16}", temporary / f".target.{'0' * 16}.new"
    for folder in theirs:
        folder.mkdir()
    with strays.temporary_folder("export"), strays.staged_folder(temporary / "target") as staged:
        strays.remove_strays(temporary / "target")
        assert staged.exists()
    assert names(temporary) == sorted(folder.name for folder in theirs)


@pytest.mark.usefixtures("on_nfs")
def test_what_another_machine_may_be_replacing_is_put_back_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strays, "_HEALED_WITHIN", 0.2)
    (tmp_path / f".target.{'0' * 16}.old").mkdir()
    began = time.monotonic()
    strays.remove_strays(tmp_path / "target")
    assert time.monotonic() - began >= 0.2 and names(tmp_path) == ["target"]
