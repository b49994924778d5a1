"""The training of `zoo:digits_vit`, a small Vision Transformer for 8 x 8 digits.

Every pixel is a token, so the model has 65 tokens (64 and the class token) in 8 blocks: enough for every compressor of
the Vision Transformer family, small enough to ship. The weights and the model card stand beside this file; this
command makes both again (minutes on two cores; bit-identical on the same machine and versions):

    python -m trt_compress.models.zoo.digits_vit.train --output DIR

Training drops a random share of the tokens in each step (PatchDropout, arXiv:2208.07220), so that the model tolerates
missing tokens. That helps each compressor that is put in without training, random dropping above all.
"""

import argparse
import copy
import math
import sys
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch.nn import functional

from trt_compress.models.zoo import release
from trt_compress.models.zoo.data.digits import (
    PIXEL_MEAN,
    PIXEL_SCALE,
    PIXEL_STD,
    DigitsSplit,
    digits_split,
    load_digits,
    split_sha256,
)
from trt_compress.models.zoo.digits_vit.model import (
    ARCHITECTURE,
    CARD_FILE,
    NAME,
    WEIGHTS_FILE,
    count_correct,
    new_model,
)
from trt_compress.models.zoo.training import MovingAverage, fit, one_cycle

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

COMMAND = "python -m trt_compress.models.zoo.digits_vit.train --output DIR"

BACKGROUND = -PIXEL_MEAN / PIXEL_STD


@dataclass(frozen=True, slots=True, kw_only=True)
class DigitsRecipe:
    """How the weights are trained; the model card repeats it.

    Args:
        position_temperature: The learned positions start as 2-D sines and cosines with this ratio of wavelengths.
        max_token_drop_ratio: Each step drops a share of the tokens drawn evenly from 0 to this.
        max_rotation_degrees: Each image is turned by up to this, zoomed by up to `max_zoom_change`, and shifted by up
            to `max_shift_pixels` in each direction.
        noise_std: Standard deviation of the pixel noise, in preprocessed units (a full stroke is 2).
        ema_decay: Per step; the released weights are the exponential moving average after the last epoch.
    """

    seed: int = 0
    epochs: int = 80
    batch_size: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup_share: float = 0.1
    label_smoothing: float = 0.1
    gradient_clip_norm: float = 1.0
    ema_decay: float = 0.995
    position_temperature: float = 20.0
    max_token_drop_ratio: float = 0.5
    max_rotation_degrees: float = 10.0
    max_zoom_change: float = 0.1
    max_shift_pixels: float = 1.0
    noise_std: float = 0.1


def train(split: DigitsSplit, recipe: DigitsRecipe) -> "VisionTransformer":
    """Train on the training part alone and return the averaged weights after the last epoch, in evaluation mode."""
    torch.manual_seed(recipe.seed)
    images, labels = torch.from_numpy(split.train_images), torch.from_numpy(split.train_labels)
    model = new_model({**ARCHITECTURE, "patch_drop_rate": recipe.max_token_drop_ratio})
    _initialise_positions(model, recipe)
    average = copy.deepcopy(model).requires_grad_(False)
    steps_of_epoch = math.ceil(len(images) / recipe.batch_size)
    epochs = (torch.split(torch.randperm(len(images)), recipe.batch_size) for _ in range(recipe.epochs))
    batches = chain.from_iterable(epochs)

    def loss_of(step: int) -> torch.Tensor:
        batch = next(batches)
        cast(Any, model.patch_drop).prob = float(torch.rand(())) * recipe.max_token_drop_ratio
        logits = model(augment(images[batch], recipe))
        return functional.cross_entropy(logits, labels[batch], label_smoothing=recipe.label_smoothing)

    schedule = one_cycle(
        model.parameters(),
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        steps=recipe.epochs * steps_of_epoch,
        warmup_share=recipe.warmup_share,
    )
    fit(
        model,
        loss_of,
        [schedule],
        steps=recipe.epochs * steps_of_epoch,
        gradient_clip_norm=recipe.gradient_clip_norm,
        average=MovingAverage(model=average, decay=recipe.ema_decay),
        say_every=steps_of_epoch,
    )
    return average.eval()


def augment(images: torch.Tensor, recipe: DigitsRecipe) -> torch.Tensor:
    """Turn, zoom and shift each image by its own random amount, and add noise."""
    num_images, _, _, width = images.shape

    def uniform(limit: float) -> torch.Tensor:
        return (torch.rand(num_images) * 2 - 1) * limit

    angle, zoom = uniform(math.radians(recipe.max_rotation_degrees)), 1 + uniform(recipe.max_zoom_change)
    shift_x, shift_y = (uniform(recipe.max_shift_pixels * 2 / width) for _ in range(2))
    cos, sin = angle.cos() / zoom, angle.sin() / zoom
    theta = torch.stack([cos, -sin, shift_x, sin, cos, shift_y], dim=-1).reshape(num_images, 2, 3)
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    moved = functional.grid_sample(images - BACKGROUND, grid, align_corners=False) + BACKGROUND
    return moved + recipe.noise_std * torch.randn_like(moved)


def write_release(model: torch.nn.Module, split: DigitsSplit, recipe: DigitsRecipe, directory: Path) -> dict[str, Any]:
    """Write weights and model card into `directory`, and return the card."""
    weights = release.write_weights(model, directory / WEIGHTS_FILE.name)
    packages = ("numpy", "sklearn", "timm", "torch")
    card = _card(model, split, recipe, weights)
    return release.write_card(card, directory / CARD_FILE.name, command=COMMAND, packages=packages)


def main(arguments: list[str] | None = None) -> int:
    """Train, measure and write the release; return the exit code."""

    def make(options: argparse.Namespace, directory: Path) -> dict[str, Any]:
        recipe = DigitsRecipe()
        torch.set_num_threads(2)
        torch.use_deterministic_algorithms(True)
        split = digits_split(recipe.seed)
        accuracy: dict[str, Any] = write_release(train(split, recipe), split, recipe, directory)["accuracy"]
        return accuracy

    parser = argparse.ArgumentParser(prog=f"python -m trt_compress.models.zoo.{NAME}.train", description=__doc__)
    return release.run(parser, make, arguments)


def _initialise_positions(model: "VisionTransformer", recipe: DigitsRecipe) -> None:
    from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed

    size, channels = ARCHITECTURE["img_size"], ARCHITECTURE["embed_dim"]
    positions = build_sincos2d_pos_embed([size, size], dim=channels, temperature=recipe.position_temperature)
    with torch.no_grad():
        cast(torch.Tensor, model.pos_embed)[:, 1:] = positions


def _card(model: torch.nn.Module, split: DigitsSplit, recipe: DigitsRecipe, weights: dict[str, Any]) -> dict[str, Any]:
    correct = {
        "validation": count_correct(model, split.validation_images, split.validation_labels),
        "test": count_correct(model, split.test_images, split.test_labels),
    }
    sizes = {"train": len(split.train_labels), "validation": len(split.validation_labels)}
    sizes["test"] = len(split.test_labels)
    return {
        "name": NAME,
        "task": "classify 8 x 8 images of handwritten digits, 0 to 9",
        "architecture": ARCHITECTURE,
        "preprocess": {"scale": PIXEL_SCALE, "mean": [PIXEL_MEAN], "std": [PIXEL_STD]},
        "data": {
            "name": "Optical Recognition of Handwritten Digits, the 1797 images of scikit-learn's load_digits",
            "citation": "E. Alpaydin, C. Kaynak (1998), UCI Machine Learning Repository, doi:10.24432/C50P49",
            "license": "CC-BY-4.0",
            "limits": "The split is by image, not by writer: accuracy on new writers may be lower.",
        },
        "split": {
            "seed": recipe.seed,
            **sizes,
            "sha256": split_sha256(load_digits().target, recipe.seed),
        },
        "training": {
            **asdict(recipe),
            "selection": "The last epoch is released. Validation images judged short trials of the recipe; the test "
            "images were used for the final figure only.",
            "token_dropping": "Training drops random tokens, so the model tolerates missing ones. That helps each "
            "training-free compressor, and random dropping above all.",
        },
        "accuracy": {
            "validation": correct["validation"] / sizes["validation"],
            "test": correct["test"] / sizes["test"],
            "test_correct": correct["test"],
        },
        "weights": weights,
    }


if __name__ == "__main__":
    sys.exit(main())
