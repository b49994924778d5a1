"""The keyword spotters: card, weights, held-out speech and training script agree with each other."""

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from trt_compress.errors import UnsupportedError
from trt_compress.methods import parse_spec
from trt_compress.models.hosts.audio import CompressedAudio
from trt_compress.models.hosts.registry import load_host
from trt_compress.models.zoo.data import speech
from trt_compress.models.zoo.keyword_spotter import model as zoo_model
from trt_compress.models.zoo.keyword_spotter import train as training
from trt_compress.models.zoo.keyword_stream import model as keyword_stream

NAMES = tuple(training.VARIANTS)
needs_espeak = pytest.mark.skipif(
    shutil.which("espeak-ng") is None, reason="espeak-ng is not installed (Debian: apt install espeak-ng)"
)


@pytest.fixture(scope="module")
def heldout() -> tuple[speech.Array, speech.Array]:
    return speech.heldout_clips()


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_small_and_those_of_the_card(name: str) -> None:
    variant, card = training.VARIANTS[name], zoo_model.read_card(name)
    content = zoo_model.weights_file(name).read_bytes()
    assert len(content) <= 4_000_000
    assert card["weights"]["bytes"] == len(content)
    assert card["weights"]["sha256"] == hashlib.sha256(content).hexdigest()
    recipe = {field: card["training"][field] for field in training.KeywordRecipe.__dataclass_fields__}
    assert training.KeywordRecipe(**{**recipe, "rates": tuple(recipe["rates"])}) == variant.recipe
    assert card["data"]["test"]["sha256"] == hashlib.sha256(speech.HELDOUT_FILE.read_bytes()).hexdigest()


@pytest.mark.parametrize("name", NAMES)
def test_held_out_accuracy_is_that_of_the_card(name: str, heldout: tuple[speech.Array, speech.Array]) -> None:
    card = zoo_model.read_card(name)
    clips, labels = heldout
    assert card["data"]["test"]["clips"] == len(labels) >= 500
    model = zoo_model.build(name)
    for rate, right in card["accuracy"]["test"].items():
        spec = "none" if rate == "1" else f"frame_pool:stride={rate},layer={zoo_model.POOL_LAYER}"
        compressed = CompressedAudio(model, parse_spec(spec), name=name).eval()
        module = training.Chunked(model) if training.VARIANTS[name].chunked else compressed
        found = training.count_correct(module, clips, labels)
        assert abs(found - right) <= 2  # a clip on the boundary may differ by machine
    assert card["accuracy"]["test"]["1"] / len(labels) >= 0.85


def test_the_stream_hears_the_same_words(heldout: tuple[speech.Array, speech.Array]) -> None:
    """A clip in five chunks."""
    clips, labels = heldout[0][:267], heldout[1][:267]
    (graph,) = load_host("zoo:keyword_stream").attach(())
    dtypes = {"float32": torch.float32, "int64": torch.int64}
    states = [torch.zeros(len(clips), *map(int, s.shape[1:]), dtype=dtypes[s.dtype]) for s in graph.states]
    logits = torch.empty(0)
    with torch.no_grad():
        for chunk in torch.from_numpy(clips).split(keyword_stream.CHUNK_SAMPLES, dim=1):
            logits, *states = graph.module(chunk, *states)
    right = float((logits.argmax(dim=1).numpy() == labels).mean())
    assert right >= 0.85, f"{right:.1%} right"


# ---- the speech -----------------------------------------------------------------------------------------------------


def test_no_voice_of_the_test_speaks_elsewhere() -> None:
    test = set(speech.TEST_SPEAKERS)
    assert test.isdisjoint(speech.TRAIN_SPEAKERS) and test.isdisjoint(speech.VALIDATION_SPEAKERS)
    assert set(speech.TRAIN_SPEAKERS).isdisjoint(speech.VALIDATION_SPEAKERS)
    words = speech.heldout_words()
    assert set(words.speakers) == test
    assert set(speech.OTHER_WORDS).isdisjoint(speech.OTHER_WORDS_IN_TEST_ONLY)
    counts = np.bincount(words.labels)
    assert counts[: len(speech.KEYWORDS)].tolist() == [2 * len(test)] * len(speech.KEYWORDS) and counts[-1] >= 60


def test_the_test_is_the_same_every_time(heldout: tuple[speech.Array, speech.Array]) -> None:
    clips, labels = speech.heldout_clips()
    assert np.array_equal(clips, heldout[0]) and np.array_equal(labels, heldout[1])
    assert clips.shape[1] == speech.CLIP_SAMPLES and np.abs(clips).max() <= 1
    assert set(labels.tolist()) == set(range(len(speech.CLASSES)))


def test_mu_law_is_near_the_sound() -> None:
    sound = np.concatenate([np.linspace(-1, 1, 2001), [0, 1e-4]]).astype(np.float32)
    error = np.abs(speech.expand(speech.compress(sound)) - sound)
    assert error.max() < 0.025 and error[np.abs(sound) < 0.01].max() < 4e-4


def test_noise_keeps_its_distance() -> None:
    noise = speech.NoiseBank(np.random.RandomState(0))
    word = np.sin(np.arange(6000) / 5).astype(np.float32) * 0.5
    clip = speech.make_clip(word, noise, snr_db=(10.0, 10.0))
    place = int(np.argmax(np.correlate(clip, word, mode="valid")))
    scale = float(clip[place : place + 6000] @ word / (word @ word))
    left = clip.copy()
    left[place : place + 6000] -= scale * word
    distance = 10 * np.log10(np.square(scale * word).mean() / np.square(left).mean())
    assert distance == pytest.approx(10, abs=1)
    quiet = speech.make_clip(None, noise)
    assert 0.05 < np.abs(quiet).max() <= 1


@needs_espeak
def test_espeak_speaks_as_it_is_told() -> None:
    word = speech.Utterance(text="yes", accent="en-us", speaker="f2", words_per_minute=150, pitch=50)
    slow, fast = (speech.synthesize(replace(word, words_per_minute=speed)) for speed in (100, 200))
    assert len(slow) > len(fast) > 1600
    assert np.abs(fast).max() == pytest.approx(0.5, abs=1e-6) and fast.dtype == np.float32
    assert np.array_equal(fast, speech.synthesize(replace(word, words_per_minute=200)))
    assert not np.array_equal(fast[:1600], speech.synthesize(replace(word, speaker="m3", words_per_minute=200))[:1600])
    with pytest.raises(UnsupportedError, match="espeak-ng has no voice 'no-such-accent' here"):
        speech.synthesize(replace(word, accent="no-such-accent"))


def test_without_espeak_there_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speech, "find_program", lambda name: None)
    word = speech.Utterance(text="yes", accent="en-us", speaker="f2", words_per_minute=150, pitch=50)
    with pytest.raises(UnsupportedError, match="espeak-ng, which is not installed"):
        speech.synthesize(word)


@needs_espeak
def test_utterances_are_drawn_anew_for_each_seed() -> None:
    first = speech.utterances(["yes"], ["m1", "f1"], draws=3, seed=0)
    assert len(first) == 6 and first == speech.utterances(["yes"], ["m1", "f1"], draws=3, seed=0)
    assert first != speech.utterances(["yes"], ["m1", "f1"], draws=3, seed=1)


# ---- training -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def few() -> speech.SpokenWords:
    words = speech.heldout_words()
    return replace(words, audio=words.audio[:40:2], labels=words.labels[:40:2], speakers=words.speakers[:40:2])


@pytest.mark.parametrize("name", NAMES)
def test_training_lowers_the_loss_and_is_deterministic(
    name: str, few: speech.SpokenWords, capsys: pytest.CaptureFixture[str]
) -> None:
    variant = training.VARIANTS[name]
    short = replace(variant, recipe=replace(variant.recipe, epochs=3, ema_decay=0.0))
    first, again = (training.train(few, short).state_dict() for _ in range(2))
    assert all(torch.equal(tensor, again[key]) for key, tensor in first.items())
    losses = [float(line.split("loss ")[1]) for line in capsys.readouterr().err.splitlines()[:3]]
    assert losses[-1] < losses[0]


def test_masks_hide_a_range_of_bands_and_frames() -> None:
    torch.manual_seed(0)
    recipe = training.KeywordRecipe()
    features = torch.randn(20, 40, 100)
    masked = training.mask(features, recipe)
    bands = (masked != features).all(dim=2).sum(dim=1)
    frames = (masked != features).all(dim=1).sum(dim=1)
    assert bands.max() <= recipe.max_masked_bands and frames.max() <= recipe.max_masked_frames
    assert bands.max() > 0 and frames.max() > 0
    still = training.mask(features, replace(recipe, max_masked_bands=0, max_masked_frames=0))
    assert torch.equal(still, features)


@needs_espeak
def test_script_refuses_an_output_that_is_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    occupied = tmp_path / "file"
    occupied.touch()
    assert training.main(["keyword_spotter", "--output", str(occupied)]) == 2
    assert f"--output {occupied} cannot be written" in capsys.readouterr().err
