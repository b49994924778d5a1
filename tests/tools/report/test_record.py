"""What a report says of a stream whose every number is known, and the schema that it keeps."""

import json
import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import jsonschema
import pytest

from trt_compress.errors import ConfigError
from trt_compress.format.manifest import Compression as SiteCompression
from trt_compress.runtime.measure.power import PowerResult
from trt_compress.runtime.stream.result import ControllerLog, StreamResult, Switch
from trt_compress.tools.gen_schemas import schema_of
from trt_compress.tools.report.from_stream import report_from_stream
from trt_compress.tools.report.html import page_from_report
from trt_compress.tools.report.record import Report
from trt_compress.tools.report.sections import run_sections, side_sections

SCHEMA = schema_of("report")
MakeStream = Callable[..., StreamResult]


def reference(ns: list[int], percent: float) -> int:
    """The smallest sample that at least this share of all does not exceed."""
    ordered = sorted(ns)
    return ordered[math.ceil(len(ordered) * percent / 100) - 1]


def test_latencies_are_those_of_delivered_frames(make_stream: MakeStream) -> None:
    stream = make_stream(900, drop_every=50, fail_at=(7, 8), spikes=3)
    frames = stream.frames
    delivered = [row for row, outcome in enumerate(frames.outcome) if outcome == "delivered"]
    whole = [frames.end_ns[row] - frames.arrival_ns[row] for row in delivered]
    compute = [frames.stage_ns["session"][row] or 0 for row in delivered]
    latency = report_from_stream(stream).sides[0].latency
    assert latency.end_to_end is not None and latency.inference is not None
    for part, ns in ((latency.end_to_end, whole), (latency.inference, compute)):
        assert (part.n, part.min_ns, part.max_ns) == (len(delivered), min(ns), max(ns))
        assert part.median_ns == statistics.median(ns) and part.mean_ns == pytest.approx(statistics.fmean(ns))
        assert part.std_ns == pytest.approx(statistics.stdev(ns))
        assert (part.p90_ns, part.p95_ns, part.p99_ns) == tuple(reference(ns, percent) for percent in (90, 95, 99))
        assert part.p99_9_ns is None and part.reasons == {"p99_9_ns": f"n too small: {len(ns)} of 6636"}
    ends = sorted(frames.end_ns[row] for row in delivered)
    gaps = [after - before for before, after in zip(ends, ends[1:], strict=False)]
    assert latency.inter_result_std_ns == pytest.approx(statistics.stdev(gaps))
    assert latency.inter_result_max_minus_median_ns == max(gaps) - statistics.median(gaps)
    assert latency.max_minus_median_ns == max(whole) - statistics.median(whole)
    assert latency.deadline_missed == sum(ns > 33_000_000 for ns in whole) > 0
    assert latency.throughput_per_s == pytest.approx(len(delivered) / 30)
    assert latency.first_inference_ns == 31_000_000


def test_every_frame_is_accounted_for(make_stream: MakeStream) -> None:
    part = report_from_stream(make_stream(200, drop_every=20, fail_at=(1, 2, 3))).sides[0].accounting
    assert part is not None
    assert (part.frames_in, part.delivered, part.dropped, part.failed, part.rows) == (200, 187, 10, 3, 200)
    assert part.causes == {"a newer frame came": 10, "the image is corrupt": 3}


def test_the_split_follows_the_way_of_a_frame(make_stream: MakeStream) -> None:
    stream = make_stream(100)
    split = report_from_stream(stream).sides[0].split
    assert [part.stage for part in split] == [
        *("wait.source", "decode", "wait.preprocess", "preprocess", "wait.session"),
        *("enqueue", "h2d", "session", "plugins", "d2h", "wait.postprocess", "postprocess", "sink"),
    ]
    timed = {part.stage: part.latency for part in split if part.latency is not None}
    for stage, column in stream.frames.stage_ns.items():
        assert timed[stage].median_ns == statistics.median(ns for ns in column if ns is not None)
    missing = [part for part in split if part.latency is None]
    assert [part.stage for part in missing] == ["enqueue", "h2d", "plugins", "d2h"]
    assert all(part.reason == "not measured here: the run was on a CPU" for part in missing)


def routed(*, groups: bool) -> tuple[SiteCompression, ...]:
    """Two blocks with windows and one over whole images of four cameras, each choosing from all 512 tokens."""
    found = []
    for layer, (count, kept, number) in enumerate(((64, 20, 8), (64, 20, 8), (128, 39, 4))):
        plain = SiteCompression(site=f"blocks.{layer}", compressor="toc3d", config={}, tokens_in=count, tokens_out=kept)
        found.append(plain.with_groups(groups=number, padding=0, keeps_rest=True) if groups else plain)
    return tuple(found)


@pytest.mark.parametrize("groups", [True, False])
def test_tokens_of_sites_that_are_no_chain_are_never_set_side_by_side(make_stream: MakeStream, groups: bool) -> None:
    """As a stream recorded them before: the first site's 64 beside the last one's 39, of 512 tokens in all."""
    stream = make_stream(20)
    level = replace(stream.identity.levels[0], compression=routed(groups=groups))
    stream = replace(
        stream,
        identity=replace(stream.identity, levels=(level,)),
        frames=replace(stream.frames, tokens_in=(64,) * 20, tokens_out=(39,) * 20),
    )
    report = report_from_stream(stream)
    side = report.sides[0]
    words = page_from_report(report)
    assert ">39 of 64<" not in words and ">64 → 39<" not in words
    if groups:
        assert (side.compression.tokens_in, side.compression.tokens_out) == (512, 160)
        assert set(side.plots.tokens_out) == {160}
        assert "156–160 of 512" in words and "39 of 128 in each of 4" in words
    else:
        assert side.compression.tokens_in is None and not side.plots.tokens_x
        assert side.compression.reasons["tokens_out"] == "the sites have counts of their own; see them"
        assert "20 of 64 at a site, 39 of 128 at a site" in words
    assert Report.from_data(json.loads(report.to_text()), "the report") == report


@pytest.mark.parametrize("n", [1, 2, 3, 100])
def test_the_typical_frame_is_nearest_to_the_median_that_the_report_states(make_stream: MakeStream, n: int) -> None:
    side = report_from_stream(make_stream(n, noise=0.3)).sides[0]
    part, typical = side.latency.end_to_end, side.plots.waterfalls[0]
    assert part is not None
    took = sum(step.ms for step in typical.steps)
    distances = [abs(ms - part.median_ns / 1e6) for ms in side.plots.ecdf_ms]
    assert abs(took - part.median_ns / 1e6) == pytest.approx(min(distances), abs=1e-9)
    if n == 1:
        assert typical.title == "The only frame"
    elif n % 2:
        assert typical.title.endswith("is the median") and took == pytest.approx(part.median_ns / 1e6)
    else:
        assert typical.title.endswith(f"is nearest to the median of {part.median_ns / 1e6:.1f} ms")


def test_waterfalls_are_frames_that_there_were(make_stream: MakeStream) -> None:
    stream = make_stream(101, spikes=1)
    frames = stream.frames
    whole = {frames.id[row]: frames.end_ns[row] - frames.arrival_ns[row] for row in range(101)}
    typical, slowest = report_from_stream(stream).sides[0].plots.waterfalls
    assert whole[typical.frame] == statistics.median_low(whole.values())
    assert slowest.frame == max(whole, key=lambda frame: whole[frame])
    for fall in (typical, slowest):
        assert sum(step.ms for step in fall.steps) == pytest.approx(whole[fall.frame] / 1e6)
        for before, after in zip(fall.steps, fall.steps[1:], strict=False):
            assert after.start_ms == pytest.approx(before.start_ms + before.ms)


def test_without_a_deadline_the_budget_is_one_over_fps(make_stream: MakeStream) -> None:
    stream = make_stream(300, deadline_ms=None, spikes=4, fps=20.0)
    report = report_from_stream(stream)
    whole = stream.frames.end_to_end_ns()
    assert report.protocol.deadline_ns == 50_000_000 and report.protocol.deadline_is_period
    assert report.sides[0].latency.deadline_missed == sum(ns > 50_000_000 for ns in whole) > 0
    kept = replace(stream.frames, outcome=("dropped",) * 200 + stream.frames.outcome[200:])
    latency = report_from_stream(replace(stream, frames=kept)).sides[0].latency
    assert latency.deadline_missed is None and "did not keep every frame" in latency.reasons["deadline_missed"]
    unpaced = report_from_stream(replace(stream, protocol=replace(stream.protocol, kind="closed loop", fps=None)))
    assert unpaced.protocol.deadline_ns is None and unpaced.sides[0].latency.deadline_missed is None


@pytest.mark.parametrize(
    ("change", "status", "reason"),
    [
        ({}, "stable", "inference: median latency within"),
        ({"noise": 0.3}, "unstable", "the coefficient of variation is"),
        ({"n": 9}, "invalid", "9 samples do not fill 3 windows"),
    ],
)
def test_the_verdict_is_that_of_the_inferences(
    make_stream: MakeStream, change: dict[str, Any], status: str, reason: str
) -> None:
    verdict = report_from_stream(make_stream(**{"n": 300, **change})).sides[0].verdict
    assert verdict.status == status and reason in "; ".join(verdict.reasons)
    assert verdict.cv_bound == 0.10


def test_a_backlog_that_grows_is_unstable(make_stream: MakeStream) -> None:
    stream = make_stream(300)
    late = tuple(end + row * 200_000 for row, end in enumerate(stream.frames.end_ns))
    verdict = report_from_stream(replace(stream, frames=replace(stream.frames, end_ns=late))).sides[0].verdict
    assert verdict.status == "unstable"
    assert any(reason.startswith("end-to-end: median latency differs by") for reason in verdict.reasons)


def test_a_stream_that_broke_is_invalid(make_stream: MakeStream) -> None:
    broken = replace(make_stream(300), ended="error", error="Frame 12 of 'cam' is not finite.")
    verdict = report_from_stream(broken).sides[0].verdict
    assert verdict.status == "invalid"
    assert verdict.reasons == ("the stream ended on an error: Frame 12 of 'cam' is not finite.",)


def test_a_controller_is_told_when_the_run_is_unstable(make_stream: MakeStream) -> None:
    log = ControllerLog(
        settings={"percentile": 95.0}, switches=(Switch(frame=5, from_level="a", to_level="b", reason="p95"),)
    )
    report = report_from_stream(replace(make_stream(300, noise=0.3), controller=log))
    assert report.sides[0].verdict.reasons[-1] == "the controller changed the keep level 1 times"
    assert report.sides[0].compression.switches == 1


def test_every_level_is_shown_with_its_frames(make_stream: MakeStream) -> None:
    stream = make_stream(300)
    light = replace(stream.identity.levels[0], name="light", flops=40e6, compression=())
    levels = tuple("light" if row % 3 == 0 else name for row, name in enumerate(stream.frames.level))
    identity = replace(stream.identity, levels=(stream.identity.levels[0], light))
    both = replace(stream, identity=identity, frames=replace(stream.frames, level=levels))
    report = report_from_stream(both)
    shown = {level.name: level.frames for level in report.sides[0].compression.levels}
    assert shown == {"tome:num_merged=5": 200, "light": 100}
    assert report.sides[0].identity.compression == "tome:num_merged=5 | none"
    assert set(report.sides[0].identity.graphs) == {"tome:num_merged=5/model.onnx", "light/model.onnx"}
    tables = {section.title: section for section in side_sections(report.sides[0])}
    assert [row[:2] for row in tables["Keep levels"].rows] == [("tome:num_merged=5", "200"), ("light", "100")]


def test_a_stream_that_delivered_nothing_says_so(make_stream: MakeStream) -> None:
    report = report_from_stream(make_stream(40, drop_every=1))
    side = report.sides[0]
    assert side.latency.end_to_end is None and side.latency.reasons["end_to_end"] == "no frame was delivered"
    assert side.verdict.status == "invalid"
    assert all(section.rows for section in side_sections(side))


def numbers_without_reason(data: Any, where: str = "") -> Iterator[str]:
    """Fields that are null in an object that has reasons, and have none."""
    if isinstance(data, dict):
        if isinstance(reasons := data.get("reasons"), dict):
            yield from (f"{where}.{name}" for name, value in data.items() if value is None and name not in reasons)
        for name, value in data.items():
            yield from numbers_without_reason(value, f"{where}.{name}")
    elif isinstance(data, list):
        for index, value in enumerate(data):
            yield from numbers_without_reason(value, f"{where}[{index}]")


def test_whatever_is_missing_says_why(make_stream: MakeStream) -> None:
    for options in ({"n": 20}, {"n": 700, "deadline_ms": None}, {"n": 5, "drop_every": 1}):
        data = report_from_stream(make_stream(**options)).to_json()
        assert set(numbers_without_reason(data)) <= {".sides[0].identity.plugins"}, options


def test_no_section_shows_a_bare_none(make_stream: MakeStream) -> None:
    report = report_from_stream(make_stream(20))
    cells = [
        cell
        for section in [*run_sections(report), *side_sections(report.sides[0])]
        for row in section.rows
        for cell in row
    ]
    assert "None" not in " ".join(cell for cell in cells if cell)


def test_a_report_survives_json_and_keeps_what_a_later_version_adds(make_stream: MakeStream) -> None:
    report = report_from_stream(make_stream(300, drop_every=30))
    data = json.loads(report.to_text())
    assert Report.from_data(data, "the report") == report
    data |= {"schema_version": "1.7", "weather": {"celsius": 21}}
    assert json.loads(Report.from_data(data, "the report").to_text()) == data
    data["schema_version"] = "2.0"
    with pytest.raises(ConfigError, match=r"the report has schema version 2\.0, and this trt-compress reads 1\.x"):
        Report.from_data(data, "the report")


def test_the_schema_accepts_reports(make_stream: MakeStream, power: PowerResult) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    for stream in (make_stream(300, drop_every=30), make_stream(20, power=power.to_json())):
        jsonschema.validate(json.loads(report_from_stream(stream).to_text()) | {"weather": 1}, SCHEMA)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("document",), "trt-compress stream"),
        (("schema_version",), "2.0"),
        (("sides",), []),
        (("sides", 0, "verdict", "status"), "fine"),
        (("sides", 0, "latency", "end_to_end", "p99_ns"), "n too small"),
        (("sides", 0, "split", 0, "kind"), "queue"),
    ],
)
def test_the_schema_refuses_what_is_none(make_stream: MakeStream, path: tuple[Any, ...], value: Any) -> None:
    data = json.loads(report_from_stream(make_stream(50)).to_text())
    holder = data
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(data, SCHEMA)


def test_power_is_part_of_the_resources(make_stream: MakeStream, power: PowerResult) -> None:
    resources = report_from_stream(make_stream(50, power=power.to_json())).sides[0].resources
    assert resources.power == power and "power" not in resources.reasons
    with pytest.raises(ConfigError, match="The result's power readings do not fit: resources.power has no field"):
        report_from_stream(make_stream(50, power={"reader": "ina"}))
