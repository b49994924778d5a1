"""Methods for the patches of an image: options and entries."""

from dataclasses import dataclass
from typing import Literal

from trt_compress.errors import ConfigError
from trt_compress.methods.artifact import ArtifactFile, ArtifactForm
from trt_compress.methods.config import CompressorConfig, KeepRatioConfig, Method, check_layer


@dataclass(frozen=True, slots=True, kw_only=True)
class TomeConfig(CompressorConfig):
    """Options of ToMe.

    Attributes:
        num_merged: Tokens merged in every layer (their mean, if the schedule is not constant), or one count a layer.
        schedule: How one count spreads over the layers: constant, decreasing (2 * num_merged to 0) or increasing.
        proportional_attention: Attention weighs a merged token by the number of tokens in it. Off suits
            off-the-shelf MAE models.
        over_limit: More merges than a layer allows ((tokens - prefix) // 2) are an "error", or a "clamp" cuts them.
    """

    num_merged: int | tuple[int, ...]
    schedule: Literal["constant", "decreasing", "increasing"] = "constant"
    proportional_attention: bool = True
    over_limit: Literal["error", "clamp"] = "error"

    def __post_init__(self) -> None:
        counts = (self.num_merged,) if isinstance(self.num_merged, int) else self.num_merged
        if any(count < 0 for count in counts):
            raise ConfigError(f"tome: num_merged={self.num_merged} is negative; give 0 or more tokens to merge.")
        if isinstance(self.num_merged, tuple) and self.schedule != "constant":
            raise ConfigError(
                f"tome: schedule={self.schedule} needs one num_merged, not a list; leave one of them out."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class EvitConfig(KeepRatioConfig):
    """Options of EViT.

    Attributes:
        fuse: Add one token that sums the dropped patches, weighted by their attention.
    """

    method = "evit"
    fuse: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class AvgPoolConfig(CompressorConfig):
    """Options of average pooling.

    Attributes:
        stride: Neighbouring patches that become one; window and stride are the same.
        layer: Layer after whose attention patches are pooled; default: at 1/4 of the depth.
    """

    stride: int = 2
    layer: int | None = None

    def __post_init__(self) -> None:
        if self.stride < 1:
            raise ConfigError(f"avg_pool: stride={self.stride} is out of range; give 1 or more.")
        check_layer("avg_pool", self.layer)


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomConfig(KeepRatioConfig):
    """Options of random dropping.

    Attributes:
        seed: Which patches; the choice is a constant of the graph, the same for every input.
    """

    method = "random"
    seed: int = 0

    def __post_init__(self) -> None:
        KeepRatioConfig.__post_init__(self)
        if not 0 <= self.seed < 2**31:
            raise ConfigError(f"random: seed={self.seed} is out of range; give 0 to {2**31 - 1}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class VtcClsConfig(CompressorConfig):
    """Options of VTC-CLS.

    Attributes:
        keep_ratio: Share of the patches kept, rounded up.
        num_kept: Patches kept; default: what keep_ratio says.
        first_layer: First layer whose class attention counts; default: at half the depth (12 of 24).
        last_layer: Last layer that counts; patches are dropped after its attention. Default: the last but one, or
            behind a tower the last that is run.
        behind: Patches are dropped behind a tower of images instead, as in the paper.
    """

    keep_ratio: float = 0.5
    num_kept: int | None = None
    first_layer: int | None = None
    last_layer: int | None = None
    behind: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.keep_ratio <= 1:
            raise ConfigError(
                f"vtc_cls: keep_ratio={self.keep_ratio} is out of range; it is the share of tokens kept, above 0 and "
                "up to 1."
            )
        if self.num_kept is not None and self.num_kept < 1:
            raise ConfigError(f"vtc_cls: num_kept={self.num_kept} is out of range; give 1 or more patches to keep.")
        for name, layer in (("first_layer", self.first_layer), ("last_layer", self.last_layer)):
            if layer is not None and layer < 0:
                raise ConfigError(f"vtc_cls: {name}={layer} is out of range; layers count from 0.")
        if self.first_layer is not None and self.last_layer is not None and self.first_layer > self.last_layer:
            raise ConfigError(
                f"vtc_cls: first_layer={self.first_layer} is behind last_layer={self.last_layer}; give at most "
                f"{self.last_layer}."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffRateConfig(CompressorConfig):
    """Options of DiffRate.

    Attributes:
        table: Tokens that are left in each layer as the authors published them, for DeiT-S at 2.9 or DeiT-B at 11.5
            GFLOPs; both for 12 layers and 197 tokens.
        prune_kept: Instead of a table: tokens that pruning leaves in each layer, the class token counted; a list with
            one number a layer.
        merge_kept: With it: of these, tokens that merging leaves.
        flops_ratio: Instead of both: FLOPs of the blocks, as a share of those without compression, for which the
            numbers were searched, or are to be.
        schedule: With it: an artifact with the numbers of that search.
    """

    table: Literal["deit_s", "deit_b"] | None = None
    prune_kept: tuple[int, ...] | None = None
    merge_kept: tuple[int, ...] | None = None
    flops_ratio: float | None = None
    schedule: ArtifactFile | None = None

    def __post_init__(self) -> None:
        pruned, merged = self.prune_kept, self.merge_kept
        ways = sum(way is not None for way in (self.table, pruned, self.flops_ratio))
        if ways != 1 or (pruned is None) != (merged is None) or (self.schedule and self.flops_ratio is None):
            raise ConfigError(
                "diffrate: give table=deit_s or deit_b, or else both lists prune_kept=[…] and merge_kept=[…] with one "
                "number a layer, or flops_ratio=… and schedule=FILE of a search (`trt-compress calibrate`)."
            )
        if self.flops_ratio is not None and not 0 < self.flops_ratio < 1:
            raise ConfigError(
                f"diffrate: flops_ratio={self.flops_ratio} is out of range; it is a share of the FLOPs of the blocks, "
                "above 0 and below 1."
            )
        if pruned is None or merged is None:
            return
        if len(pruned) != len(merged):
            raise ConfigError(
                f"diffrate: prune_kept lists {len(pruned)} layers and merge_kept {len(merged)}; give as many in both."
            )
        before = None
        for layer, (left, behind) in enumerate(zip(pruned, merged, strict=True)):
            if not 2 <= behind <= left or (before is not None and left > before):
                raise ConfigError(
                    f"diffrate: at layer {layer} prune_kept={left} and merge_kept={behind}"
                    f"{'' if before is None else f' behind {before}'}; the numbers never rise from one layer to the "
                    "next, merging leaves at most what pruning leaves, and 2 or more tokens stay."
                )
            before = behind

    @property
    def kept(self) -> tuple[tuple[int, int], ...]:
        """Tokens that pruning and then merging leave, for each layer, of a table or lists."""
        if self.table is not None:
            return tuple(zip(*_DIFFRATE_TABLES[self.table], strict=True))
        assert self.prune_kept is not None and self.merge_kept is not None
        return tuple(zip(self.prune_kept, self.merge_kept, strict=True))


_DIFFRATE_TABLES = {
    "deit_s": (
        (197, 196, 190, 168, 150, 139, 129, 117, 99, 78, 58, 3),
        (197, 194, 176, 156, 141, 133, 121, 107, 88, 64, 56, 3),
    ),
    "deit_b": (
        (197, 197, 197, 188, 170, 154, 139, 123, 107, 72, 43, 3),
        (197, 197, 192, 178, 158, 145, 127, 111, 94, 50, 35, 3),
    ),
}
"""Tokens that pruning leaves in each layer, and merging, as the authors' compression_rate.json has them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DynamicVitConfig(KeepRatioConfig):
    """Options of DynamicViT.

    Attributes:
        keep_ratio: Share of the patches kept at the first of the layers, to the power of 2 at the second and so on; or
            for each layer the share of all patches; rounded down.
        layers: Layers in front of which patches are dropped, ascending; default: at 1/4, 2/4 and 3/4 of the depth (3,
            6, 9 of 12).
        predictor: An artifact with the trained heads that say which patches are kept, one for each of the layers.
    """

    method = "dynamicvit"
    predictor: ArtifactFile | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenTransformConfig(KeepRatioConfig):
    """Options of Token Transforming.

    Attributes:
        temperature: Of the softmax of cosines that spreads each patch over the kept ones; near 0 it goes to one alone.
        spread: Kept patches that each goes to, those of the most similar keys; 0: all of them.
    """

    method = "token_transform"
    temperature: float = 0.1
    spread: int = 3

    def __post_init__(self) -> None:
        KeepRatioConfig.__post_init__(self)
        if not 1e-4 <= self.temperature <= 1e4:
            raise ConfigError(
                f"token_transform: temperature={self.temperature} is out of range; give 0.0001 to 10000, about 0.1 to "
                "0.3 for a spread over several patches."
            )
        if not 0 <= self.spread <= 16:
            raise ConfigError(
                f"token_transform: spread={self.spread} is out of range; give 1 to 16 kept patches, or 0 for all of "
                "them."
            )


TOME = Method(
    name="tome",
    summary="merges the most similar tokens of every layer (ToMe)",
    source="ToMe, arXiv:2210.09461; code facebookresearch/ToMe af95e4b, tome/patch/timm.py",
    differs="too many merges are refused unless over_limit=clamp (cut silently there); register tokens are protected "
    "like class tokens; a mean-pooled head weighs tokens by size.",
    config=TomeConfig,
    implementation="models.compressors.tome:Tome",
)
EVIT = Method(
    name="evit",
    summary="keeps the patches the class token attends to, fuses the rest (EViT)",
    source="EViT, arXiv:2202.07800; code youweiliang/evit 5ca95a7, evit.py",
    differs="ties go to the smaller index (left open there); distillation and register tokens are kept like the class "
    "token (the source has none).",
    config=EvitConfig,
    implementation="models.compressors.evit:Evit",
)
AVG_POOL = Method(
    name="avg_pool",
    summary="averages neighbouring patches at one layer (LLaVolta's pooling)",
    source="LLaVolta, arXiv:2406.20092; code Beckschen/LLaVolta 31ec151, visual_avg_pool1d",
    differs="works on the patches of an encoder as well as on image spans of a decoder (pool_spans); a last window "
    "that is not full is averaged, not dropped; merged tokens count by their size.",
    config=AvgPoolConfig,
    implementation="models.compressors.avg_pool:AvgPool",
)
RANDOM = Method(
    name="random",
    summary="keeps random patches: the floor that a method must beat",
    source="none: a baseline",
    differs="nothing: there is no original.",
    config=RandomConfig,
    implementation="models.compressors.random_drop:RandomDrop",
)
VTC_CLS = Method(
    name="vtc_cls",
    summary="keeps the patches the class token attends to in several layers together (VTC-CLS)",
    source="VTC-CLS, arXiv:2412.05819; code THU-MIG/VTC-CLS e41ac9b, clip_encoder.py",
    differs="patches leave before the last layer, unless behind=true puts it behind the tower as there; the class "
    "token stays; any batch (one there); of equal scores the smaller index is kept (left open there).",
    config=VtcClsConfig,
    implementation="models.compressors.vtc_cls:VtcCls",
)
TOKEN_TRANSFORM = Method(
    name="token_transform",
    summary="spreads each patch over several of those the class token attends to (Token Transforming)",
    source="Token Transforming, arXiv:2506.05709; no code is published",
    differs="a reconstruction from the paper, which says that the matrix is dense but not how it is made: the layers, "
    "the choice by class attention, and the softmax of cosines between keys are ours; tokens in front of the patches "
    "stay as they are; of equal attention the smaller index is kept.",
    config=TokenTransformConfig,
    implementation="models.compressors.token_transform:TokenTransform",
    provenance="reconstruction",
)
DIFFRATE = Method(
    name="diffrate",
    summary="prunes and merges by published, searched or given numbers for every layer (DiffRate)",
    source="DiffRate, arXiv:2305.17997; code OpenGVLab/DiffRate 91ae3e3, DiffRate/patch/deit.py and merge.py",
    differs="the search compares with the outputs of the whole model, not with labels, and starts from even numbers; a "
    "layer that removes nothing does not re-sort; "
    "a size never falls to 0 (a negative cosine makes it negative there, and attention NaN); distillation and register "
    "tokens are kept like the class token; of equal scores the smaller index is kept.",
    config=DiffRateConfig,
    implementation="models.compressors.diffrate:DiffRate",
    artifacts={
        "schedule": ArtifactForm(
            summary="prune_kept and merge_kept, whole numbers, one for each layer",
            settings=("flops_ratio",),
        )
    },
)
DYNAMICVIT = Method(
    name="dynamicvit",
    summary="keeps the patches that trained heads choose, in front of a few layers (DynamicViT)",
    source="DynamicViT, arXiv:2106.02034; code raoyongming/DynamicViT 1322e62, models/dyvit.py",
    differs="for inference: training draws its choice at random; any number of patches (196 there); distillation and "
    "register tokens are kept like the class token; of equal scores the smaller index is kept.",
    config=DynamicVitConfig,
    implementation="models.compressors.dynamicvit:DynamicVit",
    artifacts={
        "predictor": ArtifactForm(
            summary="in_conv and out_conv of each head, as the authors' score_predictor has them",
        )
    },
)
