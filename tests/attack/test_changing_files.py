"""A file that another program shortens or lengthens while it is read is read as it was, or refused in one sentence.

Never the bus error of a mapped file that lost its end, nor a fault of ours, nor waiting for an end that moves on. The
moment is behind the n-th system call that concerns the file, for every n: `changing_file.c`.
"""

import shutil
import subprocess
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.attack.small_bundle import write_small
from tests.attack.weights_outside import SHAPE, bundle_of
from tests.typed_commands import Ended, Typed

SOURCE = Path(__file__).with_name("changing_file.c")
PARTS = 4
BY = (-40, -(1 << 40), 6, 1 << 16)  # bytes: its end, all of it, a bit more, a whole read more

_READ_WEIGHTS = "from trt_compress.models.hosts.weights import read_tensors as read; read(Path({name!r}))"
_READ_INPUTS = "from trt_compress.export.sample_inputs import read_arrays as read; read(Path({name!r}), 'x')"
_OPEN = "from trt_compress.runtime import Session; Session.open({folder!r}, native=False)"
_COPY = "from trt_compress.runtime.onnx_source import copy_graph; from trt_compress.format.bundle import Bundle; "
_COPY += "copy_graph(Bundle.open({folder!r}), 'model.onnx', Path('copy'))"

READ: dict[str, tuple[str, tuple[str, ...]]] = {
    "picture": ("frames/0.png", ("run", "picture", "--source", "frames/*.png")),
    "array": ("s.npz", ("run", "array", "--source", "s.npz")),
    "sound": ("s.wav", ("run", "sound", "--source", "s.wav")),
    "labels of a run": ("l.jsonl", ("run", "picture", "--source", "frames/*.png", "--labels", "l.jsonl")),
    "data": ("d.npz", ("evaluate", "array", "--data", "d.npz")),
    "labels": ("files.jsonl", ("evaluate", "picture", "--data", "frames", "--labels", "files.jsonl")),
    "classes": ("c.txt", ("evaluate", "picture", "--data", "classes", "--classes", "c.txt")),
    "inputs of bench": ("s.npz", ("bench", "array", "--inputs", "s.npz", "--pairs", "2")),
    "inputs of verify": ("s.npz", ("python", _READ_INPUTS.format(name="s.npz"))),
    "model": ("m.onnx", ("preflight", "m.onnx", "--target", "cpu")),
    "recipe": ("r.toml", ("export", "r.toml", "-o", "frames")),
    "report": ("r.json", ("report", "r.json")),
    "weights": ("w.safetensors", ("python", _READ_WEIGHTS.format(name="w.safetensors"))),
    "checkpoint": ("w.pth", ("python", _READ_WEIGHTS.format(name="w.pth"))),
    "manifest": ("array/manifest.json", ("run", "array", "--source", "s.npz")),
    "graph": ("array/model.onnx", ("run", "array", "--source", "s.npz")),
    "graph of bench": ("array/model.onnx", ("bench", "array", "--pairs", "2")),
    "graph, inspected": ("array/model.onnx", ("inspect", "array")),
    "graph, by the rules": ("array/model.onnx", ("preflight", "array", "--target", "cpu")),
    "weights of a graph": ("outside/w.bin", ("python", _OPEN.format(folder="outside"))),
    "graph with weights outside": ("outside/model.onnx", ("python", _OPEN.format(folder="outside"))),
    "weights, copied": ("outside/w.bin", ("python", _COPY.format(folder="outside"))),
}
"""What is read → the file, and the command."""

CODES = {"model": 3, "graph, by the rules": 3}
"""Whose finding that ONNX Runtime refuses the file is right too."""


@pytest.fixture(scope="module")
def preloaded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler, "a C compiler is needed"
    library = tmp_path_factory.mktemp("preloaded") / "changing_file.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, SOURCE, "-ldl"], check=True)
    return library


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("place")
    random = np.random.default_rng(3)
    for kind in ("picture", "array", "sound"):
        write_small(place / kind, kind)
    bundle_of(place / "outside", "initializer", random.random(SHAPE, np.float32))
    for name in ("frames/0.png", "frames/1.png", "classes/0/0.png", "classes/1/0.png"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 255, (2, 2), np.uint8)).save(place / name)
    np.savez(place / "s.npz", x=random.random((20_000, 4), np.float32)[:64])
    np.savez(place / "d.npz", x=np.eye(4, dtype=np.float32), label=np.arange(4))
    (place / "l.jsonl").write_text('{"id": 0, "label": 1}\n{"id": 1, "label": 2}\n')
    (place / "files.jsonl").write_text('{"file": "0.png", "label": 1}\n{"file": "1.png", "label": 2}\n')
    (place / "c.txt").write_text("zero\none\ntwo\nthree\n")
    (place / "r.toml").write_text('model = "zoo:digits_vit"\ncompress = "tome:num_merged=4"\n')
    with wave.open(str(place / "s.wav"), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(random.integers(-9999, 9999, 4000, np.int16).tobytes())
    shutil.copy(place / "array/model.onnx", place / "m.onnx")
    onnx.load(place / "m.onnx")
    weights = {"a.weight": torch.rand(400, 30), "b": torch.rand(7)}
    save_file(weights, place / "w.safetensors")
    torch.save(weights, place / "w.pth")
    return place


@pytest.fixture(scope="module")
def typed(place: Path, preloaded: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Typed]:
    plan = tmp_path_factory.mktemp("plan") / "plan"
    variables = {"LD_PRELOAD": str(preloaded), "CHANGING_FILE": str(plan), "XDG_CACHE_HOME": str(plan.parent / "cache")}
    with Typed(place, **variables) as typed:
        typed("bench", "array", "--pairs", "2", "--json", plan.with_name("r.json"))
        shutil.copy(plan.with_name("r.json"), place / "r.json")
        typed.plan = plan  # type: ignore[attr-defined]
        yield typed


def _ended(typed: Typed, place: Path, read: str, number: int, by: int) -> Ended | None:
    """How a command ended whose file was changed behind its n-th call; None: it makes fewer."""
    plan: Path = typed.plan  # type: ignore[attr-defined]
    name, arguments = READ[read]
    target, done = place / name, plan.with_name("plan.done")
    content, status = target.read_bytes(), target.stat()
    done.unlink(missing_ok=True)
    plan.write_text(f"{number} {status.st_dev} {status.st_ino} {by} {target}\n")
    try:
        ended = typed(*arguments)
    finally:
        plan.unlink()
        target.write_bytes(content)
        shutil.rmtree(place / "copy", ignore_errors=True)
    return ended if done.exists() else None


def _calls(typed: Typed, place: Path, read: str) -> int:
    """How many calls concern the file where nothing is changed."""
    done: Path = typed.plan.with_name("plan.done")  # type: ignore[attr-defined]
    return len(done.read_bytes()) if _ended(typed, place, read, -2, 0) is not None else 0


def _is_said(ended: Ended) -> bool:
    """Whether it ended with our error; a warning of a frame may stand before it."""
    lines = [line for line in ended.err.splitlines() if not line.startswith("Hint:")]
    return ended.code == 2 and lines[-1:] != [] and lines[-1].startswith("error: ")


def _wrong(typed: Typed, place: Path, read: str, number: int, by: int) -> str | None:
    before = sorted(str(path) for path in place.rglob("*"))
    ended = _ended(typed, place, read, number, by)
    if ended is None or (ended.code in (0, CODES.get(read)) or _is_said(ended)) and "Traceback" not in ended.err:
        left = {str(path) for path in place.rglob("*")} - set(before)
        return f"{read}, {number}, {by}: left {left}" if left else None
    return f"{read}, call {number}, {by}: {ended.code} in {ended.seconds:.1f} s: {ended.err[-600:]}"


@pytest.mark.parametrize("part", [0, *(pytest.param(part, marks=pytest.mark.long) for part in range(1, PARTS))])
def test_what_changes_while_it_is_read_is_read_or_refused(part: int, place: Path, typed: Typed, attack: Any) -> None:
    random = attack.random(7)
    wrong, cases, quiet = [], 0, []
    for read in [*READ][part::PARTS] if attack.long else random.sample(list(READ), 6):
        calls = _calls(typed, place, read)
        moments = [(number, by) for number in range(calls) for by in BY]
        if not attack.long:
            moments = random.sample(moments, min(4, len(moments)))
        cases += len(moments)
        quiet += [read] * (calls < 3)
        wrong += [found for number, by in moments if (found := _wrong(typed, place, read, number, by)) is not None]
    attack.saw(cases=cases, wrong=len(wrong), inputs=len([*READ][part::PARTS]) if attack.long else 6)
    assert wrong == [], "\n".join(wrong)
    assert quiet == [], "their calls are not seen"
