"""The training of `zoo:surround_detector` on synthetic driving scenes, dense and with ToC3D.

`python -m trt_compress.models.zoo.surround_detector.train --output DIR` trains it again.
"""

import argparse
import copy
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from trt_compress.errors import UnsupportedError
from trt_compress.methods import parse_spec
from trt_compress.models.hosts.detector3d import (
    Detections,
    Detector3D,
    Detector3DConfig,
    attach,
)
from trt_compress.models.zoo import release
from trt_compress.models.zoo.data.driving_scenes import (
    CLASSES,
    HELD_OUT_SEEDS,
    TRAIN_SEEDS,
    SceneFrame,
    SceneOptions,
    generate_scene,
)
from trt_compress.models.zoo.surround_detector.model import (
    CARD_FILE,
    FAST,
    FASTER,
    NAME,
    NUM_HELD_OUT,
    WEIGHTS_FILE,
    detector_of,
    evaluate,
    frame_inputs,
    rig_of,
    surround_detector_config,
)
from trt_compress.models.zoo.training import MovingAverage, fit, say_on_stderr
from trt_compress.runtime.detection_metric import DetectionScore

COMMAND = f"python -m trt_compress.models.zoo.{NAME}.train --output DIR"


VALIDATION_SEED = HELD_OUT_SEEDS.start + 900  # scenes that training reports on as it goes

_CENTER, _SIZE, _YAW, _SPEED = 0.5, 1.0, 1.0, 0.15
_BOX_WEIGHTS = (_CENTER, _CENTER, 0.3, _SIZE, _SIZE, _SIZE, _YAW, _YAW, _SPEED, _SPEED)
_LEAST_COVER, _NEEDED_COVER = 0.3, 0.05  # shares of a token's pixels


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectorRecipe:
    """How the weights are trained; the model card repeats it.

    Args:
        streams: Scenes that are followed at once; each step takes the next frame of each.
        dense_steps: Steps without a compressor.
        routed_steps: Steps after these, in turns dense, with FAST and with FASTER.
        learning_rate: Of AdamW, at its highest; it rises during `warmup_share` of the steps and falls as a cosine.
        matrix_learning_rate: The same of Muon, which trains the matrices of the blocks of backbone and decoder.
        ema_decay: Per step; the released weights are the exponential moving average.

    Source: Muon is Scalable for LLM Training, arXiv:2502.16982 (Muon with the step size of AdamW).
    """

    seed: int = 0
    streams: int = 4
    dense_steps: int = 1700
    routed_steps: int = 1900
    learning_rate: float = 1.5e-3
    matrix_learning_rate: float = 2e-3
    weight_decay: float = 0.05
    warmup_share: float = 0.05
    gradient_clip_norm: float = 3.0
    ema_decay: float = 0.995


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """What one frame should give. V cameras, N tokens an image, G boxes.

    Attributes:
        boxes: [G, 10], as BOX_COLUMNS with log-sizes.
        labels: [G].
        heat: How near a token is to the middle of an object of a class, 0 to 1, [V * N, classes].
        places: Column and row of the box centre in pixels, and log of its depth, [V * N, 3].
        weights: Of each token in the loss of `places`, [V * N].
        needed: 1 for tokens that show a box, [V * N].
    """

    boxes: Tensor
    labels: Tensor
    heat: Tensor
    places: Tensor
    weights: Tensor
    needed: Tensor


# ---- targets and loss -----------------------------------------------------------------------------------------------


def make_targets(frame: SceneFrame, config: Detector3DConfig) -> Targets:
    """What the detector should say of a frame."""
    counted = np.flatnonzero(frame.counted())
    boxes, labels = frame.boxes[counted], frame.labels[counted]
    rows, columns = config.grid
    patch, views = config.patch_size, config.num_cameras
    tiles = (
        frame.instances.reshape(views, rows, patch, columns, patch).swapaxes(2, 3).reshape(views, rows * columns, -1)
    )
    middle = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), axis=-1).reshape(-1, 2) * patch + patch / 2
    to_image = np.linalg.inv(frame.img2lidar.astype(np.float64))
    heat = np.zeros((views, rows * columns, len(config.classes)), np.float32)
    places = np.zeros((views, rows * columns, 3), np.float32)
    weights = np.zeros((views, rows * columns), np.float32)
    best = np.full((views, rows * columns), _LEAST_COVER)
    needed = np.zeros((views, rows * columns), np.float32)
    centers = []
    for number, index in enumerate(counted):
        cover = (tiles == index).mean(axis=-1)
        needed[cover >= _NEEDED_COVER] = 1
        for view in np.flatnonzero(cover.sum(axis=1) * patch * patch >= 6):
            column, row, depth, _ = to_image[view] @ np.append(boxes[number, :3].astype(np.float64), 1.0)
            depth = max(depth, 0.4)
            pixel = np.clip(
                [column / depth, row / depth], [-2 * patch] * 2, np.array(config.image_size[::-1]) + 2 * patch
            )
            place = (*pixel, math.log(depth))
            seen = cover[view]
            distance = np.where(seen >= 0.5 * seen.max(), np.linalg.norm(middle - pixel, axis=1), np.inf) / patch
            token = int(distance.argmin())
            spread = max(0.6, 0.2 * math.sqrt(seen.sum()))
            from_token = np.linalg.norm(middle - middle[token], axis=1) / patch
            near = np.where(seen > 0.1, np.exp(-(from_token**2) / (2 * spread**2)), 0)
            heat[view, :, labels[number]] = np.maximum(heat[view, :, labels[number]], near)
            better = seen > best[view]
            best[view][better] = seen[better]
            places[view][better], weights[view][better] = place, 0.3
            centers.append((view, token, labels[number], place))
    for view, token, label, place in centers:
        heat[view, token, label] = 1
        places[view, token], weights[view, token] = place, 1.0
    yaw = boxes[:, 6:7]
    coded = np.concatenate([boxes[:, :3], np.log(boxes[:, 3:6]), np.sin(yaw), np.cos(yaw), boxes[:, 7:]], axis=1)
    arrays = (coded, labels, heat.reshape(-1, heat.shape[2]), places.reshape(-1, 3), weights.ravel(), needed.ravel())
    names = ("boxes", "labels", "heat", "places", "weights", "needed")
    return Targets(**{name: torch.from_numpy(array) for name, array in zip(names, arrays, strict=True)})


def detection_loss(found: Detections, targets: Sequence[Targets], patch_size: int) -> Tensor:
    """Loss of one frame of each of B streams."""
    count = max(1, sum(len(target.labels) for target in targets))
    loss = torch.zeros(())
    for logits, boxes in found.layers:
        loss = loss + _query_loss(logits, boxes, targets, count)
    heat = torch.stack([target.heat for target in targets])
    places = torch.stack([target.places for target in targets])
    weights = torch.stack([target.weights for target in targets])
    needed = torch.stack([target.needed for target in targets])
    loss = loss + _token_loss(found.token_logits, found.token_places, heat, places, weights, patch_size)
    for scores in found.token_scores:
        loss = loss + _need_loss(scores, needed)
    return loss


def _token_loss(
    logits: Tensor, found: Tensor, heat: Tensor, places: Tensor, weights: Tensor, patch_size: int
) -> Tensor:
    """Loss of what tokens show, whether it is the middle of an object and where that is, in N tokens of B frames."""
    centers = max(1.0, float((heat == 1).sum()))
    off = (found - places).abs() * torch.tensor([0.3 / patch_size, 0.3 / patch_size, 2.5])
    return _heat_loss(logits, heat) / centers + (off.sum(dim=-1) * weights).sum() / weights.sum().clamp_min(1)


def _query_loss(logits: Tensor, boxes: Tensor, targets: Sequence[Targets], count: int) -> Tensor:
    """Focal loss of the classes and L1 of the boxes, after a one-to-one match of least cost."""
    from scipy.optimize import linear_sum_assignment

    wanted = torch.zeros_like(logits)
    found_boxes, true_boxes = [], []
    with torch.no_grad():
        probability = logits.sigmoid()
        gain = 0.25 * (1 - probability) ** 2 * -(probability + 1e-8).log()
        loss_if_not = 0.75 * probability**2 * -(1 - probability + 1e-8).log()
        cost_of_class = 2 * (gain - loss_if_not)
    for item, target in enumerate(targets):
        if not len(target.labels):
            continue
        with torch.no_grad():
            distance = torch.cdist(boxes[item, :, :2], target.boxes[:, :2], p=1)
            cost = cost_of_class[item][:, target.labels] + 0.5 * distance
        rows, columns = (torch.from_numpy(side) for side in linear_sum_assignment(cost.numpy()))
        wanted[item, rows, target.labels[columns]] = 1
        found_boxes.append(boxes[item, rows])
        true_boxes.append(target.boxes[columns])
    loss = _focal_loss(logits, wanted).sum() * 2 / count
    if found_boxes:
        off = (torch.cat(found_boxes) - torch.cat(true_boxes)).abs() * torch.tensor(_BOX_WEIGHTS)
        loss = loss + off.sum() / count
    return loss


def _focal_loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """Focal loss, arXiv:1708.02002, with alpha 0.25 and gamma 2."""
    probability = logits.sigmoid()
    entropy = functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    missed = wanted * (1 - probability) + (1 - wanted) * probability
    return (0.25 * wanted + 0.75 * (1 - wanted)) * missed**2 * entropy


def _heat_loss(logits: Tensor, heat: Tensor) -> Tensor:
    """CenterNet's focal loss of a heat map, arXiv:1904.07850."""
    probability = logits.sigmoid().clamp(1e-4, 1 - 1e-4)
    hit = -((1 - probability) ** 2) * probability.log() * (heat == 1)
    miss = -(probability**2) * (1 - probability).log() * (1 - heat) ** 4 * (heat < 1)
    return (hit + miss).sum()


def _need_loss(scores: Tensor, needed: Tensor) -> Tensor:
    """Binary entropy of the log-probabilities of being needed; tokens that are weigh as much as those that are not."""
    not_needed = torch.log(-torch.expm1(scores.clamp(max=-1e-6)))
    share = needed.mean().clamp(0.02, 0.5)
    return -(needed * scores / share + (1 - needed) * not_needed / (1 - share)).mean() / 2


# ---- training -------------------------------------------------------------------------------------------------------


class _Streams:
    """B scenes at once; a scene that ends is followed by a new one, whose history is empty."""

    def __init__(self, config: Detector3DConfig, count: int, seeds: Iterator[int]) -> None:
        self._config, self._seeds = config, seeds
        self._scenes: list[Iterator[SceneFrame]] = [iter(()) for _ in range(count)]
        self._states = [torch.zeros(count, *shape) for shape in config.state_shapes().values()]
        self._random = np.random.default_rng(0)

    def next(self) -> tuple[list[SceneFrame], list[Tensor]]:
        """The next frame of each scene, and the states to go with it."""
        frames = []
        for number in range(len(self._scenes)):
            frame = next(self._scenes[number], None)
            if frame is None:
                length = int(self._random.integers(2, 7))
                options = SceneOptions(num_frames=length, interval_s=float(self._random.choice([0.1, 0.2, 0.4])))
                self._scenes[number] = generate_scene(next(self._seeds), rig=rig_of(self._config), options=options)
                frame = next(self._scenes[number])
                for state in self._states:
                    state[number] = 0
            frames.append(frame)
        return frames, self._states

    def keep(self, states: Sequence[Tensor]) -> None:
        """Take the states of a step to the next one."""
        self._states = [state.detach().clone() for state in states]


def train(recipe: DetectorRecipe, *, say: Callable[[str], None] = say_on_stderr) -> tuple[Detector3D, Detector3D]:
    """Train; return the averaged weights after the dense steps and after all."""
    torch.manual_seed(recipe.seed)
    config = surround_detector_config()
    model = Detector3D(config)
    for block in (model.patch_embed, *model.blocks):
        block.forward = torch.autocast("cpu", torch.bfloat16)(block.forward)
    average = Detector3D(config).requires_grad_(False)
    average.load_state_dict(model.state_dict())
    nets = [attach(model, parse_spec(spec)).train() for spec in ("none", FAST, FASTER)]
    total = recipe.dense_steps + recipe.routed_steps
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(each, lambda step: _rate(step / total, recipe.warmup_share))
        for each in _optimizers(model, recipe)
    ]
    streams = _Streams(config, recipe.streams, iter(TRAIN_SEEDS))
    after_dense = copy.deepcopy(average)

    def loss_of(step: int) -> Tensor:
        if step and step % 500 == 0:
            score = evaluate(detector_of(attach(average, ()).eval()), num_scenes=10, first_seed=VALIDATION_SEED)
            say(f"step {step}: validation mAP {score.mean_ap:.3f}, error {score.translation_error_m:.2f} m")
        if step == recipe.dense_steps:
            after_dense.load_state_dict(average.state_dict())
        frames, states = streams.next()
        net = nets[0] if step < recipe.dense_steps else nets[step % 3]
        found = net.detect(*frame_inputs(frames), *states)
        streams.keep(found.states)
        return detection_loss(found, [make_targets(frame, config) for frame in frames], config.patch_size)

    fit(
        model,
        loss_of,
        schedules,
        steps=total,
        gradient_clip_norm=recipe.gradient_clip_norm,
        average=MovingAverage(model=average, decay=recipe.ema_decay, rise=9),
        say=say,
    )
    return after_dense.eval(), average.eval()


def _optimizers(model: Detector3D, recipe: DetectorRecipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for everything else; only matrices and kernels decay."""
    if not hasattr(torch.optim, "Muon"):
        raise UnsupportedError(f"Training {NAME} needs torch.optim.Muon, which torch {torch.__version__} lacks.")
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    in_blocks = {id(parameter) for part in (model.blocks, model.decoder) for parameter in part.parameters()}
    matrices = [parameter for parameter in trained if parameter.ndim == 2 and id(parameter) in in_blocks]
    taken = {id(parameter) for parameter in matrices}
    others = [parameter for parameter in trained if id(parameter) not in taken]
    return [
        torch.optim.Muon(
            matrices,
            lr=recipe.matrix_learning_rate,
            weight_decay=recipe.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(
            [
                {"params": [p for p in others if p.ndim > 1], "weight_decay": recipe.weight_decay},
                {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0},
            ],
            lr=recipe.learning_rate,
        ),
    ]


def _rate(progress: float, warmup_share: float) -> float:
    """Share of the highest learning rate when `progress` of all steps is done: a rise, then half a cosine."""
    rise = min(1.0, (progress + 1e-3) / warmup_share)
    return rise * max(0.01, 0.5 * (1 + math.cos(math.pi * progress)))


# ---- evaluation -----------------------------------------------------------------------------------------------------


def held_out_scores(model: Detector3D) -> dict[str, DetectionScore]:
    """Scores of the detector on held-out scenes by spec string: dense, FAST, FASTER."""
    return {
        spec: evaluate(detector_of(attach(model, parse_spec(spec)).eval()), num_scenes=NUM_HELD_OUT)
        for spec in ("none", FAST, FASTER)
    }


def write_release(
    model: Detector3D, after_dense: Detector3D, recipe: DetectorRecipe, directory: Path, *, cpu_seconds: float
) -> dict[str, Any]:
    """Write weights and model card into `directory`, and return the card."""
    weights = release.write_weights(model, directory / WEIGHTS_FILE.name)
    before = evaluate(detector_of(attach(after_dense, ()).eval()), num_scenes=NUM_HELD_OUT)
    scores = held_out_scores(model)
    config = model.config
    card = {
        "name": NAME,
        "task": "find cars, trucks and pedestrians around a vehicle in the images of four calibrated cameras",
        "architecture": {
            name: list(value) if isinstance(value, tuple) else value for name, value in asdict(config).items()
        },
        "data": {
            "name": "driving scenes made by models/zoo/data/driving_scenes.py",
            "scene": asdict(SceneOptions()),
            "training_seeds": [TRAIN_SEEDS.start, TRAIN_SEEDS.stop],
            "held_out_seeds": [HELD_OUT_SEEDS.start, HELD_OUT_SEEDS.start + NUM_HELD_OUT],
            "limits": "Textured boxes on a plane: it knows nothing of real streets.",
        },
        "training": {
            **asdict(recipe),
            "order": "Dense steps first; then in turns dense and with ToC3D at both settings, on the same weights.",
            "cpu_seconds": round(cpu_seconds),
        },
        "accuracy": {
            "metric": "mean average precision over 0.5, 1, 2 and 4 m, translation error at 2 m, as nuScenes has them",
            "frames": NUM_HELD_OUT * SceneOptions().num_frames,
            "dense_steps_only": _score_row(before),
            **{spec: _score_row(score) for spec, score in scores.items()},
        },
        "weights": weights,
    }
    packages = ("numpy", "scipy", "torch")
    return release.write_card(card, directory / CARD_FILE.name, command=COMMAND, packages=packages)


def _score_row(score: DetectionScore) -> dict[str, Any]:
    return {
        "mean_ap": round(score.mean_ap, 4),
        "translation_error_m": round(score.translation_error_m, 3),
        "average_precision": dict(zip(CLASSES, (round(value, 4) for value in score.average_precision), strict=True)),
        "boxes": sum(score.num_truth),
    }


def main(arguments: list[str] | None = None) -> int:
    """Train, measure and write the release; return the exit code."""

    def make(options: argparse.Namespace, directory: Path) -> dict[str, Any]:
        torch.set_num_threads(1)
        recipe, start = DetectorRecipe(), time.process_time()
        after_dense, model = train(recipe)
        seconds = time.process_time() - start
        card = write_release(model, after_dense, recipe, directory, cpu_seconds=seconds)
        accuracy: dict[str, Any] = card["accuracy"]
        return accuracy

    parser = argparse.ArgumentParser(prog=f"python -m trt_compress.models.zoo.{NAME}.train", description=__doc__)
    return release.run(parser, make, arguments)


if __name__ == "__main__":
    sys.exit(main())
