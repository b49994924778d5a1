"""The 3D detector: geometry, history and routing against their definitions."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.models.detectors import SMALL, compress, make_detector, make_frames, no_history, run
from trt_compress.errors import ConfigError
from trt_compress.models.hosts.detector3d import (
    LONGEST_AGE_S,
    CompressedDetector3D,
    Detections,
    Detector3D,
    Detector3DConfig,
    _history,
)
from trt_compress.models.hosts.detector3d_layers import Block, DistanceAttention
from trt_compress.models.zoo.surround_detector.model import frame_inputs
from trt_compress.plugins.operator import recording

ROUTED = "toc3d:keep_ratio=0.5"


@torch.no_grad()
def detect(net: CompressedDetector3D, seed: int = 0) -> Detections:
    frames = make_frames(seed, count=1)
    return net.detect(*frame_inputs(frames), *no_history(1))


# ---- geometry -------------------------------------------------------------------------------------------------------


def test_a_proposal_starts_where_its_token_says() -> None:
    """Pixel and depth of every token, lifted by hand, hold each query's starting point."""
    frame = make_frames(count=1)[0]
    found = detect(compress(make_detector(), "none"))
    points = []
    per_view = found.token_places.shape[1] // SMALL.num_cameras
    for token, (column, row, log_depth) in enumerate(found.token_places[0].double().numpy()):
        depth = np.exp(np.clip(log_depth, -1, 5))
        matrix = frame.img2lidar[token // per_view].astype(np.float64)
        points.append((matrix @ [column * depth, row * depth, depth, 1.0])[:3])
    starts = found.references[0, : SMALL.num_proposals].double().numpy()
    distance = np.linalg.norm(starts[:, None] - np.array(points)[None], axis=2).min(axis=1)
    assert distance.max() < 1e-3
    assert len(np.unique(starts.round(4), axis=0)) == SMALL.num_proposals


def test_depth_follows_from_the_foot_on_the_ground() -> None:
    """Lifted at the depth that a token says, the pixel at its foot lies on the ground, but for things far away."""
    detector, frame, below = make_detector(), make_frames(count=1)[0], 1.25
    last = detector.token_head[-1]
    assert isinstance(last, torch.nn.Linear)
    with torch.no_grad():
        last.weight.zero_()
        last.bias[-1] = below
    places = detect(compress(detector, "none")).token_places[0].double().numpy()
    per_view, checked = len(places) // SMALL.num_cameras, 0
    for token, depth in enumerate(np.exp(places[:, 2])):
        column, row = detector.token_centers[token % per_view].tolist()
        foot = [column * depth, (row + below * SMALL.patch_size) * depth, depth, 1.0]
        height = (frame.img2lidar[token // per_view].astype(np.float64) @ foot)[2]
        if depth < 10:
            checked += 1
            assert abs(height) < 0.05
    assert checked >= 10
    assert np.isfinite(places).all() and (places[:, 2] > 0).all()


def test_only_peaks_keep_their_logits() -> None:
    """Brute force: a token is a peak of a class if none of the eight around it in its image has more."""
    net, (rows, columns) = compress(make_detector(), "none"), SMALL.grid
    shape = (2, SMALL.num_cameras, rows, columns, len(SMALL.classes))
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = net._peaks(logits.reshape(2, -1, shape[-1])).reshape(shape)
    for *image, row, column, label in np.ndindex(*shape):
        near = logits[(*image, slice(max(row - 1, 0), row + 2), slice(max(column - 1, 0), column + 2), label)]
        here = logits[(*image, row, column, label)]
        assert (found[(*image, row, column, label)] == here) == bool(here == near.max())
    assert (found <= logits).all()


def test_attention_fades_with_distance() -> None:
    """A head whose slope is s weighs a key that is d metres away by exp(-s d); equal keys, so nothing else counts."""
    layer = DistanceAttention(4, 2)
    with torch.no_grad():
        layer.log_slope.copy_(torch.tensor([0.5, 2.0]).log())
        for part in (layer.v, layer.out):
            part.weight.copy_(torch.eye(4))
            part.bias.zero_()
        distance = torch.tensor([[[0.0, 1.0, 3.0]]])
        value = torch.randn(1, 3, 4, generator=torch.Generator().manual_seed(0))
        found = layer(torch.ones(1, 1, 4), torch.ones(1, 3, 4), value, distance)[0, 0]
        for head, slope in enumerate((0.5, 2.0)):
            share = torch.softmax(-slope * distance[0, 0], dim=0)
            half = slice(2 * head, 2 * head + 2)
            assert torch.allclose(found[half], share @ value[0, :, half], atol=1e-6)


def random_pose(seed: int) -> np.ndarray:  # type: ignore[type-arg]
    generator = np.random.default_rng(seed)
    yaw, pose = generator.uniform(-3, 3), np.eye(4)
    pose[:2, :2] = [[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]]
    pose[:3, 3] = generator.uniform(-900, 900, 3)
    return pose


def test_history_is_carried_by_velocity_and_ego_motion() -> None:
    before, now = random_pose(1), random_pose(1)
    now[:3, 3] += (1.5, -2.0, 0.1)
    turn = random_pose(2)
    now[:3, :3] = turn[:3, :3]
    motion = np.random.default_rng(0).uniform(-10, 10, (1, 5, 5))
    history = _history(
        torch.tensor(now, dtype=torch.float32)[None],
        torch.tensor([[3.25]]),
        torch.zeros(1, 5, 24),
        torch.tensor(motion, dtype=torch.float32),
        torch.tensor(before, dtype=torch.float32)[None],
        torch.tensor([[3.0]]),
    )
    found = history.reference @ history.to_ego[0, :3, :3].T + history.to_ego[0, :3, 3]
    for query in range(5):
        center, velocity = motion[0, query, :3], np.append(motion[0, query, 3:], 0.0)
        in_global = before @ np.append(center + 0.25 * velocity, 1.0)
        expected = np.linalg.inv(now) @ in_global
        assert found[0, query].numpy() == pytest.approx(expected[:3], abs=2e-3)
    assert history.age.unique().item() == pytest.approx(0.25)
    assert history.exists.item() == 1


def test_no_history_and_an_old_one() -> None:
    pose = torch.tensor(random_pose(3), dtype=torch.float32)[None]
    query, motion, no_pose, no_time = no_history(1)
    nothing = _history(pose, torch.tensor([[5.0]]), query, motion, no_pose, no_time)
    assert nothing.exists.item() == 0
    assert nothing.age.abs().max() == 0
    assert torch.equal(nothing.to_ego[0], torch.eye(4))
    old = _history(pose, torch.tensor([[500.0]]), query, motion, pose, torch.tensor([[1.0]]))
    assert old.age.unique().item() == LONGEST_AGE_S


def test_the_world_may_be_anywhere() -> None:
    """Only the motion between frames counts: other global coordinates, the same boxes."""
    net, frames = compress(make_detector(), "none"), make_frames(count=3)
    shift = random_pose(5)
    shifted = [dataclasses.replace(frame, ego_pose=shift @ frame.ego_pose) for frame in frames]
    for one, other in zip(run(net, frames), run(net, shifted), strict=True):
        assert torch.allclose(one[0], other[0], atol=2e-3)
        assert torch.allclose(one[1], other[1], atol=1e-3)


# ---- history --------------------------------------------------------------------------------------------------------


def test_history_changes_what_is_found() -> None:
    net, frames = compress(make_detector(), "none"), make_frames(count=2)
    first, second = run(net, frames)
    (alone,) = run(net, frames[1:])
    assert (second[1] - alone[1]).abs().max() > 1e-3
    old = SMALL.num_proposals
    assert first[1][:, old:].max() < 1e-6  # queries of a history that is not there are never a box
    assert alone[1][:, old:].max() < 1e-6
    assert second[1][:, old:].max() > 1e-3


def test_the_first_frame_looks_at_no_history() -> None:
    """Whatever else the states hold: without a pose there is none."""
    net, frames = compress(make_detector(), ROUTED), make_frames(count=1)
    generator = torch.Generator().manual_seed(0)
    query, motion, pose, time = no_history(1)
    filled = (torch.randn(query.shape, generator=generator), torch.randn(motion.shape, generator=generator), pose, time)
    (clean,), (other,) = run(net, frames), run(net, frames, filled)
    assert torch.allclose(clean[0][:, : SMALL.num_proposals], other[0][:, : SMALL.num_proposals], atol=1e-5)
    assert torch.equal(clean[1][:, : SMALL.num_proposals], other[1][:, : SMALL.num_proposals]) or torch.allclose(
        clean[1], other[1], atol=1e-6
    )


def test_the_best_queries_are_kept() -> None:
    found = run(compress(make_detector(), "none"), make_frames(count=1))[0]
    boxes, scores, _, motion, *_ = found
    best = scores[0].amax(dim=1).topk(SMALL.num_history).indices.sort().values
    assert torch.allclose(motion[0, :, :3], boxes[0, best, :3], atol=1e-6)
    assert torch.allclose(motion[0, :, 3:], boxes[0, best, 8:], atol=1e-6)


def test_streams_of_a_batch_do_not_mix() -> None:
    net = compress(make_detector(), ROUTED)
    frames = [make_frames(seed, count=2) for seed in (0, 1)]
    alone = [run(net, stream) for stream in frames]
    states = no_history(2)
    with torch.no_grad():
        for step in range(2):
            found = net(*frame_inputs([stream[step] for stream in frames]), *states)
            states = found[2:]
            for item in range(2):
                for together, single in zip(found, alone[item][step], strict=True):
                    assert torch.allclose(together[item : item + 1], single, atol=1e-4)


# ---- routing --------------------------------------------------------------------------------------------------------


def test_detached_it_is_the_model() -> None:
    detector = make_detector()
    weights = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    net = compress(detector, ROUTED)
    run(net, make_frames(count=1))
    assert net.detach() is detector
    assert all(torch.equal(tensor, weights[name]) for name, tensor in detector.state_dict().items())
    dense = run(compress(detector, "none"), make_frames(count=1))[0]
    with torch.no_grad():
        direct = detector(*frame_inputs(make_frames(count=1)), *no_history(1))
    assert all(torch.equal(one, other) for one, other in zip(dense, direct, strict=True))


def test_keeping_everything_is_dense() -> None:
    detector, frames = make_detector(), make_frames(count=3)
    dense, kept = (run(compress(detector, spec), frames) for spec in ("none", "toc3d:keep_ratio=1.0"))
    for one, other in zip(dense, kept, strict=True):
        assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(one, other, strict=True))


def test_plan_and_tokens_agree() -> None:
    net = compress(make_detector(), "toc3d:keep_ratio=[0.5,0.3],layers=[1,3]")
    assert [(site.name, site.tokens_in, site.tokens_out) for site in net.plan] == [
        ("blocks.1", 16, 8 + 1),
        ("blocks.2", 24, 12 + 1),
        ("blocks.3", 16, 4 + 1),
    ]
    with recording() as record:
        run(net, make_frames(count=1))
    tokens = {key.split("/")[0]: tensor for key, tensor in record.items() if key.endswith("/tokens")}
    assert [(name, *tensor.shape[:2]) for name, tensor in tokens.items()] == [
        (site.name, site.groups, site.tokens_out) for site in net.plan
    ]
    assert net.info.grid is not None
    whole = net.info.grid[0] * net.info.grid[1] * net.detector.config.num_cameras  # the windows of 16 are padded
    assert all(site.groups * int(site.tokens_in) - site.padding == whole for site in net.plan)
    assert [site.padding > 0 for site in net.plan] == [True, False, True]


def before_norm(detector: Detector3D, spec: str) -> Tensor:
    """Tokens that leave the backbone, [R, N, C]."""
    seen: list[Tensor] = []
    handle = detector.norm.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    run(compress(detector, spec), make_frames(count=1))
    handle.remove()
    return seen[0]


def test_without_representative_other_tokens_stay_as_they_are() -> None:
    """The last block changes a quarter of the 16 places of each of 2 windows of 2 images, the best; with one, all."""
    detector, idle = make_detector(), make_detector()
    with torch.no_grad():
        last = idle.blocks[3]
        assert isinstance(last, Block)
        for parameter in (*last.attention.out.parameters(), *last.mlp[2].parameters()):
            parameter.zero_()
    before = before_norm(idle, "none")
    spec = "toc3d:keep_ratio=0.25,layers=[3]"
    alone = (before_norm(detector, f"{spec},representative=false") != before).any(dim=2)
    assert alone.sum(dim=1).tolist() == [2 * 4, 2 * 4]
    assert (before_norm(detector, spec) != before).any(dim=2).all()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "toc3d:layers=[2]",
            r"toc3d: layers=\[2\] names layer 2, but small scores tokens only before layers 1, 3; name",
        ),
        ("toc3d:keep_ratio=1.5", r"toc3d: keep_ratio=1\.5 is out of range"),
        (
            "toc3d+toc3d",
            r"toc3d: decides which tokens pass the blocks, so no other compressor can act beside it; give it alone\.",
        ),
        ("tome:num_merged=3", r"tome: acts at after_attention, but small offers only block_routing;"),
        ("toc3d:keep_ratio=[0.5,0.4]", r"toc3d: keep_ratio lists 2 ratios; give layers= with as many layers"),
    ],
)
def test_refused(spec: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compress(make_detector(), spec)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"image_size": (30, 48)}, r"image_size=\[30, 48\] is no multiple of patch_size=8; choose both so that whole"),
        ({"global_layers": (9,)}, r"global_layers=\[9\] names a layer outside of 0\.\.3\."),
        ({"global_layers": (1,)}, r"layer 1 is in global_layers and in scored_layers; tokens are scored before blocks"),
    ],
)
def test_forms_that_are_none(changed: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Detector3DConfig(**{**dataclasses.asdict(SMALL), **changed})  # type: ignore[arg-type]
