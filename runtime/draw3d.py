"""Pictures of 3D boxes: a bird's-eye view, and boxes projected into camera images. Needs Pillow.

Boxes are mappings as a stream's results hold them; see `camera_frames`.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from trt_compress.errors import ShapeError, UnsupportedError
from trt_compress.files import write_whole
from trt_compress.runtime.camera_frames import Box, CameraFrame, Floats, corners_of

if TYPE_CHECKING:
    from PIL.Image import Image

COLORS = ("#ff9f1c", "#4cc9f0", "#f15bb5", "#9bf04c", "#b388ff", "#ffe14c")
"""Of the classes, in the order in which labels are sorted, or by class number."""

TRUTH_COLOR = "#7d8894"
"""Of boxes that are known to be there."""

_BACKGROUND, _RING, _TEXT = "#14181d", "#39424d", "#aeb8c2"
_CAPTION = 12  # pixels
_NEAREST_M = 0.1
_EDGES = [(a, b) for a in range(8) for b in range(a + 1, 8) if bin(a ^ b).count("1") == 1]
_FRONT = ((0, 3), (1, 2))  # diagonals of the front face


def draw_bev(boxes: Sequence[Box], *, truth: Sequence[Box] = (), range_m: float = 24.0, size: int = 480) -> "Image":
    """Draw boxes as seen from above, the ego vehicle in the middle and looking up.

    Args:
        boxes: What was found; drawn filled, stronger with a higher score, a line from the middle to the front, and an
            arrow to where a box will be in a second.
        truth: What is there, if it is known; drawn as grey outlines beneath.
        range_m: From the middle to the border.
        size: Pixels of a side.
    """
    image: Image = _image().new("RGB", (size, size), _BACKGROUND)
    draw = _draw(image)
    scale = size / 2 / range_m
    place = _Place(scale=scale, middle=size / 2)
    step = 5 if range_m <= 30 else 10 if range_m <= 60 else 25
    for ring in range(step, int(range_m) + 1, step):
        low, high = size / 2 - ring * scale, size / 2 + ring * scale
        draw.ellipse([low, low, high, high], outline=_RING)
        draw.text((size / 2 + 3, low + 1), f"{ring} m", fill=_TEXT)
    draw.line([size / 2, 0, size / 2, size], fill=_RING)
    draw.line([0, size / 2, size, size / 2], fill=_RING)
    draw.polygon([place(2.2, 0.0), place(1.2, 0.9), place(-2.2, 0.9), place(-2.2, -0.9), place(1.2, -0.9)], fill=_TEXT)
    for box in truth:
        draw.polygon([place(x, y) for x, y in _ground(box)], outline=TRUTH_COLOR, width=2)
    colors = _colors([*boxes, *truth])
    for box in sorted(boxes, key=_score):
        color = colors[_label(box)]
        strength = 0.35 + 0.65 * min(max(_score(box), 0.0), 1.0)
        draw.polygon(
            [place(x, y) for x, y in _ground(box)], fill=_mixed(color, 0.45 * strength), outline=color, width=2
        )
        x, y = box["center"][:2]
        ahead = box["size"][0] / 2
        draw.line(
            [place(x, y), place(x + ahead * np.cos(box["yaw"]), y + ahead * np.sin(box["yaw"]))], fill=color, width=2
        )
        speed = np.asarray(box.get("velocity", (0.0, 0.0)), np.float64)
        if np.linalg.norm(speed) > 0.3:
            _arrow(draw, place(x, y), place(x + speed[0], y + speed[1]), "#ffffff")
    _legend(draw, colors | ({"true": TRUTH_COLOR} if truth else {}), size)
    return image


def draw_boxes(
    image: "Image | npt.NDArray[np.uint8]",
    boxes: Sequence[Box],
    projection: npt.NDArray[np.floating[Any]],
    *,
    zoom: int = 1,
    color: str | None = None,
) -> "Image":
    """Draw boxes into a camera image.

    Args:
        image: RGB picture, or array [height, width, 3].
        boxes: In the ego frame.
        projection: From the ego frame to (column · depth, row · depth, depth), [4, 4] or [3, 4]: a row of
            `CameraFrame.lidar2img`.
        zoom: The picture is enlarged so many times; small images need it for lines and text.
        color: Of all boxes; None: by class.
    """
    if projection.shape not in ((4, 4), (3, 4)):
        raise ShapeError(f"projection has shape {list(projection.shape)}; give [4, 4] or [3, 4], one camera's.")
    picture: Image = _image().fromarray(image) if isinstance(image, np.ndarray) else image.convert("RGB")
    picture = picture.resize((picture.width * zoom, picture.height * zoom), _image().Resampling.NEAREST)
    draw, colors = _draw(picture), _colors(boxes)
    matrix = projection[:3].astype(np.float64)
    for box in sorted(boxes, key=_score):
        corners = np.concatenate([corners_of(box), np.ones((8, 1))], axis=1) @ matrix.T
        if (corners[:, 2] < _NEAREST_M).all():
            continue
        ink = color or colors[_label(box)]
        seen: list[tuple[float, float]] = []
        for lines, width in ((_EDGES, 2), (_FRONT, 1)):
            for start, end in lines:
                line = _projected(corners[start], corners[end], zoom)
                if line is not None:
                    draw.line(line, fill=ink, width=width)
                    seen += [line[:2], line[2:]]
        inside = [(x, y) for x, y in seen if 0 <= x < picture.width and 0 <= y < picture.height]
        if inside and color is None:
            _caption(draw, box, min(x for x, _ in inside), min(y for _, y in inside), ink)
    return picture


def draw_frame(frame: CameraFrame, boxes: Sequence[Box], *, zoom: int = 1) -> "Image":
    """All cameras of a moment side by side with their boxes, and the bird's-eye view to the right of them.

    Args:
        frame: The moment; its own boxes, if it has any, are drawn in grey.
        boxes: What was found.
        zoom: As `draw_boxes`.
    """
    known = frame.boxes or ()
    views = []
    for image, matrix in zip(frame.images, frame.lidar2img, strict=True):
        under = draw_boxes(image, known, matrix, zoom=zoom, color=TRUTH_COLOR)
        views.append(draw_boxes(under, boxes, np.diag([zoom, zoom, 1.0, 1.0]) @ matrix))
    columns = 2 if len(views) > 1 else 1
    rows = -(-len(views) // columns)
    width, height = max(view.width for view in views), max(view.height for view in views)
    side = max(rows * height, 240)
    sheet: Image = _image().new("RGB", (columns * width + side, side), _BACKGROUND)
    for number, (view, name) in enumerate(zip(views, frame.cameras, strict=True)):
        left, top = number % columns * width, number // columns * height
        sheet.paste(view, (left, top))
        _draw(sheet).text((left + 4, top + 3), name, fill="#ffffff", stroke_fill="#000000", stroke_width=1)
    sheet.paste(draw_bev(boxes, truth=known, size=side), (columns * width, 0))
    return sheet


def write_picture(path: Path, picture: "Image") -> None:
    """Write a picture whole; the suffix chooses the format.

    Raises:
        OSError: It cannot be written.
        ValueError: No format has that suffix.
    """
    packed = io.BytesIO()
    packed.name = str(path)
    picture.save(packed, optimize=True)
    write_whole(path, packed.getvalue())


class _Place:
    """Metres to pixels of a bird's-eye view: x up, y to the left."""

    def __init__(self, *, scale: float, middle: float) -> None:
        self._scale, self._middle = scale, middle

    def __call__(self, x: float, y: float) -> tuple[float, float]:
        return self._middle - float(y) * self._scale, self._middle - float(x) * self._scale


def _ground(box: Box) -> Floats:
    """The four corners on the ground in turn, [4, 2]."""
    corners: Floats = corners_of(box)[[0, 2, 6, 4], :2]
    return corners


def _projected(start: Floats, end: Floats, zoom: int) -> tuple[float, float, float, float] | None:
    """A line between two points (column · depth, row · depth, depth) in pixels, cut where it passes the camera."""
    if max(start[2], end[2]) < _NEAREST_M:
        return None
    if min(start[2], end[2]) < _NEAREST_M:
        near, far = (start, end) if start[2] < end[2] else (end, start)
        start, end = near + (far - near) * (_NEAREST_M - near[2]) / (far[2] - near[2]), far
    (x0, y0), (x1, y1) = (point[:2] / point[2] * zoom for point in (start, end))
    return float(x0), float(y0), float(x1), float(y1)


def _caption(draw: Any, box: Box, x: float, y: float, ink: str) -> None:
    text = _label(box) if box.get("score") is None else f"{_label(box)} {_score(box):.2f}"
    place = (x, max(y - _CAPTION - 2, 0))
    draw.rectangle(draw.textbbox(place, text, font_size=_CAPTION), fill="#000000")
    draw.text(place, text, fill=ink, font_size=_CAPTION)


def _arrow(draw: Any, start: tuple[float, float], end: tuple[float, float], color: str) -> None:
    draw.line([start, end], fill=color, width=1)
    along = np.subtract(end, start)
    along = along / max(float(np.linalg.norm(along)), 1e-6) * 5
    across = np.array([-along[1], along[0]]) * 0.6
    draw.polygon([end, tuple(end - along + across), tuple(end - along - across)], fill=color)


def _legend(draw: Any, colors: dict[str, str], size: int) -> None:
    for number, (label, color) in enumerate(colors.items()):
        top = size - 16 * (len(colors) - number) - 2
        draw.rectangle([6, top + 2, 15, top + 11], fill=color)
        draw.text((20, top), label, fill=_TEXT)


def _label(box: Box) -> str:
    return str(box.get("label", box.get("class", "box")))


def _score(box: Box) -> float:
    return float(box.get("score", 1.0))


def _colors(boxes: Sequence[Box]) -> dict[str, str]:
    """A colour for each label: by the class number where there is one, else in the order of the alphabet."""
    labels = sorted({_label(box) for box in boxes})
    numbers = {_label(box): int(box["class"]) for box in boxes if isinstance(box.get("class"), int)}
    return {label: COLORS[numbers.get(label, place) % len(COLORS)] for place, label in enumerate(labels)}


def _mixed(color: str, share: float) -> str:
    """`share` of a colour over the background."""
    parts = [
        round(int(_BACKGROUND[at : at + 2], 16) * (1 - share) + int(color[at : at + 2], 16) * share) for at in (1, 3, 5)
    ]
    return "#" + "".join(f"{part:02x}" for part in parts)


def _image() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise UnsupportedError(
            "pictures are drawn by Pillow, which is not installed.", hint="pip install pillow"
        ) from error
    return Image


def _draw(image: "Image") -> Any:
    from PIL import ImageDraw

    return ImageDraw.Draw(image)
