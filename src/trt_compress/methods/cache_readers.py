"""Cache policies whose tokens attend to some entries only: options and entries."""

from dataclasses import dataclass
from typing import Literal

from trt_compress.errors import ConfigError
from trt_compress.methods.artifact import ArtifactFile, ArtifactForm
from trt_compress.methods.config import CompressorConfig, Method


@dataclass(frozen=True, slots=True, kw_only=True)
class TidalDecodeConfig(CompressorConfig):
    """Options of TidalDecode. Layers are counted among those that keep everything, from 0.

    Attributes:
        budget: Entries that a head attends to in layers that read what another has chosen.
        start: The first layer that chooses; those in front of it attend to everything.
        reselect: The layer that chooses anew; 0: none does; None: as the calibration says.
        calibration: An artifact: how well the model finds again what stood in the prompt, for each layer that might
            choose anew.
        heads: "own": every query head attends to its own choice; "group": those of a KV head to one, by the sum of
            their products.
    """

    budget: int
    start: int = 2
    reselect: int | None = None
    calibration: ArtifactFile | None = None
    heads: Literal["own", "group"] = "own"

    def __post_init__(self) -> None:
        if self.budget < 1:
            raise ConfigError(f"tidaldecode: budget={self.budget} is out of range; give 1 or more entries.")
        if self.start < 0:
            raise ConfigError(f"tidaldecode: start={self.start} is out of range; layers count from 0.")
        if self.reselect and self.reselect <= self.start:
            raise ConfigError(
                f"tidaldecode: reselect={self.reselect} is not behind start={self.start}, which chooses first; give a "
                "later layer, or 0 for none."
            )
        if self.reselect is not None and self.calibration is not None:
            raise ConfigError(
                "tidaldecode: reselect and calibration both say which layer chooses anew; give one of them."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoutConfig(CompressorConfig):
    """Options of SCOUT's checkpoint attention.

    Attributes:
        period: Every so many-th token is a checkpoint, whose entry is kept.
    """

    period: int = 10

    def __post_init__(self) -> None:
        if self.period < 1:
            raise ConfigError(f"scout: period={self.period} is out of range; give 1 or more tokens.")


TIDALDECODE = Method(
    name="tidaldecode",
    summary="attends to the entries that two layers choose for all others at every token (TidalDecode)",
    source="TidalDecode, arXiv:2410.05076; code DerrickYLJ/TidalDecode d67a1bd, src/tidal_build/modify_llama.py",
    differs="rows are gathered, where that code masks the others; heads=group and reselect=0 are added. The layer that "
    "chooses anew is calibrated on needles of random tokens of the model, or on texts that are given, by how often the "
    "answer is right and, of layers that are alike in that, by how probable it is.",
    config=TidalDecodeConfig,
    implementation="models.cache.tidaldecode:TidalDecode",
    kind="reader",
    artifacts={
        "calibration": ArtifactForm(
            summary="answered and probability, [layers]: how many answers are right, and how probable right ones are, "
            "if the layer chooses anew",
            settings=("start",),
            needs_data=False,
        )
    },
)
SCOUT = Method(
    name="scout",
    summary="keeps every so many-th entry, to which tokens attend beside themselves; for models that were trained so "
    "(SCOUT)",
    source="SCOUT, arXiv:2509.00935; code ArefJafari/SCOUT ceff02c, model/scout_swa/modeling_scout_swa.py",
    differs="a store, as it decides what is kept; its slots are there from the beginning. The layers of a window that "
    "stand between those of checkpoints are the model's own.",
    config=ScoutConfig,
    implementation="models.cache.scout:Scout",
    kind="store",
)
