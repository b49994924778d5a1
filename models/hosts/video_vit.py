"""A Vision Transformer per video frame: dense, with compressors inside the frame, or with reuse from frame to frame.

`zoo:video_vit` finds and reads a digit that moves over a natural image. Without compressors, and with those of image
classifiers (`tome`, `evit`, …), it is one graph without states. With `static_reuse` it is a graph for each level; all
levels carry on the same states: the patches as they were last computed, their age, and their keys and values of every
layer. A stream may change its level at any frame.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trt_compress.errors import ConfigError
from trt_compress.methods import CompressorSpec
from trt_compress.methods.video import STATIC_REUSE, StaticReuseConfig, level_name
from trt_compress.models.compressors.base import Signals, TokenState
from trt_compress.models.compressors.compose import SitePlan
from trt_compress.models.compressors.static_reuse import NEVER, StaticReuse, keep_rows, next_age, rows_to_keep
from trt_compress.models.hosts import timm_vit
from trt_compress.models.hosts.base import (
    BATCH_SYMBOL,
    CompressedModule,
    GraphSpec,
    LoadedHost,
    ModelInfo,
    StateSpec,
    Steps,
    TensorSpec,
)
from trt_compress.models.hosts.weights import load_weights, zoo_weights
from trt_compress.models.pretrained import moving_digits, video_vit
from trt_compress.plugins.operator import at_site, cast, mark_tensor

FAMILY = "video_vit"
INFO = ModelInfo(
    name="zoo:video_vit",
    family=FAMILY,
    description="finds and reads a digit in a video, 6 blocks, 145 tokens; trained here on digits over photographs",
)
EXAMPLE_STEPS = 6
_MASKED = -3e4  # added to a logit; fp16 holds it
_SITE = "patch_embed"


def load(weights: str | None) -> LoadedHost:
    """The model with its own weights, or those of a file.

    Raises:
        ConfigError: the weights do not fit.
    """
    module = video_vit.build_video_vit(weights=weights is None)
    card = video_vit.video_vit_card()
    return LoadedHost(
        source=INFO.name,
        family=FAMILY,
        module=module,
        weights=zoo_weights(card, data_license=True) if weights is None else load_weights(module, Path(weights)),
        attach=lambda specs: attach(module, specs),
        preprocess={"kind": "image", **card["preprocess"]},
        postprocess={
            "kind": "classification",
            "classes": video_vit.NUM_DIGITS,
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
    reuse = [spec for spec in specs if spec.method is STATIC_REUSE]
    if not reuse:
        return (_graph(FrameViT(timm_vit.attach(module, specs, name=name)).eval(), "model", ()),)
    if len(specs) > 1:
        raise ConfigError(
            "static_reuse: keeps the tokens of every layer at their places, so no other compressor can act beside it; "
            "give it alone."
        )
    config = reuse[0].config
    assert isinstance(config, StaticReuseConfig)
    graphs = [
        (ReusingViT(module, replace(config, keep_ratio=ratio), name=name).eval(), ratio) for ratio in config.ratios
    ]
    several = len(graphs) > 1
    return tuple(
        _graph(graph, level_name(ratio) if several else "model", graph.states(shared=several))
        for graph, ratio in graphs
    )


class FrameViT(CompressedModule):
    """A compressed Vision Transformer whose last two outputs are a centre."""

    def __init__(self, vit: timm_vit.CompressedViT) -> None:
        super().__init__()
        self.vit = vit
        self.plan = vit.plan

    def forward(self, frame: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, classes] and centres [B, 2] of frames [B, 3, height, width]."""
        found = self.vit(frame)
        return found[:, :-2], found[:, -2:]


class ReusingViT(CompressedModule):
    """A Vision Transformer that computes the class token and the changed patches of a frame.

    Args:
        module: The model.
        config: One level.
        name: The model's name, for messages.
    """

    def __init__(self, module: nn.Module, config: StaticReuseConfig, *, name: str) -> None:
        super().__init__()
        vit = timm_vit.check_supported(module, name)
        if vit.num_prefix_tokens != 1 or vit.global_pool != "token":
            raise ConfigError(
                f"static_reuse: {name} has {vit.num_prefix_tokens} prefix tokens and global_pool={vit.global_pool!r}; "
                "it needs a class token alone, and pooling by it."
            )
        self.vit = vit
        self.info = replace(timm_vit.host_info(vit, name), sites=frozenset({"patch_embed"}))
        self.num_patches = int(vit.patch_embed.num_patches)
        self.step = StaticReuse(config, self.info, 0, self.num_patches)
        if self.step.tokens_out < self.num_patches:
            self.plan = (
                SitePlan(
                    name=_SITE,
                    layer=0,
                    compressor=STATIC_REUSE.name,
                    config=config,
                    tokens_in=self.num_patches,
                    tokens_out=self.step.tokens_out,
                    keeps_rest=True,
                ),
            )

    def states(self, *, shared: bool) -> tuple[StateSpec, ...]:
        """What is handed from frame to frame; `shared`: by all graphs that name it alike."""
        patch_size = self.vit.patch_embed.proj.weight[0].numel()
        width = 2 * self.vit.embed_dim

        def state(name: str, *shape: int, initial: str | dict[str, float] = "zeros") -> StateSpec:
            return StateSpec(
                input=f"{name}_in",
                output=f"{name}_out",
                shape=(BATCH_SYMBOL, self.num_patches, *shape),
                initial=initial,
                name=name if shared else None,
            )

        layers = range(len(self.vit.blocks))
        return (
            state("patches", patch_size),
            state("age", initial={"fill": NEVER}),
            *(state(f"keys_values_{layer}", width) for layer in layers),
        )

    def forward(self, frame: Tensor, previous: Tensor, age: Tensor, *stored: Tensor) -> tuple[Tensor, ...]:
        """One frame.

        Args:
            frame: [B, 3, height, width].
            previous: Patches as they were last computed, [B, N, P].
            age: Frames since then, [B, N].
            stored: Keys and values of the patches in each layer, [B, N, 2 C].

        Returns:
            Logits [B, classes], centres [B, 2], and the states after this frame.
        """
        vit: Any = self.vit
        patches = self._patches(frame)
        chosen, rows = self._choose(patches, previous, age)
        if rows is not None:
            previous = keep_rows(chosen.x, previous, rows)
            age = next_age(age, rows, self.step.num_kept)
        else:
            previous, age = patches, torch.zeros_like(age)
        x = self._embedded(chosen)
        bias = None if rows is None else _mask(age, x.dtype)
        kept = []
        for layer, (block, rows_before) in enumerate(zip(vit.blocks, stored, strict=True)):
            with at_site(f"blocks.{layer}"):
                update, keys_values = _attend(block.attn, block.norm1(x), rows_before, rows, bias)
            kept.append(keys_values)
            x = x + block.drop_path1(block.ls1(update))
            x = x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))
        found = vit.forward_head(vit.norm(x[:, :1]))
        return found[:, :-2], found[:, -2:], previous, age, *kept

    def _choose(self, patches: Tensor, previous: Tensor, age: Tensor) -> tuple[TokenState, Tensor | None]:
        """The patches that are computed, and where the rows of all patches come from; None: all are computed."""
        if not self.plan:
            return TokenState(x=patches), None
        with at_site(_SITE):
            chosen = self.step(TokenState(x=patches), Signals(previous=previous, age=age))
            chosen = replace(chosen, x=mark_tensor("tokens", chosen.x))
        assert chosen.position is not None
        return chosen, rows_to_keep(chosen.position, self.num_patches)

    def _patches(self, frame: Tensor) -> Tensor:
        """Pixels of each patch in the order of the convolution's weights, [B, N, P]."""
        height, width = self.vit.patch_embed.patch_size
        batch, channels = frame.shape[:2]
        rows, columns = frame.shape[2] // height, frame.shape[3] // width
        tiles = frame.reshape(batch, channels, rows, height, columns, width).permute(0, 2, 4, 1, 3, 5)
        return tiles.reshape(batch, rows * columns, channels * height * width)

    def _embedded(self, chosen: TokenState) -> Tensor:
        """The class token and the embedded patches at their positions, [B, 1 + K, C]."""
        vit: Any = self.vit
        weight, bias = vit.patch_embed.proj.weight, vit.patch_embed.proj.bias
        tokens = vit.patch_embed.norm(nn.functional.linear(chosen.x, weight.flatten(1), bias))
        places = vit.pos_embed[0, 1:]
        tokens = tokens + (places if chosen.position is None else places[chosen.position])
        first = (vit.cls_token + vit.pos_embed[:, :1]).expand(tokens.shape[0], -1, -1)
        embedded: Tensor = vit.norm_pre(vit.pos_drop(torch.cat([first, tokens], dim=1)))
        return embedded


def _mask(age: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to the logits of the class token and of each patch, [B, 1, 1, 1 + N]: only computed ones count."""
    patches = torch.where(age < NEVER / 2, 0.0, _MASKED)
    return cast(torch.cat([torch.zeros_like(patches[:, :1]), patches], dim=1), dtype)[:, None, None]


def _attend(
    attention: Any, x: Tensor, stored: Tensor, rows: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """timm's Attention of some tokens to all: new keys and values where there are, stored ones elsewhere.

    Args:
        attention: A timm Attention.
        x: Normalised tokens, the class token first, [B, 1 + K, C].
        stored: Keys and values of all patches, [B, N, 2 C].
        rows: Where each patch's row is, of `rows_to_keep`; None: all are new.
        bias: Added to the logits of each key, [B, 1, 1, 1 + N]; None: nothing.

    Returns:
        The attention's output for x, and the keys and values of all patches.
    """
    batch, count, _ = x.shape
    heads, head_dim = attention.num_heads, attention.head_dim
    qkv = attention.qkv(x).reshape(batch, count, 3, heads * head_dim)
    new = qkv[:, :, 1:].reshape(batch, count, 2 * heads * head_dim)
    patches = new[:, 1:] if rows is None else keep_rows(new[:, 1:], cast(stored, new.dtype), rows)
    keys_values = torch.cat([new[:, :1], patches], dim=1).reshape(batch, -1, 2, heads, head_dim).permute(2, 0, 3, 1, 4)
    query = attention.q_norm(qkv[:, :, 0].reshape(batch, count, heads, head_dim).transpose(1, 2))
    logits = (query * attention.scale) @ attention.k_norm(keys_values[0]).transpose(-2, -1)
    weights = (logits if bias is None else logits + bias).softmax(dim=-1)
    out = (attention.attn_drop(weights) @ keys_values[1]).transpose(1, 2).reshape(batch, count, heads * head_dim)
    return attention.proj_drop(attention.proj(attention.norm(out))), patches


def _graph(module: CompressedModule, name: str, states: tuple[StateSpec, ...]) -> GraphSpec:
    size = moving_digits.FRAME_SIZE
    return GraphSpec(
        module=module,
        name=name,
        inputs=(TensorSpec(name="frame", shape=(BATCH_SYMBOL, 3, size, size)),),
        outputs=(
            TensorSpec(name="logits", shape=(BATCH_SYMBOL, video_vit.NUM_DIGITS)),
            TensorSpec(name="centre", shape=(BATCH_SYMBOL, 2)),
        ),
        states=states,
        examples=lambda count: held_out_frames(count, EXAMPLE_STEPS if states else 1),
    )


def held_out_frames(count: int, steps: int) -> Steps:
    """Consecutive frames of `count` test clips side by side."""
    clips = [moving_digits.make_clip("test", index, length=steps).frames for index in range(count)]
    return [{"frame": moving_digits.as_input(np.stack(frames))} for frames in zip(*clips, strict=True)]
