"""The table of targets."""

import dataclasses
from pathlib import Path

import pytest
from typer.testing import CliRunner

from trt_compress.errors import ConfigError
from trt_compress.export.targets import TARGETS, get_target, newest_common_opset
from trt_compress.tools.cli.main import app


def test_names_are_the_documented_ones() -> None:
    assert set(TARGETS) == {
        *("cpu", "cuda", "rtx", "jetson-orin-jp6", "jetson-orin-jp7", "jetson-thor", "x86-trt10", "x86-trt11"),
    }


def test_unknown_name_gives_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"target 'jetson-orin-jp8' is not known; there are cpu, cuda, rtx.*jp[67]"):
        get_target("jetson-orin-jp8")
    with pytest.raises(ConfigError) as far:
        get_target("qqq")
    assert far.value.hint is None


def test_the_common_opset_is_the_floor_of_jetpack_6() -> None:
    assert newest_common_opset() == 20
    assert newest_common_opset([get_target("rtx"), get_target("x86-trt10")]) == 22
    with pytest.raises(ConfigError, match="no target was given"):
        newest_common_opset([])


@pytest.mark.parametrize(
    ("name", "version", "taken"),
    [
        ("jetson-orin-jp6", "10.3.0.26", True),
        ("jetson-orin-jp6", "10.13.3", False),  # compared as numbers, not as text
        ("x86-trt10", "10.16.1.11", True),
        ("x86-trt10", "11.0.0", False),
        ("x86-trt11", "11.4.1", True),
        ("rtx", "1.7.1.116", True),
        ("rtx", "1.10.0", True),
        ("cpu", "10.3.0", False),
    ],
)
def test_versions_are_compared_as_numbers(name: str, version: str, taken: bool) -> None:
    assert get_target(name).takes_version(version) is taken


@pytest.mark.parametrize("name", TARGETS)
def test_every_figure_has_a_source(name: str) -> None:
    target = get_target(name)
    fields = {field.name for field in dataclasses.fields(target)}
    assert set(target.sources) <= fields
    needed = {"max_opset"} | ({"precisions", "topk_max_k", "refused_ops"} if target.is_tensorrt else set())
    assert needed <= set(target.sources)
    assert all(source.split(":")[0] in {"run", "hdr", "doc"} for source in target.sources.values())


def test_only_jetpack_6_is_without_bodies_and_only_rtx_is_inlined() -> None:
    lowerings = {name: target.lowering for name, target in TARGETS.items() if target.lowering != "function"}
    assert lowerings == {"jetson-orin-jp6": "plugin", "rtx": "inline"}


def test_an_export_says_what_is_known_of_its_targets(tmp_path: Path) -> None:
    asked = ["export", "zoo:digits_vit", "--target", "cpu", "--target", "x86-trt11", "--target", "cuda", "--dry-run"]
    ended = CliRunner().invoke(app, [*asked, "-o", str(tmp_path / "b")], env={"COLUMNS": "400"})
    assert ended.exit_code == 0, ended.stderr
    said = " ".join(ended.stdout.split())
    assert f"on cpu {TARGETS['cpu'].notes}" in said and f"on x86-trt11 {TARGETS['x86-trt11'].notes}" in said
    assert not TARGETS["cuda"].notes and "on cuda" not in said
