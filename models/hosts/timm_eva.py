"""timm's Eva family: EVA, EVA-02, DINOv3, Perception Encoders, ViTs with rotary positions, LingBot-Vision, Sapiens2.

Queries and keys are turned by the place of their patch, in rows and columns. A place goes with its token: a patch that
is left keeps its own, and a merged one has the mean of what is in it, rounded down to a patch's place, so that the
model's own table holds its turn. Tokens in front of the patches are not turned.

Source: EVA-02, arXiv:2303.11331; DINOv3, arXiv:2508.10104; RoPE-ViT, arXiv:2403.13298; timm's Eva, whose modules are
    called as they are.
Differs: attention is written out instead of called fused (`models/layers/attention.py`); the size of the input is
    fixed.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from timm.layers.attention import AttentionRope
from timm.layers.patch_embed import PatchEmbed
from timm.layers.pos_embed_sincos import apply_rot_embed_cat
from timm.models.eva import Eva, EvaAttention, EvaBlock, EvaBlockPostNorm
from torch import Tensor, nn
from torch.nn import functional

from trt_compress.methods import CompressorSpec
from trt_compress.model_name import unsupported_vit
from trt_compress.models.compressors.passing import Taps, Tokens
from trt_compress.models.compressors.sites import (
    Asked,
    AttentionFacts,
    HostInfo,
    SpanKind,
    leading_spans,
    sites_of_layers,
)
from trt_compress.models.hosts.timm_vit import CompressedViT, check_parts, projected
from trt_compress.models.layers.attention import ATTENTION_TAPS, attention

FAMILY = "timm_eva"

_KEPT: Mapping[type[nn.Module], tuple[str, ...]] = MappingProxyType(
    {
        Eva: ("forward", "forward_features", "forward_head", "pool", "_pos_embed"),
        PatchEmbed: ("forward",),
        EvaBlock: ("forward",),
        EvaBlockPostNorm: ("forward",),
        EvaAttention: ("forward",),
        AttentionRope: ("forward",),
    }
)
"""What a subclass must not override: what this host does itself, or what has another form then."""


def check_supported(module: Eva, name: str) -> Eva:
    """Return `module`; raise UnsupportedError naming what this host cannot drive."""
    check_parts(
        module,
        name,
        base=Eva,
        blocks=nn.ModuleList,
        block=(EvaBlock, EvaBlockPostNorm),
        attention=(EvaAttention, AttentionRope),
        kept=_KEPT,
    )
    model: Any = module
    if model.patch_drop is not None:
        raise unsupported_vit(
            name, "patch_drop_rate", hint="make it without: nothing is dropped when it is not trained."
        )
    if model.rope is not None:
        shape = tuple(_turns(model).shape)
        patches = model.patch_embed.num_patches
        lengths = (2, patches) if not model.rope_mixed else (4, patches)
        if (len(shape), shape[-2]) != lengths:
            raise unsupported_vit(name, f"a table of rotary positions {list(shape)} for {patches} patches")
    return module


def host_info(module: Eva, name: str) -> HostInfo:
    """What compressors may know of `module`."""
    model: Any = module
    depth, attends = len(model.blocks), model.blocks[0].attn
    classes = int(model.cls_token is not None)
    prefix: list[tuple[SpanKind, int]] = [("class", classes), ("register", model.num_prefix_tokens - classes)]
    taps = ATTENTION_TAPS if classes else ATTENTION_TAPS - {"class_attention"}
    return HostInfo(
        name=name,
        sites=sites_of_layers(depth, taps=taps),
        depth=depth,
        num_tokens=model.patch_embed.num_patches + model.num_prefix_tokens,
        protected=leading_spans(prefix),
        width=model.embed_dim,
        attention=AttentionFacts(
            num_heads=attends.num_heads, head_size=attends.head_dim, rotary=model.rope is not None
        ),
        grid=tuple(model.patch_embed.grid_size),
    )


class CompressedEva(CompressedViT):
    """A model of timm's Eva family with compressors after the attention of its blocks.

    Args:
        module: The model; [B, channels, height, width] to [B, classes].
        specs: Compressors, in order.
        name: The model's name, for messages.
    """

    family = FAMILY

    @classmethod
    def checked(cls, module: nn.Module, name: str) -> Any:
        """The model, if it is of a form that is driven; UnsupportedError names the part that is not."""
        if not isinstance(module, Eva):
            raise unsupported_vit(name, f"model class {type(module).__name__}")
        return check_supported(module, name)

    @classmethod
    def info_of(cls, module: Any, name: str) -> HostInfo:
        """What compressors may know of it."""
        return host_info(module, name)

    def forward(self, image: Tensor) -> Tensor:
        """Logits [B, classes] of images [B, channels, height, width]."""
        tokens, taps = self.entering(image), Taps()
        turning = _Turning(self.vit, tokens)
        for number, block in enumerate(self.vit.blocks):
            attend_ = partial(_attend, block, turning, number)
            tokens = self.placed.layer(number, tokens, taps, attend_, partial(_feed, block))
        return self._head(self.vit.norm(tokens.x), tokens.size)

    def entering(self, image: Tensor) -> Tokens:
        """The tokens that enter the first block, with their places if these turn queries and keys."""
        vit = self.vit
        x = vit.norm_pre(vit._pos_embed(vit.patch_embed(image))[0])
        if vit.rope is None or not self.plan:
            return Tokens(x=x)
        rows, columns = vit.patch_embed.grid_size
        place = torch.cartesian_prod(torch.arange(rows, device=x.device), torch.arange(columns, device=x.device))
        place = functional.pad(place, (0, 0, vit.num_prefix_tokens, 0))
        return Tokens(x=x, position=place.expand(x.shape[0], -1, -1))


class _Turning:
    """Sines and cosines of the tokens that come to each block, from the model's own table of all places.

    Args:
        model: An Eva.
        tokens: Those that enter the first block.
    """

    def __init__(self, model: Any, tokens: Tokens) -> None:
        self._prefix, self._mixed = model.num_prefix_tokens, model.rope_mixed
        self._columns = model.patch_embed.grid_size[1]
        self._table = None if model.rope is None else _turns(model)
        self._entered = self._looked_up = tokens.position
        self._found: Tensor | None = None

    def at(self, layer: int, tokens: Tokens) -> Tensor | None:
        """Of the patches as timm's blocks take them, [N, 2 D], [H, N, 2 D] or with the batch in front; None: none."""
        if self._table is None:
            return None
        table = self._table[layer] if self._mixed else self._table
        if tokens.position is None or tokens.position is self._entered:
            return table
        if self._mixed or tokens.position is not self._looked_up:
            place = tokens.position[:, self._prefix :]
            index = place[..., 0] * self._columns + place[..., 1]
            if self._mixed:
                of_heads = functional.embedding(index, table.transpose(0, 1).flatten(1))
                self._found = of_heads.reshape(*index.shape, table.shape[0], -1).transpose(1, 2)
            else:
                self._found = functional.embedding(index, table)[:, None]
            self._looked_up = tokens.position
        return self._found


def _turns(model: Any) -> Tensor:
    """Sines and cosines of every patch: [N, 2 D], or of each block and head [L, H, N, 2 D]."""
    rope = model.rope
    table: Tensor = rope.get_embed() if hasattr(rope, "feat_shape") else rope.get_embed(model.patch_embed.grid_size)
    return table


def _attend(
    block: Any, turning: _Turning, layer: int, tokens: Tokens, wanted: frozenset[Asked]
) -> tuple[Tensor, Mapping[Asked, Tensor]]:
    """A block's attention."""
    turns, behind = turning.at(layer, tokens), isinstance(block, EvaBlockPostNorm)
    update, found = attend(block.attn, tokens.x if behind else block.norm1(tokens.x), turns, tokens.key_size, wanted)
    return block.drop_path1(block.norm1(update) if behind else _scaled(update, block.gamma_1)), found


def _feed(block: Any, x: Tensor) -> Tensor:
    """A block's feed-forward part."""
    if isinstance(block, EvaBlockPostNorm):
        update: Tensor = block.drop_path2(block.norm2(block.mlp(x)))
        return update
    update = block.drop_path2(_scaled(block.mlp(block.norm2(x)), block.gamma_2))
    return update


def _scaled(update: Tensor, gain: Tensor | None) -> Tensor:
    return update if gain is None else gain * update


def attend(
    module: Any, x: Tensor, turns: Tensor | None, size: Tensor | None, wanted: frozenset[Asked]
) -> tuple[Tensor, Mapping[Asked, Tensor]]:
    """timm's EvaAttention or AttentionRope with keys weighted by size, and the taps that are wanted.

    Args:
        module: One of these.
        x: Normalised tokens, [B, N, C].
        turns: Sines and cosines of those behind the prefix, as timm takes them; None: nothing is turned.
        size: Tokens each key stands for, [B, N, 1]; None: no weighting.
        wanted: Taps to compute.
    """
    gate = module.gate(x).sigmoid() if getattr(module, "gate", None) is not None else None
    query, key, value = _queries_keys_values(module, x)
    query, key = module.q_norm(query), _every_head(module.k_norm(key), module)
    plain = query, key
    if turns is not None:
        query, key = (_turned(heads, turns, module) for heads in plain)
    mixed, found = attention(
        query,
        key,
        _every_head(value, module),
        scale=module.scale,
        size=size,
        dropout=module.attn_drop.p if module.training else 0.0,
        wanted=wanted,
        unrotated=None if turns is None else plain,
    )
    return projected(module, mixed, gate), found


def _queries_keys_values(module: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[B, H, N, D], and of keys and values perhaps fewer heads."""
    batch, n, _ = x.shape
    if module.qkv is not None:
        joint = module.qkv(x)
        if getattr(module, "q_bias", None) is not None:
            joint = joint + torch.cat([module.q_bias, module.k_bias, module.v_bias])
        parts = joint.reshape(batch, n, 3, module.num_heads, module.head_dim).permute(2, 0, 3, 1, 4)
        return parts[0], parts[1], parts[2]
    query, key, value = (
        part(x).reshape(batch, n, -1, module.head_dim).transpose(1, 2)
        for part in (module.q_proj, module.k_proj, module.v_proj)
    )
    return query, key, value


def _every_head(x: Tensor, module: Any) -> Tensor:
    """Keys or values for each head of the queries, of those that several share."""
    groups = getattr(module, "num_kv_groups", 1)
    if groups == 1:
        return x
    batch, heads, n, channels = x.shape
    return x[:, :, None].expand(-1, -1, groups, -1, -1).reshape(batch, heads * groups, n, channels)


def _turned(heads: Tensor, turns: Tensor, module: Any) -> Tensor:
    """Heads [B, H, N, D] of which those behind the prefix are turned."""
    prefix, half = module.num_prefix_tokens, getattr(module, "rotate_half", False)
    more = {"half": True} if half else {}
    turned: Tensor = apply_rot_embed_cat(heads[:, :, prefix:], turns, **more).to(heads.dtype)
    return torch.cat([heads[:, :, :prefix], turned], dim=2) if prefix else turned


def attach(module: nn.Module, specs: Sequence[CompressorSpec], *, name: str = "the model") -> CompressedEva:
    """Put compressors into a model of timm's Eva family.

    Args:
        module: The model; it is called, never changed.
        specs: Compressors, in order.
        name: The model's name, for messages.

    Returns:
        A module with the same input and output.

    Raises:
        UnsupportedError: the model is not of a form this host drives; the message names the part.
        ConfigError: a compressor does not fit the model.
    """
    return CompressedEva(module, specs, name=name)
