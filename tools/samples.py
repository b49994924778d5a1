"""Inputs to try a bundle on, with their answers: a video, speech, pictures and a scene of several cameras.

All are of the parts of the data that no training saw, the same each time, so that what a bundle says of them can be
held against the truth.
"""

import io
import json
import wave
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from trt_compress.errors import ConfigError, UnsupportedError
from trt_compress.files import write_whole
from trt_compress.foreign import reason_of
from trt_compress.format.manifest import TensorInfo
from trt_compress.paths import check_new_folder
from trt_compress.suggest import not_known

if TYPE_CHECKING:
    from av import VideoStream

CODECS = {  # with its macroblock tree x264 writes another file each time, on one thread too (build 165)
    "h264": ("libx264", {"crf": "18", "preset": "medium", "threads": "1", "x264-params": "mbtree=0"}),
    "mpeg4": ("mpeg4", {"qscale": "2"}),
}
_FIRST_SCENE = 0
_MILD_NOISE_DB = (15.0, 25.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeSample:
    """What was made.

    Attributes:
        source: What `trt-compress run --source` takes.
        labels: What `--labels` takes.
        summary: What it is, in words.
        model: The model of the zoo that it suits.
    """

    source: str
    labels: str
    summary: str
    model: str


def write_sample(kind: str, folder: Path, *, count: int | None = None) -> MadeSample:
    """Make the inputs of one kind.

    Args:
        kind: One of `KINDS`.
        folder: Where they go; it is made if it is not there, and files of the same names are replaced.
        count: Clips of the video, words, pictures of each class, or frames of the scene; None: the usual number.

    Raises:
        ConfigError: The kind is not known, the count is below 1, or the folder cannot be written.
        UnsupportedError: A library is missing.
    """
    if kind not in KINDS:
        raise ConfigError(not_known("sample", kind, KINDS))
    if count is not None and count < 1:
        raise ConfigError(f"--count {count} makes nothing; give at least 1.")
    check_new_folder(folder, "--output")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return KINDS[kind](folder, count)
    except OSError as error:
        raise ConfigError(f"'{folder}' cannot be written ({error.strerror or error}); give another folder.") from None


def write_video(path: Path, *, clips: int, length: int, fps: int = 30, codec: str = "h264") -> Path:
    """Write a video of clips of a moving digit, and beside it the answers: test clips of `zoo:video_vit`'s data.

    A line of the answers has `id` (the frame, from 0) and `label` (the digit), as `trt-compress run --labels` reads
    them, and `clip` and the centre `x`, `y` in pixels.

    Args:
        path: The file; its suffix chooses the container (.mp4, .mkv, .avi).
        clips: Clips, one after the other: a cut between two changes every patch.
        length: Frames of a clip.
        fps: Frames a second.
        codec: h264 or mpeg4.

    Returns:
        The file of answers, `path` with the suffix .jsonl.

    Raises:
        ConfigError: A number or name is out of range, or the file cannot be written.
        UnsupportedError: PyAV is not installed, or has no such encoder.
    """
    if min(clips, length, fps) < 1 or codec not in CODECS:
        raise ConfigError(
            f"clips={clips}, length={length}, fps={fps}, codec={codec}; the numbers must be at least 1, and the codec "
            f"one of {', '.join(CODECS)}."
        )
    try:
        import av
        from av.error import FFmpegError
    except ImportError as error:
        raise UnsupportedError(
            f"Writing a video needs PyAV, and {error}.", hint="pip install 'trt-compress[video]'"
        ) from error
    from trt_compress.models.zoo.data.moving_digits import FRAME_SIZE, make_clip

    encoder, options = CODECS[codec]
    answers: list[dict[str, Any]] = []
    try:
        packed = io.BytesIO()
        packed.name = str(path)  # its suffix chooses the container
        with av.open(packed, "w") as container:
            stream = cast("VideoStream", container.add_stream(encoder, rate=Fraction(fps), options=dict(options)))
            stream.width = stream.height = FRAME_SIZE
            stream.pix_fmt = "yuv420p"
            for number in range(clips):
                clip = make_clip("test", number, length=length)
                for pixels, (x, y) in zip(clip.frames, clip.centres.tolist(), strict=True):
                    answer = {"id": len(answers), "label": clip.digit, "clip": number}
                    answers.append({**answer, "x": round(x, 2), "y": round(y, 2)})
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode(None))
        write_whole(path, packed.getvalue())
        return _write_answers(path.with_suffix(".jsonl"), answers)
    except (FFmpegError, ValueError) as error:
        raise ConfigError(
            f"'{path}' cannot be written ({reason_of(error)}); give another file, such as digits.mp4."
        ) from error
    except OSError as error:
        raise ConfigError(f"'{path}' cannot be written ({error.strerror}); give another file.") from error


def _video(folder: Path, count: int | None) -> MadeSample:
    clips, length = count or 10, 30
    file = folder / "video.mp4"
    labels = write_video(file, clips=clips, length=length)
    summary = f"{clips * length} frames of {clips} digits that move over photographs, 30 frames a second"
    return MadeSample(source=str(file), labels=str(labels), summary=summary, model="zoo:video_vit")


def _speech(folder: Path, count: int | None) -> MadeSample:
    from trt_compress.models.zoo.data import speech

    words = speech.heldout_words()
    noise = speech.NoiseBank(np.random.RandomState(_FIRST_SCENE))
    chosen = [number * 37 % len(words.audio) for number in range(count or 20)]  # words of a class stand together
    clips = [speech.make_clip(words.audio[number], noise, snr_db=_MILD_NOISE_DB) for number in chosen]
    file = folder / "speech.wav"
    packed = io.BytesIO()
    with wave.open(packed, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(speech.SAMPLE_RATE)
        sound.writeframes(np.round(np.concatenate(clips) * 32767).astype("<i2").tobytes())
    write_whole(file, packed.getvalue())
    said = [int(words.labels[number]) for number in chosen]
    answers = [{"id": second, "label": label, "word": speech.CLASSES[label]} for second, label in enumerate(said)]
    labels = _write_answers(folder / "speech.jsonl", answers)
    summary = f"{len(chosen)} words, one each second, of voices that no training heard"
    return MadeSample(source=str(file), labels=str(labels), summary=summary, model="zoo:keyword_spotter")


def _images(folder: Path, count: int | None) -> MadeSample:
    from trt_compress.models.zoo.data import digits

    try:
        from PIL import Image
    except ImportError as error:
        raise UnsupportedError(
            f"Writing pictures needs Pillow, and {error}.", hint="pip install 'trt-compress[zoo]'"
        ) from error
    split = digits.digits_split()
    pixels = split.test_images * digits.PIXEL_STD + digits.PIXEL_MEAN
    answers: list[dict[str, Any]] = []
    for label in range(10):
        (folder / "images" / str(label)).mkdir(parents=True, exist_ok=True)
        for number in np.flatnonzero(split.test_labels == label)[:count]:
            name = f"images/{label}/{number:03}.png"
            Image.fromarray(np.round(pixels[number, 0] * 255).astype(np.uint8)).save(packed := io.BytesIO(), "png")
            write_whole(folder / name, packed.getvalue())
            answers.append({"id": len(answers), "file": name, "label": label})
    labels = _write_answers(folder / "images.jsonl", answers)
    summary = f"{len(answers)} handwritten digits of 8 x 8 pixels, a folder for each class"
    return MadeSample(
        source=str(folder / "images" / "*" / "*.png"), labels=str(labels), summary=summary, model="zoo:digits_vit"
    )


def _scene(folder: Path, count: int | None) -> MadeSample:
    from trt_compress.models.zoo.data.driving_scenes import Rig
    from trt_compress.runtime.camera_frames import write_scene
    from trt_compress.tools.scenes import open_scene

    rig = Rig()
    file = folder / "scene.npz"
    frames = open_scene(f"made:{_FIRST_SCENE}", rig=rig, num_frames=count or 40)
    made = write_scene(file, frames, detector_inputs(rig.num_cameras, rig.height, rig.width))
    summary = f"{made} moments, 0.2 s apart, of a drive seen by {rig.num_cameras} cameras"
    return MadeSample(source=str(file), labels=str(file), summary=summary, model="zoo:surround_detector")


def detector_inputs(cameras: int, height: int, width: int) -> Mapping[str, TensorInfo]:
    """What a multi-view detector for this many cameras takes; see `camera_frames.scene_arrays`."""
    shapes: Mapping[str, tuple[int | str, ...]] = {
        "images": ("batch", cameras, 3, height, width),
        "img2lidar": ("batch", cameras, 4, 4),
        "ego_pose": ("batch", 4, 4),
        "timestamp": ("batch", 1),
    }
    return {name: TensorInfo(name=name, dtype="float32", shape=shape) for name, shape in shapes.items()}


KINDS: Mapping[str, Callable[[Path, int | None], MadeSample]] = {
    "video": _video,
    "speech": _speech,
    "images": _images,
    "scene": _scene,
}


def _write_answers(path: Path, answers: Iterable[Mapping[str, Any]]) -> Path:
    write_whole(path, "".join(f"{json.dumps(answer)}\n" for answer in answers))
    return path
