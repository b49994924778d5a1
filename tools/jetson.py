"""Power mode and clocks of a Jetson, as its own programs say them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from trt_compress.children import find_program
from trt_compress.tools import machine

_MODES = Path("/etc/nvpmodel.conf")


@dataclass(frozen=True, slots=True)
class JetsonClock:
    """A clock that `jetson_clocks --show` tells of: `GPU`, `EMC` (the memory), `cpu0`, …

    Attributes:
        name: As it says it.
        least, most: Hz (of a processor kHz) that it may run at now.
        held: Whether something else holds it at its most.
    """

    name: str
    least: int
    most: int
    held: bool = False

    @property
    def is_fixed(self) -> bool:
        """Whether it always runs at its most."""
        return self.held or self.least == self.most


def clocks_in(said: str) -> tuple[JetsonClock, ...]:
    """The clocks of what `jetson_clocks --show` prints; processors that are off are left out."""
    found = []
    for line in said.splitlines():
        parts = re.match(r"\s*(cpu\d+|GPU|EMC)\b:?(.*?)MinFreq=(\d+)\s+MaxFreq=(\d+)(.*)$", line)
        if parts is None or re.search(r"\bOnline=0\b", parts[2]):
            continue
        held = re.search(r"\bFreqOverride=1\b", parts[5]) is not None
        found.append(JetsonClock(parts[1], int(parts[3]), int(parts[4]), held))
    return tuple(found)


def largest_mode(text: str) -> tuple[int, str] | None:
    """Number and name of the mode without a limit in the text of `nvpmodel.conf`, or None."""
    modes = {name: int(number) for number, name in re.findall(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>", text)}
    best = next((name for name in ("MAXN_SUPER", "MAXN") if name in modes), None)
    return (modes[best], best) if best else None


def power_checks() -> Iterator[tuple[str, str | None, str | None]]:
    """Name, what was found and what to do, of power mode and clocks; nothing on a machine that is no Jetson."""
    if find_program("nvpmodel") is not None:
        yield _mode()
    if find_program("jetson_clocks") is not None:
        yield _clocks()


def _mode() -> tuple[str, str | None, str | None]:
    mode = machine.power_mode()
    try:
        best = largest_mode(_MODES.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        best = None
    number, name = best or (0, "MAXN")
    setting = f"sudo nvpmodel -m {number}"
    if mode is None:
        return "power mode", None, f"nvpmodel -q says none; {setting} sets {name}."
    return "power mode", mode, None if mode == name else f"{setting} sets {name}, which has no limit."


def _clocks() -> tuple[str, str | None, str | None]:
    said = machine.command_output("jetson_clocks", "--show")
    clocks = clocks_in(said or "")
    if not clocks:
        return "clocks", None, "jetson_clocks --show says none; root may ask: sudo trt-compress doctor."
    loose = [clock.name for clock in clocks if not clock.is_fixed]
    if not loose:
        return "clocks", f"{len(clocks)} are fixed", None
    return "clocks", f"{', '.join(loose)} not fixed", "sudo jetson_clocks fixes them: only then a time is believable."
