"""A small Vision Transformer for 8 x 8 digits: the model `zoo:digits_vit`, its data split, and its training.

Every pixel is a token, so the model has 65 tokens (64 and the class token) in 8 blocks: enough for every compressor of
the Vision Transformer family, small enough to ship. The weights and the model card stand beside this file; this
command makes both again (minutes on two cores; bit-identical on the same machine and versions):

    python -m trt_compress.models.zoo.digits_vit.train --output DIR

Training drops a random share of the tokens in each step (PatchDropout, arXiv:2208.07220), so that the model tolerates
missing tokens. That helps each compressor that is put in without training, random dropping above all.
"""

import argparse
import copy
import hashlib
import json
import math
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from trt_compress.errors import ConfigError, UnsupportedError
from trt_compress.models.hosts.weights import load_weights
from trt_compress.models.zoo import release

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

NAME = "digits_vit"
COMMAND = "python -m trt_compress.models.zoo.digits_vit.train --output DIR"
CARD_FILE = Path(__file__).with_name("card.json")
WEIGHTS_FILE = Path(__file__).with_name(f"{NAME}.safetensors")

ARCHITECTURE = {
    "img_size": 8,
    "patch_size": 1,
    "in_chans": 1,
    "num_classes": 10,
    "embed_dim": 96,
    "depth": 8,
    "num_heads": 6,
}
PIXEL_SCALE, PIXEL_MEAN, PIXEL_STD = 1 / 16, 0.5, 0.5
BACKGROUND = -PIXEL_MEAN / PIXEL_STD
TEST_PER_CLASS = 36
VALIDATION_PER_CLASS = 18

Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class DigitsSplit:
    """The digits in three disjoint parts. Images are [N, 1, 8, 8], preprocessed as the model card says."""

    train_images: Images
    train_labels: Labels
    validation_images: Images
    validation_labels: Labels
    test_images: Images
    test_labels: Labels


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
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


def digits_vit_card() -> dict[str, Any]:
    """Read the model card: architecture, preprocessing, data, licence, split, training, accuracy, versions."""
    return release.read_card(CARD_FILE)


def digits_vit_config() -> dict[str, Any]:
    """Return the keyword arguments of timm's `VisionTransformer` from the model card."""
    return cast(dict[str, Any], digits_vit_card()["architecture"])


def build_digits_vit(*, weights: bool = True) -> "VisionTransformer":
    """Build the model in evaluation mode.

    Args:
        weights: Load the trained weights; otherwise the model is freshly initialised.

    Raises:
        UnsupportedError: timm is not installed.
        ConfigError: The weights file does not fit the model.
    """
    model = _new_model(digits_vit_config())
    if weights:
        load_weights(model, WEIGHTS_FILE)
    return model.eval()


def digits_split(seed: int = 0) -> DigitsSplit:
    """Split scikit-learn's digits into training, validation and test images, stratified by class.

    The test images (36 a class) take no part in training or in choosing anything.

    Args:
        seed: The released weights belong to seed 0; with another seed, their training images are among the test images.

    Raises:
        UnsupportedError: scikit-learn is not installed.
    """
    digits = _load_digits()
    images = ((digits.images[:, None] * PIXEL_SCALE - PIXEL_MEAN) / PIXEL_STD).astype(np.float32)
    labels = digits.target.astype(np.int64)
    train, validation, test = split_indices(labels, seed)
    return DigitsSplit(
        train_images=images[train],
        train_labels=labels[train],
        validation_images=images[validation],
        validation_labels=labels[validation],
        test_images=images[test],
        test_labels=labels[test],
    )


def split_indices(labels: npt.NDArray[Any], seed: int) -> tuple[Labels, Labels, Labels]:
    """Draw the (training, validation, test) indices, each in increasing order.

    Uses numpy's `RandomState`, whose stream never changes, so a seed means the same split in every version.
    """
    if not 0 <= seed < 2**32:
        raise ConfigError(f"seed={seed}; a seed is a whole number from 0 to 2**32 - 1. Give one of these.")
    random = np.random.RandomState(seed)
    by_class = [random.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]
    bounds = [TEST_PER_CLASS, TEST_PER_CLASS + VALIDATION_PER_CLASS]
    parts = zip(*(np.split(members, bounds) for members in by_class), strict=True)
    test, validation, train = (np.sort(np.concatenate(part)).astype(np.int64) for part in parts)
    return train, validation, test


def split_sha256(labels: npt.NDArray[Any], seed: int) -> str:
    """Hash the split: its indices as text, the same on every machine."""
    text = json.dumps([part.tolist() for part in split_indices(labels, seed)])
    return hashlib.sha256(text.encode()).hexdigest()


def count_correct(model: torch.nn.Module, images: Images, labels: Labels) -> int:
    """Count the images that `model` (in evaluation mode) classifies correctly."""
    with torch.inference_mode():
        predicted = torch.cat([model(batch).argmax(-1) for batch in torch.split(torch.from_numpy(images), 128)])
    return int((predicted == torch.from_numpy(labels)).sum())


def train(split: DigitsSplit, recipe: Recipe) -> "VisionTransformer":
    """Train on the training part alone and return the averaged weights after the last epoch, in evaluation mode."""
    torch.manual_seed(recipe.seed)
    images, labels = torch.from_numpy(split.train_images), torch.from_numpy(split.train_labels)
    model = _new_model({**ARCHITECTURE, "patch_drop_rate": recipe.max_token_drop_ratio})
    _initialise_positions(model, recipe)
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    total_steps = recipe.epochs * math.ceil(len(images) / recipe.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        recipe.learning_rate,
        total_steps=total_steps,
        pct_start=recipe.warmup_share,
        cycle_momentum=False,
    )
    for epoch in range(recipe.epochs):
        total_loss = 0.0
        for batch in torch.split(torch.randperm(len(images)), recipe.batch_size):
            cast(Any, model.patch_drop).prob = float(torch.rand(())) * recipe.max_token_drop_ratio
            logits = model(augment(images[batch], recipe))
            loss = functional.cross_entropy(logits, labels[batch], label_smoothing=recipe.label_smoothing)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.gradient_clip_norm)
            optimizer.step()
            schedule.step()
            for averaged, parameter in zip(average.parameters(), model.parameters(), strict=True):
                averaged.lerp_(parameter.detach(), 1 - recipe.ema_decay)
            total_loss += loss.item() * len(batch)
        print(f"epoch {epoch + 1}/{recipe.epochs}: loss {total_loss / len(images):.3f}", file=sys.stderr, flush=True)
    return average.eval()


def augment(images: torch.Tensor, recipe: Recipe) -> torch.Tensor:
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


def write_release(model: torch.nn.Module, split: DigitsSplit, recipe: Recipe, directory: Path) -> dict[str, Any]:
    """Write weights and model card into `directory`, and return the card."""
    weights = release.write_weights(model, directory / WEIGHTS_FILE.name)
    packages = ("numpy", "sklearn", "timm", "torch")
    card = _card(model, split, recipe, weights)
    return release.write_card(card, directory / CARD_FILE.name, command=COMMAND, packages=packages)


def main(arguments: list[str] | None = None) -> int:
    """Train, measure and write the release; return the exit code."""

    def make(options: argparse.Namespace, directory: Path) -> dict[str, Any]:
        recipe = Recipe()
        torch.set_num_threads(2)
        torch.use_deterministic_algorithms(True)
        split = digits_split(recipe.seed)
        accuracy: dict[str, Any] = write_release(train(split, recipe), split, recipe, directory)["accuracy"]
        return accuracy

    parser = argparse.ArgumentParser(prog=f"python -m trt_compress.models.zoo.{NAME}.train", description=__doc__)
    return release.run(parser, make, arguments)


def _new_model(architecture: Mapping[str, Any]) -> "VisionTransformer":
    try:
        from timm.models.vision_transformer import VisionTransformer
    except ImportError as error:
        raise UnsupportedError(f"{NAME} needs timm.", hint="pip install 'trt-compress[export]'") from error
    return VisionTransformer(**architecture)


def _initialise_positions(model: "VisionTransformer", recipe: Recipe) -> None:
    from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed

    size, channels = ARCHITECTURE["img_size"], ARCHITECTURE["embed_dim"]
    positions = build_sincos2d_pos_embed([size, size], dim=channels, temperature=recipe.position_temperature)
    with torch.no_grad():
        cast(torch.Tensor, model.pos_embed)[:, 1:] = positions


def _load_digits() -> Any:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        message = "The digits images come with scikit-learn, which is not installed."
        raise UnsupportedError(message, hint="pip install 'trt-compress[zoo]'") from error
    return load_digits()


def _card(model: torch.nn.Module, split: DigitsSplit, recipe: Recipe, weights: dict[str, Any]) -> dict[str, Any]:
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
            "sha256": split_sha256(_load_digits().target, recipe.seed),
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
