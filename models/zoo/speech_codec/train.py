"""The training of `zoo:speech_codec`, a small WavTokenizer for 16 kHz speech.

Fifty code numbers of ten bits a second, so 500 bits per second. It is trained for a few minutes on speech of espeak-ng,
with spectral losses and no adversary: it shows the whole way, and is no match for the released models. This command
makes the weights (fp16) and the card again:

    python -m trt_compress.models.zoo.speech_codec.train --output DIR
"""

import argparse
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from trt_compress.models.hosts.codec_wavtokenizer import WavTokenizer
from trt_compress.models.hosts.spectral import LogMel
from trt_compress.models.hosts.weights import load_weights
from trt_compress.models.zoo import release
from trt_compress.models.zoo.data import speech
from trt_compress.models.zoo.speech_codec.model import CARD_FILE, CONFIG, NAME, WEIGHTS_FILE, build, heldout_clips
from trt_compress.models.zoo.training import fit, one_cycle

COMMAND = f"python -m trt_compress.models.zoo.{NAME}.train --output DIR"


@dataclass(frozen=True, slots=True, kw_only=True)
class CodecRecipe:
    """How the weights are trained; the card repeats it.

    Args:
        segment_samples: Audio of one training item.
        warm_steps: Steps without the codebook, which is then set to frames of the training data.
        mel_weight: Weight of the mel distance in the spectral loss.
        complex_weight: Weight of the distance of complex values in it, beside that of magnitudes.
        commitment: Weight of the distance of frames to their codes.
        code_decay: Of the moving averages that the codes follow.
        fewest_uses: Codes whose average use in a batch is below this are set to a random frame.
    """

    seed: int = 0
    steps: int = 4000
    warm_steps: int = 1200
    batch_size: int = 6
    segment_samples: int = 8000
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    gradient_clip_norm: float = 1.0
    mel_weight: float = 4.0
    complex_weight: float = 0.1
    commitment: float = 0.25
    code_decay: float = 0.97
    fewest_uses: float = 0.02


class SpectralLoss(torch.nn.Module):
    """Mel distance, and distances of magnitudes and of complex values at three resolutions."""

    def __init__(self, *, mel_weight: float = 1.0, complex_weight: float = 1.0) -> None:
        super().__init__()
        self.mel_weight, self.complex_weight = mel_weight, complex_weight
        self.mel = LogMel(clip_range=False, n_fft=1024, hop=256)
        self.sizes = (256, 512, 1024)

    def forward(self, made: Tensor, wanted: Tensor) -> Tensor:
        """Loss of audio [B, samples]."""
        loss = self.mel_weight * (self.log_mel(made) - self.log_mel(wanted)).abs().mean()
        for size in self.sizes:
            window = torch.hann_window(size)
            ours, theirs = (
                torch.stft(audio, size, size // 4, window=window, return_complex=True) for audio in (made, wanted)
            )
            scale = theirs.abs().mean().clamp_min(1e-5)
            off = (ours.abs() - theirs.abs()).abs().mean() + self.complex_weight * (ours - theirs).abs().mean()
            loss = loss + off / scale / (2 * len(self.sizes))
        return loss

    def log_mel(self, audio: Tensor) -> Tensor:
        """Log-mel values above a floor of -60 dB."""
        return cast(Tensor, self.mel(audio)).clamp_min(-0.5)


class MovingCodes:
    """The codebook in training: codes are moving averages of the frames that chose them."""

    def __init__(self, codec: WavTokenizer, recipe: CodecRecipe) -> None:
        self.codec, self.recipe = codec, recipe
        self.uses = torch.ones(codec.codebook_size)
        self.sums = codec.codebook.clone()

    def start(self, frames: Tensor) -> None:
        """Set the codes to random frames [N, D], and move each to the mean of those nearest to it, ten times."""
        order = torch.randperm(max(len(frames), self.codec.codebook_size)) % len(frames)
        codes = frames[order[: self.codec.codebook_size]].clone()
        for _ in range(10):
            nearest = torch.cdist(frames, codes).argmin(dim=1)
            count = torch.bincount(nearest, minlength=len(codes)).float()
            sums = torch.zeros_like(codes).index_add_(0, nearest, frames)
            codes = torch.where(count[:, None] > 0, sums / count[:, None].clamp_min(1), codes)
        self.codec.codebook.copy_(codes)
        self.sums, self.uses = codes.clone(), torch.ones(len(codes))

    def __call__(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Codes in place of frames [B, F, D], with the gradient passed straight on, and the commitment loss."""
        flat = frames.detach().flatten(0, 1)
        nearest = torch.cdist(flat, self.codec.codebook).argmin(dim=1)
        codes = self.codec.codebook[nearest].reshape(frames.shape)
        decay = self.recipe.code_decay
        count = torch.bincount(nearest, minlength=len(self.uses)).float()
        self.uses.mul_(decay).add_(count, alpha=1 - decay)
        self.sums.mul_(decay).add_(torch.zeros_like(self.sums).index_add_(0, nearest, flat), alpha=1 - decay)
        idle = self.uses < self.recipe.fewest_uses
        fresh = flat[torch.randint(len(flat), (len(idle),))]
        self.sums = torch.where(idle[:, None], fresh, self.sums)
        self.uses = torch.where(idle, torch.ones_like(self.uses), self.uses)
        self.codec.codebook.copy_(self.sums / self.uses[:, None])
        return frames + (codes - frames).detach(), functional.mse_loss(frames, codes)


@torch.no_grad()
def initialize(codec: WavTokenizer, audio: Tensor) -> None:
    """Set the encoder so that sound [B, samples] reaches its end: with torch's defaults all frames begin alike."""
    convolutions = [part for part in codec.encoder.modules() if isinstance(part, torch.nn.Conv1d)]
    for part in convolutions:
        torch.nn.init.kaiming_normal_(part.weight, nonlinearity="linear")
        torch.nn.init.zeros_(cast(Tensor, part.bias))
    convolutions[-1].weight.div_(codec.encoder(audio[:, None]).std())


def train(recordings: list[speech.Array], recipe: CodecRecipe) -> WavTokenizer:
    """Train on these recordings and return the codec in evaluation mode."""
    torch.manual_seed(recipe.seed)
    random = np.random.RandomState(recipe.seed)
    audio = np.concatenate(recordings)
    codec = WavTokenizer(CONFIG, num_samples=recipe.segment_samples).train()
    initialize(codec, torch.from_numpy(audio[: 10 * recipe.segment_samples]).reshape(10, -1))
    spectral = SpectralLoss(mel_weight=recipe.mel_weight, complex_weight=recipe.complex_weight)
    codes = MovingCodes(codec, recipe)
    schedule = one_cycle(
        codec.parameters(),
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        steps=recipe.steps,
        warmup_share=0.1,
    )
    seen: list[Tensor] = []

    def loss_of(step: int) -> Tensor:
        starts = random.randint(0, len(audio) - recipe.segment_samples, recipe.batch_size)
        wanted = torch.from_numpy(np.stack([audio[start : start + recipe.segment_samples] for start in starts]))
        wanted = wanted * (torch.rand(len(wanted), 1) * 0.8 + 0.4)
        frames = codec.encoder(wanted[:, None]).transpose(1, 2)
        commitment = torch.zeros(())
        if step < recipe.warm_steps:
            if step >= recipe.warm_steps // 2:
                seen.append(frames.detach().flatten(0, 1))
        else:
            if step == recipe.warm_steps:
                codes.start(torch.cat(seen))
            frames, commitment = codes(frames)
        loss: Tensor = spectral(codec.decode_frames(frames), wanted) + recipe.commitment * commitment
        return loss

    fit(codec, loss_of, [schedule], steps=recipe.steps, gradient_clip_norm=recipe.gradient_clip_norm)
    return codec.eval()


def measure(codec: WavTokenizer, clips: speech.Array) -> dict[str, float]:
    """Reconstruction error and use of the codes on clips [N, samples]; `codec` takes clips of that length."""
    with torch.inference_mode():
        audio = torch.from_numpy(clips)
        codes = torch.cat([codec.encode(part) for part in torch.split(audio, 16)])
        made = torch.cat([codec.decode(part) for part in torch.split(codes, 16)])[:, : audio.shape[1]]
        mel = SpectralLoss()
        distance = (
            mel.log_mel(made) - mel.log_mel(audio)
        ).abs().mean() * 40  # a quarter of a decade of power is 10 dB/4
        silence = (mel.log_mel(torch.zeros_like(audio)) - mel.log_mel(audio)).abs().mean() * 40
        snr = 10 * torch.log10(audio.square().sum(dim=1) / (audio - made).square().sum(dim=1))
    share = torch.bincount(codes.flatten(), minlength=codec.codebook_size).double() / codes.numel()
    used = share[share > 0]
    entropy = float(-(used * used.log2()).sum())
    rate = codec.sample_rate / codec.hop
    return {
        "mel_distance_db": round(float(distance), 2),
        "mel_distance_of_silence_db": round(float(silence), 2),
        "snr_db": round(float(snr.mean()), 2),
        "codes_used": int((share > 0).sum()),
        "entropy_bits_per_code": round(entropy, 2),
        "bits_per_second": round(codec.bits_per_second, 1),
        "entropy_bits_per_second": round(rate * entropy, 1),
    }


def write_release(
    codec: WavTokenizer, recordings: list[speech.Array], recipe: CodecRecipe, directory: Path
) -> dict[str, Any]:
    """Write weights, as fp16, and card into `directory`, and return the card."""
    weights = release.write_weights(codec, directory / WEIGHTS_FILE.name, half=True)
    released = build(weights=False)
    load_weights(released, directory / WEIGHTS_FILE.name)
    clips = heldout_clips()
    card = {
        "name": NAME,
        "task": "speech at 16 kHz to 50 code numbers a second and back",
        "architecture": asdict(CONFIG),
        "data": {
            "name": "words and sentences synthesized by espeak-ng",
            "license": "made here; espeak-ng's output is not covered by its licence (GPL-3.0)",
            "train": {
                "speakers": speech.TRAIN_SPEAKERS,
                "seconds": round(sum(map(len, recordings)) / speech.SAMPLE_RATE),
            },
            "test": {"speakers": speech.TEST_SPEAKERS, "seconds": len(clips), "file": speech.HELDOUT_FILE.name},
            "limits": "One synthesizer, clean speech. Trained for minutes with spectral losses and no adversary.",
        },
        "training": asdict(recipe),
        "reconstruction": measure(released, clips),
        "weights": weights,
    }
    packages = ("numpy", "scipy", "torch")
    return release.write_card(card, directory / CARD_FILE.name, command=COMMAND, packages=packages)


def make_recordings() -> list[speech.Array]:
    """Synthesize the training speech: every sentence by every training speaker, and a third of the keywords."""
    said = speech.utterances(speech.SENTENCES, speech.TRAIN_SPEAKERS, draws=1, seed=1)
    said += speech.utterances(speech.KEYWORDS, speech.TRAIN_SPEAKERS, draws=1, seed=2)
    return [speech.synthesize(one) for one in said]


def main(arguments: list[str] | None = None) -> int:
    """Train, measure and write the release; return the exit code."""

    def make(options: argparse.Namespace, directory: Path) -> dict[str, Any]:
        torch.set_num_threads(1)
        recipe, recordings = CodecRecipe(), make_recordings()
        card = write_release(train(recordings, recipe), recordings, recipe, directory)
        reconstruction: dict[str, Any] = card["reconstruction"]
        return reconstruction

    parser = argparse.ArgumentParser(prog=f"python -m trt_compress.models.zoo.{NAME}.train", description=__doc__)
    return release.run(parser, make, arguments)


if __name__ == "__main__":
    sys.exit(main())
