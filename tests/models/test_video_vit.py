"""The video model: its data, reuse from frame to frame against a slow reference, and bundles of several levels."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from trt_compress.errors import ConfigError, UnsupportedError
from trt_compress.export import api
from trt_compress.export.course import initial_state
from trt_compress.methods import parse_spec
from trt_compress.methods.video import StaticReuseConfig
from trt_compress.models.compressors.static_reuse import change_score
from trt_compress.models.hosts import timm_vit
from trt_compress.models.hosts.base import GraphSpec
from trt_compress.models.hosts.registry import load_host
from trt_compress.models.zoo.data import moving_digits
from trt_compress.models.zoo.video_vit import model as video_vit
from trt_compress.models.zoo.video_vit.model import WEIGHTS_FILE, build_video_vit, video_vit_card
from trt_compress.models.zoo.video_vit.score import TEST_CLIPS, dense_stream, score_stream
from trt_compress.runtime import Bundle, Session

TOGETHER = 20  # clips a batch: a test here says that they are streams of their own
LEVELS = "static_reuse:keep_ratio=[0.25,1]"


@pytest.fixture(scope="module")
def model() -> VisionTransformer:
    return build_video_vit()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("video") / "levels"
    api.export_model("zoo:video_vit", compress=LEVELS, batch="1", output=output)
    return output


def small_vit() -> VisionTransformer:
    torch.manual_seed(0)
    vit = VisionTransformer(img_size=96, patch_size=24, embed_dim=16, depth=3, num_heads=2, num_classes=12)
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.2)
    return vit.eval()


def clip_frames(count: int, clip: int = 0) -> Tensor:
    return torch.from_numpy(moving_digits.as_input(moving_digits.make_clip("test", clip, length=count).frames))


def stream(graph: GraphSpec, frames: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    states = [torch.from_numpy(initial_state(state, {"batch": len(frames[0])})) for state in graph.states]
    results = []
    with torch.no_grad():
        for frame in frames:
            logits, centre, *states = graph.module(frame, *states)
            results.append((logits, centre))
    return results


# ---- data -----------------------------------------------------------------------------------------------------------


def test_parts_share_neither_digits_nor_backgrounds() -> None:
    columns = sorted(moving_digits.COLUMNS.values())
    assert all(low < high for low, high in columns)
    assert all(before[1] <= after[0] for before, after in zip(columns, columns[1:], strict=False))
    digits = [moving_digits.digits_of(part)[0] for part in moving_digits.COLUMNS]
    assert [len(images) for images in digits] == [1257, 180, 360]
    assert all(float(images.min()) == 0 and float(images.max()) == 1 for images in digits)


def test_clips_are_seeded_and_the_digit_is_where_they_say() -> None:
    clip, again = (moving_digits.make_clip("test", 5, length=6) for _ in range(2))
    assert np.array_equal(clip.frames, again.frames) and clip.frames.shape == (6, 96, 96, 3)
    background = np.median(moving_digits.make_clip("test", 5, length=40).frames, axis=0)
    for frame, centre in zip(clip.frames, clip.centres, strict=True):
        brighter = np.clip(frame.astype(float) - background, 0, None).sum(axis=2) > 90
        rows, columns = np.nonzero(brighter)
        assert np.hypot(columns.mean() - centre[0], rows.mean() - centre[1]) < 6
    assert not np.array_equal(clip.frames, moving_digits.make_clip("test", 6, length=6).frames)


def test_the_digit_bounces_inside_the_frame() -> None:
    centres = np.concatenate([moving_digits.make_clip("train", index, length=60).centres for index in range(8)])
    assert centres.min() >= moving_digits.DIGIT_SIZE / 2 - 1e-3
    assert centres.max() <= moving_digits.FRAME_SIZE - moving_digits.DIGIT_SIZE / 2 + 1e-3


# ---- the host -------------------------------------------------------------------------------------------------------


def test_without_compressors_it_is_the_model(model: VisionTransformer) -> None:
    (graph,) = load_host("zoo:video_vit").attach(())
    frames = clip_frames(3)
    with torch.no_grad():
        logits, centre = graph.module(frames)
        wanted = model(frames)
    torch.testing.assert_close(torch.cat([logits, centre], dim=1), wanted, rtol=0, atol=1e-5)
    assert graph.states == () and graph.module.plan == ()


def test_the_dense_level_is_the_model_whatever_came_before(model: VisionTransformer) -> None:
    _, dense = video_vit.attach(model, parse_spec(LEVELS))
    frames = clip_frames(4)
    found = stream(dense, [frames[index : index + 1] for index in (0, 3, 1)])
    with torch.no_grad():
        wanted = model(frames[[0, 3, 1]])
    torch.testing.assert_close(torch.cat([torch.cat(pair, dim=1) for pair in found]), wanted, rtol=0, atol=1e-5)


def slow_reuse(vit: Any, frames: Sequence[Tensor], num_kept: int) -> list[Tensor]:
    """Reuse by its words, one frame and one patch at a time; what is stored are tokens before the attention."""
    side = vit.patch_embed.grid_size[0]
    patch = 96 // side
    seen: dict[int, tuple[Tensor, int]] = {}
    stored: list[dict[int, Tensor]] = [{} for _ in vit.blocks]
    results = []
    for frame in frames:
        tiles = [
            frame[0, :, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
            for row in range(side)
            for column in range(side)
        ]
        urgency = [
            (4 if n not in seen else seen[n][1] * 1e-4) + float((tile - (seen[n][0] if n in seen else 0)).abs().mean())
            for n, tile in enumerate(tiles)
        ]
        chosen = sorted(sorted(range(len(tiles)), key=lambda n: -urgency[n])[:num_kept])
        embedded = vit._pos_embed(vit.patch_embed(frame))[0]
        tokens = {-1: embedded[0], **{n: embedded[n + 1] for n in chosen}}
        for block, memory in zip(vit.blocks, stored, strict=True):
            memory.update({n: block.norm1(token) for n, token in tokens.items()})
            places = sorted(memory)
            sequence = torch.stack([memory[n] for n in places])[None]
            attended = dict(zip(places, block.attn(sequence)[0], strict=True))
            tokens = {n: token + attended[n] for n, token in tokens.items()}
            tokens = {n: token + block.mlp(block.norm2(token)) for n, token in tokens.items()}
        seen = {n: (tile, age + 1) for n, (tile, age) in seen.items()} | {n: (tiles[n], 0) for n in chosen}
        results.append(vit.forward_head(vit.norm(tokens[-1])[None, None])[0])
    return results


@pytest.mark.parametrize("num_kept", [1, 5, 15])
def test_reuse_is_what_its_words_say(num_kept: int) -> None:
    vit = small_vit()
    (graph,) = video_vit.attach(vit, parse_spec(f"static_reuse:keep_ratio={num_kept / 16}"))
    frames = list(clip_frames(8, clip=3).split(1))
    with torch.no_grad():
        wanted = slow_reuse(vit, frames, num_kept)
    found = [torch.cat(pair, dim=1)[0] for pair in stream(graph, frames)]
    torch.testing.assert_close(torch.stack(found), torch.stack(wanted), rtol=1e-4, atol=1e-5)


def test_on_a_frame_that_stays_reuse_comes_to_the_dense_answer(model: VisionTransformer) -> None:
    (graph,) = video_vit.attach(model, parse_spec("static_reuse:keep_ratio=0.25"))
    frame = clip_frames(1)
    with torch.no_grad():
        wanted = model(frame)
    found = [torch.cat(pair, dim=1) for pair in stream(graph, [frame] * 24)]
    errors = [float((each - wanted).abs().max()) for each in found]
    assert errors[-1] < 1e-4 < errors[0]


def test_items_of_a_batch_are_streams_of_their_own(model: VisionTransformer) -> None:
    (graph,) = video_vit.attach(model, parse_spec("static_reuse:keep_ratio=0.25"))
    clips = [clip_frames(3, clip) for clip in (1, 2)]
    together = stream(graph, [torch.stack([clip[step] for clip in clips]) for step in range(3)])
    for item, clip in enumerate(clips):
        alone = stream(graph, list(clip.split(1)))
        for both, one in zip(together, alone, strict=True):
            torch.testing.assert_close(both[0][item], one[0][0], rtol=0, atol=1e-4)


def test_names_and_shapes_of_the_levels(model: VisionTransformer) -> None:
    few, dense = video_vit.attach(model, parse_spec(LEVELS))
    assert (few.name, dense.name) == ("k25", "dense")
    assert few.states == dense.states and {state.name for state in few.states} == {
        "patches", "age", *(f"keys_values_{layer}" for layer in range(6))
    }  # fmt: skip
    assert [(site.name, site.tokens_in, site.tokens_out) for site in few.module.plan] == [("patch_embed", 144, 36)]
    assert few.module.plan[0].keeps_rest
    (alone,) = video_vit.attach(model, parse_spec("static_reuse"))
    assert alone.name == "model" and {state.name for state in alone.states} == {None}


def test_what_cannot_be_is_refused(model: VisionTransformer) -> None:
    with pytest.raises(
        ConfigError, match=r"static_reuse: keeps the tokens .* so no other compressor can act beside it"
    ):
        video_vit.attach(model, parse_spec("static_reuse+tome:num_merged=4"))
    with pytest.raises(
        ConfigError, match=r"static_reuse: acts at patch_embed, but the model offers only after_attention"
    ):
        timm_vit.attach(model, parse_spec("static_reuse"))
    pooled = VisionTransformer(img_size=96, patch_size=24, embed_dim=16, depth=1, num_heads=2, global_pool="avg")
    with pytest.raises(ConfigError, match=r"has 1 prefix tokens and global_pool='avg'; it needs a class token alone"):
        video_vit.attach(pooled, parse_spec("static_reuse"))
    with pytest.raises(UnsupportedError, match="model class Linear"):
        video_vit.attach(torch.nn.Linear(2, 2), parse_spec("static_reuse"))


# ---- bundles --------------------------------------------------------------------------------------------------------


def test_a_bundle_of_levels_is_proven_over_a_sequence(bundle: Path) -> None:
    report = api.verify(bundle)
    assert report.passed and report.inputs == "held-out examples of the model"
    assert {check.step for check in report.outputs if check.graph == "k25"} == set(range(1, 7))
    assert all(site.indices_equal for site in report.sites)
    assert {(site.graph, site.tokens_out_onnx) for site in report.sites} == {("k25", 36), ("dense", 144)}
    assert report.paths == {"TokenRestore": {"native": 0, "function": 7}, "TokenSelect": {"native": 0, "function": 1}}
    assert api.preflight(bundle, target="rtx") == ()


def test_a_stream_changes_its_level_and_its_state_survives(bundle: Path, model: VisionTransformer) -> None:
    levels = {graph.name: graph for graph in video_vit.attach(model, parse_spec(LEVELS))}
    chosen = ["dense", "k25", "k25", "dense", "k25"]
    frames = clip_frames(5, clip=7)
    states = [torch.from_numpy(initial_state(state, {"batch": 1})) for state in levels["k25"].states]
    wanted = []
    with torch.no_grad():
        for frame, name in zip(frames.split(1), chosen, strict=True):
            logits, centre, *states = levels[name].module(frame, *states)
            wanted.append({"logits": logits.numpy(), "centre": centre.numpy()})
    with Session.open(bundle, threads=1) as session:
        assert session.graphs == ("k25", "dense")
        for _ in range(2):
            for frame, name, expected in zip(frames.split(1), chosen, wanted, strict=True):
                found = session.run_graph(name, {"frame": frame.numpy()})
                for output, value in expected.items():
                    np.testing.assert_allclose(found[output], value, rtol=0, atol=1e-3)
            session.reset()
        first = session.run_graph("k25", {"frame": frames[:1].numpy()})
        assert float(np.abs(first["logits"] - wanted[0]["logits"]).max()) > 1e-2  # nothing of the streams before


def test_the_manifest_tells_the_levels(bundle: Path) -> None:
    manifest = Bundle.open(bundle).manifest
    assert [graph.name for graph in manifest.graphs] == ["k25", "dense"]
    assert {state.name for state in manifest.states if state.graph == "dense"} == {
        state.name for state in manifest.states if state.graph == "k25"
    }
    assert manifest.flops is not None
    few, dense = (manifest.flops["graphs"][name]["total"] for name in ("k25", "dense"))
    assert 3.2 < dense / few < 4.1
    assert manifest.postprocess["classes"] == 10 and manifest.preprocess["kind"] == "image"


@pytest.mark.slow
def test_token_merging_acts_inside_the_frame(tmp_path: Path) -> None:
    result = api.export_model("zoo:video_vit", compress="tome:num_merged=8", batch="1", output=tmp_path / "tome")
    assert [site.tokens_out for site in result.manifest.compression] == [137, 129, 121, 113, 105, 97]
    assert result.manifest.verification is not None and result.manifest.verification.passed


def test_change_is_measured_in_pixels() -> None:
    patches = torch.zeros(1, 3, 4)
    moved = patches.clone()
    moved[0, 1] = 0.5
    score = change_score(moved, patches, torch.zeros(1, 3), StaticReuseConfig().staleness_weight)
    assert score.tolist() == [[0, 0.5, 0]]


# ---- accuracy -------------------------------------------------------------------------------------------------------


def test_the_card_fits_the_weights() -> None:
    import hashlib

    card = video_vit_card()
    content = WEIGHTS_FILE.read_bytes()
    assert card["weights"]["sha256"] == hashlib.sha256(content).hexdigest()
    assert card["weights"]["bytes"] == len(content) < 4_000_000


@pytest.mark.slow
def test_the_accuracy_of_the_card_is_reached_again(model: VisionTransformer) -> None:
    card: dict[str, Any] = video_vit_card()["accuracy"]["test"]
    found = score_stream("test", TEST_CLIPS, lambda: dense_stream(model), together=TOGETHER)
    assert found["frames"] == card["frames"]
    for part in ("digit", "place", "both"):
        assert found[part] == pytest.approx(card[part], abs=2e-3)


@pytest.mark.slow
def test_reuse_costs_at_most_a_point(model: VisionTransformer) -> None:
    few, dense = video_vit.attach(model, parse_spec(LEVELS))

    def start() -> Any:
        states = [torch.from_numpy(initial_state(state, {"batch": TOGETHER})) for state in few.states]
        graphs = iter([dense])

        def step(frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            with torch.inference_mode():
                logits, centre, *states[:] = next(graphs, few).module(torch.from_numpy(frame), *states)
            return logits.numpy(), centre.numpy()

        return step

    reused = score_stream("test", TEST_CLIPS, start, together=TOGETHER)
    assert reused["both"] >= video_vit_card()["accuracy"]["test"]["both"] - 0.01
