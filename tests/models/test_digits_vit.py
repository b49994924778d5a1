"""The model `zoo:digits_vit`: card, weights, split and training script agree with each other."""

import hashlib
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from trt_compress.errors import ConfigError, UnsupportedError
from trt_compress.models.hosts.weights import load_weights
from trt_compress.models.zoo.data import digits
from trt_compress.models.zoo.digits_vit import model as zoo_model
from trt_compress.models.zoo.digits_vit import train as training

pytest.importorskip("timm")
datasets = pytest.importorskip("sklearn.datasets")


@pytest.fixture(scope="module")
def split() -> digits.DigitsSplit:
    return digits.digits_split()


@pytest.fixture
def first_images(split: digits.DigitsSplit) -> digits.DigitsSplit:
    """Training on 48 images: two steps of an epoch, the second one not full."""
    return replace(split, train_images=split.train_images[:48], train_labels=split.train_labels[:48])


def test_weights_are_small_and_those_of_the_card() -> None:
    content = zoo_model.WEIGHTS_FILE.read_bytes()
    weights = zoo_model.digits_vit_card()["weights"]
    assert len(content) <= 4_000_000
    assert weights["bytes"] == len(content)
    assert weights["sha256"] == hashlib.sha256(content).hexdigest()
    assert weights["file"] == zoo_model.WEIGHTS_FILE.name


def test_the_card_is_what_the_script_would_write() -> None:
    card = zoo_model.digits_vit_card()
    assert card["architecture"] == zoo_model.ARCHITECTURE
    recipe = {name: card["training"][name] for name in training.DigitsRecipe.__dataclass_fields__}
    assert training.DigitsRecipe(**recipe) == training.DigitsRecipe()
    assert card["data"]["license"] == "CC-BY-4.0"


def test_held_out_accuracy_is_that_of_the_card(split: digits.DigitsSplit) -> None:
    accuracy = zoo_model.digits_vit_card()["accuracy"]
    correct = zoo_model.count_correct(zoo_model.build_digits_vit(), split.test_images, split.test_labels)
    assert abs(correct - accuracy["test_correct"]) <= 1  # an image on the decision boundary may differ by machine
    assert accuracy["test"] == accuracy["test_correct"] / 360
    assert correct / 360 >= 0.97


def test_three_quarters_of_the_pixels_are_enough(split: digits.DigitsSplit) -> None:
    """The card says that the model tolerates missing tokens: drop the share that training dropped on average."""
    model = zoo_model.build_digits_vit()
    kept = torch.rand(len(split.test_images), 64, generator=torch.Generator().manual_seed(0)).argsort(1)[:, :48]
    images, labels = torch.from_numpy(split.test_images), torch.from_numpy(split.test_labels)
    with torch.inference_mode():
        tokens = model._pos_embed(model.patch_embed(images))
        patches = tokens[:, 1:].gather(1, kept[..., None].expand(-1, -1, tokens.shape[-1]))
        logits = model.forward_head(model.norm(model.blocks(torch.cat([tokens[:, :1], patches], 1))))
    assert (logits.argmax(-1) == labels).float().mean() >= 0.95


def test_model_is_large_enough_for_every_compressor() -> None:
    model = zoo_model.build_digits_vit(weights=False)
    assert model.pos_embed is not None and model.pos_embed.shape[1] >= 65
    assert len(model.blocks) >= 8
    assert not model.training


def test_weights_are_loaded_only_when_asked() -> None:
    released = load_file(zoo_model.WEIGHTS_FILE)
    trained = zoo_model.build_digits_vit().state_dict()
    fresh = zoo_model.build_digits_vit(weights=False).state_dict()
    assert all(torch.equal(trained[name], tensor) for name, tensor in released.items())
    assert not torch.equal(fresh["head.weight"], released["head.weight"])


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    state = load_file(zoo_model.WEIGHTS_FILE)
    del state["blocks.3.attn.qkv.weight"]
    state["head.bias"] = state["head.bias"][:9].clone()
    state["blocks.8.norm1.weight"] = torch.ones(96)
    path = tmp_path / "changed.safetensors"
    save_file(state, path)
    model = zoo_model.build_digits_vit(weights=False)
    before = model.state_dict()["norm.weight"].clone()
    with pytest.raises(ConfigError) as caught:
        load_weights(model, path)
    assert "it misses blocks.3.attn.qkv.weight; " in str(caught.value)
    assert "it has more than the model: blocks.8.norm1.weight; " in str(caught.value)
    assert "it has other shapes: head.bias is [9] instead of [10]" in str(caught.value)
    assert torch.equal(model.state_dict()["norm.weight"], before)


def test_build_names_a_missing_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = load_file(zoo_model.WEIGHTS_FILE)
    del state["cls_token"]
    path = tmp_path / "short.safetensors"
    save_file(state, path)
    monkeypatch.setattr(zoo_model, "WEIGHTS_FILE", path)
    with pytest.raises(ConfigError, match=r"short\.safetensors does not fit the model: it misses cls_token\."):
        zoo_model.build_digits_vit()


def test_unreadable_weights_are_refused(tmp_path: Path) -> None:
    model = zoo_model.build_digits_vit(weights=False)
    truncated = tmp_path / "truncated.safetensors"
    truncated.write_bytes(zoo_model.WEIGHTS_FILE.read_bytes()[:100_000])
    with pytest.raises(ConfigError, match="truncated.safetensors is not a whole safetensors file .*again"):
        load_weights(model, truncated)
    with pytest.raises(ConfigError, match="absent.safetensors is not a file; give"):
        load_weights(model, tmp_path / "absent.safetensors")


def test_split_is_disjoint_complete_and_stratified() -> None:
    labels = datasets.load_digits().target
    train, validation, test = digits.split_indices(labels, 0)
    assert np.array_equal(np.sort(np.concatenate([train, validation, test])), np.arange(1797))
    assert np.bincount(labels[test]).tolist() == [36] * 10
    assert np.bincount(labels[validation]).tolist() == [18] * 10


def test_split_is_stable() -> None:
    labels = datasets.load_digits().target
    expected = zoo_model.digits_vit_card()["split"]
    assert digits.split_sha256(labels, expected["seed"]) == expected["sha256"]
    assert digits.split_sha256(labels, 1) != expected["sha256"]


def test_no_test_image_was_trained_on(split: digits.DigitsSplit) -> None:
    trained_on = {image.tobytes() for image in np.concatenate([split.train_images, split.validation_images])}
    assert trained_on.isdisjoint(image.tobytes() for image in split.test_images)


def test_images_are_preprocessed_as_the_card_says(split: digits.DigitsSplit) -> None:
    raw, preprocess = datasets.load_digits(), zoo_model.digits_vit_card()["preprocess"]
    _, _, test = digits.split_indices(raw.target, 0)
    expected = (raw.images[test][:, None] * preprocess["scale"] - preprocess["mean"][0]) / preprocess["std"][0]
    assert split.test_images.shape == (360, 1, 8, 8)
    assert split.test_images.dtype == np.float32
    assert np.array_equal(split.test_images, expected)  # sixteenths: exact in float32
    assert np.array_equal(split.test_labels, raw.target[test])


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seed_out_of_range(seed: int) -> None:
    with pytest.raises(ConfigError, match=rf"seed={seed}; a seed is a whole number from 0 to 2\*\*32 - 1"):
        digits.digits_split(seed)


def test_missing_scikit_learn_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(
        UnsupportedError, match=r"come with scikit-learn, which is not installed\.\n.*trt-compress\[zoo\]"
    ):
        digits.digits_split()


def test_training_is_deterministic(first_images: digits.DigitsSplit) -> None:
    recipe = training.DigitsRecipe(epochs=1)
    first, again = (training.train(first_images, recipe).state_dict() for _ in range(2))
    other = training.train(first_images, replace(recipe, seed=1)).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    assert not torch.equal(first["blocks.0.attn.qkv.weight"], other["blocks.0.attn.qkv.weight"])


def test_training_lowers_the_loss(first_images: digits.DigitsSplit, capsys: pytest.CaptureFixture[str]) -> None:
    training.train(first_images, training.DigitsRecipe(epochs=6))
    losses = [float(line.split("loss ")[1]) for line in capsys.readouterr().err.splitlines()]
    assert len(losses) == 6
    assert losses[-1] < losses[0]


def test_augmentation_moves_no_pixel_when_all_amounts_are_zero(split: digits.DigitsSplit) -> None:
    still = training.DigitsRecipe(max_rotation_degrees=0, max_zoom_change=0, max_shift_pixels=0, noise_std=0)
    images = torch.from_numpy(split.train_images[:8])
    torch.testing.assert_close(training.augment(images, still), images)
    moved = training.augment(images, replace(still, max_shift_pixels=1.0))
    assert moved.shape == images.shape
    assert not torch.allclose(moved, images, atol=0.1)
    assert moved.min() >= -1.0 - 1e-5 and moved.max() <= 1.0 + 1e-5


def test_script_writes_a_release(
    tmp_path: Path, first_images: digits.DigitsSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = training.DigitsRecipe(epochs=1)
    model = training.train(first_images, recipe)
    card = training.write_release(model, first_images, recipe, tmp_path)
    monkeypatch.setattr(zoo_model, "CARD_FILE", tmp_path / "card.json")
    monkeypatch.setattr(zoo_model, "WEIGHTS_FILE", tmp_path / "digits_vit.safetensors")
    assert zoo_model.digits_vit_card() == card
    built = zoo_model.build_digits_vit().state_dict()
    assert all(torch.equal(built[name], tensor) for name, tensor in model.state_dict().items())


def test_script_refuses_an_output_that_is_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    occupied = tmp_path / "file"
    occupied.touch()
    assert training.main(["--output", str(occupied)]) == 2
    assert f"--output {occupied} cannot be written" in capsys.readouterr().err
