"""timm Vision Transformers: plain, distilled, with register tokens, CLIP-style pre-norm; token, avg and avgmax pooling.

Source: An Image is Worth 16x16 Words, arXiv:2010.11929; DeiT, arXiv:2012.12877; timm's VisionTransformer, whose modules
are called as they are.
Differs: attention is written out instead of called fused (`models/layers/attention.py`).
"""

import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar

from timm.layers.attention import Attention
from timm.layers.patch_embed import PatchEmbed
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from trt_compress.errors import ConfigError
from trt_compress.format.graphs import BATCH_SYMBOL
from trt_compress.methods import CompressorSpec
from trt_compress.model_name import POOLINGS, unsupported_vit
from trt_compress.models.compressors.passing import Taps, Tokens
from trt_compress.models.compressors.place import place_one
from trt_compress.models.compressors.sites import (
    Asked,
    AttentionFacts,
    HostInfo,
    SpanKind,
    TapKind,
    leading_spans,
    sites_of_layers,
)
from trt_compress.models.hosts.base import (
    CompressedModule,
    GraphSpec,
    Layers,
    LoadedHost,
    Steps,
    TensorSpec,
    WeightsInfo,
)
from trt_compress.models.layers.attention import ATTENTION_TAPS, attention, merge_heads
from trt_compress.models.layers.first import first_layers
from trt_compress.plugins.operator import cast

FAMILY = "timm_vit"

_KEPT: Mapping[type[nn.Module], tuple[str, ...]] = MappingProxyType(
    {
        VisionTransformer: ("forward", "forward_features", "forward_head", "pool"),
        VisionTransformerDistilled: ("forward", "forward_features", "forward_head", "pool"),
        PatchEmbed: ("forward",),
        Block: ("forward",),
        Attention: ("forward",),
    }
)
"""What a subclass must not override: what this host does itself, or what has another form then."""


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
    """Return `module` as a VisionTransformer; raise UnsupportedError naming what this host cannot drive.

    A subclass is driven if it overrides nothing that this host does itself or relies on: see `_KEPT`.
    """
    if not isinstance(module, VisionTransformer):
        inside = next((at for at, part in module.named_modules() if isinstance(part, VisionTransformer)), None)
        hint = f"it holds a {VisionTransformer.__name__} as '{inside}': give that one alone." if inside else None
        raise unsupported_vit(name, f"model class {type(module).__name__}", hint=hint)
    base = VisionTransformerDistilled if isinstance(module, VisionTransformerDistilled) else VisionTransformer
    check_parts(module, name, base=base, blocks=nn.Sequential, block=(Block,), attention=(Attention,), kept=_KEPT)
    return module


def check_parts(
    module: nn.Module,
    name: str,
    *,
    base: type[nn.Module],
    blocks: type[nn.Module],
    block: Sequence[type[nn.Module]],
    attention: Sequence[type[nn.Module]],
    kept: Mapping[type[nn.Module], tuple[str, ...]],
) -> None:
    """Refuse a model with a part that is driven in another form than it has.

    Args:
        module: A `base`.
        name: Its name, for messages.
        base, blocks: What the model, and its row of blocks, must be.
        block, attention: Of which one each block, and its attention, must be.
        kept: What a subclass of each must not override.
    """
    _check_kept(module, (base,), kept, name, "model class")
    vit = typing.cast(Any, module)
    _check_kept(vit.patch_embed, (PatchEmbed,), kept, name, "patch embedding")
    if type(vit.blocks) is not blocks:
        raise unsupported_vit(name, f"a {type(vit.blocks).__name__} of blocks")
    bypassed: dict[str, nn.Module] = {"the model": vit, "blocks": vit.blocks}
    for layer, part in enumerate(typing.cast(Iterable[Any], vit.blocks)):
        _check_kept(part, block, kept, name, "block type")
        _check_kept(part.attn, attention, kept, name, "attention type")
        bypassed |= {f"blocks.{layer}": part, f"blocks.{layer}.attn": part.attn}
    for place, part in bypassed.items():
        if part._forward_hooks or part._forward_pre_hooks:
            raise unsupported_vit(name, f"a forward hook on {place}")
    if vit.dynamic_img_size or vit.patch_embed.img_size is None:
        hint = "make it with dynamic_img_size=False and an img_size: its weights are the same."
        raise unsupported_vit(name, "dynamic_img_size", hint=hint)
    if vit.global_pool not in POOLINGS:
        raise unsupported_vit(name, f"global_pool={vit.global_pool!r}")


def _check_kept(
    part: nn.Module,
    bases: Sequence[type[nn.Module]],
    kept: Mapping[type[nn.Module], tuple[str, ...]],
    name: str,
    what: str,
) -> None:
    """Refuse a part that is none of `bases`, or overrides a method of it that this host does itself."""
    kind = type(part)
    base = next((base for base in bases if isinstance(part, base)), None)
    if base is None:
        raise unsupported_vit(name, f"{what} {kind.__name__}")
    for method in kept[base]:
        if method in vars(part):
            raise unsupported_vit(name, f"a method {method} that is set on one {kind.__name__}")
        if getattr(kind, method) is not getattr(base, method):
            if kind.__module__.partition(".")[0] == "timm":
                raise unsupported_vit(name, f"{what} {kind.__name__}")
            raise unsupported_vit(name, f"the method {method} that {kind.__name__} overrides")


def host_info(module: VisionTransformer, name: str) -> HostInfo:
    """What compressors may know of `module`."""
    vit = typing.cast(Any, module)
    return HostInfo(
        name=name,
        sites=sites_of_layers(len(module.blocks), taps=_taps(module)),
        depth=len(module.blocks),
        num_tokens=module.patch_embed.num_patches + module.num_prefix_tokens,
        protected=leading_spans(_prefix(module)),
        width=module.embed_dim,
        attention=AttentionFacts(num_heads=vit.blocks[0].attn.num_heads, head_size=vit.blocks[0].attn.head_dim),
        grid=tuple(module.patch_embed.grid_size),
    )


def _prefix(module: VisionTransformer) -> list[tuple[SpanKind, int]]:
    """Tokens in front of the patches, in their order: class, distillation, registers."""
    classes = int(module.has_class_token)
    distilled = int(isinstance(module, VisionTransformerDistilled))
    return [
        ("class", classes),
        ("distillation", distilled),
        ("register", module.num_prefix_tokens - classes - distilled),
    ]


def _taps(module: VisionTransformer) -> frozenset[TapKind]:
    """What its attention gives; a row of a class token is there only if there is one."""
    return ATTENTION_TAPS if module.has_class_token else ATTENTION_TAPS - {"class_attention"}


def vit_host(
    module: nn.Module,
    *,
    source: str,
    weights: WeightsInfo,
    options: Mapping[str, Any] = MappingProxyType({}),
    form: type["CompressedViT"] | None = None,
) -> LoadedHost:
    """A ViT with its weights as a host.

    Args:
        module: The model, in eval mode.
        source: Its name, for messages.
        weights: Where its weights come from.
        options: `mean` and `std` of pixels from 0 to 1, where they are not those of timm's configuration of the model.
        form: How models of its class are driven; None: `CompressedViT`.

    Raises:
        ConfigError: mean or std has another number of values than the input has channels.
        UnsupportedError: see `check_supported`.
    """
    form = CompressedViT if form is None else form
    vit = form.checked(module, source)
    shape = (vit.patch_embed.proj.in_channels, *vit.patch_embed.img_size)
    preprocess, note = _preprocess(vit, source, options, shape[0])
    if note:
        weights = replace(weights, provenance="; ".join(filter(None, (weights.provenance, note))))
    return LoadedHost(
        source=source,
        family=form.family,
        module=vit,
        weights=weights,
        attach=lambda specs: (_graph_of(form(vit, specs, name=source).eval(), shape, None),),
        preprocess=preprocess,
        postprocess={"kind": "classification", "classes": vit.num_classes} if vit.num_classes else {"kind": "raw"},
    )


def _preprocess(
    vit: nn.Module, source: str, options: Mapping[str, Any], channels: int
) -> tuple[dict[str, Any], str | None]:
    """How pictures become the input, for the manifest, and a remark where that is not simply the model's own."""
    config: Mapping[str, Any] = getattr(vit, "pretrained_cfg", None) or {}
    found, note = {}, None
    for name in ("mean", "std"):
        values = options.get(name) or config.get(name)
        if values and len(values) not in (1, channels):
            if name in options:
                raise ConfigError(
                    f"{source}: {name} has {len(values)} values and the input {channels} "
                    f"channel{'s'[: channels > 1]}; give one for each, or one for all."
                )
            mean = sum(values) / len(values)
            if len(set(values)) > 1:
                note = "mean and std of the one channel are the averages of timm's three; ?mean=…&std=… sets them"
            values = (mean,)
        if values:
            found[name] = list(values) * (channels if len(values) == 1 else 1)
    if channels not in (1, 3):
        return {
            "kind": "tensors",
            **found,
            "reason": f"pictures have 1 or 3 channels, and the input has {channels}",
        }, None
    if len(found) < 2:
        reason = "mean and std of the pixels are not known: export again with ?mean=…&std=… behind the model's name"
        return {"kind": "tensors", **found, "reason": reason}, reason.partition(":")[0]
    return {
        "kind": "image",
        "layout": "NCHW",
        "scale": 1 / 255,
        **found,
        "interpolation": config.get("interpolation", "bicubic"),
        "crop": config.get("crop_pct"),
    }, note


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
    compressed = CompressedViT(module, specs, name=name).eval()
    return _graph_of(compressed, input_shape, examples)


def _graph_of(
    compressed: "CompressedViT", input_shape: Sequence[int], examples: Callable[[int], Steps] | None
) -> GraphSpec:
    classes, blocks = compressed.vit.num_classes, len(compressed.vit.blocks)
    width = classes or compressed.vit.num_features
    return GraphSpec(
        module=compressed,
        inputs=(TensorSpec(name="image", shape=(BATCH_SYMBOL, *input_shape)),),
        outputs=(TensorSpec(name="logits" if classes else "features", shape=(BATCH_SYMBOL, width)),),
        examples=examples,
        layers=Layers(
            count=blocks, first=lambda layers: _graph_of(compressed.first_blocks(layers), input_shape, examples)
        ),
    )


class CompressedViT(CompressedModule):
    """A timm Vision Transformer with compressors after the attention of its blocks.

    Args:
        module: The model; [B, channels, height, width] to [B, classes].
        specs: Compressors, in order.
        name: The model's name, for messages.
    """

    family: ClassVar[str] = FAMILY

    @classmethod
    def checked(cls, module: nn.Module, name: str) -> Any:
        """The model, if it is of a form that is driven; UnsupportedError names the part that is not."""
        return check_supported(module, name)

    @classmethod
    def info_of(cls, module: Any, name: str) -> HostInfo:
        """What compressors may know of it."""
        return host_info(module, name)

    def __init__(self, module: nn.Module, specs: Sequence[CompressorSpec], *, name: str = "the model") -> None:
        super().__init__()
        self.vit = self.checked(module, name)
        self.info = self.info_of(self.vit, name)
        self.placed = place_one(specs, self.info)
        self.plan = self.placed.sites
        self.training = module.training

    def detach(self) -> nn.Module:
        """The model itself, as it was before."""
        module: nn.Module = self.vit
        return module

    def first_blocks(self, count: int) -> "CompressedViT":
        """The same without its last blocks, and with what acts at those that are left; its tensors are these."""
        short = first_layers(self, ["vit.blocks"], count)
        short.plan = tuple(site for site in self.plan if site.layer < count)
        return short

    def forward(self, image: Tensor) -> Tensor:
        """Logits [B, classes] of images [B, channels, height, width]."""
        tokens, taps = self.entering(image), Taps()
        for number, block in enumerate(self.vit.blocks):
            tokens = self.placed.layer(number, tokens, taps, partial(_attend, block), partial(_feed, block))
        return self._head(self.vit.norm(tokens.x), tokens.size)

    def entering(self, image: Tensor) -> Tokens:
        """The tokens that enter the first block."""
        vit = self.vit
        return Tokens(x=vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(image)))))

    def _head(self, x: Tensor, size: Tensor | None) -> Tensor:
        vit: Any = self.vit
        if size is None or vit.global_pool == "token":
            logits: Tensor = vit.forward_head(x)
            return logits
        start = 0 if getattr(vit, "pool_include_prefix", False) else vit.num_prefix_tokens
        x, size = x[:, start:], cast(size[:, start:], x.dtype)
        pooled = (x * size).sum(dim=1) / size.sum(dim=1)
        if vit.global_pool == "avgmax":
            pooled = 0.5 * (x.amax(dim=1) + pooled)
        head: Tensor = vit.head(vit.head_drop(vit.fc_norm(pooled)))
        return head


def _attend(block: Any, tokens: Tokens, wanted: frozenset[Asked]) -> tuple[Tensor, Mapping[Asked, Tensor]]:
    """A block's attention."""
    update, found = attend(block.attn, block.norm1(tokens.x), tokens.key_size, wanted)
    return block.drop_path1(block.ls1(update)), found


def _feed(block: Any, x: Tensor) -> Tensor:
    """A block's feed-forward part."""
    update: Tensor = block.drop_path2(block.ls2(block.mlp(block.norm2(x))))
    return update


def attend(
    module: Any, x: Tensor, size: Tensor | None, wanted: frozenset[Asked]
) -> tuple[Tensor, Mapping[Asked, Tensor]]:
    """timm's Attention with keys weighted by size, and the taps that are wanted.

    Args:
        module: A timm Attention.
        x: Normalised tokens, [B, N, C].
        size: Tokens each key stands for, [B, N, 1]; None: no weighting.
        wanted: Taps to compute.
    """
    batch, n, _ = x.shape
    heads, head_dim = module.num_heads, module.head_dim
    gate = module.gate(x).sigmoid() if getattr(module, "gate", None) is not None else None
    qkv = module.qkv(x).reshape(batch, n, 3, heads, head_dim).permute(2, 0, 3, 1, 4)
    q, k, v = qkv[0], qkv[1], qkv[2]
    mixed, found = attention(
        module.q_norm(q),
        module.k_norm(k),
        v,
        scale=module.scale,
        size=size,
        dropout=module.attn_drop.p if module.training else 0.0,
        wanted=wanted,
    )
    return projected(module, mixed, gate), found


def projected(module: Any, mixed: Tensor, gate: Tensor | None) -> Tensor:
    """What attention gives, of what its heads received [B, H, N, D]; `gate` [B, N, C] weighs its channels."""
    out = module.norm(merge_heads(mixed))
    if gate is not None:
        out = out * gate
    update: Tensor = module.proj_drop(module.proj(out))
    return update
