"""doctor BUNDLE: what a bundle needs against what is here, why TensorRT finds no plugin, and the clocks of a Jetson."""

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.native.emulation.building import compiler
from tests.tools.conftest import Cli
from trt_compress.digest import sha256
from trt_compress.export.bundle import update_bundle
from trt_compress.format.bundle import Bundle
from trt_compress.format.manifest import Engine, Manifest, OperatorUse
from trt_compress.plugins import library
from trt_compress.tools import doctor_bundle
from trt_compress.tools.doctor import Check
from trt_compress.tools.doctor_bundle import bundle_checks, why_no_plugin
from trt_compress.tools.jetson import clocks_in, largest_mode
from trt_compress.version import __version__

MakeBundle = Callable[..., Path]
MERGE = OperatorUse(
    name="TokenMerge", op_type="TrtcTokenMerge", domain="trt_compress", version=1, nodes=2, lowering="plugin"
)
CLOCKS = """SOC family:tegra234  Machine:NVIDIA Jetson AGX Orin
Online CPUs: 0-3
cpu0: Online=1 Governor=schedutil MinFreq={cpu} MaxFreq=2201600 CurrentFreq=729600 IdleStates: WFI=1 c7=1
cpu1: Online=1 Governor=schedutil MinFreq={cpu} MaxFreq=2201600 CurrentFreq=729600 IdleStates: WFI=1 c7=1
cpu2: Online=0 Governor=schedutil MinFreq=729600 MaxFreq=2201600 CurrentFreq=729600 IdleStates: WFI=1 c7=1
GPU MinFreq={gpu} MaxFreq=1300500000 CurrentFreq=306000000
EMC MinFreq=204000000 MaxFreq=3199000000 CurrentFreq=3199000000 FreqOverride={held}
FAN Dynamic Speed control=active hwmon2_pwm1=51
NV Power Mode: MODE_30W
"""
LOOSE, FIXED = ({"cpu": 729600, "gpu": 306000000, "held": 0}, {"cpu": 2201600, "gpu": 1300500000, "held": 1})


@pytest.fixture
def bundle_for(make_bundle: MakeBundle) -> Callable[..., Path]:
    def make(*targets: str, **changes: Any) -> Path:
        path = make_bundle("tiny")
        opened = Bundle.open(path)
        update_bundle(opened, replace(opened.manifest, targets=targets, **changes), {})
        return path

    return make


def by_name(said: str) -> dict[str, dict[str, Any]]:
    return {check["name"]: check for check in json.loads(said)["checks"]}


def test_a_bundle_that_runs_here(cli: Cli, bundle_for: Callable[..., Path]) -> None:
    path = bundle_for("cpu", "jetson-orin-jp6", operators=(MERGE,))
    done = cli("doctor", path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"'{path}' can be run here."
    checks = json.loads(cli("doctor", path, "--json").stdout)["checks"]
    assert {check["group"] for check in checks} == {"bundle for cpu", "bundle for jetson-orin-jp6", "bundle"}
    assert not any(check["problem"] for check in checks)  # what the other target lacks is told, and stops nothing
    found = {(check["group"], check["name"]): check for check in checks}
    assert found["bundle for cpu", "opset"]["found"] == "20"
    assert (
        "of weights; " in found["bundle", "memory"]["found"] and "are free here" in found["bundle", "memory"]["found"]
    )
    other = found["bundle for jetson-orin-jp6", "TensorRT"]
    assert other["found"] is None and other["advice"].startswith("It needs TensorRT from 10.3 to below 10.4: ")


def test_a_bundle_that_does_not_run_here(cli: Cli, bundle_for: Callable[..., Path]) -> None:
    path = bundle_for("cpu", "jetson-orin-jp6", operators=(MERGE,))
    done = cli("doctor", path, "--target", "jetson-orin-jp6", "--json")
    assert done.returncode == 3
    assert json.loads(done.stdout)["error"]["exit_code"] == 3
    assert "cannot be run here" in done.stderr and "TensorRT from 10.3 to below 10.4" in done.stderr
    checks = by_name(done.stdout)
    assert checks["TensorRT"]["problem"] and checks["GPU"]["problem"]
    assert checks["engine"]["advice"] == f"trt-compress build {path} --target jetson-orin-jp6"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("tiny", "--target", "jetson-thor"), "was exported for cpu, not for 'jetson-thor'"),
        (("tiny", "--target", "jetson"), "target 'jetson' is not known"),
        (("no",), "'no' does not exist"),
        (("--target", "cpu"), "--target is of a bundle, and none is given"),
        (("tiny", "--require-digest", "0" * 64), "is required"),
    ],
)
def test_what_is_wrong_is_said(
    cli: Cli, bundle_for: Callable[..., Path], arguments: tuple[str, ...], said: str
) -> None:
    bundle_for("cpu")
    done = cli("doctor", *arguments)
    assert (done.returncode, done.stdout) == (2, "") and said in done.stderr


def test_memory_that_is_not_there(bundle_for: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Bundle.open(bundle_for("cpu"))
    monkeypatch.setattr(doctor_bundle, "available_bytes", lambda: 100)
    (memory,) = (check for check in bundle_checks(opened) if check.name == "memory")
    assert memory.problem and "The weights alone do not fit" in (memory.advice or "")
    monkeypatch.setattr(doctor_bundle, "available_bytes", lambda: None)
    (memory,) = (check for check in bundle_checks(opened) if check.name == "memory")
    assert not memory.problem and "is not known" in (memory.found or "")


# ---- plugins ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def plant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Put a library into an empty cache, as a build does; `lacks`: it needs another that is not there."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def put(
        *, tensorrt: str = "10.3.0", hash_: str | None = None, op_type: str = MERGE.op_type, lacks: bool = False
    ) -> Path:
        path = library.library_path("tensorrt", hash_=hash_, tensorrt_major=int(tensorrt.partition(".")[0]))
        path.parent.mkdir(parents=True, mode=0o700)
        operators = [{"name": "TokenMerge", "op_type": op_type, "version": 1}]
        said = json.dumps(json.dumps({"operators": operators}))
        source = tmp_path / "library.cpp"
        build = [compiler(), "-shared", "-fPIC"]
        flags: list[str] = []
        if lacks:
            source.write_text('extern "C" int other() { return 1; }\n')
            other = tmp_path / "libother.so"
            subprocess.run([*build, source, "-o", other], check=True)
            flags = [f"-L{tmp_path}", "-lother"]
        use = 'extern "C" int other();\nint used() { return other(); }\n' if lacks else ""
        source.write_text(f'{use}extern "C" char const* trtcDescribe() {{ return {said}; }}\n')
        subprocess.run([*build, source, "-o", path, *flags], check=True)
        (tmp_path / "libother.so").unlink(missing_ok=True)
        info = {"kind": "tensorrt", "version": __version__, "source_hash": hash_ or library.source_hash("tensorrt")}
        info |= {"sha256": library.library_sha256(path), "tensorrt": tensorrt}
        path.with_suffix(".json").write_text(json.dumps({**info, "operators": operators, "sms": [87], "ptx": 87}))
        path.chmod(0o755)
        return path

    return put


def manifest(*operators: OperatorUse) -> Manifest:
    found: Any = type("Uses", (), {"operators": operators})
    return found  # type: ignore[no-any-return]


def test_the_plugins_are_there(plant: Callable[..., Path]) -> None:
    plant()
    assert why_no_plugin(manifest(MERGE), version="10.3.0", sms=(87,)) is None


@pytest.mark.parametrize(
    ("there", "said"),
    [
        (None, "no plugin library is built here (cause 1 of 4)"),
        ({"tensorrt": "11.1.0"}, "the library here is for TensorRT 11.1.0, and this is 10 (cause 2 of 4)"),
        ({"lacks": True}, "the library does not load (cause 3 of 4): libother.so"),
        ({"op_type": "TrtcTokenSelect"}, "the library holds no TrtcTokenMerge 1 (cause 4 of 4)"),
        ({"hash_": "0" * 16}, f"was built from the sources of trt-compress {__version__}, and may hold other"),
    ],
    ids=["none", "another TensorRT", "does not load", "another plugin", "other sources"],
)
def test_each_cause_is_told(plant: Callable[..., Path], there: dict[str, Any] | None, said: str) -> None:
    if there is not None:
        plant(**there)
    assert said in (why_no_plugin(manifest(MERGE), version="10.3.0", sms=(87,)) or "")


def test_a_library_for_another_gpu_does_not_fit(plant: Callable[..., Path]) -> None:
    plant()
    said = why_no_plugin(manifest(MERGE), version="10.3.0", sms=(75,)) or ""
    assert "does not fit (cause 2 of 4)" in said and "this GPU is SM 75" in said


def on_jetson(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, *, version: str = "10.3.0", sms: tuple[int, ...] = (87,)
) -> dict[str, Check]:
    monkeypatch.setattr(doctor_bundle, "_installed", lambda target: doctor_bundle._Here(version, "", sms))
    return {check.name: check for check in bundle_checks(Bundle.open(bundle), target="jetson-orin-jp6")}


def test_a_plugin_that_is_needed_and_not_there_is_a_problem(
    bundle_for: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, plant: Callable[..., Path]
) -> None:
    path = bundle_for("jetson-orin-jp6", operators=(MERGE,))
    check = on_jetson(path, monkeypatch)["plugins"]
    assert check.problem and check.advice == (
        "TensorRT says 'could not find plugin', as no plugin library is built here (cause 1 of 4). Run 'trt-compress "
        "plugins build' on this machine."
    )
    plant()
    checks = on_jetson(path, monkeypatch)
    assert not any(check.problem for check in checks.values()), checks


def test_a_device_of_another_kind_is_a_problem(
    bundle_for: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = on_jetson(bundle_for("jetson-orin-jp6"), monkeypatch, version="10.16.0", sms=(110,))
    assert checks["TensorRT"].problem and "takes TensorRT from 10.3 to below 10.4" in (checks["TensorRT"].advice or "")
    assert checks["GPU"].problem and "is for SM 87" in (checks["GPU"].advice or "")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, None),
        ({"library_version": "10.3.1"}, "This is TensorRT 10.3.0, and an engine runs on the version that built it"),
        ({"onnx_sha256": "1" * 64}, "It was built from another ONNX file"),
        ({"plugins": "1" * 16}, "It needs plugins of other sources"),
    ],
)
def test_an_engine_is_held_against_the_device(
    make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], said: str | None
) -> None:
    path = make_bundle("tiny")
    opened = Bundle.open(path)
    engine = Engine(
        target="jetson-orin-jp6",
        file="engines/jetson-orin-jp6/model.engine",
        sha256=sha256(b"engine"),
        bytes=6,
        library="tensorrt",
        library_version="10.3.0",
        onnx_sha256=opened.manifest.files["model.onnx"].sha256,
        precision_asked="fp32",
        precision_achieved={"evidence": "network", "model": {"fp32": 1}, "operators": {}},
        paths={},
        profile={},
        seconds=1.0,
    )
    engine = replace(engine, **changes)
    update_bundle(
        opened, replace(opened.manifest, targets=("jetson-orin-jp6",), engines=(engine,)), {engine.file: b"engine"}
    )
    check = on_jetson(path, monkeypatch)["engine of model"]
    assert check.problem == (said is not None) and (said or "") in (check.advice or "")
    if said:
        assert check.advice and check.advice.endswith(f": trt-compress build {path} --target jetson-orin-jp6 --force")


# ---- a Jetson --------------------------------------------------------------------------------------------------------


def fake(folder: Path, **said: str) -> None:
    folder.mkdir(exist_ok=True)
    for name, text in said.items():
        (folder / name).write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\n")
        (folder / name).chmod(0o755)


@pytest.mark.parametrize("with_bundle", [False, True])
def test_power_mode_and_clocks(
    cli: Cli, bundle_for: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_bundle: bool
) -> None:
    given = [bundle_for("cpu")] if with_bundle else []
    monkeypatch.setenv("PATH", f"{tmp_path / 'fake'}{os.pathsep}{os.environ['PATH']}")
    fake(tmp_path / "fake", nvpmodel="NV Power Mode: MODE_30W\n2", jetson_clocks=CLOCKS.format(**LOOSE))
    checks = by_name(cli("doctor", *given, "--json").stdout)
    assert (checks["power mode"]["found"], checks["power mode"]["advice"]) == (
        "MODE_30W",
        "sudo nvpmodel -m 0 sets MAXN, which has no limit.",
    )
    assert checks["clocks"]["found"] == "cpu0, cpu1, GPU, EMC not fixed"
    assert checks["clocks"]["advice"].startswith("sudo jetson_clocks")
    fake(tmp_path / "fake", nvpmodel="NV Power Mode: MAXN\n0", jetson_clocks=CLOCKS.format(**FIXED))
    checks = by_name(cli("doctor", *given, "--json").stdout)
    assert (checks["power mode"]["found"], checks["power mode"]["advice"]) == ("MAXN", None)
    assert (checks["clocks"]["found"], checks["clocks"]["advice"]) == ("4 are fixed", None)
    fake(tmp_path / "fake", nvpmodel="", jetson_clocks="Error: root is needed")
    checks = by_name(cli("doctor", *given, "--json").stdout)
    assert checks["power mode"]["found"] is checks["clocks"]["found"] is None
    assert "sudo" in checks["clocks"]["advice"]


def test_clocks_are_read_as_they_are_said() -> None:
    clocks = clocks_in(CLOCKS.format(**LOOSE))
    assert [(clock.name, clock.least, clock.most) for clock in clocks] == [
        ("cpu0", 729600, 2201600),
        ("cpu1", 729600, 2201600),
        ("GPU", 306000000, 1300500000),
        ("EMC", 204000000, 3199000000),
    ]
    assert clocks_in("") == () and clocks_in("bash: jetson_clocks: command not found") == ()


def test_the_mode_without_a_limit_is_found_by_its_name() -> None:
    text = "< POWER_MODEL ID=0 NAME=15W >\nCPU_ONLINE CORE_0 1\n< POWER_MODEL ID=1 NAME=25W >\n"
    assert largest_mode(text) is None
    assert largest_mode(text + "< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n") == (2, "MAXN_SUPER")
    assert largest_mode("< POWER_MODEL ID=0 NAME=MAXN >\n") == (0, "MAXN")
