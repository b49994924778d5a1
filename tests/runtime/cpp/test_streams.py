"""The examples that read streams give what Python gives; latencies are summed up alike; threads under a sanitizer."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.runtime.cpp.conftest import Built, built
from tests.runtime.cpp.driving import Job
from tests.runtime.generate import toy
from trt_compress.runtime import Session
from trt_compress.runtime.measure.latency import summarize
from trt_compress.runtime.stream.preprocess import preprocess_from_manifest

Array = np.ndarray[Any, np.dtype[Any]]
Zoo = Callable[[str], Path]


def streamed(cpp: Built, program: str, *arguments: object, given: bytes = b"", code: int = 0) -> list[str]:
    """The lines that an example prints for what comes on standard input, but for the latencies, which are looked at."""
    command = [str(cpp.folder / program), *map(str, arguments), str(cpp.onnxruntime)]
    done = subprocess.run(command, input=given, capture_output=True, timeout=120)
    assert done.returncode == code, done.stderr.decode()
    if code:
        assert done.stderr.startswith(b"error: ")
        return done.stderr.decode().splitlines()
    *lines, last = done.stdout.decode().splitlines()
    latency = json.loads(last.removeprefix("latency "))
    assert latency.keys() == summarize([1]).to_json().keys() and latency["n"] >= 1
    return lines


@pytest.mark.slow
@pytest.mark.parametrize("model", ["video_vit", "video_pvc"])
def test_frames_on_standard_input(cpp: Built, zoo: Zoo, model: str) -> None:
    bundle = zoo(f"zoo:{model}")
    frames = np.random.default_rng(0).integers(0, 256, (7, 96, 96, 3), np.uint8)
    frames[3:] = frames[2]  # as a camera that looks at what does not move
    wanted = []
    with Session.open(bundle, native=False) as session:
        prepare, states = preprocess_from_manifest(session.bundle, session.inputs), session.new_states()
        for number, frame in enumerate(frames):
            outputs = session.run(dict(prepare(frame)), states)
            wanted.append(f"frame {number}: {outputs.get('logits', next(iter(outputs.values())))[0].argmax()}")
    assert streamed(cpp, "stream_video", bundle, given=frames.tobytes()) == wanted
    assert "Frame 1 is cut off: it has 5 of" in streamed(
        cpp, "stream_video", bundle, given=frames.tobytes()[: 96 * 96 * 3 + 5], code=2
    )[0]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("model", ["keyword_spotter", "keyword_stream"])
def test_sound_on_standard_input(cpp: Built, zoo: Zoo, model: str) -> None:
    bundle = zoo(f"zoo:{model}")
    with Session.open(bundle, native=False) as session:
        settings = session.bundle.manifest.preprocess
        (name, info), *_ = session.inputs.items()
        chunk, labels = int(info.shape[-1]), session.bundle.manifest.postprocess["labels"]
        hop = settings.get("hop_samples") or chunk - settings.get("overlap_samples", 0)
        samples = np.random.default_rng(0).integers(-9000, 9000, hop * 5 + chunk // 3).astype("<i2")
        samples[hop : 2 * hop] = 0
        prepare, states = preprocess_from_manifest(session.bundle, session.inputs), session.new_states()
        wanted, start = [], 0
        while start == 0 or start + chunk - hop < len(samples):
            part = np.zeros(chunk, np.float32)
            held = samples[start : start + chunk].astype(np.float32) / 32768
            part[: len(held)] = held
            outputs = session.run(dict(prepare(part)), states)
            logits = outputs.get("logits", next(iter(outputs.values())))[0].astype(np.float64)
            share = 1 / np.exp(logits - logits.max()).sum()
            wanted.append(f"{start / settings['sample_rate']:.2f} s: {labels[logits.argmax()]} ({100 * share:.0f} %)")
            start += hop
    assert name and len(wanted) >= 5
    assert streamed(cpp, "spot_keywords", bundle, given=samples.tobytes()) == wanted
    assert "takes no pictures" in streamed(cpp, "stream_video", bundle, code=2)[0]


@pytest.mark.slow
def test_a_scene_of_cameras(cpp: Built, zoo: Zoo, tmp_path: Path) -> None:
    from trt_compress.models.zoo.surround_detector.model import held_out_frames

    bundle = zoo("zoo:surround_detector")
    wanted: list[str] = []
    with Session.open(bundle, native=False) as session:
        labels = session.bundle.manifest.postprocess["classes"]
        states = session.new_states()
        for number, frame in enumerate(held_out_frames(1)):
            folder = tmp_path / "scene" / str(number)
            folder.mkdir(parents=True)
            for name, value in frame.items():
                value.tofile(folder / f"{name}.bin")
            outputs = session.run(frame, states)
            wanted.append(f"frame {number}")
            for box, score in zip(outputs["boxes"][0], outputs["scores"][0], strict=True):
                kind = int(np.atleast_1d(score).argmax())
                if np.atleast_1d(score)[kind] >= np.float32(0.3):
                    place = " ".join(f"{column:.3f}" for column in box)
                    wanted.append(f"  {labels[kind]} {np.atleast_1d(score)[kind]:.3f} at {place}")
    assert len(wanted) > len(list((tmp_path / "scene").iterdir()))
    assert streamed(cpp, "detect3d", bundle, tmp_path / "scene") == wanted
    file = next((tmp_path / "scene" / "0").iterdir())
    file.write_bytes(file.read_bytes() + b"\0")
    assert f"'{file}' has" in streamed(cpp, "detect3d", bundle, tmp_path / "scene", code=2)[0]


def test_latencies_are_summed_up_as_python_does(cpp: Built, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    counts = [1, 2, 3, 63, 64, 129, 130, 661, 662, 6635, 6636, 7001]
    samples = [random.lognormal(14, 1, count).astype(np.int64).tolist() for count in counts]
    (done,) = cpp.drive([Job("summarize", {"samples": [*samples, [0, 0]]})], tmp_path / "work")
    assert done.refused is None
    for own, found in zip(samples, done.said["summaries"], strict=False):
        wanted = summarize(own).to_json()
        assert found.keys() == wanted.keys() and found["reasons"] == wanted["reasons"]
        for name in set(wanted) - {"reasons"}:
            assert found[name] == (wanted[name] if wanted[name] is None else pytest.approx(wanted[name], rel=1e-12)), (
                name
            )
    assert done.said["summaries"][-1]["cv"] is None
    assert done.said["none"] == [1, "There are no latencies to summarize; time at least one run."]


@pytest.mark.slow
def test_threads_under_a_sanitizer(
    cpp: Built, header_options: list[str], exported: Callable[..., Path], tmp_path: Path
) -> None:
    """ONNX Runtime is not compiled with the sanitizer, and is suppressed; the library and the program are."""
    options = ["-DTRTC_SANITIZE=thread", "-DTRTC_CHECKS=ON", "-DTRTC_EXAMPLES=OFF", "-DCMAKE_BUILD_TYPE=None"]
    folder = built("threads", [*options, *header_options], targets=("check_threads",))
    toy.write(tmp_path / "b", batch=1)
    rules = tmp_path / "suppressions"
    rules.write_text("called_from_lib:libonnxruntime.so\n")
    command = [folder / "check_threads", exported(), cpp.onnxruntime, tmp_path / "b"]
    variables = {**os.environ, "TSAN_OPTIONS": f"suppressions={rules} exitcode=66 ignore_noninstrumented_modules=1"}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=300)
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("ThreadSanitizer does not know this kernel's layout of memory")
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr[-4000:]
