"""Picture files: upright, all bits, all pages, and nothing a decoder raises ends the stream."""

import struct
import zlib
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from tests.runtime.stream.media import Array
from tests.runtime.stream.stream_parts import by_outcome, identity_stages, run_pipeline
from trt_compress.runtime.stream.images import ImageFiles
from trt_compress.runtime.stream.parts import Item
from trt_compress.runtime.stream.pictures import CUT_OFF, UNREADABLE

RAMP = np.tile(np.arange(256.0), (8, 1))
"""All shades of grey, [8, 256]."""

CORNERS = np.zeros((24, 32, 3), np.uint8)
CORNERS[:12, :16], CORNERS[:12, 16:], CORNERS[12:, :16] = (200, 0, 0), (0, 200, 0), (0, 0, 200)

_STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""EXIF's orientation → how a picture is stored that is upright once it is turned so."""


def read_all(path: object) -> list[Item]:
    source = ImageFiles(str(path))
    source.open()
    items = []
    while (item := source.read()) is not None:
        items.append(item)
    source.close()
    return items


def shades(items: list[Item]) -> list[object]:
    return [item.error or round(float(item.data.mean())) for item in items]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.jpg", {"quality": 95}),
        ("a.png", {}),
        ("a.tif", {}),
        ("b.tif", {"compression": "tiff_lzw"}),
        ("a.webp", {"lossless": True}),
    ],
)
def test_pictures_are_upright(tmp_path: Path, name: str, options: dict[str, Any], orientation: int) -> None:
    stored = Image.fromarray(CORNERS)
    if (turn := _STORED[orientation]) is not None:
        stored = stored.transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / name, exif=exif, **options)
    (item,) = read_all(tmp_path / name)
    assert item.data.shape == CORNERS.shape
    assert np.abs(item.data.astype(int) - CORNERS).mean() < 8


def test_grey_pictures_are_turned_and_damaged_exif_is_none(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray((RAMP * 257).astype(np.uint16)).transpose(Image.Transpose.ROTATE_90).save(
        tmp_path / "a.png", exif=exif
    )
    assert np.array_equal(read_all(tmp_path / "a.png")[0].data, RAMP)
    Image.fromarray(CORNERS).save(tmp_path / "b.png", exif=b"Exif\0\0MM\0*\0\0\xff\xff\xff")
    assert np.array_equal(read_all(tmp_path / "b.png")[0].data, CORNERS)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("deep", [False, True])
def test_grey_tiff_in_one_strip_is_turned(tmp_path: Path, deep: bool, orientation: int) -> None:
    stored = Image.fromarray((RAMP * 257).astype(np.uint16) if deep else RAMP.astype(np.uint8))
    if (turn := _STORED[orientation]) is not None:
        stored = stored.transpose(turn)
    stored.save(tmp_path / "a.tif", tiffinfo={0x0112: orientation})
    (item,) = read_all(tmp_path / "a.tif")
    assert np.array_equal(item.data, RAMP)


def tiff(path: Path, numbers: Array, *, bits: int | None = None, photometric: int = 1) -> Path:
    """A TIFF of one strip, in the byte order and with the kind of numbers of the array [8, 256] (or packed bytes)."""
    order = ">" if numbers.dtype.str[0] == ">" else "<"
    form = {"u": 1, "i": 2, "f": 3}[numbers.dtype.kind]
    tags = [(256, 4, 256), (257, 4, 8), (258, 3, bits or numbers.itemsize * 8), (259, 3, 1), (262, 3, photometric)]
    tags += [(273, 4, 8), (277, 3, 1), (278, 4, 8), (279, 4, numbers.nbytes), (339, 3, form)]
    data = b"".join(
        struct.pack(order + "HHI", tag, kind, 1) + struct.pack(order + ("HH" if kind == 3 else "I"), *values)
        for tag, kind, value in tags
        for values in ([(value, 0)] if kind == 3 else [(value,)])
    )
    start = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8 + numbers.nbytes)
    path.write_bytes(start + numbers.tobytes() + struct.pack(order + "H", len(tags)) + data + bytes(4))
    return path


def packed_12_bits() -> Array:
    numbers = np.rint(RAMP * 4095 / 255).astype(int).reshape(-1, 2)
    first, second = numbers[:, 0], numbers[:, 1]
    return np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=1).astype(np.uint8)


@pytest.mark.parametrize(
    ("numbers", "settings"),
    [
        ((RAMP * 257).astype("<u2"), {}),
        ((RAMP * 257).astype(">u2"), {}),
        ((65535 - RAMP * 257).astype("<u2"), {"photometric": 0}),  # 0 is white
        (np.floor(RAMP * 32767 / 255 + 0.5).astype("<i2"), {}),
        (packed_12_bits(), {"bits": 12}),
        ((RAMP * 257).astype("<i4"), {}),
        ((RAMP * 257).astype(">i4"), {}),
        ((RAMP * 257).astype("<u4"), {}),
        (RAMP.astype("<i4"), {}),
        ((RAMP / 255).astype("<f4"), {}),
        ((RAMP / 255).astype(">f4"), {}),
        (RAMP.astype("<f4"), {}),
        ((RAMP * 257).astype("<f4"), {}),
    ],
)
def test_deep_grey_is_scaled_not_clipped(tmp_path: Path, numbers: Array, settings: dict[str, int]) -> None:
    (item,) = read_all(tiff(tmp_path / "a.tif", numbers, **settings))
    assert item.error is None and item.data.dtype == np.uint8
    assert np.abs(item.data.astype(int) - RAMP).max() <= 1


@pytest.mark.parametrize(
    ("numbers", "reason"),
    [
        ((RAMP * 8e6).astype("<i4"), "numbers of 32 bits up to 2.04e+09, and white is not known; save it with 8 or 16"),
        ((RAMP * 1e4).astype("<f4"), "floating-point numbers up to 2.55e+06, and white is not known"),
        ((RAMP / 255 - 0.5).astype("<f4"), "numbers from -0.5 to 0.5, and those of the stream go from 0 to 1"),
        (np.where(RAMP == 7, np.nan, RAMP).astype("<f4"), "numbers that are not finite"),
    ],
)
def test_numbers_without_a_known_white_are_failed_frames(tmp_path: Path, numbers: Array, reason: str) -> None:
    (item,) = read_all(tiff(tmp_path / "a.tif", numbers))
    assert item.data is None and reason in (item.error or "")


def test_one_range_holds_for_a_stream(tmp_path: Path) -> None:
    """A dark picture is not stretched: what white is, the first picture with light in it has said."""
    for number, high in enumerate((0, 65535, 200, 255_000)):
        tiff(tmp_path / f"{number}.tif", (RAMP * high / 255).astype("<i4"))
    black, full, dark, beyond = read_all(tmp_path / "*.tif")
    assert (black.data.max(), full.data.max(), dark.data.max()) == (0, 255, 1)
    assert beyond.error == "the picture holds numbers from 0 to 255000, and those of the stream go from 0 to 65535"


def png_16(path: Path, channels: int) -> Path:
    numbers = np.repeat((RAMP * 257).astype(">u2")[..., np.newaxis], channels, axis=2)
    lines = b"".join(b"\0" + line.tobytes() for line in numbers)
    header = struct.pack(">IIBBBBB", 256, 8, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n"
    for name, part in ((b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b"")):
        data += struct.pack(">I", len(part)) + name + part + struct.pack(">I", zlib.crc32(name + part))
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_png_of_16_bits(tmp_path: Path, channels: int) -> None:
    (item,) = read_all(png_16(tmp_path / "a.png", channels))
    wanted = RAMP if item.data.ndim == 2 else RAMP[..., np.newaxis]
    assert np.abs(item.data.astype(int) - wanted).max() <= 1


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        ("rgb24", [255]),
        ("gray16le", [255]),
        ("rgb48le", ["the picture is JPEG 2000 of 16 bits in colour; save it as PNG"]),  # white would come as black
    ],
)
def test_white_in_jpeg_2000_is_white_or_refused(tmp_path: Path, pixels: str, expected: list[object]) -> None:
    shape = (8, 256, 3) if pixels.startswith("rgb") else (8, 256)
    white: Any = np.full(shape, 255 if pixels == "rgb24" else 65535, np.uint8 if pixels == "rgb24" else np.uint16)
    with av.open(str(tmp_path / "a.jp2"), "w", format="image2") as container:
        stream: Any = container.add_stream("jpeg2000", rate=1)
        stream.height, stream.width, stream.pix_fmt = 8, 256, pixels
        container.mux(stream.encode(av.VideoFrame.from_ndarray(white, format=pixels)))
        container.mux(stream.encode())
    assert shades(read_all(tmp_path / "a.jp2")) == expected


def test_pgm_of_any_depth(tmp_path: Path) -> None:
    for most in (255, 1023, 65535):
        numbers = np.rint(RAMP * most / 255).astype(">u2" if most > 255 else np.uint8)
        (tmp_path / "a.pgm").write_bytes(f"P5 256 8 {most}\n".encode() + numbers.tobytes())
        assert np.array_equal(read_all(tmp_path / "a.pgm")[0].data, RAMP), most


@pytest.mark.parametrize(("mode", "name"), [("LA", "a.png"), ("RGBA", "a.png"), ("CMYK", "a.tif"), ("1", "a.png")])
def test_other_kinds_of_pixels(tmp_path: Path, mode: str, name: str) -> None:
    picture = Image.fromarray(CORNERS).convert(mode)
    picture.save(tmp_path / name)
    (item,) = read_all(tmp_path / name)
    grey = mode in ("LA", "1")
    assert np.array_equal(item.data, np.asarray(picture.convert("L" if grey else "RGB")))


def test_a_palette_with_transparency_is_no_warning(tmp_path: Path) -> None:
    Image.fromarray(CORNERS).quantize(8).save(tmp_path / "a.png", transparency=bytes([0, 128, 255]))
    assert np.abs(read_all(tmp_path / "a.png")[0].data.astype(int) - CORNERS).max() <= 8


@pytest.mark.parametrize(
    ("name", "options", "first"),
    [
        ("a.webp", {"lossless": True, "duration": 40}, 0),
        ("a.png", {"duration": 40}, 0),
        ("b.png", {"duration": 40, "default_image": True}, 1),  # a picture for viewers without animation
        ("a.gif", {"duration": 40}, 0),
        ("a.tif", {}, 0),
        ("b.tif", {"compression": "tiff_lzw"}, 0),
    ],
)
def test_every_picture_of_a_file_is_a_frame(tmp_path: Path, name: str, options: dict[str, Any], first: int) -> None:
    pictures = [Image.fromarray(np.full((24, 32, 3), 20 * number + 10, np.uint8)) for number in range(8)]
    path = tmp_path / name
    pictures[0].save(path, save_all=True, append_images=pictures[1:], **options)
    source = ImageFiles(str(path))
    source.open()
    assert source.length == 8 - first
    items = read_all(path)
    assert shades(items) == [20 * number + 10 for number in range(first, 8)]
    if "duration" in options:
        assert [item.capture_ns for item in items] == [40_000_000 * number for number in range(8 - first)]
    finished, _ = run_pipeline(
        ImageFiles(str(path)), identity_stages(preprocess=lambda data: {"x": np.float32(0)}), frames=3
    )
    assert (finished.ended, finished.ledger.counts().delivered) == ("frame limit", 3)
    data = path.read_bytes()
    for share in (0.3, 0.5, 0.8):  # what is cut off is never silently less
        path.write_bytes(data[: round(share * len(data))])
        found = shades(read_all(path))
        assert found[-1] in (UNREADABLE, CUT_OFF) and len(found) <= 9 - first, found


def test_a_phones_second_picture_and_thumbnails_are_no_frames(tmp_path: Path) -> None:
    pictures = [Image.fromarray(np.full((24, 32, 3), shade, np.uint8)) for shade in (50, 100, 150)]
    pictures[0].save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=pictures[1:])
    assert shades(read_all(tmp_path / "a.jpg")) == [50]
    pictures = [picture.copy() for picture in pictures]  # saving leaves the encoder's settings behind
    pictures[0].save(tmp_path / "a.tif", save_all=True, append_images=pictures[1:], tiffinfo={254: 0})
    data = bytearray((tmp_path / "a.tif").read_bytes())
    (first,) = struct.unpack_from("<I", data, 4)
    (second,) = struct.unpack_from("<I", data, first + 2 + 12 * data[first])
    tags = range(second + 2, second + 2 + 12 * data[second], 12)
    (kind,) = (at for at in tags if struct.unpack_from("<H", data, at) == (254,))
    data[kind + 8] = 1  # the second page is a small copy of another
    (tmp_path / "a.tif").write_bytes(data)
    assert shades(read_all(tmp_path / "a.tif")) == [50, 150]


def test_the_files_that_failed_are_named_the_first_of_many(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(8):
        (tmp_path / f"{number}.png").write_bytes(b"no picture")
    source = ImageFiles(str(tmp_path / "*.png"))
    for _ in range(2):  # as after warming up
        source.open()
        while source.read() is not None:
            pass
    assert len(caplog.messages) == 5
    assert caplog.messages[0] == f"'{tmp_path}/0.png': {UNREADABLE}."
    assert caplog.messages[4] == f"'{tmp_path}/4.png': {UNREADABLE}; further ones are only counted."


def test_a_picture_that_is_too_large_is_a_failed_frame(tmp_path: Path) -> None:
    Image.fromarray(CORNERS).save(tmp_path / "0.png")
    Image.new("1", (20_000, 10_000)).save(tmp_path / "1.png")
    Image.fromarray(CORNERS).save(tmp_path / "2.png")
    finished, sink = run_pipeline(
        ImageFiles(str(tmp_path / "*.png")), identity_stages(preprocess=lambda data: {"x": np.float32(0)})
    )
    assert finished.ended == "end of source"
    assert by_outcome(finished) == {"delivered": [0, 2], "dropped": [], "failed": [1]}
    assert sink.skipped[0][2] == "the picture has 20000x10000 pixels, and at most 134 million are decoded"
    assert Image.MAX_IMAGE_PIXELS is not None  # Pillow's own limit is as it was


@pytest.mark.parametrize(
    "error", [SyntaxError, struct.error, OverflowError, MemoryError, RecursionError, AttributeError]
)
@pytest.mark.parametrize("where", ["open", "load", "seek", "convert"])
def test_whatever_a_decoder_raises_is_a_failed_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception], where: str
) -> None:
    Image.fromarray(CORNERS).save(tmp_path / "a.png")

    def fail(*arguments: object, **named: object) -> None:
        raise error("of the decoder")

    from PIL.PngImagePlugin import PngImageFile

    monkeypatch.setattr(Image if where == "open" else PngImageFile, where, fail)
    assert shades(read_all(tmp_path / "a.png")) == [UNREADABLE]
