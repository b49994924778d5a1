"""How good the results were, against labels by frame."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from trt_compress.errors import ConfigError
from trt_compress.files import read_regular
from trt_compress.foreign import strict_json
from trt_compress.format.kinds import ClassOutput, output_kind
from trt_compress.format.manifest import TensorInfo
from trt_compress.runtime.camera_frames import TRUTH
from trt_compress.runtime.detection_metric import FrameBoxes, score_detections
from trt_compress.runtime.stream.frame import Frame
from trt_compress.runtime.stream.images import TIMESTAMPS, load_npz
from trt_compress.runtime.stream.postprocess import BoxLayout, box_layout, top_classes
from trt_compress.runtime.stream.result import Quality


class Scorer(Protocol):
    """Takes in delivered frames, and says how good they were."""

    def score(self, frame: Frame) -> None:
        """Take in a delivered frame; one without a label is left out.

        Raises:
            ConfigError: The model gives something that the labels are not for.
        """
        ...

    def quality(self) -> dict[str, Quality]:
        """The metrics over the delivered frames that have labels; nothing if there was none."""
        ...


def labels_from_file(path: str | Path, postprocess: Mapping[str, Any], outputs: Mapping[str, TensorInfo]) -> Scorer:
    """Read labels: classes of a JSONL file, or the true boxes of a scene.npz.

    Args:
        path: The file.
        postprocess: Of the bundle's manifest.
        outputs: What the session gives.

    Raises:
        ConfigError: It cannot be read, holds no labels, or they are not for this bundle.
    """
    if Path(path).suffix.lower() == ".npz":
        return BoxLabels.read(path, postprocess, outputs)
    labels, meaning = Labels.read(path), output_kind(postprocess)
    count = meaning.classes if isinstance(meaning, ClassOutput) else None
    numbers = [number for several in labels.classes.values() for number in several]
    if count is not None and (foreign := [number for number in numbers if not 0 <= number < count]):
        raise ConfigError(f"'{path}' has the label {foreign[0]}, and the bundle's classes are 0 to {count - 1}.")
    return labels


class Labels:
    """Classes by frame, and how many were found.

    Args:
        classes: Frame → its class; several for the streams of one query.
    """

    def __init__(self, classes: Mapping[int, Sequence[int]]) -> None:
        self._classes = classes
        self._right = 0
        self._scored = 0

    @classmethod
    def read(cls, path: str | Path) -> "Labels":
        """Read a JSONL file: `{"id": 0, "label": 7}` a line; with several streams `"label": [7, 3]`.

        Raises:
            ConfigError: It cannot be read, or a line is something else.
        """
        classes: dict[int, Sequence[int]] = {}
        try:
            lines = read_regular(Path(path)).decode().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ConfigError(f"'{path}' cannot be read ({reason}); give a JSONL file to --labels.") from None
        for number, line in enumerate(lines, start=1):
            if line.strip():
                frame, label = _read_line(line, f"line {number} of '{path}'")
                if classes.setdefault(frame, label) != label:
                    raise ConfigError(f"Line {number} of '{path}' gives frame {frame} another label; give it one.")
        if not classes:
            raise ConfigError(f"'{path}' holds no label; give a line such as {_EXAMPLE} for each frame.")
        return cls(classes)

    @property
    def classes(self) -> Mapping[int, Sequence[int]]:
        """Frame → its classes."""
        return self._classes

    def score(self, frame: Frame) -> None:
        """Take in a delivered frame.

        Raises:
            ConfigError: The model gives no class, or another number of them.
        """
        wanted = self._classes.get(frame.id)
        if wanted is None:
            return
        found = top_classes(frame.summary)
        if found is None or len(found) != len(wanted):
            raise ConfigError(
                f"Frame {frame.id} has {len(wanted)} label(s) and the model gave {len(found or ())} class(es); labels "
                "go with a classification, one for each stream."
            )
        self._scored += len(wanted)
        self._right += sum(a == b for a, b in zip(found, wanted, strict=True))

    def quality(self) -> dict[str, Quality]:
        """Accuracy over the delivered frames that have a label; nothing if there was none."""
        return {"top1": Quality(value=self._right / self._scored, n=self._scored)} if self._scored else {}


class BoxLabels:
    """True 3D boxes by frame, against all boxes that a detector gives, those under its threshold too.

    Args:
        truth: Frame → its boxes.
        layout: Where the detector's outputs hold them.
    """

    def __init__(self, truth: Mapping[int, FrameBoxes], layout: BoxLayout) -> None:
        self._truth = truth
        self._layout = layout
        self._found: list[FrameBoxes] = []
        self._wanted: list[FrameBoxes] = []

    @classmethod
    def read(cls, path: str | Path, postprocess: Mapping[str, Any], outputs: Mapping[str, TensorInfo]) -> "BoxLabels":
        """Read the true boxes of a scene.npz, as `trt-compress scene` writes them.

        Raises:
            ConfigError: The file has no true boxes, or the bundle is no detector of these classes.
        """
        if postprocess.get("kind") != "detection3d":
            raise ConfigError(
                f"'{path}' holds boxes, and the bundle gives '{postprocess.get('kind', 'raw')}'; labels of a "
                f"classification are a JSONL file with lines such as {_EXAMPLE}."
            )
        layout = box_layout(postprocess, outputs)
        arrays = load_npz(str(path))
        if lacking := [name for name in TRUTH if name not in arrays]:
            raise ConfigError(
                f"'{path}' lacks {', '.join(lacking)}; write the scene with `trt-compress scene`, from a source whose "
                "boxes are known."
            )
        frame, boxes, names = (arrays[name] for name in TRUTH)
        if not (frame.ndim == names.ndim == 1 and boxes.shape == (len(frame), 9) and len(names) == len(frame)):
            shapes = ", ".join(f"{name} {list(arrays[name].shape)}" for name in TRUTH)
            raise ConfigError(f"The true boxes of '{path}' do not fit together ({shapes}); write the scene again.")
        if foreign := sorted(set(names.tolist()) - set(layout.classes)):
            raise ConfigError(
                f"'{path}' has boxes of '{foreign[0]}', and the bundle finds {', '.join(layout.classes) or 'nothing'}; "
                "give a scene of these classes."
            )
        labels = np.array([layout.classes.index(name) for name in names.tolist()], np.int64)
        count = len(arrays[TIMESTAMPS]) if TIMESTAMPS in arrays else int(frame.max(initial=-1)) + 1
        truth = {
            number: FrameBoxes(centers=boxes[frame == number, :2], labels=labels[frame == number])
            for number in range(count)
        }
        return cls(truth, layout)

    def score(self, frame: Frame) -> None:
        """Take in a delivered frame.

        Raises:
            ConfigError: The query has several streams.
        """
        wanted = self._truth.get(frame.id)
        if wanted is None:
            return
        boxes, scores = frame.outputs[self._layout.boxes], frame.outputs[self._layout.scores]
        if len(boxes) != 1:
            raise ConfigError(f"The query has {len(boxes)} streams, and the boxes of one file are of one stream.")
        scores = scores[0] if scores.ndim == 3 else scores[0][:, np.newaxis]
        centers = boxes[0][:, list(self._layout.ground)].astype(np.float64)
        self._found.append(FrameBoxes(centers=centers, labels=scores.argmax(axis=1), scores=scores.max(axis=1)))
        self._wanted.append(wanted)

    def quality(self) -> dict[str, Quality]:
        """Mean average precision and translation error of the classes that the delivered frames show."""
        score = score_detections(self._found, self._wanted, num_classes=max(1, len(self._layout.classes)))
        found = {"mAP": score.mean_ap, "translation_error_m": score.translation_error_m}
        return {name: Quality(value=value, n=len(self._found)) for name, value in found.items() if math.isfinite(value)}


_EXAMPLE = '{"id": 0, "label": 7}'


def _read_line(line: str, where: str) -> tuple[int, Sequence[int]]:
    try:
        data: Any = strict_json(line)
        label = data["label"]
        labels = label if isinstance(label, list) else [label]
        if type(data["id"]) is int and data["id"] >= 0 and labels and all(type(value) is int for value in labels):
            return data["id"], labels
    except (ValueError, TypeError, KeyError):
        pass
    raise ConfigError(f"{where} is no label; write {_EXAMPLE}.")
