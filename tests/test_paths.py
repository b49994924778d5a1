"""Files are tried before they are needed, and nothing is left behind."""

import os
from pathlib import Path
from typing import Any

import pytest

from trt_compress.errors import ConfigError
from trt_compress.paths import (
    check_apart,
    check_archive,
    check_kept,
    check_new_file,
    check_new_folder,
    check_readable,
)


def test_a_file_that_can_be_written_passes_and_is_not_made(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("kept")
    (tmp_path / "link").symlink_to(tmp_path / "not yet")
    for name in ("new", "old", "link"):
        check_new_file(tmp_path / name, "--json")
    check_new_file(Path(os.devnull), "--json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "old"]
    assert (tmp_path / "old").read_text() == "kept" and not (tmp_path / "link").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "no/a",
            r"no/a' cannot be written \(No such file or directory\); make its folder first, or give another file",
        ),
        ("", r"cannot be written \(Is a directory\); it is a folder, and --json takes the name of a file\."),
        ("file/a", r"cannot be written \(Not a directory\); give another file to --json\."),
        ("x" * 300, r"cannot be written \(File name too long\)"),
        ("a\0b", r"cannot be written \(embedded null byte\)"),
        ("loop", r"loop' cannot be written \(.*\); give another file to --json\."),
    ],
)
def test_a_file_that_cannot_be_written_is_refused(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(ConfigError, match=message):
        check_new_file(tmp_path / name, "--json")


def test_a_folder_is_made_and_unmade(tmp_path: Path) -> None:
    check_new_folder(tmp_path / "a" / "b", "--report", ("result.json",))
    check_new_folder(tmp_path, "--report", ("result.json",))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a" / "result.json").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"a' cannot be written \(Is a directory\)"):
        check_new_folder(tmp_path / "a", "--report", ("result.json",))
    (tmp_path / "file").touch()
    for name in ("file", "file/below"):
        with pytest.raises(ConfigError, match=r"cannot be written \(.*\); give another folder to --report\."):
            check_new_folder(tmp_path / name, "--report")


def test_second_names_in_a_folder_are_found_without_a_look_at_every_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, stat, asked = tmp_path / "data", os.stat, 0
    (data / "deep").mkdir(parents=True)
    for number in range(300):
        (data / "deep" / str(number)).touch()
    (tmp_path / "result.json").touch()

    def counted(*given: Any, **settings: Any) -> os.stat_result:
        nonlocal asked
        asked += 1
        return stat(*given, **settings)

    monkeypatch.setattr(os, "stat", counted)
    check_apart({"--json": tmp_path / "result.json"}, {"--data": [data]})
    assert asked < 100
    for way in (os.link, os.symlink):
        way(tmp_path / "result.json", data / "deep" / "second")
        with pytest.raises(ConfigError, match=r"^--json .* is --data itself"):
            check_apart({"--json": tmp_path / "result.json"}, {"--data": [data]})
        (data / "deep" / "second").unlink()


def test_what_is_read_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "source").touch()
    (tmp_path / "link").symlink_to(tmp_path / "source")
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "manifest.json").touch()
    read = {"the source": [tmp_path / "source"], "a file of the bundle": [tmp_path / "bundle"]}
    check_apart({"--out": tmp_path / "new", "--json": tmp_path / "bundle" / "new.json", "--overlay": None}, read)
    for name in ("source", "link"):
        with pytest.raises(
            ConfigError, match=r"^--out .* is the source itself; give another name, or it would be lost"
        ):
            check_apart({"--out": tmp_path / name}, read)
    with pytest.raises(ConfigError, match="is a file of the bundle itself"):
        check_apart({"--out": tmp_path / "bundle" / "manifest.json"}, read)
    with pytest.raises(ConfigError, match="--overlay .* is the file of --out itself"):
        check_apart({"--out": tmp_path / "a", "--overlay": tmp_path / "b" / ".." / "a"}, {})
    check_apart({"--out": Path(os.devnull), "--overlay": Path(os.devnull)}, {})


def test_files_are_told_apart_as_the_system_does(tmp_path: Path) -> None:
    """By device and inode: second names, links to folders, and what is not there yet."""
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames" / "0.png").touch()
    (tmp_path / "away").symlink_to(tmp_path / "frames")
    os.link(tmp_path / "frames" / "0.png", tmp_path / "second")
    (tmp_path / "linked").symlink_to(tmp_path / "second")
    for name in ("second", "linked", "away/0.png", "away/../frames/0.png"):
        with pytest.raises(ConfigError, match="is the source itself"):
            check_apart({"--json": tmp_path / name}, {"the source": [tmp_path / "frames" / "0.png"]})
        with pytest.raises(ConfigError, match="is --data itself"):
            check_apart({"--json": tmp_path / name}, {"--data": [tmp_path / "frames"]})
    check_apart({"--json": tmp_path / "frames" / "new"}, {"--data": [tmp_path / "frames"]})
    with pytest.raises(ConfigError, match="--json .* is the file of --out itself"):
        check_apart({"--out": tmp_path / "frames" / "new", "--json": tmp_path / "away" / "new"}, {})
    with pytest.raises(ConfigError, match="is the source itself"):
        check_apart({"--out": tmp_path / "away" / "gone"}, {"the source": [tmp_path / "frames" / "gone"]})


def test_nothing_is_written_into_a_bundle(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "manifest.json").touch()
    (tmp_path / "away").symlink_to("bundle")
    os.link(tmp_path / "bundle" / "manifest.json", tmp_path / "second")
    for name in ("bundle/manifest.json", "second", "away/manifest.json"):
        with pytest.raises(ConfigError, match="is a file of the bundle itself"):
            check_apart({"--json": tmp_path / name}, {}, [tmp_path / "bundle"])
    for name in ("bundle/new.json", "away/new.json", "bundle/new/below.json"):
        with pytest.raises(
            ConfigError, match="--json .* would be a file of the bundle '.*bundle'.*place outside of it"
        ):
            check_apart({"--json": tmp_path / name}, {}, [tmp_path / "bundle"])
    check_apart({"--json": tmp_path / "new.json"}, {}, [tmp_path / "bundle"])


def test_one_stream_is_not_two_outputs() -> None:
    with pytest.raises(ConfigError, match="--json /dev/fd/1 is the file of --out itself"):
        check_apart({"--out": Path("/dev/stdout"), "--json": Path("/dev/fd/1")}, {})
    check_apart({"--out": Path("/dev/stdout"), "--json": Path("/dev/null"), "--overlay": Path("/dev/null")}, {})


def test_what_is_read_is_not_replaced_with_its_folder(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "w.safetensors").touch()
    (tmp_path / "link").symlink_to("bundle")
    for name in ("bundle/w.safetensors", "link/w.safetensors", "bundle"):
        with pytest.raises(ConfigError, match="-o .* would be replaced, and --weights .* in it would be lost"):
            check_kept(tmp_path / "bundle", "-o", {"--weights": tmp_path / name})
    check_kept(tmp_path / "bundle", "-o", {"--weights": tmp_path / "w", "--recipe": None})


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no archive")
    with pytest.raises(
        ConfigError, match=r"text' is not a readable \.npz file of arrays; write it with numpy\.savez\."
    ):
        check_archive(tmp_path / "text")
    with pytest.raises(ConfigError, match="none' does not exist; give a file that numpy.savez wrote"):
        check_archive(tmp_path / "none")
    os.mkfifo(tmp_path / "pipe")
    for given in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(ConfigError, match=r"cannot be read \(it is a (pipe|device), not a file\); give"):
            check_archive(given)
    with pytest.raises(ConfigError, match=r"cannot be read \(Is a directory\); give a list\."):
        check_readable(tmp_path, "give a list")
