import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from trt_compress.errors import BundleError
from trt_compress.runtime import Bundle


def edit_manifest(path: Path, **fields: object) -> None:
    file = path / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def test_an_opened_bundle_is_what_was_written(double_bundle: Bundle) -> None:
    for path in (double_bundle.path, str(double_bundle.path)):
        assert Bundle.open(path) == double_bundle
    assert double_bundle.file("notes/readme.txt").read_text() == "hello"


def test_a_bundle_can_be_moved(double_bundle: Bundle, tmp_path: Path) -> None:
    moved = shutil.move(double_bundle.path, tmp_path / "elsewhere")
    assert Bundle.open(moved).manifest == double_bundle.manifest


def test_an_unknown_file_is_refused_with_the_nearest_name(double_bundle: Bundle) -> None:
    with pytest.raises(BundleError, match=r"has no file 'modle\.onnx'\. Did you mean 'model\.onnx'\?"):
        double_bundle.file("modle.onnx")


def test_what_is_not_a_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="none' does not exist"):
        Bundle.open(tmp_path / "none")
    with pytest.raises(BundleError, match=r"is not a bundle: it has no manifest\.json"):
        Bundle.open(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(BundleError, match="is not a bundle: it is not a directory"):
        Bundle.open(tmp_path / "model.onnx")


def test_a_manifest_that_is_not_json_is_refused(double_bundle: Bundle) -> None:
    (double_bundle.path / "manifest.json").write_text("{")
    with pytest.raises(BundleError, match=r"manifest\.json is not valid JSON"):
        Bundle.open(double_bundle.path)


def test_a_manifest_that_cannot_be_read_is_refused(double_bundle: Bundle) -> None:
    (double_bundle.path / "manifest.json").unlink()
    (double_bundle.path / "manifest.json").mkdir()
    with pytest.raises(BundleError, match=r"manifest\.json' cannot be read \(Is a directory\)"):
        Bundle.open(double_bundle.path)


def test_a_newer_schema_is_refused_before_the_files_are_looked_at(double_bundle: Bundle) -> None:
    edit_manifest(double_bundle.path, schema_version="3.1")
    (double_bundle.path / "model.onnx").unlink()
    with pytest.raises(BundleError, match=r"schema version 3\.1"):
        Bundle.open(double_bundle.path)


def test_a_newer_minor_schema_and_foreign_fields_open(double_bundle: Bundle) -> None:
    edit_manifest(double_bundle.path, schema_version="1.9", foreign={"a": 1})
    assert Bundle.open(double_bundle.path).manifest.extra == {"foreign": {"a": 1}}


def test_an_edited_manifest_is_noticed(double_bundle: Bundle) -> None:
    edit_manifest(double_bundle.path, precision="fp16")
    for check_hashes in (True, False):
        with pytest.raises(BundleError, match=r"manifest\.json' was changed after it was written; copy"):
            Bundle.open(double_bundle.path, check_hashes=check_hashes)


@pytest.mark.parametrize("check_hashes", [True, False])
def test_a_missing_file_is_named(double_bundle: Bundle, check_hashes: bool) -> None:
    (double_bundle.path / "notes/readme.txt").unlink()
    with pytest.raises(BundleError, match=r"lacks its file 'notes/readme\.txt'; copy the bundle again"):
        Bundle.open(double_bundle.path, check_hashes=check_hashes)


def test_a_changed_byte_is_noticed_and_named(double_bundle: Bundle) -> None:
    (double_bundle.path / "notes/readme.txt").write_bytes(b"hellO")
    with pytest.raises(BundleError, match=r"'notes/readme\.txt' .* was changed: its hash differs; copy the"):
        Bundle.open(double_bundle.path)
    assert Bundle.open(double_bundle.path, check_hashes=False).manifest == double_bundle.manifest


def test_a_truncated_file_is_noticed_without_hashing(double_bundle: Bundle) -> None:
    (double_bundle.path / "notes/readme.txt").write_bytes(b"hell")
    with pytest.raises(BundleError, match=r"'notes/readme\.txt' .* was changed: it has 4 bytes, not 5"):
        Bundle.open(double_bundle.path, check_hashes=False)


def test_a_path_out_of_the_bundle_is_refused(double_bundle: Bundle) -> None:
    manifest = json.loads((double_bundle.path / "manifest.json").read_text())
    edit_manifest(double_bundle.path, files={**manifest["files"], "../secret": {"sha256": "0" * 64, "bytes": 1}})
    with pytest.raises(BundleError, match=r"file path '\.\./secret' leads out of the bundle"):
        Bundle.open(double_bundle.path)


def test_what_is_read_is_what_was_hashed(double_bundle: Bundle, tmp_path: Path) -> None:
    file = double_bundle.path / "notes" / "readme.txt"
    copies = tmp_path / "copies"
    assert double_bundle.read("notes/readme.txt") == b"".join(double_bundle.chunks("notes/readme.txt")) == b"hello"
    assert double_bundle.copy("notes/readme.txt", copies).read_bytes() == b"hello"
    with double_bundle.open_file("notes/readme.txt") as opened:
        file.rename(tmp_path / "aside")
        file.write_text("other")
        mapped = opened.map()
        assert mapped[:] == b"hello"
        assert opened.path is None or Path(opened.path).read_bytes() == b"hello"
    for read in (
        double_bundle.read,
        double_bundle.check,
        double_bundle.open_file,
        lambda name: [*double_bundle.chunks(name)],
    ):
        with pytest.raises(BundleError, match=r"'notes/readme\.txt' in the bundle .* was changed: its hash differs"):
            read("notes/readme.txt")
    shutil.rmtree(copies)
    with pytest.raises(BundleError, match="its hash differs"):
        double_bundle.copy("notes/readme.txt", copies)
    assert not [path for path in copies.rglob("*") if path.is_file()]


def test_a_large_file_that_is_written_into_is_noticed(double_bundle: Bundle) -> None:
    with double_bundle.open_file("notes/readme.txt") as opened:
        opened.confirm()
        (double_bundle.path / "notes" / "readme.txt").write_text("HELLO")
        os.utime(double_bundle.path / "notes" / "readme.txt", ns=(1, 1))
        with pytest.raises(BundleError, match="was changed while it was read"):
            opened.confirm()


def test_a_bundle_stays_where_it_is_when_the_process_goes_elsewhere(
    double_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = tmp_path / "current"
    link.symlink_to(double_bundle.path)
    monkeypatch.chdir(tmp_path)
    opened = [Bundle.open("current"), Bundle.open("bundle"), Bundle.open(link)]
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    link.unlink()
    link.symlink_to(tmp_path / "elsewhere")
    assert [bundle.read("notes/readme.txt") for bundle in opened] == [b"hello"] * 3


@pytest.mark.parametrize("check_hashes", [True, False])
@pytest.mark.parametrize("name", ["notes/readme.txt", "notes", "model.onnx", "manifest.json"])
def test_a_link_out_of_the_bundle_is_refused(
    double_bundle: Bundle, tmp_path: Path, name: str, check_hashes: bool
) -> None:
    inside = double_bundle.path / name
    (tmp_path / "outside").mkdir()
    outside = inside.rename(tmp_path / "outside" / inside.name)
    inside.symlink_to(outside)
    with pytest.raises(BundleError, match=r"cannot be read \(it is a link out of .*; put the file itself there"):
        Bundle.open(double_bundle.path, check_hashes=check_hashes)


def test_a_link_inside_the_bundle_is_followed(double_bundle: Bundle) -> None:
    file = double_bundle.path / "notes" / "readme.txt"
    file.rename(double_bundle.path / "notes" / "kept.txt")
    file.symlink_to("kept.txt")
    assert Bundle.open(double_bundle.path).read("notes/readme.txt") == b"hello"


@pytest.mark.parametrize("check_hashes", [True, False])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_refused_and_nothing_hangs(
    double_bundle: Bundle, make: Callable[[Path], None], check_hashes: bool
) -> None:
    file = double_bundle.path / "notes" / "readme.txt"
    file.unlink()
    make(file)
    with pytest.raises(BundleError, match=r"readme\.txt' cannot be read"):
        Bundle.open(double_bundle.path, check_hashes=check_hashes)
