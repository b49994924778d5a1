"""How good the results were, against labels by frame."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trt_compress.errors import ConfigError
from trt_compress.runtime.stream.frame import Frame
from trt_compress.runtime.stream.postprocess import top_classes
from trt_compress.runtime.stream.result import Quality


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
            lines = Path(path).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ConfigError(f"'{path}' cannot be read ({reason}); give a JSONL file to --labels.") from None
        for number, line in enumerate(lines, start=1):
            if line.strip():
                frame, label = _read_line(line, f"line {number} of '{path}'")
                classes[frame] = label
        if not classes:
            raise ConfigError(f"'{path}' holds no label; give a line such as {_EXAMPLE} for each frame.")
        return cls(classes)

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


_EXAMPLE = '{"id": 0, "label": 7}'


def _read_line(line: str, where: str) -> tuple[int, Sequence[int]]:
    try:
        data: Any = json.loads(line)
        label = data["label"]
        labels = label if isinstance(label, list) else [label]
        if type(data["id"]) is int and labels and all(type(value) is int for value in labels):
            return data["id"], labels
    except (ValueError, TypeError, KeyError):
        pass
    raise ConfigError(f"{where} is no label; write {_EXAMPLE}.")
