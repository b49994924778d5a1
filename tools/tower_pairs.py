"""Which methods go with which towers of images, and what is said where one does not: by placing each in each."""

from collections.abc import Mapping
from types import MappingProxyType

from trt_compress.errors import ConfigError, UnsupportedError
from trt_compress.methods import parse_spec
from trt_compress.models.compressors.place import GraphPlan, place_one
from trt_compress.models.compressors.sites import (
    ENCODER_OUTPUT,
    PICTURES,
    AttentionFacts,
    HostInfo,
    Site,
    SpanKind,
    TapKind,
    layer_sites,
    leading_spans,
)
from trt_compress.models.layers.attention import ATTENTION_TAPS

SPECS = (
    "tome:num_merged=8",
    "evit",
    "vtc_cls",
    "token_transform",
    "avg_pool",
    "random",
    "visionzip",
    "prumerge",
    "prumerge_plus",
    "token_corr",
    "hiprune",
    "divprune",
    "cdpruner",
    "recoverable",
    "globalcom2",
    "dart",
    "fourier",
    "pixel_shuffle",
)
"""Methods for patches of images, with what they cannot do without."""


def _tower(
    prefix: tuple[tuple[SpanKind, int], ...],
    *,
    output: bool = True,
    rotary: bool = False,
    texts: bool = False,
    crops: tuple[int, int] | None = None,
) -> HostInfo:
    """A tower of 24 layers and 24 x 24 patches with these tokens in front."""
    depth, side = 24, 24
    taps = ATTENTION_TAPS if prefix else ATTENTION_TAPS - {"class_attention"}
    behind = frozenset[TapKind]({"text_space", "texts"} if texts else ())
    out: tuple[Site, ...] = (Site(kind=ENCODER_OUTPUT, taps=behind),) if output else ()
    if crops is not None:
        size = frozenset[TapKind]({"picture_size"})
        out += (Site(kind=PICTURES, tokens=(1 + crops[0] * crops[1]) * side**2, width=1024, taps=size),)
    return HostInfo(
        name="the tower",
        sites=(*layer_sites("after_attention", depth, taps=taps), *out),
        depth=depth,
        num_tokens=side**2 + sum(count for _, count in prefix),
        protected=leading_spans(prefix),
        width=1024,
        attention=AttentionFacts(num_heads=16, head_size=64, rotary=rotary),
        grid=(side, side),
        crops=crops,
    )


_CLASS: tuple[tuple[SpanKind, int], ...] = (("class", 1),)
TOWERS: Mapping[str, tuple[HostInfo, str]] = MappingProxyType(
    {
        "class token (CLIP, ViT)": (_tower(_CLASS), ""),
        "and texts (CLIP with its projection)": (_tower(_CLASS, texts=True), ""),
        "none (SigLIP)": (_tower(()), ""),
        "registers (DINOv2)": (_tower((*_CLASS, ("register", 4))), ""),
        "behind another method": (_tower(_CLASS), "random:layers=[1]+"),
        "a thumbnail and crops (LLaVA-NeXT)": (_tower(_CLASS, crops=(2, 2)), ""),
        "a classifier": (_tower(_CLASS, output=False), ""),
        "rotary positions (EVA-02, DINOv3)": (_tower((*_CLASS, ("register", 4)), output=False, rotary=True), ""),
    }
)
"""Towers by what they have, each with what acts in it before."""


def placed(spec: str, tower: str) -> GraphPlan | str:
    """What happens where a method is put into a tower; what is said where it cannot be."""
    host, before = TOWERS[tower]
    try:
        return place_one(parse_spec(before + spec), host)
    except (ConfigError, UnsupportedError) as error:
        return error.message
