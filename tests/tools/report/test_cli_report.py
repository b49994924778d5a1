"""`trt-compress report` and `trt-compress compare`, from the command line in."""

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from trt_compress.errors import ConfigError
from trt_compress.runtime.stream.result import StreamResult
from trt_compress.tools.gen_schemas import schema_of
from trt_compress.tools.report.budget import hold, parse_budget
from trt_compress.tools.report.from_stream import report_from_stream
from trt_compress.tools.report.metrics import metrics_of
from trt_compress.tools.report.read import load

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
Write = Callable[..., Path]
MakeStream = Callable[..., StreamResult]
MakeBench = Callable[..., dict[str, Any]]

SCHEMA = schema_of("report")


def seen(finished: "subprocess.CompletedProcess[str]") -> str:
    return " ".join((finished.stdout + finished.stderr).split())


def test_a_stream_as_tables_and_files(cli: Cli, stream_file: Write, tmp_path: Path) -> None:
    stream_file("cam/result.json", n=700, drop_every=50)
    finished = cli("report", "cam", "-o", "out")
    assert finished.returncode == 0, finished.stderr
    for words in ("Latency in ms: stream", "n too small (needs 6636)", "Not measured: "):
        assert words in finished.stdout
    assert finished.stdout.startswith("Latency in ms: stream\n"), "the figures come first"
    missing = finished.stdout[finished.stdout.index("Not measured: ") :]
    for words in ("device memory", "power", "host to device", "KV cache before", "page and --json say why."):
        assert words in " ".join(missing.split()) and finished.stdout.count(words) == 1, words
    assert "verdict stable" in seen(finished)
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {"cam.report.json", "cam.report.html", "cam.trace.json"}
    report = json.loads((tmp_path / "out/cam.report.json").read_text())
    jsonschema.validate(report, SCHEMA)
    assert json.loads(cli("report", "cam", "--json").stdout) == report
    assert json.loads(cli("report", "out/cam.report.json", "--json").stdout) == report


@pytest.mark.parametrize("columns", [80, 100])
def test_a_report_fits_the_terminal(cli: Cli, stream_file: Write, bench_file: Write, columns: int) -> None:
    stream_file("a.json", n=700, drop_every=50)
    bench_file("b.json")
    for name in ("a.json", "b.json"):
        lines = cli("report", name, columns=columns).stdout.splitlines()
        assert max(map(len, lines)) <= columns, max(lines, key=len)
    lines = cli("compare", "a.json", "b.json", columns=columns).stdout.splitlines()
    assert max(map(len, lines)) <= columns, max(lines, key=len)


def test_both_sides_of_a_benchmark_stand_side_by_side(cli: Cli, bench_file: Write) -> None:
    bench_file("bench.json")
    out = cli("report", "bench.json").stdout
    assert out.startswith("Speed-up: 1.50×")
    assert re.search(r"\n +bundle +baseline\n", out) and re.search(r"\n median +10\.\d +15\.\d\n", out)
    assert "1.00× fewer" not in out


def test_the_page_and_the_trace_lie_beside_the_result(cli: Cli, stream_file: Write, tmp_path: Path) -> None:
    stream_file("a.json", n=30)
    assert cli("report", "a.json", "--html", "--trace").returncode == 0
    assert {path.name for path in tmp_path.iterdir()} == {"a.json", "a.report.html", "a.trace.json"}


def test_a_benchmark_is_reported_with_its_pairs(cli: Cli, bench_file: Write, make_bench: MakeBench) -> None:
    bench_file("bench.json")
    finished = cli("report", "bench.json", "--html")
    assert finished.returncode == 0, finished.stderr
    assert "Speed-up: 1.50× the baseline (95 % interval 1." in finished.stdout
    assert "logits top1_agreement 0.7500 4 baseline, on random inputs" in seen(finished)
    report = json.loads(cli("report", "bench.json", "--json").stdout)
    jsonschema.validate(report, SCHEMA)
    given = make_bench()
    assert report["speedup"]["median"] == given["speedup"]["median"]
    for side, expected in zip(report["sides"], given["sides"], strict=True):
        for name in ("n", "median_ns", "p95_ns", "p99_ns", "std_ns"):
            assert side["latency"]["inference"][name] == expected["latency"][name]
        assert side["latency"]["end_to_end"] is None and side["latency"]["reasons"]["end_to_end"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("nothing.json", None, "'nothing.json' cannot be read (No such file or directory); give the result of"),
        ("cut.json", '{"document": "trt-com', "'cut.json' is not valid JSON ("),
        ("nan.json", '{"document": NaN}', "is not valid JSON (NaN is not a JSON number)"),
        ("list.json", "[1, 2]", "is no result that can be reported; give what `trt-compress run`"),
        ("other.json", '{"document": "trt-compress bundle"}', "is no result that can be reported"),
        ("old.json", '{"result_version": "1.0", "sides": []}', "has result version '1.0', and this trt-compress reads"),
        ("newer.json", '{"document": "trt-compress report", "schema_version": "2.0"}', "has schema version 2.0"),
        ("bare.json", '{"document": "trt-compress report", "schema_version": "1.0"}', "has no field 'title'"),
        ("stream.json", '{"document": "trt-compress stream", "schema_version": "1.0"}', "has no field 'identity'"),
    ],
)
def test_what_is_no_result_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str | None, message: str
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=re.escape(message)):
        load(Path(name))


def test_a_truncated_stream_is_refused(cli: Cli, stream_file: Write) -> None:
    path = stream_file("a.json", n=50)
    text = path.read_text()
    path.write_text(text[: len(text) // 2])
    finished = cli("report", "a.json")
    assert finished.returncode == 2 and finished.stdout == "" and "Traceback" not in finished.stderr
    assert "error: 'a.json' is not valid JSON" in finished.stderr
    data = json.loads(text)
    data["frames"]["end_ns"].pop()
    path.write_text(json.dumps(data))
    finished = cli("report", "a.json")
    assert finished.returncode == 2 and "the column frames.end_ns has 49 rows and frames.id 50" in seen(finished)


def test_what_cannot_be_written_is_said(cli: Cli, stream_file: Write, bench_file: Write, tmp_path: Path) -> None:
    stream_file("a.json", n=20)
    stream_file("b/a.json", n=20)
    bench_file("bench.json")
    (tmp_path / "file").write_text("")
    for arguments, message in (
        (("a.json", "-o", "file"), "'file' cannot be made (File exists)"),
        (("a.json", "-o", "file/below"), "'file/below' cannot be made (Not a directory)"),
        (("a.json", "b/a.json", "-o", "out"), "Two results would both be written as 'a'"),
        (("bench.json", "--trace"), "'bench.json' is no stream, so it has no trace; leave out --trace."),
    ):
        finished = cli("report", *arguments)
        assert finished.returncode == 2 and message in seen(finished), arguments


def test_two_runs_are_compared_without_a_claim(cli: Cli, stream_file: Write) -> None:
    stream_file("a.json", n=700, name="dense")
    stream_file("b.json", n=700, name="merged", deadline_ms=20.0, drop_every=10)
    finished = cli("compare", "a.json", "b.json")
    assert finished.returncode == 0, finished.stderr
    text = seen(finished)
    assert "two runs, no speed-up claimed" in text and "Verdicts: A stable, B stable." in text
    assert "deadline 33.0 ms 20.0 ms" in text and "bundle dense merged" in text
    assert "fps 30.0 27.0 per s -10.0%" in text
    data = json.loads(cli("compare", "a.json", "b.json", "--json").stdout)
    assert data["ratio"] is None and data["claim"].startswith("two runs, no speed-up claimed")


def test_two_benchmarks_show_their_own_pairs_only(cli: Cli, bench_file: Write) -> None:
    bench_file("a.json", ratio=1.2)
    bench_file("b.json", ratio=1.6)
    text = seen(cli("compare", "a.json", "b.json"))
    assert "B against A: two runs, no speed-up claimed" in text
    assert "A is 1.20 times (95 % interval 1." in text and "B is 1.60 times (95 % interval 1." in text
    assert "as fast as its own baseline" in text


def test_the_sides_of_one_run_are_compared_by_pairs(cli: Cli, bench_file: Write) -> None:
    bench_file("a.json")
    finished = cli(
        "compare", "a.json", "--budget", "speedup>=1.4,speedup_low>=1.4,inference_p99_ms<=11,logits_cosine>=0.9"
    )
    assert finished.returncode != 2, finished.stderr
    text = seen(finished)
    assert "B is 1.50 times (95 % interval 1." in text and "200 pairs of one interleaved run" in text
    assert finished.returncode == 3
    assert "1 of 4 limits are broken: inference_p99_ms is not known (n too small: 200 of 662), allowed <= 11." in text


def test_a_budget_that_holds(cli: Cli, stream_file: Write) -> None:
    stream_file("a.json", n=700)
    budget = "p99_ms<=33, dropped<=0, missed_percent<=0, fps>=29.9, accuracy>=0.98, session_p50_ms<=13"
    finished = cli("compare", "a.json", "a.json", "--budget", budget)
    assert finished.returncode == 0, finished.stderr
    assert seen(finished).count(" held") == 6


def test_a_broken_budget_exits_3_and_names_every_limit(cli: Cli, stream_file: Write) -> None:
    stream_file("a.json", n=700)
    stream_file("b.json", n=300, drop_every=10)
    finished = cli(
        "compare", "a.json", "b.json", "--budget", "p95_ms<=10,p99_ms<=33,dropped<=5,energy_per_inference_j<=1,fps>=1"
    )
    assert finished.returncode == 3
    text = seen(finished)
    assert re.search(r"4 of 5 limits are broken: p95_ms \(end-to-end, n 270\) is 15\.\d, allowed <= 10; ", text)
    assert "p99_ms is not known (n too small: 270 of 662), allowed <= 33; dropped is 30.0, allowed <= 5; " in text
    assert "energy_per_inference_j is not known (not measured here: the run had no power reader), allowed <= 1." in text
    as_json = cli("compare", "a.json", "b.json", "--budget", "dropped<=5,fps>=1", "--json")
    assert as_json.returncode == 3
    assert [row["passed"] for row in json.loads(as_json.stdout)["budget"]] == [False, True]


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ("p99<33", "The budget has the part 'p99<33'; write metric<=value or metric>=value"),
        ("p99_ms<=", "The budget has the part 'p99_ms<='"),
        ("p99_ms<=33,", "The budget has the part ''"),
        ("p99_ms<=nan", "The budget has the part 'p99_ms<=nan'"),
        ("p99_ms<=33ms", "The budget has the part 'p99_ms<=33ms'"),
        ("p99_m<=33", "The budget names 'p99_m', which this report does not have. Did you mean 'p99_ms'?"),
        ("zebra<=1", "The budget names 'zebra', which this report does not have. `trt-compress compare --json` lists"),
    ],
)
def test_a_budget_that_cannot_be_read(make_stream: MakeStream, budget: str, message: str) -> None:
    report = report_from_stream(make_stream(20))
    with pytest.raises(ConfigError, match=re.escape(message)):
        hold(parse_budget(budget), metrics_of(report, report.sides[0]))


def test_a_budget_that_cannot_be_read_exits_2(cli: Cli, stream_file: Write) -> None:
    stream_file("a.json", n=20)
    finished = cli("compare", "a.json", "a.json", "--budget", "p99<33")
    assert finished.returncode == 2 and "error: The budget has the part 'p99<33'" in seen(finished)


def test_one_result_without_a_baseline_compares_with_nothing(cli: Cli, stream_file: Write) -> None:
    stream_file("a.json", n=20)
    finished = cli("compare", "a.json")
    assert finished.returncode == 2 and "has one side only; give a second report" in seen(finished)
