"""The trained detector: targets and loss against their definitions."""

import math

import numpy as np
import pytest
import torch

from tests.models.detectors import SMALL, make_detector, make_frames
from trt_compress.models.hosts.detector3d import Detections
from trt_compress.models.zoo.data.driving_scenes import SceneFrame
from trt_compress.models.zoo.surround_detector.train import (
    DetectorRecipe,
    Targets,
    _optimizers,
    _rate,
    detection_loss,
    make_targets,
)


@pytest.fixture(scope="module")
def frames() -> list[SceneFrame]:
    return [frame for seed in range(8) for frame in make_frames(seed, count=1)]


def test_targets_hold_the_counted_boxes(frames: list[SceneFrame]) -> None:
    assert sum(len(frame.boxes) for frame in frames) > 10
    for frame in frames:
        targets, counted = make_targets(frame, SMALL), frame.counted()
        boxes = frame.boxes[counted]
        assert targets.labels.tolist() == frame.labels[counted].tolist()
        found = targets.boxes.numpy()
        np.testing.assert_allclose(found[:, :3], boxes[:, :3])
        np.testing.assert_allclose(np.exp(found[:, 3:6]), boxes[:, 3:6], rtol=1e-5)
        np.testing.assert_allclose(np.arctan2(found[:, 6], found[:, 7]), boxes[:, 6], atol=1e-5)
        np.testing.assert_allclose(found[:, 8:], boxes[:, 7:])


def test_token_targets_are_where_boxes_are_seen(frames: list[SceneFrame]) -> None:
    """The place of a token, lifted, is the middle of a box; a peak of the heat is on a token that shows a box."""
    peaks = 0
    for frame in frames:
        targets, (rows, columns) = make_targets(frame, SMALL), SMALL.grid
        shown = np.isin(frame.instances, np.flatnonzero(frame.counted()))
        share = shown.reshape(SMALL.num_cameras, rows, 8, columns, 8).mean(axis=(2, 4)).reshape(-1)
        assert ((targets.needed.numpy() == 1) == (share > 0)).mean() > 0.9
        for token, label in np.argwhere(targets.heat.numpy() == 1):
            assert share[token] > 0
            assert label in targets.labels.tolist()
            column, row, log_depth = targets.places[token].double().numpy()
            depth = math.exp(log_depth)
            lifted = frame.img2lidar[token // (rows * columns)].astype(float) @ [column * depth, row * depth, depth, 1]
            distance = np.linalg.norm(targets.boxes[:, :3].numpy() - lifted[:3], axis=1)
            inside = abs(column - 24) < 24 + 16 and abs(row - 16) < 16 + 16
            assert distance.min() < 0.05 or not inside  # a middle far outside of the image is pulled to its border
            peaks += 1
    assert peaks > 10


def perfect(targets: Targets, *, shift_m: float = 0.0, sure: float = 9.0) -> Detections:
    """What a detector would give that knows the targets."""
    count, queries, classes = len(targets.labels), 12, len(SMALL.classes)
    logits = torch.full((1, queries, classes), -sure)
    boxes = torch.full((1, queries, 10), 50.0)
    logits[0, torch.arange(count), targets.labels] = sure
    boxes[0, :count] = targets.boxes
    boxes[0, :count, 0] += shift_m
    token_logits = torch.where(targets.heat == 1, sure, -sure)[None]
    scores = torch.where(targets.needed == 1, torch.tensor(-1e-4), torch.tensor(-sure))[None]
    return Detections(
        boxes=boxes,
        scores=logits.sigmoid(),
        states=(),
        layers=((logits, boxes),),
        token_logits=token_logits,
        token_places=targets.places[None],
        token_scores=(scores,),
        references=boxes[..., :3],
    )


def test_a_perfect_detector_has_no_loss(frames: list[SceneFrame]) -> None:
    targets = make_targets(max(frames, key=lambda frame: frame.counted().sum()), SMALL)
    assert len(targets.labels) >= 2
    best = float(detection_loss(perfect(targets), [targets], SMALL.patch_size))
    assert best < 0.02
    off = float(detection_loss(perfect(targets, shift_m=1.0), [targets], SMALL.patch_size))
    assert off - best == pytest.approx(0.5, abs=1e-3)  # half a unit for each metre along x, a mean over the boxes
    unsure = float(detection_loss(perfect(targets, sure=0.0), [targets], SMALL.patch_size))
    assert unsure > best + 1


def test_every_weight_is_trained_once() -> None:
    """Muon has the matrices of the blocks, AdamW everything else that is trained, kernels and matrices with decay."""
    model = make_detector()
    muon, adam = _optimizers(model, DetectorRecipe())
    names = {id(parameter): name for name, parameter in model.named_parameters() if parameter.requires_grad}
    taken = [names[id(p)] for each in (muon, adam) for group in each.param_groups for p in group["params"]]
    assert sorted(taken) == sorted(names.values())
    of_muon = {names[id(p)] for p in muon.param_groups[0]["params"]}
    assert "blocks.0.attention.qkv.weight" in of_muon and "decoder.0.toward.q.weight" in of_muon
    assert not {name for name in of_muon if not name.startswith(("blocks.", "decoder."))}
    decayed, other = adam.param_groups
    assert decayed["weight_decay"] > 0 == other["weight_decay"]
    assert {p.ndim for p in other["params"]} == {1} and min(p.ndim for p in decayed["params"]) >= 2


def test_the_learning_rate_rises_and_falls() -> None:
    rates = [_rate(step / 1000, 0.05) for step in range(1000)]
    highest = rates.index(max(rates))
    assert 40 <= highest <= 50 and rates[0] < 0.05 and max(rates) > 0.99
    assert all(a < b for a, b in zip(rates[:highest], rates[1 : highest + 1], strict=True))
    assert all(a >= b for a, b in zip(rates[highest:], rates[highest + 1 :], strict=False))
    assert rates[-1] == 0.01
