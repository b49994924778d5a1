"""The interface of all power readers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

Quantity = Literal["power_mw", "energy_uj"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RailSamples:
    """One raw sample of every rail: power in mW, or the reading of an energy counter in µJ."""

    time_ns: int
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerSource:
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
        faults: What could not be read, one sentence each, of the first hundred.
        num_faults: How often something could not be read.
    """

    source: PowerSource
    paced: bool
    faults: list[str]
    num_faults: int

    def read(self) -> RailSamples | None:
        """Read the next sample; None when there will be none because the reader was closed.

        Raises:
            UnsupportedError: The source went away, or can no longer be read.
        """
        ...

    def close(self) -> None:
        """Let go of the source; a `read` that waits returns."""
        ...
