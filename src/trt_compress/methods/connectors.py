"""Trained connectors behind a tower of images: options and entries."""

from dataclasses import dataclass
from typing import ClassVar

from trt_compress.errors import ConfigError
from trt_compress.methods.artifact import ArtifactFile, ArtifactForm
from trt_compress.methods.config import CompressorConfig, Method, check_ascending


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectorConfig(CompressorConfig):
    """Options that trained connectors share.

    Attributes:
        weights: An artifact with its trained tensors, without which it does nothing.
        heads: Of its attention; they divide the channels of the tower.
    """

    method: ClassVar[str]
    weights: ArtifactFile | None = None
    heads: int = 8

    def __post_init__(self) -> None:
        if self.heads < 1:
            raise ConfigError(f"{self.method}: heads={self.heads} is out of range; give 1 or more.")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPackerConfig(ConnectorConfig):
    """Options of TokenPacker.

    Attributes:
        weights: An artifact with its trained tensors, without which it does nothing.
        heads: Of its attention; they divide the channels of the tower.
        scale: Rows and columns of patches that become one token.
        layers: Layers whose outputs are read side by side, from 0, ascending; default: at a half and two thirds of the
            tower and its last two (11, 15, 21 and 22 of 24 layers with feature_layer=-2).
    """

    method = "tokenpacker"
    scale: int = 2
    layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        ConnectorConfig.__post_init__(self)
        if self.scale < 1:
            raise ConfigError(f"tokenpacker: scale={self.scale} is out of range; give 1 or more.")
        if self.layers is not None:
            check_ascending("tokenpacker", self.layers)


@dataclass(frozen=True, slots=True, kw_only=True)
class LlavaMiniConfig(ConnectorConfig):
    """Options of LLaVA-Mini's compression.

    Attributes:
        weights: An artifact with its trained tensors, without which it does nothing; there are as many tokens as they
            have queries.
        heads: Of its attention; they divide the channels of the tower.
    """

    method = "llava_mini"


@dataclass(frozen=True, slots=True, kw_only=True)
class QueccConfig(ConnectorConfig):
    """Options of QueCC.

    Attributes:
        weights: An artifact with its trained tensors, without which it does nothing; their shapes say how many patches
            become one token.
        heads: Of its attention; they divide the channels of the tower.
        layers: Layers whose outputs are read side by side, from 0, ascending; default: as of tokenpacker.
    """

    method = "quecc"
    layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        ConnectorConfig.__post_init__(self)
        if self.layers is not None:
            check_ascending("quecc", self.layers)


TOKENPACKER = Method(
    name="tokenpacker",
    summary="makes one token of each window of patches, which attends to them in several layers (TokenPacker)",
    source="TokenPacker, arXiv:2407.02392; code CircleRadon/TokenPacker 771a16e, multimodal_projector/builder.py",
    differs="any grid of patches that its windows divide (24 x 24 there); the linear resize of the queries is written "
    "as what it reads: the middle patch of a window, or the mean of the four; of the last layer it reads what the "
    "tower gives.",
    config=TokenPackerConfig,
    implementation="models.compressors.vision.tokenpacker:TokenPacker",
    artifacts={
        "weights": ArtifactForm(
            summary="the tensors of its mm_projector, as TokenPacker has them", settings=("heads", "scale", "layers")
        )
    },
)
QUECC = Method(
    name="quecc",
    summary="as tokenpacker, with queries that know the question, down to one token (QueCC)",
    source="QueCC, arXiv:2411.03312; code locuslab/llava-token-compression bdedebd, multimodal_projector/quecc.py",
    differs="in front of any projector; any grid of patches that its windows divide (a square one there); the question "
    "comes as an input of the graph, [batch, channels] (a call of the language model there).",
    config=QueccConfig,
    implementation="models.compressors.vision.quecc:Quecc",
    artifacts={
        "weights": ArtifactForm(summary="the tensors of its module, as QueCC has them", settings=("heads", "layers"))
    },
)
LLAVA_MINI = Method(
    name="llava_mini",
    summary="a few learned queries attend to all patches, one in the paper (LLaVA-Mini)",
    source="LLaVA-Mini, arXiv:2501.03895; code ictnlp/LLaVA-Mini 47da113, llavamini/model/llavamini_arch.py",
    differs="any grid of patches (a square one there); the projector behind it is part of it where the file has one; "
    "the layers that fuse patches into the text are not: they stand in front of the language model.",
    config=LlavaMiniConfig,
    implementation="models.compressors.vision.llava_mini:LlavaMini",
    artifacts={
        "weights": ArtifactForm(
            summary="the tensors of its compressor, and of mm_projector, as LLaVA-Mini has them", settings=("heads",)
        )
    },
)
