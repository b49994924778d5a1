"""How a power reader is chosen."""

from collections.abc import Callable
from pathlib import Path

from trt_compress.errors import ConfigError, TrtCompressError, UnsupportedError
from trt_compress.runtime.measure.power.ina import HWMON, InaReader
from trt_compress.runtime.measure.power.lines import nvidia_smi_reader, tegrastats_reader
from trt_compress.runtime.measure.power.rapl import POWERCAP, RaplReader
from trt_compress.runtime.measure.power.reader import PowerReader
from trt_compress.suggest import not_known


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
            not_known("power reader", kind, names, ", or a name and its place such as 'ina:/sys/class/hwmon'")
        )
    reasons = []
    for name, opener in openers.items():
        try:
            return opener(None)
        except TrtCompressError as error:
            reasons.append(f"{name}: {error.message}")
    raise UnsupportedError("No power rail can be read on this machine.", hint=" ".join(reasons))


def _openers() -> dict[str, Callable[[str | None], PowerReader]]:
    return {
        "ina": lambda place: InaReader(Path(place or HWMON)),
        "tegrastats": lambda place: tegrastats_reader(place or "tegrastats"),
        "nvidia-smi": lambda place: nvidia_smi_reader(place or "nvidia-smi"),
        "rapl": lambda place: RaplReader(Path(place or POWERCAP)),
    }
