"""Methods behind a tower of images: options and entries."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from trt_compress.errors import ConfigError
from trt_compress.methods.artifact import ArtifactFile, ArtifactForm
from trt_compress.methods.config import CompressorConfig, Method, check_layer

BEHIND = "acts on what the tower gives, in front of any projector"


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionZipConfig(CompressorConfig):
    """Options of VisionZip.

    Attributes:
        num_dominant: Tokens kept for their attention, the class token counted where there is one.
        num_contextual: Tokens that the others are merged into.
        layer: Layer whose attention and keys count; default: the last that is run.
    """

    num_dominant: int = 54
    num_contextual: int = 10
    layer: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("num_dominant", self.num_dominant), ("num_contextual", self.num_contextual)):
            if value < 1:
                raise ConfigError(f"visionzip: {name}={value} is out of range; give 1 or more tokens.")
        check_layer("visionzip", self.layer)


@dataclass(frozen=True, slots=True, kw_only=True)
class PruMergeConfig(CompressorConfig):
    """Options of PruMerge and PruMerge+.

    Attributes:
        keep_ratio: Share of the patches kept for their attention, rounded down.
        num_kept: Patches kept for their attention; default: what keep_ratio says.
        adaptive: Of these only the outliers of the attention; what is missing is padding, of size 0.
        neighbours: Patches of similar keys that each kept one takes in; where there are fewer, all.
        layer: Layer whose queries and keys count; default: the one behind the features where the tower has it, else the
            last that is run.
    """

    keep_ratio: float = 0.125
    num_kept: int | None = None
    adaptive: bool = False
    neighbours: int = 32
    layer: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.keep_ratio <= 1:
            raise ConfigError(
                f"prumerge: keep_ratio={self.keep_ratio} is out of range; it is the share of patches kept, above 0 and "
                "up to 1."
            )
        if self.num_kept is not None and self.num_kept < 1:
            raise ConfigError(f"prumerge: num_kept={self.num_kept} is out of range; give 1 or more patches to keep.")
        if self.neighbours < 1:
            raise ConfigError(f"prumerge: neighbours={self.neighbours} is out of range; give 1 or more.")
        check_layer("prumerge", self.layer)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptBehindConfig(CompressorConfig):
    """Options of a method that keeps some patches of a tower as they are.

    Attributes:
        keep_ratio: Share of the patches kept.
        num_kept: Patches kept; default: what keep_ratio says.
    """

    method: ClassVar[str]
    keep_ratio: float = 0.5
    num_kept: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.keep_ratio <= 1:
            raise ConfigError(
                f"{self.method}: keep_ratio={self.keep_ratio} is out of range; it is the share of patches kept, above "
                "0 and up to 1."
            )
        if self.num_kept is not None and self.num_kept < 1:
            raise ConfigError(
                f"{self.method}: num_kept={self.num_kept} is out of range; give 1 or more patches to keep."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class HiPruneConfig(KeptBehindConfig):
    """Options of HiPrune.

    Attributes:
        keep_ratio: Share of the patches kept, rounded to the nearest; at 1/2 to the even one.
        alpha: Share of these that are anchors and their four neighbours.
        object_layer: Layer whose attention finds the anchors; default: at a third of the depth (8 of 24).
        layer: Layer whose attention finds the others; default: the last that is run.
    """

    method = "hiprune"
    keep_ratio: float = 1 / 3
    alpha: float = 0.1
    object_layer: int | None = None
    layer: int | None = None

    def __post_init__(self) -> None:
        KeptBehindConfig.__post_init__(self)
        if not 0 <= self.alpha <= 1:
            raise ConfigError(f"hiprune: alpha={self.alpha} is out of range; it is a share, 0 to 1.")
        for layer in (self.object_layer, self.layer):
            check_layer("hiprune", layer)


@dataclass(frozen=True, slots=True, kw_only=True)
class DivPruneConfig(KeptBehindConfig):
    """Options of DivPrune.

    Attributes:
        keep_ratio: Share of the patches kept, rounded to the nearest; at 1/2 to the even one.
    """

    method = "divprune"
    keep_ratio: float = 0.098


@dataclass(frozen=True, slots=True, kw_only=True)
class CdPrunerConfig(KeptBehindConfig):
    """Options of CDPruner.

    Attributes:
        keep_ratio: Share of the patches kept, rounded to the nearest; at 1/2 to the even one.
        segments: Vectors that a question may have; one of zeros is none. CLIP reads 77 tokens for each.
    """

    method = "cdpruner"
    keep_ratio: float = 1 / 9
    segments: int = 1

    def __post_init__(self) -> None:
        KeptBehindConfig.__post_init__(self)
        if self.segments < 1:
            raise ConfigError(f"cdpruner: segments={self.segments} is out of range; give 1 or more.")


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoverableConfig(KeptBehindConfig):
    """Options of Recoverable Compression.

    Attributes:
        keep_ratio: Share of the patches kept at most, rounded down; what an image does not need is padding, of size 0.
        num_kept: Patches kept at most; default: what keep_ratio says.
        centre_ratio: Share of the patches that are centres of clusters of the others at most, rounded down.
        neighbours: Patches that each centre takes in; where there are fewer, all.
        segments: Vectors that a question may have; one of zeros is none. CLIP reads 77 tokens for each.
        as_code: Cluster by the keys that the authors' code takes, which are those of other patches, and leave out the
            sum of the rest where there is no centre.
        layer: Layer whose queries and keys count; default: the one behind the features where the tower has it, else the
            last that is run.
    """

    method = "recoverable"
    keep_ratio: float = 0.125
    centre_ratio: float = 0.125
    neighbours: int = 32
    segments: int = 1
    as_code: bool = False
    layer: int | None = None

    def __post_init__(self) -> None:
        KeptBehindConfig.__post_init__(self)
        if not 0 < self.centre_ratio <= 1:
            raise ConfigError(
                f"recoverable: centre_ratio={self.centre_ratio} is out of range; it is a share of the patches, above 0 "
                "and up to 1."
            )
        for name, value in (("neighbours", self.neighbours), ("segments", self.segments)):
            if value < 1:
                raise ConfigError(f"recoverable: {name}={value} is out of range; give 1 or more.")
        check_layer("recoverable", self.layer)


@dataclass(frozen=True, slots=True, kw_only=True)
class DartConfig(KeptBehindConfig):
    """Options of DART.

    Attributes:
        keep_ratio: Share of the patches that the pivots choose, rounded down; the pivots themselves come on top.
        num_kept: Patches that the pivots choose; default: what keep_ratio says. Each chooses equally many.
        pivots: Patches of the largest keys.
        order: In which pivots choose: the largest key first, or as they stand.
        layer: Layer whose keys count; default: the last that is run.
    """

    method = "dart"
    keep_ratio: float = 2 / 9
    pivots: int = 4
    order: Literal["norm", "position"] = "norm"
    layer: int | None = None

    def __post_init__(self) -> None:
        KeptBehindConfig.__post_init__(self)
        if self.pivots < 1:
            raise ConfigError(f"dart: pivots={self.pivots} is out of range; give 1 or more.")
        check_layer("dart", self.layer)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenCorrConfig(KeptBehindConfig):
    """Options of TokenCorrCompressor.

    Attributes:
        keep_ratio: Share of the patches kept at most, rounded down; what an image does not need is padding, of size 0.
        num_kept: Patches kept at most; default: what keep_ratio says.
        alpha: Cosine of two keys above which one repeats the other.
        beta: Share of the patches; one that is repeated by more than that is redundant.
        early_layer: Layer whose keys and attention count; default: 2.
        layer: Late layer whose attention counts; default: the last that is run.
    """

    method = "token_corr"
    alpha: float = 0.75
    beta: float = 0.05
    early_layer: int | None = None
    layer: int | None = None

    def __post_init__(self) -> None:
        KeptBehindConfig.__post_init__(self)
        if not -1 <= self.alpha <= 1:
            raise ConfigError(f"token_corr: alpha={self.alpha} is out of range; it is a cosine, -1 to 1.")
        if not 0 <= self.beta <= 1:
            raise ConfigError(f"token_corr: beta={self.beta} is out of range; it is a share of the patches, 0 to 1.")
        for layer in (self.early_layer, self.layer):
            check_layer("token_corr", layer)


@dataclass(frozen=True, slots=True, kw_only=True)
class FourierConfig(CompressorConfig):
    """Options of Fourier-VLM.

    Attributes:
        ratio: Of a side of the grid that is left, cut to a whole number.
        side: Rows and columns that are left; default: what ratio says.
        scale: What becomes of a map that is the same everywhere: with "code" it is multiplied by the root of how many
            times fewer patches there are, with "constant" it stays, with "none" it is multiplied by that number itself.
    """

    ratio: float = 2 / 3
    side: int | None = None
    scale: Literal["code", "constant", "none"] = "code"

    def __post_init__(self) -> None:
        if not 0 < self.ratio <= 1:
            raise ConfigError(f"fourier: ratio={self.ratio} is out of range; it is of a side, above 0 and up to 1.")
        if self.side is not None and self.side < 1:
            raise ConfigError(f"fourier: side={self.side} is out of range; give 1 or more.")


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelShuffleConfig(CompressorConfig):
    """Options of the pixel shuffle.

    Attributes:
        scale: Rows and columns of patches that become one token.
        order: Tokens by "rows"; or by "columns", as the first version of InternVL has them.
    """

    scale: int = 2
    order: Literal["rows", "columns"] = "rows"

    def __post_init__(self) -> None:
        if self.scale < 1:
            raise ConfigError(f"pixel_shuffle: scale={self.scale} is out of range; give 1 or more.")


@dataclass(frozen=True, slots=True, kw_only=True)
class HReducerConfig(CompressorConfig):
    """Options of the H-Reducer.

    Attributes:
        weights: An artifact with its trained tensors, without which it does nothing; their shapes say how many
            patches become one token.
    """

    weights: ArtifactFile | None = None


VISIONZIP = Method(
    name="visionzip",
    summary="keeps the patches the class token attends to, merges the rest into a few (VisionZip)",
    source="VisionZip, arXiv:2412.04467; code dvlab-research/VisionZip 3151f6d, visionzip/clip_encoder.py and utils.py",
    differs=f"{BEHIND}; register tokens are left out; without a class token patches are ranked by the attention that "
    "all patches pay to them, as the paper's other models do; of equal scores the smaller index is kept.",
    config=VisionZipConfig,
    implementation="models.compressors.vision.visionzip:VisionZip",
)
PRUMERGE = Method(
    name="prumerge",
    summary="keeps the patches the class token attends to, each with its most similar neighbours in it (PruMerge)",
    source="LLaVA-PruMerge, arXiv:2403.15388; code 42Shawn/LLaVA-PruMerge 097c041, clip_encoder.py",
    differs=f"{BEHIND}; how many are kept is fixed unless adaptive=true, and then each image has its own outliers "
    "(those of the batch there), up to a limit; of equally near neighbours at the limit all are taken; fewer than 33 "
    "patches have fewer neighbours (an error there).",
    config=PruMergeConfig,
    implementation="models.compressors.vision.prumerge:PruMerge",
)
PRUMERGE_PLUS = Method(
    name="prumerge_plus",
    summary="as prumerge, and keeps a regular grid of the other patches (PruMerge+)",
    source="LLaVA-PruMerge, arXiv:2403.15388; code 42Shawn/LLaVA-PruMerge 097c041, clip_encoder.py",
    differs="as prumerge; the grid is that of inference, also with a fixed number, and ends with the patches (at 575 "
    "there); a patch that is kept already is not kept twice, so what is missing is padding; without any outlier one "
    "patch is kept (an error there).",
    config=PruMergeConfig,
    implementation="models.compressors.vision.prumerge_plus:PruMergePlus",
)
HIPRUNE = Method(
    name="hiprune",
    summary="keeps objects of an early layer with their neighbours, and what the last layer attends to (HiPrune)",
    source="HiPrune; code Danielement321/HiPrune 6e83a12, LLaVA/llava/model/llava_arch.py",
    differs=f"{BEHIND}; any grid (24 x 24 there), whose width is the distance to the neighbours above and below; of "
    "equal scores the smaller index is kept.",
    config=HiPruneConfig,
    implementation="models.compressors.vision.hiprune:HiPrune",
)
DIVPRUNE = Method(
    name="divprune",
    summary="keeps the patches that are farthest from each other, one by one (DivPrune)",
    source="DivPrune, arXiv:2503.02175; code vbdi/divprune 799e2d9, LLaVA/llava/model/llava_arch.py",
    differs=f"{BEHIND} (behind it there); no patch is chosen twice (there the same one again, where fewer differ than "
    "are kept).",
    config=DivPruneConfig,
    implementation="models.compressors.vision.divprune:DivPrune",
)
CDPRUNER = Method(
    name="cdpruner",
    summary="keeps patches that differ from each other and that the question is about (CDPruner)",
    source="CDPruner; code Theia-4869/CDPruner 9541616, llava/model/llava_arch.py",
    differs=f"{BEHIND} (behind it there); the question is an input of the graph, `text` [batch, segments, channels], "
    "as CLIP's own text tower gives it; relevance is brought to 0..1 for each picture alone (for all crops together "
    "there); where no patch that is left differs from the chosen ones, the most relevant follow (rounding decides "
    "there).",
    config=CdPrunerConfig,
    implementation="models.compressors.vision.cdpruner:CdPruner",
)
RECOVERABLE = Method(
    name="recoverable",
    summary="keeps outliers of attention and what a question is about, and clusters the rest (Recoverable Compression)",
    source="Recoverable Compression, arXiv:2409.01179; code banjiuyufen/Recoverable-Compression d927594, "
    "clip_encoder.py",
    differs=f"{BEHIND}; the question is an input of the graph, `text` [batch, segments, channels], as CLIP's own text "
    "tower gives it; numbers of patches and centres have a limit, and each image has its own; clusters are made by the "
    "keys of the patches themselves, and the sum of the rest is always there (as_code=true does as the code does); "
    "shares of whole numbers are exact (one fewer there where rounding falls below); of equally far scores on both "
    "sides the smaller are neighbours (open there); of equally near patches at the limit all are taken.",
    config=RecoverableConfig,
    implementation="models.compressors.vision.recoverable:Recoverable",
)
DART = Method(
    name="dart",
    summary="keeps a few patches of large keys, and those least like them (DART)",
    source="DART, arXiv:2502.11494; code ZichenWen1/DART 5a19452, modeling_llama_self.py",
    differs=f"{BEHIND}, where there is no text, so all pivots are patches (inside the language model there, with "
    "pivots of the text too); the order of the pivots is an option (that of a hash table there); each image has its "
    "own choice (the first of a batch there).",
    config=DartConfig,
    implementation="models.compressors.vision.dart:Dart",
)
TOKEN_CORR = Method(
    name="token_corr",
    summary="keeps more patches the less an image repeats itself, and adds the rest to them (TokenCorrCompressor)",
    source="TokenCorrCompressor, arXiv:2407.14439; no code is published",
    differs=f"a reconstruction from the paper: alpha, beta, the layers and what each patch is weighed by are not told; "
    f"{BEHIND}; the patches of the largest early attention are kept (drawn at random by it there); where more are "
    "wanted than the limit, outliers of the late attention come first.",
    config=TokenCorrConfig,
    implementation="models.compressors.vision.token_corr:TokenCorr",
    provenance="reconstruction",
)
FOURIER = Method(
    name="fourier",
    summary="keeps the low frequencies of the grid of patches, as a smaller grid (Fourier-VLM)",
    source="Fourier-VLM, arXiv:2508.06038; code whyisverysmart/Fourier-Compressor 1f98b38, compress.py and dct.py",
    differs=f"{BEHIND}, as for LLaVA there; both transforms are one constant matrix; scale=constant keeps magnitudes, "
    "for a projector that was not trained with it.",
    config=FourierConfig,
    implementation="models.compressors.vision.fourier:Fourier",
)
PIXEL_SHUFFLE = Method(
    name="pixel_shuffle",
    summary="lays the channels of a block of patches side by side (InternVL, Idefics3, SmolVLM, Llama 4)",
    source="InternVL, arXiv:2312.14238; the models internvl, idefics3, smolvlm and llama4 of transformers",
    differs=f"{BEHIND}, which is not part of it; class and register tokens are dropped.",
    config=PixelShuffleConfig,
    implementation="models.compressors.vision.pixel_shuffle:PixelShuffle",
)
H_REDUCER = Method(
    name="h_reducer",
    summary="merges neighbouring patches of a row by two convolutions, for pages of text (mPLUG-DocOwl 1.5)",
    source="mPLUG-DocOwl 1.5, arXiv:2403.12895; code X-PLUG/mPLUG-DocOwl f91a768, "
    "DocOwl1.5/mplug_docowl/model/visual_encoder.py",
    differs="any grid of patches that its windows divide (a square one there); ln_q, which nothing uses, is left out.",
    config=HReducerConfig,
    implementation="models.compressors.vision.h_reducer:HReducer",
    artifacts={
        "weights": ArtifactForm(
            summary="reducer_before.0, reducer, visual_fc and vit_eos, as mPLUG-DocOwl's vision2text has them"
        )
    },
)
