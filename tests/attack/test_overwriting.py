"""No output is written over anything that the same command reads, by whatever name it is given."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.attack.small_bundle import write_small
from tests.typed_commands import Typed

RUN = ("run", "picture", "--source", "frames/*.png", "--labels", "l.jsonl")
EVALUATE = ("evaluate", "picture", "--data", "classes", "--classes", "c.txt", "--baseline", "second")
SWEEP = ("sweep", "zoo:digits_vit", "--data", "classes", "--labels", "l.jsonl", "--weights", "w.pth")
OF_A_BUNDLE = ("picture/manifest.json", "picture/model.onnx", "picture/new.json")

CASES: dict[str, tuple[tuple[str, ...], str, tuple[str, ...]]] = {
    "run --out": (RUN, "--out", ("frames/0.png", "frames/1.png", "l.jsonl", *OF_A_BUNDLE)),
    "run --overlay": (RUN, "--overlay", ("frames/0.png", "l.jsonl", "picture/o.mp4")),
    "run --report": (RUN, "--report", ("picture", "picture/report", "kept")),
    "run --out, of arrays": (("run", "array", "--source", "x.npz"), "--out", ("x.npz", "array/manifest.json")),
    "run --out, a scene's truth": (("run", "array", "--source", "x.npz", "--labels", "y.npz"), "--out", ("y.npz",)),
    "run --out, of sound": (("run", "sound", "--source", "s.wav"), "--out", ("s.wav", "sound/model.onnx")),
    "run --out, of a video": (("run", "picture", "--source", "s.mp4"), "--out", ("s.mp4",)),
    "run --overlay, of a video": (("run", "picture", "--source", "s.mp4"), "--overlay", ("s.mp4",)),
    "run --overlay, of a URL": (("run", "picture", "--source", "file://{here}/s.mp4"), "--overlay", ("s.mp4",)),
    "run --overlay, of a bare URL": (("run", "picture", "--source", "file:s.mp4"), "--overlay", ("s.mp4",)),
    "run --out, a level": (
        (*RUN, "--adapt", "--deadline-ms", "9", "--level", "second"),
        "--out",
        ("second/model.onnx", "second/new.jsonl"),
    ),
    "evaluate --json": (EVALUATE, "--json", ("classes/0/0.png", "c.txt", *OF_A_BUNDLE, "second/model.onnx")),
    "evaluate --json, of arrays": (("evaluate", "array", "--data", "x.npz"), "--json", ("x.npz", "array/model.onnx")),
    "bench --json": (
        ("bench", "array", "--inputs", "x.npz", "--baseline", "other", "--pairs", "2"),
        "--json",
        ("x.npz", "array/manifest.json", "other/model.onnx", "other/new.json"),
    ),
    "sweep --json": (SWEEP, "--json", ("classes/0/0.png", "l.jsonl", "w.pth")),
    "sweep --html": (SWEEP, "--html", ("classes/1/0.png", "l.jsonl", "w.pth")),
    "scene -o": (("scene", "made:1", "--bundle", "array"), "-o", ("array/new.npz",)),
    "scene --pictures": (("scene", "made:1", "--bundle", "array", "-o", "new.npz"), "--pictures", ("array/new",)),
}
"""What writes → the command, its option, and what it reads. `kept` is a folder whose result.json is a second name."""


def _as_it_is(target: Path, alias: Path) -> Path:
    return target


def _link(target: Path, alias: Path) -> Path:
    alias.symlink_to(target)
    return alias


def _second_name(target: Path, alias: Path) -> Path:
    os.link(target, alias)
    return alias


def _by_folder(target: Path, alias: Path) -> Path:
    alias.symlink_to(target.parent)
    return alias / target.name


def _around(target: Path, alias: Path) -> Path:
    return target.parent / ".." / target.parent.name / target.name


WAYS: dict[str, Callable[[Path, Path], Path]] = {
    "path": _as_it_is,
    "link": _link,
    "hard link": _second_name,
    "link to its folder": _by_folder,
    "dots": _around,
}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    import numpy as np
    from PIL import Image

    here = tmp_path / "here"
    here.mkdir()
    for name, kind in (("picture", "picture"), ("second", "picture"), ("array", "array"), ("other", "array")):
        write_small(here / name, kind)
    write_small(here / "sound", "sound")
    for folder in ("frames", "classes/0", "classes/1", "kept"):
        (here / folder).mkdir(parents=True)
    for name in ("frames/0.png", "frames/1.png", "classes/0/0.png", "classes/1/0.png"):
        Image.fromarray(np.array([[9, 200], [8, 7]], np.uint8)).save(here / name)
    np.savez(here / "x.npz", x=np.eye(4, dtype=np.float32), label=np.arange(4))
    np.savez(here / "y.npz", x=np.eye(4, dtype=np.float32))
    for name in ("s.wav", "s.mp4", "w.pth", "c.txt"):
        (here / name).write_bytes(b"what was there")
    (here / "l.jsonl").write_text('{"id": 0, "label": 1}\n')
    os.link(here / "frames" / "0.png", here / "kept" / "result.json")
    return here


def _content(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def _ends_in(way: str, target: Path) -> bool:
    """Whether there is such a way to it; a folder and what is not there have no second name."""
    return way != "hard link" or target.is_file()


def _wrong(typed: Typed, place: Path, case: str, name: str, way: str) -> str | None:
    arguments, option, _ = CASES[case]
    target = place / name
    suffix = target.suffix if way in ("link", "hard link") else ""
    alias = place.parent / f"alias{suffix}"
    given = WAYS[way](target, alias)
    before = _content(place)
    try:
        ended = typed(*(text.format(here=place) for text in arguments), option, given)
    finally:
        alias.unlink(missing_ok=True)
    said = f"{case}, {name} by {way}: {ended.code}: {ended.err[-300:]}"
    if _content(place) != before:
        return f"{said}; something was changed"
    return None if ended.is_one_sentence and not ended.out else said


def _cases(place: Path) -> Iterator[tuple[str, str, str]]:
    for case, (_, _, names) in CASES.items():
        for name in names:
            yield from ((case, name, way) for way in WAYS if _ends_in(way, place / name))


def test_nothing_that_is_read_is_written_over(place: Path, attack: Any) -> None:
    cases = list(_cases(place))
    chosen = attack.random(7).sample(cases, min(attack.count(20, len(cases)), len(cases)))
    attack.saw(cases=len(chosen))
    with Typed(place, XDG_CACHE_HOME=str(place.parent / "cache")) as typed:
        wrong = [found for case in chosen if (found := _wrong(typed, place, *case)) is not None]
    attack.saw(lost=len(wrong))
    assert wrong == [], "\n".join(wrong)


def test_a_report_is_not_written_over_itself_and_one_stream_is_one_output(place: Path) -> None:
    with Typed(place, XDG_CACHE_HOME=str(place.parent / "cache")) as typed:
        made = typed("bench", "array", "--pairs", "2", "--json", "r.json", "--no-native")
        assert made.code == 0, made.err
        assert typed("report", "r.json", "-o", "out").code == 0
        before = _content(place)
        for result in ("out/r.report.json", "out/../out/r.report.json"):
            ended = typed("report", result, "-o", "out")
            assert ended.is_one_sentence and "is a result itself" in ended.err, ended.err
        ended = typed(*RUN, "--out", "/dev/stdout", "--overlay", "/dev/stdout")
        assert ended.is_one_sentence, ended.err
        ended = typed(*RUN, "--json", "--out", "/dev/stdout")
        assert ended.code == 2 and "is the file of --out itself" in ended.out + ended.err, ended
        ended = typed(*RUN, "--out", "a.mp4", "--overlay", "kept/../a.mp4")
        assert ended.is_one_sentence and "is the file of --out itself" in ended.err, ended.err
        assert _content(place) == before
