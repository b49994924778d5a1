"""Samples that are arrays: an .npz file with inputs and labels."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from trt_compress.errors import ConfigError, TrtCompressError
from trt_compress.format.manifest import TensorInfo
from trt_compress.runtime.labelled.classes import ClassNames
from trt_compress.runtime.labelled.data import Array, BadSample, LabelledData, LabelledSample, Runs
from trt_compress.runtime.stream.images import load_npz
from trt_compress.runtime.stream.parts import BadFrame
from trt_compress.runtime.stream.preprocess import Preprocess

_LABELS = ("label", "labels", "y", "target", "targets", "class", "classes")
_DATA = ("image", "images", "x", "data", "frame", "frames", "audio", "clips")


def from_npz(
    path: Path,
    *,
    name: str,
    inputs: Mapping[str, TensorInfo],
    kind: str,
    prepare: Preprocess,
    names: ClassNames | None,
    num_classes: int | None,
) -> LabelledData:
    """Read arrays: one for each input, or one of pictures, and one of labels.

    An array in the dtype and shape of the input is taken as it is; one of bytes, [N, H, W], [N, H, W, 3] or
    [N, 3, H, W], goes through the bundle's preprocessing.

    Raises:
        ConfigError: It lacks an array, or one does not fit.
    """
    arrays = load_npz(str(path))
    label_name = next((key for key in _LABELS if key in arrays and key not in inputs), None)
    labels = None if label_name is None else _labels(arrays.pop(label_name), f"'{label_name}' of '{path}'", num_classes)
    if len(set(inputs) & set(arrays)) > 1:
        given = {key: arrays[key] for key in inputs if key in arrays}
    else:
        found = name if name in arrays else next((key for key in _DATA if key in arrays), None)
        if found is None and len(arrays) == 1:
            found = next(iter(arrays))
        if found is None:
            raise ConfigError(
                f"'{path}' has the arrays {', '.join(arrays) or 'nothing'}; it must hold '{name}', "
                f"{_wanted(inputs[name])}, and 'label'."
            )
        given = {name: arrays[found]}
    count = len(next(iter(given.values()))) if next(iter(given.values())).ndim else 0
    lengths = {key: len(array) if array.ndim else 0 for key, array in given.items()}
    lengths |= {} if labels is None else {str(label_name): len(labels)}
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{key} {length}" for key, length in lengths.items())
        raise ConfigError(f"The arrays of '{path}' differ in their number of samples ({shown}); make them equal.")
    if count == 0:
        raise ConfigError(f"'{path}' holds no sample; give at least one.")
    raw = kind == "image" and len(given) == 1 and not _fits(given[name], inputs[name])
    if raw:
        given = {name: _pictures(given[name], inputs[name], f"'{path}'")}
    else:
        for key, array in given.items():
            if not _fits(array, inputs[key]):
                raise ConfigError(
                    f"'{key}' of '{path}' is {array.dtype} {list(array.shape)}; it must be {_wanted(inputs[key])}"
                    f"{', or pictures as bytes' if kind == 'image' else ''}."
                )

    def load(row: int) -> Runs:
        try:
            if raw:
                return (prepare(given[name][row]),)
            return (prepare({key: array[row : row + 1] for key, array in given.items()}),)
        except (TrtCompressError, BadFrame) as error:
            raise BadSample(getattr(error, "message", str(error))) from None

    return LabelledData(
        source=str(path),
        form="pictures of an .npz file" if raw else "arrays of an .npz file, in the form of the inputs",
        samples=[
            LabelledSample(
                name=f"row {row}", label=None if labels is None else int(labels[row]), load=partial(load, row)
            )
            for row in range(count)
        ],
        labelled_by=None if labels is None else "numbers in the file",
        class_names=() if names is None else names.names,
    )


def _labels(array: Array, where: str, num_classes: int | None) -> Array:
    flat = array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array
    if flat.ndim != 1 or flat.dtype.kind not in "iu":
        raise ConfigError(f"{where} is {array.dtype} {list(array.shape)}; labels are whole numbers, [N].")
    wrong = flat[(flat < 0) | (flat >= (np.iinfo(np.int64).max if num_classes is None else num_classes))]
    if wrong.size:
        raise ConfigError(
            f"{where} holds the class {int(wrong[0])}, and the bundle has the classes 0 to "
            f"{'…' if num_classes is None else num_classes - 1}."
        )
    return flat


def _fits(array: Array, info: TensorInfo) -> bool:
    return (
        array.dtype == np.dtype(info.dtype)
        and array.ndim == len(info.shape)
        and all(isinstance(dim, str) or dim == size for dim, size in zip(info.shape[1:], array.shape[1:], strict=True))
    )


def _pictures(array: Array, info: TensorInfo, where: str) -> Array:
    """Pictures [N, H, W] or [N, H, W, 3] of bytes."""
    if array.dtype == np.uint8 and array.ndim == 4:
        if array.shape[1] in (1, 3) and array.shape[3] not in (1, 3):
            array = array.transpose(0, 2, 3, 1)
        array = array[..., 0] if array.shape[3] == 1 else array
    if array.dtype != np.uint8 or not (array.ndim == 3 or (array.ndim == 4 and array.shape[3] == 3)):
        raise ConfigError(
            f"The pictures of {where} are {array.dtype} {list(array.shape)}; give uint8 [N, H, W], [N, H, W, 3] or "
            f"[N, 3, H, W], or {_wanted(info)}, which is taken as it is."
        )
    return array


def _wanted(info: TensorInfo) -> str:
    return f"{info.dtype} [{', '.join(['N', *map(str, info.shape[1:])])}]"
