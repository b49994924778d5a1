"""Methods for audio frames and spectrogram patches: options and entries."""

from dataclasses import dataclass
from typing import Literal

from trt_compress.errors import ConfigError
from trt_compress.methods.artifact import ArtifactFile, ArtifactForm
from trt_compress.methods.config import CompressorConfig, Method, check_layer, check_pairs


@dataclass(frozen=True, slots=True, kw_only=True)
class FastAstConfig(CompressorConfig):
    """Options of FastAST.

    Attributes:
        num_merged: Tokens merged in every layer; where half of the tokens are fewer, half.
        proportional_attention: Attention weighs a merged token by the tokens in it; off in the paper's code.
    """

    num_merged: int = 16
    proportional_attention: bool = False

    def __post_init__(self) -> None:
        if self.num_merged < 0:
            raise ConfigError(f"fastast: num_merged={self.num_merged} is negative; give 0 or more tokens to merge.")


@dataclass(frozen=True, slots=True, kw_only=True)
class AtomeConfig(CompressorConfig):
    """Options of A-ToMe.

    Attributes:
        merge_ratio: Share of the links between neighbours that merge in each layer, rounded down; one, or one a layer.
        layers: Layers after whose attention frames merge, ascending; default: at 1/4, 2/4 and 3/4 of the depth.
        proportional_attention: Attention weighs a merged frame by the frames in it.
    """

    merge_ratio: float | tuple[float, ...] = 0.3
    layers: tuple[int, ...] | None = None
    proportional_attention: bool = True

    def __post_init__(self) -> None:
        ratios = self.merge_ratio if isinstance(self.merge_ratio, tuple) else (self.merge_ratio,)
        for ratio in ratios:
            if not 0 <= ratio < 1:
                raise ConfigError(
                    f"atome: merge_ratio={ratio} is out of range; it is the share of links that merge, 0 or more and "
                    "below 1."
                )
        check_pairs("atome", "merge_ratio", self.merge_ratio, self.layers)


@dataclass(frozen=True, slots=True, kw_only=True)
class FramePoolConfig(CompressorConfig):
    """Options of pooling.

    Attributes:
        stride: Neighbouring frames that become one; window and stride are the same.
        mode: Mean, maximum of each channel, or the last frame of the window.
        layer: Layer after whose attention frames are pooled; default: behind the encoder.
        remainder: Frames that fill no window at the end are dropped, or pooled as a shorter window ("keep").
    """

    stride: int = 2
    mode: Literal["mean", "max", "last"] = "mean"
    layer: int | None = None
    remainder: Literal["drop", "keep"] = "drop"

    def __post_init__(self) -> None:
        if self.stride < 1:
            raise ConfigError(f"frame_pool: stride={self.stride} is out of range; give 1 or more.")
        check_layer("frame_pool", self.layer)


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameStackConfig(CompressorConfig):
    """Options of stacking.

    Attributes:
        stride: Neighbouring frames that become one.
        projector: An artifact, which makes frames of another width of them; default: the stacked frames leave as they
            are, `stride` times as wide.
    """

    stride: int = 5
    projector: ArtifactFile | None = None

    def __post_init__(self) -> None:
        if self.stride < 1:
            raise ConfigError(f"frame_stack: stride={self.stride} is out of range; give 1 or more.")


FASTAST = Method(
    name="fastast",
    summary="merges the most similar patches of every layer of a spectrogram transformer (FastAST)",
    source="FastAST, arXiv:2406.07676; code abhishekmaroon5/Faster_Audio_Transformers 0942a25, tome/merge.py and "
    "tome/patch/timm.py",
    differs="ties go to the smaller index; the knowledge distillation of the paper is training and not part of it.",
    config=FastAstConfig,
    implementation="models.compressors.fastast:FastAst",
)
ATOME = Method(
    name="atome",
    summary="merges the most similar neighbours of a sequence of audio frames, in order (A-ToMe)",
    source="A-ToMe, arXiv:2306.16009",
    differs="fixed ratio only: the number of frames is then constant (the paper's fixed threshold makes it depend on "
    "the audio). There is no public code: layers and ratios are not pinned there; a chain of chosen links merges into "
    "one frame, which weighs each by its size; of equally similar links the later ones merge. Class and distillation "
    "tokens merge with nothing; patches of a spectrogram are neighbours in the order of the tokens.",
    config=AtomeConfig,
    implementation="models.compressors.atome:Atome",
    provenance="paper",
)
FRAME_POOL = Method(
    name="frame_pool",
    summary="pools neighbouring audio frames, at one layer or behind the encoder (Qwen2-Audio, Llama-AVSR, MoME)",
    source="Qwen2-Audio, arXiv:2407.10759; Llama-AVSR, arXiv:2409.12319, code umbertocappellazzo/Llama-AVSR, "
    "models/modeling_AVSRLLM.py; MoME, arXiv:2510.04136",
    differs="may pool inside the encoder too, where it saves time; a mean weighs merged frames by size; the last "
    "window may be kept though it is not full. Class and distillation tokens stay.",
    config=FramePoolConfig,
    implementation="models.compressors.frame_pool:FramePool",
)
FRAME_STACK = Method(
    name="frame_stack",
    summary="lays neighbouring audio frames side by side, behind the encoder, and projects them (LLaMA-Omni)",
    source="LLaMA-Omni, arXiv:2409.06666; code ictnlp/LLaMA-Omni c63fd72, "
    "omni_speech/model/speech_projector/speech_projector.py",
    differs="a prefix of class and distillation tokens is dropped; without a projector the frames stay wide.",
    config=FrameStackConfig,
    implementation="models.compressors.frame_stack:FrameStack",
    artifacts={
        "projector": ArtifactForm(
            summary="linear1, a projection of the stacked frames; or linear1, ReLU and linear2, as LLaMA-Omni has them",
            settings=("stride",),
        )
    },
)
