"""The training of `zoo:video_pvc`, progressive encoding (PVC) of the moving digits.

It goes on from the weights of `zoo:video_vit` and is trained on short clips, frame after frame as it runs: of 144
patches 9 tokens a frame are left, from which digit and centre are read. Weights (fp16) and model card stand beside
this file; this command makes both again (some ten minutes of one core):

    python -m trt_compress.models.zoo.video_pvc.train --output DIR
"""

import argparse
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from trt_compress.models.hosts.progressive import ProgressiveViT
from trt_compress.models.hosts.weights import load_weights
from trt_compress.models.zoo import release
from trt_compress.models.zoo.data import moving_digits
from trt_compress.models.zoo.training import MovingAverage, fit, one_cycle
from trt_compress.models.zoo.video_pvc.model import CARD_FILE, CONFIG, NAME, WEIGHTS_FILE, build
from trt_compress.models.zoo.video_vit.model import NUM_DIGITS, build_video_vit, video_vit_card
from trt_compress.models.zoo.video_vit.score import CLIP_LENGTH, TEST_CLIPS, Stream, score_stream

COMMAND = f"python -m trt_compress.models.zoo.{NAME}.train --output DIR"


@dataclass(frozen=True, slots=True, kw_only=True)
class PvcRecipe:
    """How the weights are trained; the model card repeats it.

    Args:
        clips: Clips of a step.
        frames: Frames of a clip; the loss is the mean over all of them.
        frozen_blocks: First blocks that keep the weights of `zoo:video_vit`, patch embedding and positions with them.
        place_weight: Weight of the centre's smooth L1 loss, in units of the frame, beside the cross entropy.
        ema_decay: Per step; the released weights are the moving average after the last step.
    """

    seed: int = 0
    steps: int = 1500
    clips: int = 6
    frames: int = 5
    frozen_blocks: int = 3
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup_share: float = 0.1
    label_smoothing: float = 0.05
    gradient_clip_norm: float = 1.0
    ema_decay: float = 0.995
    place_weight: float = 20.0
    max_rotation_degrees: float = 15.0
    max_zoom_change: float = 0.2
    most_pixels: float = 4.0
    pool_size: int = 1500


def fresh_states(model: ProgressiveViT, batch: int) -> list[Tensor]:
    """The states of streams that begin."""
    dtypes = {"int64": torch.int64, "float32": torch.float32}
    return [
        torch.zeros(batch, *(int(length) for length in state.shape[1:]), dtype=dtypes[state.dtype])
        for state in model.states()
    ]


def train(recipe: PvcRecipe) -> ProgressiveViT:
    """Train on the training part alone and return the averaged weights after the last step, in evaluation mode."""
    torch.manual_seed(recipe.seed)
    generator = torch.Generator().manual_seed(recipe.seed)
    images, labels = moving_digits.digits_of("train")
    pool = moving_digits.backgrounds("train", recipe.pool_size, generator)
    model, average = build(weights=False), build(weights=False).requires_grad_(False)
    start = build_video_vit().state_dict()
    model.vit.load_state_dict({name: tensor for name, tensor in start.items() if not name.startswith("head.")})
    frozen = [model.vit.patch_embed, *model.vit.blocks[: recipe.frozen_blocks]]
    for part in frozen:
        part.requires_grad_(False)
    model.vit.cls_token.requires_grad_(False)
    model.vit.pos_embed.requires_grad_(False)
    average.load_state_dict(model.state_dict())

    def loss_of(step: int) -> Tensor:
        frames, digits, centres = make_batch(images, labels, pool, recipe, generator)
        states, loss = fresh_states(model, recipe.clips), torch.zeros(())
        for frame, centre in zip(frames, centres, strict=True):
            _, found, *states = model(frame, *states)
            loss = loss + functional.cross_entropy(
                found[:, :NUM_DIGITS], digits, label_smoothing=recipe.label_smoothing
            )
            off = functional.smooth_l1_loss(found[:, NUM_DIGITS:], centre, beta=0.05)
            loss = loss + recipe.place_weight * off
        return loss / recipe.frames

    schedule = one_cycle(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        steps=recipe.steps,
        warmup_share=recipe.warmup_share,
    )
    fit(
        model,
        loss_of,
        [schedule],
        steps=recipe.steps,
        gradient_clip_norm=recipe.gradient_clip_norm,
        average=MovingAverage(model=average, decay=recipe.ema_decay, rise=10),
    )
    return average.eval()


def make_batch(
    images: Tensor, labels: Tensor, pool: Tensor, recipe: PvcRecipe, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Clips of digits that move on straight lines.

    Returns:
        Frames [T, B, 3, 96, 96] from -1 to 1, classes [B], and centres [T, B, 2] as shares of the frame.
    """
    count, size = recipe.clips, moving_digits.FRAME_SIZE

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    chosen = torch.randint(len(images), (count,), generator=generator)
    ground = pool[torch.randint(len(pool), (count,), generator=generator)] * uniform(0.8, 1.2, 1, 1, 1)
    zoom = uniform(1 - recipe.max_zoom_change, 1 + recipe.max_zoom_change)
    angle = uniform(-1, 1) * np.deg2rad(recipe.max_rotation_degrees)
    step = uniform(-recipe.most_pixels, recipe.most_pixels, 2)
    first = uniform(14, size - 14, 2)
    low, span = 14, size - 28
    places = first - low + step * torch.arange(recipe.frames)[:, None, None]
    centres = low + span - (places.remainder(2 * span) - span).abs()  # bounces at the margins
    frames = torch.stack([moving_digits.draw(ground, images[chosen], centre, zoom, angle) for centre in centres])
    frames = (frames + moving_digits.NOISE_STD * torch.randn(frames.shape, generator=generator)).clamp(0, 1)
    return frames * 2 - 1, labels[chosen], centres / size


def streams_of(model: ProgressiveViT) -> Stream:
    """The step function of a new stream."""
    states = fresh_states(model, 1)

    def step(frame: Any) -> tuple[Any, Any]:
        nonlocal states
        with torch.inference_mode():
            _, found, *states = model(torch.from_numpy(frame), *states)
        return found[:, :NUM_DIGITS].numpy(), found[:, NUM_DIGITS:].numpy()

    return step


def write_release(model: ProgressiveViT, recipe: PvcRecipe, directory: Path) -> dict[str, Any]:
    """Write weights and model card into `directory`, and return the card."""
    weights = release.write_weights(model, directory / WEIGHTS_FILE.name, half=True)
    released = build(weights=False)
    load_weights(released, directory / WEIGHTS_FILE.name)
    before = video_vit_card()
    card = {
        "name": NAME,
        "task": "find and read the digit in a video, frame by frame, from 9 tokens a frame",
        "architecture": {**before["architecture"], **asdict(CONFIG)},
        "preprocess": before["preprocess"],
        "data": before["data"],
        "split": {**before["split"], "test_clips": TEST_CLIPS, "clip_length": CLIP_LENGTH},
        "training": {
            **asdict(recipe),
            "start": before["weights"]["sha256"],
            "selection": "The last step is released; the test clips were used for the final figures only.",
        },
        "accuracy": {
            part: score_stream(part, TEST_CLIPS, lambda: streams_of(released)) for part in ("validation", "test")
        },
        "weights": weights,
    }
    packages = ("numpy", "sklearn", "timm", "torch")
    return release.write_card(card, directory / CARD_FILE.name, command=COMMAND, packages=packages)


def main(arguments: list[str] | None = None) -> int:
    """Train, measure and write the release; return the exit code."""

    def make(options: argparse.Namespace, directory: Path) -> Mapping[str, Any]:
        torch.set_num_threads(1)
        torch.use_deterministic_algorithms(True)
        recipe = PvcRecipe()
        accuracy: Mapping[str, Any] = write_release(train(recipe), recipe, directory)["accuracy"]
        return accuracy

    parser = argparse.ArgumentParser(prog=f"python -m trt_compress.models.zoo.{NAME}.train", description=__doc__)
    return release.run(parser, make, arguments)


if __name__ == "__main__":
    sys.exit(main())
