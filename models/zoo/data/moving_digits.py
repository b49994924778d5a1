"""Digits that move over natural background images: clips with a class and a place for every frame.

The digits are scikit-learn's, in the split of `digits_vit`; the backgrounds are crops of scikit-learn's two photographs
(`china.jpg`, `flower.jpg`), whose columns are split too. A camera that stands still sees one digit that moves on a
straight line and bounces at the edges; every frame has its own sensor noise.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from trt_compress.errors import UnsupportedError
from trt_compress.models.zoo.data import digits

Part = Literal["train", "validation", "test"]
FRAME_SIZE = 96
COLUMNS: dict[Part, tuple[int, int]] = {"train": (0, 384), "validation": (384, 496), "test": (496, 640)}
DIGIT_SIZE = 32.0  # pixels, before zoom
BACKGROUND_BRIGHTNESS = 0.6
NOISE_STD = 2 / 255

Frames = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """A clip: frames [T, H, W, 3] in RGB, the digit, and its centre [T, 2] as (x, y) in pixels."""

    frames: Frames
    digit: int
    centres: npt.NDArray[np.float32]


def digits_of(part: Part) -> tuple[Tensor, Tensor]:
    """Digits [N, 1, 8, 8] from 0 to 1, and their classes [N]."""
    split = digits.digits_split()
    images = torch.from_numpy(getattr(split, f"{part}_images")) * digits.PIXEL_STD + digits.PIXEL_MEAN
    return images, torch.from_numpy(getattr(split, f"{part}_labels"))


def backgrounds(part: Part, count: int, generator: torch.Generator) -> Tensor:
    """Random crops of the photographs' columns of this part, [count, 3, 96, 96] from 0 to 1, dimmed.

    Raises:
        UnsupportedError: scikit-learn or Pillow is not installed.
    """
    photographs = _photographs()
    low, high = COLUMNS[part]
    crops = []
    for _ in range(count):
        choice, side, x, y, flip = torch.rand(5, generator=generator).tolist()
        image = photographs[int(choice * len(photographs))][:, :, low:high]
        size = int(64 + side * (min(high - low, 180) - 64))
        left, top = int(x * (image.shape[2] - size)), int(y * (image.shape[1] - size))
        crop = image[:, top : top + size, left : left + size]
        crops.append(_resized(crop.flip(2) if flip < 0.5 else crop))
    return torch.stack(crops) * BACKGROUND_BRIGHTNESS


def draw(background: Tensor, digits: Tensor, centres: Tensor, zoom: Tensor, angle: Tensor) -> Tensor:
    """Draw a white digit on each background.

    Args:
        background: [B, 3, 96, 96], 0 to 1.
        digits: [B, 1, 8, 8], 0 to 1: how much of the background each pixel covers.
        centres: [B, 2], (x, y) in pixels.
        zoom: [B], the digit's size as a multiple of `DIGIT_SIZE`.
        angle: [B], radians.

    Returns:
        Frames [B, 3, 96, 96], 0 to 1.
    """
    scale = FRAME_SIZE / (DIGIT_SIZE * zoom)
    cos, sin = angle.cos() * scale, angle.sin() * scale
    at = centres * 2 / FRAME_SIZE - 1
    shift_x = -(cos * at[:, 0] + sin * at[:, 1])
    shift_y = -(-sin * at[:, 0] + cos * at[:, 1])
    theta = torch.stack([cos, sin, shift_x, -sin, cos, shift_y], dim=-1).reshape(-1, 2, 3)
    grid = functional.affine_grid(theta, [len(digits), 1, FRAME_SIZE, FRAME_SIZE], align_corners=False)
    cover = functional.grid_sample(digits, grid, align_corners=False).clamp(0, 1)
    return background * (1 - cover) + cover


def make_clip(part: Part, index: int, *, length: int = 24) -> Clip:
    """Clip number `index` of a part; the same on every machine with the same versions."""
    generator = torch.Generator().manual_seed(10_000 * list(COLUMNS).index(part) + index)
    images, labels = digits_of(part)
    chosen = int(torch.randint(len(images), (), generator=generator))
    zoom, angle, x, y, heading, speed = torch.rand(6, generator=generator).tolist()
    margin = DIGIT_SIZE / 2
    span = FRAME_SIZE - 2 * margin
    step = (1 + 3 * speed) * torch.tensor([math.cos(heading * math.tau), math.sin(heading * math.tau)])
    places = torch.tensor([x, y]) * span + step * torch.arange(length)[:, None]
    centres = margin + span - (places.remainder(2 * span) - span).abs()  # bounces at the margins
    frames = draw(
        backgrounds(part, 1, generator).expand(length, -1, -1, -1),
        images[chosen].expand(length, -1, -1, -1),
        centres,
        torch.full((length,), 0.85 + 0.3 * zoom),
        torch.full((length,), math.radians(20 * angle - 10)),
    )
    frames = frames + NOISE_STD * torch.randn(frames.shape, generator=generator)
    pixels = (frames.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
    return Clip(frames=pixels.contiguous().numpy(), digit=int(labels[chosen]), centres=centres.numpy())


def as_input(frames: Frames) -> npt.NDArray[np.float32]:
    """Frames [..., H, W, 3] of bytes as the model takes them: [..., 3, H, W], from -1 to 1."""
    return np.ascontiguousarray(np.moveaxis(frames, -1, -3).astype(np.float32) / 127.5 - 1)


def _photographs() -> Sequence[Tensor]:
    try:
        from sklearn.datasets import load_sample_images

        photographs: Any = load_sample_images().images
    except ImportError as error:
        raise UnsupportedError(
            f"The background photographs come with scikit-learn, read by Pillow ({error}).",
            hint="pip install 'trt-compress[zoo]' pillow",
        ) from error
    return [torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255 for image in photographs]


def _resized(crop: Tensor) -> Tensor:
    size = (FRAME_SIZE, FRAME_SIZE)
    return functional.interpolate(crop[None], size=size, mode="bilinear", align_corners=False, antialias=True)[0]
