"""The digits of scikit-learn, 8 x 8 pixels, in three disjoint parts."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from trt_compress.digest import sha256
from trt_compress.errors import ConfigError, UnsupportedError

PIXEL_SCALE, PIXEL_MEAN, PIXEL_STD = 1 / 16, 0.5, 0.5
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


def digits_split(seed: int = 0) -> DigitsSplit:
    """Split scikit-learn's digits into training, validation and test images, stratified by class.

    The test images (36 a class) take no part in training or in choosing anything.

    Args:
        seed: The released weights belong to seed 0; with another seed, their training images are among the test images.

    Raises:
        UnsupportedError: scikit-learn is not installed.
    """
    digits = load_digits()
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
    return sha256(text)


def load_digits() -> Any:
    """The data set as scikit-learn has it.

    Raises:
        UnsupportedError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits as load
    except ImportError as error:
        message = "The digits images come with scikit-learn, which is not installed."
        raise UnsupportedError(message, hint="pip install 'trt-compress[zoo]'") from error
    return load()
