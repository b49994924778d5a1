"""A picture of what Token Merging does to a photograph: `python -m trt_compress.tools.token_picture FILE.png`.

Frames of held-out clips go through `zoo:video_vit` with `tome:num_merged=16`; patches that became one token are drawn
in their common colour, with a border around them.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from trt_compress.errors import ConfigError, TrtCompressError
from trt_compress.foreign import reason_of
from trt_compress.methods import parse_spec
from trt_compress.models.hosts.registry import load_host
from trt_compress.models.zoo.data import moving_digits
from trt_compress.plugins.operator import recording
from trt_compress.runtime.draw3d import write_picture
from trt_compress.tools.console import say_error

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

MODEL, SPEC = "zoo:video_vit", "tome:num_merged=16"
CLIPS = (48, 17)  # skies and trees: there is something to see
_ZOOM, _GAP, _CAPTION, _FONT = 3, 10, 26, 15
_PAPER, _INK, _BORDER = "white", "#24292f", (255, 255, 255)

Groups = npt.NDArray[np.int64]


def token_of_patch(record: Mapping[str, Tensor], sites: Sequence[str], num_prefix: int) -> Groups:
    """Which token each patch of an image has become.

    Args:
        record: Of `recording()`, of one image.
        sites: Sites that merged, in order of execution: `blocks.0`, …
        num_prefix: Tokens before the first patch.

    Returns:
        Number of the token, for each patch.
    """
    place = torch.arange(record[f"{sites[0]}/TokenMerge/x"].shape[1])
    for site in sites:
        place = record[f"{site}/TokenMerge/dest"][0].cpu()[place]
    return np.asarray(place[num_prefix:].numpy(), np.int64)


def draw_groups(
    image: npt.NDArray[np.uint8], groups: Groups, *, zoom: int, shape: tuple[int, int] | None = None
) -> "Picture":
    """Draw the patches of each group in the mean of their pixels, with a border where two groups meet.

    Args:
        image: [H, W, 3]; pixels that fill no patch at the right and below are left out.
        groups: Of a grid of patches, row by row; -1: it was dropped, and is drawn pale.
        zoom: How much larger.
        shape: Rows and columns of the grid; None: it is a square.
    """
    side = round(len(groups) ** 0.5)
    rows, columns = (side, side) if shape is None else shape
    grid = groups.reshape(rows, columns)
    patch = image.shape[0] // rows, image.shape[1] // columns
    image = image[: rows * patch[0], : columns * patch[1]]
    pixel = np.kron(grid, np.ones(patch, np.int64))
    flat = np.zeros_like(image)
    for number in np.unique(grid):
        there = pixel == number
        flat[there] = _pale(image[there]) if number < 0 else image[there].mean(axis=0)
    large = flat.repeat(zoom, axis=0).repeat(zoom, axis=1)
    owner = pixel.repeat(zoom, axis=0).repeat(zoom, axis=1)
    large[1:][owner[1:] != owner[:-1]] = _BORDER
    large[:, 1:][owner[:, 1:] != owner[:, :-1]] = _BORDER
    return Image.fromarray(large)


def _pale(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Pixels of what was dropped."""
    return np.asarray(255 - (255 - pixels.astype(np.int64)) // 5, np.uint8)


def token_picture() -> "Picture":
    """A row for each clip: its first frame, its tokens half-way through the model, and its tokens at the end."""
    host = load_host(MODEL)
    module = host.attach(parse_spec(SPEC))[0].module
    plan = module.plan
    rows: list[list[tuple[Picture, str]]] = []
    for number in CLIPS:
        clip = moving_digits.make_clip("test", number, length=1)
        frame = clip.frames[0]
        with torch.no_grad(), recording() as record:
            logits: Any = module(torch.from_numpy(moving_digits.as_input(clip.frames)))[0]
        share = logits.softmax(dim=-1)[0]
        row = [
            (
                Image.fromarray(frame.repeat(_ZOOM, axis=0).repeat(_ZOOM, axis=1)),
                f"{int(plan[0].tokens_in) - 1} patches",
            )
        ]
        for layers in (len(plan) // 2, len(plan)):
            groups = token_of_patch(record, [site.name for site in plan[:layers]], num_prefix=1)
            row.append(
                (draw_groups(frame, groups, zoom=_ZOOM), f"{len(np.unique(groups))} tokens after {layers} layers")
            )
        row[-1] = (row[-1][0], f"{row[-1][1]}: a {int(share.argmax())}, {share.max():.0%}")
        rows.append(row)
    side = _ZOOM * moving_digits.FRAME_SIZE
    size = (3 * side + 4 * _GAP, len(rows) * (side + _CAPTION) + _GAP)
    picture = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(picture)
    for below, row in enumerate(rows):
        for right, (tile, caption) in enumerate(row):
            at = (_GAP + right * (side + _GAP), _GAP + below * (side + _CAPTION))
            picture.paste(tile, at)
            draw.text((at[0], at[1] + side + 3), caption, fill=_INK, font_size=_FONT)
    return picture


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the picture; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="the picture, .png")
    file: Path = parser.parse_args(arguments).file
    try:
        picture = token_picture()
        try:
            write_picture(file, picture)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"'{file}' cannot be written ({reason_of(error)}); give another file, such as tokens.png."
            ) from None
    except TrtCompressError as error:
        say_error(error.message, error.hint)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
