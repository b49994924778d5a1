"""Files that a measurement did not write, or that something changed on the way: read, or refused in one sentence."""

import copy
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trt_compress.errors import ConfigError
from trt_compress.runtime.measure.power import PowerResult
from trt_compress.runtime.stream.result import StreamResult
from trt_compress.tools.report.from_stream import report_from_stream
from trt_compress.tools.report.html import page_from_report
from trt_compress.tools.report.read import load
from trt_compress.tools.report.tables import print_report
from trt_compress.tools.report.trace import trace_from_stream

MakeStream = Callable[..., StreamResult]
Write = Callable[..., Path]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_a_byte_order_mark_is_read_over(stream_file: Write, bench_file: Write, encoding: str) -> None:
    """Editors and shells of Windows write one; `>` of PowerShell writes UTF-16."""
    for path in (stream_file("stream.json", n=20), bench_file("bench.json", pairs=16)):
        plain = load(path).report
        path.write_bytes(path.read_text().encode(encoding))
        assert load(path).report == plain


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "is empty; run the measurement again."),
        (b" \n\xef\xbb\xbf"[:2], "is empty"),
        (b"\x00" * 100, "is empty"),  # what a full disk or a power cut leaves
        (b"\x89PNG\r\n\x1a\n\x00\x00\xff\xfe", "is not valid JSON (it is not a text)"),
        (b'{"document": "trt-compress stream", "a": [1, 2', "is not valid JSON ("),
        (b'{"document": "trt-compress bench"}\n{"document": "trt-compress bench"}\n', "(Extra data"),
        (b'{"document": Infinity}', "(Infinity is not a JSON number)"),
        (b'{"wall_ns": 1e999}', "(the number 1e999 is too large)"),
        (b'{"wall_ns": ' + b"9" * 5000 + b"}", "(the number 999999999999…, of 5000 characters, is too large)"),
        (b'{"document": "\\ud800"}', "holds half of a character"),
        (b"[" * 100_000, "is not valid JSON (it is nested deeper than 64 levels)"),
        (b'"trt-compress stream"', "is no result that can be reported"),
        (b"null", "is no result that can be reported"),
    ],
)
def test_what_is_no_document_is_refused(tmp_path: Path, raw: bytes, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(raw)
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert message in caught.value.message and "\n" not in caught.value.message and len(caught.value.message) < 400


def test_a_directory_without_a_result_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a directory without a result.json; give the result of"):
        load(tmp_path)


def test_a_name_that_no_file_can_have_is_refused() -> None:
    for name in ("a" * 5000, "a" * 300 + ".json"):
        with pytest.raises(ConfigError, match=r"cannot be read \(File name too long\)"):
            load(Path(name))


def test_an_emoji_is_no_half_character(stream_file: Write) -> None:
    path = stream_file("a.json", n=5, name="bundle \N{RACING CAR}")
    path.write_text(json.dumps(json.loads(path.read_text())))  # as two escapes
    assert load(path).report.title.endswith("\N{RACING CAR}")


@pytest.mark.parametrize("value", ["many", None, [1], {"total": "many"}, {"total": [85.7e6]}])
def test_flops_that_are_no_number(bench_file: Write, value: Any) -> None:
    path = bench_file("a.json", pairs=16, flops=value)
    if value is None:
        assert load(path).report.sides[0].compression.flops is None
        return
    with pytest.raises(ConfigError, match=r"identity\.flops.* is .*; it must be .*; run `trt-compress bench --json`"):
        load(path)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("plots", "latency_x"), [1.0], "plots has columns of unequal length (latency_x 1, latency_ms 20)"),
        (("plots", "lost_count"), [1], "plots has columns of unequal length (lost_x 0, lost_count 1, lost_outcome 0)"),
        (("latency", "end_to_end", "n"), 0, "latency.end_to_end says n = 0; it must be at least 1"),
        (("accounting", "dropped"), -1, "accounting.dropped is -1; it must be at least 0"),
    ],
)
def test_a_report_whose_parts_do_not_fit(
    tmp_path: Path, make_stream: MakeStream, path: tuple[str, ...], value: Any, message: str
) -> None:
    data = report_from_stream(make_stream(20)).to_json()
    put(data["sides"][0], path, value)
    file = tmp_path / "a.report.json"
    file.write_text(json.dumps(data))
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert message in caught.value.message


def put(data: Any, path: tuple[Any, ...], value: Any) -> None:
    for key in path[:-1]:
        data = data[key]
    data[path[-1]] = value


def places(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every value of a document; of a list the first."""
    items = data.items() if isinstance(data, dict) else list(enumerate(data))[:1] if isinstance(data, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from places(value, (*path, key))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy, of times that differ by 10^18
def test_whatever_is_changed_is_reported_or_refused(
    tmp_path: Path,
    make_stream: MakeStream,
    bench_file: Write,
    power: PowerResult,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Every value of every kind of document is made text, a large number, a list: a ConfigError or a whole report."""
    stream = make_stream(6, drop_every=3, fail_at=(0,), power=with_short_curves(power).to_json())
    documents = {
        "stream": json.loads(stream.to_text()),
        "bench": json.loads(bench_file("b.json", pairs=8).read_text()),
        "report": report_from_stream(stream).to_json(),
    }
    file = tmp_path / "changed.json"
    count = 0
    for name, document in documents.items():
        for place in places(document):
            count += 1
            changed = copy.deepcopy(document)
            put(changed, place, ("many", 9e18, [], -1, {}, None)[count % 6])
            file.write_text(json.dumps(changed))
            try:
                loaded = load(file)
                page_from_report(loaded.report)
                print_report(loaded.report)
                if loaded.stream is not None:
                    json.dumps(trace_from_stream(loaded.stream), allow_nan=False)
            except ConfigError as error:
                assert "\n" not in error.message, (name, place)
            except Exception as error:
                raise AssertionError(f"{name} {place} {count % 6}") from error
            capsys.readouterr()
    assert count > 400


def with_short_curves(power: PowerResult) -> PowerResult:
    return replace(power, times_s=power.times_s[:3], power_mw={name: c[:3] for name, c in power.power_mw.items()})


@pytest.mark.skipif(os.name == "nt", reason="permissions are those of POSIX")
def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    path.write_text("{}")

    def refuse(opened: object, *more: object) -> int:
        raise PermissionError(13, "Permission denied", str(opened))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ConfigError, match=r"cannot be read \(Permission denied\); give the result"):
        load(path)
