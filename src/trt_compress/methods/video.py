"""Methods for frames that follow each other: options and entries."""

import math
from dataclasses import dataclass

from trt_compress.errors import ConfigError
from trt_compress.methods.config import CompressorConfig, KeepRatioConfig, Method


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticReuseConfig(CompressorConfig):
    """Options of static-patch reuse.

    Attributes:
        keep_ratio: Share of the patches computed in every frame, rounded up; several make one graph each (k25, k50;
            1 is called dense), which carry on the same states.
        staleness_weight: What a frame of age adds to a patch's change (the mean difference of its pixels, which lie
            between -1 and 1), so that work that no change needs refreshes the oldest patches.
    """

    keep_ratio: float | tuple[float, ...] = 0.25
    staleness_weight: float = 1e-4

    def __post_init__(self) -> None:
        for ratio in self.ratios:
            if not 0 < ratio <= 1:
                raise ConfigError(
                    f"static_reuse: keep_ratio={ratio} is out of range; it is the share of patches computed in a "
                    "frame, above 0 and up to 1."
                )
        if len({level_name(ratio) for ratio in self.ratios}) < len(self.ratios):
            raise ConfigError(
                f"static_reuse: keep_ratio={list(self.ratios)} names a level twice; give ratios that differ by 0.01 or "
                "more."
            )
        if not 0 <= self.staleness_weight < math.inf:
            raise ConfigError(
                f"static_reuse: staleness_weight={self.staleness_weight} is out of range; give a number from 0 on."
            )

    @property
    def ratios(self) -> tuple[float, ...]:
        """The levels, one or several."""
        return self.keep_ratio if isinstance(self.keep_ratio, tuple) else (self.keep_ratio,)


def level_name(keep_ratio: float) -> str:
    """Name of the graph of a level: `k25`, or `dense` if every patch is computed."""
    return "dense" if keep_ratio == 1 else f"k{round(100 * keep_ratio)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Toc3dConfig(KeepRatioConfig):
    """Options of ToC3D.

    Attributes:
        keep_ratio: Share of the tokens of each window that pass the blocks, rounded down; one, or one a layer.
        layers: Blocks before which tokens are scored anew, ascending; every block from the first of them on is routed.
            Default: those that the model has been trained to score at.
        representative: The other tokens of a window pass as one, their weighted mean, and each receives its updates.
    """

    method = "toc3d"
    keep_ratio: float | tuple[float, ...] = 0.5
    representative: bool = True


STATIC_REUSE = Method(
    name="static_reuse",
    summary="computes the changed patches of a video frame and reuses the others' keys and values",
    source="our own simple form of gated reuse in Eventful Transformers, arXiv:2308.13494",
    differs="one choice per frame, on pixels, for all layers (there: a gate on the tokens before every layer's "
    "products); stored keys and values are attended to as they are; the age of a patch raises its score.",
    config=StaticReuseConfig,
    implementation="models.compressors.static_reuse:StaticReuse",
    provenance="paper",
)
TOC3D = Method(
    name="toc3d",
    summary="routes image tokens by the motion-aware object queries of the last frame (ToC3D)",
    source="ToC3D, arXiv:2409.00633; code DYZhang09/ToC3D 32ae961, backbones/toc3d_utils.py and toc3d_eva_vit.py",
    differs="the choice is hard in training too, and the scores are trained by the tokens that show objects; ties go "
    "to the smaller index (left open there).",
    config=Toc3dConfig,
    implementation="models.compressors.toc3d:Toc3d",
)
