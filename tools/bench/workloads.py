"""The recorded figures of the streaming workloads as rows of one table: accuracy on held-out data against speed."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from trt_compress.runtime.latency import Speedup

COLUMNS = ("model", "compressor", "right on held-out data", "speed-up over dense", "runs a second")
RESULTS = Path(__file__).parent / "results"
Row = tuple[str, ...]


def rows(folder: Path = RESULTS) -> Iterator[Row]:
    """Rows of the last record of each workload; a workload that has none is left out."""
    for name, record in _last_records(folder):
        yield from _ROWS[name](record)


def captions(folder: Path = RESULTS) -> Iterator[str]:
    """Where and when the figures were measured."""
    for name, record in _last_records(folder):
        yield f"`tools.bench.{name}`: commit {record['commit']}, {record['date'][:10]}"


def _last_records(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for name in _ROWS:
        file = folder / f"{name}.jsonl"
        if file.is_file():
            yield name, json.loads(file.read_text(encoding="utf-8").splitlines()[-1])


def _video(record: dict[str, Any]) -> Iterator[Row]:
    for name, figure in record["variants"].items():
        model, spec = (name, "`none`") if name.startswith("zoo:") else ("zoo:video_vit", f"`{name}`")
        accuracy = f"{figure['accuracy']['both']:.1%} of frames"
        yield f"`{model}`", spec, accuracy, *_speed(figure["speedup_over_dense"], figure["latency"]["median_ns"], 1)


def _detector(record: dict[str, Any]) -> Iterator[Row]:
    for name in ("dense", "fast", "faster"):
        figure = record[name]
        accuracy = figure["accuracy"]
        right = f"mAP {accuracy['mean_ap']:.1%}, {accuracy['translation_error_m']:.2f} m off"
        form = next((figure[form] for form in ("native", "bodies") if form in figure), None)
        if form is None:
            other = next(record["faster"][form] for form in ("native", "bodies") if form in record["faster"])
            speed: tuple[str, str] = ("1.00×", f"{1e9 / other['dense']['median_ns']:.0f}")
        else:
            speed = _speed(form["speedup"], form["latency"]["median_ns"], 1)
        yield "`zoo:surround_detector`", f"`{figure['spec']}`", right, *speed


def _keywords(record: dict[str, Any]) -> Iterator[Row]:
    for row in record["rows"]:
        speed = _speed(row["speedup"], row["latency"]["median_ns"], record["protocol"]["batch"])
        yield f"`{row['model']}`", f"`{row['compressor']}`", f"{row['accuracy']:.1%} of clips", *speed


def _speed(ratio: dict[str, Any], median_ns: float, batch: int) -> tuple[str, str]:
    found = Speedup(**ratio)
    interval = f" [{found.low:.2f}, {found.high:.2f}]" if found.low and found.high else ""
    return f"{found.median:.2f}×{interval}", f"{batch * 1e9 / median_ns:.0f}"


_ROWS: dict[str, Callable[[dict[str, Any]], Iterator[Row]]] = {
    "video_vit": _video,
    "surround_detector": _detector,
    "keyword_spotter": _keywords,
}
