"""A stream with its power."""

import time
from collections.abc import Callable
from dataclasses import replace

from trt_compress.runtime.power.reader import PowerReader
from trt_compress.runtime.power.session import PowerResult, PowerSession
from trt_compress.runtime.stream.result import Resources, StreamResult

IDLE_SECONDS = 10.0
"""How long the idle machine is measured before the stream."""


def run_with_power(
    run: Callable[[], StreamResult],
    reader: PowerReader,
    *,
    idle_seconds: float = IDLE_SECONDS,
    interval_s: float = 0.1,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> StreamResult:
    """Run a stream while its power is sampled; the reader is closed at the end.

    The window is the stream's wall time, counted back from its end, so opening and warm-up are not in it.

    Args:
        run: Runs the stream to its end.
        reader: As `open_reader` gives it.
        idle_seconds: How long to wait and measure before; 0 for no idle power.
        interval_s: Time between samples, of a reader that does not pace itself.
        clock: Gives nanoseconds.

    Returns:
        The stream's result, its `resources` completed by power and energy.
    """
    with PowerSession(reader, idle_seconds=idle_seconds, interval_s=interval_s, clock=clock) as session:
        result = run()
        end_ns = clock()
    if result.wall_ns <= 0:
        return result
    power = session.result(end_ns - result.wall_ns, end_ns, num_inferences=result.counts.delivered)
    return replace(result, resources=resources_with_power(result.resources, power))


def resources_with_power(resources: Resources, power: PowerResult) -> Resources:
    """Complete a stream's resources by its power."""
    idle_watt = None if power.idle_mw is None else power.idle_mw / 1000
    return replace(resources, energy_joule=power.energy_j, idle_watt=idle_watt, power=power.to_json())
