"""The energy of each rail since the first sample, and the samples themselves as long as there is room for them.

A measurement of days takes no more memory than one of an hour: energies are summed as samples come, and where there is
no more room, samples of the middle are merged two by two. The beginning, in which the idle measurement and the start of
the load lie, and the end stay as they were sampled, so that what is integrated between them is the same.
"""

from array import array
from collections.abc import Iterable

import numpy as np

from trt_compress.runtime.measure.power.reader import PowerSource, RailSamples

FIRST, LAST, MOST = 8192, 1024, 32768

Floats = np.ndarray[tuple[int], np.dtype[np.float64]]


class Trace:
    """Samples of one source, in order of time.

    Args:
        source: What they are read from.
        samples: Those that are there already.
        first: How many at the beginning stay as they are.
        last: How many at the end.
        most: How many there are at most.
    """

    def __init__(
        self,
        source: PowerSource,
        samples: Iterable[RailSamples] = (),
        *,
        first: int = FIRST,
        last: int = LAST,
        most: int = MOST,
    ) -> None:
        self.source = source
        self._first, self._last, self._most = first, last, most
        self._times = array("q")  # ns
        self._numbers = array("q")  # of samples up to here
        self._gaps = array("q")  # ns, the longest between two samples since the point before
        self._energies: dict[str, array[float]] = {}  # J since the first sample
        self._powers: dict[str, array[float]] = {}  # mW
        self._before: RailSamples | None = None
        for sample in samples:
            self.add(sample)

    def __len__(self) -> int:
        return len(self._times)

    @property
    def names(self) -> list[str]:
        """The rails, of the first sample."""
        return list(self._energies)

    @property
    def times(self) -> Floats:
        """When each was taken, in ns of the sampling clock."""
        return np.array(self._times, dtype=np.float64)

    @property
    def numbers(self) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """How many samples were taken up to each."""
        return np.array(self._numbers)

    @property
    def gaps(self) -> Floats:
        """The longest time between two samples since the point before, in ns."""
        return np.array(self._gaps, dtype=np.float64)

    def energy(self, name: str) -> Floats:
        """Energy of a rail since the first sample, in J."""
        return np.array(self._energies[name])

    def power(self, name: str) -> Floats:
        """Power of a rail in mW: as sampled, or the mean since the point before where samples were merged or its
        source counts energy."""
        powers = np.array(self._powers[name])
        if self.source.quantity == "energy_uj" and len(powers) > 1:
            powers[0] = powers[1]
        return powers

    def add(self, sample: RailSamples) -> None:
        """Take the next sample."""
        before, self._before = self._before, sample
        gap = 0 if before is None else sample.time_ns - before.time_ns
        if before is None:
            self._energies = {name: array("d") for name in sample.values}
            self._powers = {name: array("d") for name in sample.values}
        for name, energies in self._energies.items():
            value = float(sample.values[name])
            if before is None:
                step, power = 0.0, value if self.source.quantity == "power_mw" else 0.0
            else:
                step, power = self._step(name, float(before.values[name]), value, gap / 1e9)
            energies.append(energies[-1] + step if energies else 0.0)
            self._powers[name].append(power)
        self._times.append(sample.time_ns)
        self._numbers.append(self._numbers[-1] + 1 if self._numbers else 1)
        self._gaps.append(gap)
        if len(self._times) > self._most:
            self._merge()

    def _step(self, name: str, before: float, value: float, seconds: float) -> tuple[float, float]:
        """Energy since the sample before, in J, and power, in mW."""
        if self.source.quantity == "power_mw":
            return (value + before) / 2 * seconds / 1000, value
        step = value - before
        step = (step + self.source.wrap_uj[name] if step < 0 else step) / 1e6  # the counter started again from 0
        return step, step * 1000 / seconds if seconds > 0 else 0.0

    def _merge(self) -> None:
        """Merge the points between beginning and end two by two."""
        stop = len(self._times) - self._last
        stop -= (stop - self._first) % 2
        kept = np.ones(len(self._times), dtype=bool)
        kept[self._first : stop : 2] = False
        ends = np.arange(self._first + 1, stop, 2)  # each takes the one before it in
        gaps = np.array(self._gaps)
        gaps[ends] = np.maximum(gaps[ends], gaps[ends - 1])
        times = np.array(self._times)
        seconds = (times[ends] - times[ends - 2]) / 1e9
        for name, energies in self._energies.items():
            energy, powers = np.array(energies), np.array(self._powers[name])
            joules = (energy[ends] - energy[ends - 2]) * 1000
            powers[ends] = np.divide(joules, seconds, out=powers[ends], where=seconds > 0)
            self._energies[name], self._powers[name] = array("d", energy[kept]), array("d", powers[kept])
        self._times, self._gaps = array("q", times[kept]), array("q", gaps[kept])
        self._numbers = array("q", np.array(self._numbers)[kept])
