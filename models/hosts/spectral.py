"""Spectra inside the graph: STFT as a convolution, its inverse as a transposed one, log-mel and Kaldi filter banks.

ONNX's own STFT is not taken by TensorRT, so a frame's Fourier transform is a convolution with the windowed sines and
cosines. The constants are made in float64 and stay float32 in a half-precision model: powers span more than fp16 holds.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from trt_compress.errors import ConfigError
from trt_compress.plugins.operator import cast

Matrix = np.ndarray[Any, np.dtype[np.float64]]
MelScale = Literal["slaney", "kaldi"]

WHISPER_FLOOR = 1e-10
WHISPER_RANGE = 8.0  # decades below the loudest value of a clip
KALDI_FLOOR = 1.192092955078125e-07
KALDI_PREEMPHASIS = 0.97


class Float32Constants(nn.Module):
    """A module whose buffers stay float32, follow it to a device, and are no part of its weights."""

    def keep(self, name: str, value: Matrix) -> None:
        """Store a constant as float32."""
        self.register_buffer(name, torch.from_numpy(np.ascontiguousarray(value, dtype=np.float32)), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Float32Constants":
        return super()._apply(lambda tensor: tensor.to(fn(tensor).device), recurse)  # type: ignore[no-untyped-call, no-any-return]


def dft_basis(n_fft: int, frame_length: int) -> Matrix:
    """Rows of cosines, then of negative sines, [2 * (n_fft // 2 + 1), frame_length]: real and imaginary parts."""
    angle = 2 * np.pi * np.outer(np.arange(n_fft // 2 + 1), np.arange(frame_length)) / n_fft
    return np.concatenate([np.cos(angle), -np.sin(angle)])


def inverse_dft_basis(n_fft: int) -> Matrix:
    """What each real part, then each imaginary part adds to a frame, [2 * (n_fft // 2 + 1), n_fft].

    The imaginary parts of the first and, if n_fft is even, the last bin add nothing, as in any inverse real FFT.
    """
    bins = n_fft // 2 + 1
    weight = np.full(bins, 2.0)
    weight[0] = 1
    if n_fft % 2 == 0:
        weight[-1] = 1
    basis: Matrix = dft_basis(n_fft, n_fft) * np.concatenate([weight, weight])[:, None] / n_fft
    basis[bins] = 0
    if n_fft % 2 == 0:
        basis[-1] = 0
    return basis


def hann_window(length: int, *, periodic: bool = True) -> Matrix:
    """The Hann window; periodic for overlapping frames, symmetric as Kaldi has it."""
    window: Matrix = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / (length if periodic else length - 1))
    return window


def mel_filters(
    num_mels: int, n_fft: int, sample_rate: int, *, scale: MelScale, lowest_hz: float = 0.0, highest_hz: float = 8000.0
) -> Matrix:
    """Triangular filters over the bins of a spectrum, [num_mels, n_fft // 2 + 1].

    Args:
        num_mels: Filters.
        n_fft: Length of the transform.
        sample_rate: In Hz.
        scale: "slaney": triangles in Hz with equal area, as librosa and Whisper have them; "kaldi": triangles in mel
            with equal height.
        lowest_hz: Where the first triangle begins.
        highest_hz: Where the last one ends.

    Raises:
        ConfigError: a Slaney filter lies between two bins and would be empty. (Of Kaldi's 128 some are, by design.)

    Source: Slaney, Auditory Toolbox (1998); Kaldi, feat/mel-computations.h.
    """
    to_mel, to_hz = (_slaney_mel, _slaney_hz) if scale == "slaney" else (_kaldi_mel, _kaldi_hz)
    bins = np.arange(n_fft // 2 + 1) * sample_rate / n_fft
    edges = np.linspace(to_mel(np.array(lowest_hz)), to_mel(np.array(highest_hz)), num_mels + 2)
    if scale == "slaney":
        edges = to_hz(edges)
    else:
        bins = to_mel(bins)
    left, centre, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    filters = np.maximum(0, np.minimum((bins - left) / (centre - left), (right - bins) / (right - centre)))
    if scale == "slaney":
        filters *= 2 / (right - left)
    empty = np.flatnonzero(filters.max(axis=1) == 0)
    if len(empty) and scale == "slaney":
        raise ConfigError(
            f"num_mels={num_mels} is too many for n_fft={n_fft} at {sample_rate} Hz: filter {empty[0]} holds no bin; "
            "give fewer."
        )
    return filters


def _slaney_mel(hz: Matrix) -> Matrix:
    return np.where(hz < 1000, hz * 3 / 200, 15 + 27 * np.log(np.maximum(hz, 1000) / 1000) / np.log(6.4))


def _slaney_hz(mel: Matrix) -> Matrix:
    return np.where(mel < 15, mel * 200 / 3, 1000 * np.exp(np.log(6.4) / 27 * (np.maximum(mel, 15) - 15)))


def _kaldi_mel(hz: Matrix) -> Matrix:
    return 1127 * np.log(1 + hz / 700)


def _kaldi_hz(mel: Matrix) -> Matrix:
    return 700 * (np.exp(mel / 1127) - 1)


class LogMel(Float32Constants):
    """Whisper's log-mel spectrogram of a waveform, in the graph.

    Args:
        num_mels: 80, or 128 for Whisper large-v3.
        sample_rate: In Hz.
        n_fft: Samples of a frame.
        hop: Samples from frame to frame.
        highest_hz: Where the last filter ends; 8000 for Whisper, at most half the sample rate.
        clip_range: Values are raised to 8 decades below the loudest of the clip, as Whisper does. False leaves the
            floor of 1e-10: then a frame does not depend on what follows it, and a stream can be cut anywhere.

    Source: Whisper, arXiv:2212.04356; code openai/whisper, whisper/audio.py.
    Differs: clip_range=False is not in the original.
    """

    def __init__(
        self,
        *,
        num_mels: int = 80,
        sample_rate: int = 16000,
        n_fft: int = 400,
        hop: int = 160,
        highest_hz: float = 8000.0,
        clip_range: bool = True,
    ) -> None:
        super().__init__()
        self.n_fft, self.hop, self.clip_range = n_fft, hop, clip_range
        self.keep("basis", (dft_basis(n_fft, n_fft) * hann_window(n_fft))[:, None])
        self.keep("filters", mel_filters(num_mels, n_fft, sample_rate, scale="slaney", highest_hz=highest_hz))
        self.basis: Tensor
        self.filters: Tensor

    def forward(self, audio: Tensor) -> Tensor:
        """Log-mel values [B, num_mels, samples // hop] of audio [B, samples] in -1..1, centred frames."""
        half = self.n_fft // 2
        padded = functional.pad(cast(audio, torch.float32)[:, None], (half, half), mode="reflect")
        last = audio.shape[-1] // self.hop * self.hop  # the frame that would begin there is left out, as in Whisper
        values = self.of_frames(padded[..., : last - self.hop + self.n_fft])
        if self.clip_range:
            values = torch.maximum(values, values.amax(dim=(1, 2), keepdim=True) - WHISPER_RANGE)
        return cast((values + 4) / 4, audio.dtype)

    def of_frames(self, audio: Tensor) -> Tensor:
        """log10 of the mel powers of every whole frame of audio [B, 1, samples], floored at 1e-10."""
        parts = functional.conv1d(audio, self.basis, stride=self.hop)
        bins = self.n_fft // 2 + 1
        power = parts[:, :bins].square() + parts[:, bins:].square()
        return (self.filters @ power).clamp_min(WHISPER_FLOOR).log() * (1 / math.log(10))


class KaldiFbank(Float32Constants):
    """Kaldi's log filter bank as the Audio Spectrogram Transformer takes it: normalised, padded to its length.

    Each frame of 25 ms loses its mean, is pre-emphasised and windowed, and padded to 512 samples. All of that is
    linear, so it is folded into the Fourier basis.

    Args:
        num_mels: 128 for AST.
        max_length: Frames that leave: later ones are cut, missing ones are zeros before the normalisation.
        mean: Mean of the training data.
        std: Its standard deviation; values are divided by twice that.
        sample_rate: In Hz.

    Source: AST, arXiv:2104.01778; Kaldi's compute-fbank-feats with a Hann window and no dither.
    Differs: none.
    """

    def __init__(
        self,
        *,
        num_mels: int = 128,
        max_length: int = 1024,
        mean: float = -4.2677393,
        std: float = 4.5689974,
        sample_rate: int = 16000,
    ) -> None:
        super().__init__()
        self.max_length, self.mean, self.std = max_length, mean, std
        self.frame, self.hop, self.n_fft = 400, 160, 512
        centre = np.eye(self.frame) - 1 / self.frame
        emphasis = np.eye(self.frame) - KALDI_PREEMPHASIS * np.eye(self.frame, k=-1)
        emphasis[0, 0] -= KALDI_PREEMPHASIS  # the first sample is its own predecessor
        window = hann_window(self.frame, periodic=False)
        self.keep("basis", ((dft_basis(self.n_fft, self.frame) * window) @ emphasis @ centre)[:, None])
        self.keep("filters", mel_filters(num_mels, self.n_fft, sample_rate, scale="kaldi", lowest_hz=20.0))
        self.basis: Tensor
        self.filters: Tensor

    def forward(self, audio: Tensor) -> Tensor:
        """Filter-bank values [B, max_length, num_mels] of audio [B, samples] in -1..1, 400 samples or more."""
        parts = functional.conv1d(cast(audio, torch.float32)[:, None], self.basis, stride=self.hop)
        bins = self.n_fft // 2 + 1
        power = parts[:, :bins].square() + parts[:, bins:].square()
        values = (self.filters @ power).clamp_min(KALDI_FLOOR).log()[..., : self.max_length]
        values = functional.pad(values, (0, self.max_length - values.shape[-1]))
        return cast(((values - self.mean) / (2 * self.std)).transpose(1, 2), audio.dtype)


class InverseStft(Float32Constants):
    """Waveform of a spectrogram: a transposed convolution, divided by the overlapped squares of the window.

    Args:
        n_fft: Samples of a frame.
        hop: Samples from frame to frame.
        padding: "same": F frames give F * hop samples; "center": (F - 1) * hop, the inverse of a centred STFT.

    Source: Vocos, arXiv:2306.00814; WavTokenizer, arXiv:2408.16532, decoder/spectral_ops.py.
    Differs: none.
    """

    def __init__(self, *, n_fft: int, hop: int, padding: Literal["same", "center"] = "same") -> None:
        super().__init__()
        self.n_fft, self.hop = n_fft, hop
        self.trim = (n_fft - hop) // 2 if padding == "same" else n_fft // 2
        window = hann_window(n_fft)
        self.keep("basis", (inverse_dft_basis(n_fft) * window)[:, None])
        self.keep("squares", np.square(window)[None, None])
        self.basis: Tensor
        self.squares: Tensor

    def forward(self, real: Tensor, imaginary: Tensor) -> Tensor:
        """Audio [B, samples] of the real and imaginary parts [B, n_fft // 2 + 1, F]."""
        parts = cast(torch.cat([real, imaginary], dim=1), torch.float32)
        audio = functional.conv_transpose1d(parts, self.basis, stride=self.hop)
        weight = functional.conv_transpose1d(torch.ones_like(parts[:1, :1]), self.squares, stride=self.hop)
        kept = slice(self.trim, self.trim + self._length(real.shape[-1]))
        return cast(audio[:, 0, kept] / weight[:, 0, kept], real.dtype)

    def _length(self, frames: int) -> int:
        return (frames - 1) * self.hop + self.n_fft - 2 * self.trim
