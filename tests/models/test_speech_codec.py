"""The codec of the zoo: card, weights, reconstruction error and training agree with each other."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from trt_compress.export import api
from trt_compress.models.hosts.registry import load_host
from trt_compress.models.zoo.data import speech
from trt_compress.models.zoo.speech_codec import model as zoo_model
from trt_compress.models.zoo.speech_codec import train as training
from trt_compress.tools.cli.main import app


def test_weights_are_small_and_those_of_the_card() -> None:
    content, card = zoo_model.WEIGHTS_FILE.read_bytes(), zoo_model.read_card()
    assert len(content) <= 6_000_000
    assert card["weights"]["bytes"] == len(content)
    assert card["weights"]["sha256"] == hashlib.sha256(content).hexdigest()
    recipe = {name: card["training"][name] for name in training.CodecRecipe.__dataclass_fields__}
    assert training.CodecRecipe(**recipe) == training.CodecRecipe()


def test_reconstruction_error_is_that_of_the_card() -> None:
    card = zoo_model.read_card()["reconstruction"]
    found = training.measure(zoo_model.build(), zoo_model.heldout_clips())
    assert found["mel_distance_db"] == pytest.approx(card["mel_distance_db"], abs=0.1)
    assert found["snr_db"] == pytest.approx(card["snr_db"], abs=0.1)
    assert found["codes_used"] == pytest.approx(card["codes_used"], abs=5)
    assert found["mel_distance_db"] < 0.5 * found["mel_distance_of_silence_db"]
    assert found["bits_per_second"] == 500 and found["entropy_bits_per_code"] <= 10


def test_the_graphs_are_the_codec() -> None:
    host = load_host("zoo:speech_codec")
    encode, decode = host.attach(())
    assert encode.examples is not None and decode.examples is not None
    (clips,) = encode.examples(2)
    with torch.no_grad():
        codes = encode.module(torch.from_numpy(clips["audio"]))
        made = decode.module(codes)
    (given,) = decode.examples(2)
    assert np.array_equal(given["codes"], codes.numpy())
    assert codes.shape == (2, 50, 1) and made.shape == (2, speech.CLIP_SAMPLES)
    assert host.postprocess["bits_per_second"] == 500


def test_other_codes_sound_worse() -> None:
    """The code numbers carry the sound: random ones are further from it."""
    codec, clips = zoo_model.build(), torch.from_numpy(zoo_model.heldout_clips()[:8])
    recipe = training.CodecRecipe()  # without the phase, which 500 bits a second do not hold
    loss = training.SpectralLoss(mel_weight=recipe.mel_weight, complex_weight=0)
    with torch.no_grad():
        codes = codec.encode(clips)
        shuffled = codes.flatten()[torch.randperm(codes.numel(), generator=torch.Generator().manual_seed(0))]
        near, far = (loss(codec.decode(c), clips) for c in (codes, shuffled.reshape(codes.shape)))
    assert near < 0.8 * far


def test_silence_has_no_loss() -> None:
    zeros = torch.zeros(1, 16000)
    assert training.SpectralLoss()(zeros, zeros) == 0


def test_bit_rate_and_length() -> None:
    codec = zoo_model.build(weights=False)
    assert codec.bits_per_second == 500
    clips = torch.from_numpy(zoo_model.heldout_clips()[:2])
    with torch.no_grad():
        codes = codec.encode(clips)
        assert codes.shape == (2, 50, 1) and codec.decode(codes).shape == (2, speech.CLIP_SAMPLES)


def test_a_codec_that_knows_nothing_is_measured_as_such() -> None:
    torch.manual_seed(0)
    found = training.measure(zoo_model.build(weights=False), zoo_model.heldout_clips()[:4])
    assert found["codes_used"] == 1 and found["entropy_bits_per_code"] == 0  # a codebook of zeros: the first code wins
    assert found["snr_db"] < 3 and found["mel_distance_of_silence_db"] > 5


@pytest.mark.slow
def test_training_lowers_the_loss(capsys: pytest.CaptureFixture[str]) -> None:
    recordings = list(speech.heldout_words().audio[:40])
    small = {"steps": 200, "warm_steps": 60, "batch_size": 1, "segment_samples": 3200}
    codec = training.train(recordings, training.CodecRecipe(**small))  # type: ignore[arg-type]
    losses = [float(line.split("loss ")[1]) for line in capsys.readouterr().err.splitlines()]
    assert len(losses) == 2 and losses[1] < losses[0]
    assert torch.isfinite(codec.codebook).all()
    assert len(torch.unique(codec.codebook, dim=0)) > 10  # the codes have not fallen together


def test_a_stream_is_encoded_and_decoded(tmp_path: Path) -> None:
    """From the command line: each second becomes code numbers, and sound again."""
    soundfile = pytest.importorskip("soundfile")
    clips = zoo_model.heldout_clips()[:2]
    soundfile.write(tmp_path / "speech.wav", clips.reshape(-1), speech.SAMPLE_RATE, subtype="FLOAT")
    api.export_model("zoo:speech_codec", compress="none", output=tmp_path / "b", batch="1")
    out = tmp_path / "out.jsonl"
    arguments = ["run", str(tmp_path / "b"), "--source", str(tmp_path / "speech.wav"), "--out", str(out)]
    arguments += ["--overlay", str(tmp_path / "made.wav")]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    results = [line["results"][0] for line in lines]
    codec, codes = zoo_model.build(), torch.tensor([found["codes"] for found in results])
    with torch.no_grad():
        assert codes.shape == (2, 50, 1) and (codes != codec.encode(torch.from_numpy(clips))).sum() <= 2  # near ties
        made = codec.decode(codes)[:, : speech.CLIP_SAMPLES]
    heard, rate = soundfile.read(tmp_path / "made.wav", dtype="float32")
    assert rate == speech.SAMPLE_RATE
    np.testing.assert_allclose(heard, made.flatten().clamp(-1, 1).numpy(), atol=1e-4)
    for found, wanted in zip(results, made, strict=True):
        assert found["samples"] == speech.CLIP_SAMPLES
        assert found["rms"] == pytest.approx(float(wanted.square().mean().sqrt()), abs=1e-4)
        assert found["peak"] == pytest.approx(float(wanted.abs().max()), abs=1e-4)
    refused = CliRunner().invoke(app, [*arguments[:-1], str(tmp_path / "made.mp4")])
    assert refused.exit_code == 2 and "the bundle gives sound; give a name such as out.wav" in refused.output
