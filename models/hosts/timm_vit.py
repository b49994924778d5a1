"""timm Vision Transformers: plain, distilled, with register tokens, CLIP-style pre-norm; token, avg and avgmax pooling.

Source: An Image is Worth 16x16 Words, arXiv:2010.11929; DeiT, arXiv:2012.12877; timm's VisionTransformer, whose modules
are called as they are.
Differs: attention is written as two matrix products and a softmax instead of a fused call, so that it exports with a
bias and a dynamic batch, and so that a row of it can be read.
"""

import typing
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from timm.layers.attention import Attention
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from trt_compress.methods import CompressorSpec
from trt_compress.model_name import POOLINGS, unsupported_vit
from trt_compress.models.compressors.base import Compressor, HostInfo, Signal, Signals, TokenState
from trt_compress.models.compressors.compose import place_compressors
from trt_compress.models.hosts.base import BATCH_SYMBOL, CompressedModule, GraphSpec, Steps, TensorSpec
from trt_compress.plugins.operator import at_site, cast, mark_tensor

FAMILY = "timm_vit"


def attach(module: nn.Module, specs: Sequence[CompressorSpec], *, name: str = "the model") -> "CompressedViT":
    """Put compressors into a timm Vision Transformer.

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
    return CompressedViT(module, specs, name=name)


def check_supported(module: nn.Module, name: str) -> VisionTransformer:
    """Return `module` as a VisionTransformer; raise UnsupportedError naming what this host cannot drive."""

    if type(module) not in (VisionTransformer, VisionTransformerDistilled):
        raise unsupported_vit(name, f"model class {type(module).__name__}")
    assert isinstance(module, VisionTransformer)
    for part in module.blocks:
        if type(part) is not Block:
            raise unsupported_vit(name, f"block type {type(part).__name__}")
        if type(part.attn) is not Attention:
            raise unsupported_vit(name, f"attention type {type(part.attn).__name__}")
    if module.dynamic_img_size:
        raise unsupported_vit(name, "dynamic_img_size")
    if module.global_pool not in POOLINGS:
        raise unsupported_vit(name, f"global_pool={module.global_pool!r}")
    return module


def host_info(module: VisionTransformer, name: str) -> HostInfo:
    """What compressors may know of `module`."""
    return HostInfo(
        name=name,
        sites=frozenset({"after_attention"}),
        depth=len(module.blocks),
        num_tokens=module.patch_embed.num_patches + module.num_prefix_tokens,
        num_prefix=module.num_prefix_tokens,
        has_class_token=module.has_class_token,
    )


def classifier_graph(
    module: nn.Module,
    specs: Sequence[CompressorSpec],
    *,
    name: str,
    input_shape: Sequence[int],
    examples: Callable[[int], Steps] | None = None,
) -> GraphSpec:
    """The one graph of an image model; `input_shape` is [channels, height, width].

    It takes `image` and gives `logits`, or `features` if the model has no classifier.
    """
    compressed = attach(module, specs, name=name).eval()
    classes = compressed.vit.num_classes
    width = classes or compressed.vit.num_features
    return GraphSpec(
        module=compressed,
        inputs=(TensorSpec(name="image", shape=(BATCH_SYMBOL, *input_shape)),),
        outputs=(TensorSpec(name="logits" if classes else "features", shape=(BATCH_SYMBOL, width)),),
        examples=examples,
    )


class CompressedViT(CompressedModule):
    """A timm Vision Transformer with compressors after the attention of its blocks.

    Args:
        module: The model; [B, channels, height, width] to [B, classes].
        specs: Compressors, in order.
        name: The model's name, for messages.
    """

    def __init__(self, module: nn.Module, specs: Sequence[CompressorSpec], *, name: str = "the model") -> None:
        super().__init__()
        self.vit = check_supported(module, name)
        self.info = host_info(self.vit, name)
        self.steps, self.plan = place_compressors(specs, self.info)
        self.training = module.training

    def detach(self) -> nn.Module:
        """The model itself, as it was before."""
        return self.vit

    def forward(self, image: Tensor) -> Tensor:
        """Logits [B, classes] of images [B, channels, height, width]."""
        vit: Any = self.vit
        x = vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(image))))
        state, proportional = TokenState(x=x), False
        for layer, block in enumerate(vit.blocks):
            steps = self._steps(layer)
            wanted = frozenset[Signal]().union(*(step.signals for step in steps))
            size = state.size if proportional else None
            update, signals = attend(block.attn, block.norm1(state.x), size, wanted)
            x = state.x + block.drop_path1(block.ls1(update))
            state = TokenState(x=x, size=state.size)
            for step in steps:
                with at_site(f"blocks.{layer}"):
                    state = step(state, signals)
                    state = TokenState(x=mark_tensor("tokens", state.x), size=state.size)
                proportional = proportional or step.proportional_attention
            state = TokenState(
                x=state.x + block.drop_path2(block.ls2(block.mlp(block.norm2(state.x)))), size=state.size
            )
        return self._head(vit.norm(state.x), state.size)

    def _steps(self, layer: int) -> list[Compressor]:
        key = str(layer)
        return [*typing.cast(Iterable[Compressor], self.steps[key])] if key in self.steps else []

    def _head(self, x: Tensor, size: Tensor | None) -> Tensor:
        vit: Any = self.vit
        if size is None or vit.global_pool == "token":
            logits: Tensor = vit.forward_head(x)
            return logits
        start = 0 if vit.pool_include_prefix else vit.num_prefix_tokens
        x, size = x[:, start:], cast(size[:, start:], x.dtype)
        pooled = (x * size).sum(dim=1) / size.sum(dim=1)
        if vit.global_pool == "avgmax":
            pooled = 0.5 * (x.amax(dim=1) + pooled)
        head: Tensor = vit.head(vit.head_drop(vit.fc_norm(pooled)))
        return head


def attend(attention: Any, x: Tensor, size: Tensor | None, wanted: frozenset[Signal]) -> tuple[Tensor, Signals]:
    """timm's Attention with keys weighted by size, and the signals that are wanted.

    Args:
        attention: A timm Attention.
        x: Normalised tokens, [B, N, C].
        size: Tokens each key stands for, [B, N, 1]; None: no weighting.
        wanted: Signals to compute.
    """
    batch, n, _ = x.shape
    heads, head_dim = attention.num_heads, attention.head_dim
    gate = attention.gate(x).sigmoid() if getattr(attention, "gate", None) is not None else None
    qkv = attention.qkv(x).reshape(batch, n, 3, heads, head_dim).permute(2, 0, 3, 1, 4)
    q, k, v = qkv[0], qkv[1], qkv[2]
    q, k = attention.q_norm(q), attention.k_norm(k)
    logits = (q * attention.scale) @ k.transpose(-2, -1)
    if size is not None:
        logits = logits + cast(size.log(), logits.dtype).reshape(batch, 1, 1, n)
    weights = logits.softmax(dim=-1)
    out = (attention.attn_drop(weights) @ v).transpose(1, 2).reshape(batch, n, heads * head_dim)
    out = attention.norm(out)
    if gate is not None:
        out = out * gate
    signals = Signals(
        keys=k.mean(dim=1) if "keys" in wanted else None,
        class_attention=weights[:, :, 0].mean(dim=1) if "class_attention" in wanted else None,
    )
    return attention.proj_drop(attention.proj(out)), signals
