"""A pruned bundle holds what one target needs, opens, and says what it can no longer do."""

import json
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
from typer.testing import CliRunner

from trt_compress.errors import BundleError, ConfigError
from trt_compress.export.api import verify
from trt_compress.export.check import preflight_report
from trt_compress.export.engines import build
from trt_compress.export.prune import prune
from trt_compress.runtime import Bundle, Session
from trt_compress.tools.cli.main import app

JETSON = "jetson-orin-jp6"
LOWERED = f"model.{JETSON}.onnx"
needs_rtx = pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="the package tensorrt_rtx is not installed")


@pytest.fixture
def bundle(exported: Callable[..., Path], tmp_path: Path) -> Path:
    shutil.copytree(exported("tome:num_merged=4", targets=("cpu", JETSON), batch="1"), tmp_path / "bundle")
    return tmp_path / "bundle"


def files_of(path: Path) -> set[str]:
    return {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()}


def test_other_targets_leave(bundle: Path) -> None:
    before = Bundle.open(bundle).manifest
    result = prune(bundle, target="cpu")
    assert result.removed == {LOWERED: before.files[LOWERED].bytes}
    assert result.bytes_before - result.bytes_after == before.files[LOWERED].bytes
    after = Bundle.open(bundle).manifest
    assert (after.targets, after.lowered) == (("cpu",), ())
    assert files_of(bundle) == {*after.files, "manifest.json"} and not (bundle / "engines").exists()
    assert verify(bundle).passed
    assert prune(bundle, target="cpu").removed == {}


def test_what_a_target_builds_from_stays_and_the_rest_is_said_to_be_gone(bundle: Path) -> None:
    assert set(prune(bundle, target=JETSON).removed) == {"model.onnx"}
    assert files_of(bundle) == {"manifest.json", "preflight.json", "recipe.toml", "verify.json", "weights.bin", LOWERED}
    gone = "^The bundle '.*' has no file 'model.onnx' any more: it was pruned to what 'jetson-orin-jp6' needs"
    with pytest.raises(BundleError, match=gone):
        Session.open(bundle)
    with pytest.raises(BundleError, match=gone):
        verify(bundle)
    for other in ("cpu", "rtx", "jetson-thor"):
        with pytest.raises(BundleError, match=gone):
            preflight_report(bundle, target=other)
    assert [finding.rule for finding in preflight_report(bundle, target=JETSON).findings] == ["needs-plugin"]
    shown = CliRunner().invoke(app, ["inspect", str(bundle)])
    assert shown.exit_code == 0 and "pruned" in shown.stdout


def test_a_dry_run_and_a_copy_change_nothing(bundle: Path, tmp_path: Path) -> None:
    before = {name: (bundle / name).read_bytes() for name in files_of(bundle)}
    planned = prune(bundle, target=JETSON, dry_run=True)
    copied = prune(bundle, target=JETSON, output=tmp_path / "small")
    assert planned.removed == copied.removed and copied.path == tmp_path / "small"
    assert {name: (bundle / name).read_bytes() for name in files_of(bundle)} == before
    assert sum(info.bytes for info in Bundle.open(tmp_path / "small").manifest.files.values()) == copied.bytes_after
    with pytest.raises(BundleError, match="exists; use --force"):
        prune(bundle, target=JETSON, output=tmp_path / "small")


def test_a_target_without_a_file_is_refused(bundle: Path, tmp_path: Path) -> None:
    prune(bundle, target="cpu")
    with pytest.raises(ConfigError, match=f"has nothing for '{JETSON}' of the graph 'model'; export it with --target"):
        prune(bundle, target=JETSON)
    with pytest.raises(ConfigError, match="target 'jetson' is not known"):
        prune(bundle, target="jetson")


@needs_rtx
def test_an_engine_stays_with_its_target_and_leaves_with_another(bundle: Path, tmp_path: Path) -> None:
    build(bundle, target="rtx")
    engine = "engines/rtx/model.engine"
    assert set(prune(bundle, target="rtx", output=tmp_path / "rtx").removed) == {LOWERED}
    assert [built.target for built in Bundle.open(tmp_path / "rtx").manifest.engines] == ["rtx"]
    assert set(prune(bundle, target="cpu").removed) == {LOWERED, engine}
    with Session.open(bundle) as session:
        assert session.graphs == ("model",)


def test_the_command_says_what_is_gone(bundle: Path) -> None:
    planned = CliRunner().invoke(app, ["prune", str(bundle), "--target", "cpu", "--dry-run"])
    assert planned.exit_code == 0 and planned.stdout.startswith("Would remove\n") and LOWERED in planned.stdout
    assert "MiB before, " in planned.stdout and planned.stdout.endswith(" then.\n")
    done = CliRunner().invoke(app, ["prune", str(bundle), "--target", "cpu", "--json"])
    document = json.loads(done.stdout)
    assert set(document) == {"bundle", "target", "removed", "bytes_before", "bytes_after"}
