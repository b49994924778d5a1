"""The interface of TensorRT that the emulation declares lies in memory as the real one does.

Where real headers are here, sizes, offsets, enumerators and the order of virtual functions are compared with theirs, so
that what the plugins are tested against on every machine cannot drift.
"""

import subprocess
from pathlib import Path

import pytest

from tests.native.emulation.building import HERE, compiler, headers_params, objects
from trt_compress.plugins.build import tensorrt_version

PROGRAM = HERE.parent / "harness" / "plugin_layout.cpp"
OURS = HERE / "tensorrt"
OTHER_IN_11 = {"slot ILogger.log", "slot ILoggerFinder.findLogger"}
"""TensorRT 11 made versioned interfaces of these two; the emulation declares those of 10."""


def layout(headers: Path, folder: Path) -> dict[str, int]:
    """What the program says of the headers in a folder."""
    (part,) = objects([PROGRAM], ["-Wno-invalid-offsetof", "-isystem", str(headers)])
    program = folder / "layout"
    subprocess.run([compiler(), str(part), "-o", str(program)], check=True)
    said = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    lines = [line.rsplit(" ", 1) for line in said.splitlines()]
    assert len({name for name, _ in lines}) == len(lines) > 150
    return {name: int(number) for name, number in lines}


def differences(ours: dict[str, int], other: dict[str, int]) -> set[str]:
    return {name for name in ours.keys() | other.keys() if ours.get(name) != other.get(name)}


@pytest.mark.parametrize("headers", headers_params())
def test_the_emulation_lies_in_memory_as_tensorrt_does(headers: Path, tmp_path: Path) -> None:
    major = int(tensorrt_version(headers).partition(".")[0])
    expected = OTHER_IN_11 if major >= 11 else set()
    assert differences(layout(OURS, tmp_path), layout(headers, tmp_path)) == expected


FAULTS = {
    "two functions in another order": (
        "    virtual IPluginCapability* getCapabilityInterface(PluginCapabilityType type) noexcept = 0;\n"
        "    virtual IPluginV3* clone() noexcept = 0;\n",
        "    virtual IPluginV3* clone() noexcept = 0;\n"
        "    virtual IPluginCapability* getCapabilityInterface(PluginCapabilityType type) noexcept = 0;\n",
        {"slot IPluginV3.clone", "slot IPluginV3.getCapabilityInterface"},
    ),
    "an enumerator too many": (
        "    kEQUAL,\n",
        "    kEQUAL_NOT,\n    kEQUAL,\n",
        {f"value DimensionOperation::{name}" for name in ("kEQUAL", "kLESS", "kFLOOR_DIV", "kCEIL_DIV")},
    ),
    "a member of another size": (
        "    PluginFieldType type;\n    int32_t length;\n",
        "    PluginFieldType type;\n    int64_t length;\n",
        {"sizeof PluginField", "offset PluginField.length"},
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_difference_is_noticed(fault: str, tmp_path: Path) -> None:
    old, new, expected = FAULTS[fault]
    text = (OURS / "NvInferRuntime.h").read_text(encoding="utf-8")
    assert text.count(old) == 1
    (tmp_path / "NvInferRuntime.h").write_text(text.replace(old, new), encoding="utf-8")
    assert differences(layout(OURS, tmp_path), layout(tmp_path, tmp_path)) == expected
