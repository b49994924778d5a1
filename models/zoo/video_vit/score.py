"""How well `zoo:video_vit`, and what goes on from it, finds and reads the digits of held-out clips."""

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch

from trt_compress.models.zoo.data.moving_digits import (
    FRAME_SIZE,
    as_input,
    make_clip,
)
from trt_compress.models.zoo.video_vit.model import NUM_DIGITS

NEAR_PIXELS = 8.0  # a frame is right if its digit is, and the centre is no farther off than a patch
TEST_CLIPS, CLIP_LENGTH = 100, 24
Stream = Callable[[npt.NDArray[np.float32]], tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]
"""One step: frames [B, 3, 96, 96] to logits [B, 10] and centres [B, 2] as shares of the frame."""


def score_stream(part: str, count: int, start: Callable[[], Stream], *, together: int = 1) -> dict[str, float]:
    """Run clips of a part through a model frame by frame and count what it got right.

    Args:
        part: "validation" or "test".
        count: Clips; each begins with a fresh `start()`.
        start: Gives the step function of a new stream, or of `together` of them.
        together: Clips a step, as one batch; `count` is a multiple.

    Returns:
        Shares of all frames: `digit` (class right), `place` (centre within 8 pixels), `both`; `place_error_pixels`.
    """
    digit, place_right, both, errors = 0, 0, 0, 0.0
    for first in range(0, count, together):
        clips = [make_clip(cast(Any, part), first + place, length=CLIP_LENGTH) for place in range(together)]
        frames = np.stack([as_input(clip.frames) for clip in clips], axis=1)
        step = start()
        for time, batch in enumerate(frames):
            logits, found = step(batch)
            for place, clip in enumerate(clips):
                error = float(np.hypot(*(found[place] * FRAME_SIZE - clip.centres[time])))
                right, near = int(logits[place].argmax()) == clip.digit, error <= NEAR_PIXELS
                digit, place_right, both = digit + right, place_right + near, both + (right and near)
                errors += error
    total = count * CLIP_LENGTH
    return {
        "digit": digit / total,
        "place": place_right / total,
        "both": both / total,
        "place_error_pixels": errors / total,
        "frames": total,
    }


def dense_stream(model: torch.nn.Module) -> Stream:
    """The step function of the model without compression."""

    def step(frame: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        with torch.inference_mode():
            found = model(torch.from_numpy(frame)).numpy()
        return found[:, :NUM_DIGITS], found[:, NUM_DIGITS:]

    return step
