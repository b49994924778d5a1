"""Energy counters of Intel and AMD processors (RAPL), from the powercap interface.

A zone has `name`, `energy_uj` and `max_energy_range_uj`; the counter starts again from 0 above that range. A package's
memory ("dram") is a subzone but not part of its parent's energy; "core" and "uncore" are. Since Linux 5.10 only root
may read the counters (CVE-2020-8694).
Source: docs.kernel.org/power/powercap/powercap.html.
"""

import time
from collections.abc import Callable
from pathlib import Path

from trt_compress.errors import UnsupportedError
from trt_compress.runtime.measure.power.reader import PowerSource, RailSamples
from trt_compress.runtime.measure.power.sysfs import read_number, read_text

POWERCAP = Path("/sys/class/powercap")


class RaplReader:
    """Reads every RAPL zone below a powercap folder; a subzone is named `parent/zone`."""

    paced = False

    def __init__(self, powercap: Path = POWERCAP, *, clock: Callable[[], int] = time.perf_counter_ns) -> None:
        self.faults: list[str] = []
        self.num_faults = 0
        self._clock = clock
        self._counters = _find_zones(powercap)
        if not self._counters:
            raise UnsupportedError(
                f"'{powercap}' has no intel-rapl zone; this processor, virtual machine or container shows no energy "
                "counter. Use another power reader."
            )
        wraps = {name: read_number(path.parent / "max_energy_range_uj") for name, path in self._counters.items()}
        self.source = PowerSource(name="rapl", quantity="energy_uj", smoothing="none: energy counter", wrap_uj=wraps)
        self.read()

    def read(self) -> RailSamples:
        """Read every counter once."""
        values = {name: float(read_number(path)) for name, path in self._counters.items()}
        return RailSamples(time_ns=self._clock(), values=values)

    def close(self) -> None:
        """Nothing to let go of."""


def _find_zones(powercap: Path) -> dict[str, Path]:
    """Counter files by name of the zone; `intel-rapl:0:1` is subzone 1 of `intel-rapl:0`."""
    counters: dict[str, Path] = {}
    # intel-rapl-mmio shows the package a second time: counting it too would double the total.
    for folder in sorted(powercap.glob("intel-rapl:*")):
        parts = folder.name.split(":")[1:]
        name = read_text(folder / "name")
        if len(parts) > 1:
            name = f"{read_text(powercap / f'intel-rapl:{parts[0]}' / 'name')}/{name}"
        counters[name] = folder / "energy_uj"
    return counters
