"""The picture of merged tokens shows the tokens that the model has."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from trt_compress.methods import parse_spec
from trt_compress.models.hosts.registry import load_host
from trt_compress.models.zoo.data import moving_digits
from trt_compress.plugins.operator import recording
from trt_compress.tools import token_picture

SITES = [f"blocks.{layer}" for layer in range(6)]


def test_a_token_stands_for_as_many_patches_as_its_size_says() -> None:
    module = load_host(token_picture.MODEL).attach(parse_spec(token_picture.SPEC))[0].module
    frames = moving_digits.make_clip("test", 0, length=1).frames
    with torch.no_grad(), recording() as record:
        module(torch.from_numpy(moving_digits.as_input(frames)))
    for layers in (1, 3, 6):
        groups = token_picture.token_of_patch(record, SITES[:layers], num_prefix=1)
        size = record[f"{SITES[layers - 1]}/TokenMerge/y_size"][0, :, 0].numpy()
        assert len(groups) == 144
        np.testing.assert_array_equal(np.bincount(groups, minlength=len(size))[1:], size[1:])
        assert 0 not in groups, "the class token takes up no patch"


def test_a_group_is_drawn_in_its_mean_colour() -> None:
    image = np.zeros((4, 4, 3), np.uint8)
    image[:2, :2], image[2:, 2:] = 100, 200
    drawn = np.asarray(token_picture.draw_groups(image, np.array([0, 1, 2, 0]), zoom=3))
    assert drawn.shape == (12, 12, 3)
    assert drawn[0, 0].tolist() == drawn[11, 11].tolist() == [150, 150, 150]
    assert drawn[0, 11].tolist() == [0, 0, 0]
    assert drawn[0, 6].tolist() == [255, 255, 255]


def test_the_command_writes_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert token_picture.main([str(tmp_path / "tokens.png")]) == 0
    with Image.open(tmp_path / "tokens.png") as picture:
        assert picture.width > 3 * 96
    assert token_picture.main([str(tmp_path / "missing" / "tokens.png")]) == 2
    assert "cannot be written" in capsys.readouterr().err
