"""Lines of JSON, most of them under `tools/bench/results/`: what was measured, with machine, versions and commit."""

import json
import re
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from trt_compress.files import append_line
from trt_compress.runtime.measure.latency import Speedup
from trt_compress.tools.machine import commit_of_sources, describe_device, package_versions

_FOLDERS = re.compile(r"(?<![\w./])/(?:[^\s/:'\"?=&]+/)+(?=[^\s/])")


def append_record(path: Path, benchmark: str, figures: Mapping[str, Any]) -> None:
    """Append the figures of a benchmark to `path`, with all that they were measured with.

    Of a file that is named with its folders its own name is written: where it lay says nothing to others.
    """
    write_line(path, {**measured_with(benchmark), **_without_folders(figures)})


def _without_folders(value: Any) -> Any:
    if isinstance(value, str):
        return _FOLDERS.sub("", value)
    if isinstance(value, Mapping):
        return {_without_folders(name): _without_folders(each) for name, each in value.items()}
    return [_without_folders(each) for each in value] if isinstance(value, (list, tuple)) else value


def measured_with(benchmark: str, *, commit: str | None = None) -> dict[str, Any]:
    """What a record begins with.

    Args:
        benchmark: What was measured.
        commit: What to say where the sources are no git checkout.
    """
    return {
        "benchmark": benchmark,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit_of_sources(commit),
        "device": describe_device(),
        "versions": package_versions(),
    }


def write_line(path: Path, line: Mapping[str, Any]) -> None:
    """Append one line of JSON, whole or not at all; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    append_line(path, json.dumps(line))


def speedup_text(ratio: Mapping[str, Any]) -> str:
    """A speed-up as `Speedup.to_json` wrote it, with its 95 % interval and the number of pairs."""
    value = Speedup(**ratio)
    low_high = f" [{value.low:.2f}, {value.high:.2f}]" if value.low and value.high else ""
    return f"{value.median:.2f}×{low_high}, n={value.n}"
