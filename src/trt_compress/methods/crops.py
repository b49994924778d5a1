"""Methods for a picture that is read as a thumbnail and crops: options and entries."""

from dataclasses import dataclass
from typing import Literal

from trt_compress.errors import ConfigError
from trt_compress.methods.config import CompressorConfig, Method
from trt_compress.methods.towers import BEHIND


@dataclass(frozen=True, slots=True, kw_only=True)
class GlobalCom2Config(CompressorConfig):
    """Options of GlobalCom².

    Attributes:
        keep_ratio: Share of the patches kept, of the thumbnail and of all crops together, rounded down.
        unpad: Crops may show padding around the picture, whose height and width the graph then reads; false: they show
            nothing but the picture.
        order: Patches of crops stand as in the "picture"; or as the "code" has them, which differs where there is
            padding: there a patch takes the place in its crop that its number among the crop's real patches is.
        layer: Layer whose class token ranks the patches; default: the one behind the features where the tower has it,
            else the last that is run.
    """

    keep_ratio: float = 0.25
    unpad: bool = True
    order: Literal["picture", "code"] = "picture"
    layer: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.keep_ratio <= 1:
            raise ConfigError(
                f"globalcom2: keep_ratio={self.keep_ratio} is out of range; it is the share of patches kept, above 0 "
                "and up to 1."
            )
        if self.layer is not None and self.layer < 0:
            raise ConfigError(f"globalcom2: layer={self.layer} is out of range; layers count from 0.")


GLOBALCOM2 = Method(
    name="globalcom2",
    summary="lets a thumbnail say how much of each crop of a large picture is kept, and what (GlobalCom²)",
    source="GlobalCom², arXiv:2501.05179; code xuyang-liu16/GlobalCom2 96b2d00, llava/model/llava_arch.py",
    differs=f"{BEHIND} (behind it there); pictures of a batch each have their own choice (one at a time there), and "
    "one number of tokens, what is missing being padding; the newline token behind each row of the grid is the "
    "language model's, and `feature_place` says where rows end; shares are float32 (float64 there); a tower without a "
    "class token ranks patches by how little they are like the mean one, as the paper says (not in the code).",
    config=GlobalCom2Config,
    implementation="models.compressors.vision.globalcom2:GlobalCom2",
)
