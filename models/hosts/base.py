"""What the steps after a host need to know: the module to trace, its inputs, its sites."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import nn


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsInfo:
    """Where weights come from: a file's name, `random (seed 0)`, timm, or the zoo.

    `sha256` is the hash of the file; of weights without a file, that of the tensors.
    """

    source: str
    sha256: str
    license: str | None = None
    provenance: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedHost:
    """A model with weights, ready to be compressed.

    Attributes:
        source: As the user wrote it, `timm:vit_small_patch16_224`.
        family: The file in `models/hosts` that drives it.
        module: The model, in eval mode.
        input_shape: Shape of one input without the batch axis, [channels, height, width].
        input_name: Name of the graph input.
        output_name: Name of the graph output.
        weights: Where the weights come from.
        preprocess: How an image becomes the input; for the manifest.
        postprocess: What the output means; for the manifest.
        examples: A given number of real inputs [B, …] that the model was not trained on, if there are any at hand.
    """

    source: str
    family: str
    module: nn.Module
    input_shape: tuple[int, ...]
    weights: WeightsInfo
    input_name: str = "image"
    output_name: str = "logits"
    preprocess: Mapping[str, Any] = field(default_factory=dict)
    postprocess: Mapping[str, Any] = field(default_factory=dict)
    examples: Callable[[int], np.ndarray[Any, np.dtype[np.float32]]] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """One line of `trt-compress list models`."""

    name: str
    family: str
    description: str
