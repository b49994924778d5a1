"""A small detector whose random weights do something, and frames for it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from trt_compress.methods import parse_spec
from trt_compress.models.hosts.detector3d import CompressedDetector3D, Detector3D, Detector3DConfig, attach
from trt_compress.models.zoo.data.driving_scenes import Rig, SceneFrame, SceneOptions, generate_scene
from trt_compress.models.zoo.surround_detector.model import frame_inputs

SMALL = Detector3DConfig(
    num_cameras=2,
    image_size=(32, 48),
    embed_dim=24,
    depth=4,
    num_heads=3,
    window=4,
    global_layers=(2,),
    scored_layers=(1, 3),
    num_proposals=6,
    num_history=5,
    decoder_depth=1,
    num_depths=4,
)
"""Grids of 4 x 6 tokens: windows of 4 are padded."""


def make_detector(config: Detector3DConfig = SMALL, seed: int = 0) -> Detector3D:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        detector = Detector3D(config)
        for parameter in detector.parameters():
            if parameter.requires_grad and parameter.ndim > 1:
                parameter.data.add_(0.1 * torch.randn_like(parameter))
    return detector.eval()


def compress(detector: Detector3D, spec: str) -> CompressedDetector3D:
    return attach(detector, parse_spec(spec), name="small").eval()


def make_frames(seed: int = 0, count: int = 3, config: Detector3DConfig = SMALL) -> list[SceneFrame]:
    rig = Rig(num_cameras=config.num_cameras, height=config.image_size[0], width=config.image_size[1])
    return list(generate_scene(seed, rig=rig, options=SceneOptions(num_frames=count)))


def no_history(batch: int, config: Detector3DConfig = SMALL) -> tuple[Tensor, ...]:
    return tuple(torch.zeros(batch, *shape) for shape in config.state_shapes().values())


@torch.no_grad()
def run(
    net: CompressedDetector3D, frames: Sequence[SceneFrame], states: tuple[Tensor, ...] | None = None
) -> list[tuple[Tensor, ...]]:
    """Outputs and new states of each frame of one stream."""
    results = []
    carried = states if states is not None else no_history(1, net.detector.config)
    for frame in frames:
        found = net(*frame_inputs([frame]), *carried)
        carried = found[2:]
        results.append(found)
    return results
