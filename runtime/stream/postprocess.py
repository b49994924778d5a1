"""From what a session gives to a summary as JSON data, as the manifest's `postprocess` says.

A kind is one function in `KINDS`: `{"kind": "classification" | "detection3d" | "audio" | "frames" | "raw", …}`. Its
summary is `{"results": [one of each sample of the query]}`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trt_compress.errors import BundleError, UnsupportedError
from trt_compress.runtime.manifest import TensorInfo
from trt_compress.runtime.stream.frame import Array
from trt_compress.runtime.stream.parts import BadFrame
from trt_compress.suggest import did_you_mean

Postprocess = Callable[[dict[str, Array]], dict[str, Any]]
Summarize = Callable[[Mapping[str, Array]], list[dict[str, Any]]]

TOP = 5
"""Classes of a classification that are listed."""

BOX_COLUMNS = ("x", "y", "z", "length", "width", "height", "sin_yaw", "cos_yaw", "velocity_x", "velocity_y")
"""Columns of a 3D box where the manifest does not name them; metres, in the ego frame."""


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
    boxes, scores = (_output(settings, part, outputs, part) for part in ("boxes", "scores"))
    columns = tuple(settings.get("columns", BOX_COLUMNS))
    return BoxLayout(boxes=boxes, scores=scores, columns=columns, classes=tuple(settings.get("classes") or ()))


def postprocess_from_manifest(settings: Mapping[str, Any], outputs: Mapping[str, TensorInfo]) -> Postprocess:
    """Make the postprocessing of a bundle.

    Raises:
        BundleError: The manifest's `postprocess` names an output that there is not.
        UnsupportedError: This version knows no such kind.
    """
    kind = settings.get("kind", "raw")
    if kind not in KINDS:
        raise UnsupportedError(
            f"The bundle's postprocessing is '{kind}'; this trt-compress knows {', '.join(KINDS)}."
            f"{did_you_mean(str(kind), KINDS)}"
        )
    summarize = KINDS[kind](settings, outputs)
    floats = [name for name, info in outputs.items() if np.dtype(info.dtype).kind == "f"]

    def apply(found: dict[str, Array]) -> dict[str, Any]:
        for name in floats:
            if not np.isfinite(found[name]).all():
                raise BadFrame(f"the output '{name}' is not finite")
        return {"results": summarize(found)}

    return apply


def _classification(settings: Mapping[str, Any], outputs: Mapping[str, TensorInfo]) -> Summarize:
    """Logits [B, classes] → {"class", "score", "top": [[class, score], …], "label" if the manifest has `labels`}.

    With the setting `place`, {"output": NAME, …}, an output [B, 2] says where: "place" is [x, y], shares of the frame
    that the model takes, from its left upper corner.
    """
    name = _output(settings, "output", outputs)
    labels = settings.get("labels")
    place = _output(settings["place"], "output", outputs) if "place" in settings else None

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
        return found | ({"label": labels[best]} if labels else {})

    def every(found: Mapping[str, Array]) -> list[dict[str, Any]]:
        results = [one(row) for row in found[name]]
        for result, (x, y) in zip(results, found[place] if place else (), strict=bool(place)):
            result["place"] = [round(float(x), 4), round(float(y), 4)]
        return results

    return every


def _detection3d(settings: Mapping[str, Any], outputs: Mapping[str, TensorInfo]) -> Summarize:
    """Boxes [B, Q, columns] and scores [B, Q, classes] → {"boxes": [{class, score, center, size, yaw, velocity}, …]}.

    Settings: `boxes` and `scores` (output names), `columns`, `classes`, `threshold` (0.3), best score first.
    """
    layout = box_layout(settings, outputs)
    classes = layout.classes
    threshold = float(settings.get("threshold", 0.3))
    index = {column: number for number, column in enumerate(layout.columns)}

    def one(box: Array, score: float, label: int) -> dict[str, Any]:
        def part(*names: str) -> list[float]:
            return [round(float(box[index[name]]), 4) for name in names if name in index]

        yaw = float(box[index["yaw"]]) if "yaw" in index else math.atan2(box[index["sin_yaw"]], box[index["cos_yaw"]])
        return {
            "class": label,
            **({"label": classes[label]} if classes else {}),
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


def _audio(settings: Mapping[str, Any], outputs: Mapping[str, TensorInfo]) -> Summarize:
    """Audio [B, samples] from -1 to 1 → {"samples", "rms", "peak"}, the last two as shares of full scale.

    Settings: `output`, `samples` (what is behind them is padding), and `codes`, the output with a codec's code numbers
    [B, frames, codebooks], which are listed too.
    """
    name = _output(settings, "output", outputs)
    codes = _output(settings, "codes", outputs) if "codes" in settings else None
    length = settings.get("samples")

    def one(samples: Array) -> dict[str, Any]:
        numbers = samples[:length].astype(np.float64)
        rms, peak = math.sqrt(float(np.square(numbers).mean())), float(np.abs(numbers).max())
        return {"samples": len(numbers), "rms": round(rms, 6), "peak": round(peak, 6)}

    def every(found: Mapping[str, Array]) -> list[dict[str, Any]]:
        results = [one(row) for row in found[name]]
        for result, numbers in zip(results, found[codes] if codes else (), strict=bool(codes)):
            result["codes"] = numbers.tolist()
        return results

    return every


def _frames(settings: Mapping[str, Any], outputs: Mapping[str, TensorInfo]) -> Summarize:
    """Features [B, M, C] → {"frames": M, "width": C, "ms_per_frame", "longest_ms", "rms", "min", "max"}.

    Settings: `output`, `sizes` (the output [B, M] that says how many frames each stands for), and `seconds`, the time
    of all of them; without it, the numbers of milliseconds are left out. `longest_ms` is there where frames were merged
    unequally.
    """
    name = _output(settings, "output", outputs)
    sizes = _output(settings, "sizes", outputs) if "sizes" in settings else None
    if len(outputs[name].shape) != 3:
        raise BundleError(
            f"The manifest's 'postprocess' of kind 'frames' names the output '{name}' of shape "
            f"{list(outputs[name].shape)}; features are [batch, frames, width]."
        )
    seconds = settings.get("seconds")

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


def _raw(settings: Mapping[str, Any], outputs: Mapping[str, TensorInfo]) -> Summarize:
    """Any outputs → for each its shape, mean, smallest and largest number."""

    def describe(array: Array) -> dict[str, Any]:
        if not array.size:
            return {"shape": list(array.shape)}
        numbers = array.astype(np.float64)
        low, mean, high = float(numbers.min()), float(numbers.mean()), float(numbers.max())
        return {"shape": list(array.shape), "mean": mean, "min": low, "max": high}

    return lambda found: [{name: describe(array) for name, array in found.items()}]


KINDS: Mapping[str, Callable[[Mapping[str, Any], Mapping[str, TensorInfo]], Summarize]] = {
    "classification": _classification,
    "detection3d": _detection3d,
    "audio": _audio,
    "frames": _frames,
    "raw": _raw,
}
"""What `postprocess.kind` may be."""


def _output(
    settings: Mapping[str, Any], key: str, outputs: Mapping[str, TensorInfo], default: str | None = None
) -> str:
    name = str(settings.get(key, default or next(iter(outputs))))
    if name not in outputs:
        raise BundleError(
            f"The manifest's 'postprocess.{key}' names the output '{name}', and the bundle has {', '.join(outputs)}."
        )
    return name


def top_classes(summary: Mapping[str, Any]) -> Sequence[int] | None:
    """The best class of each sample of a query, or None if this was no classification."""
    results = summary.get("results", [])
    return [item["class"] for item in results] if results and all("class" in item for item in results) else None
