"""`trt-compress run` as a user types it, on the zoo's digits and on real files."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from typer.testing import CliRunner

from trt_compress.runtime.measure.latency import Speedup
from trt_compress.runtime.stream.result import StreamResult
from trt_compress.tools import streaming
from trt_compress.tools.cli.main import app

Exported = Callable[..., Path]
COUNT = 40


class Finished:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Finished]:
    """Run `trt-compress run` in a folder with `frames/0.png` … and `labels.jsonl`."""
    digits: Any = load_digits()
    (tmp_path / "frames").mkdir()
    lines = []
    for number in range(COUNT):
        Image.fromarray((digits.images[number] * 255 / 16).astype(np.uint8)).save(tmp_path / "frames" / f"{number}.png")
        lines.append(json.dumps({"id": number, "label": int(digits.target[number])}))
    (tmp_path / "labels.jsonl").write_text("\n".join(lines))
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Finished:
        result = CliRunner().invoke(app, ["run", *map(str, arguments)])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Finished(result.exit_code, result.stdout, result.stderr)

    return run


def test_a_bundle_that_is_slower_than_its_baseline_is_said(
    typed: Callable[..., Finished], exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("--source", "frames/*.png", "--frames", 2, "--threads", 1, "--no-native")
    done = typed(exported(), *asked, "--baseline", "nowhere")
    assert done.code == 2 and "nowhere" in done.err
    done = typed(exported(), *asked, "--baseline", exported())
    assert done.code == 0, done.err
    gain = Speedup(median=0.8, low=0.7, high=0.9, n=20)
    found: list[dict[str, Any]] = []

    def timed(bundle: object, **options: Any) -> SimpleNamespace:
        found.append(options)
        return SimpleNamespace(points=(), speedup=gain)

    monkeypatch.setattr(streaming, "bench", timed)
    done = typed(exported(), *asked, "--baseline", exported())
    assert done.code == 0 and "slower than its baseline on this machine: 0.80× (0.70 to 0.90)" in done.err
    assert (found[0]["batch"], found[0]["threads"], found[0]["native"]) == (1, 1, False)


def test_digits_are_classified_scored_and_written(typed: Callable[..., Finished], exported: Exported) -> None:
    done = typed(
        exported(), "--source", "frames/*.png", "--labels", "labels.jsonl", "--out", "r.jsonl",
        "--overlay", "o.mp4", "--report", "rep", "--threads", 1, "--deadline-ms", 10_000, "--no-native",
    )  # fmt: skip
    assert done.code == 0, done.err
    why = "The custom operators for ONNX Runtime on the CPU were not asked for"
    assert f"native operators none: {why}" in " ".join(done.out.split())
    assert f"none: {why}" in Path("rep/result.report.html").read_text()
    result = StreamResult.read("rep/result.json")
    counts = result.counts
    assert (counts.frames_in, counts.delivered, counts.dropped, counts.failed) == (COUNT, COUNT, 0, 0)
    assert result.identity.native_reason == f"{why}."
    assert counts.deadline_missed == 0 and result.quality["top1"].n == COUNT and result.quality["top1"].value > 0.9
    assert re.search(r"delivered +40, ", done.out) and re.search(r"top1 +\d\.\d+, n=40", done.out)
    assert re.search(r"end to end +40 .* - ", done.out)  # p90 of 40 frames is not stated
    lines = [json.loads(line) for line in Path("r.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == list(range(COUNT))
    right = [line["results"][0]["class"] == int(load_digits().target[line["id"]]) for line in lines]  # type: ignore[union-attr]
    assert sum(right) / COUNT == result.quality["top1"].value
    assert lines[0]["tokens"]["blocks.0"] == [65, 61] and result.frames.tokens_out == (33,) * COUNT
    with av.open("o.mp4") as container:
        assert sum(1 for _ in container.decode(video=0)) == COUNT
    assert {path.name for path in Path("rep").iterdir()} > {"result.json", "result.report.json", "result.report.html"}
    # The same classes as a session gives that is fed by hand, as the model card says.
    from trt_compress.runtime.session import Session

    images = np.stack([np.asarray(Image.open(f"frames/{n}.png")) for n in range(COUNT)]).astype(np.float32)
    with Session.open(exported()) as session:
        logits = session.run({"image": ((images / 255 - 0.5) / 0.5)[:, None]})["logits"]
    assert [line["results"][0]["class"] for line in lines] == logits.argmax(axis=1).tolist()


def test_json_is_the_result_and_nothing_else(typed: Callable[..., Finished], exported: Exported) -> None:
    done = typed(exported(), "--source", "frames/*.png", "--frames", 5, "--json")
    result = StreamResult.from_text(done.out)
    assert (done.code, result.ended, result.counts.frames_in) == (0, "frame limit", 5)


def test_what_is_seen_is_summed_up_first(typed: Callable[..., Finished], exported: Exported) -> None:
    done = typed(exported(), "--source", "frames/*.png", "--report", "rep")
    assert done.out.startswith("Seen\n") and "Stream\n" in done.out
    found = StreamResult.read("rep/result.json").findings
    assert found is not None and found.kind == "seen" and sum(found.classes.values()) == COUNT == found.results
    name, count = next(iter(found.classes.items()))
    assert f"{name} {count} ({count / COUNT:.1%})" in done.out
    assert "frame " not in done.err  # nothing is said live where no terminal is
    assert f"{name} {count}" in Path("rep/result.report.html").read_text()


@pytest.mark.skipif(os.name == "nt", reason="there are no pseudo-terminals")
def test_on_a_terminal_changes_are_said_and_stdout_stays_json(
    typed: Callable[..., Finished], exported: Exported
) -> None:
    import pty

    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "trt_compress.tools.cli.main", "run", str(exported()), "--source", "frames/*.png"]
    process = subprocess.Popen([*command, "--json"], stdout=subprocess.PIPE, stderr=theirs)
    os.close(theirs)
    out, _ = process.communicate(timeout=300)
    said = b""
    try:
        while chunk := os.read(ours, 4096):
            said += chunk
    except OSError:  # the other end is closed
        pass
    os.close(ours)
    assert process.returncode == 0 and StreamResult.from_text(out).counts.delivered == COUNT
    assert re.search(rb"frame +39  class \d  \d+%", said), said


def test_a_video_is_resized_nowhere_unless_the_bundle_says_how(
    typed: Callable[..., Finished], exported: Exported
) -> None:
    with av.open("v.mp4", "w") as container:
        stream: Any = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for _ in range(5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode())
    done = typed(exported(), "--source", "v.mp4")
    assert done.code == 2
    assert (
        "The first frame of 'v.mp4' failed in 'preprocess': The image has 64x48 pixels and the bundle takes 8x8"
        in done.err
    )


def test_an_overlay_is_beside_the_stream_and_says_what_is_in_it(
    typed: Callable[..., Finished], exported: Exported
) -> None:
    """A picture for every frame, whatever became of it."""
    Path("frames/3.png").write_bytes(b"no picture")
    done = typed(exported(), "--source", "frames/*.png", "--frames", 10, "--overlay", "o.mkv", "--json")
    counts = StreamResult.from_text(done.out).overlay
    assert counts is not None and (counts.drawn, counts.behind, counts.without_result) == (9, 0, 1)
    assert "Wrote o.mkv: 9 frames drawn; 1 without a result repeats the picture before." in done.err
    with av.open("o.mkv") as container:
        frames = list(container.decode(video=0))
    assert len(frames) == 10 and frames[0].width == 360  # 8 pixels, 45 times
    done = typed(exported(), "--source", "frames/*.png", "--frames", 3, "--overlay", "o.mkv", "--overlay-in-latency")
    assert done.code == 0 and "Wrote o.mkv: 3 frames drawn." in done.err


def test_what_is_read_is_not_written_over(typed: Callable[..., Finished], exported: Exported) -> None:
    for option in ("--overlay", "--out"):
        Path("a.mp4").write_bytes(b"precious")
        done = typed(exported(), "--source", "a.mp4", option, "./a.mp4")
        assert done.code == 2 and f"{option} a.mp4 is the source itself; give another name" in done.err
        assert Path("a.mp4").read_bytes() == b"precious"


def test_names_with_brackets_and_strange_digits(typed: Callable[..., Finished], exported: Exported) -> None:
    for name in ("shot[1].png", "shot1.png", "a1²1.png", "a10.png"):
        Path(name).write_bytes(Path("frames/1.png").read_bytes())
    for pattern, count in (("shot[1].png", 1), ("a*.png", 2)):
        done = typed(exported(), "--source", pattern, "--json")
        assert done.code == 0 and StreamResult.from_text(done.out).counts.delivered == count, done.err


def test_a_picture_that_is_too_large_alone_is_a_sentence(typed: Callable[..., Finished], exported: Exported) -> None:
    Image.new("1", (20_000, 10_000)).save("bomb.png")
    done = typed(exported(), "--source", "bomb.png")
    assert done.code == 2 and "20000x10000 pixels, and at most 134 million are decoded" in done.err


def test_a_fixed_rate_with_drops_accounts_for_every_frame(typed: Callable[..., Finished], exported: Exported) -> None:
    done = typed(
        exported(), "--source", "frames/*.png", "--fps", 2000, "--policy", "latest", "--json", "--out", "r.jsonl"
    )
    result = StreamResult.from_text(done.out)
    counts = result.counts
    assert counts.frames_in == COUNT == counts.delivered + counts.dropped + counts.failed
    assert counts.dropped > 0 and counts.reasons == {"a newer frame came": counts.dropped}
    assert len(Path("r.jsonl").read_text().splitlines()) == COUNT
    assert result.frames.arrival_ns == tuple(n * 500_000 for n in range(COUNT))


@pytest.mark.slow  # three exports
def test_three_keep_levels_and_a_controller(typed: Callable[..., Finished], exported: Exported) -> None:
    levels = [exported(compress=f"tome:num_merged={count}") for count in (0, 4, 7)]
    done = typed(
        levels[1], "--level", levels[0], "--level", levels[2], "--adapt", "--deadline-ms", 0.001, "--threads", 1,
        "--source", "frames/*.png", "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    result = StreamResult.from_text(done.out)
    names = [level.name for level in result.identity.levels]
    assert names == [path.name for path in levels]  # the most expensive first, however they were given
    assert set(result.frames.level) == {names[2]}  # nothing fits a microsecond: the cheapest runs
    assert result.counts.deadline_missed == COUNT
    done = typed(levels[1], "--level", levels[0], "--level", levels[2], "--adapt", "--deadline-ms", 60_000,
                 "--source", "frames/*.png")  # fmt: skip
    assert re.search(rf"Keep levels, frames of each: {names[0]} 40, {names[1]} 0, {names[2]} 0; 0 switches", done.out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--source", "nothing/*.png"), "Nothing matches 'nothing/*.png'; give a pattern such as 'frames/*.png'"),
        (("--source", "camera:97"), "'camera:97' cannot be opened"),
        (("--source", "frames"), "'frames' is a folder; give a pattern of its files, such as 'frames/*.png'"),
        (("--source", "frames/%d.png"), "numbers are written as a star, so give 'frames/*.png', in quotes"),
        (("--source", "frames/*.png", "--overlay", "o.gif"), "would hold no video of a kind that is written here"),
        (("--source", "frames/*.png", "--overlay-in-latency"), "there is none; give --overlay out.mp4"),
        (("--source", "frames/*.png", "--policy", "newest"), "policy 'newest' is not known; there are block, latest"),
        (("--source", "frames/*.png", "--fps", "0"), "fps=0; give frames a second above 0"),
        (("--source", "frames/*.png", "--burst", "4"), "bursts need both"),
        (("--source", "frames/*.png", "--deadline-ms", "-1"), "--deadline-ms -1; give a time above 0 ms"),
        (("--source", "frames/*.png", "--adapt"), "there is none; give --deadline-ms"),
        (("--source", "frames/*.png", "--level", "x"), "nothing chooses without --adapt; give both"),
        (("--source", "frames/*.png", "--out", "no/where.jsonl"), "'no/where.jsonl' cannot be written (No such file"),
        (
            ("--source", "frames/*.png", "--out", "/dev/full"),
            "failed in 'sink': '/dev/full' cannot be written any more",
        ),
        (("--source", "frames/*.png", "--labels", "no.jsonl"), "'no.jsonl' cannot be read (No such file"),
        (
            ("--source", "frames/*.png", "--labels", "s.npz"),
            "'s.npz' holds boxes, and the bundle gives 'classification'",
        ),
        (("--source", "a.wav"), "'a.wav' is audio, and the bundle takes none"),
        (("--source", "bad/*.png"), "none of its frames is good (the file is not a readable image)"),
        (("--source", "frames/*.png", "--source", "camera:0"), "Files and live sources cannot be streams of one query"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    typed: Callable[..., Finished], exported: Exported, arguments: tuple[str, ...], message: str
) -> None:
    Path("bad").mkdir()
    Path("bad/1.png").write_bytes(b"no picture")
    done = typed(exported(), *arguments)
    assert done.code == 2 and message in done.err, done.err
    assert "Traceback" not in done.err


def test_a_bad_picture_among_good_ones_is_counted(typed: Callable[..., Finished], exported: Exported) -> None:
    Path("frames/3.png").write_bytes(Path("frames/3.png").read_bytes()[:40])
    done = typed(exported(), "--source", "frames/*.png", "--json")
    counts = StreamResult.from_text(done.out).counts
    assert (done.code, counts.failed, counts.delivered) == (0, 1, COUNT - 1)
    assert counts.reasons == {"the file is not a readable image": 1}


def test_a_long_reason_leaves_room_for_the_figures(
    typed: Callable[..., Finished], exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = exported()
    digits: Any = load_digits()
    digit = np.asarray(digits.images[4] * 255 / 16, np.uint8)
    Image.fromarray(np.full(digit.shape, 1e9, np.float32)).save("frames/3.tif")
    Image.fromarray(digit).save("frames/4.tif")
    for columns in ("", "80"):
        monkeypatch.setenv("COLUMNS", columns)
        done = typed(bundle, "--source", "frames/*.tif")
        assert re.search(r"^frames in {2,9}2$", done.out, re.MULTILINE), done.out
        assert re.search(
            r"^failed {2,12}1\n {2}1 {2,15}the picture holds floating-point numbers", done.out, re.MULTILINE
        )


def test_realtime_threads_are_on_record_or_refused_in_one_sentence(
    typed: Callable[..., Finished], exported: Exported
) -> None:
    done = typed(exported(), "--source", "frames/*.png", "--frames", 5, "--realtime", "--report", "rep")
    if done.code == 0:
        assert StreamResult.read("rep/result.json").protocol.scheduling == "realtime"
        assert "real-time threads" in done.out
    else:
        assert done.code == 2 and "this user may not have it" in done.err and "Traceback" not in done.err


def test_streams_of_one_query(typed: Callable[..., Finished], exported: Exported) -> None:
    done = typed(exported(), "--source", "frames/1*.png", "--source", "frames/2*.png", "--json")
    result = StreamResult.from_text(done.out)
    assert (result.protocol.streams, result.counts.delivered) == (2, 11)
    assert result.identity.sources == ("frames/1*.png", "frames/2*.png")


def test_bursts_give_the_time_after_a_pause(typed: Callable[..., Finished], exported: Exported) -> None:
    done = typed(exported(), "--source", "frames/*.png", "--burst", 10, "--gap-ms", 20, "--json")
    result = StreamResult.from_text(done.out)
    assert (result.protocol.kind, len(result.after_idle_ns)) == ("bursts", 3)
    assert all(ns > 0 for ns in result.after_idle_ns)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_stream_writes_its_result(
    typed: Callable[..., Finished], exported: Exported, number: signal.Signals
) -> None:
    command = [sys.executable, "-m", "trt_compress.tools.cli.main", "run", str(exported()), "--source", "frames/*.png"]
    command += ["--fps", "5", "--out", "r.jsonl", "--report", "rep"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (Path("r.jsonl").exists() and Path("r.jsonl").stat().st_size):
        time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130, err
    result = StreamResult.read("rep/result.json")
    assert result.ended == "interrupted" and 1 <= result.counts.delivered < COUNT
    assert len(Path("r.jsonl").read_text().splitlines()) == result.counts.frames_in
    assert "interrupted" in out and "Traceback" not in err
