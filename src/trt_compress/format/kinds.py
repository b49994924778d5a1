"""What a bundle takes and what its answers mean, as `preprocess` and `postprocess` of its manifest say it: one record
for each kind, with the numbers that it may hold.

The manifest keeps both as the JSON objects that were written; the digest covers them whole. They are read into these
records when a bundle is opened, so that what is wrong in them is said then, and again by whoever needs one. A kind that
this version does not know, or a field that it does not know, is kept and no fault; a bundle of an unknown kind cannot
be run on sources.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

from trt_compress.errors import BundleError, UnsupportedError
from trt_compress.format.bounds import Shape
from trt_compress.format.inputs import ArrayInput as ArrayInput
from trt_compress.format.inputs import CameraInput as CameraInput
from trt_compress.format.inputs import ClipInput as ClipInput
from trt_compress.format.inputs import ImageInput as ImageInput
from trt_compress.format.inputs import InputKind as InputKind
from trt_compress.format.inputs import SoundInput as SoundInput
from trt_compress.format.inputs import TextInput as TextInput
from trt_compress.format.outputs import BOX_COLUMNS as BOX_COLUMNS
from trt_compress.format.outputs import BoxOutput as BoxOutput
from trt_compress.format.outputs import ClassOutput as ClassOutput
from trt_compress.format.outputs import CodeOutput as CodeOutput
from trt_compress.format.outputs import FrameOutput as FrameOutput
from trt_compress.format.outputs import OutputKind as OutputKind
from trt_compress.format.outputs import PlaceInFrame as PlaceInFrame
from trt_compress.format.outputs import RawOutput as RawOutput
from trt_compress.format.outputs import SoundOutput as SoundOutput
from trt_compress.format.outputs import TokenOutput as TokenOutput
from trt_compress.suggest import did_you_mean

INPUT_KINDS: Mapping[str, type[InputKind]] = {
    "image": ImageInput,
    "frames": ClipInput,
    "cameras": CameraInput,
    "audio": SoundInput,
    "text": TextInput,
    "tensors": ArrayInput,
}
"""What `preprocess.kind` may be."""

OUTPUT_KINDS: Mapping[str, type[OutputKind]] = {
    "classification": ClassOutput,
    "detection3d": BoxOutput,
    "audio": SoundOutput,
    "frames": FrameOutput,
    "codes": CodeOutput,
    "tokens": TokenOutput,
    "raw": RawOutput,
}
"""What `postprocess.kind` may be."""

_Kind = TypeVar("_Kind", InputKind, OutputKind)


def input_kind(settings: Mapping[str, Any]) -> InputKind:
    """Read a manifest's `preprocess`.

    Raises:
        BundleError: A field is missing, has the wrong type or a value that is not allowed.
        UnsupportedError: This version knows no such kind.
    """
    return _read(settings, "preprocess", "preprocessing", "tensors", INPUT_KINDS)


def output_kind(settings: Mapping[str, Any]) -> OutputKind:
    """Read a manifest's `postprocess`; raises as `input_kind`."""
    return _read(settings, "postprocess", "postprocessing", "raw", OUTPUT_KINDS)


def fitted_input(settings: Mapping[str, Any], shape: Shape) -> InputKind:
    """As `input_kind`, for an input of this shape.

    Raises:
        BundleError: Also if the input cannot be made so.
    """
    found = input_kind(settings)
    for misfit in found.misfits(shape):
        raise BundleError(f"The manifest's 'preprocess' of kind '{found.kind}' does not fit: {misfit}.")
    return found


def fitted_output(settings: Mapping[str, Any], shapes: Mapping[str, Shape]) -> OutputKind:
    """As `output_kind`, for outputs of these shapes.

    Raises:
        BundleError: Also if an output that is named is not there, or has another shape.
    """
    found = output_kind(settings)
    for what, name in found.named().items():
        if name not in shapes:
            raise BundleError(
                f"The manifest's 'postprocess.{what}' names the output '{name}', and the bundle has "
                f"{', '.join(shapes)}."
            )
    named = {"output": next(iter(shapes), ""), **found.named()}
    for what, name in named.items():
        for misfit in found.misfits(what, shapes[name]) if name in shapes else ():
            raise BundleError(
                f"The manifest's 'postprocess.{what}' of kind '{found.kind}' names the output '{name}', and {misfit}."
            )
    return found


def _read(settings: Mapping[str, Any], where: str, what: str, default: str, kinds: Mapping[str, type[_Kind]]) -> _Kind:
    kind = settings.get("kind", default)
    if not isinstance(kind, str):
        raise BundleError(f"The manifest's '{where}.kind' is no text; export the bundle again.")
    if kind not in kinds:
        raise UnsupportedError(
            f"The bundle's {what} is '{kind[:60]}'; this trt-compress knows {', '.join(kinds)}."
            f"{did_you_mean(kind, kinds)}"
        )
    found: _Kind = kinds[kind].from_json(dict(settings), f"manifest.json.{where}")
    for problem in found.problems():
        raise BundleError(f"The manifest's '{where}' of kind '{kind}' does not fit: {problem}.")
    return found
