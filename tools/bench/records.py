"""Lines of JSON under `tools/bench/results/`: what was measured, with the machine, the versions and the commit."""

import json
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from trt_compress.children import run
from trt_compress.files import append_line
from trt_compress.runtime.measure.latency import Speedup
from trt_compress.tools.machine import describe_device, package_versions
from trt_compress.version import __version__


def append_record(path: Path, benchmark: str, figures: Mapping[str, Any]) -> None:
    """Append one line to `path`; the commit is marked where anything but the records was changed since."""
    changed = _git("status", "--porcelain", "--", ":(top)", ":(top,exclude)tools/bench/results")
    commit = _git("rev-parse", "--short", "HEAD") + ("-dirty" if changed else "")
    line = {
        "benchmark": benchmark,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit or None,
        "device": describe_device(),
        "versions": {"trt-compress": __version__, **package_versions()},
        **figures,
    }
    path.parent.mkdir(exist_ok=True)
    append_line(path, json.dumps(line))


def speedup_text(ratio: Mapping[str, Any]) -> str:
    """A speed-up as `Speedup.to_json` wrote it, with its 95 % interval and the number of pairs."""
    value = Speedup(**ratio)
    low_high = f" [{value.low:.2f}, {value.high:.2f}]" if value.low and value.high else ""
    return f"{value.median:.2f}×{low_high}, n={value.n}"


def _git(*arguments: str) -> str:
    try:
        done = run(["git", *arguments], folder=Path(__file__).resolve().parent)
    except OSError:  # no git
        return ""
    return done.stdout.decode(errors="replace").strip()
