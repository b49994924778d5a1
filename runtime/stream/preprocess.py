"""From what a source gives to what a session takes, as the manifest's `preprocess` says.

`trt_compress.format.kinds` says what may stand there. Arrays by input name (of a scene.npz) go past every kind: they
are checked, not changed.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, cast

import numpy as np

from trt_compress.errors import BundleError, ConfigError, ShapeError
from trt_compress.foreign import reading
from trt_compress.format.bundle import Bundle
from trt_compress.format.kinds import (
    CameraInput,
    ClipInput,
    ImageInput,
    InputKind,
    SoundInput,
    fitted_input,
    input_kind,
)
from trt_compress.format.manifest import Manifest, TensorInfo
from trt_compress.runtime.arrays import array_of
from trt_compress.runtime.stream.audio import AudioFormat
from trt_compress.runtime.stream.frame import Array
from trt_compress.runtime.stream.images import load_library
from trt_compress.runtime.stream.parts import BadFrame

Preprocess = Callable[[Any], dict[str, Array]]

CONSTANT_RTOL, CONSTANT_ATOL = 1e-3, 1e-5
"""How far an array of a scene may be from the bundle's constant of the same name."""


class Converter(Protocol):
    """Makes the input of one sample from what one source gave for one frame."""

    def __call__(self, data: Any) -> Array:
        """Convert one sample, without the batch axis."""
        ...


def preprocess_from_manifest(bundle: Bundle, inputs: Mapping[str, TensorInfo], streams: int = 1) -> Preprocess:
    """Make the preprocessing of a bundle.

    Args:
        bundle: Its manifest says how; its files hold constants.
        inputs: What the session takes.
        streams: Sources of one query. They are stacked on the batch axis; if the input has an axis of that many
            cameras behind it, on that one.

    Raises:
        BundleError: The manifest's `preprocess` has a missing or wrong entry.
        ConfigError: The number of sources does not fit the input.
        UnsupportedError: This version knows no such kind.
    """
    settings = input_kind(bundle.manifest.preprocess)
    constants = _constants(bundle, settings, inputs)
    name = input_name(settings, inputs)
    others = [other for other in inputs if other != name and other not in constants]
    convert = converter_of(bundle.manifest.preprocess, inputs[name])
    stack = _stacking(inputs[name], settings, streams)
    finite = _finite_check(inputs)

    def apply(data: Any) -> dict[str, Array]:
        parts = data if isinstance(data, tuple) else (data,)
        if isinstance(parts[0], dict):
            arrays = _from_scene(parts, constants)
        elif not others and settings.obstacle is not None:
            raise _no_source(name, settings.obstacle)
        elif others or convert is None:
            raise ConfigError(
                f"The bundle takes {', '.join(inputs)}, and this source gives one of them at most; give a scene.npz."
            )
        else:
            arrays = {name: stack([convert(part) for part in parts]), **constants}
        finite(arrays)
        return arrays

    return apply


def check_sources(manifest: Manifest, sources: Sequence[str]) -> None:
    """Refuse sources whose data do not become the bundle's input, as its manifest alone tells.

    Raises:
        BundleError: The manifest's `preprocess` has a missing or wrong entry.
        ConfigError: They do not.
        UnsupportedError: This version knows no such kind.
    """
    settings = input_kind(manifest.preprocess)
    if settings.obstacle is not None and not all(source.lower().endswith(".npz") for source in sources):
        raise _no_source(settings.input or manifest.graphs[0].inputs[0].name, settings.obstacle)


def _no_source(name: str, reason: str) -> ConfigError:
    return ConfigError(
        f"The bundle does not say how a source's data become its input '{name}' ({reason}); give arrays by name, a "
        "scene.npz."
    )


class ImageConverter:
    """Makes the input of pictures. With `crop` the image is resized so that its shorter side is the input's divided by
    `crop`, and the middle is cut out, as timm does; without, it is resized to the input's size.
    """

    def __init__(self, settings: ImageInput, info: TensorInfo) -> None:
        channels, self._size = settings.axes(info.shape)
        self._channels = int(channels)
        self._channels_last = settings.layout == "NHWC"
        self._crop = settings.crop
        self._interpolation = settings.interpolation
        self._dtype = np.dtype(info.dtype)
        std = np.asarray(settings.std, np.float64)
        mean = np.asarray(settings.mean, np.float64)
        self._plain = settings.scale == 1.0 and not mean.any() and bool((std == 1.0).all())
        self._factor = self._per_channel(settings.scale / std)
        self._offset = self._per_channel(-mean / std)

    def __call__(self, data: Any) -> Array:
        """Convert an image [H, W, 3] or [H, W] to [C, H, W] or [H, W, C]."""
        image = self._resized(self._coloured(np.asarray(data)))
        if image.ndim == 2:
            image = image[..., np.newaxis]
        if not self._channels_last:
            image = image.transpose(2, 0, 1)
        if self._plain:
            return np.ascontiguousarray(image, self._dtype)
        values = np.ascontiguousarray(image, np.float32)
        values *= self._factor
        values += self._offset
        return values if self._dtype == np.float32 else values.astype(self._dtype)

    def _per_channel(self, values: Array) -> Array:
        shape = (1, 1, -1) if self._channels_last else (-1, 1, 1)
        return np.broadcast_to(values.astype(np.float32), (self._channels,)).reshape(shape)

    def _coloured(self, image: Array) -> Array:
        """An image of the wanted number of channels: [H, W, 3] or [H, W]."""
        if self._channels == 3:
            return np.repeat(image[..., np.newaxis], 3, axis=2) if image.ndim == 2 else image
        if image.ndim == 2:
            return image
        pillow = load_library("PIL.Image", "pillow", "video", "Making an image grey")
        return np.asarray(pillow.fromarray(image).convert("L"))

    def _resized(self, image: Array) -> Array:
        if self._size is None or (not self._crop and image.shape[:2] == self._size):
            return image
        height, width = self._size
        if self._interpolation is None:
            raise ShapeError(
                f"The image has {image.shape[1]}x{image.shape[0]} pixels and the bundle takes {width}x{height}; its "
                "manifest gives no 'interpolation' to resize by, so give images of that size."
            )
        pillow = load_library("PIL.Image", "pillow", "video", "Resizing images")
        method = pillow.Resampling[self._interpolation.upper()]
        resized = pillow.fromarray(image)
        if not self._crop:
            return np.asarray(resized.resize((width, height), method))
        wide, high = self._before_crop(resized.size, (width, height))
        if (wide, high) != resized.size:
            resized = resized.resize((wide, high), method)
        left, top = round((wide - width) / 2), round((high - height) / 2)
        return np.asarray(resized.crop((left, top, left + width, top + height)))

    def _before_crop(self, size: tuple[int, int], wanted: tuple[int, int]) -> tuple[int, int]:
        """Size to resize to, so that the wanted part is `crop` of the side that fits tighter."""
        targets = [math.floor(side / float(self._crop or 1.0)) for side in wanted]
        side = min((0, 1), key=lambda index: size[index] * targets[1 - index])
        other = 1 - side
        long = int(targets[side] * size[other] / size[side])
        return (targets[side], long) if side == 0 else (long, targets[side])


class SoundConverter:
    """Makes the input of chunks of sound."""

    def __init__(self, settings: SoundInput, info: TensorInfo) -> None:
        chunk, _ = settings.chunk_and_hop(info.shape)
        self._shape = (1, chunk) if len(info.shape) == 3 and settings.channels == 1 and chunk is not None else None
        self._factor = np.float32(settings.scale / settings.std)
        self._offset = np.float32(-settings.mean / settings.std)
        self._dtype = np.dtype(info.dtype)

    def __call__(self, data: Any) -> Array:
        """Convert a chunk [S] or [channels, S]."""
        values = np.asarray(data, np.float32) * self._factor + self._offset
        return (values if self._shape is None else values.reshape(self._shape)).astype(self._dtype, copy=False)


def audio_format(settings: Mapping[str, Any], info: TensorInfo) -> AudioFormat:
    """Read how a bundle takes sound.

    Args:
        settings: The manifest's `preprocess`, of kind "audio".
        info: The input.

    Raises:
        BundleError: The settings are wrong, or do not fit the input.
    """
    found = fitted_input({"kind": "audio", **settings}, info.shape)
    chunk, hop = found.chunk_and_hop(info.shape) if isinstance(found, SoundInput) else (None, None)
    if not isinstance(found, SoundInput) or chunk is None or hop is None:
        raise BundleError(f"The manifest's 'preprocess' is of kind '{found.kind}', which is no sound.")
    return AudioFormat(sample_rate=found.sample_rate, channels=found.channels, chunk_samples=chunk, hop_samples=hop)


def input_name(settings: InputKind, inputs: Mapping[str, TensorInfo]) -> str:
    """The input that a source's data become.

    Raises:
        BundleError: There is no such input.
    """
    name = settings.input or next(iter(inputs))
    if name not in inputs:
        raise BundleError(
            f"The manifest's 'preprocess' names the input '{name}', and the bundle takes {', '.join(inputs)}."
        )
    return name


def converter_of(settings: Mapping[str, Any], info: TensorInfo) -> Converter | None:
    """What makes an input of one sample of a source, as a manifest's `preprocess` says; None: nothing does.

    Raises:
        BundleError: The settings are wrong, or do not fit the input.
        UnsupportedError: This version knows no such kind.
    """
    found = fitted_input(settings, info.shape)
    match found:
        case ClipInput():
            return None
        case ImageInput():
            return ImageConverter(found, info)
        case SoundInput():
            return SoundConverter(found, info)
    return None


def _constants(bundle: Bundle, settings: InputKind, inputs: Mapping[str, TensorInfo]) -> dict[str, Array]:
    """Inputs that never change, such as the calibration of the cameras: `constants`, input name → .npy file."""
    arrays: dict[str, Array] = {}
    for name, file in settings.constants.items():
        if name not in inputs:
            raise BundleError(f"The manifest's 'preprocess.constants' names '{name}', which is no input of the bundle.")
        with reading(f"'{file}' of the bundle '{bundle.path}'", "export the bundle again", error=BundleError):
            arrays[name] = array_of(bundle.read(file))
    return arrays


def _stacking(info: TensorInfo, settings: InputKind, streams: int) -> Callable[[Sequence[Array]], Array]:
    """How the samples of one query become the input."""
    shape = info.shape
    cameras = shape[1] if isinstance(settings, CameraInput) else None
    if cameras is not None:
        refusal = ConfigError(
            f"The bundle takes {cameras} cameras a frame and {streams} source{'s'[: streams > 1]} "
            f"{'were' if streams > 1 else 'was'} given; give one --source for each camera, in the bundle's order."
        )
        if cameras != streams and streams > 1:
            raise refusal

        def beside(samples: Sequence[Array]) -> Array:
            if cameras != streams:  # one source may be a scene, which holds all cameras and never comes here
                raise refusal
            return np.stack(samples)[np.newaxis]

        return beside
    if shape and isinstance(shape[0], int) and shape[0] != streams:
        raise ConfigError(
            f"The bundle takes a batch of {shape[0]} and {streams} source{'s'[: streams > 1]} "
            f"{'were' if streams > 1 else 'was'} given; give one --source for each."
        )
    return lambda samples: samples[0][np.newaxis] if len(samples) == 1 else np.stack(samples)


def _from_scene(parts: Sequence[dict[str, Array]], constants: Mapping[str, Array]) -> dict[str, Array]:
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    for name, constant in constants.items():
        given = arrays.setdefault(name, constant)
        if given.shape != constant.shape or not np.allclose(given, constant, CONSTANT_RTOL, CONSTANT_ATOL):
            raise ShapeError(
                f"'{name}' of the source is not the one that the bundle was made for; use the bundle of these cameras, "
                f"or leave '{name}' out."
            )
    return arrays


def _finite_check(inputs: Mapping[str, TensorInfo]) -> Callable[[Mapping[str, Array]], None]:
    floats = [name for name, info in inputs.items() if np.dtype(info.dtype).kind == "f"]

    def check(arrays: Mapping[str, Array]) -> None:
        for name in floats:
            array = arrays.get(name)
            # A sum is finite only if every number is; it may overflow, so the slow look decides.
            if array is not None and not math.isfinite(_sum(array)) and not np.isfinite(array).all():
                raise BadFrame(f"the input '{name}' is not finite")

    return check


def _sum(array: Array) -> float:
    with np.errstate(over="ignore", invalid="ignore"):
        return float(cast(Any, np.add.reduce(array, axis=None)))
