"""Power from programs that print a line for each sample: tegrastats, and nvidia-smi for NVML.

tegrastats ends a line with its rails, first the instantaneous power and then what it made of it: `VDD_IN 4521mW/4521mW`
on Orin (JetPack 5 and 6), `VDD_IN 3902/3611` before JetPack 5, `VIN 19780mW/19780mW` on Thor (JetPack 7.0) and
`VIN 87426mW/43713mW/87426mW` from JetPack 7.2 on, or `VIN 28548mW` alone. Rails have any name: AGX Xavier calls them
`GPU 460/460 CPU 610/610`, and has `CPU [0%@1190,…]` and `GPU@30.5C` besides; so a rail is a name with such numbers
behind it, in mW always. Only the first number is raw; the second is a
running average that never forgets. A rail near zero may be negative on Thor. Other fields differ by release and do not
matter here.
Source: docs.nvidia.com/jetson, Jetson Linux Developer Guide r35.6, r36.4, r38.4, "Tegrastats Utility".

nvidia-smi: `power.draw` is an average over one second from Ampere on (GA100 excepted), `power.draw.instant` is not.
Source: docs.nvidia.com/deploy/nvml-api (nvmlDeviceGetPowerUsage); nvidia-smi --help-query-gpu.
"""

import re
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

from trt_compress.children import TimeoutExpired, find_program, run, start
from trt_compress.errors import ConfigError, UnsupportedError
from trt_compress.runtime.measure.power.reader import PowerSource, RailSamples

_POWER = re.compile(r"(-?\d+)(mW)?((?:/-?\d+(?:mW)?)*)")
_AND_AVERAGE = re.compile(r"-?\d+/-?\d+")
_MEMORY = ("RAM", "SWAP", "IRAM")  # `SWAP 0/15348MB` would look like a rail where a line was cut
_RAIL_PREFIXES = ("VDD", "VIN", "POM")

_MOST_FAULTS = 100  # that are kept; a sensor may lack something in every sample of days
_END_TIMEOUT_S = 5.0
_START_TIMEOUT_S = 10.0


def rails_from_tegrastats(line: str) -> dict[str, float]:
    """Read the power of every rail from one line of tegrastats.

    Returns:
        Instantaneous power in mW, by rail.

    Raises:
        ConfigError: The line names no rail, or ends in the middle of one.
    """
    words = line.split()
    rails: dict[str, float] = {}
    forms: set[str] = set()
    for name, value in zip(words, [*words[1:], ""], strict=False):
        is_rail = name.startswith(_RAIL_PREFIXES) and "@" not in name
        if name in _MEMORY or not (
            is_rail or (name.isidentifier() and ("mW" in value or _AND_AVERAGE.fullmatch(value)))
        ):
            continue
        power = _POWER.fullmatch(value)
        if power is not None:
            rails[name] = float(power.group(1))
        form = re.sub(r"-?\d+", "n", value)
        forms.add(form)
        if (
            power is None or forms != {form} or form == "n"
        ):  # every rail of a line is written alike, unless the line was cut
            raise ConfigError(
                f"The line of tegrastats ends in the middle of the rail '{name}': …{line.strip()[-40:]!r}."
            )
    if not rails:
        raise ConfigError(f"The line of tegrastats names no power rail: {line.strip()[:80]!r}.")
    return rails


def gpus_from_nvidia_smi(line: str) -> dict[str, float]:
    """Read one line `index, watts` of nvidia-smi: power in mW, by `gpu<index>`.

    Raises:
        ConfigError: The line is another, or the GPU does not report its power.
    """
    index, separator, watts = line.strip().partition(", ")
    if watts.startswith("["):
        raise ConfigError(f"GPU {index} does not report its power ({watts}).")
    try:
        return {f"gpu{int(index)}": float(watts) * 1000}
    except ValueError:
        raise ConfigError(f"nvidia-smi printed {line.strip()[:60]!r} where `index, watts` was due.") from None


def tegrastats_reader(
    command: str = "tegrastats", *, interval_ms: int = 100, clock: Callable[[], int] = time.perf_counter_ns
) -> "LineReader":
    """Start tegrastats and read its rails."""
    source = PowerSource(name="tegrastats", quantity="power_mw")
    return LineReader(source, (command, "--interval", str(interval_ms)), rails_from_tegrastats, clock=clock)


def nvidia_smi_reader(
    command: str = "nvidia-smi", *, interval_ms: int = 100, clock: Callable[[], int] = time.perf_counter_ns
) -> "LineReader":
    """Start nvidia-smi and read the instantaneous power of every GPU."""
    rails = frozenset(f"gpu{index}" for index in _gpus(command))
    query = (command, "--query-gpu=index,power.draw.instant", "--format=csv,noheader,nounits", "-lms", str(interval_ms))
    source = PowerSource(name="nvidia-smi", quantity="power_mw")
    return LineReader(source, query, gpus_from_nvidia_smi, rails=rails, clock=clock)


class LineReader:
    """Runs a program and reads a sample from each line, or from the lines that together name every rail.

    The program starts at once. A line that cannot be read, or that lacks a rail which the first one had, is a fault: it
    is counted, and its sample is missing.
    """

    paced = True

    def __init__(
        self,
        source: PowerSource,
        command: tuple[str, ...],
        parse: Callable[[str], Mapping[str, float]],
        *,
        rails: frozenset[str] | None = None,
        clock: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        if find_program(command[0]) is None:
            raise UnsupportedError(
                f"The program '{command[0]}' is not on this machine; use another power reader, or put it on the PATH."
            )
        self.source = source
        self.faults: list[str] = []
        self.num_faults = 0
        self._parse = parse
        self._rails = rails
        self._clock = clock
        self._closed = False
        try:
            self._process = start(command)  # Ctrl-C ends the stream, and only then the program
        except OSError as error:
            raise UnsupportedError(f"'{command[0]}' cannot be started ({error.strerror}).") from None
        self._timer = threading.Timer(_START_TIMEOUT_S, self._process.kill)  # a program that never prints must not hang
        self._timer.start()
        first = self._next()
        self._timer.cancel()
        if first is None:
            self.close()
            reason = self.faults[-1] if self.faults else f"it printed nothing in {_START_TIMEOUT_S:g} s"
            raise UnsupportedError(f"'{command[0]}' gives no power: {reason.rstrip('.')}. Use another power reader.")

    def read(self) -> RailSamples | None:
        """Wait for the next line that can be read; None when the reader was closed."""
        sample = self._next()
        if sample is None and not self._closed:
            code = self._process.wait()
            raise UnsupportedError(f"'{self.source.name}' stopped by itself (exit code {code}).")
        return sample

    def close(self) -> None:
        """End the program."""
        self._closed = True
        self._timer.cancel()
        for end in (self._process.terminate, self._process.kill):
            end()
            with suppress(TimeoutExpired):
                self._process.wait(timeout=_END_TIMEOUT_S)
                break
        else:
            return  # a driver keeps it, and who reads from it
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _next(self) -> RailSamples | None:
        values: dict[str, float] = {}
        while (line := self._line()) is not None:
            time_ns = self._clock()
            try:
                found = self._parse(line)
            except ConfigError as error:
                self._fault(error.message)
                continue
            if values.keys() & found.keys():  # the next sample begins, and this one is not whole
                self._lacking(values)
                values = {}
            values.update(found)
            self._rails = self._rails or frozenset(values)
            if new := sorted(values.keys() - self._rails):
                self._fault(f"A sample of {self.source.name} has {', '.join(new)}, which the first one had not.")
                values = {name: power for name, power in values.items() if name in self._rails}
            if self._rails <= values.keys():
                return RailSamples(time_ns=time_ns, values=values)
        return None

    def _fault(self, sentence: str) -> None:
        self.num_faults += 1
        if len(self.faults) < _MOST_FAULTS:
            self.faults.append(sentence)

    def _lacking(self, values: Mapping[str, float]) -> None:
        missing = ", ".join(sorted((self._rails or frozenset()) - values.keys()))
        self._fault(f"A sample of {self.source.name} lacks {missing}.")

    def _line(self) -> str | None:
        if self._process.stdout is None:
            return None
        try:
            return self._process.stdout.readline().decode(errors="replace") or None
        except ValueError:  # closed by another thread while it waited
            return None


def _gpus(command: str) -> list[str]:
    if find_program(command) is None:
        raise UnsupportedError(
            f"The program '{command}' is not on this machine; use another power reader, or put it on the PATH."
        )
    query = (command, "--query-gpu=index", "--format=csv,noheader")
    try:
        done = run(query, timeout=20)
    except (OSError, TimeoutExpired) as error:
        raise UnsupportedError(f"'{command}' does not answer ({error}); check the NVIDIA driver.") from None
    output, errors = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
    lines = output.split()
    if done.returncode != 0 or not lines or not all(line.isdigit() for line in lines):
        said = (output + errors).strip().splitlines() or ["nothing"]
        raise UnsupportedError(f"'{command}' lists no GPU; it says: {said[0][:120]!r}. Check the NVIDIA driver.")
    return lines
