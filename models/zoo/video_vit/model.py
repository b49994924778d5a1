"""A Vision Transformer per video frame: dense, with compressors inside the frame, or with reuse from frame to frame.

`zoo:video_vit` finds and reads a digit that moves over a natural image. Without compressors, and with those of image
classifiers (`tome`, `evit`, …), it is one graph without states. With `static_reuse` it is a graph for each level; all
levels carry on the same states: the patches as they were last computed, their age, and their keys and values of every
layer. A stream may change its level at any frame.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from trt_compress.errors import ConfigError, UnsupportedError
from trt_compress.format.graphs import BATCH_SYMBOL, StateSpec
from trt_compress.methods import CompressorSpec
from trt_compress.models.compressors.passing import Taps, Tokens
from trt_compress.models.compressors.place import GraphPlan, levels_of, place_one
from trt_compress.models.compressors.sites import HostInfo, Site
from trt_compress.models.hosts import timm_vit
from trt_compress.models.hosts.base import CompressedModule, GraphSpec, LoadedHost, ModelInfo, Steps, TensorSpec
from trt_compress.models.hosts.weights import load_weights, zoo_weights
from trt_compress.models.layers.attention import attention, merge_heads
from trt_compress.models.layers.partial import Reuse
from trt_compress.models.zoo import release
from trt_compress.models.zoo.data import moving_digits
from trt_compress.models.zoo.data.moving_digits import (
    FRAME_SIZE,
)
from trt_compress.plugins.operator import at_site, cast

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

NAME = "video_vit"
CARD_FILE = Path(__file__).with_name("card.json")
WEIGHTS_FILE = Path(__file__).with_name(f"{NAME}.safetensors")
ARCHITECTURE = {
    "img_size": FRAME_SIZE,
    "patch_size": 8,
    "in_chans": 3,
    "num_classes": 12,
    "embed_dim": 96,
    "depth": 6,
    "num_heads": 4,
}
NUM_DIGITS = 10
FAMILY = "video_vit"
INFO = ModelInfo(
    name="zoo:video_vit",
    family=FAMILY,
    description="finds and reads a digit in a video, 6 blocks, 145 tokens; trained here on digits over photographs",
)
EXAMPLE_STEPS = 6
_MASKED = -3e4  # added to a logit; fp16 holds it
_SITE: Final = "patch_embed"


def video_vit_card() -> dict[str, Any]:
    """Read the model card: architecture, preprocessing, data, licence, split, training, accuracy, versions."""
    return release.read_card(CARD_FILE)


def build_video_vit(*, weights: bool = True) -> "VisionTransformer":
    """Build the model in evaluation mode: [B, 3, 96, 96] to [B, 12], the last two a centre as shares of the frame.

    Raises:
        UnsupportedError: timm is not installed.
        ConfigError: The weights file does not fit the model.
    """
    try:
        from timm.models.vision_transformer import VisionTransformer
    except ImportError as error:
        raise UnsupportedError(f"{NAME} needs timm.", hint="pip install 'trt-compress[export]'") from error
    architecture: dict[str, Any] = ARCHITECTURE
    model = VisionTransformer(**architecture)
    if weights:
        load_weights(model, WEIGHTS_FILE)
    return model.eval()


def load(weights: str | None) -> LoadedHost:
    """The model with its own weights, or those of a file.

    Raises:
        ConfigError: the weights do not fit.
    """
    module = build_video_vit(weights=weights is None)
    card = video_vit_card()
    return LoadedHost(
        source=INFO.name,
        family=FAMILY,
        module=module,
        weights=zoo_weights(card, data_license=True) if weights is None else load_weights(module, Path(weights)),
        attach=lambda specs: attach(module, specs),
        preprocess={"kind": "image", **card["preprocess"]},
        postprocess={
            "kind": "classification",
            "classes": NUM_DIGITS,
            "place": {"output": "centre", "is": "x and y of the digit's centre, as shares of the frame"},
        },
    )


def attach(module: nn.Module, specs: Sequence[CompressorSpec], *, name: str = INFO.name) -> tuple[GraphSpec, ...]:
    """The graphs of a Vision Transformer whose outputs are classes and, last, a centre.

    Args:
        module: A timm Vision Transformer with a class token as its only prefix and `token` pooling.
        specs: Compressors of image classifiers, or `static_reuse` alone.
        name: The model's name, for messages.

    Raises:
        ConfigError: a compressor does not fit.
        UnsupportedError: the model is not of a form this host drives.
    """
    graphs = [(_compressed(module, parts, name=name), level or "model") for level, parts in levels_of(specs).items()]
    return tuple(_graph(graph, level, graph.states(shared=len(graphs) > 1)) for graph, level in graphs)


def _compressed(module: nn.Module, specs: Sequence[CompressorSpec], *, name: str) -> "FrameViT | ReusingViT":
    """One level; which form it has follows from where its compressors act."""
    vit = timm_vit.check_supported(module, name)
    placed = place_one(specs, host_info(vit, name))
    if placed.steps(_SITE):
        return ReusingViT(vit, placed, name=name).eval()
    return FrameViT(timm_vit.attach(vit, specs, name=name)).eval()


def host_info(vit: Any, name: str) -> HostInfo:
    """What compressors may know of `vit`: patches may be chosen before they are embedded, and behind every layer."""
    info = timm_vit.host_info(vit, name)
    weight = vit.patch_embed.proj.weight
    patches = Site(kind=_SITE, layer=0, tokens=int(vit.patch_embed.num_patches), width=weight[0].numel())
    return replace(info, sites=(patches, *info.sites))


class FrameViT(CompressedModule):
    """A compressed Vision Transformer whose last two outputs are a centre."""

    def __init__(self, vit: timm_vit.CompressedViT) -> None:
        super().__init__()
        self.vit = vit
        self.plan = vit.plan

    def states(self, *, shared: bool) -> tuple[StateSpec, ...]:
        """None."""
        return ()

    def forward(self, frame: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, classes] and centres [B, 2] of frames [B, 3, height, width]."""
        found = self.vit(frame)
        return found[:, :-2], found[:, -2:]


class ReusingViT(CompressedModule):
    """A Vision Transformer that computes the class token and some of a frame's patches, and keeps the others' rows.

    Args:
        vit: The model.
        placed: What chooses the patches, before they are embedded.
        name: The model's name, for messages.
    """

    def __init__(self, vit: Any, placed: GraphPlan, *, name: str) -> None:
        super().__init__()
        if vit.num_prefix_tokens != 1 or vit.global_pool != "token":
            raise ConfigError(
                f"{placed.sites[0].compressor}: {name} has {vit.num_prefix_tokens} prefix tokens and "
                f"global_pool={vit.global_pool!r}; it needs a class token alone, and pooling by it."
            )
        self.vit, self.placed, self.plan = vit, placed, placed.sites
        self.num_patches = int(vit.patch_embed.num_patches)

    def states(self, *, shared: bool) -> tuple[StateSpec, ...]:
        """What is handed from frame to frame; `shared`: by all graphs that name it alike."""
        shape = (BATCH_SYMBOL, self.num_patches, 2 * int(self.vit.embed_dim))
        names = [f"keys_values_{layer}" for layer in range(len(self.vit.blocks))]
        kept = (StateSpec(input=f"{name}_in", output=f"{name}_out", shape=shape, name=name) for name in names)
        return tuple(state if shared else replace(state, name=None) for state in (*self.placed.states(), *kept))

    def forward(self, frame: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        """One frame.

        Args:
            frame: [B, 3, height, width].
            states: As `states` says: what the compressor owns, then keys and values of the patches in each layer,
                [B, N, 2 C].

        Returns:
            Logits [B, classes], centres [B, 2], and the states after this frame.
        """
        vit: Any = self.vit
        owned = [state.port for state in self.placed.states()]
        stored = states[len(owned) :]
        memory = dict(zip(owned, states, strict=False))
        chosen = self.placed(_SITE, Tokens(x=self._patches(frame), memory=memory), Taps())
        x = self._embedded(chosen)
        bias = None if chosen.reuse is None else _mask(chosen.reuse.known, x.dtype)
        kept = []
        for layer, (block, rows_before) in enumerate(zip(vit.blocks, stored, strict=True)):
            with at_site(f"blocks.{layer}"):
                update, keys_values = _attend(block.attn, block.norm1(x), rows_before, chosen.reuse, bias)
            kept.append(keys_values)
            x = x + block.drop_path1(block.ls1(update))
            x = x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))
        found = vit.forward_head(vit.norm(x[:, :1]))
        return found[:, :-2], found[:, -2:], *(chosen.memory[name] for name in owned), *kept

    def _patches(self, frame: Tensor) -> Tensor:
        """Pixels of each patch in the order of the convolution's weights, [B, N, P]."""
        height, width = self.vit.patch_embed.patch_size
        batch, channels = frame.shape[:2]
        rows, columns = frame.shape[2] // height, frame.shape[3] // width
        tiles = frame.reshape(batch, channels, rows, height, columns, width).permute(0, 2, 4, 1, 3, 5)
        return tiles.reshape(batch, rows * columns, channels * height * width)

    def _embedded(self, chosen: Tokens) -> Tensor:
        """The class token and the embedded patches at their positions, [B, 1 + K, C]."""
        vit: Any = self.vit
        weight, bias = vit.patch_embed.proj.weight, vit.patch_embed.proj.bias
        tokens = vit.patch_embed.norm(nn.functional.linear(chosen.x, weight.flatten(1), bias))
        places = vit.pos_embed[0, 1:]
        tokens = tokens + (places if chosen.position is None else places[chosen.position])
        first = (vit.cls_token + vit.pos_embed[:, :1]).expand(tokens.shape[0], -1, -1)
        embedded: Tensor = vit.norm_pre(vit.pos_drop(torch.cat([first, tokens], dim=1)))
        return embedded


def _mask(known: Tensor, dtype: torch.dtype) -> Tensor:
    """Added to the logits of the class token and of each patch, [B, 1, 1, 1 + N]: only computed ones count."""
    patches = torch.where(known, 0.0, _MASKED)
    return cast(torch.cat([torch.zeros_like(patches[:, :1]), patches], dim=1), dtype)[:, None, None]


def _attend(module: Any, x: Tensor, stored: Tensor, reuse: Reuse | None, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """timm's Attention of some tokens to all: new keys and values where there are, stored ones elsewhere.

    Args:
        module: A timm Attention.
        x: Normalised tokens, the class token first, [B, 1 + K, C].
        stored: Keys and values of all patches, [B, N, 2 C].
        reuse: Where each patch's row is; None: all are new.
        bias: Added to the logits of each key, [B, 1, 1, 1 + N]; None: nothing.

    Returns:
        The attention's output for x, and the keys and values of all patches.
    """
    batch, count, _ = x.shape
    heads, head_dim = module.num_heads, module.head_dim
    qkv = module.qkv(x).reshape(batch, count, 3, heads * head_dim)
    new = qkv[:, :, 1:].reshape(batch, count, 2 * heads * head_dim)
    patches = new[:, 1:] if reuse is None else reuse.keep(new[:, 1:], cast(stored, new.dtype))
    keys_values = torch.cat([new[:, :1], patches], dim=1).reshape(batch, -1, 2, heads, head_dim).permute(2, 0, 3, 1, 4)
    query = module.q_norm(qkv[:, :, 0].reshape(batch, count, heads, head_dim).transpose(1, 2))
    mixed, _ = attention(query, module.k_norm(keys_values[0]), keys_values[1], scale=module.scale, bias=bias)
    return module.proj_drop(module.proj(module.norm(merge_heads(mixed)))), patches


def _graph(module: CompressedModule, name: str, states: tuple[StateSpec, ...]) -> GraphSpec:
    size = moving_digits.FRAME_SIZE
    return GraphSpec(
        module=module,
        name=name,
        inputs=(TensorSpec(name="frame", shape=(BATCH_SYMBOL, 3, size, size)),),
        outputs=(
            TensorSpec(name="logits", shape=(BATCH_SYMBOL, NUM_DIGITS)),
            TensorSpec(name="centre", shape=(BATCH_SYMBOL, 2)),
        ),
        states=states,
        examples=lambda count: held_out_frames(count, EXAMPLE_STEPS if states else 1),
    )


def held_out_frames(count: int, steps: int) -> Steps:
    """Consecutive frames of `count` test clips side by side."""
    clips = [moving_digits.make_clip("test", index, length=steps).frames for index in range(count)]
    return [{"frame": moving_digits.as_input(np.stack(frames))} for frames in zip(*clips, strict=True)]
