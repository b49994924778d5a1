"""Which rails a machine has, which of them make up its total, and which part of it that total covers.

Sources: NVIDIA Jetson Linux Developer Guide (r32, r35.6, r36, r38), "Software-Based Power Consumption Modeling"; Linux
`arch/arm64/boot/dts/nvidia/tegra234-p3701.dtsi`, `tegra234-p3767.dtsi`; docs.kernel.org/power/powercap.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Total:
    """The rails whose sum is the power of a machine, and what that sum covers."""

    rails: tuple[str, ...]
    covers: str


_TOTALS = (
    Total(rails=("VIN",), covers="module and carrier board, at the input (Thor)"),
    Total(rails=("VDD_IN",), covers="module, at its input (Orin NX, Orin Nano, Xavier NX, TX2)"),
    # The DDR rail VDDQ_VDD2_1V8AO is fed by VIN_SYS_5V0: adding it would count it twice.
    Total(rails=("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"), covers="module, sum of its inputs (AGX Orin)"),
    Total(rails=("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"), covers="module, sum of its inputs (Thor)"),
    Total(
        rails=("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),
        covers="module, sum of its six rails; none is at its input (AGX Xavier)",
    ),
    Total(rails=("POM_5V_IN",), covers="board, at its 5 V input (Nano, TX1)"),
)

_PARTS = (
    *("VDD_CPU_GPU_CV", "VDD_SOC", "VDDQ_VDD2_1V8AO", "POM_5V_GPU", "POM_5V_CPU"),
    *("VDD_CPU", "VDD_DDR", "VDD_WIFI", "VDD_SYS_GPU", "VDD_SYS_SOC", "VDD_SYS_CPU", "VDD_SYS_DDR", "VDD_4V0_WIFI"),
)
"""Rails that lie behind one of those above."""

_RAPL_SUMMED = re.compile(r"package-\d+(/dram)?")
_RAPL_PART = re.compile(r"package-\d+/(core|uncore)|psys")
_GPU = re.compile(r"gpu\d+")


def total_of(rails: Iterable[str]) -> Total | None:
    """Find the rails that make up the total, or None where no known set of them is there."""
    names = list(rails)
    for total in _TOTALS:
        if set(total.rails) <= set(names):
            return total
    if packages := tuple(name for name in names if _RAPL_SUMMED.fullmatch(name)):
        dram = any(name.endswith("/dram") for name in packages)
        return Total(rails=packages, covers=f"processor packages{' and their memory' if dram else ', without memory'}")
    if boards := tuple(name for name in names if _GPU.fullmatch(name)):
        return Total(rails=boards, covers="GPU boards, without the rest of the machine")
    return None


def unknown_rails(rails: Iterable[str]) -> tuple[str, ...]:
    """Name the rails that no table here knows: they are reported, and are in no total."""
    known = {name for total in _TOTALS for name in total.rails} | set(_PARTS)
    patterns = (_RAPL_SUMMED, _RAPL_PART, _GPU)
    return tuple(name for name in rails if name not in known and not any(p.fullmatch(name) for p in patterns))
