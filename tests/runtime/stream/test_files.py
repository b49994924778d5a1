"""Which files a name or a pattern means, whatever characters are in it."""

import os
from pathlib import Path

import pytest

from trt_compress.errors import ConfigError
from trt_compress.format.manifest import TensorInfo
from trt_compress.runtime.stream.files import is_pattern, matching_files, natural_order, nothing_matches
from trt_compress.runtime.stream.images import ImageFiles
from trt_compress.runtime.stream.pace import MonotonicClock
from trt_compress.runtime.stream.sources import source_from_text
from trt_compress.runtime.stream.video import VideoSource

INPUTS = {"image": TensorInfo(name="image", dtype="float32", shape=(1, 3, 8, 8))}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()


@pytest.mark.parametrize(
    ("names", "pattern", "found"),
    [
        (["shot[1].png", "shot1.png"], "shot[1].png", ["shot[1].png"]),  # the exact name wins
        (["shot1.png"], "shot[1].png", ["shot1.png"]),  # without it the brackets are a pattern
        (["what?.png", "whatx.png"], "what?.png", ["what?.png"]),
        (["a*.png", "ab.png"], "a*.png", ["a*.png"]),
        (["day[2]/1.png", "day[2]/2.png", "day2/3.png"], "day[2]/*.png", ["day[2]/1.png", "day[2]/2.png"]),
        (["x/day[2]/1.png"], "*/day[2]/1.png", ["x/day[2]/1.png"]),  # the brackets match nothing as a pattern
        (["shot[1]-1.png", "shot[1]-2.png"], "shot[1]-*.png", ["shot[1]-1.png", "shot[1]-2.png"]),
        (["f/10.png", "f/2.png", "f/01.png", "f/1.png"], "f/*.png", ["f/01.png", "f/1.png", "f/2.png", "f/10.png"]),
        (["a1²1.png", "a10.png", "a2.png"], "*.png", ["a1²1.png", "a2.png", "a10.png"]),
        (["a/x.png", "a/b.png/y.txt"], "a/*.png", ["a/x.png"]),  # a folder is no file
        (["a/1.png", "a/b/2.png"], "a/**/*.png", ["a/1.png", "a/b/2.png"]),
        (["100%.png"], "100%.png", ["100%.png"]),
        ([], "none.png", []),
    ],
)
def test_a_name_or_a_pattern(folder: Path, names: list[str], pattern: str, found: list[str]) -> None:
    make(*names)
    assert matching_files(pattern) == found
    assert matching_files(str(folder / pattern)) == [str(folder / file) for file in found]
    assert is_pattern(pattern) == (pattern not in names and any(sign in pattern for sign in "*?["))


def test_digits_that_are_no_numbers_are_sorted_too() -> None:
    names = ["x³", "x①", "x٣", "x3", "x12", ""]
    assert sorted(names, key=natural_order) == sorted(reversed(names), key=natural_order)
    assert sorted(["x12", "x3"], key=natural_order) == ["x3", "x12"]


def test_what_is_said_when_nothing_matches(folder: Path) -> None:
    make("f/1.JPG", "g/0001.png", "g/0002.png")
    assert (
        nothing_matches("f/*.jpg", "e")
        == "Nothing matches 'f/*.jpg', and 'f/*.JPG' does; capitals count, so give that."
    )
    assert nothing_matches("g/%04d.png", "e") == (
        "Nothing matches 'g/%04d.png'; numbers are written as a star, so give 'g/*.png', in quotes."
    )
    assert nothing_matches("g/x.png", "f/*.png").startswith("'g/x.png' does not exist; give a file, or a pattern")
    assert (
        nothing_matches("h/*.png", "f/*.png")
        == "Nothing matches 'h/*.png'; give a pattern such as 'f/*.png', in quotes."
    )


def meant(text: str) -> object:
    return source_from_text(text, inputs=INPUTS, audio=None, clock=MonotonicClock(), stall_s=1.0)


def test_which_source_a_text_means(folder: Path) -> None:
    make("frames/1.png", "frames/2.jpg", "clips/a.mp4", "clips/b.mp4", "shots/1.JPG", "shots/2.JPG", "shots/x.txt")
    make("odd.png/1.png", "clip[1].mp4", "phone.heic")
    for pictures in ("frames/*", "frames/*.*", "frames/[12].*", "x.gif", "x.avif", "x.PNG"):
        assert isinstance(meant(pictures), ImageFiles), pictures
    for video in ("clips/a.mp4", "clip[1].mp4", "rtsp://[::1]/cam"):
        assert isinstance(meant(video), VideoSource), video
    for text, message in (
        ("shots", r"'shots' is a folder; give a pattern of its files, such as 'shots/\*\.JPG', in quotes"),
        ("frames/", r"'frames/' is a folder; give a pattern of its files, such as 'frames/\*\.png'"),
        ("odd.png", r"'odd.png' is a folder; .* 'odd.png/\*\.png'"),
        ("clips/*.mp4", r"'clips/\*.mp4' is a pattern, and a pattern stands for pictures .*; give one video"),
        ("nothing/*", r"Nothing matches 'nothing/\*'; give a pattern such as"),
        ("phone.heic", "'phone.heic' is a HEIF picture, which is not read here; convert it to JPEG or PNG"),
        ("x" * 5000, "does not exist"),
    ):
        with pytest.raises(ConfigError, match=message):
            meant(text)


def test_a_pipe_would_lose_its_first_frames_and_is_refused(folder: Path) -> None:
    os.mkfifo("live.ts")
    for text in ("live.ts", os.devnull):
        with pytest.raises(ConfigError, match=rf"'{text}' is a pipe or a device; write the video to a file first"):
            meant(text)
