"""`zoo:surround_detector`: the multi-view 3D detector that is trained here on synthetic driving scenes."""

from pathlib import Path

import numpy as np

from trt_compress.models.hosts import detector3d
from trt_compress.models.hosts.base import LoadedHost, ModelInfo, Steps
from trt_compress.models.hosts.weights import load_weights, zoo_weights
from trt_compress.models.zoo.data import driving_scenes
from trt_compress.models.zoo.surround_detector import train as surround_detector

INFO = ModelInfo(
    name="zoo:surround_detector",
    family=detector3d.FAMILY,
    description="4 cameras, 8 blocks, 512 tokens, history as state, trained here on made driving scenes",
)
_EXAMPLE_FRAMES = 4


def load(weights: str | None) -> LoadedHost:
    """The model with its own weights, or those of a file.

    Raises:
        ConfigError: the weights do not fit.
    """
    module = surround_detector.build_surround_detector(weights=weights is None)
    return LoadedHost(
        source=INFO.name,
        family=INFO.family,
        module=module,
        weights=zoo_weights(surround_detector.surround_detector_card())
        if weights is None
        else load_weights(module, Path(weights)),
        attach=lambda specs: (detector3d.detector_graph(module, specs, name=INFO.name, examples=held_out_frames),),
        preprocess={"kind": "image", "input": "images", "layout": "NCHW", "scale": 1.0},
        postprocess=detector3d.postprocess_of(module.config),
    )


def held_out_frames(count: int) -> Steps:
    """The first frames of held-out scenes, a scene for each item of the batch."""
    config = surround_detector.surround_detector_config()
    options = driving_scenes.SceneOptions(num_frames=_EXAMPLE_FRAMES)
    rig = surround_detector.rig_of(config)
    seeds = np.resize(driving_scenes.HELD_OUT_SEEDS, count)
    scenes = [driving_scenes.generate_scene(int(seed), rig=rig, options=options) for seed in seeds]
    return tuple(
        {
            name: tensor.numpy()
            for name, tensor in zip(detector3d.INPUTS, surround_detector.frame_inputs(frames), strict=True)
        }
        for frames in zip(*scenes, strict=True)
    )
