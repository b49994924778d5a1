"""The interface of all power readers, and how one is chosen."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from trt_compress.errors import ConfigError, TrtCompressError, UnsupportedError
from trt_compress.suggest import did_you_mean

Quantity = Literal["power_mw", "energy_uj"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RailSamples:
    """One raw sample of every rail: power in mW, or the reading of an energy counter in µJ."""

    time_ns: int
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What a reader reads.

    Attributes:
        name: "tegrastats", "ina", "nvidia-smi" or "rapl".
        quantity: What its values are.
        smoothing: What the hardware or driver does to a value before it is read.
        wrap_uj: For an energy counter, by rail: the value at which it starts again from 0.
    """

    name: str
    quantity: Quantity
    smoothing: str = "none: instantaneous"
    wrap_uj: Mapping[str, int] = field(default_factory=dict)


class PowerReader(Protocol):
    """Reads raw samples of power rails.

    Attributes:
        source: What is read.
        paced: `read` waits for the next sample by itself; otherwise the caller waits between samples.
        faults: What could not be read so far, one sentence each.
    """

    source: Source
    paced: bool
    faults: list[str]

    def read(self) -> RailSamples | None:
        """Read the next sample; None when there will be none because the reader was closed.

        Raises:
            UnsupportedError: The source went away, or can no longer be read.
        """
        ...

    def close(self) -> None:
        """Let go of the source; a `read` that waits returns."""
        ...


def open_reader(kind: str = "auto") -> PowerReader:
    """Open a power reader.

    Args:
        kind: "ina", "tegrastats", "nvidia-smi" or "rapl"; "auto" takes the first of these that this machine has. What
            was taken is `source.name`, and is part of every result. A name may go with the place to look at, after a
            colon: `ina:FOLDER` as /sys/class/hwmon, `rapl:FOLDER` as /sys/class/powercap, `tegrastats:PROGRAM`,
            `nvidia-smi:PROGRAM`.

    Raises:
        ConfigError: An unknown kind.
        UnsupportedError: This machine has no such source, or may not read it.
    """
    openers = _openers()
    name, colon, place = kind.partition(":")
    if name in openers and bool(colon) == bool(place):
        return openers[name](place or None)
    if kind != "auto":
        names = ["auto", *openers]
        raise ConfigError(
            f"Unknown power reader '{kind}'; allowed are {', '.join(names)}, or a name and its place such as "
            f"'ina:/sys/class/hwmon'.{did_you_mean(name, names)}"
        )
    reasons = []
    for name, opener in openers.items():
        try:
            return opener(None)
        except TrtCompressError as error:
            reasons.append(f"{name}: {error.message}")
    raise UnsupportedError("No power rail can be read on this machine.", hint=" ".join(reasons))


def _openers() -> dict[str, Callable[[str | None], PowerReader]]:
    from trt_compress.runtime.measure.power.ina import HWMON, InaReader
    from trt_compress.runtime.measure.power.lines import nvidia_smi_reader, tegrastats_reader
    from trt_compress.runtime.measure.power.rapl import POWERCAP, RaplReader

    return {
        "ina": lambda place: InaReader(Path(place or HWMON)),
        "tegrastats": lambda place: tegrastats_reader(place or "tegrastats"),
        "nvidia-smi": lambda place: nvidia_smi_reader(place or "nvidia-smi"),
        "rapl": lambda place: RaplReader(Path(place or POWERCAP)),
    }
