"""What is no file, or does not end, is refused in one sentence at once, wherever a file is read."""

import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.attack.small_bundle import write_small
from tests.typed_commands import Typed

_MOST_BUSY, _MOST_SECONDS = 2.0, 60.0  # the second on a machine that does much else
_TARGET = "real"

READ: dict[str, tuple[str, tuple[str, ...]]] = {
    "source picture": ("s.png", ("run", "picture", "--source", "s.png")),
    "source video": ("s.mp4", ("run", "picture", "--source", "s.mp4")),
    "source url": ("s.ts", ("run", "picture", "--source", "file:{here}/s.ts")),
    "source url with slashes": ("s.mp4", ("run", "picture", "--source", "file://{here}/s.mp4")),
    "source array": ("s.npz", ("run", "array", "--source", "s.npz")),
    "source wav": ("s.wav", ("run", "sound", "--source", "s.wav")),
    "source m4a": ("s.m4a", ("run", "sound", "--source", "s.m4a")),
    "run labels": ("l.jsonl", ("run", "picture", "--source", "frames/*.png", "--labels", "l.jsonl")),
    "run bundle": ("b", ("run", "b", "--source", "frames/*.png")),
    "evaluate data": ("d.npz", ("evaluate", "array", "--data", "d.npz")),
    "evaluate labels": ("l.jsonl", ("evaluate", "picture", "--data", "frames", "--labels", "l.jsonl")),
    "evaluate classes": ("c.txt", ("evaluate", "picture", "--data", "classes", "--classes", "c.txt")),
    "evaluate baseline": ("b", ("evaluate", "array", "--data", "x.npz", "--baseline", "b")),
    "bench inputs": ("i.npz", ("bench", "array", "--inputs", "i.npz", "--pairs", "2")),
    "preflight": ("m.onnx", ("preflight", "m.onnx", "--target", "cpu")),
    "inspect": ("b", ("inspect", "b")),
    "report": ("r.json", ("report", "r.json")),
    "report of a folder": ("ran/result.json", ("report", "ran")),
    "compare": ("r.json", ("compare", "r.json")),
    "compare, second": ("r.json", ("compare", "r.json", "r.json")),
    "export recipe": ("r.toml", ("export", "r.toml", "-o", "out")),
    "export weights": ("w.pth", ("export", "zoo:digits_vit", "--weights", "w.pth", "-o", "out")),
    "export safetensors": ("w.safetensors", ("export", "zoo:digits_vit", "--weights", "w.safetensors", "-o", "out")),
    "export own": ("mine.py", ("export", "mine.py:make", "-o", "out")),
    "export hf": ("hf/config.json", ("export", "hf:hf", "-o", "out")),
    "export codec": ("c.ckpt", ("export", "wavtokenizer:c.ckpt", "-o", "out")),
    "export projector": (
        "p.pt",
        ("export", "zoo:digits_vit", "--compress", "frame_stack:projector=p.pt", "-o", "out"),
    ),
    "sweep data": ("d.npz", ("sweep", "zoo:digits_vit", "--data", "d.npz")),
    "sweep labels": ("l.jsonl", ("sweep", "zoo:digits_vit", "--data", "frames", "--labels", "l.jsonl")),
    "sweep weights": ("w.pth", ("sweep", "zoo:digits_vit", "--data", "frames", "--weights", "w.pth")),
    "sweep recipe": ("r.toml", ("sweep", "r.toml")),
    "bundle manifest": ("picture/manifest.json", ("run", "picture", "--source", "frames/*.png")),
    "bundle graph": ("picture/model.onnx", ("run", "picture", "--source", "frames/*.png")),
    "bundle graph, evaluate": ("array/model.onnx", ("evaluate", "array", "--data", "x.npz")),
    "bundle graph, bench": ("array/model.onnx", ("bench", "array", "--pairs", "2")),
    "bundle graph, inspect": ("array/model.onnx", ("inspect", "array")),
    "bundle manifest, preflight": ("array/manifest.json", ("preflight", "array", "--target", "cpu")),
}
"""What is read → the name that the special file gets, and the command."""


def _zero(place: Path) -> None:
    place.symlink_to("/dev/zero")


def _socket(place: Path) -> None:
    here = os.getcwd()
    os.chdir(place.parent)  # names of sockets are short
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(place.name)
    finally:
        os.chdir(here)


SPECIAL: dict[str, Callable[[Path], None]] = {
    "pipe": os.mkfifo,
    "endless device": _zero,
    "socket": _socket,
    "dangling link": lambda place: place.symlink_to("nowhere"),
    "loop": lambda place: place.symlink_to(place.name),
    "folder": lambda place: place.mkdir(),
    "terminal": lambda place: place.symlink_to("/dev/tty"),
    "link to a pipe": lambda place: (os.mkfifo(place.parent / _TARGET), place.symlink_to(_TARGET))[-1],
}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    import numpy as np
    from PIL import Image

    for kind in ("picture", "array", "sound"):
        write_small(tmp_path / kind, kind)
    for folder in ("frames", "classes/0", "classes/1", "ran", "hf"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("frames/0.png", "classes/0/0.png", "classes/1/0.png"):
        Image.fromarray(np.array([[9, 200], [8, 7]], np.uint8)).save(tmp_path / name)
    np.savez(tmp_path / "x.npz", x=np.eye(4, dtype=np.float32), label=np.arange(4))
    return tmp_path


def _cases(place: Path) -> Iterator[tuple[str, str]]:
    for read, (name, _) in READ.items():
        for special in SPECIAL:
            if special == "folder" and (name == "b" or read == "sweep data"):
                continue  # a bundle is one, and data may be
            yield read, special


@pytest.fixture
def typed(place: Path) -> Iterator[Typed]:
    with Typed(place, XDG_CACHE_HOME=str(place / "cache")) as typed:
        yield typed


def _wrong(typed: Typed, place: Path, read: str, special: str) -> str | None:
    name, arguments = READ[read]
    at, kept = place / name, place / "kept"
    if at.exists():
        at.rename(kept)
    SPECIAL[special](at)
    before = sorted(str(path) for path in place.rglob("*"))
    try:
        ended = typed(*(text.format(here=place) for text in arguments))
    finally:
        after = sorted(str(path) for path in place.rglob("*"))
        shutil.rmtree(at) if at.is_dir() and not at.is_symlink() else at.unlink()
        (at.parent / _TARGET).unlink(missing_ok=True)
        if kept.exists():
            kept.rename(at)
    said = f"{read}, {special}: {ended.code} in {ended.seconds:.1f} s: {ended.err[-400:]}{ended.out[-200:]}"
    if after != before:
        return f"{said}; left {set(after) - set(before)}"
    return None if ended.is_one_sentence and ended.busy < _MOST_BUSY and ended.seconds < _MOST_SECONDS else said


def test_what_is_no_file_is_refused_at_once(place: Path, typed: Typed, attack: Any) -> None:
    typed("list", "targets")  # its first command loads what all of them need
    cases = list(_cases(place))
    random = attack.random(11)
    chosen = random.sample(cases, min(attack.count(25, len(cases)), len(cases)))
    attack.figures["cases"] = len(chosen)
    wrong = [found for read, special in chosen if (found := _wrong(typed, place, read, special)) is not None]
    attack.saw(wrong=len(wrong), inputs=len(READ), kinds=len(SPECIAL))
    assert wrong == [], "\n".join(wrong)
