"""What a session is given, against timm's own transforms and plain references."""

import io
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from trt_compress.errors import BundleError, ConfigError, ShapeError, UnsupportedError
from trt_compress.format.bundle import Bundle
from trt_compress.format.manifest import Batch, FileInfo, Manifest, Model, TensorInfo, Weights
from trt_compress.runtime.stream.parts import BadFrame
from trt_compress.runtime.stream.preprocess import preprocess_from_manifest

Shape = tuple[int | str, ...]


def npy(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def bundle_of(path: Path, preprocess: dict[str, Any], files: dict[str, Any] | None = None) -> Bundle:
    content = {name: npy(array) for name, array in (files or {}).items()}
    manifest = Manifest(
        name="test",
        created_with={},
        model=Model(source="zoo:test", family="test", weights=Weights(source="none")),
        recipe={},
        precision="fp32",
        opset=20,
        batch=Batch(min=1, opt=1, max=1),
        graphs=(),
        preprocess=preprocess,
        files={name: FileInfo(sha256=sha256(data).hexdigest(), bytes=len(data)) for name, data in content.items()},
    )
    for name, data in content.items():
        (path / name).write_bytes(data)
    return Bundle(path=path, manifest=manifest)


def info(shape: Shape, dtype: str = "float32", name: str = "image") -> TensorInfo:
    return TensorInfo(name=name, dtype=dtype, shape=shape)


def image(height: int, width: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def apply(
    path: Path, settings: dict[str, Any], shape: Shape, data: Any, dtype: str = "float32", streams: int = 1
) -> Any:
    settings = {"kind": "image", **settings}
    return preprocess_from_manifest(bundle_of(path, settings), {"image": info(shape, dtype)}, streams)(data)["image"]


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("crop", [0.9, 0.875, 1.0])
@pytest.mark.parametrize("size", [(48, 64), (64, 48), (97, 101), (32, 32), (20, 200)])
def test_images_become_what_timm_makes_of_them(
    tmp_path: Path, size: tuple[int, int], crop: float, interpolation: str
) -> None:
    from timm.data.transforms_factory import create_transform

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    transform = create_transform((3, 32, 32), mean=mean, std=std, interpolation=interpolation, crop_pct=crop)
    picture = image(*size)
    wanted: Any = transform(Image.fromarray(picture))  # type: ignore[operator]
    settings = {"scale": 1 / 255, "mean": list(mean), "std": list(std), "interpolation": interpolation, "crop": crop}
    found = apply(tmp_path, settings, ("batch", 3, 32, 32), picture)
    assert found.shape == (1, 3, 32, 32) and found.dtype == np.float32
    np.testing.assert_allclose(found[0], wanted.numpy(), atol=2e-6, rtol=1e-5)


def test_channels_last_and_half_precision(tmp_path: Path) -> None:
    picture = image(8, 8)
    found = apply(tmp_path, {"layout": "NHWC", "scale": 0.5}, (1, 8, 8, 3), picture, "float16")
    np.testing.assert_array_equal(found, (picture * 0.5)[np.newaxis].astype(np.float16))
    plain = apply(tmp_path, {}, (1, 3, 8, 8), picture, "uint8")
    np.testing.assert_array_equal(plain, picture.transpose(2, 0, 1)[np.newaxis])


def test_grey_and_colour_follow_the_channels(tmp_path: Path) -> None:
    picture = image(8, 8)
    grey = apply(tmp_path, {}, (1, 1, 8, 8), picture)[0, 0]
    luma = picture @ np.array([0.299, 0.587, 0.114])  # ITU-R 601
    assert np.abs(grey - luma).max() <= 1
    colour = apply(tmp_path, {}, (1, 3, 8, 8), picture[..., 0])
    assert (colour[0] == picture[..., 0]).all()


def test_without_an_interpolation_nothing_is_resized(tmp_path: Path) -> None:
    with pytest.raises(ShapeError, match=r"The image has 9x8 pixels and the bundle takes 8x8; its manifest gives no"):
        apply(tmp_path, {}, (1, 3, 8, 8), image(8, 9))
    assert apply(tmp_path, {"interpolation": "bilinear"}, (1, 3, 8, 8), image(8, 9)).shape == (1, 3, 8, 8)
    assert apply(tmp_path, {}, (1, 3, "height", "width"), image(5, 9)).shape == (1, 3, 5, 9)


def test_streams_are_stacked_on_the_batch(tmp_path: Path) -> None:
    pictures = (image(4, 4, 1), image(4, 4, 2))
    found = apply(tmp_path, {}, ("batch", 3, 4, 4), pictures, streams=2)
    np.testing.assert_array_equal(found, np.stack(pictures).transpose(0, 3, 1, 2))
    with pytest.raises(ConfigError, match="takes a batch of 1 and 2 sources were given; give one --source for each"):
        apply(tmp_path, {}, (1, 3, 4, 4), pictures, streams=2)


def test_cameras_are_an_axis_of_their_own_and_are_counted(tmp_path: Path) -> None:
    pictures = tuple(image(4, 4, n) for n in range(3))
    found = apply(tmp_path, {"kind": "cameras"}, ("batch", 3, 3, 4, 4), pictures, streams=3)
    np.testing.assert_array_equal(found[0], np.stack(pictures).transpose(0, 3, 1, 2))
    with pytest.raises(
        ConfigError, match="The bundle takes 6 cameras a frame and 1 source was given; give one --source"
    ):
        apply(tmp_path, {"kind": "cameras"}, ("batch", 6, 3, 4, 4), pictures[0])


def scene(path: Path, constants: dict[str, Any]) -> Callable[[Any], dict[str, Any]]:
    inputs = {"images": info(("batch", 2), name="images"), "lens": info(("batch", 2, 2), name="lens")}
    settings = {"kind": "tensors", "constants": {name: f"{name}.npy" for name in constants}}
    files = {f"{name}.npy": array for name, array in constants.items()}
    return preprocess_from_manifest(bundle_of(path, settings, files), inputs)


def test_a_calibration_of_the_bundle_is_filled_in_and_another_is_refused(tmp_path: Path) -> None:
    lens = np.array([[[100.0, 0.0], [0.0, 100.0]]], np.float32)
    make = scene(tmp_path, {"lens": lens})
    images = np.ones((1, 2), np.float32)
    np.testing.assert_array_equal(make({"images": images})["lens"], lens)
    make({"images": images, "lens": lens * 1.0005})
    message = "'lens' of the source is not the one that the bundle was made for; use the bundle of these cameras"
    for other in (lens * 1.1, np.concatenate([lens, lens])):
        with pytest.raises(ShapeError, match=message):
            make({"images": images, "lens": other})


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_frame_that_is_not_finite_is_a_bad_frame(tmp_path: Path, value: float) -> None:
    make = scene(tmp_path, {})
    arrays = {"images": np.ones((1, 2), np.float32), "lens": np.ones((1, 2, 2), np.float32)}
    make(arrays)
    arrays["lens"][0, 1, 1] = value
    with pytest.raises(BadFrame, match="the input 'lens' is not finite"):
        make(arrays)
    arrays["lens"][:] = np.finfo(np.float32).max  # its sum is not finite, and it is
    make(arrays)


def test_images_are_not_enough_for_a_bundle_that_takes_more(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="takes images, lens, and this source gives one of them at most; give a scene"
    ):
        scene(tmp_path, {})(image(4, 4))


@pytest.mark.parametrize(
    ("settings", "shape", "error", "message"),
    [
        ({"kind": "smell"}, (1, 3, 4, 4), UnsupportedError, "preprocessing is 'smell'; this trt-compress knows image"),
        ({"input": "picture"}, (1, 3, 4, 4), BundleError, "names the input 'picture', and the bundle takes image"),
        ({"layout": "HWC"}, (1, 3, 4, 4), BundleError, "layout is 'HWC'"),
        ({}, (1, 2, 4, 4), BundleError, "2 channels are neither RGB"),
        ({"mean": [0.1, 0.2]}, (1, 3, 4, 4), BundleError, "has 2 numbers for 3 channels"),
        ({"crop": 0.9}, (1, 3, "h", "w"), BundleError, "'crop' needs an input of fixed height and width"),
        ({"constants": {"lens": "a.npy"}}, (1, 3, 4, 4), BundleError, "names 'lens', which is no input"),
        ({"kind": "audio"}, (1, 16), BundleError, "preprocess has no field 'sample_rate'"),
        ({"kind": "audio", "sample_rate": 8000}, (1, "time"), BundleError, "has no 'chunk_samples'"),
        ({"kind": "audio", "sample_rate": 8000, "chunk_samples": 9}, (1, 8), BundleError, "and the input takes 8"),
        (
            {"kind": "audio", "sample_rate": 8000, "hop_samples": 2, "overlap_samples": 2},
            (1, 8),
            BundleError,
            "both 'hop_samples' and",
        ),
    ],
)
def test_wrong_manifests_are_refused(
    tmp_path: Path, settings: dict[str, Any], shape: Shape, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        preprocess_from_manifest(bundle_of(tmp_path, {"kind": "image", **settings}), {"image": info(shape)})


@pytest.mark.parametrize(("shape", "wanted"), [((1, 8), (1, 8)), ((1, 1, 8), (1, 1, 8)), (("batch", 2, 8), (1, 2, 8))])
def test_sound_is_scaled_and_shaped(tmp_path: Path, shape: Shape, wanted: Shape) -> None:
    channels = 2 if 2 in shape else 1
    settings = {"kind": "audio", "sample_rate": 8000, "scale": 2.0, "mean": 1.0, "std": 4.0, "channels": channels}
    make = preprocess_from_manifest(bundle_of(tmp_path, settings), {"image": info(shape)})
    sound = np.linspace(-1, 1, 8 * channels, dtype=np.float32).reshape((2, 8) if channels == 2 else 8)
    found = make(sound)["image"]
    assert found.shape == wanted
    np.testing.assert_allclose(found.reshape(sound.shape), (sound * 2 - 1) / 4, atol=1e-6)


def test_overlap_is_another_word_for_hop() -> None:
    from trt_compress.runtime.stream.preprocess import audio_format

    form = audio_format({"sample_rate": 8000, "overlap_samples": 100}, info((1, 400)))
    assert (form.chunk_samples, form.hop_samples) == (400, 300)
