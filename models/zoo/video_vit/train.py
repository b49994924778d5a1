"""The training of `zoo:video_vit`, a small Vision Transformer that finds and reads a digit in a video frame.

96 x 96 pixels in patches of 8, so 145 tokens in 6 blocks; of 12 outputs 10 are classes, 2 the digit's centre. It is
trained on single frames, mostly on a window of their patches; the streaming forms of it need no training. Weights and
model card stand beside this file; this command makes both again (about ten minutes of one core):

    python -m trt_compress.models.zoo.video_vit.train --output DIR
"""

import argparse
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from trt_compress.models.zoo import release
from trt_compress.models.zoo.data.moving_digits import (
    COLUMNS,
    FRAME_SIZE,
    NOISE_STD,
    backgrounds,
    digits_of,
    draw,
)
from trt_compress.models.zoo.training import MovingAverage, fit, one_cycle
from trt_compress.models.zoo.video_vit.model import (
    ARCHITECTURE,
    CARD_FILE,
    NAME,
    NUM_DIGITS,
    WEIGHTS_FILE,
    build_video_vit,
)
from trt_compress.models.zoo.video_vit.score import CLIP_LENGTH, TEST_CLIPS, dense_stream, score_stream

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

COMMAND = "python -m trt_compress.models.zoo.video_vit.train --output DIR"

Score = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoRecipe:
    """How the weights are trained; the model card repeats it.

    Args:
        pool_size: Background crops drawn beforehand; each step takes some of them.
        ema_decay: Per step; the released weights are the exponential moving average after the last step.
        window_share: In this share of the steps, the first ones, each frame is cut to a window of `window_patches` in
            each direction that holds the digit: a third of the work, at the places of the whole frame.
        place_weight: Weight of the centre's smooth L1 loss, in units of the frame, beside the cross entropy.
    """

    seed: int = 0
    steps: int = 3000
    batch_size: int = 24
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup_share: float = 0.1
    label_smoothing: float = 0.05
    gradient_clip_norm: float = 1.0
    ema_decay: float = 0.995
    window_share: float = 0.8
    window_patches: int = 7
    place_weight: float = 20.0
    max_rotation_degrees: float = 15.0
    max_zoom_change: float = 0.2
    pool_size: int = 1500


def train(recipe: VideoRecipe) -> "VisionTransformer":
    """Train on the training part alone and return the averaged weights after the last step, in evaluation mode."""
    torch.manual_seed(recipe.seed)
    generator = torch.Generator().manual_seed(recipe.seed)
    images, labels = digits_of("train")
    pool = backgrounds("train", recipe.pool_size, generator)
    model, average = build_video_vit(weights=False).train(), build_video_vit(weights=False).requires_grad_(False)
    average.load_state_dict(model.state_dict())

    def loss_of(step: int) -> Tensor:
        frames, digits, centres = _batch(images, labels, pool, recipe, generator)
        window = _window(centres, recipe, generator) if step + 1 <= recipe.window_share * recipe.steps else None
        found = _forward(model, frames, window)
        loss = functional.cross_entropy(found[:, :NUM_DIGITS], digits, label_smoothing=recipe.label_smoothing)
        return loss + recipe.place_weight * functional.smooth_l1_loss(found[:, NUM_DIGITS:], centres, beta=0.05)

    schedule = one_cycle(
        model.parameters(),
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


def write_release(model: torch.nn.Module, recipe: VideoRecipe, directory: Path) -> dict[str, Any]:
    """Write weights and model card into `directory`, and return the card."""
    weights = release.write_weights(model, directory / WEIGHTS_FILE.name)
    card = {
        "name": NAME,
        "task": "find and read the digit in a 96 x 96 RGB frame of a video",
        "architecture": ARCHITECTURE,
        "preprocess": {"layout": "NCHW", "channels": "RGB", "scale": 1 / 255, "mean": [0.5] * 3, "std": [0.5] * 3},
        "data": {
            "name": "scikit-learn's load_digits, moving over crops of its two photographs",
            "license": "digits CC-BY-4.0; photographs CC-BY-2.0",
            "citation": "E. Alpaydin, C. Kaynak (1998), UCI Machine Learning Repository, doi:10.24432/C50P49; "
            "china.jpg: danielbuechele, flickr 6061409035; flower.jpg: vultilion, flickr 6056698931",
            "limits": "Made clips: a camera that stands still and one digit. Backgrounds of the test part are other "
            "columns of the same two photographs.",
        },
        "split": {
            "digits": "as digits_vit, seed 0",
            "background_columns": {name: list(columns) for name, columns in COLUMNS.items()},
            "test_clips": TEST_CLIPS,
            "clip_length": CLIP_LENGTH,
        },
        "training": {
            **asdict(recipe),
            "selection": "The last step is released; the test clips were used for the final figures only.",
        },
        "accuracy": {
            part: score_stream(part, TEST_CLIPS, lambda: dense_stream(model)) for part in ("validation", "test")
        },
        "weights": weights,
    }
    packages = ("numpy", "sklearn", "timm", "torch")
    return release.write_card(card, directory / CARD_FILE.name, command=COMMAND, packages=packages)


def main(arguments: list[str] | None = None) -> int:
    """Train, measure and write the release; return the exit code."""

    def make(options: argparse.Namespace, directory: Path) -> dict[str, Any]:
        torch.set_num_threads(1)
        torch.use_deterministic_algorithms(True)
        recipe = VideoRecipe()
        accuracy: dict[str, Any] = write_release(train(recipe), recipe, directory)["accuracy"]
        return accuracy

    parser = argparse.ArgumentParser(prog=f"python -m trt_compress.models.zoo.{NAME}.train", description=__doc__)
    return release.run(parser, make, arguments)


def _forward(model: Any, frames: Tensor, window: Tensor | None) -> Tensor:
    """The model's outputs; with a window [B, K] of token numbers it sees no others."""
    tokens = model._pos_embed(model.patch_embed(frames))
    if window is not None:
        tokens = tokens.gather(1, window[..., None].expand(-1, -1, tokens.shape[2]))
    found: Tensor = model.forward_head(model.norm(model.blocks(tokens)))
    return found


def _window(centres: Tensor, recipe: VideoRecipe, generator: torch.Generator) -> Tensor:
    """Token numbers of the class token and of a square of patches that holds the digit, at a random place in it."""
    side, patch = FRAME_SIZE // ARCHITECTURE["patch_size"], ARCHITECTURE["patch_size"]
    size = recipe.window_patches
    jitter = torch.randint(-1, 2, centres.shape, generator=generator)
    corner = ((centres * FRAME_SIZE / patch - size / 2).round().long() + jitter).clamp(0, side - size)
    offsets = torch.arange(size)
    rows, columns = corner[:, 1, None] + offsets, corner[:, 0, None] + offsets
    patches = (rows[:, :, None] * side + columns[:, None, :]).flatten(1) + 1
    return torch.cat([torch.zeros(len(patches), 1, dtype=torch.long), patches], dim=1)


def _batch(
    images: Tensor, labels: Tensor, pool: Tensor, recipe: VideoRecipe, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    count = recipe.batch_size

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    chosen = torch.randint(len(images), (count,), generator=generator)
    centres = uniform(14, FRAME_SIZE - 14, 2)
    frames = draw(
        pool[torch.randint(len(pool), (count,), generator=generator)] * uniform(0.8, 1.2, 1, 1, 1),
        images[chosen],
        centres,
        uniform(1 - recipe.max_zoom_change, 1 + recipe.max_zoom_change),
        uniform(-1, 1) * np.deg2rad(recipe.max_rotation_degrees),
    )
    frames = (frames + NOISE_STD * torch.randn(frames.shape, generator=generator)).clamp(0, 1)
    return frames * 2 - 1, labels[chosen], centres / FRAME_SIZE


if __name__ == "__main__":
    sys.exit(main())
