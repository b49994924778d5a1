"""Cases of text methods: arrays, and lists of strings that stand in them as JSON."""

import json
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).parent


def read_text_case(method: str, case: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arrays as numpy has them, texts as what their JSON holds, and the parameters of a case."""
    with np.load(FOLDER / method / f"{case}.npz", allow_pickle=False) as archive:
        arrays = {
            name: json.loads(str(archive[name])) if archive[name].dtype.kind == "U" else archive[name]
            for name in archive.files
        }
    return arrays, arrays.pop("meta")


def parted(flat: Any, lengths: Any) -> list[list[int]]:
    """What was joined: lists of the lengths."""
    ends = np.cumsum(lengths).tolist()
    return [flat[end - length : end].tolist() for end, length in zip(ends, np.asarray(lengths).tolist(), strict=True)]
