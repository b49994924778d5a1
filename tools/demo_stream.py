"""The second half of `make demo`: a video, dense and with reuse between frames, and a picture of what was computed."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from trt_compress.export.api import Progress, export_model
from trt_compress.methods import parse_spec
from trt_compress.models.hosts.registry import load_host
from trt_compress.models.zoo.data import moving_digits
from trt_compress.plugins.operator import recording
from trt_compress.runtime.draw3d import write_picture
from trt_compress.runtime.session import Session
from trt_compress.runtime.stream.levels import levels_from_sessions
from trt_compress.runtime.stream.quality import labels_from_file
from trt_compress.runtime.stream.result import StreamResult
from trt_compress.runtime.stream.run import StreamOptions, open_sources, run_stream
from trt_compress.tools.console import print_table
from trt_compress.tools.samples import write_video

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

MODEL, SPEC = "zoo:video_vit", "static_reuse:keep_ratio=0.25"
CLIPS, LENGTH, ROUNDS = 10, 30, 3
SHOWN_CLIP, SHOWN_FRAMES = 7, (0, 1, 8, 16, 24)
_ZOOM, _GAP, _CAPTION, _FONT = 2, 8, 22, 13
_DIM = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """A frame [H, W, 3], which of its patches were computed, and the class and score that were found."""

    frame: "np.ndarray[Any, np.dtype[np.uint8]]"
    computed: "np.ndarray[Any, np.dtype[np.bool_]]"
    label: int
    score: float


def run(output: Path, step: Progress) -> Path:
    """Make a video, stream it through both models in turn, print a table; returns the file of the picture."""
    video = output / "video.mp4"
    step("making a video")
    labels = write_video(video, clips=CLIPS, length=LENGTH)
    bundles = {"none": output / "video-dense", SPEC: output / "video-reuse"}
    for spec, path in bundles.items():
        export_model(MODEL, compress=spec, output=path, force=True, progress=_prefixed(step, spec))
    results: dict[str, list[StreamResult]] = {spec: [] for spec in bundles}
    for number in range(ROUNDS):
        for spec, path in bundles.items():
            step(f"{spec}: streaming, round {number + 1} of {ROUNDS}")
            results[spec].append(_stream(path, video, labels))
    step("drawing")
    picture = output / "stream.png"
    write_picture(picture, draw_replays(replay(SHOWN_CLIP, SHOWN_FRAMES)))
    title = f"{MODEL} on a video of {CLIPS * LENGTH} frames, {ROUNDS} times in turn; every frame accounted for"
    print_table(title, ("", "dense", SPEC), _rows(results["none"], results[SPEC]))
    return picture


def _prefixed(step: Progress, spec: str) -> Progress:
    return lambda text: step(f"{spec}: {text}")


def _stream(path: Path, video: Path, labels: Path) -> StreamResult:
    with Session.open(path, threads=1, spin=False) as session:
        levels = levels_from_sessions([session])
        scorer = labels_from_file(labels, session.bundle.manifest.postprocess, levels.outputs)
        return run_stream(levels, open_sources([str(video)], levels), options=StreamOptions(labels=scorer, threads=1))


def _rows(dense: Sequence[StreamResult], reuse: Sequence[StreamResult]) -> list[tuple[str, ...]]:
    sides = (dense, reuse)
    quality = [side[0].quality["top1"] for side in sides]
    counts = [side[0].counts for side in sides]
    session = [[_median_ms(result, "session") for result in side] for side in sides]
    ratios = [slow / fast for slow, fast in zip(*session, strict=True)]
    first, last = (reuse[0].frames.tokens_in[-1], reuse[0].frames.tokens_out[-1])
    return [
        ("right", *(f"{one.value:.1%} of {one.n} frames" for one in quality)),
        ("delivered, dropped, failed", *(f"{one.delivered}, {one.dropped}, {one.failed}" for one in counts)),
        ("patches computed a frame", str(first), f"{last} of {first}"),
        ("model, p50 of a frame", *(f"{median(times):.2f} ms" for times in session)),
        ("speed-up of the model", "", f"{median(ratios):.2f}× [{min(ratios):.2f}, {max(ratios):.2f}]"),
    ]


def _median_ms(result: StreamResult, stage: str) -> float:
    return median(time for time in result.frames.stage_ns[stage] if time is not None) / 1e6


def replay(clip: int, frames: Sequence[int]) -> list[Replay]:
    """Run the model over a clip of the video once more, in torch, where what was chosen can be seen.

    Args:
        clip: Number of the clip.
        frames: Those to show, ascending.
    """
    graph = load_host(MODEL).attach(parse_spec(SPEC))[0]
    pixels = moving_digits.make_clip("test", clip, length=frames[-1] + 1).frames
    states = [
        torch.full((1, *map(int, state.shape[1:])), state.initial["fill"] if isinstance(state.initial, dict) else 0.0)
        for state in graph.states
    ]
    found = []
    for number, frame in enumerate(pixels):
        with torch.no_grad(), recording() as record:
            logits, _, *states = graph.module(torch.from_numpy(moving_digits.as_input(frame[None])), *states)
        if number in frames:
            (chosen,) = (value[0].numpy() for name, value in record.items() if name.endswith("TokenSelect/index"))
            computed = np.zeros(int(graph.module.plan[0].tokens_in), bool)
            computed[chosen] = True
            share = logits.softmax(dim=-1)[0]
            found.append(Replay(frame=frame, computed=computed, label=int(share.argmax()), score=float(share.max())))
    return found


def draw_replays(replays: Sequence[Replay]) -> "Picture":
    """Frames side by side, above what was computed of each: the other patches are dimmed."""
    side = replays[0].frame.shape[0] * _ZOOM
    size = (len(replays) * (side + _GAP) + _GAP, 2 * (side + _CAPTION) + 2 * _GAP)
    picture = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(picture)
    for number, one in enumerate(replays):
        rows = round(len(one.computed) ** 0.5)
        patch = one.frame.shape[0] // rows
        light = np.kron(one.computed.reshape(rows, rows), np.ones((patch, patch)))[..., None]
        dimmed = (one.frame * np.where(light, 1.0, _DIM)).astype(np.uint8)
        left, top = _GAP + number * (side + _GAP), _GAP
        captions = (f"{one.label}, {one.score:.0%}", f"{one.computed.sum()} of {len(one.computed)} patches computed")
        for tile, caption in zip((one.frame, dimmed), captions, strict=True):
            large = Image.fromarray(tile.repeat(_ZOOM, axis=0).repeat(_ZOOM, axis=1))
            picture.paste(large, (left, top))
            draw.text((left, top + side + 3), caption, fill="#24292f", font_size=_FONT)
            top += side + _CAPTION + _GAP
    return picture
