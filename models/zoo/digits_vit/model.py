"""`zoo:digits_vit`: the Vision Transformer that is trained here on scikit-learn's digits."""

from pathlib import Path

import numpy as np

from trt_compress.models.hosts import timm_vit
from trt_compress.models.hosts.base import LoadedHost, ModelInfo, Steps
from trt_compress.models.hosts.weights import load_weights, zoo_weights
from trt_compress.models.zoo.digits_vit import train as digits_vit

INFO = ModelInfo(
    name="zoo:digits_vit",
    family=timm_vit.FAMILY,
    description="8 blocks, 65 tokens, trained here on scikit-learn's digits",
)
_INPUT_SHAPE = (1, 8, 8)


def load(weights: str | None) -> LoadedHost:
    """The model with its own weights, or those of a file.

    Raises:
        ConfigError: the weights do not fit.
    """
    module = digits_vit.build_digits_vit(weights=weights is None)
    card = digits_vit.digits_vit_card()
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
    return ({"image": np.resize(digits_vit.digits_split().test_images, (count, *_INPUT_SHAPE))},)
