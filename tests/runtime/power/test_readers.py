"""Power readers against samples of each format, made after its public documentation (see the readers' docstrings)."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from trt_compress.errors import ConfigError, UnsupportedError
from trt_compress.runtime.measure.power import open_reader, sysfs
from trt_compress.runtime.measure.power.ina import InaReader
from trt_compress.runtime.measure.power.lines import (
    gpus_from_nvidia_smi,
    nvidia_smi_reader,
    rails_from_tegrastats,
    tegrastats_reader,
)
from trt_compress.runtime.measure.power.rapl import RaplReader

RAM = "RAM 3519/30697MB (lfb 1242x4MB) SWAP 0/15348MB (cached 0MB) CPU [2%@729,off,0%@1190,0%@2201] "

ORIN_NX = (
    RAM + "EMC_FREQ 0%@2133 GR3D_FREQ 14%@[420] APE 174 cpu@46.5C soc2@45.5C tj@46.5C "
    "VDD_IN 4521mW/4533mW VDD_CPU_GPU_CV 1320mW/1280mW VDD_SOC 1080mW/1077mW"
)
AGX_ORIN = (
    "11-24-2026 09:58:01 " + RAM + "EMC_FREQ 14%@3199 GR3D_FREQ 14%@[407,407] NVDLA0_FREQ @1600 CV0@73.6C Tboard@62C "
    "GPU@69.125C tj@77.28C VDD_GPU_SOC 3150mW/2971mW VDD_CPU_CV 14312mW/12415mW VIN_SYS_5V0 4968mW/5048mW "
    "NC 0mW/0mW VDDQ_VDD2_1V8AO 1091mW/1091mW NC 0mW/0mW"
)
XAVIER_NX = RAM + "EMC_FREQ 7% GR3D_FREQ 33% AO@35C PMIC@100C VDD_IN 3902/3611 VDD_CPU_GPU_CV 1331/1180 VDD_SOC 997/941"
NANO = RAM + "EMC_FREQ 14%@1600 GR3D_FREQ 22%@921 APE 25 POM_5V_IN 3012/2950 POM_5V_GPU 40/81 POM_5V_CPU 483/512"
AGX_XAVIER_4 = (  # JetPack 4: rails have the names of the units
    "RAM 14700/15692MB (lfb 3x2MB) SWAP 0/7846MB (cached 0MB) CPU [0%@1190,0%@1190,off,off] EMC_FREQ 0% GR3D_FREQ 0% "
    "AO@30C GPU@30.5C Tboard@31C AUX@30C CPU@31C thermal@30.8C PMIC@100C GPU 460/470 CPU 610/615 SOC 2900/2905 CV 0/0 "
    "VDDRQ 300/301 SYS5V 3300/3310"
)
AGX_XAVIER_5 = (
    RAM + "EMC_FREQ 0%@1600 GR3D_FREQ 0%@[318] VIC_FREQ 115 APE 150 AUX@36C CPU@37.5C GPU 0mW/0mW CPU 776mW/776mW "
    "SOC 1555mW/1555mW CV 0mW/0mW VDDRQ 311mW/311mW SYS5V 2334mW/2334mW"
)
TX2 = (
    "RAM 2310/7852MB (lfb 1024x4MB) SWAP 0/3926MB (cached 0MB) IRAM 0/252kB(lfb 252kB) CPU [6%@345,off,off,3%@345] "
    "EMC_FREQ 4%@665 GR3D_FREQ 0%@114 VIC_FREQ 0%@115 APE 150 MTS fg 0% bg 0% PLL@35C MCPU@35C PMIC@100C Tboard@32C "
    "VDD_IN 2452/2460 VDD_CPU 152/153 VDD_GPU 76/77 VDD_SOC 458/459 VDD_WIFI 0/19 VDD_DDR 555/560"
)
TX2_3 = (
    "RAM 2049/7846MB (lfb 840x4MB) CPU [0%@345,off,off,0%@345] EMC_FREQ 1%@1600 GR3D_FREQ 0%@114 BCPU@40C "
    "VDD_SYS_GPU 152/152 VDD_SYS_SOC 457/457 VDD_4V0_WIFI 19/19 VDD_IN 2560/2560 VDD_SYS_CPU 152/152 "
    "VDD_SYS_DDR 576/576"
)
THOR = (
    "05-14-2026 21:36:35 "
    + RAM
    + "EMC_FREQ 0%@2750 GR3D_FREQ @[314,314,314] VIC off PVA0_FREQ off cpu@37.3C gpu@38.8C "
    "VDD_GPU -392mW/-392mW VDD_CPU_SOC_MSS 3924mW/3835mW VIN_SYS_5V0 5064mW/5055mW VIN 15004mW/15096mW"
)
THOR_7_2 = (
    "07-02-2026 13:45:44 " + RAM + "cpu@60.4C tj@63.2C gpu@62.9C VDD_GPU 37528mW/37528mW/37528mW "
    "VDD_CPU_SOC_MSS 18961mW/18961mW/18961mW VIN_SYS_5V0 18331mW/18331mW/18331mW VIN 87426mW/43713mW/87426mW"
)
THOR_BARE = RAM + "cpu@43.8C gpu@43.9C VDD_GPU 5517mW VDD_CPU_SOC_MSS 7484mW VIN_SYS_5V0 6309mW VIN 28548mW"


@pytest.mark.parametrize(
    ("line", "rails"),
    [
        (ORIN_NX, {"VDD_IN": 4521, "VDD_CPU_GPU_CV": 1320, "VDD_SOC": 1080}),
        (
            AGX_ORIN,
            {"VDD_GPU_SOC": 3150, "VDD_CPU_CV": 14312, "VIN_SYS_5V0": 4968, "NC": 0, "VDDQ_VDD2_1V8AO": 1091},
        ),
        (XAVIER_NX, {"VDD_IN": 3902, "VDD_CPU_GPU_CV": 1331, "VDD_SOC": 997}),
        (NANO, {"POM_5V_IN": 3012, "POM_5V_GPU": 40, "POM_5V_CPU": 483}),
        (THOR, {"VDD_GPU": -392, "VDD_CPU_SOC_MSS": 3924, "VIN_SYS_5V0": 5064, "VIN": 15004}),
        (AGX_XAVIER_4, {"GPU": 460, "CPU": 610, "SOC": 2900, "CV": 0, "VDDRQ": 300, "SYS5V": 3300}),
        (AGX_XAVIER_5, {"GPU": 0, "CPU": 776, "SOC": 1555, "CV": 0, "VDDRQ": 311, "SYS5V": 2334}),
        (TX2, {"VDD_IN": 2452, "VDD_CPU": 152, "VDD_GPU": 76, "VDD_SOC": 458, "VDD_WIFI": 0, "VDD_DDR": 555}),
        (
            TX2_3,
            {
                "VDD_SYS_GPU": 152,
                "VDD_SYS_SOC": 457,
                "VDD_4V0_WIFI": 19,
                "VDD_IN": 2560,
                "VDD_SYS_CPU": 152,
                "VDD_SYS_DDR": 576,
            },
        ),
        (
            AGX_XAVIER_4 + " NEW_ONE 7/8",
            {"GPU": 460, "CPU": 610, "SOC": 2900, "CV": 0, "VDDRQ": 300, "SYS5V": 3300, "NEW_ONE": 7},
        ),
        (THOR_7_2, {"VDD_GPU": 37528, "VDD_CPU_SOC_MSS": 18961, "VIN_SYS_5V0": 18331, "VIN": 87426}),
        (THOR_BARE, {"VDD_GPU": 5517, "VDD_CPU_SOC_MSS": 7484, "VIN_SYS_5V0": 6309, "VIN": 28548}),
        (ORIN_NX + " NEW_RAIL 7mW/8mW", {"VDD_IN": 4521, "VDD_CPU_GPU_CV": 1320, "VDD_SOC": 1080, "NEW_RAIL": 7}),
    ],
    ids=[
        "orin-nx",
        "agx-orin",
        "xavier-nx",
        "nano",
        "thor",
        "agx-xavier-4",
        "agx-xavier-5",
        "tx2",
        "tx2-3",
        "agx-xavier-new",
        "thor-jetpack-7.2",
        "thor-bare",
        "unknown-rail",
    ],
)
def test_tegrastats_gives_the_instantaneous_power_of_every_rail(line: str, rails: dict[str, float]) -> None:
    assert rails_from_tegrastats(line + "\n") == rails


@pytest.mark.parametrize("line", [ORIN_NX, AGX_ORIN, THOR, THOR_7_2, XAVIER_NX, AGX_XAVIER_4, TX2])
def test_a_cut_line_of_tegrastats_never_gives_a_wrong_power(line: str) -> None:
    whole = rails_from_tegrastats(line)
    refused = 0
    for length in range(len(line)):
        try:
            rails = rails_from_tegrastats(line[:length])
        except ConfigError as error:
            refused += 1
            assert "ends in the middle of the rail" in error.message or "names no power rail" in error.message
        else:
            assert rails.items() <= whole.items()
    assert refused > 40


def test_lines_without_rails_are_refused() -> None:
    with pytest.raises(ConfigError, match="names no power rail: 'RAM 1/2MB cpu@45C'"):
        rails_from_tegrastats("RAM 1/2MB cpu@45C")


def test_nvidia_smi_gives_milliwatts() -> None:
    assert gpus_from_nvidia_smi("0, 79.42\n") == {"gpu0": pytest.approx(79_420)}
    with pytest.raises(ConfigError, match=r"GPU 1 does not report its power \(\[N/A\]\)"):
        gpus_from_nvidia_smi("1, [N/A]")
    with pytest.raises(ConfigError, match="nvidia-smi printed 'Unable to determine' where `index, watts` was due"):
        gpus_from_nvidia_smi("Unable to determine")


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Put a shell script on the PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def write(name: str, script: str) -> None:
        path = folder / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    return write


def test_tegrastats_runs_and_its_bad_lines_are_counted(program: Callable[[str, str], None]) -> None:
    lacking = ORIN_NX.replace(" VDD_SOC 1080mW/1077mW", "")
    lines = f"echo '{ORIN_NX}'; echo '{ORIN_NX[:-6]}'; echo '{lacking}'; echo '{ORIN_NX}'; exec sleep 60"
    program("tegrastats", lines)
    reader = tegrastats_reader()
    try:
        sample = reader.read()
        assert sample is not None and sample.values == rails_from_tegrastats(ORIN_NX)
        assert [fault.partition(":")[0] for fault in reader.faults] == [
            "The line of tegrastats ends in the middle of the rail 'VDD_SOC'",
            "A sample of tegrastats lacks VDD_SOC.",
        ]
    finally:
        start = time.perf_counter()
        reader.close()
    assert time.perf_counter() - start < 2
    assert reader.read() is None


def test_a_rail_that_the_first_line_had_not_is_a_fault(program: Callable[[str, str], None]) -> None:
    program("tegrastats", f"echo '{ORIN_NX}'; echo '{ORIN_NX} VDD_NEW 5mW/5mW'; exec sleep 60")
    reader = tegrastats_reader()
    sample = reader.read()
    reader.close()
    assert sample is not None and sample.values == rails_from_tegrastats(ORIN_NX)
    assert reader.faults == ["A sample of tegrastats has VDD_NEW, which the first one had not."]


def test_a_program_that_stops_says_so(program: Callable[[str, str], None]) -> None:
    program("tegrastats", f"echo '{ORIN_NX}'; exit 4")
    reader = tegrastats_reader()
    with pytest.raises(UnsupportedError, match=r"'tegrastats' stopped by itself \(exit code 4\)"):
        reader.read()
    reader.close()


def test_a_program_that_may_not_read_says_what_it_said(program: Callable[[str, str], None]) -> None:
    program("tegrastats", "echo 'tegrastats: permission denied'; exit 1")
    with pytest.raises(UnsupportedError, match="'tegrastats' gives no power: .*permission denied"):
        tegrastats_reader()


def test_nvidia_smi_groups_the_lines_of_all_gpus(program: Callable[[str, str], None]) -> None:
    program(
        "nvidia-smi",
        'case "$*" in *power*) printf "0, 70.00\\n1, 80.50\\n0, 71.00\\n0, 72.00\\n1, 81.00\\n"; exec sleep 60;;'
        ' *) printf "0\\n1\\n";; esac',
    )
    reader = nvidia_smi_reader()
    sample = reader.read()
    assert sample is not None and sample.values == {"gpu0": 72_000, "gpu1": 81_000}
    assert reader.faults == ["A sample of nvidia-smi lacks gpu1."]
    reader.close()


def test_nvidia_smi_without_a_gpu_or_with_an_old_driver(program: Callable[[str, str], None]) -> None:
    program("nvidia-smi", "echo 'NVIDIA-SMI has failed'; exit 9")
    with pytest.raises(UnsupportedError, match="lists no GPU; it says: 'NVIDIA-SMI has failed'"):
        nvidia_smi_reader()
    old = 'Field "power.draw.instant" is not a valid field to query.'
    program("nvidia-smi", f"case \"$*\" in *power*) echo '{old}'; exit 2;; *) echo 0;; esac")
    with pytest.raises(
        UnsupportedError, match='gives no power: nvidia-smi printed \'Field "power.draw.instant" is not'
    ):
        nvidia_smi_reader()


def write_files(folder: Path, files: dict[str, object]) -> Path:
    for name, value in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")
    return folder


AGX_ORIN_SYSFS: dict[str, object] = {
    "hwmon0/name": "tmp451",
    "hwmon3/name": "ina3221",
    "hwmon3/in1_label": "VDD_GPU_SOC",
    "hwmon3/in1_input": 19_000,
    "hwmon3/curr1_input": 200,
    "hwmon3/in2_label": "VDD_CPU_CV",
    "hwmon3/in2_input": 19_000,
    "hwmon3/curr2_input": 40,
    "hwmon3/in3_label": "VIN_SYS_5V0",
    "hwmon3/in3_input": 4968,
    "hwmon3/curr3_input": 953,
    "hwmon3/in7_label": "sum of shunt voltages",
    "hwmon3/in7_input": 640,
    "hwmon3/curr4_input": 1193,
    "hwmon4/name": "ina3221",
    "hwmon4/in1_label": "NC",
    "hwmon4/in1_input": 0,
    "hwmon4/curr1_input": 0,
    "hwmon4/in2_label": "VDDQ_VDD2_1V8AO",
    "hwmon4/in2_input": 4968,
    "hwmon4/curr2_input": 80,
    "hwmon4/in3_label": "OFF",
    "hwmon4/in3_enable": 0,
    "hwmon4/in3_input": 1,
    "hwmon4/curr3_input": 1,
}


def test_ina_multiplies_volts_and_amperes_of_connected_rails(tmp_path: Path) -> None:
    reader = InaReader(write_files(tmp_path, AGX_ORIN_SYSFS), clock=lambda: 7)
    sample = reader.read()
    assert sample.time_ns == 7
    assert sample.values == {
        "VDD_GPU_SOC": pytest.approx(3800),
        "VDD_CPU_CV": pytest.approx(760),
        "VIN_SYS_5V0": pytest.approx(4734.504),
        "VDDQ_VDD2_1V8AO": pytest.approx(397.44),
    }
    reader.close()


def test_thor_has_its_input_behind_an_ina238(tmp_path: Path) -> None:
    files = {"hwmon1/name": "ina238", "hwmon1/power1_input": 15_004_000, "hwmon1/in1_input": 19_500}
    assert InaReader(write_files(tmp_path, files)).read().values == {"VIN": 15_004}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"hwmon0/name": "k10temp"}, "has no INA3221 or INA238 sensor with a connected rail"),
        ({"hwmon3/in1_input": "busy"}, "in1_input' holds 'busy', which is not an integer"),
        ({"hwmon4/in2_label": "VDD_CPU_CV"}, "name a rail 'VDD_CPU_CV'; correct the labels"),
    ],
)
def test_what_ina_refuses(tmp_path: Path, files: dict[str, object], message: str) -> None:
    base = {} if "hwmon0/name" in files else AGX_ORIN_SYSFS
    with pytest.raises(UnsupportedError, match=message):
        InaReader(write_files(tmp_path, {**base, **files}))


RAPL: dict[str, object] = {
    "intel-rapl/enabled": 1,
    "intel-rapl:0/name": "package-0",
    "intel-rapl:0/energy_uj": 500,
    "intel-rapl:0/max_energy_range_uj": 262_143_328_850,
    "intel-rapl:0:0/name": "core",
    "intel-rapl:0:0/energy_uj": 300,
    "intel-rapl:0:0/max_energy_range_uj": 262_143_328_850,
    "intel-rapl:0:1/name": "dram",
    "intel-rapl:0:1/energy_uj": 40,
    "intel-rapl:0:1/max_energy_range_uj": 65_532_610_987,
    "intel-rapl-mmio:0/name": "package-0",
    "intel-rapl-mmio:0/energy_uj": 1,
    "intel-rapl-mmio:0/max_energy_range_uj": 2,
}


def test_rapl_names_subzones_after_their_package(tmp_path: Path) -> None:
    reader = RaplReader(write_files(tmp_path, RAPL))
    assert reader.read().values == {"package-0": 500, "package-0/core": 300, "package-0/dram": 40}
    assert reader.source.quantity == "energy_uj"
    assert reader.source.wrap_uj["package-0/dram"] == 65_532_610_987


def test_rapl_without_permission_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path, RAPL)

    def guarded(path: Path) -> bytes:
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied")
        return path.read_bytes()

    monkeypatch.setattr(sysfs, "read_regular", guarded)
    with pytest.raises(UnsupportedError, match="energy_uj' may not be read by this user; run as root, or let an admin"):
        RaplReader(tmp_path)


def test_rapl_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="has no intel-rapl zone; this processor, virtual machine or container"):
        RaplReader(tmp_path)


def test_choosing_a_reader(program: Callable[[str, str], None]) -> None:
    with pytest.raises(ConfigError, match="power reader 'tegrastat' is not known; .* Did you mean 'tegrastats'"):
        open_reader("tegrastat")
    program("tegrastats", f"echo '{ORIN_NX}'; exec sleep 60")
    reader = open_reader("tegrastats")
    assert reader.source.name == "tegrastats"
    reader.close()
