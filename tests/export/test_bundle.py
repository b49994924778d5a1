"""Bundles are written whole or not at all, whatever fails and whenever it fails."""

import dataclasses
import errno
import itertools
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from trt_compress.errors import BundleError
from trt_compress.export.bundle import Moved, update_bundle, write_bundle
from trt_compress.format.manifest import Batch, Graph, Model, TensorInfo, Weights
from trt_compress.runtime import Bundle, Manifest

MANIFEST = Manifest(
    name="test",
    created_with={},
    model=Model(source="zoo:test", family="test", weights=Weights(source="random (seed 0)")),
    recipe={},
    precision="fp32",
    opset=20,
    batch=Batch(min=1, opt=1, max=1),
    graphs=(
        Graph(
            name="model",
            file="model.onnx",
            inputs=(TensorInfo(name="x", dtype="float32", shape=("batch", 3)),),
            outputs=(TensorInfo(name="y", dtype="float32", shape=("batch", 3)),),
        ),
    ),
)
FILES = {"model.onnx": b"graph", "engines/rtx/a.engine": b"engine", "verify.json": b"{}"}


def tree(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder, hidden files and empty folders too."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def listed(bundle: Bundle) -> set[str]:
    return {str(p.relative_to(bundle.path)) for p in bundle.path.rglob("*") if p.is_file()} - {"manifest.json"}


# --- write


def test_a_written_bundle_opens_as_it_was_returned(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "new/parents/bundle", MANIFEST, FILES)
    assert Bundle.open(bundle.path) == bundle
    assert listed(bundle) == set(bundle.manifest.files) == set(FILES)
    assert {name: bundle.file(name).read_bytes() for name in FILES} == FILES
    assert list(bundle.path.parent.iterdir()) == [bundle.path]


def test_files_are_copied_and_hashed(tmp_path: Path) -> None:
    source = tmp_path / "weights"
    source.write_bytes(os.urandom(3 << 20))
    bundle = write_bundle(tmp_path / "bundle", MANIFEST, {**FILES, "model.data": source})
    assert Bundle.open(bundle.path).file("model.data").read_bytes() == source.read_bytes()
    assert bundle.manifest.files["model.data"].bytes == 3 << 20


@pytest.mark.parametrize("errors", [(), (errno.EXDEV,)], ids=["moved", "copied from another file system"])
def test_a_file_of_the_writer_is_moved(
    errors: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, data = tmp_path / "weights", os.urandom(3 << 20)
    source.write_bytes(data)
    inode, rename, left = source.stat().st_ino, os.rename, [*errors]

    def renamed(one: Path, other: Path) -> None:
        if left:
            raise OSError(left.pop(), "cannot", str(one))
        rename(one, other)

    monkeypatch.setattr(os, "rename", renamed)
    bundle = write_bundle(tmp_path / "bundle", MANIFEST, {**FILES, "model.data": Moved(source)})
    file = Bundle.open(bundle.path).file("model.data")
    assert file.read_bytes() == data
    assert (file.stat().st_ino == inode) == (not errors)
    assert source.exists() == bool(errors)


def test_the_bundle_has_the_permissions_of_a_new_directory(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    bundle = write_bundle(tmp_path / "bundle", MANIFEST, FILES)
    assert bundle.path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_an_existing_output_is_refused_without_force(tmp_path: Path) -> None:
    write_bundle(tmp_path / "bundle", MANIFEST, FILES)
    before = tree(tmp_path)
    with pytest.raises(BundleError, match=r"output directory '.*bundle' exists; use --force to replace it"):
        write_bundle(tmp_path / "bundle", MANIFEST, {"model.onnx": b"other"})
    assert tree(tmp_path) == before


def test_force_replaces_a_bundle(tmp_path: Path) -> None:
    write_bundle(tmp_path / "bundle", MANIFEST, FILES)
    bundle = write_bundle(tmp_path / "bundle", MANIFEST, {"model.onnx": b"other"}, force=True)
    assert Bundle.open(bundle.path) == bundle
    assert tree(tmp_path).keys() == {"bundle", "bundle/model.onnx", "bundle/manifest.json"}


def test_force_may_copy_from_the_bundle_that_it_replaces(tmp_path: Path) -> None:
    old = write_bundle(tmp_path / "bundle", MANIFEST, FILES)
    write_bundle(tmp_path / "bundle", MANIFEST, {"model.onnx": old.file("model.onnx")}, force=True)
    assert Bundle.open(tmp_path / "bundle").file("model.onnx").read_bytes() == b"graph"


def test_force_replaces_what_a_link_points_at(tmp_path: Path) -> None:
    write_bundle(tmp_path / "real", MANIFEST, FILES)
    (tmp_path / "link").symlink_to("real")
    write_bundle(tmp_path / "link", MANIFEST, {"model.onnx": b"other"}, force=True)
    assert (tmp_path / "link").is_symlink()
    assert Bundle.open(tmp_path / "real").file("model.onnx").read_bytes() == b"other"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "real"]


def test_force_fills_an_empty_directory(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    with pytest.raises(BundleError, match="exists; use --force"):
        write_bundle(tmp_path / "bundle", MANIFEST, FILES)
    write_bundle(tmp_path / "bundle", MANIFEST, FILES, force=True)
    Bundle.open(tmp_path / "bundle")


@pytest.mark.parametrize("manifest", [None, "{", '{"manifest_version": 3, "name": "a browser extension"}', "[]"])
def test_force_never_replaces_what_is_not_a_bundle(tmp_path: Path, manifest: str | None) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/holiday.jpg").write_bytes(b"sun")
    if manifest is not None:
        (tmp_path / "photos/manifest.json").write_text(manifest)
    before = tree(tmp_path)
    with pytest.raises(BundleError, match="photos' holds files and is not a bundle, so --force does not replace it"):
        write_bundle(tmp_path / "photos", MANIFEST, FILES, force=True)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("force", [True, False])
def test_an_output_that_is_a_file_is_refused(tmp_path: Path, force: bool) -> None:
    (tmp_path / "bundle").write_text("mine")
    with pytest.raises(BundleError, match="bundle' exists and is not a directory"):
        write_bundle(tmp_path / "bundle", MANIFEST, FILES, force=force)
    assert (tmp_path / "bundle").read_text() == "mine"


def test_a_parent_that_is_a_file_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(BundleError, match=r"bundle' cannot be written \(Not a directory"):
        write_bundle(tmp_path / "file/bundle", MANIFEST, FILES)


@pytest.fixture
def unprivileged() -> Iterator[None]:
    """Root may write anywhere, so be somebody else for a moment."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    yield
    os.seteuid(user)


@pytest.mark.parametrize("mode", [0o500, 0o000])
def test_a_parent_that_may_not_be_written_to_is_a_sentence(mode: int, unprivileged: None) -> None:
    locked = Path(tempfile.mkdtemp())
    try:
        locked.chmod(mode)
        with pytest.raises(BundleError, match=r"cannot be written \(Permission denied .*; give a directory"):
            write_bundle(locked / "new/bundle", MANIFEST, FILES)
        locked.chmod(0o700)
        assert tree(locked) == {}
    finally:
        locked.chmod(0o700)
        shutil.rmtree(locked)


def test_a_bundle_that_may_not_be_read_is_a_sentence(unprivileged: None) -> None:
    locked = Path(tempfile.mkdtemp())
    try:
        bundle = write_bundle(locked / "bundle", MANIFEST, FILES)
        locked.chmod(0o000)
        with pytest.raises(BundleError, match=r"bundle.*' cannot be read \(Permission denied\); check its permissions"):
            Bundle.open(bundle.path)
        locked.chmod(0o700)
        bundle.file("verify.json").chmod(0o000)
        with pytest.raises(BundleError, match=r"verify\.json' cannot be read \(Permission denied\)"):
            Bundle.open(bundle.path)
    finally:
        locked.chmod(0o700)
        shutil.rmtree(locked)


def test_a_missing_source_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"\(No such file or directory at '.*gone\.onnx'\); check that it is"):
        write_bundle(tmp_path / "new/bundle", MANIFEST, {"model.onnx": tmp_path / "gone.onnx"})
    assert tree(tmp_path) == {}


@pytest.mark.parametrize("name", ["../x", "/x", "a/../x", "manifest.json"])
def test_a_path_out_of_the_bundle_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(BundleError, match=r"The file path '.*' .*; give a path inside the bundle"):
        write_bundle(tmp_path / "bundle", MANIFEST, {**FILES, name: b""})
    assert tree(tmp_path) == {}


def test_a_manifest_that_names_a_file_not_given_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"graph 'model' needs the file 'model\.onnx', which is not listed"):
        write_bundle(tmp_path / "bundle", MANIFEST, {"verify.json": b"{}"})
    assert tree(tmp_path) == {}


# --- update


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    manifest = dataclasses.replace(MANIFEST, extra={"foreign": [1]})
    return write_bundle(tmp_path / "bundle", manifest, FILES)


def test_an_update_adds_replaces_and_removes(bundle: Bundle) -> None:
    manifest = dataclasses.replace(bundle.manifest, targets=("rtx",))
    add = {"engines/orin/b.engine": b"new", "verify.json": b'{"passed": true}'}
    updated = update_bundle(bundle, manifest, add, remove=["engines/rtx/a.engine"])
    assert Bundle.open(bundle.path) == updated
    assert updated.manifest.targets == ("rtx",)
    assert updated.manifest.extra == {"foreign": [1]}
    assert updated.file("verify.json").read_bytes() == b'{"passed": true}'
    expected = {"engines", "engines/orin", "engines/orin/b.engine", "verify.json", "model.onnx", "manifest.json"}
    assert tree(bundle.path).keys() == expected


def test_a_newer_minor_manifest_keeps_what_it_says(bundle: Bundle) -> None:
    manifest = dataclasses.replace(bundle.manifest, schema_version="1.8")
    updated = update_bundle(bundle, manifest, {"a.engine": b"new"})
    assert Bundle.open(updated.path).manifest.schema_version == "1.8"
    assert Bundle.open(updated.path).manifest.extra == {"foreign": [1]}


def test_a_name_both_added_and_removed_is_replaced(bundle: Bundle) -> None:
    update_bundle(bundle, bundle.manifest, {"verify.json": b"new"}, remove=["verify.json"])
    assert Bundle.open(bundle.path).file("verify.json").read_bytes() == b"new"


def test_a_removed_file_must_be_there_and_not_be_needed(bundle: Bundle) -> None:
    before = tree(bundle.path)
    with pytest.raises(BundleError, match=r"has no file 'verfy\.json'\. Did you mean 'verify\.json'\?"):
        update_bundle(bundle, bundle.manifest, {}, remove=["verfy.json"])
    with pytest.raises(BundleError, match=r"graph 'model' needs the file 'model\.onnx'"):
        update_bundle(bundle, bundle.manifest, {"engines/orin/b.engine": b"new"}, remove=["model.onnx"])
    assert tree(bundle.path) == before


def test_an_update_of_a_bundle_that_changed_meanwhile_is_refused(bundle: Bundle) -> None:
    update_bundle(bundle, bundle.manifest, {"first.engine": b"1"})
    before = tree(bundle.path)
    with pytest.raises(BundleError, match="was changed since it was opened; open it again"):
        update_bundle(bundle, bundle.manifest, {"second.engine": b"2"})
    assert tree(bundle.path) == before


# --- faults


class FailOnce:
    """Makes call number `step` of those that change the disk fail, before or after its work is done."""

    def __init__(self, patch: pytest.MonkeyPatch, step: int, error: BaseException, late: bool) -> None:
        self.fired = False
        self._calls = itertools.count()
        for name in ("mkdir", "fsync", "rename", "replace"):
            patch.setattr(os, name, self._wrap(getattr(os, name), step, error, late))

    def _wrap(self, function: Callable[..., Any], step: int, error: BaseException, late: bool) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if next(self._calls) != step:
                return function(*args, **kwargs)
            self.fired = True
            if late:
                function(*args, **kwargs)
            raise error

        return wrapped


def write_anew(folder: Path) -> None:
    write_bundle(folder / "new/parent/bundle", MANIFEST, FILES)


def replace_by_force(folder: Path) -> None:
    write_bundle(folder / "bundle", MANIFEST, {"model.onnx": b"other"}, force=True)


def add_and_replace(folder: Path) -> None:
    bundle = Bundle.open(folder / "bundle")
    add = {"engines/orin/b.engine": b"new", "verify.json": b"newer", "model.onnx": b"newest"}
    update_bundle(bundle, bundle.manifest, add, remove=["engines/rtx/a.engine"])


@pytest.mark.parametrize("action", [write_anew, replace_by_force, add_and_replace])
@pytest.mark.parametrize(
    ("error", "late"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), False),
        (KeyboardInterrupt(), False),
        (KeyboardInterrupt(), True),
    ],
    ids=["disk full", "interrupt before", "interrupt after"],
)
def test_a_fault_at_any_step_leaves_the_old_or_the_new_and_nothing_else(
    tmp_path: Path, action: Callable[[Path], None], error: BaseException, late: bool
) -> None:
    write_bundle(tmp_path / "before/bundle", MANIFEST, FILES)
    action(shutil.copytree(tmp_path / "before", tmp_path / "after"))
    before, after = tree(tmp_path / "before"), tree(tmp_path / "after")
    raised = 0
    for step in itertools.count():
        folder = shutil.copytree(tmp_path / "before", tmp_path / str(step))
        with pytest.MonkeyPatch.context() as patch:
            fault = FailOnce(patch, step, error, late)
            try:
                action(folder)
            except BundleError as caught:
                raised += 1
                assert "No space left on device" in str(caught) and "free some space" in str(caught)
                assert tree(folder) == before
            except KeyboardInterrupt:
                raised += 1
                assert tree(folder) in (before, after)
            else:
                assert tree(folder) == after
        if not fault.fired:
            break
    assert raised >= 5


def test_an_interrupt_while_the_old_bundle_is_deleted_leaves_only_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_bundle(tmp_path / "bundle", MANIFEST, FILES)
    remove_tree, interrupts = shutil.rmtree, iter([KeyboardInterrupt()])

    def interrupted(*args: Any, **kwargs: Any) -> None:
        for error in interrupts:
            raise error
        remove_tree(*args, **kwargs)

    monkeypatch.setattr(shutil, "rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_bundle(tmp_path / "bundle", MANIFEST, {"model.onnx": b"other"}, force=True)
    assert tree(tmp_path).keys() == {"bundle", "bundle/model.onnx", "bundle/manifest.json"}
    Bundle.open(tmp_path / "bundle")


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("late", [False, True])
def test_an_interrupt_while_a_change_is_tidied_leaves_nothing_unlisted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: bool, times: int
) -> None:
    """Weights that are not listed any more, and no journal that says whose they were, would be refused for ever."""
    bundle = write_bundle(tmp_path / "bundle", MANIFEST, {**FILES, "old.onnx": b"1", "older.onnx": b"2"})
    unlink, interrupts = os.unlink, iter([KeyboardInterrupt()] * times)

    def interrupted(path: str | Path, **kwargs: Any) -> None:
        if late:
            unlink(path, **kwargs)
        for error in interrupts:
            raise error
        if not late:
            unlink(path, **kwargs)

    monkeypatch.setattr(os, "unlink", interrupted)
    with pytest.raises(KeyboardInterrupt):
        update_bundle(bundle, bundle.manifest, {}, remove=["old.onnx", "older.onnx"])
    assert listed(Bundle.open(bundle.path)) == set(FILES)


def test_an_output_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    class Intruder(dict[str, bytes]):
        """Files that make the output directory while they are written."""

        def items(self) -> Any:
            (tmp_path / "bundle").mkdir()
            (tmp_path / "bundle/mine").write_text("mine")
            return super().items()

    with pytest.raises(BundleError, match=r"cannot be written \(Directory not empty"):
        write_bundle(tmp_path / "bundle", MANIFEST, Intruder(FILES))
    assert tree(tmp_path) == {"bundle": None, "bundle/mine": b"mine"}


@pytest.mark.parametrize("force", [False, True])
def test_a_full_disk_leaves_nothing_and_the_old_bundle_untouched(tmp_path: Path, force: bool) -> None:
    """A real write that the kernel refuses part of the way: the child may write files of at most 64 KiB."""
    output = tmp_path / ("bundle" if force else "new/bundle")
    if force:
        write_bundle(output, MANIFEST, FILES)
    before = tree(tmp_path)
    program = f"""
        import sys
        from pathlib import Path
        from trt_compress.errors import BundleError
        from trt_compress.export.bundle import write_bundle
        from trt_compress.runtime import Manifest
        manifest = Manifest.from_text(sys.stdin.read())
        try:
            write_bundle(Path({str(output)!r}), manifest, {{"model.onnx": bytes(1 << 20)}}, force={force})
        except BundleError as error:
            print(error)
    """
    limit = 64 << 10
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        input=MANIFEST.to_text(),
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert f"The bundle '{output}' cannot be written (File too large" in done.stdout
    assert tree(tmp_path) == before
