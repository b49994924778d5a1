"""Training of the speech codec, and how its reconstruction error is measured."""

import pytest
import torch

from trt_compress.models.pretrained import speech, speech_codec


def test_silence_has_no_loss() -> None:
    zeros = torch.zeros(1, 16000)
    assert speech_codec.SpectralLoss()(zeros, zeros) == 0


def test_bit_rate_and_length() -> None:
    codec = speech_codec.build(weights=False)
    assert codec.bits_per_second == 500
    clips = torch.from_numpy(speech_codec.heldout_clips()[:2])
    with torch.no_grad():
        codes = codec.encode(clips)
        assert codes.shape == (2, 50, 1) and codec.decode(codes).shape == (2, speech.CLIP_SAMPLES)


def test_a_codec_that_knows_nothing_is_measured_as_such() -> None:
    torch.manual_seed(0)
    found = speech_codec.measure(speech_codec.build(weights=False), speech_codec.heldout_clips()[:4])
    assert found["codes_used"] == 1 and found["entropy_bits_per_code"] == 0  # a codebook of zeros: the first code wins
    assert found["snr_db"] < 3 and found["mel_distance_of_silence_db"] > 5


@pytest.mark.slow
def test_training_lowers_the_loss(capsys: pytest.CaptureFixture[str]) -> None:
    recordings = list(speech.heldout_words().audio[:40])
    small = {"steps": 200, "warm_steps": 60, "batch_size": 1, "segment_samples": 3200}
    codec = speech_codec.train(recordings, speech_codec.Recipe(**small))  # type: ignore[arg-type]
    losses = [float(line.split("loss ")[1]) for line in capsys.readouterr().err.splitlines()]
    assert len(losses) == 2 and losses[1] < losses[0]
    assert torch.isfinite(codec.codebook).all()
    assert len(torch.unique(codec.codebook, dim=0)) > 10  # the codes have not fallen together
