"""The training of the keyword spotters: `zoo:keyword_spotter`, `zoo:keyword_mome`, `zoo:keyword_stream`.

All are small Whisper encoders with the classifier of WhisperForAudioClassification, over one second of audio: ten
keywords, other words, silence. `keyword_mome` is a matryoshka: one model that was trained for the mean loss of all its
rates (MoME), so that its frames may be pooled by 2 or 4 from its second layer on; `keyword_stream` has the attention
of a stream of chunks. Both go on from the spotter's weights. Each has its weights (fp16) and a card in its
folder; this command makes them again (espeak-ng must be installed; minutes on one core):

    python -m trt_compress.models.zoo.keyword_spotter.train VARIANT --output DIR
"""

import argparse
import copy
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from trt_compress.digest import sha256
from trt_compress.models.hosts.audio import WhisperModel
from trt_compress.models.hosts.audio_stream import StreamingWhisper, offline_frames
from trt_compress.models.hosts.mome import MicroExperts
from trt_compress.models.hosts.weights import load_tensors, load_weights, read_tensors
from trt_compress.models.zoo import release
from trt_compress.models.zoo.data import speech
from trt_compress.models.zoo.keyword_spotter.model import CONFIGS, POOL_LAYER, card_file, weights_file
from trt_compress.models.zoo.keyword_stream.model import CHUNK_FRAMES, WINDOW_CHUNKS
from trt_compress.models.zoo.training import MovingAverage, fit, one_cycle

COMMAND = "python -m trt_compress.models.zoo.keyword_spotter.train"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeywordRecipe:
    """How the weights are trained; the card repeats it.

    Args:
        draws: Utterances of each keyword by each speaker, each with an accent, a speed and a pitch of its own.
        rates: Frames that are pooled into one; the loss is the mean over all of them.
        balance: Weight of the loss that spreads tokens over experts.
        position_scale: Whisper's fixed positions are multiplied by this, or they drown the frames at first.
        ema_decay: Per step; the released weights are the moving average after the last epoch.
    """

    seed: int = 0
    draws: int = 4
    epochs: int = 28
    batch_size: int = 24
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup_share: float = 0.15
    label_smoothing: float = 0.1
    gradient_clip_norm: float = 1.0
    ema_decay: float = 0.99
    rates: tuple[int, ...] = (1,)
    balance: float = 0.01
    position_scale: float = 0.1
    max_masked_bands: int = 6
    max_masked_frames: int = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class KeywordVariant:
    """One of the models.

    Args:
        name: What it is called in the zoo.
        recipe: How it is trained.
        start: The variant whose released weights it begins with, what that lacks being fresh; None: all are.
        chunked: Frames attend to their own chunk and those before it, as in `zoo:keyword_stream`.
    """

    name: str
    recipe: KeywordRecipe
    start: str | None = None
    chunked: bool = False


VARIANTS = {
    "keyword_spotter": KeywordVariant(name="keyword_spotter", recipe=KeywordRecipe()),
    "keyword_mome": KeywordVariant(
        name="keyword_mome",
        recipe=KeywordRecipe(rates=(1, 2, 4), epochs=10, learning_rate=5e-4),
        start="keyword_spotter",
    ),
    "keyword_stream": KeywordVariant(
        name="keyword_stream",
        recipe=KeywordRecipe(epochs=10, learning_rate=5e-4),
        start="keyword_spotter",
        chunked=True,
    ),
}


def logits_at_rates(model: WhisperModel, features: Tensor, rates: Sequence[int]) -> list[Tensor]:
    """Logits for each rate; frames are averaged after the attention of POOL_LAYER, a remainder is dropped."""
    encoder = model.encoder
    x = encoder.embed(features)
    for layer in encoder.stack[:POOL_LAYER]:
        x = x + layer.attend(x)[0]
        x = x + layer.feed(x)
    first = encoder.stack[POOL_LAYER]
    shared = x + first.attend(x)[0]
    results = []
    for rate in rates:
        whole = shared.shape[1] // rate * rate
        x = shared[:, :whole].reshape(len(shared), whole // rate, rate, shared.shape[2]).mean(dim=2)
        x = x + first.feed(x)
        for number, layer in enumerate(encoder.stack[POOL_LAYER + 1 :], start=POOL_LAYER + 1):
            x = encoder.enter(number, x)
            x = x + layer.attend(x)[0]
            x = x + layer.feed(x)
        results.append(model.head(encoder.finish(x), None))
    return results


class Chunked(torch.nn.Module):
    """What a stream of chunks says at the end of a clip, computed at once: from waveform to logits.

    Shares the model's weights.
    """

    def __init__(self, model: WhisperModel) -> None:
        super().__init__()
        self.stream = StreamingWhisper(
            model, (), chunk_frames=CHUNK_FRAMES, left_chunks=WINDOW_CHUNKS - 1, window_chunks=WINDOW_CHUNKS
        )

    def forward(self, audio: Tensor) -> Tensor:
        """Logits of audio [B, samples]."""
        return self.stream.model.head(offline_frames(self.stream, audio), None)


def train(words: speech.SpokenWords, variant: KeywordVariant) -> WhisperModel:
    """Train on these words and return the averaged weights after the last epoch, in evaluation mode."""
    recipe = variant.recipe
    torch.manual_seed(recipe.seed)
    noise = speech.NoiseBank(np.random.RandomState(recipe.seed))
    model = WhisperModel(CONFIGS[variant.name], num_samples=speech.CLIP_SAMPLES, clip_range=False).train()
    if variant.start:
        file = weights_file(variant.start)
        load_tensors(model, {**model.state_dict(), **read_tensors(file)}, file.name)
    else:
        with torch.no_grad():
            model.encoder.embed_positions.weight.mul_(recipe.position_scale)
    chunked = Chunked(model) if variant.chunked else None
    average = copy.deepcopy(model).requires_grad_(False)
    num_clips = len(speech.make_clips(words, noise)[1])
    steps_of_epoch = math.ceil(num_clips / recipe.batch_size)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(recipe.epochs):
            clips, targets = speech.make_clips(words, noise)
            for rows in torch.split(torch.randperm(num_clips), recipe.batch_size):
                yield torch.from_numpy(clips[rows.numpy()]), torch.from_numpy(targets[rows.numpy()])

    made = batches()

    def loss_of(step: int) -> Tensor:
        audio, wanted = next(made)
        if chunked:
            return functional.cross_entropy(chunked(audio), wanted, label_smoothing=recipe.label_smoothing)
        with torch.no_grad():
            features = mask(model.frontend(audio), recipe)
        return _loss(model, features, wanted, recipe)

    schedule = one_cycle(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        steps=recipe.epochs * steps_of_epoch,
        warmup_share=recipe.warmup_share,
    )
    fit(
        model,
        loss_of,
        [schedule],
        steps=recipe.epochs * steps_of_epoch,
        gradient_clip_norm=recipe.gradient_clip_norm,
        average=MovingAverage(model=average, decay=recipe.ema_decay),
        say_every=steps_of_epoch,
    )
    return average.eval()


def _loss(model: WhisperModel, features: Tensor, targets: Tensor, recipe: KeywordRecipe) -> Tensor:
    experts = [part for part in model.modules() if isinstance(part, MicroExperts)]
    seen: list[Tensor] = []
    hooks = [
        part.register_forward_hook(
            lambda module, inputs, output: seen.append(cast(MicroExperts, module).balance_loss(inputs[0]))
        )
        for part in experts
    ]
    logits = logits_at_rates(model, features, recipe.rates)
    for hook in hooks:
        hook.remove()
    losses = [functional.cross_entropy(one, targets, label_smoothing=recipe.label_smoothing) for one in logits]
    loss = torch.stack(losses).mean()
    return loss + recipe.balance * torch.stack(seen).mean() if seen else loss


def mask(features: Tensor, recipe: KeywordRecipe) -> Tensor:
    """Blank a random range of bands and of frames of each item, [B, bands, frames] (SpecAugment, arXiv:1904.08779)."""
    batch, bands, frames = features.shape
    for axis, length, most in ((1, bands, recipe.max_masked_bands), (2, frames, recipe.max_masked_frames)):
        width = (torch.rand(batch) * (most + 1)).floor()
        start = (torch.rand(batch) * (length - width + 1)).floor()
        place = torch.arange(length)
        hidden = (place >= start[:, None]) & (place < (start + width)[:, None])
        blank = features.mean(dim=(1, 2), keepdim=True)
        features = torch.where(hidden[:, :, None] if axis == 1 else hidden[:, None, :], blank, features)
    return features


def count_correct(model: torch.nn.Module, clips: speech.Array, labels: speech.Array) -> int:
    """Count the clips that `model`, from waveform to logits, puts into the right class."""
    with torch.inference_mode():
        predicted = torch.cat([model(part).argmax(-1) for part in torch.split(torch.from_numpy(clips), 64)])
    return int((predicted == torch.from_numpy(labels)).sum())


class AtRate(torch.nn.Module):
    """A matryoshka at one of its rates, from waveform to logits."""

    def __init__(self, model: WhisperModel, rate: int) -> None:
        super().__init__()
        self.model, self.rate = model, rate

    def forward(self, audio: Tensor) -> Tensor:
        """Logits of audio [B, samples]."""
        return logits_at_rates(self.model, self.model.frontend(audio), [self.rate])[0]


def write_release(
    model: WhisperModel, words: speech.SpokenWords, variant: KeywordVariant, directory: Path
) -> dict[str, Any]:
    """Write weights, as fp16, and card into `directory`, and return the card."""
    weights = release.write_weights(model, directory / weights_file(variant.name).name, half=True)
    load_weights(model, directory / weights_file(variant.name).name)  # what is measured is what is released
    validation = speech.make_words(speech.VALIDATION_SPEAKERS, speech.OTHER_WORDS, draws=2, seed=3)
    noise = speech.NoiseBank(np.random.RandomState(11))
    sets = {"validation": speech.make_clips(validation, noise, snr_db=(5.0, 20.0)), "test": speech.heldout_clips()}
    forms = {str(rate): Chunked(model) if variant.chunked else AtRate(model, rate) for rate in variant.recipe.rates}
    accuracy = {
        part: {rate: count_correct(form, *clips) for rate, form in forms.items()} for part, clips in sets.items()
    }
    card = {
        "name": variant.name,
        "task": f"which of {len(speech.KEYWORDS)} keywords is spoken in one second, another word, or none",
        "classes": list(speech.CLASSES),
        "architecture": asdict(CONFIGS[variant.name]),
        "preprocess": {"sample_rate": speech.SAMPLE_RATE, "samples": speech.CLIP_SAMPLES, "range": [-1, 1]},
        "data": {
            "name": "words synthesized by espeak-ng, mixed with white, pink and brown noise",
            "license": "made here; espeak-ng's output is not covered by its licence (GPL-3.0)",
            "train": {"speakers": speech.TRAIN_SPEAKERS, "words": len(words.audio), "snr_db": [3, 30]},
            "validation": {"speakers": speech.VALIDATION_SPEAKERS, "clips": len(sets["validation"][1])},
            "test": {
                "speakers": speech.TEST_SPEAKERS,
                "clips": len(sets["test"][1]),
                "snr_db": [5, 20],
                "file": speech.HELDOUT_FILE.name,
                "sha256": sha256(speech.HELDOUT_FILE.read_bytes()),
            },
            "limits": "Synthetic voices share one synthesizer: accuracy on people will be lower. Speakers of the test "
            "are variants of espeak-ng's voice that are in no other part; the accents are the same.",
        },
        "training": {**asdict(variant.recipe), "start": variant.start, "chunked": variant.chunked},
        "accuracy": {"unit": "clips that are right, by rate", **accuracy},
        "weights": weights,
    }
    command, packages = f"{COMMAND} {variant.name} --output DIR", ("numpy", "scipy", "torch")
    return release.write_card(card, directory / card_file(variant.name).name, command=command, packages=packages)


def main(arguments: list[str] | None = None) -> int:
    """Train, measure and write the release; return the exit code."""

    def make(options: argparse.Namespace, directory: Path) -> dict[str, Any]:
        variant = VARIANTS[options.variant]
        recipe = variant.recipe
        torch.set_num_threads(1)
        words = speech.make_words(speech.TRAIN_SPEAKERS, speech.OTHER_WORDS, draws=recipe.draws, seed=recipe.seed)
        accuracy: dict[str, Any] = write_release(train(words, variant), words, variant, directory)["accuracy"]
        return accuracy

    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("variant", choices=VARIANTS)
    return release.run(parser, make, arguments)


if __name__ == "__main__":
    sys.exit(main())
