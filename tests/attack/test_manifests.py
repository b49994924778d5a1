"""Manifests that a stranger changed, whose digest is right again: our own errors, in time; or it runs."""

import contextlib
import io
import json
import random
import resource
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.attack.manifest_bundles import SMALL_BUNDLES
from tests.attack.mutations import mutated, mutated_text
from trt_compress.errors import InternalError, TrtCompressError, UnsupportedError
from trt_compress.export.check import _ranges
from trt_compress.export.engines import build_engines
from trt_compress.format.bundle import Bundle
from trt_compress.format.manifest import Manifest
from trt_compress.runtime.evaluate import classifier_of
from trt_compress.runtime.session import Session
from trt_compress.runtime.stream.levels import levels_from_sessions
from trt_compress.runtime.stream.parts import BadFrame
from trt_compress.runtime.stream.postprocess import postprocess_from_manifest
from trt_compress.runtime.stream.preprocess import preprocess_from_manifest
from trt_compress.tools.bench.bundle import random_inputs
from trt_compress.tools.bench.result import identity
from trt_compress.tools.cli.main import app
from trt_compress.tools.describe import engine_pairs, print_bundle

LONGEST_S = 10
MOST_BYTES = 1_500_000_000
COMMANDS = (
    ("inspect", "{}"),
    ("inspect", "{}", "--json"),
    ("run", "{}", "--source", "{source}", "--report", "{out}"),
    ("bench", "{}", "--pairs", "1", "--warmup", "0"),
    ("preflight", "{}", "--target", "cpu"),
    ("preflight", "{}", "--target", "rtx"),
    ("build", "{}", "--target", "rtx", "--dry-run"),
    ("prune", "{}", "--target", "cpu", "--output", "{out}"),
    ("evaluate", "{}", "--data", "{data}"),
)


class Hang(BaseException):
    """A case took too long."""


@contextlib.contextmanager
def in_time() -> Iterator[None]:
    def stop(signum: int, frame: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, LONGEST_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def healed(data: dict[str, Any], folder: Path) -> bytes:
    """The manifest as text: what it says of the files that are there is true, and its digest is right."""
    files = data.get("files")
    if isinstance(files, dict):
        for name, info in files.items():
            file = folder / name if "\0" not in name and len(name) < 200 else folder
            if isinstance(info, dict) and "bytes" in info and file.is_file():
                info["bytes"] = file.stat().st_size
    with contextlib.suppress(TrtCompressError):
        data["digest"] = Manifest.from_text(json.dumps(data)).compute_digest()
    return json.dumps(data).encode()


def everything_that_reads_it(path: Path) -> None:
    """What the commands do with a manifest, by function."""
    bundle = Bundle.open(path, check_hashes=False)
    manifest = bundle.manifest
    with contextlib.redirect_stdout(io.StringIO()):
        print_bundle(bundle)
    for engine in manifest.engines:
        engine_pairs(engine)
    json.dumps([manifest.to_json(), identity(manifest)], allow_nan=False).encode()
    _with_our_errors(lambda: _ranges(bundle))
    _with_our_errors(lambda: build_engines(path, target="rtx", dry_run=True))
    session = Session.open(bundle, native=False)
    if manifest.procedure is not None:
        with pytest.raises(UnsupportedError, match="reads sequences of tokens"):
            levels_from_sessions([session])
        return
    levels = levels_from_sessions([session])
    prepare = preprocess_from_manifest(bundle, levels.inputs)
    finish = postprocess_from_manifest(manifest.postprocess, levels.outputs)
    _with_our_errors(lambda: classifier_of(manifest, levels.outputs))
    given = random_inputs(session, manifest.batch.opt, 0)
    first = session.graphs[0]
    feed = {name: given[name if name in given else f"{first}.{name}"] for name in levels.inputs}
    with contextlib.suppress(BadFrame):
        finish(levels.levels[0].run(feed, None))
        _with_our_errors(lambda: prepare(feed))
        heard = manifest.preprocess.get("kind") == "audio"
        for shape in ((160,),) if heard else ((4, 4, 3), (8, 8)):
            data = np.zeros(shape, np.float32 if heard else np.uint8)
            _with_our_errors(lambda given=data: finish(levels.levels[0].run(prepare(given), None)))  # type: ignore[misc]


def _with_our_errors(call: Callable[[], object]) -> None:
    with contextlib.suppress(TrtCompressError):
        call()


def by_command(path: Path, out: Path, rng: random.Random) -> None:
    """One command on the bundle."""
    source = rng.choice((path.parent / "sound.wav", path.parent / "picture.png", path.parent / "scene.npz"))
    names = {"source": str(source), "out": str(out), "data": str(path.parent / "scene.npz")}
    result = CliRunner().invoke(app, [word.format(path, **names) for word in rng.choice(COMMANDS)])
    if isinstance(result.exception, Hang | InternalError):
        raise result.exception
    if result.exit_code not in (0, 2, 3) or "bug" in result.output:
        raise AssertionError(result.output[-600:])


def _place(error: BaseException) -> str:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "trt_compress" in frame.filename]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"


def make_sources(folder: Path) -> None:
    import soundfile
    from PIL import Image

    soundfile.write(folder / "sound.wav", np.zeros(480, np.float32), 16000)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "picture.png")
    frames = {"images": np.zeros((2, 2, 3, 4, 4), np.float32), "lens": np.ones((2, 2, 2), np.float32)}
    np.savez(folder / "scene.npz", **frames)


def test_a_changed_manifest_gives_our_errors_or_runs(
    attack: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_sources(tmp_path)
    bundles = [make(tmp_path / make.__name__) for make in SMALL_BUNDLES]
    texts = [(bundle / "manifest.json").read_text() for bundle in bundles]
    with in_time():
        for bundle in bundles:
            everything_that_reads_it(bundle)
    rng = attack.random(20)
    foreign: list[str] = []
    seen: Counter[str] = Counter()
    slowest = 0.0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    count = attack.count(300, 20_000)
    for number in range(count):
        which = number % len(bundles)
        path = bundles[which]
        rare = rng.random() < 0.1
        text = mutated_text(texts[which], rng) if rare else healed(mutated(json.loads(texts[which]), rng), path)
        (path / "manifest.json").write_bytes(text)
        began = time.monotonic()
        try:
            with in_time():
                everything_that_reads_it(path)
                seen["ran"] += 1
        except TrtCompressError as error:
            seen[type(error).__name__] += 1
            if isinstance(error, InternalError):
                foreign.append(f"{number}: {error}")
        except (Exception, Hang) as error:
            foreign.append(f"{number} of {path.name}: {type(error).__name__} in {_place(error)}: {str(error)[:200]}")
            (tmp_path / f"case_{number}.json").write_bytes(text)
        if number % 40 == 0:
            try:
                with in_time():
                    by_command(path, tmp_path / f"out{number}", rng)
            except (Exception, Hang) as error:
                foreign.append(f"{number} of {path.name} by command: {type(error).__name__}: {str(error)[:600]}")
                (tmp_path / f"case_{number}.json").write_bytes(text)
        slowest = max(slowest, time.monotonic() - began)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    hangs = sum("Hang" in case for case in foreign)
    attack.saw(foreign_errors=len(foreign), hangs=hangs, grown_mib=grown >> 20, slowest_s=round(slowest, 2), **seen)
    assert not foreign, "\n".join(foreign[:40])
    assert grown < MOST_BYTES
