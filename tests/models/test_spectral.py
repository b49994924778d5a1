"""The front ends inside the graph against NumPy's FFT in float64, and against transformers' feature extractors."""

import warnings
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from trt_compress.errors import ConfigError
from trt_compress.models.hosts.spectral import InverseStft, KaldiFbank, LogMel, mel_filters

Array = np.ndarray[Any, np.dtype[Any]]
RATE = 16000


def sound(samples: int, *, seed: int = 0, batch: int = 2) -> Array:
    """Tones that come and go over faint noise: loud and quiet frames, and frames of noise alone."""
    random = np.random.default_rng(seed)
    time = np.arange(samples) / RATE
    tone = np.sin(2 * np.pi * (220 + 900 * time) * time) * np.clip(np.sin(2 * np.pi * 3 * time), 0, 1)
    rows = [0.4 * tone * (1 + row) + 1e-3 * random.standard_normal(samples) + 0.01 * row for row in range(batch)]
    return np.stack(rows).astype(np.float32)


def fft_log_mel(audio: Array, num_mels: int, *, clip_range: bool = True) -> Array:
    """Whisper's features, by the FFT in float64."""
    window = np.hanning(401)[:-1]
    padded = np.pad(audio.astype(np.float64), ((0, 0), (200, 200)), mode="reflect")
    frames = np.stack([padded[:, start : start + 400] for start in range(0, audio.shape[1] - 159, 160)], axis=1)
    power = np.abs(np.fft.rfft(frames * window)) ** 2
    values = np.log10(np.maximum(power @ slaney(num_mels).T, 1e-10))
    if clip_range:
        values = np.maximum(values, values.max(axis=(1, 2), keepdims=True) - 8)
    return ((values + 4) / 4).transpose(0, 2, 1)


def slaney(num_mels: int) -> Array:
    """The filters one by one, each from its three edges in Hz."""

    def hz(mel: float) -> float:
        return mel * 200 / 3 if mel < 15 else 1000 * 6.4 ** ((mel - 15) / 27)

    highest = 15 + 27 * np.log(8) / np.log(6.4)
    edges = [hz(highest * step / (num_mels + 1)) for step in range(num_mels + 2)]
    bins = np.arange(201) * RATE / 400
    rows = [np.interp(bins, edges[m : m + 3], [0, 2 / (edges[m + 2] - edges[m]), 0]) for m in range(num_mels)]
    return np.stack(rows)


def fft_fbank(audio: Array, num_mels: int, max_length: int) -> Array:
    """Kaldi's filter bank frame by frame: mean off, pre-emphasis, window, FFT of 512."""
    mel = 1127 * np.log(1 + np.arange(257) * RATE / 512 / 700)
    low, high = 1127 * np.log(1 + 20 / 700), 1127 * np.log(1 + 8000 / 700)
    edges = low + (high - low) * np.arange(num_mels + 2) / (num_mels + 1)
    filters = np.stack([np.interp(mel, edges[m : m + 3], [0, 1, 0]) for m in range(num_mels)])
    out = np.zeros((len(audio), max_length, num_mels))
    for row, item in enumerate(audio.astype(np.float64)):
        for number in range(min(max_length, 1 + (len(item) - 400) // 160)):
            frame = item[number * 160 : number * 160 + 400]
            frame = frame - frame.mean()
            frame = np.concatenate([frame[:1] * 0.03, frame[1:] - 0.97 * frame[:-1]]) * np.hanning(400)
            power = np.abs(np.fft.rfft(frame, 512)) ** 2
            out[row, number] = np.log(np.maximum(filters @ power, 1.192092955078125e-07))
    return (out + 4.2677393) / (2 * 4.5689974)


def run(module: nn.Module, audio: Array) -> Array:
    with torch.no_grad():
        out: Array = module(torch.from_numpy(audio)).numpy()
    return out


@pytest.mark.parametrize("num_mels", [80, 128, 40])
@pytest.mark.parametrize("samples", [16000, 480, 7999], ids=["a_second", "three_frames", "no_whole_hop"])
def test_log_mel_is_that_of_the_fft(num_mels: int, samples: int) -> None:
    audio = sound(samples)
    found = run(LogMel(num_mels=num_mels), audio)
    assert found.shape == (2, num_mels, samples // 160)
    np.testing.assert_allclose(found, fft_log_mel(audio, num_mels), atol=1e-4)


def test_a_fixed_floor_forgets_the_rest_of_the_clip() -> None:
    audio = sound(16000)
    found = run(LogMel(clip_range=False), audio)
    np.testing.assert_allclose(found, fft_log_mel(audio, 80, clip_range=False), atol=1e-3)
    louder = audio * 1e-3
    louder[:, 8000:] = 1000 * louder[:, 8000:]
    alone = audio * 1e-3
    alone[:, 8000:] = 0
    early = (run(LogMel(clip_range=fixed), clip)[..., :48] for fixed in (False, True) for clip in (louder, alone))
    free_louder, free_alone, clipped_louder, clipped_alone = early
    np.testing.assert_allclose(free_louder, free_alone, atol=1e-6)
    assert np.abs(clipped_louder - clipped_alone).max() > 0.1


@pytest.mark.parametrize("num_mels", [80, 128])
def test_log_mel_is_that_of_transformers(num_mels: int) -> None:
    from transformers import WhisperFeatureExtractor

    audio = sound(5 * RATE)
    extractor = WhisperFeatureExtractor(feature_size=num_mels, chunk_length=5)
    wanted = extractor(list(audio), sampling_rate=RATE, return_tensors="np")["input_features"]
    found = run(LogMel(num_mels=num_mels), audio)
    np.testing.assert_allclose(found, wanted, atol=2e-4)  # theirs is up to 1.1e-4 off the FFT in float64
    np.testing.assert_allclose(found, fft_log_mel(audio, num_mels), atol=5e-5)


@pytest.mark.parametrize(
    ("samples", "max_length"), [(16000, 98), (16000, 128), (16000, 50), (400, 3)], ids=["fits", "padded", "cut", "one"]
)
def test_kaldi_fbank_is_that_of_the_fft(samples: int, max_length: int) -> None:
    audio = sound(samples)
    found = run(KaldiFbank(max_length=max_length), audio)
    error = np.abs(found - fft_fbank(audio, 128, max_length))
    # bins 80 dB below the loudest one: what float32 leaves of 400 products is 1e-3 of their power
    assert error.max() <= 2e-4 and np.percentile(error, 99) <= 2e-5


def test_kaldi_fbank_is_that_of_transformers() -> None:
    from transformers import ASTFeatureExtractor

    audio = sound(RATE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = ASTFeatureExtractor(max_length=128)(list(audio), sampling_rate=RATE, return_tensors="np")
    np.testing.assert_allclose(run(KaldiFbank(max_length=128), audio), wanted["input_values"], atol=2e-4)


def test_digital_silence_is_the_floor() -> None:
    quiet = np.zeros((1, 1600), np.float32)
    assert np.allclose(run(LogMel(), quiet), (np.log10(1e-10) + 4) / 4)
    floor = (np.log(1.192092955078125e-07) + 4.2677393) / (2 * 4.5689974)
    assert np.allclose(run(KaldiFbank(max_length=8), quiet), floor, atol=1e-6)


@pytest.mark.parametrize("padding", ["same", "center"])
def test_the_inverse_of_an_stft_is_the_signal(padding: Any) -> None:
    audio, n_fft, hop = sound(3200)[:, :3200].astype(np.float64), 320, 80
    trim = (n_fft - hop) // 2 if padding == "same" else n_fft // 2
    padded = np.pad(audio, ((0, 0), (trim, trim)))
    count = (padded.shape[1] - n_fft) // hop + 1
    window = np.hanning(n_fft + 1)[:-1]
    frames = np.stack([padded[:, hop * f : hop * f + n_fft] * window for f in range(count)], axis=2)
    spectrum = np.fft.rfft(frames, axis=1)
    parts = (torch.from_numpy(part.astype(np.float32)) for part in (spectrum.real, spectrum.imag))
    found = InverseStft(n_fft=n_fft, hop=hop, padding=padding)(*parts).numpy()
    assert found.shape == audio.shape
    np.testing.assert_allclose(found, audio, atol=1e-5)


def test_constants_stay_float32_and_are_no_weights() -> None:
    module = LogMel().half()
    assert module.basis.dtype == torch.float32 and not module.state_dict()
    audio = torch.from_numpy(sound(16000)).half()
    found = module(audio)
    assert found.dtype == torch.float16
    np.testing.assert_allclose(found.float().numpy(), fft_log_mel(audio.float().numpy(), 80), atol=2e-3)


def test_a_filter_between_two_bins_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"num_mels=400 is too many for n_fft=400 at 16000 Hz: filter 0 holds no bin"):
        mel_filters(400, 400, RATE, scale="slaney")


@pytest.mark.parametrize("frontend", [LogMel(num_mels=40), KaldiFbank(max_length=64)], ids=["log_mel", "fbank"])
def test_the_graph_has_no_operator_that_tensorrt_refuses(frontend: nn.Module) -> None:
    program = torch.onnx.export(
        frontend.eval(),
        (torch.zeros(2, 8000),),
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=8)},),
        opset_version=20,
        verbose=False,
    )
    assert program is not None
    model = program.model_proto
    assert not {node.op_type for node in model.graph.node} & {"STFT", "DFT", "MelWeightMatrix", "HannWindow"}
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    audio = sound(8000, batch=3)
    found: Any = session.run(None, {session.get_inputs()[0].name: audio})[0]
    np.testing.assert_allclose(found, run(frontend, audio), atol=2e-4)  # two float32 sums of the faintest bins
