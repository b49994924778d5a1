"""One picture of a frame and its results: the images of its sources or cameras, and boxes from above. Needs Pillow."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trt_compress.errors import ConfigError
from trt_compress.runtime.camera_frames import Box
from trt_compress.runtime.draw3d import TRUTH_COLOR, draw_bev, draw_boxes
from trt_compress.runtime.stream.frame import Array, Frame

_ALONE, _BESIDE = 360, 280  # pixels of the height of a single image, and of one of several, at least
_WIDEST = 1920  # pixels to which small images are enlarged at most
_NARROWEST = 240  # pixels of the whole sheet, so that a line of text fits
_LARGEST = (3840, 2160)  # of the whole sheet; H.264 ends not far above
_TEXT, _LINE, _SMALLEST_TEXT, _BAR = 18, 14, 11, 24  # pixels
_YELLOW, _GREEN, _RED, _WHITE, _BLACK = "#ffe14c", "#7ee787", "#ff6b6b", "#ffffff", "#000000"


@dataclass(frozen=True, slots=True, kw_only=True)
class Captions:
    """What is written beside results.

    Attributes:
        names: Of the images of a frame, in order.
        classes: Frame → true class of each sample.
        boxes: Frame → true boxes.
        labels: Names of the classes, if the bundle has them.
        with_place: A place that was found is one of the image, as the model takes the whole of it.
    """

    names: Sequence[str] = ()
    classes: Mapping[int, Sequence[int]] = field(default_factory=dict)
    boxes: Mapping[int, Sequence[Box]] = field(default_factory=dict)
    labels: Sequence[str] = ()
    with_place: bool = True


def draw_sheet(frame: Frame, captions: Captions, *, range_m: float = 30.0) -> Any:
    """Draw the images of a frame with its results, and behind them the boxes from above.

    Small images are enlarged by a whole number.

    Args:
        frame: Its `data` are images, or arrays of a scene among which `images` or `image` holds some; with `img2lidar`
            boxes are drawn into the images too.
        captions: Names, and what is true.
        range_m: Half the side of the bird's-eye view.

    Raises:
        ConfigError: The frame holds no images.
    """
    from PIL import Image

    images = images_of(frame.data)
    results = frame.summary.get("results", [])
    found = next((result["boxes"] for result in results if "boxes" in result), None)
    true_boxes = captions.boxes.get(frame.id, ())
    cameras = _projections(frame.data, len(images))
    zoom = _zoom(images)
    height = max(image.shape[0] for image in images) * zoom
    names = captions.names if len(captions.names) == len(images) else [f"camera {n + 1}" for n in range(len(images))]
    tiles: list[Any] = []
    for number, image in enumerate(images):
        width = max(2, round(image.shape[1] * height / image.shape[0]))
        tile = Image.fromarray(image).convert("RGB").resize((width, height), Image.Resampling.NEAREST)
        if found is not None and cameras is not None:
            matrix = np.diag([width / image.shape[1], height / image.shape[0], 1.0, 1.0]) @ cameras[number]
            tile = draw_boxes(draw_boxes(tile, true_boxes, matrix, color=TRUTH_COLOR), found, matrix)
        result = results[number] if number < len(results) else {}
        wanted = captions.classes.get(frame.id, ())
        _caption(
            tile,
            result,
            wanted[number] if number < len(wanted) else None,
            names[number] if len(images) > 1 else None,
            captions,
        )
        tiles.append(tile)
    above = None
    if found is not None:
        rows = 1 if len(tiles) < 2 else 2
        above = draw_bev(found, truth=true_boxes, range_m=range_m, size=rows * height)
    sheet = _joined(tiles, above)
    sheet.thumbnail(_LARGEST)
    return sheet


def with_line(picture: Any, text: str, *, ground: str = _BLACK) -> Any:
    """A picture with a line of text below it, on a bar."""
    from PIL import Image, ImageDraw

    sheet = Image.new("RGB", (picture.width, picture.height + _BAR), ground)
    sheet.paste(picture, (0, 0))
    size = _text_size(picture, text, _LINE)
    ImageDraw.Draw(sheet).text((6, picture.height + (_BAR - size) // 2 - 1), text, fill=_WHITE, font_size=size)
    return sheet


def images_of(data: Any) -> list[Array]:
    """The images of a frame as uint8, [H, W, 3] or [H, W].

    Raises:
        ConfigError: There are none.
    """
    if isinstance(data, tuple):
        return [image for part in data for image in images_of(part)]
    if isinstance(data, dict):
        name = next((name for name in ("images", "image") if name in data), None)
        if name is None:
            raise ConfigError(f"An overlay needs images, and the source gives {', '.join(data)}; leave --overlay out.")
        array = np.asarray(data[name])
        array = array.reshape(-1, *array.shape[-3:])
        return [_as_bytes(image) for image in array]
    array = np.asarray(data)
    if array.dtype != np.uint8 or array.ndim not in (2, 3):
        raise ConfigError("An overlay needs images, and the source gives sound; leave --overlay out.")
    return [array]


def _zoom(images: Sequence[Array]) -> int:
    """How many times images are enlarged: until they are high enough, but not beyond the widest."""
    least = _ALONE if len(images) == 1 else _BESIDE
    high, wide = (int(max(image.shape[axis] for image in images)) for axis in (0, 1))
    return max(1, min(-(-least // high), _WIDEST // wide))


def _caption(tile: Any, result: Mapping[str, Any], wanted: int | None, name: str | None, captions: Captions) -> None:
    """Write the name of an image and its class, and mark the place that was found."""
    from PIL import ImageDraw

    draw = ImageDraw.Draw(tile)
    if (place := result.get("place")) is not None and captions.with_place:
        _mark(draw, place[0] * tile.width, place[1] * tile.height, max(8, tile.height // 18))
    lines: list[tuple[str, str]] = [] if name is None else [(name, _WHITE)]
    if "class" in result:
        text, ink = f"{result.get('label', result['class'])}  {result['score']:.0%}", _YELLOW
        if wanted is not None:
            right = wanted == result["class"]
            true = captions.labels[wanted] if wanted < len(captions.labels) else wanted
            text, ink = (f"{text}  right", _GREEN) if right else (f"{text}  wrong, is {true}", _RED)
        lines.append((text, ink))
    top = 4
    for text, ink in lines:
        size = _text_size(tile, text, _TEXT)
        draw.text((6, top), text, fill=ink, stroke_width=2, stroke_fill=_BLACK, font_size=size)
        top += size + 6


def _mark(draw: Any, x: float, y: float, radius: float) -> None:
    """A ring with four strokes outward, light on dark, so that it is seen on any ground and hides little."""
    for ink, width in ((_BLACK, 4), (_YELLOW, 2)):
        draw.ellipse([x - radius, y - radius, x + radius, y + radius], outline=ink, width=width)
        for across, down in ((1, 0), (-1, 0), (0, 1), (0, -1)):
            near, far = radius, 1.8 * radius
            draw.line([x + across * near, y + down * near, x + across * far, y + down * far], fill=ink, width=width)


def _text_size(picture: Any, text: str, size: int) -> int:
    """The largest size up to this one in which a text fits; the smallest that can be read if none does."""
    from PIL import ImageDraw

    draw = ImageDraw.Draw(picture)
    while size > _SMALLEST_TEXT and draw.textlength(text, font_size=size) > picture.width - 12:
        size -= 1
    return size


def _joined(tiles: Sequence[Any], above: Any | None) -> Any:
    """Tiles side by side, in rows if they are many; in two if the boxes from above stand behind them, twice as high."""
    from PIL import Image

    count = len(tiles)
    if above is not None:
        columns = math.ceil(count / 2)
    else:
        columns = count if count <= 3 else math.ceil(math.sqrt(count))
    rows = [tiles[start : start + columns] for start in range(0, count, columns)]
    width = max(sum(tile.width for tile in row) for row in rows)
    height = sum(row[0].height for row in rows)
    size = (max(width, _NARROWEST), height) if above is None else (width + above.width, max(height, above.height))
    sheet = Image.new("RGB", size)
    for number, row in enumerate(rows):
        left = 0
        for tile in row:
            sheet.paste(tile, (left, number * tile.height))
            left += tile.width
    if above is not None:
        sheet.paste(above, (width, 0))
    return sheet


def _projections(data: Any, count: int) -> Array | None:
    """From the ego frame into each image, [V, 4, 4], if the frame says how: its `img2lidar` is the way back."""
    if not isinstance(data, dict) or "img2lidar" not in data:
        return None
    back = np.asarray(data["img2lidar"], np.float64).reshape(-1, 4, 4)
    if len(back) != count or (np.linalg.matrix_rank(back) < 4).any():
        return None
    return np.linalg.inv(back)


def _as_bytes(image: Array) -> Array:
    """An image [C, H, W] of any range as [H, W, 3] or [H, W] uint8: 0 to 255 as it is, any other range stretched."""
    image = image.transpose(1, 2, 0) if image.shape[0] in (1, 3) else image
    image = image[..., 0] if image.shape[-1] == 1 else image
    low, high = float(image.min()), float(image.max())
    if image.dtype != np.uint8 and (low < 0 or high <= 1):
        image = (image - low) * (255.0 / max(high - low, 1e-9))
    return image.clip(0, 255).astype(np.uint8)
