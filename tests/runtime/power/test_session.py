"""Energy against closed forms, and a session around a load."""

import json
import math
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from trt_compress.errors import ConfigError, UnsupportedError
from trt_compress.runtime.measure.power import PowerResult, PowerSession, RailSamples
from trt_compress.runtime.measure.power.rails import total_of, unknown_rails
from trt_compress.runtime.measure.power.reader import PowerSource
from trt_compress.runtime.measure.power.session import power_result as integrate
from trt_compress.runtime.measure.power.stream import run_with_power
from trt_compress.runtime.measure.power.trace import Trace
from trt_compress.runtime.stream.result import Counts, Frames, Identity, StreamProtocol, StreamResult

S = 1_000_000_000
MILLIWATTS = PowerSource(name="ina", quantity="power_mw")


@pytest.fixture
def stream() -> StreamResult:
    """A stream of which only the counts matter."""
    columns: dict[str, Any] = {
        name: () for name in Frames.__slots__ if name not in ("extra", "stage_ns", "queue_wait_ns")
    }
    return StreamResult(
        identity=Identity(
            bundle="digits",
            model="zoo:digits_vit",
            weights="none",
            precision="fp32",
            opset=20,
            backend="ort-cpu",
            levels=(),
            native_library=None,
            versions={},
            device={},
            sources=("frames/*.png",),
        ),
        protocol=StreamProtocol(
            kind="closed loop", fps=None, policy="block", queue_depth=2, deadline_ns=None, warmup=1, threads=1
        ),
        started_at="2026-11-24T10:00:00+00:00",
        wall_ns=1,
        ended="end of source",
        counts=Counts(frames_in=4, delivered=4, dropped=0, failed=0, deadline_missed=None),
        first_inference_ns=None,
        frames=Frames(stage_ns={}, queue_wait_ns={}, **columns),
    )


def power_result(source: PowerSource, samples: Sequence[RailSamples], **window: Any) -> PowerResult:
    return integrate(Trace(source, samples), **window)


def samples(times_s: Sequence[float], **rails: Sequence[float]) -> list[RailSamples]:
    columns = [{name: float(curve[index]) for name, curve in rails.items()} for index in range(len(times_s))]
    return [RailSamples(time_ns=round(t * S), values=row) for t, row in zip(times_s, columns, strict=True)]


def test_a_ramp_is_integrated_exactly() -> None:
    times = [index * 0.25 for index in range(201)]
    taken = samples(times, VDD_IN=[100 * t for t in times])
    result = power_result(MILLIWATTS, taken, window_ns=(5 * S, 45 * S), num_inferences=800)
    joules = 0.1 * (45**2 - 5**2) / 2  # the integral of 0.1 W/s · t
    assert result.energy_j == pytest.approx(joules)
    assert result.energy_per_inference_j == pytest.approx(joules / 800)
    assert result.mean_mw == pytest.approx(joules / 40 * 1000)
    assert (result.num_samples, result.longest_gap_s, result.seconds) == (161, 0.25, 40)


def test_uneven_samples_weigh_by_their_time() -> None:
    taken = samples([0, 10, 11, 40], VDD_IN=[1000, 1000, 5000, 5000])
    result = power_result(MILLIWATTS, taken, window_ns=(0, 40 * S), num_inferences=1)
    assert result.energy_j == pytest.approx(10 * 1 + 1 * 3 + 29 * 5)
    assert result.longest_gap_s == 29


def test_idle_is_taken_off_over_the_same_time() -> None:
    times = list(range(61))
    taken = samples(times, VDD_IN=[2000 if t < 20 else 7000 for t in times])
    result = power_result(MILLIWATTS, taken, idle_ns=(0, 19 * S), window_ns=(20 * S, 60 * S), num_inferences=100)
    assert result.idle_mw == pytest.approx(2000)
    assert result.energy_j == pytest.approx(40 * 7)
    assert result.net_energy_j == pytest.approx(40 * 5)
    assert result.net_energy_per_inference_j == pytest.approx(2)


def test_an_energy_counter_that_starts_again_loses_nothing() -> None:
    span, step = 1_000_000, 300_000  # wraps about every fourth sample
    times = list(range(41))
    counter = [(900_000 + step * t) % span for t in times]
    source = PowerSource(name="rapl", quantity="energy_uj", wrap_uj={"package-0": span})
    taken = [RailSamples(time_ns=t * S, values={"package-0": float(c)}) for t, c in zip(times, counter, strict=True)]
    result = power_result(source, taken, window_ns=(0, 40 * S), num_inferences=40)
    assert result.energy_j == pytest.approx(40 * 0.3)
    assert result.power_mw["package-0"] == pytest.approx([300] * 41)
    assert result.total_covers == "processor packages, without memory"


def test_under_thirty_seconds_no_energy_is_stated() -> None:
    taken = samples(range(31), VDD_IN=[1000] * 31)
    short = power_result(MILLIWATTS, taken, window_ns=(0, 29 * S), num_inferences=10)
    assert short.energy_j is short.energy_per_inference_j is short.rails[0].energy_j is None
    assert short.reasons["energy_j"] == "n too small: 29.0 of 30 s"
    assert short.mean_mw == pytest.approx(1000)
    assert power_result(MILLIWATTS, taken, window_ns=(0, 30 * S), num_inferences=10).energy_j == pytest.approx(30)


@pytest.mark.parametrize(
    ("rails", "total"),
    [
        (("VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"), ("VDD_IN",)),
        (
            ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0", "VDDQ_VDD2_1V8AO"),
            ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),
        ),
        (("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0", "VIN"), ("VIN",)),
        (("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"), ("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0")),
        (("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"), ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V")),
        (("VDD_IN", "VDD_CPU", "VDD_GPU", "VDD_SOC", "VDD_WIFI", "VDD_DDR"), ("VDD_IN",)),
        (("VDD_SYS_GPU", "VDD_SYS_SOC", "VDD_4V0_WIFI", "VDD_IN", "VDD_SYS_CPU", "VDD_SYS_DDR"), ("VDD_IN",)),
        (("POM_5V_IN", "POM_5V_GPU", "POM_5V_CPU"), ("POM_5V_IN",)),
        (("package-0", "package-0/core", "package-0/dram", "psys"), ("package-0", "package-0/dram")),
        (("package-0", "package-1"), ("package-0", "package-1")),
        (("gpu0", "gpu1"), ("gpu0", "gpu1")),
    ],
)
def test_the_total_counts_nothing_twice(rails: tuple[str, ...], total: tuple[str, ...]) -> None:
    found = total_of(rails)
    assert found is not None and found.rails == total
    assert unknown_rails(rails) == ()


def test_an_unknown_rail_is_shown_and_in_no_total() -> None:
    times = list(range(41))
    result = power_result(
        MILLIWATTS, samples(times, VDD_IN=[5000] * 41, VDD_NEW=[900] * 41), window_ns=(0, 40 * S), num_inferences=1
    )
    new = result.rails[1]
    assert (new.name, new.known, new.in_total, new.energy_j) == ("VDD_NEW", False, False, pytest.approx(36))
    assert result.energy_j == pytest.approx(200)
    alone = power_result(MILLIWATTS, samples(times, VDD_NEW=[900] * 41), window_ns=(0, 40 * S), num_inferences=1)
    assert alone.energy_j is alone.mean_mw is None
    assert alone.reasons["total"] == "no known set of rails is this machine's total; it has VDD_NEW"


def test_samples_that_do_not_cover_the_window_state_nothing() -> None:
    taken = samples(range(20), VDD_IN=[1000] * 20)
    result = power_result(MILLIWATTS, taken, window_ns=(0, 40 * S), num_inferences=1, idle_ns=(-60 * S, -30 * S))
    assert result.reasons == {
        "energy_j": "the samples do not cover the window",
        "idle_mw": "the samples do not cover the idle time",
    }
    assert power_result(MILLIWATTS, [], window_ns=(0, 40 * S), num_inferences=1).energy_j is None


@pytest.mark.parametrize("counts_energy", [False, True])
def test_a_measurement_of_days_takes_no_more_memory(counts_energy: bool) -> None:
    """Its figures are those of all samples, taken apart by numpy."""
    random = np.random.default_rng(5)
    times = np.cumsum(random.uniform(0.05, 0.15, 40_000))
    milliwatts = 3000 + 1000 * np.sin(times / 50) + random.uniform(0, 900, len(times))
    joules = np.concatenate([[0], np.cumsum((milliwatts[1:] + milliwatts[:-1]) / 2 * np.diff(times) / 1000)])
    span = 1_000_000_000
    values = (joules * 1e6) % span if counts_energy else milliwatts
    source = (
        PowerSource(name="rapl", quantity="energy_uj", wrap_uj={"package-0": span}) if counts_energy else MILLIWATTS
    )
    name = "package-0" if counts_energy else "VDD_IN"
    trace = Trace(source, samples(times.tolist(), **{name: values.tolist()}), first=900, last=100, most=3000)
    window = (30.0, times[-1] - 2)
    inside = (times >= window[0]) & (times <= window[1])
    result = integrate(
        trace, window_ns=(round(window[0] * S), round(window[1] * S)), idle_ns=(0, 20 * S), num_inferences=1
    )
    assert len(trace) <= 3000 and len(result.times_s) < 3000
    assert result.energy_j == pytest.approx(np.diff(np.interp(window, times, joules))[0], rel=1e-9)
    assert result.idle_mw == pytest.approx(np.interp(20, times, joules) / 20 * 1000, rel=0.01)
    assert (result.num_samples, result.longest_gap_s) == (inside.sum(), pytest.approx(np.diff(times[inside]).max()))
    drawn = np.array(result.power_mw[name][1:]) @ np.diff(result.times_s) / 1000  # each the mean since the one before
    assert drawn == pytest.approx(result.energy_j, rel=0.005)


def test_the_result_survives_json() -> None:
    times = [index / 2 for index in range(100)]
    result = power_result(
        MILLIWATTS,
        samples(times, VDD_IN=[3000 + 100 * math.sin(t) for t in times]),
        idle_ns=(0, 10 * S),
        window_ns=(12 * S, 49 * S),
        num_inferences=7,
    )
    text = json.dumps(result.to_json(), allow_nan=False)
    assert PowerResult.from_json(json.loads(text), "power") == result


class Scripted:
    """A reader of constant power that may fail after some samples."""

    paced = False

    def __init__(self, fail_after: int | None = None) -> None:
        self.source = MILLIWATTS
        self.faults: list[str] = []
        self.num_faults = 0
        self.closed, self.gone = threading.Event(), threading.Event()
        self._left = fail_after

    def read(self) -> RailSamples:
        if self._left == 0:
            self.gone.set()
            raise UnsupportedError("The sensor went away.")
        if self._left is not None:
            self._left -= 1
        return RailSamples(time_ns=time.perf_counter_ns(), values={"VDD_IN": 2500.0})

    def close(self) -> None:
        self.closed.set()


def test_a_session_samples_while_the_block_runs() -> None:
    reader = Scripted()
    with PowerSession(reader, idle_seconds=0.1, interval_s=0.01) as power:
        start = time.perf_counter_ns()
        time.sleep(0.2)
        end = time.perf_counter_ns()
    assert reader.closed.is_set()
    result = power.result(start, end, num_inferences=4)
    assert result.mean_mw == pytest.approx(2500) and result.idle_mw == pytest.approx(2500)
    assert 2 <= result.num_samples <= (end - start) / 10_000_000 + 1 and 0.1 <= result.idle_seconds < 5
    assert result.reasons == {"energy_j": f"n too small: {result.seconds:.1f} of 30 s"}


def test_a_sensor_that_goes_away_never_stops_the_load() -> None:
    reader = Scripted(fail_after=2)
    with PowerSession(reader, interval_s=0.01) as power:
        start = time.perf_counter_ns()
        assert reader.gone.wait(30)
        end = time.perf_counter_ns()
    result = power.result(start, end, num_inferences=4)
    assert result.energy_j is None
    assert result.reasons["energy_j"] == "the reader stopped early: The sensor went away"


def test_windows_and_settings_that_cannot_be() -> None:
    with PowerSession(Scripted(), interval_s=0.01) as power:
        now = time.perf_counter_ns()
    with pytest.raises(ConfigError, match="is empty or begins before the load"):
        power.result(now - 60 * S, now, num_inferences=1)
    with pytest.raises(ConfigError, match="interval_s=0, idle_seconds=0.0; give interval_s > 0"):
        PowerSession(Scripted(), interval_s=0)


def test_a_stream_is_completed_by_its_power(stream: StreamResult) -> None:
    reader = Scripted()

    def run() -> StreamResult:
        time.sleep(0.25)
        return replace(stream, wall_ns=200_000_000)

    result = run_with_power(run, reader, idle_seconds=0.05, interval_s=0.01)
    power = PowerResult.from_json(result.resources.power, "power")
    assert reader.closed.is_set()
    assert power.seconds == pytest.approx(0.2) and power.num_inferences == stream.counts.delivered
    assert power.mean_mw == pytest.approx(2500)
    assert result.resources.idle_watt == pytest.approx(2.5) and result.resources.energy_joule is None
    assert StreamResult.from_text(result.to_text()) == result
    assert run_with_power(lambda: replace(stream, wall_ns=0), Scripted(), idle_seconds=0).resources.power is None


def test_only_the_stream_itself_is_in_the_window(stream: StreamResult) -> None:
    """Warm-up draws ten times the power; a scripted clock runs through both."""
    now = [0]
    lock = threading.Lock()

    class Ramp(Scripted):
        def read(self) -> RailSamples:
            with lock:
                return RailSamples(time_ns=now[0], values={"VDD_IN": 30_000.0 if now[0] < 10 * S else 3000.0})

    def run() -> StreamResult:
        for step in range(500):
            with lock:
                now[0] = (step + 1) * S // 10
            time.sleep(0.001)
        return replace(stream, wall_ns=35 * S)

    result = run_with_power(run, Ramp(), idle_seconds=0, interval_s=0.0002, clock=lambda: now[0])
    assert result.resources.energy_joule == pytest.approx(35 * 3)


def test_a_reader_that_does_not_come_back_keeps_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the load gave is there, and why there is no energy beside it."""
    monkeypatch.setattr("trt_compress.runtime.measure.power.session._PATIENCE_S", 0.1)
    reached, never = threading.Event(), threading.Event()

    class Stuck:
        source = PowerSource(name="stuck", quantity="power_mw", smoothing="none")
        paced = False
        faults: list[str] = []
        num_faults = 0
        reads = 0

        def read(self) -> RailSamples | None:
            self.reads += 1
            if self.reads > 3:
                reached.set()
                never.wait(30)
            return RailSamples(time_ns=time.perf_counter_ns(), values={"VDD_IN": 5.0})

        def close(self) -> None:
            pass

    with PowerSession(Stuck(), interval_s=0.01) as session:
        start_ns = time.perf_counter_ns()
        assert reached.wait(30)
        end_ns = time.perf_counter_ns()
    never.set()
    result = session.result(start_ns, end_ns, num_inferences=1)
    assert (
        result.energy_j is None and result.reasons["energy_j"] == "the reader stopped early: it gave nothing any more"
    )
