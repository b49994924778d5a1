"""The video of a stream: what is drawn, when it is shown, and that it never holds the stream up."""

import threading
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from tests.runtime.stream.media import picture
from tests.runtime.stream.stream_parts import ListSource, by_outcome, identity_stages, run_pipeline
from trt_compress.errors import ConfigError, StreamError
from trt_compress.runtime.camera_frames import CAMERA_NAMES
from trt_compress.runtime.stream.branch import BEHIND, MOST_MARKS, UNMARKED, Branch
from trt_compress.runtime.stream.frame import Frame
from trt_compress.runtime.stream.overlay import Overlay
from trt_compress.runtime.stream.pace import Pace
from trt_compress.runtime.stream.parts import BadFrame, Item
from trt_compress.runtime.stream.result import OverlayCounts
from trt_compress.runtime.stream.sheet import Captions, draw_sheet

BAR = 24
"""Pixels of the line below the pictures."""


def frame_of(data: Any, summary: dict[str, Any], number: int = 0, capture_ns: int | None = None) -> Frame:
    return Frame(
        id=number, source="s", arrival_ns=10, start_ns=11, mark_ns=12, data=data, summary=summary, capture_ns=capture_ns
    )


def decoded(path: Path) -> list[np.ndarray[Any, Any]]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def test_an_overlay_holds_the_pictures_and_the_class(tmp_path: Path) -> None:
    sink = Overlay(tmp_path / "o.mp4", fps=25)
    sink.open()
    pictures = [picture(4 + n, 161, 201) for n in range(6)]  # odd sides, brighter and brighter
    for number, image in enumerate(pictures):
        found = {"class": number, "score": 0.5, "label": "WWWWWWWW"}
        sink.deliver(frame_of(image, {"results": [found]}, number), 0)
    sink.close()
    frames = decoded(tmp_path / "o.mp4")
    assert len(frames) == 6 and frames[0].shape == (3 * 161 + BAR & ~1, 3 * 201 & ~1, 3)  # three times as large
    for image, shown in zip(pictures, frames, strict=True):
        assert abs(float(shown[40:-40].mean()) - float(image.mean())) < 4
        yellow = (shown[..., 0].astype(int) > 150) & (shown[..., 1] > 150) & (shown[..., 2] < 110)
        assert yellow[:30].sum() > 100 and yellow[40:].sum() == 0  # the text is at the top and only there


def test_an_overlay_shows_boxes_from_above(tmp_path: Path) -> None:
    sink = Overlay(tmp_path / "o.mp4", range_m=20)
    sink.open()
    box = {
        "class": 0,
        "score": 0.9,
        "center": [10.0, 10.0, 0.0],
        "size": [4.0, 2.0, 1.5],
        "yaw": 0.0,
        "velocity": [0.0, 0.0],
    }
    images = np.full((1, 2, 3, 160, 80), 150, np.float32)
    # Two cameras that look ahead, 40 pixels a metre at a metre; the second is turned round and sees nothing.
    ahead = np.array([[40.0, -40.0, 0, 0], [80.0, 0, -40.0, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
    back = ahead @ np.diag([-1.0, -1.0, 1.0, 1.0])
    scene = {"images": images, "img2lidar": np.linalg.inv(np.stack([ahead, back]))[None]}
    sink.deliver(frame_of(scene, {"results": [{"boxes": [box]}]}), 0)
    sink.close()
    (shown,) = decoded(tmp_path / "o.mp4")
    assert shown.shape == (640 + BAR, 160 + 640, 3)  # the cameras in two rows, twice as large

    def orange(part: np.ndarray[Any, Any]) -> Any:
        return (part[..., 0].astype(int) - part[..., 2] > 60).nonzero()

    rows, columns = orange(shown[:320, :160])
    # Its middle is 10 m ahead and 10 m left: column 80 - 80 = 0, row 160; its back end is nearer and further left.
    assert len(rows) > 5 and abs(float(np.median(rows)) - 160) < 16
    assert float(np.median(columns)) < 30 and columns.max() < 80
    assert len(orange(shown[320:640, :160])[0]) == 0
    rows, columns = orange(shown[:, 160:])
    # From above 16 pixels are a metre, x is up and y to the left: a quarter of the side from each edge.
    at_box = (abs(rows - 160) < 60) & (abs(columns - 160) < 60)
    assert abs(rows[at_box].mean() - 160) < 8 and abs(columns[at_box].mean() - 160) < 8
    assert 56 <= np.ptp(rows[at_box]) <= 80 and 24 <= np.ptp(columns[at_box]) <= 48


def test_an_overlay_of_sound_is_refused(tmp_path: Path) -> None:
    sink = Overlay(tmp_path / "o.mp4")
    sink.open()
    with pytest.raises(ConfigError, match="An overlay needs images, and the source gives sound"):
        sink.deliver(frame_of(np.zeros(100, np.float32), {}), 0)
    with pytest.raises(ConfigError, match="An overlay needs images, and the source gives points"):
        sink.deliver(frame_of({"points": np.zeros((1, 100), np.float32)}, {}), 0)
    sink.close()


def drawn(image: Any, result: dict[str, Any], captions: Captions | None = None) -> Any:
    """The picture of one frame as [H, W, 3]."""
    return np.asarray(draw_sheet(frame_of(image, {"results": [result]}), captions or Captions())).astype(int)


def test_small_frames_are_enlarged_by_a_whole_number() -> None:
    for shape, zoom in (((8, 8), 45), ((96, 96), 4), ((360, 640), 1), ((20, 1000), 1), ((500, 2), 1)):
        assert drawn(np.full(shape, 9, np.uint8), {}).shape == (zoom * shape[0], max(240, zoom * shape[1]), 3)
    image = np.random.default_rng(0).integers(0, 255, (90, 90, 3)).astype(np.uint8)
    assert np.array_equal(drawn(image, {}), image.repeat(4, axis=0).repeat(4, axis=1))


def test_the_place_that_was_found_is_marked() -> None:
    image = np.full((96, 96), 128, np.uint8)
    rows, columns = (np.abs(drawn(image, {"place": [0.25, 0.75]}) - 128).max(axis=2) > 40).nonzero()
    assert abs(rows.mean() - 0.75 * 384) < 2 and abs(columns.mean() - 0.25 * 384) < 2
    assert np.ptp(rows) < 90 and np.ptp(columns) < 90
    assert (drawn(image, {"place": [0.25, 0.75]}, Captions(with_place=False)) == 128).all()


def test_what_is_true_is_written_beside_the_class() -> None:
    image = np.zeros((96, 96), np.uint8)

    def reddest(wanted: int) -> tuple[int, int]:
        shown = drawn(image, {"class": 3, "score": 0.5}, Captions(classes={0: [wanted]}))
        bright = shown[shown.max(axis=2) > 150]
        return int(bright[:, 0].mean()), int(bright[:, 1].mean())

    right, wrong = reddest(3), reddest(4)
    assert right[1] > right[0] and wrong[0] > wrong[1]


def test_cameras_have_names_and_true_boxes() -> None:
    scene = {"images": np.full((1, 2, 3, 64, 96), 100.0, np.float32)}
    box = {"label": "car", "center": [5.0, 5.0, 0.0], "size": [4.0, 2.0, 1.5], "yaw": 0.0}
    frame = frame_of(scene, {"results": [{"boxes": []}]})
    plain = np.asarray(draw_sheet(frame, Captions(names=["", ""])), int)
    named = np.asarray(draw_sheet(frame, Captions(names=["front", "rear left"])), int)
    numbered = np.asarray(draw_sheet(frame, Captions(names=["too", "many", "names"])), int)
    true = np.asarray(draw_sheet(frame, Captions(names=["", ""], boxes={0: [box]})), int)
    tile = 5 * 64
    for number in range(2):
        differs = np.abs(named - plain)[tile * number : tile * (number + 1), : 5 * 96].max(axis=2) > 0
        first = np.nonzero(differs)
        assert len(first[0]) > 50 and first[0].max() < 30  # at the top of each camera
    assert (numbered != plain).any()
    frame.data = scene | {"img2lidar": np.zeros((1, 2, 4, 4))}  # cameras that see nothing
    assert np.array_equal(np.asarray(draw_sheet(frame, Captions(names=["", ""]))), plain)
    frame.data = scene
    rows, columns = np.nonzero(np.abs(true - plain)[:, 5 * 96 :].max(axis=2))
    left = columns < 2 * tile * 0.6  # without the legend
    assert left.any() and (true == plain)[:, : 5 * 96].all()


def times(path: Path) -> list[float]:
    with av.open(str(path)) as container:
        stream: Any = container.streams.video[0]
        return [round(float(frame.pts * stream.time_base), 4) for frame in container.decode(video=0)]


@pytest.mark.parametrize("name", ["o.mp4", "o.mkv", "o.avi", "o.mov", "o.webm"])
def test_an_overlay_keeps_the_times_of_the_source(tmp_path: Path, name: str) -> None:
    sink = Overlay(tmp_path / name)
    sink.open()
    stamps = [1.0, 1.04, 1.08, 1.12, 1.2, 1.24] if not name.endswith(".avi") else [1 + 0.04 * n for n in range(6)]
    for number, stamp in enumerate(stamps):
        sink.deliver(frame_of(picture(number, 64, 96), {}, number, round(stamp * 1e9)), 0)
    sink.close()
    found = np.array(times(tmp_path / name))  # AVI counts them from the second frame
    np.testing.assert_allclose(found - found[0], np.array(stamps) - 1, atol=0.002)
    with av.open(str(tmp_path / name)) as container:
        assert abs(float(container.streams.video[0].guessed_rate or 0) - 25) < 4


@pytest.mark.parametrize(
    ("stamps", "shown"),
    [
        ([5, 45, 85, 0, 40, 80], [0, 40, 80, 120, 160, 200]),  # a camera that starts anew
        ([5, 45, 10**9, 10**9 + 40], [0, 40, 80, 120]),  # a clock that was set
        ([5, 45, None, 125, 5125], [0, 40, 80, 120, 5120]),  # a frame without a stamp, and a real pause
        ([7, 7, 7], [0, 33.3333, 66.6667]),
    ],
)
def test_a_clock_that_jumps(tmp_path: Path, stamps: list[int | None], shown: list[float]) -> None:
    sink = Overlay(tmp_path / "o.mp4")
    sink.open()
    for number, stamp in enumerate(stamps):
        sink.deliver(frame_of(picture(number, 64, 96), {}, number, None if stamp is None else stamp * 1_000_000), 0)
    sink.close()
    np.testing.assert_allclose(np.array(times(tmp_path / "o.mp4")) * 1000, shown, atol=0.1)


@pytest.mark.parametrize("name", ["o.mp4", "o.mov"])
@pytest.mark.parametrize("count", [1, 6, 11, 12, 30])
def test_every_frame_of_a_finished_file_is_shown(tmp_path: Path, name: str, count: int) -> None:
    """A second's fragment ends with every fifth frame, and the file may end there too."""
    sink = Overlay(tmp_path / name, fps=5)
    sink.open()
    for number in range(count):
        sink.deliver(frame_of(picture(number, 64, 96), {}, number), 0)
    sink.close()
    assert times(tmp_path / name) == [round(number / 5, 4) for number in range(count)]


def test_time_stamps_that_count_frames_are_no_error(tmp_path: Path) -> None:
    sink = Overlay(tmp_path / "o.mp4")
    sink.open()
    for number in range(5):
        sink.deliver(frame_of(picture(number, 64, 96), {}, number, number), 0)
    sink.close()
    assert len(decoded(tmp_path / "o.mp4")) == 5


def test_frames_without_time_stamps_come_at_the_rate_that_is_given(tmp_path: Path) -> None:
    sink = Overlay(tmp_path / "o.mp4", fps=12.5)
    sink.open()
    for number in range(5):
        sink.deliver(frame_of(picture(number, 64, 96), {}, number), 0)
    sink.close()
    assert times(tmp_path / "o.mp4") == [0, 0.08, 0.16, 0.24, 0.32]
    with av.open(str(tmp_path / "o.mp4")) as container:
        assert container.streams.video[0].average_rate == Fraction(25, 2)


def test_a_frame_without_a_result_repeats_the_last_picture_with_a_mark(tmp_path: Path) -> None:
    """Frames 0, 2 and 5 are damaged or dropped: every frame is in the video, at its time."""
    items = [Item(data=picture(15 - number, 64, 96), capture_ns=40_000_000 * number) for number in range(6)]
    items[0] = Item(error="the packet cannot be decoded", capture_ns=0)

    def run(frame: Frame) -> None:
        if frame.id in (2, 5):
            raise BadFrame("the input is not finite")
        frame.outputs = {"y": np.zeros(())}

    overlay = Overlay(tmp_path / "o.mp4")
    stages = identity_stages(run, preprocess=lambda data: {"x": np.float32(0)})
    finished, _ = run_pipeline(ListSource(items), stages, sink=Branch(overlay))
    assert by_outcome(finished) == {"delivered": [1, 3, 4], "dropped": [], "failed": [0, 2, 5]}
    assert overlay.counts == OverlayCounts(drawn=3, behind=0, without_result=3)
    assert times(tmp_path / "o.mp4") == [0, 0.04, 0.08, 0.12, 0.16, 0.2]
    frames = decoded(tmp_path / "o.mp4")
    inner = [frame[40:-60, 40:-40].mean() for frame in frames]
    assert inner[0] < 5  # there was no picture yet
    assert abs(inner[2] - inner[1]) < 2 and abs(inner[5] - inner[4]) < 2 and inner[3] < inner[1] - 20
    red = [bool(frame[-6, 300:, 0].mean() > 120 > frame[-6, 300:, 1].mean()) for frame in frames]
    assert red == [True, False, True, False, False, True]


def test_marks_that_nobody_would_see_are_left_out(tmp_path: Path) -> None:
    sink = Overlay(tmp_path / "o.mp4", fps=1000)
    sink.open()
    for number in range(40):
        frame = frame_of(picture(9, 64, 96), {}, number)
        if number % 20 == 0:
            sink.deliver(frame, 0)
        else:
            frame.outcome, frame.reason = "dropped", "a newer frame came"
            sink.skip(frame)
    sink.close()
    assert sink.counts == OverlayCounts(drawn=2, behind=0, without_result=38)
    assert times(tmp_path / "o.mp4") == [0, 0.004, 0.008, 0.012, 0.016, 0.02, 0.024, 0.028, 0.032, 0.036]


def test_frames_of_another_size_fit_into_the_first(tmp_path: Path) -> None:
    sink = Overlay(tmp_path / "o.mp4")
    sink.open()
    for number, shape in enumerate([(64, 96), (96, 64), (200, 300)]):
        sink.deliver(frame_of(picture(9, *shape), {}, number), 0)
    sink.close()
    assert len({frame.shape for frame in decoded(tmp_path / "o.mp4")}) == 1


def test_a_file_without_a_picture_is_not_left_behind(tmp_path: Path) -> None:
    sink = Overlay(tmp_path / "o.mp4")
    sink.open()
    sink.close()
    assert not (tmp_path / "o.mp4").exists()


def test_names_that_are_no_video(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"The overlay '.*o\.mp4' cannot be written \(No such file or directory\)"):
        Overlay(tmp_path / "nowhere" / "o.mp4").open()
    with pytest.raises(ConfigError, match=r"The overlay '.*o\.what' cannot be written"):
        Overlay(tmp_path / "o.what").open()
    for name in ("o.gif", "o.mp3", "o.jpg", "o.png"):
        with pytest.raises(
            ConfigError, match="would hold no video of a kind that is written here; give a name such as"
        ):
            Overlay(tmp_path / name).open()
        assert not (tmp_path / name).exists()


class SlowSink:
    """Takes a while for every frame, or waits until it is let go, or breaks."""

    def __init__(self, seconds: float = 0.0, gate: threading.Event | None = None, broken: bool = False) -> None:
        self.events: list[tuple[int, str | None]] = []
        self.seconds, self.gate, self.broken = seconds, gate, broken
        self.closed = False

    @property
    def counts(self) -> OverlayCounts:
        reasons = [reason for _, reason in self.events]
        return OverlayCounts(drawn=reasons.count(None), behind=reasons.count(BEHIND), without_result=0)

    def open(self) -> None: ...

    def start(self, origin_ns: int) -> None: ...

    def deliver(self, frame: Frame, now_ns: int) -> None:
        if self.gate is not None:
            self.gate.wait(10)
        time.sleep(self.seconds)
        if self.broken:
            raise StreamError("'o.mp4' cannot be written any more (No space left on device)")
        self.events.append((frame.id, None))

    def skip(self, frame: Frame) -> None:
        self.events.append((frame.id, frame.reason))

    def close(self) -> None:
        self.closed = True


def test_a_slow_overlay_is_no_part_of_latency_and_falls_behind() -> None:
    gate = threading.Event()
    slow = SlowSink(gate=gate)
    images = [np.zeros(1000, np.uint8) for _ in range(20)]
    stages = identity_stages(
        preprocess=lambda data: {"x": np.float32(0)}, delivered=lambda frame: gate.set() if frame.id == 19 else None
    )
    pace = Pace(kind="fixed rate", fps=500)
    finished, _ = run_pipeline(ListSource(images), stages, sink=Branch(slow, most_bytes=5000), pace=pace)
    counts = finished.ledger.counts()
    assert (counts.delivered, finished.ended) == (20, "end of source") and slow.closed
    assert [number for number, _ in slow.events] == list(range(20))
    assert slow.counts.drawn == 5 and slow.counts.behind == 15


def test_a_closed_loop_has_no_clock_and_waits_between_frames() -> None:
    branch = Branch(SlowSink(seconds=0.01), most_bytes=3000)
    stages = identity_stages(preprocess=lambda data: {"x": np.float32(0)})
    finished, _ = run_pipeline(ListSource([np.zeros(1000, np.uint8)] * 20), stages, sink=branch)
    counts = branch.counts
    assert (counts.drawn, counts.behind) == (20, 0)
    # 20 frames of 10 ms: what was not waited for was drawn after the end.
    assert 100_000_000 < counts.waited_ns < finished.wall_ns and counts.after_ns > 0
    assert counts.waited_ns + counts.after_ns > 180_000_000
    times_ns = finished.ledger.frames()
    late = [end - arrival for end, arrival in zip(times_ns.end_ns, times_ns.arrival_ns, strict=True)]
    assert np.median(late) < 8_000_000  # no frame's time


def test_what_is_said_of_an_overlay() -> None:
    assert OverlayCounts(drawn=1, behind=0, without_result=0).sentence() == "1 frame drawn."
    assert OverlayCounts(drawn=5, behind=2, without_result=3, waited_ns=1_250_000_000).sentence() == (
        "5 frames drawn; 2 came too fast and repeat the picture before (--overlay-in-latency draws all); 3 without a "
        "result repeat the picture before; the loop waited 1.2 s for it between frames."
    )


def test_in_latency_every_frame_is_drawn_and_counts() -> None:
    slow = SlowSink(seconds=0.01)
    stages = identity_stages(preprocess=lambda data: {"x": np.float32(0)})
    finished, _ = run_pipeline(
        ListSource([np.zeros(1000, np.uint8)] * 8), stages, sink=Branch(slow, in_latency=True, most_bytes=1)
    )
    assert slow.counts.drawn == 8
    assert all((ns or 0) > 10_000_000 for ns in finished.ledger.frames().stage_ns["sink"])


def test_frames_come_in_order_also_when_many_are_dropped() -> None:
    slow = SlowSink(seconds=0.002)
    stages = identity_stages(preprocess=lambda data: time.sleep(0.002) or {"x": np.float32(0)})
    finished, _ = run_pipeline(
        ListSource([np.zeros(10, np.uint8)] * 200), stages, sink=Branch(slow), policy="latest",
        pace=Pace(kind="fixed rate", fps=2000),
    )  # fmt: skip
    counts = finished.ledger.counts()
    assert counts.dropped > 20
    assert [number for number, _ in slow.events] == list(range(200))
    assert sum(reason == "a newer frame came" for _, reason in slow.events) == counts.dropped


def test_what_waits_for_an_overlay_that_never_catches_up_is_bounded() -> None:
    gate = threading.Event()
    slow = SlowSink(gate=gate)
    branch = Branch(slow, most_bytes=1)
    branch.open()
    branch.start(0)
    for number in range(1000):
        frame = Frame(id=number, source="s", arrival_ns=0, start_ns=0, mark_ns=0, data=np.zeros(1, np.uint8))
        if number % 3:
            frame.outcome, frame.reason = "dropped", "a newer frame came"
            branch.skip(frame)
        else:
            branch.deliver(frame, 0)
    gate.set()
    branch.close()
    assert [number for number, _ in slow.events] == list(range(1000))
    reasons = [reason for _, reason in slow.events]
    marked = 1000 - MOST_MARKS
    assert reasons[0] is None and set(reasons[1:marked]) == {UNMARKED}
    assert set(reasons[marked:]) == {BEHIND, "a newer frame came"}


def test_frames_that_are_only_counted_make_no_picture_and_time_goes_on(tmp_path: Path) -> None:
    overlay = Overlay(tmp_path / "o.mp4", fps=10.0)
    overlay.open()
    for number in range(6):
        frame = Frame(id=number, source="s", arrival_ns=0, start_ns=0, mark_ns=0, data=np.zeros((48, 64, 3), np.uint8))
        if number in (0, 5):
            overlay.deliver(frame, 0)
        else:
            frame.outcome, frame.reason = "dropped", UNMARKED
            overlay.skip(frame)
    overlay.close()
    assert (overlay.counts.drawn, overlay.counts.without_result) == (2, 4)
    with av.open(str(tmp_path / "o.mp4")) as video:
        times = [float(frame.time or 0) for frame in video.decode(video=0)]
    assert times == pytest.approx([0.0, 0.5], abs=1e-3)


@pytest.mark.parametrize("in_latency", [False, True])
@pytest.mark.parametrize("frames", [1, 50])
def test_an_overlay_that_cannot_be_written_ends_the_stream(frames: int, in_latency: bool) -> None:
    finished, _ = run_pipeline(
        ListSource([np.zeros(10, np.uint8)] * frames),
        identity_stages(preprocess=lambda data: time.sleep(0.001) or {"x": np.float32(0)}),
        sink=Branch(SlowSink(broken=True), in_latency=in_latency),
    )
    assert finished.ended == "error" and finished.error is not None and finished.error.exit_code == 2
    assert "'o.mp4' cannot be written any more (No space left on device)" in finished.error.message


def test_a_full_disk_is_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "o.mkv"
    path.symlink_to("/dev/full")
    finished, _ = run_pipeline(
        ListSource([picture(number, 64, 96) for number in range(30)]),
        identity_stages(preprocess=lambda data: {"x": np.float32(0)}),
        sink=Branch(Overlay(path)),
    )
    assert finished.error is not None and finished.error.exit_code == 2
    assert "cannot be written any more (No space left on device)" in finished.error.message


def test_camera_names_of_a_scene_are_read(tmp_path: Path) -> None:
    from trt_compress.runtime.stream.images import load_npz

    np.savez(tmp_path / "s.npz", **{CAMERA_NAMES: np.array(["front", "back"]), "images": np.zeros(9)})
    assert load_npz(str(tmp_path / "s.npz"), only=(CAMERA_NAMES,))[CAMERA_NAMES].tolist() == ["front", "back"]
