"""From what a source gives to what a session takes, as the manifest's `preprocess` says.

A kind is one class in `KINDS`. `{"kind": "image" | "audio" | "tensors", "input": NAME, …}`; what else a kind reads is
listed in its class. Arrays by input name (of a scene.npz) go past every kind: they are checked, not changed.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, cast

import numpy as np

from trt_compress.errors import BundleError, ConfigError, ShapeError, UnsupportedError
from trt_compress.foreign import reading
from trt_compress.runtime.arrays import array_of
from trt_compress.runtime.bundle import Bundle
from trt_compress.runtime.manifest import TensorInfo
from trt_compress.runtime.stream.audio import AudioFormat
from trt_compress.runtime.stream.frame import Array
from trt_compress.runtime.stream.images import load_library
from trt_compress.runtime.stream.parts import BadFrame
from trt_compress.suggest import did_you_mean

Preprocess = Callable[[Any], dict[str, Array]]

CONSTANT_RTOL, CONSTANT_ATOL = 1e-3, 1e-5
"""How far an array of a scene may be from the bundle's constant of the same name."""


class Kind(Protocol):
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
    settings = bundle.manifest.preprocess
    kind = settings.get("kind", "tensors")
    if kind not in KINDS:
        raise UnsupportedError(
            f"The bundle's preprocessing is '{kind}'; this trt-compress knows {', '.join(KINDS)}."
            f"{did_you_mean(str(kind), KINDS)}"
        )
    constants = _constants(bundle, inputs)
    name = settings.get("input") or next(iter(inputs))
    if name not in inputs:
        raise BundleError(
            f"The manifest's 'preprocess' names the input '{name}', and the bundle takes {', '.join(inputs)}."
        )
    others = [other for other in inputs if other != name and other not in constants]
    try:
        convert = KINDS[kind](settings, inputs[name])
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(f"The manifest's 'preprocess' of kind '{kind}' does not fit: {error}.") from None
    stack = _stacking(inputs[name], kind, streams)
    finite = _finite_check(inputs)

    def apply(data: Any) -> dict[str, Array]:
        parts = data if isinstance(data, tuple) else (data,)
        if isinstance(parts[0], dict):
            arrays = _from_scene(parts, constants)
        elif convert is None and not others and "reason" in settings:
            raise ConfigError(
                f"The bundle does not say how a source's data become its input '{name}' ({settings['reason']}); give "
                "arrays by name, a scene.npz."
            )
        elif others or convert is None:
            raise ConfigError(
                f"The bundle takes {', '.join(inputs)}, and this source gives one of them at most; give a scene.npz."
            )
        else:
            arrays = {name: stack([convert(part) for part in parts]), **constants}
        finite(arrays)
        return arrays

    return apply


class ImageKind:
    """Images: settings `layout` ("NCHW" or "NHWC"), `scale`, `mean`, `std`, `interpolation`, `crop`.

    With `crop` (0 to 1] the image is resized so that its shorter side is the input's divided by `crop`, and the middle
    is cut out, as timm does; without, it is resized to the input's size. Pixels become `(pixel * scale - mean) / std`.
    The number of channels says whether images are RGB (3) or grey (1).
    """

    def __init__(self, settings: Mapping[str, Any], info: TensorInfo) -> None:
        layout = settings.get("layout", "NCHW")
        if layout not in ("NCHW", "NHWC") or len(info.shape) not in (4, 5):
            raise ValueError(f"layout is '{layout}' and the input has the shape {list(info.shape)}")
        axes = dict(zip(layout[1:], info.shape[-3:], strict=True))
        self._channels_last = layout == "NHWC"
        channels = axes["C"]
        if channels not in (1, 3):
            raise ValueError(f"{channels} channels are neither RGB (3) nor grey (1)")
        self._channels = int(channels)
        height, width = axes["H"], axes["W"]
        self._size = (height, width) if isinstance(height, int) and isinstance(width, int) else None
        self._crop = settings.get("crop")
        self._interpolation = settings.get("interpolation")
        self._dtype = np.dtype(info.dtype)
        scale = float(settings.get("scale", 1.0))
        std = np.asarray(settings.get("std", [1.0]), np.float64)
        mean = np.asarray(settings.get("mean", [0.0]), np.float64)
        self._plain = scale == 1.0 and not mean.any() and bool((std == 1.0).all())
        self._factor = self._per_channel(scale / std)
        self._offset = self._per_channel(-mean / std)
        if self._size is None and self._crop:
            raise ValueError("'crop' needs an input of fixed height and width")

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
        if values.size not in (1, self._channels):
            raise ValueError(f"mean or std has {values.size} numbers for {self._channels} channels")
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
        method = getattr(pillow.Resampling, str(self._interpolation).upper(), None)
        if method is None:
            raise BundleError(
                f"The manifest's interpolation '{self._interpolation}' is unknown; Pillow has bilinear, bicubic, …."
            )
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


class AudioKind:
    """Audio: settings as `audio_format` reads them, and `scale`, `mean`, `std` (numbers)."""

    def __init__(self, settings: Mapping[str, Any], info: TensorInfo) -> None:
        form = audio_format(settings, info)
        self._shape = (1, form.chunk_samples) if len(info.shape) == 3 and form.channels == 1 else None
        std = float(settings.get("std", 1.0))
        self._factor = np.float32(float(settings.get("scale", 1.0)) / std)
        self._offset = np.float32(-float(settings.get("mean", 0.0)) / std)
        self._dtype = np.dtype(info.dtype)

    def __call__(self, data: Any) -> Array:
        """Convert a chunk [S] or [channels, S]."""
        values = np.asarray(data, np.float32) * self._factor + self._offset
        return (values if self._shape is None else values.reshape(self._shape)).astype(self._dtype, copy=False)


def audio_format(settings: Mapping[str, Any], info: TensorInfo) -> AudioFormat:
    """Read how a bundle takes audio: `sample_rate`, `chunk_samples`, `hop_samples` or `overlap_samples`, `channels`.

    A chunk is as long as the input where its length is fixed; without hop and overlap, chunks follow one another.
    """
    last = info.shape[-1]
    chunk = settings.get("chunk_samples", last if isinstance(last, int) else None)
    if chunk is None:
        raise ValueError("it has no 'chunk_samples', and the input's length is not fixed")
    if isinstance(last, int) and chunk != last:
        raise ValueError(f"'chunk_samples' is {chunk}, and the input takes {last}")
    if "hop_samples" in settings and "overlap_samples" in settings:
        raise ValueError("it has both 'hop_samples' and 'overlap_samples'")
    hop = settings.get("hop_samples", chunk - settings.get("overlap_samples", 0))
    return AudioFormat(
        sample_rate=int(settings["sample_rate"]),
        channels=int(settings.get("channels", 1)),
        chunk_samples=int(chunk),
        hop_samples=int(hop),
    )


def _no_kind(settings: Mapping[str, Any], info: TensorInfo) -> None:
    """Kind "tensors": only arrays by input name."""


KINDS: Mapping[str, Callable[[Mapping[str, Any], TensorInfo], Kind | None]] = {
    "image": ImageKind,
    "audio": AudioKind,
    "tensors": _no_kind,
}
"""What `preprocess.kind` may be."""


def _constants(bundle: Bundle, inputs: Mapping[str, TensorInfo]) -> dict[str, Array]:
    """Inputs that never change, such as the calibration of the cameras: `constants`, input name → .npy file."""
    arrays: dict[str, Array] = {}
    for name, file in dict(bundle.manifest.preprocess.get("constants", {})).items():
        if name not in inputs:
            raise BundleError(f"The manifest's 'preprocess.constants' names '{name}', which is no input of the bundle.")
        with reading(f"'{file}' of the bundle '{bundle.path}'", "export the bundle again", error=BundleError):
            arrays[name] = array_of(bundle.read(file))
    return arrays


def _stacking(info: TensorInfo, kind: str, streams: int) -> Callable[[Sequence[Array]], Array]:
    """How the samples of one query become the input."""
    shape = info.shape
    cameras = shape[1] if kind == "image" and len(shape) == 5 else None
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
