"""A stream with its power."""

import threading
import time
from collections.abc import Callable
from dataclasses import replace

from trt_compress.errors import BundleError, ConfigError, StreamError, UnsupportedError
from trt_compress.runtime.measure.power.open import open_reader
from trt_compress.runtime.measure.power.reader import PowerReader
from trt_compress.runtime.measure.power.session import PowerResult, PowerSession
from trt_compress.runtime.stream.result import Resources, StreamResult

IDLE_SECONDS = 10.0
"""How long the idle machine is measured before the stream."""


def reader_or_reason(kind: str) -> tuple[PowerReader | None, str | None]:
    """Open what was asked for: a reader, or why there is none.

    Args:
        kind: As `open_reader` takes it, or "off". Only "auto" may find nothing.

    Raises:
        ConfigError: An unknown kind.
        UnsupportedError: What was asked for by name is not on this machine.
    """
    if kind == "off":
        return None, None
    try:
        return open_reader(kind), None
    except UnsupportedError as error:
        if kind != "auto":
            raise
        return None, error.message.rstrip(".")


def run_with_power(
    run: Callable[[], StreamResult],
    reader: PowerReader,
    *,
    idle_seconds: float = IDLE_SECONDS,
    interval_s: float = 0.1,
    clock: Callable[[], int] = time.perf_counter_ns,
    interrupt: threading.Event | None = None,
) -> StreamResult:
    """Run a stream while its power is sampled; the reader is closed at the end.

    The window is the stream's wall time, counted back from its end, so opening and warm-up are not in it.

    Args:
        run: Runs the stream to its end.
        reader: As `open_reader` gives it.
        idle_seconds: How long to wait and measure before; 0 for no idle power.
        interval_s: Time between samples, of a reader that does not pace itself.
        clock: Gives nanoseconds.
        interrupt: Ends the idle measurement when it is set.

    Returns:
        The stream's result, its `resources` completed by power and energy.

    Raises:
        StreamError: The stream broke; the result in it is completed as well.
    """
    broken: StreamError | None = None
    with PowerSession(
        reader, idle_seconds=idle_seconds, interval_s=interval_s, clock=clock, interrupt=interrupt
    ) as session:
        try:
            result = run()
        except StreamError as error:
            if not isinstance(error.result, StreamResult):
                raise
            broken, result = error, error.result
        end_ns = clock() - (result.overlay.after_ns if result.overlay else 0)
    if result.wall_ns > 0:
        power = session.result(end_ns - result.wall_ns, end_ns, num_inferences=result.counts.delivered)
        result = replace(result, resources=resources_with_power(result.resources, power))
    if broken is not None:
        broken.result = result
        raise broken
    return result


def resources_with_power(resources: Resources, power: PowerResult) -> Resources:
    """Complete a stream's resources by its power."""
    idle_watt = None if power.idle_mw is None else power.idle_mw / 1000
    return replace(resources, energy_joule=power.energy_j, idle_watt=idle_watt, power=power.to_json())


def power_of(resources: Resources) -> PowerResult | None:
    """The power readings of a result, or None where it has none.

    Raises:
        ConfigError: They are not those of a power session.
    """
    if resources.power is None:
        return None
    try:
        return PowerResult.from_json(resources.power, "resources.power")
    except BundleError as error:
        raise ConfigError(f"The result's power readings do not fit: {error.message}") from None
