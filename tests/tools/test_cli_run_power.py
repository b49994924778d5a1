"""`trt-compress run --power`: made sensors as the system shows them, read while a small bundle runs."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from trt_compress.runtime.measure.power import session
from trt_compress.runtime.stream.result import StreamResult
from trt_compress.tools.cli.main import app

ORIN_NX = "RAM 3519/30697MB CPU [2%@729] VDD_IN 4521mW/4533mW VDD_CPU_GPU_CV 1320mW/1280mW VDD_SOC 1080mW/1077mW"
INA = {
    "hwmon1/name": "ina3221",
    "hwmon1/in1_label": "VDD_IN",
    "hwmon1/in1_input": 5000,
    "hwmon1/curr1_input": 900,
    "hwmon1/in2_label": "NC",
}
RAPL = {
    "intel-rapl:0/name": "package-0",
    "intel-rapl:0/energy_uj": 500,
    "intel-rapl:0/max_energy_range_uj": 262_143_328_850,
}
FRAMES = 12


def tree(folder: Path, files: dict[str, object]) -> Path:
    for name, value in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{value}\n")
    return folder


def program(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def typed(
    tmp_path: Path, make_bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    """Run `trt-compress run` on a scene of twelve frames, with a reader; an energy is stated from 0.2 s on."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(session, "SECONDS_NEEDED", 0.2)
    bundle = make_bundle("bundle")
    np.savez(tmp_path / "s.npz", images=np.ones((FRAMES, 1, 8), np.float32))

    def run(power: str, *arguments: object) -> tuple[int, str, str]:
        words = ["run", bundle, "--source", "s.npz", "--fps", 20, "--power", power, "--power-idle-s", 0.3, *arguments]
        done = CliRunner().invoke(app, list(map(str, words)))
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done.exit_code, done.stdout, done.stderr

    return run


@pytest.mark.parametrize(
    ("make", "power", "watts"),
    [
        (lambda folder: tree(folder / "hwmon", INA), "ina:hwmon", 4.5),
        (
            lambda folder: program(folder / "tegrastats", f"while :; do echo '{ORIN_NX}'; sleep 0.02; done"),
            "tegrastats:./tegrastats",
            4.521,
        ),
        (
            lambda folder: program(
                folder / "nvidia-smi",
                'case "$*" in *power*) while :; do echo "0, 75.5"; sleep 0.02; done;; *) echo 0;; esac',
            ),
            "nvidia-smi:./nvidia-smi",
            75.5,
        ),
        (lambda folder: tree(folder / "powercap", RAPL), "rapl:powercap", 0.0),
    ],
    ids=["ina", "tegrastats", "nvidia-smi", "rapl"],
)
def test_a_run_has_the_power_and_energy_of_a_frame(
    typed: Callable[..., tuple[int, str, str]], tmp_path: Path, make: Callable[[Path], object], power: str, watts: float
) -> None:
    make(tmp_path)
    code, out, err = typed(power, "--report", "rep")
    assert code == 0, err
    result = StreamResult.read("rep/result.json")
    found: dict[str, Any] = result.resources.power or {}
    assert found["reader"] == power.partition(":")[0] and found["mean_mw"] == pytest.approx(watts * 1000)
    assert result.resources.power_reason is None and result.resources.idle_watt == pytest.approx(watts)
    assert found["num_inferences"] == FRAMES and found["num_samples"] >= 3 and found["idle_seconds"] >= 0.3
    joules = watts * result.wall_ns / 1e9
    assert result.resources.energy_joule == pytest.approx(joules, rel=0.01)
    assert found["energy_per_inference_j"] == pytest.approx(joules / FRAMES, rel=0.01)
    assert found["net_energy_per_inference_j"] == pytest.approx(0, abs=1e-6)
    assert re.search(rf"power +[\d.]+ W, idle [\d.]+ W; \d+ samples of {found['reader']}", out)
    assert re.search(r"energy per frame +[\d.]+ J, \S+ J net of idle", out)
    report = json.loads(Path("rep/result.report.json").read_text())
    assert report["sides"][0]["resources"]["power"]["mean_mw"] == pytest.approx(watts * 1000)
    page = Path("rep/result.report.html").read_text()
    assert "Power of the rails" in page and "energy of one inference" in page


XAVIER = "CPU [0%@1190] GPU@30.5C GPU 460/460 CPU 610/610 SOC 2900/2900 CV 0/0 VDDRQ 300/300 SYS5V 3300/3300"


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (
            XAVIER,
            [
                r"power +7\.57 W, idle 7\.57 W; \d+ samples of tegrastats",
                r"power covers +module, sum of its six rails; none is at its input \(AGX Xavier\)",
                r"rails +GPU 0\.46\d* W, CPU 0\.61\d* W, SOC 2\.9\d* W, CV 0\S* W, VDDRQ 0\.3\d* W, SYS5V 3\.3\d* W",
            ],
        ),
        (
            ORIN_NX + " VDD_NEW 7mW/8mW",
            [
                r"rails +VDD_IN 4\.52\d* W, VDD_CPU_GPU_CV 1\.32\d* W \(part\), ",
                r", VDD_NEW 0\.007\d* W \(unknown, in no total\)",
            ],
        ),
        (
            "RAM 1/2MB GPU 460/460 NEW_ONE 540/540",
            [
                r"power +not stated: no known set of rails is this machine's total; it has GPU, NEW_ONE",
                r"rails +GPU 0\.46\d* W",
                r"sum of rails +1\S* W; no total, for rails may be parts of others",
            ],
        ),
    ],
    ids=["agx-xavier", "unknown rail", "unknown machine"],
)
def test_every_rail_is_shown_with_what_it_is(
    typed: Callable[..., tuple[int, str, str]], tmp_path: Path, line: str, shown: list[str]
) -> None:
    program(tmp_path / "tegrastats", f"while :; do echo '{line}'; sleep 0.02; done")
    code, out, err = typed("tegrastats:./tegrastats")
    assert code == 0, err
    out = re.sub(r"\n {8,}", " ", out)  # long rows are folded
    for pattern in shown:
        assert re.search(pattern, out), out


def test_a_short_run_states_power_and_no_energy(
    typed: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "SECONDS_NEEDED", 30.0)
    tree(tmp_path / "hwmon", INA)
    code, out, _ = typed("ina:hwmon")
    assert code == 0 and re.search(r"energy per frame +not stated: n too small: 0\.\d of 30 s", out)


def test_auto_where_nothing_can_be_read_says_not_measured_here(
    typed: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from trt_compress.runtime.measure.power import ina, rapl

    monkeypatch.setattr(ina, "HWMON", tmp_path / "none")
    monkeypatch.setattr(rapl, "POWERCAP", tmp_path / "none")
    monkeypatch.setenv("PATH", str(tmp_path))
    code, out, err = typed("auto", "--report", "rep")
    assert code == 0, err
    assert re.search(r"power +not measured here: no power rail can be read on this machine", out)
    resources = StreamResult.read("rep/result.json").resources
    assert resources.power is resources.energy_joule is resources.idle_watt is None
    assert resources.power_reason == "No power rail can be read on this machine"
    assert "not measured here: no power rail can be read on this machine" in Path("rep/result.report.html").read_text()


def test_without_the_option_nothing_is_said_of_power(typed: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = typed("off", "--json")
    resources = StreamResult.from_text(out).resources
    assert code == 0 and resources.power is resources.power_reason is None


@pytest.mark.parametrize(
    ("power", "message"),
    [
        ("ina:none", "'none' has no INA3221 or INA238 sensor with a connected rail"),
        ("rapl:none", "'none' has no intel-rapl zone"),
        ("tegrastats:none", "The program 'none' is not on this machine; use another power reader"),
        ("nvidia-smi:none", "The program 'none' is not on this machine; use another power reader"),
        ("nvml", "power reader 'nvml' is not known; there are auto, ina, tegrastats, nvidia-smi, rapl"),
        ("ina:", "power reader 'ina:' is not known"),
    ],
)
def test_a_reader_that_is_not_there_is_one_sentence_and_exit_code_2(
    typed: Callable[..., tuple[int, str, str]], power: str, message: str
) -> None:
    code, _, err = typed(power)
    assert code == 2 and message in err and "Traceback" not in err
    assert not any(name.startswith("power") for name in os.listdir())


def test_a_stream_that_breaks_keeps_its_power(typed: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    tree(tmp_path / "hwmon", INA)
    code, _, err = typed("ina:hwmon", "--out", "/dev/full", "--report", "rep")
    assert code == 2 and "cannot be written any more" in err
    result = StreamResult.read("rep/result.json")
    assert result.ended == "error" and (result.resources.power or {})["reader"] == "ina"
