import json
import shutil
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
