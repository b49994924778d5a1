"""Power rails behind INA sensors, from sysfs: INA3221 on Jetson modules, INA238 on Thor's carrier board.

INA3221: `in[123]_label`, `in[123]_input` (mV), `curr[123]_input` (mA); in4 to in7 are shunt voltages and their sum, and
curr4 is a sum, so they are no rails. INA238: `power1_input` (µW).
Source: docs.kernel.org/hwmon/ina3221.html, docs.kernel.org/hwmon/ina238.html.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trt_compress.errors import UnsupportedError
from trt_compress.runtime.measure.power.reader import PowerSource, RailSamples
from trt_compress.runtime.measure.power.sysfs import read_number, read_text

HWMON = Path("/sys/class/hwmon")

_UNCONNECTED = ("", "NC")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rail:
    name: str
    read_mw: Callable[[], float]


class InaReader:
    """Reads the rails of every INA sensor below a hwmon folder."""

    paced = False

    def __init__(self, hwmon: Path = HWMON, *, clock: Callable[[], int] = time.perf_counter_ns) -> None:
        self.source = PowerSource(
            name="ina", quantity="power_mw", smoothing="none, but what the sensor's own averaging register says"
        )
        self.faults: list[str] = []
        self.num_faults = 0
        self._clock = clock
        self._rails = _find_rails(hwmon)
        if not self._rails:
            raise UnsupportedError(
                f"'{hwmon}' has no INA3221 or INA238 sensor with a connected rail; this is no Jetson, or its driver is "
                "not loaded. Use another power reader."
            )
        self.read()

    def read(self) -> RailSamples:
        """Read every rail once."""
        return RailSamples(time_ns=self._clock(), values={rail.name: rail.read_mw() for rail in self._rails})

    def close(self) -> None:
        """Nothing to let go of."""


def _find_rails(hwmon: Path) -> list[_Rail]:
    rails: list[_Rail] = []
    for folder in sorted(hwmon.glob("hwmon*"), key=lambda path: (len(path.name), path.name)):
        if not (folder / "name").is_file():
            continue
        chip = read_text(folder / "name")
        if chip == "ina3221":
            rails += _ina3221(folder)
        elif chip in ("ina238", "ina237"):
            rails.append(_ina238(folder))
    names = [rail.name for rail in rails]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UnsupportedError(
            f"Two sensors below '{hwmon}' name a rail '{twice[0]}'; correct the labels in the device tree."
        )
    return rails


def _ina3221(folder: Path) -> list[_Rail]:
    rails = []
    for channel in (1, 2, 3):
        label = folder / f"in{channel}_label"
        enabled = folder / f"in{channel}_enable"
        name = read_text(label) if label.is_file() else ""
        if name in _UNCONNECTED or (enabled.is_file() and read_text(enabled) == "0"):
            continue
        voltage, current = folder / f"in{channel}_input", folder / f"curr{channel}_input"
        rails.append(_Rail(name=name, read_mw=lambda v=voltage, i=current: read_number(v) * read_number(i) / 1000))  # type: ignore[misc]
    return rails


def _ina238(folder: Path) -> _Rail:
    label = folder / "power1_label"
    name = read_text(label) if label.is_file() else "VIN"  # Thor's carrier has one, at the input of the whole board
    return _Rail(name=name, read_mw=lambda: read_number(folder / "power1_input") / 1000)
