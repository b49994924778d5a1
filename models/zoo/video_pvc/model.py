"""`zoo:video_pvc`: progressive encoding (PVC) of a video, nine tokens a frame, trained here on moving digits."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from trt_compress.errors import ConfigError
from trt_compress.format.graphs import BATCH_SYMBOL
from trt_compress.methods import CompressorSpec
from trt_compress.models.hosts.base import CompressedModule, GraphSpec, LoadedHost, ModelInfo, TensorSpec
from trt_compress.models.hosts.progressive import ProgressiveConfig, ProgressiveViT
from trt_compress.models.hosts.weights import load_weights, zoo_weights
from trt_compress.models.zoo import release
from trt_compress.models.zoo.data import moving_digits
from trt_compress.models.zoo.video_vit.model import (
    EXAMPLE_STEPS,
    NUM_DIGITS,
    build_video_vit,
    held_out_frames,
)

NAME = "video_pvc"
CARD_FILE = Path(__file__).with_name("card.json")
WEIGHTS_FILE = Path(__file__).with_name(f"{NAME}.safetensors")
CONFIG = ProgressiveConfig()
FAMILY = "video_pvc"
INFO = ModelInfo(
    name="zoo:video_pvc",
    family=FAMILY,
    description="progressive encoding of a video (PVC): 9 tokens a frame instead of 144, 4 frames as state",
)


def build(*, weights: bool = True) -> ProgressiveViT:
    """Build the model in evaluation mode; without weights it is freshly initialised.

    Raises:
        UnsupportedError: timm is not installed.
        ConfigError: the weights file does not fit the model.
    """
    vit = build_video_vit(weights=False)
    vit.head = torch.nn.Identity()
    model = ProgressiveViT(vit, CONFIG)
    if weights:
        load_weights(model, WEIGHTS_FILE)
    return model.eval()


class ReadingPvc(CompressedModule):
    """The graph: tokens of a frame, and what is read off them as classes and a centre."""

    def __init__(self, model: ProgressiveViT) -> None:
        super().__init__()
        self.model = model

    def forward(self, frame: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        """Tokens [B, K, C], logits [B, classes] and centres [B, 2] of frames [B, 3, H, W], then the new states."""
        tokens, found, *after = self.model(frame, *states)
        return tokens, found[:, :NUM_DIGITS], found[:, NUM_DIGITS:], *after


def load(weights: str | None) -> LoadedHost:
    """The model with its own weights, or those of a file.

    Raises:
        ConfigError: the weights do not fit.
    """
    model = build(weights=weights is None)
    card = release.read_card(CARD_FILE)
    return LoadedHost(
        source=INFO.name,
        family=FAMILY,
        module=model,
        weights=zoo_weights(card, data_license=True) if weights is None else load_weights(model, Path(weights)),
        attach=lambda specs: attach(model, specs),
        preprocess={"kind": "image", **card["preprocess"]},
        postprocess={
            "kind": "classification",
            "classes": NUM_DIGITS,
            "output": "logits",
            "place": {"output": "centre", "is": "x and y of the digit's centre, as shares of the frame"},
        },
    )


def attach(model: ProgressiveViT, specs: Sequence[CompressorSpec]) -> tuple[GraphSpec, ...]:
    """The one graph.

    Raises:
        ConfigError: compressors were given: a token has to find those at its own place in the frames before.
    """
    if specs:
        raise ConfigError(
            f"{INFO.name}: '{specs[0].name}' was given, but the model compresses by itself and needs every "
            "patch at its place in all frames; give --compress none, or compress zoo:video_vit."
        )
    size, width = moving_digits.FRAME_SIZE, int(model.vit.embed_dim)
    return (
        GraphSpec(
            module=ReadingPvc(model).eval(),
            inputs=(TensorSpec(name="frame", shape=(BATCH_SYMBOL, 3, size, size)),),
            outputs=(
                TensorSpec(name="tokens", shape=(BATCH_SYMBOL, model.num_tokens, width)),
                TensorSpec(name="logits", shape=(BATCH_SYMBOL, NUM_DIGITS)),
                TensorSpec(name="centre", shape=(BATCH_SYMBOL, 2)),
            ),
            states=model.states(),
            examples=lambda count: held_out_frames(count, EXAMPLE_STEPS),
        ),
    )
