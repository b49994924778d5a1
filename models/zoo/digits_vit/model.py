"""`zoo:digits_vit`: the Vision Transformer that is trained here on scikit-learn's digits."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from trt_compress.errors import UnsupportedError
from trt_compress.models.hosts import timm_vit
from trt_compress.models.hosts.base import LoadedHost, ModelInfo, Steps
from trt_compress.models.hosts.weights import load_weights, zoo_weights
from trt_compress.models.zoo import release
from trt_compress.models.zoo.data.digits import (
    Images,
    Labels,
    digits_split,
)

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

NAME = "digits_vit"
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
INFO = ModelInfo(
    name="zoo:digits_vit",
    family=timm_vit.FAMILY,
    description="8 blocks, 65 tokens, trained here on scikit-learn's digits",
)
_INPUT_SHAPE = (1, 8, 8)


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
    model = new_model(digits_vit_config())
    if weights:
        load_weights(model, WEIGHTS_FILE)
    return model.eval()


def count_correct(model: torch.nn.Module, images: Images, labels: Labels) -> int:
    """Count the images that `model` (in evaluation mode) classifies correctly."""
    with torch.inference_mode():
        predicted = torch.cat([model(batch).argmax(-1) for batch in torch.split(torch.from_numpy(images), 128)])
    return int((predicted == torch.from_numpy(labels)).sum())


def new_model(architecture: Mapping[str, Any]) -> "VisionTransformer":
    """A freshly initialised model of these sizes.

    Raises:
        UnsupportedError: timm is not installed.
    """
    try:
        from timm.models.vision_transformer import VisionTransformer
    except ImportError as error:
        raise UnsupportedError(f"{NAME} needs timm.", hint="pip install 'trt-compress[export]'") from error
    return VisionTransformer(**architecture)


def load(weights: str | None) -> LoadedHost:
    """The model with its own weights, or those of a file.

    Raises:
        ConfigError: the weights do not fit.
    """
    module = build_digits_vit(weights=weights is None)
    card = digits_vit_card()
    return LoadedHost(
        source=INFO.name,
        family=INFO.family,
        module=module,
        weights=zoo_weights(card, data_license=True) if weights is None else load_weights(module, Path(weights)),
        attach=lambda specs: (
            timm_vit.classifier_graph(
                module, specs, name=INFO.name, input_shape=_INPUT_SHAPE, examples=held_out_images
            ),
        ),
        # the card's scale is that of scikit-learn's pixels, 0 to 16; those of a picture go to 255
        preprocess={"kind": "image", "layout": "NCHW", **card["preprocess"], "scale": 1 / 255},
        postprocess={"kind": "classification", "classes": 10},
    )


def held_out_images(count: int) -> Steps:
    """Test images, from the first again after the last."""
    return ({"image": np.resize(digits_split().test_images, (count, *_INPUT_SHAPE))},)
