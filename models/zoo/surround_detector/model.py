"""`zoo:surround_detector`: the multi-view 3D detector that is trained here on synthetic driving scenes."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trt_compress.models.hosts import detector3d
from trt_compress.models.hosts.base import LoadedHost, ModelInfo, Steps
from trt_compress.models.hosts.detector3d import (
    CompressedDetector3D,
    Detector3D,
    Detector3DConfig,
)
from trt_compress.models.hosts.weights import load_weights, zoo_weights
from trt_compress.models.zoo import release
from trt_compress.models.zoo.data import driving_scenes
from trt_compress.models.zoo.data.driving_scenes import (
    CLASSES,
    HELD_OUT_SEEDS,
    Rig,
    SceneFrame,
    SceneOptions,
    generate_scene,
)
from trt_compress.runtime.detection_metric import DetectionScore, FrameBoxes, score_detections

NAME = "surround_detector"
FOLDER = Path(__file__).parent
WEIGHTS_FILE, CARD_FILE = FOLDER / f"{NAME}.safetensors", FOLDER / "card.json"
FAST = "toc3d:keep_ratio=[0.7,0.5,0.5],layers=[1,4,6]"
FASTER = "toc3d:keep_ratio=[0.5,0.4,0.3],layers=[1,4,6]"
"""ToC3D's two settings: its shares of tokens at the three places where they are scored."""
NUM_HELD_OUT = 60  # scenes that the card's figures are of
Detector = Callable[..., tuple[npt.NDArray[np.float32], ...]]
"""Takes the graph's inputs and states as arrays and gives its outputs and new states."""
INFO = ModelInfo(
    name="zoo:surround_detector",
    family=detector3d.FAMILY,
    description="4 cameras, 8 blocks, 512 tokens, history as state, trained here on made driving scenes",
)
_EXAMPLE_FRAMES = 4


def surround_detector_card() -> dict[str, Any]:
    """Read the model card: architecture, data, training, accuracy, versions."""
    return release.read_card(CARD_FILE)


def surround_detector_config() -> Detector3DConfig:
    """The form of the released detector."""
    return Detector3DConfig(classes=CLASSES)


def build_surround_detector(*, weights: bool = True) -> Detector3D:
    """Build the detector in evaluation mode.

    Args:
        weights: Load the trained weights; otherwise the model is freshly initialised.
    """
    model = Detector3D(surround_detector_config())
    if weights:
        load_weights(model, WEIGHTS_FILE)
    return model.eval()


def rig_of(config: Detector3DConfig) -> Rig:
    """The cameras of a vehicle that carries this detector."""
    return Rig(num_cameras=config.num_cameras, height=config.image_size[0], width=config.image_size[1])


def frame_inputs(frames: Sequence[SceneFrame]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The detector's inputs for one frame of each of B streams, without the states."""
    return (
        torch.from_numpy(np.stack([frame.images for frame in frames])).float(),
        torch.from_numpy(np.stack([frame.img2lidar for frame in frames])),
        torch.from_numpy(np.stack([frame.ego_pose for frame in frames]).astype(np.float32)),
        torch.tensor([[frame.timestamp_s] for frame in frames], dtype=torch.float32),
    )


def detector_of(net: CompressedDetector3D) -> Detector:
    """A torch detector that takes and gives arrays."""

    def run(*arrays: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], ...]:
        with torch.inference_mode():
            return tuple(out.numpy() for out in net(*(torch.from_numpy(array) for array in arrays)))

    return run


def evaluate(
    detector: Detector, *, num_scenes: int, first_seed: int = HELD_OUT_SEEDS.start, streams: int = 10
) -> DetectionScore:
    """Run held-out scenes as streams, and score what is found.

    Args:
        detector: Takes batches of up to `streams`.
        num_scenes: Scenes, from `first_seed` on.
    """
    config, options = surround_detector_config(), SceneOptions()
    found, truth = [], []
    seeds = range(first_seed, first_seed + num_scenes)
    for start in range(0, num_scenes, streams):
        scenes = [generate_scene(seed, rig=rig_of(config), options=options) for seed in seeds[start : start + streams]]
        states = tuple(np.zeros((len(scenes), *shape), np.float32) for shape in config.state_shapes().values())
        for frames in zip(*scenes, strict=True):
            boxes, scores, *new = detector(*(tensor.numpy() for tensor in frame_inputs(frames)), *states)
            states = tuple(new)
            for frame, box, score in zip(frames, boxes, scores, strict=True):
                found.append(FrameBoxes(centers=box[:, :2], labels=score.argmax(axis=1), scores=score.max(axis=1)))
                counted = frame.counted()
                truth.append(FrameBoxes(centers=frame.boxes[counted, :2], labels=frame.labels[counted]))
    return score_detections(found, truth, num_classes=len(config.classes))


def load(weights: str | None) -> LoadedHost:
    """The model with its own weights, or those of a file.

    Raises:
        ConfigError: the weights do not fit.
    """
    module = build_surround_detector(weights=weights is None)
    return LoadedHost(
        source=INFO.name,
        family=INFO.family,
        module=module,
        weights=zoo_weights(surround_detector_card()) if weights is None else load_weights(module, Path(weights)),
        attach=lambda specs: (detector3d.detector_graph(module, specs, name=INFO.name, examples=held_out_frames),),
        preprocess={"kind": "cameras", "input": "images", "layout": "NCHW", "scale": 1.0},
        postprocess=detector3d.postprocess_of(module.config),
    )


def held_out_frames(count: int) -> Steps:
    """The first frames of held-out scenes, a scene for each item of the batch."""
    config = surround_detector_config()
    options = driving_scenes.SceneOptions(num_frames=_EXAMPLE_FRAMES)
    rig = rig_of(config)
    seeds = np.resize(driving_scenes.HELD_OUT_SEEDS, count)
    scenes = [driving_scenes.generate_scene(int(seed), rig=rig, options=options) for seed in seeds]
    return tuple(
        {name: tensor.numpy() for name, tensor in zip(detector3d.INPUTS, frame_inputs(frames), strict=True)}
        for frames in zip(*scenes, strict=True)
    )
