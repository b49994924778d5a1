"""Files are opened as what they are said to be, and written whole or not at all."""

import errno
import fcntl
import os
import resource
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from trt_compress import files
from trt_compress.files import (
    GrowingFile,
    append_line,
    check_regular,
    descriptor_of,
    open_regular,
    read_regular,
    write_whole,
)


def _special(kind: str, folder: Path) -> Path:
    place = folder / "special"
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(place))
    elif kind == "folder":
        place.mkdir()
    elif kind == "device":
        place.symlink_to("/dev/zero")
    elif kind == "dangling link":
        place.symlink_to("nowhere")
    else:
        place.symlink_to(place)
    return place


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("pipe", "it is a pipe, not a file"),
        ("socket", "it is a socket, not a file"),
        ("folder", "Is a directory"),
        ("device", "it is a device, not a file"),
        ("dangling link", "No such file or directory"),
        ("loop", "Too many levels of symbolic links"),
    ],
)
def test_what_is_no_file_is_not_opened(tmp_path: Path, kind: str, said: str) -> None:
    place = _special(kind, tmp_path)
    for tried in (open_regular, read_regular, check_regular):
        with pytest.raises(OSError) as caught:
            tried(place)
        assert caught.value.strerror == said


def test_a_link_out_of_a_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "bundle" / "below").mkdir(parents=True)
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "bundle" / "own").write_text("own")
    (tmp_path / "bundle" / "below" / "inner").symlink_to("../own")
    assert read_regular(tmp_path / "bundle" / "below" / "inner", inside=tmp_path / "bundle") == b"own"
    (tmp_path / "bundle" / "outer").symlink_to("../secret")
    (tmp_path / "bundle" / "away").symlink_to(tmp_path)
    (tmp_path / "shown").symlink_to(tmp_path / "bundle")
    for name in ("outer", "away/secret", "../secret"):
        with pytest.raises(OSError, match="it is a link out of"):
            read_regular(tmp_path / "bundle" / name, inside=tmp_path / "bundle")
    assert read_regular(tmp_path / "shown" / "own", inside=tmp_path / "shown") == b"own"


def test_no_more_is_read_than_was_stated(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    assert read_regular(tmp_path / "file", limit=5) == b"12345"
    with pytest.raises(OSError, match="it has more than 4 bytes"):
        read_regular(tmp_path / "file", limit=4)


def test_a_file_is_replaced_as_it_was(tmp_path: Path) -> None:
    place, link, second = tmp_path / "file", tmp_path / "link", tmp_path / "second"
    place.write_text("old")
    place.chmod(0o604)
    link.symlink_to("file")
    os.link(place, second)
    write_whole(link, "new ü")
    assert link.is_symlink() and place.read_bytes() == "new ü".encode()
    assert stat.S_IMODE(place.stat().st_mode) == 0o604
    assert second.read_text() == "old"  # the other name keeps the old content
    link.unlink()
    link.symlink_to("not yet")
    write_whole(link, b"there")
    assert (tmp_path / "not yet").read_text() == "there"
    before = os.umask(0o027)
    try:
        write_whole(tmp_path / "masked", "")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "masked").stat().st_mode) == 0o640
    for long in ("x" * 255, "ü" * 127):
        write_whole(tmp_path / long, long)
        assert (tmp_path / long).read_text() == long
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_what_cannot_be_written_is_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("old")
    for name, number in (
        ("folder", errno.EISDIR),
        ("file/below", errno.ENOTDIR),
        ("no/file", errno.ENOENT),
        ("x" * 256, errno.ENAMETOOLONG),
    ):
        with pytest.raises(OSError) as caught:
            write_whole(tmp_path / name, "new")
        assert caught.value.errno == number
    with _files_up_to(1000), pytest.raises(OSError) as caught:
        write_whole(tmp_path / "file", b"x" * 2000)
    assert caught.value.errno == errno.EFBIG
    with pytest.raises(OSError, match="No space left"):
        write_whole(Path("/dev/full"), "new")
    assert (tmp_path / "file").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.skipif(os.geteuid() != 0, reason="another user's file needs root")
def test_a_file_keeps_its_owner(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    os.chown(tmp_path / "file", 1234, 4321)
    write_whole(tmp_path / "file", "new")
    status = (tmp_path / "file").stat()
    assert (status.st_uid, status.st_gid, status.st_size) == (1234, 4321, 3)


def test_a_file_in_a_folder_that_takes_no_other_is_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container that has one file of the host."""

    def busy(source: object, target: object) -> None:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    monkeypatch.setattr(os, "replace", busy)
    (tmp_path / "file").write_text("the old text")
    for text in ("new", "a text that is longer than the old one"):
        write_whole(tmp_path / "file", text)
        assert (tmp_path / "file").read_text() == text
    with _files_up_to(1000), pytest.raises(OSError):
        write_whole(tmp_path / "file", "x" * 2000)
    assert (tmp_path / "file").read_text() == text and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(OSError):
        write_whole(tmp_path / "new", text)
    assert len(list(tmp_path.iterdir())) == 1


def test_drafts_of_killed_processes_are_removed_and_no_others(tmp_path: Path) -> None:
    (tmp_path / ".trtc-0123456789abcdef.new").touch()
    (tmp_path / ".trtc-0123456789abcdef.old").touch()
    (tmp_path / ".trtc-fedcba9876543210.new").symlink_to("result")
    held = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, 2); print(1, flush=True); sys.stdin.read()"
    own = tmp_path / ".trtc-00000000000000ff.new"
    with subprocess.Popen(
        [sys.executable, "-c", held, str(own)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout is not None and writer.stdout.readline()
        write_whole(tmp_path / "result", "new")
        writer.communicate()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [".trtc-00000000000000ff.new", ".trtc-0123456789abcdef.old", ".trtc-fedcba9876543210.new", "result"]


def test_many_write_at_once_and_each_file_is_whole(tmp_path: Path) -> None:
    """Nobody takes the draft of another for a stray."""
    program = (
        "import sys; from pathlib import Path; from trt_compress.files import write_whole\n"
        "for number in range(150): write_whole(Path(sys.argv[1]), sys.argv[2] * 5000)"
    )
    many = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "file"), letter]) for letter in "abcd"]
    assert [one.wait() for one in many] == [0, 0, 0, 0]
    assert (tmp_path / "file").read_text() in {letter * 5000 for letter in "abcd"}
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_pipe_is_written_to_and_one_without_a_reader_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for tried in (lambda: write_whole(tmp_path / "pipe", "new"), lambda: GrowingFile(tmp_path / "pipe")):
        with pytest.raises(OSError, match="no program reads from it"):
            tried()
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_whole(tmp_path / "pipe", "new")
    with GrowingFile(tmp_path / "pipe") as file:
        file.write(b"er")
    append_line(tmp_path / "pipe", "line")
    assert os.read(reader, 100) == b"newerline\n" and stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    os.close(reader)


@pytest.mark.parametrize("way", ["growing", "whole"])
def test_a_pipe_that_does_not_block_is_waited_for(way: str) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    data, read = b"x" * 1_000_000, bytearray()

    def read_late() -> None:
        time.sleep(0.3)
        while block := os.read(reader, 1 << 16):
            read.extend(block)

    slow = threading.Thread(target=read_late)
    slow.start()
    before = time.thread_time()
    path = Path(f"/dev/fd/{writer}")
    try:
        if way == "whole":
            write_whole(path, data)
        else:
            with GrowingFile(path) as file:
                file.write(data)
        spent = time.thread_time() - before
    finally:
        os.close(writer)
        slow.join()
        os.close(reader)
    assert spent < 0.1  # it waits, and does not ask again and again
    assert read == data


def test_stdout_is_continued_and_not_replaced(tmp_path: Path) -> None:
    program = """
from pathlib import Path
from trt_compress.files import GrowingFile, append_line, descriptor_of, write_whole
print("before")
write_whole(Path("/dev/stdout"), "whole\\n")
append_line(Path("/proc/self/fd/1"), "line")
with GrowingFile("/dev/fd/1") as file:
    file.begin()
    file.write(b"grown\\n")
print(descriptor_of(Path("/dev/stdout")), descriptor_of(Path("/dev/null")))
"""
    for mode in ("w", "a"):
        with (tmp_path / "log").open(mode) as log:
            inode = os.fstat(log.fileno()).st_ino
            subprocess.run([sys.executable, "-c", program], stdout=log, check=True)
        assert os.stat(tmp_path / "log").st_ino == inode
    assert (tmp_path / "log").read_text() == "before\nwhole\nline\ngrown\n1 None\n" * 2
    assert descriptor_of(tmp_path / "log") is None


def test_lines_stand_for_themselves(tmp_path: Path) -> None:
    record = tmp_path / "record.jsonl"
    append_line(record, "one")
    with record.open("ab") as file:
        file.write(b'{"cut')
    append_line(record, "two")
    assert record.read_bytes() == b'one\n{"cut\ntwo\n'
    with _files_up_to(20), pytest.raises(OSError):
        append_line(record, "a line that is too long")
    assert record.read_bytes() == b'one\n{"cut\ntwo\n'
    with pytest.raises(OSError):
        append_line(tmp_path, "line")
    program = (
        "import sys; from pathlib import Path; from trt_compress.files import append_line\n"
        "for number in range(200): append_line(Path(sys.argv[1]), sys.argv[2] * 300)"
    )
    many = [subprocess.Popen([sys.executable, "-c", program, str(record), letter]) for letter in "ab"]
    assert [one.wait() for one in many] == [0, 0]
    lines = record.read_text().splitlines()[3:]
    assert sorted(lines) == ["a" * 300] * 200 + ["b" * 300] * 200


def test_a_record_that_a_stranger_holds_is_not_waited_for_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = tmp_path / "record.jsonl"
    with record.open("w") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        monkeypatch.setattr(files, "_HOW_LONG_TO_WAIT", 0.2)
        append_line(record, "one")
        with _files_up_to(8), pytest.raises(OSError):
            append_line(record, "too long")
    append_line(record, "two")
    assert record.read_text().splitlines() == ["one", "too ", "two"]


def test_two_do_not_write_one_growing_file(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with GrowingFile(path) as first:
        first.write(b"first")
        with pytest.raises(OSError, match="another run is writing it"):
            GrowingFile(path)
        assert path.read_bytes() == b"first"
    with GrowingFile(path) as second:
        second.write(b"2")
    assert path.read_bytes() == b"2"


def test_a_growing_file_leaves_what_was_there_until_it_begins(tmp_path: Path) -> None:
    old, new, link = tmp_path / "old", tmp_path / "new", tmp_path / "link"
    old.write_text("what was there")
    link.symlink_to(old)
    GrowingFile(link).close()
    GrowingFile(new).close()
    assert old.read_text() == "what was there" and not new.exists()
    for place in (old, new):
        with GrowingFile(place) as file:
            file.begin()
            assert place.read_bytes() == b""
            file.write(b"line")
            assert place.read_bytes() == b"line"
    with GrowingFile(link) as file:
        file.begin()
    assert old.read_bytes() == b"" and link.is_symlink()
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="Is a directory"):
        GrowingFile(tmp_path / "folder")
    with GrowingFile(new) as file, _files_up_to(6), pytest.raises(OSError):
        file.write(b"longer than that")


def test_a_device_that_never_ends_is_refused_at_once() -> None:
    began = time.monotonic()
    with pytest.raises(OSError, match="it is a device"):
        read_regular(Path("/dev/zero"))
    assert time.monotonic() - began < 1


@contextmanager
def _files_up_to(size: int) -> Iterator[None]:
    """As a full disk: no file may become larger."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
