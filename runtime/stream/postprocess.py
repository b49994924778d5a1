"""From what a session gives to a summary as JSON data, as the manifest's `postprocess` says.

`trt_compress.format.kinds` says what may stand there. A summary is `{"results": [one of each sample of the query]}`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trt_compress.errors import BundleError
from trt_compress.format.kinds import (
    BoxOutput,
    ClassOutput,
    CodeOutput,
    FrameOutput,
    OutputKind,
    SoundOutput,
    TokenOutput,
    fitted_output,
)
from trt_compress.format.manifest import TensorInfo
from trt_compress.runtime.stream.frame import Array
from trt_compress.runtime.stream.parts import BadFrame

Postprocess = Callable[[dict[str, Array]], dict[str, Any]]
Summarize = Callable[[Mapping[str, Array]], list[dict[str, Any]]]

TOP = 5
"""Classes of a classification that are listed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxLayout:
    """Where a detector's outputs hold its boxes.

    Attributes:
        boxes: Name of the output [B, Q, columns].
        scores: Name of the output [B, Q, classes] or [B, Q].
        columns: Names of the columns of a box.
        classes: Names of the classes, if the manifest has them.
    """

    boxes: str
    scores: str
    columns: tuple[str, ...]
    classes: tuple[str, ...]

    @property
    def ground(self) -> tuple[int, int]:
        """Columns of x and y."""
        return self.columns.index("x"), self.columns.index("y")


def box_layout(settings: Mapping[str, Any], outputs: Mapping[str, TensorInfo]) -> BoxLayout:
    """Read the layout from a manifest's `postprocess` of kind "detection3d".

    Raises:
        BundleError: It names an output that there is not.
    """
    found = fitted_output({"kind": "detection3d", **settings}, _shapes(outputs))
    if not isinstance(found, BoxOutput):
        raise BundleError(f"The manifest's 'postprocess' is of kind '{found.kind}', which has no boxes.")
    return _layout(found)


def _layout(found: BoxOutput) -> BoxLayout:
    return BoxLayout(boxes=found.boxes, scores=found.scores, columns=found.columns, classes=found.classes or ())


def postprocess_from_manifest(settings: Mapping[str, Any], outputs: Mapping[str, TensorInfo]) -> Postprocess:
    """Make the postprocessing of a bundle.

    Raises:
        BundleError: The manifest's `postprocess` is wrong, or names an output that there is not or does not fit.
        UnsupportedError: This version knows no such kind.
    """
    summarize = _summary_of(fitted_output(settings, _shapes(outputs)), next(iter(outputs)))
    floats = [name for name, info in outputs.items() if np.dtype(info.dtype).kind == "f"]

    def apply(found: dict[str, Array]) -> dict[str, Any]:
        for name in floats:
            if not np.isfinite(found[name]).all():
                raise BadFrame(f"the output '{name}' is not finite")
        return {"results": summarize(found)}

    return apply


def _summary_of(kind: OutputKind, first: str) -> Summarize:
    output = kind.output or first
    match kind:
        case ClassOutput():
            return _classification(kind, output)
        case BoxOutput():
            return _detection3d(kind)
        case SoundOutput():
            return _sound(kind, output)
        case FrameOutput():
            return _frames(kind, output)
        case CodeOutput():
            return lambda found: [{"codes": numbers.tolist()} for numbers in found[output]]
        case TokenOutput():
            return _tokens(kind, output)
    return _raw


def _classification(kind: ClassOutput, name: str) -> Summarize:
    """Logits [B, classes] → {"class", "score", "top": [[class, score], …], "label" if there are labels}.

    With a place, an output [B, 2], "place" is [x, y], shares of the frame that the model takes.
    """
    labels = kind.labels or ()
    place = None if kind.place is None else kind.place.output

    def one(logits: Array) -> dict[str, Any]:
        shifted = np.exp(logits.astype(np.float64) - float(logits.max()))
        scores = shifted / shifted.sum()
        order = np.argsort(-scores, kind="stable")[:TOP]
        best = int(order[0])
        found: dict[str, Any] = {
            "class": best,
            "score": round(float(scores[best]), 6),
            "top": [[int(index), round(float(scores[index]), 6)] for index in order],
        }
        return found | ({"label": labels[best]} if best < len(labels) else {})

    def every(found: Mapping[str, Array]) -> list[dict[str, Any]]:
        results = [one(row) for row in found[name]]
        for result, (x, y) in zip(results, found[place] if place else (), strict=bool(place)):
            result["place"] = [round(float(x), 4), round(float(y), 4)]
        return results

    return every


def _detection3d(kind: BoxOutput) -> Summarize:
    """Boxes [B, Q, columns] and scores [B, Q, classes] → {"boxes": [{class, score, center, size, yaw, velocity}, …]},
    best score first, those above the threshold.
    """
    layout = _layout(kind)
    classes = layout.classes
    threshold = kind.threshold
    index = {column: number for number, column in enumerate(layout.columns)}

    def one(box: Array, score: float, label: int) -> dict[str, Any]:
        def part(*names: str) -> list[float]:
            return [round(float(box[index[name]]), 4) for name in names if name in index]

        yaw = float(box[index["yaw"]]) if "yaw" in index else math.atan2(box[index["sin_yaw"]], box[index["cos_yaw"]])
        return {
            "class": label,
            **({"label": classes[label]} if label < len(classes) else {}),
            "score": round(score, 6),
            "center": part("x", "y", "z"),
            "size": part("length", "width", "height"),
            "yaw": round(yaw, 4),
            "velocity": part("velocity_x", "velocity_y"),
        }

    def sample(boxes: Array, scores: Array) -> dict[str, Any]:
        scores = scores if scores.ndim == 2 else scores[:, np.newaxis]
        best = scores.max(axis=1)
        order = [int(row) for row in np.argsort(-best, kind="stable") if best[row] >= threshold]
        return {"boxes": [one(boxes[row], float(best[row]), int(scores[row].argmax())) for row in order]}

    return lambda found: [sample(*pair) for pair in zip(found[layout.boxes], found[layout.scores], strict=True)]


def _sound(kind: SoundOutput, name: str) -> Summarize:
    """Sound [B, samples] from -1 to 1 → {"samples", "rms", "peak"}, the last two as shares of full scale, and "codes",
    a codec's code numbers, where there are such.
    """
    codes, length = kind.codes, kind.samples

    def one(samples: Array) -> dict[str, Any]:
        numbers = samples[:length].astype(np.float64)
        if not numbers.size:
            return {"samples": 0, "rms": 0.0, "peak": 0.0}
        rms, peak = math.sqrt(float(np.square(numbers).mean())), float(np.abs(numbers).max())
        return {"samples": len(numbers), "rms": round(rms, 6), "peak": round(peak, 6)}

    def every(found: Mapping[str, Array]) -> list[dict[str, Any]]:
        results = [one(row) for row in found[name]]
        for result, numbers in zip(results, found[codes] if codes else (), strict=bool(codes)):
            result["codes"] = numbers.tolist()
        return results

    return every


def _frames(kind: FrameOutput, name: str) -> Summarize:
    """Features [B, M, C] → {"frames": M, "width": C, "ms_per_frame", "longest_ms", "rms", "min", "max"}.

    Where the time of all is not known, the numbers of milliseconds are left out. `longest_ms` is there where frames
    were merged unequally.
    """
    sizes, seconds = kind.sizes, kind.seconds

    def one(features: Array, size: Array | None) -> dict[str, Any]:
        frames, width = features.shape
        result: dict[str, Any] = {"frames": frames, "width": width}
        if seconds and frames:
            result["ms_per_frame"] = round(1000 * float(seconds) / frames, 3)
            if size is not None and float(size.max()) > float(size.min()):
                share = float(size.max()) / max(float(size.sum(dtype=np.float64)), 1e-9)
                result["longest_ms"] = round(1000 * float(seconds) * share, 3)
        if features.size:
            numbers = features.astype(np.float64)
            rms = math.sqrt(float(np.square(numbers).mean()))
            result |= {"rms": round(rms, 6), "min": float(numbers.min()), "max": float(numbers.max())}
        return result

    def every(found: Mapping[str, Array]) -> list[dict[str, Any]]:
        rows = found[name]
        return [one(row, found[sizes][number] if sizes else None) for number, row in enumerate(rows)]

    return every


def _tokens(kind: TokenOutput, name: str) -> Summarize:
    """Logits [B, V], or of the last of T tokens [B, T, V] → the most probable token and its natural logarithm, those of
    the next ones, and whether a text ends behind it: {"token", "logprob", "top": [[token, logprob], …], "stops"}.
    """

    def one(logits: Array) -> dict[str, Any]:
        row = (logits[-1] if logits.ndim == 2 else logits).astype(np.float64)
        row -= row.max()
        row -= math.log(float(np.exp(row).sum()))
        best = [int(index) for index in np.argsort(-row, kind="stable")[:TOP]]
        top = [[index, round(float(row[index]), 6)] for index in best]
        return {"token": best[0], "logprob": top[0][1], "top": top, "stops": best[0] in kind.stop}

    return lambda found: [one(logits) for logits in found[name]]


def _raw(found: Mapping[str, Array]) -> list[dict[str, Any]]:
    """Any outputs → for each its shape, mean, smallest and largest number."""

    def describe(array: Array) -> dict[str, Any]:
        if not array.size:
            return {"shape": list(array.shape)}
        numbers = array.astype(np.float64)
        low, mean, high = float(numbers.min()), float(numbers.mean()), float(numbers.max())
        return {"shape": list(array.shape), "mean": mean, "min": low, "max": high}

    return [{name: describe(array) for name, array in found.items()}]


def _shapes(outputs: Mapping[str, TensorInfo]) -> dict[str, tuple[int | str, ...]]:
    return {name: info.shape for name, info in outputs.items()}


def top_classes(summary: Mapping[str, Any]) -> Sequence[int] | None:
    """The best class of each sample of a query, or None if this was no classification."""
    results = summary.get("results", [])
    return [item["class"] for item in results] if results and all("class" in item for item in results) else None
