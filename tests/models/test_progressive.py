"""Progressive encoding (PVC): the stream against a reference with a causal mask over the whole clip, and the zoo."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from trt_compress.errors import ConfigError
from trt_compress.export import api
from trt_compress.methods import parse_spec
from trt_compress.models.hosts.progressive import ProgressiveConfig, ProgressiveViT
from trt_compress.models.zoo import release
from trt_compress.models.zoo.data import moving_digits
from trt_compress.models.zoo.video_pvc import model as host
from trt_compress.models.zoo.video_pvc import train as training
from trt_compress.models.zoo.video_vit.score import score_stream
from trt_compress.runtime import Session
from trt_compress.runtime.stream.postprocess import postprocess_from_manifest


def small(window: int = 3) -> ProgressiveViT:
    torch.manual_seed(0)
    vit = VisionTransformer(img_size=32, patch_size=8, embed_dim=16, depth=4, num_heads=2, num_classes=0)
    config = ProgressiveConfig(window=window, temporal_layers=2, stride=2, time_width=8, outputs=5)
    model = ProgressiveViT(vit, config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.2)
    return model.eval()


def streamed(model: ProgressiveViT, clip: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Tokens and outputs of a clip [T, B, 3, H, W], a frame at a time."""
    states, results = training.fresh_states(model, clip.shape[1]), []
    with torch.no_grad():
        for frame in clip:
            tokens, found, *states = model(frame, *states)
            results.append((tokens, found))
    return results


def reference(model: ProgressiveViT, clip: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The same at once, in float64: attention over time with a mask, tokens folded in loops."""
    whole: Any = model.double()
    window, stride, heads = model.config.window, model.config.stride, whole.temporal[0].heads
    count, batch = clip.shape[:2]
    times = np.minimum(np.arange(count), window - 1) / (window - 1) * 1000
    half = model.config.time_width // 2
    rates = 10000.0 ** (-np.arange(half) / half)
    waves = torch.from_numpy(
        np.concatenate([np.cos(times[:, None] * rates), np.sin(times[:, None] * rates)], axis=1)
    )  # [T, width]

    def adaptive(norm: Any, x: Tensor) -> Any:
        """x: [T, B, N, C]."""
        made = norm.leave(torch.nn.functional.silu(norm.enter(waves)))
        scale, shift = made[:, : x.shape[-1]], made[:, x.shape[-1] :]
        mean, spread = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
        return (x - mean) / (spread + 1e-5).sqrt() * (1 + scale[:, None, None]) + shift[:, None, None]

    with torch.no_grad():
        vit = whole.vit
        x = torch.stack([vit.norm_pre(vit._pos_embed(vit.patch_embed(frame.double()))) for frame in clip])
        for number, block in enumerate(vit.blocks):
            if number >= whole.first_temporal:
                layer = whole.temporal[number - whole.first_temporal]
                normed = adaptive(layer.norm, x)
                query, (keys, values) = layer.query(normed), layer.key_value(normed).chunk(2, dim=-1)
                mixed = torch.zeros_like(x)
                size = x.shape[-1] // heads
                for now in range(count):
                    first = max(0, now - window + 1)
                    for head in range(heads):
                        part = slice(head * size, (head + 1) * size)
                        logits = (query[now, ..., part] * keys[first : now + 1, ..., part]).sum(-1) / size**0.5
                        weights = logits.softmax(dim=0)[..., None]
                        mixed[now, ..., part] = (weights * values[first : now + 1, ..., part]).sum(dim=0)
                x = x + layer.out(mixed)
            x = torch.stack([block(frame) for frame in x])
        patches = torch.stack([vit.norm(frame) for frame in x])[:, :, 1:]
        rows, columns = vit.patch_embed.grid_size
        folded = torch.stack(
            [
                torch.cat(
                    [
                        patches[:, :, (row * stride + down) * columns + column * stride + right]
                        for down in range(stride)
                        for right in range(stride)
                    ],
                    dim=-1,
                )
                for row in range(rows // stride)
                for column in range(columns // stride)
            ],
            dim=2,
        )
        fold = whole.fold
        tokens = fold.leave(torch.nn.functional.gelu(fold.enter(adaptive(fold.norm, folded))))
        return [(one, whole.read(one.reshape(batch, -1))) for one in tokens]


@pytest.mark.parametrize("window", [2, 3, 6])
def test_the_stream_is_the_clip_at_once(window: int) -> None:
    clip = torch.randn(5, 2, 3, 32, 32)
    ours = streamed(small(window), clip)
    theirs = reference(small(window), clip)
    for mine, other in zip(ours, theirs, strict=True):
        for one, two in zip(mine, other, strict=True):
            assert one.shape == two.shape
            torch.testing.assert_close(one.double(), two, atol=2e-5, rtol=2e-5)


def test_frames_before_matter_and_old_ones_are_forgotten() -> None:
    torch.manual_seed(1)
    clip, other = torch.randn(6, 1, 3, 32, 32), torch.randn(6, 1, 3, 32, 32)
    model = small(3)
    kept = streamed(model, clip)[-1][1]
    assert not torch.allclose(kept, streamed(model, torch.cat([clip[:4], other[4:5], clip[5:]]))[-1][1], atol=1e-4)
    # Two layers of attention over 3 frames reach 4 frames back, not 5.
    assert not torch.allclose(kept, streamed(model, torch.cat([clip[:1], other[1:2], clip[2:]]))[-1][1], atol=1e-6)
    assert torch.equal(kept, streamed(model, torch.cat([other[:1], clip[1:]]))[-1][1])


def test_a_fresh_model_begins_as_single_frames() -> None:
    torch.manual_seed(0)
    model = host.build(weights=False)
    frame = torch.randn(1, 1, 3, 96, 96)
    (_, alone), (_, after) = streamed(model, frame.expand(2, -1, -1, -1, -1))
    torch.testing.assert_close(alone, after, atol=1e-5, rtol=1e-5)


# ---- the zoo --------------------------------------------------------------------------------------------------------


def test_weights_are_those_of_the_card() -> None:
    card, content = release.read_card(host.CARD_FILE), host.WEIGHTS_FILE.read_bytes()
    assert len(content) == card["weights"]["bytes"] <= 6_000_000
    assert hashlib.sha256(content).hexdigest() == card["weights"]["sha256"]
    recipe = training.PvcRecipe(**{name: card["training"][name] for name in training.PvcRecipe.__dataclass_fields__})
    assert recipe == training.PvcRecipe()


def test_held_out_accuracy_is_that_of_the_card() -> None:
    """Few clips, so a wide margin around the card's figure."""
    model, card = host.build(), release.read_card(host.CARD_FILE)
    found = score_stream("test", 20, lambda: training.streams_of(model))
    assert abs(found["both"] - card["accuracy"]["test"]["both"]) < 0.12


def test_the_bundle_carries_its_frames_on(tmp_path: Path) -> None:
    api.export_model("zoo:video_pvc", compress="none", output=tmp_path / "b", batch="1:1:2")
    model = host.build()
    frames = moving_digits.as_input(moving_digits.make_clip("test", 3, length=7).frames)
    wanted = streamed(model, torch.from_numpy(frames)[:, None])
    with Session.open(tmp_path / "b") as session:
        summarize = postprocess_from_manifest(session.bundle.manifest.postprocess, session.outputs)
        for frame, (tokens, found) in zip(frames, wanted, strict=True):
            outputs = session.run({"frame": frame[None]})
            np.testing.assert_allclose(outputs["tokens"], tokens.numpy(), atol=1e-4)
            np.testing.assert_allclose(outputs["logits"], found[:, :10].numpy(), atol=1e-4)
            np.testing.assert_allclose(outputs["centre"], found[:, 10:].numpy(), atol=1e-4)
            assert summarize(outputs)["results"][0]["class"] == int(outputs["logits"].argmax())


def test_other_compressors_are_refused() -> None:
    with pytest.raises(ConfigError, match="'tome' was given, but the model compresses by itself"):
        host.attach(small(), parse_spec("tome:num_merged=4"))


# ---- training -------------------------------------------------------------------------------------------------------


def test_clips_move_within_the_frame() -> None:
    recipe = training.PvcRecipe(clips=4, frames=3)
    images, labels = moving_digits.digits_of("train")
    generator = torch.Generator().manual_seed(0)
    pool = moving_digits.backgrounds("train", 4, generator)
    frames, digits, centres = training.make_batch(images, labels, pool, recipe, generator)
    assert frames.shape == (3, 4, 3, 96, 96) and digits.shape == (4,) and centres.shape == (3, 4, 2)
    assert frames.min() >= -1 and frames.max() <= 1
    pixels = centres * 96
    assert pixels.min() >= 14 - 1e-3 and pixels.max() <= 82 + 1e-3
    assert (pixels[1:] - pixels[:-1]).abs().max() <= recipe.most_pixels + 1e-3
    assert (frames[0] - frames[1]).abs().amax(dim=(1, 2, 3)).min() > 0.1


def test_script_refuses_an_output_that_is_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    occupied = tmp_path / "file"
    occupied.touch()
    assert training.main(["--output", str(occupied)]) == 2
    assert f"--output {occupied} cannot be written" in capsys.readouterr().err
