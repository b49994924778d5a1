"""Picture files by Pillow, as RGB or grey of 8 bits, upright: every picture that a file holds."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from trt_compress.files import check_regular, open_regular
from trt_compress.runtime.stream.containers import gif_is_whole
from trt_compress.runtime.stream.frame import Array
from trt_compress.runtime.stream.parts import Item
from trt_compress.runtime.stream.upright import turn_from_exif

MOST_PIXELS = 1 << 27
"""Pixels of a picture above which it is not decoded: 134 million, 400 MB as RGB."""

UNREADABLE = "the file is not a readable image"
CUT_OFF = "the file ends before its last picture"

_BITS, _PHOTOMETRIC, _KIND, _SAMPLE_FORMAT, _ORIENTATION = 258, 262, 254, 339, 274  # tags of TIFF and EXIF
_THUMBNAIL_OR_MASK = 1 | 4  # bits of a TIFF page's kind
_UNSIGNED, _SIGNED = 1, 2  # sample formats of TIFF
_BEYOND = 0.1  # how far numbers may be outside their range, as what resizing leaves; they are cut off
_SIZ = bytes.fromhex("ff4fff51")  # how a JPEG 2000 stream begins
_JPEG2000_HEADER = 1 << 20  # bytes before that; a colour profile may be among them
_pillow_lock = threading.Lock()


def too_large(width: int, height: int) -> str | None:
    """Why a picture of this size is not decoded, or None if it is."""
    if width * height <= MOST_PIXELS:
        return None
    return f"the picture has {width}x{height} pixels, and at most {MOST_PIXELS // 1_000_000} million are decoded"


class PictureReader:
    """Reads the pictures of one stream.

    Whole numbers of 9 to 16 bits are scaled so that the largest of that many bits is white, as video decoders do. For
    floating point and 32-bit numbers no file says what is white. The first picture of the stream that is not black
    decides for all: numbers up to 1 (floating point only), 255 or 65535; a picture beyond that is a frame that failed.
    Transparency is left out, as it is where models are trained.

    Args:
        pillow: The module PIL.Image.
    """

    def __init__(self, pillow: Any) -> None:
        self._pillow = pillow
        self._white: dict[str, int] = {}  # mode → largest number, of the modes whose files do not say

    def count(self, file: str) -> int:
        """How many pictures a file holds; 1 if it cannot be read."""
        try:
            with self._open(file) as image:
                return len(_pages(image))
        except Exception:  # whatever a decoder raises; reading it gives the failed frame
            return 1

    def read(self, file: str) -> Iterator[Item]:
        """The pictures of a file, [H, W, 3] or [H, W] uint8; one that is damaged is a failed frame.

        An animation gives its time stamps.
        """
        try:
            image = self._open(file)
        except Exception:  # whatever a decoder raises for a damaged file: of Pillow alone, a dozen classes
            yield Item(error=UNREADABLE)
            return
        with image:
            if image.format == "JPEG2000" and len(image.getbands()) > 1 and (bits := _bits_of_jpeg2000(file)) > 8:
                yield Item(error=f"the picture is JPEG 2000 of {bits} bits in colour; save it as PNG")
                return
            try:
                pages = _pages(image)
            except Exception:
                yield Item(error=UNREADABLE)
                return
            time_ms: float | None = 0.0
            for page in pages:
                try:
                    image.seek(page)
                except Exception:
                    yield Item(error=CUT_OFF if page else UNREADABLE)
                    return
                capture_ns = None if time_ms is None or len(pages) == 1 else round(time_ms * 1e6)
                item = self._item(image)
                lasts = image.info.get("duration")
                if isinstance(lasts, int | float) and time_ms is not None:
                    time_ms += float(lasts)
                else:
                    time_ms = capture_ns = None
                yield Item(data=item.data, error=item.error, capture_ns=capture_ns)
            if image.format == "GIF" and not gif_is_whole(file):
                yield Item(error=CUT_OFF)

    def _open(self, file: str) -> Any:
        """Open a file. Pillow's own limit is a number for the whole process, and warns; `too_large` is ours."""
        check_regular(Path(file))
        with _pillow_lock:
            before, self._pillow.MAX_IMAGE_PIXELS = self._pillow.MAX_IMAGE_PIXELS, None
            try:
                image = self._pillow.open(file)
            finally:
                self._pillow.MAX_IMAGE_PIXELS = before
        if image.format == "TIFF":  # by its name Pillow maps it into memory, and takes the rows of a turned one wrongly
            image.filename = ""
        return image

    def _item(self, image: Any) -> Item:
        """The picture that a file is at."""
        if (reason := too_large(*image.size)) is not None:
            return Item(error=reason)
        try:
            image.load()
            if image.mode.startswith("I") or image.mode == "F":
                pixels = self._scaled(image)
            elif image.mode in ("1", "L", "LA"):
                pixels = np.asarray(image.convert("L"))
            elif "transparency" in image.info and image.mode == "P":
                pixels = np.asarray(image.convert("RGBA").convert("RGB"))  # Pillow warns of the direct way
            else:
                pixels = np.asarray(image.convert("RGB"))
        except Exception:
            return Item(error=UNREADABLE)
        return Item(error=pixels) if isinstance(pixels, str) else Item(data=turn_from_exif(_orientation(image))(pixels))

    def _scaled(self, image: Any) -> Array | str:
        """A grey picture of more than 8 bits as uint8, or why it cannot be."""
        numbers = np.asarray(image)
        tags = getattr(image, "tag_v2", {})
        bits, form = _first(tags.get(_BITS)) or 16, _first(tags.get(_SAMPLE_FORMAT)) or _UNSIGNED
        if image.mode.startswith("I;16"):
            white: int | None = 2**bits - 1 if 8 < bits < 16 else 65535
        elif image.mode == "I" and not tags:
            white = 65535  # PNG, PGM and JPEG 2000 end at 16 bits
        elif image.mode == "I" and bits <= 16:
            white = 32767 if form == _SIGNED else 65535
        else:
            if image.mode == "I" and form == _UNSIGNED:
                numbers = numbers.view(np.uint32)
            if not np.isfinite(numbers).all():
                return "the picture holds numbers that are not finite"
            white = self._white_of(image.mode, float(numbers.max()))
        low, high = float(numbers.min()), float(numbers.max())
        if white is None:
            kind = "numbers of 32 bits" if image.mode == "I" else "floating-point numbers"
            return f"the picture holds {kind} up to {high:g}, and white is not known; save it with 8 or 16 bits"
        if low < -_BEYOND * white or high > (1 + _BEYOND) * white:
            return f"the picture holds numbers from {low:g} to {high:g}, and those of the stream go from 0 to {white}"
        values: Array = np.multiply(numbers, 255.0 / white, dtype=np.float32)
        if tags.get(_PHOTOMETRIC) == 0:  # Pillow turns white and black only in pictures of 8 bits
            values = 255.0 - values
        pixels: Array = np.rint(values).clip(0, 255).astype(np.uint8)
        return pixels

    def _white_of(self, mode: str, high: float) -> int | None:
        if mode not in self._white:
            allowed = (1, 255, 65535) if mode == "F" else (255, 65535)
            white = next((number for number in allowed if high <= (1 + _BEYOND) * number), None)
            if high <= 0 or white is None:
                return allowed[0] if white is not None else None
            self._white[mode] = white
        return self._white[mode]


def _pages(image: Any) -> list[int]:
    """The numbers of the pictures in a file: of a phone's two the first, and no thumbnails, masks or stand-ins."""
    count = int(getattr(image, "n_frames", 1))
    if image.format in ("JPEG", "MPO") or count == 1:
        return [0]
    if image.format == "PNG":  # a picture for viewers that know no animation is none of it
        return list(range(int(bool(getattr(image, "default_image", False))), count))
    if image.format != "TIFF":
        return list(range(count))
    pages = []
    for page in range(count):
        image.seek(page)
        if not (_first(image.tag_v2.get(_KIND)) or 0) & _THUMBNAIL_OR_MASK:
            pages.append(page)
    return pages or [0]


def _bits_of_jpeg2000(file: str) -> int:
    """Bits of a number. Pillow makes 8 of more by rounding, and what rounds up to 256 comes as black.

    Source: ISO/IEC 15444-1, A.5.1 (SIZ).
    """
    with open_regular(Path(file)) as opened:
        data = opened.read(_JPEG2000_HEADER)
    at = data.find(_SIZ)
    return 1 + (data[at + 42] & 0x7F) if 0 <= at < len(data) - 42 else 8


def _orientation(image: Any) -> object:
    """EXIF's orientation of a loaded picture; an EXIF block that cannot be read is none."""
    try:
        return image.getexif().get(_ORIENTATION)
    except Exception:
        return None


def _first(tag: Any) -> Any:
    return tag[0] if isinstance(tag, tuple) and tag else tag
