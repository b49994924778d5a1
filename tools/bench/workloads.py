"""The recorded figures of the streaming workloads as rows of one table: accuracy on held-out data against speed."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trt_compress.runtime.measure.latency import Speedup

COLUMNS = ("model", "compressor", "right on held-out data", "speed-up over dense", "runs a second")
BEST_COLUMNS = ("model", "compressor", "faster than uncompressed", "right, uncompressed", "right, compressed")
RESULTS = Path(__file__).parent / "results"
Row = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadFigure:
    """One setting of a workload.

    Attributes:
        model: Its name.
        spec: Its compressor; "none" for the model as it is.
        right: How good it is, in words.
        score: The same as a number from 0 to 1, more is better.
        speed: Over the uncompressed model; None for that itself.
        per_second: Runs a second.
    """

    model: str
    spec: str
    right: str
    score: float
    speed: Speedup | None
    per_second: float

    def row(self) -> Row:
        """As the cells of `COLUMNS`."""
        return f"`{self.model}`", f"`{self.spec}`", self.right, _speed_text(self.speed), f"{self.per_second:.0f}"


def rows(folder: Path = RESULTS) -> Iterator[Row]:
    """Rows of the last record of each workload; a workload that has none is left out."""
    for figure in _figures(folder):
        yield figure.row()


def best_rows(folder: Path = RESULTS) -> Iterator[Row]:
    """For each model its fastest setting that is at most one percentage point below the model as it is."""
    by_model: dict[str, list[WorkloadFigure]] = {}
    for figure in _figures(folder):
        by_model.setdefault(figure.model, []).append(figure)
    for model, figures in by_model.items():
        dense = next((figure for figure in figures if figure.spec == "none"), None)
        if dense is None:
            continue
        good = [f for f in figures if f.speed and f is not dense and f.score >= dense.score - 0.01]
        if good:
            best = max(good, key=lambda figure: figure.speed.median if figure.speed else 0.0)
            yield f"`{model}`", f"`{best.spec}`", _speed_text(best.speed), dense.right, best.right


def _figures(folder: Path) -> Iterator[WorkloadFigure]:
    for name, record in _last_records(folder):
        yield from _READERS[name](record)


def captions(folder: Path = RESULTS) -> Iterator[str]:
    """Where and when the figures were measured."""
    for name, record in _last_records(folder):
        yield f"`tools.bench.{name}`: commit {record['commit']}, {record['date'][:10]}"


def _last_records(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for name in _READERS:
        file = folder / f"{name}.jsonl"
        if file.is_file():
            yield name, json.loads(file.read_text(encoding="utf-8").splitlines()[-1])


def _video(record: dict[str, Any]) -> Iterator[WorkloadFigure]:
    for name, figure in record["variants"].items():
        model, spec = (name, "none") if name.startswith("zoo:") else ("zoo:video_vit", _spec_of(name))
        score = figure["accuracy"]["both"]
        yield _figure(model, spec, f"{score:.1%} of frames", score, figure["speedup_over_dense"], figure["latency"])


def _spec_of(variant: str) -> str:
    """`static_reuse k25`, a level of a bundle of several, as the spec string of that level alone."""
    level = re.fullmatch(r"static_reuse (?:k(\d+)|dense)", variant)
    return variant if level is None else f"static_reuse:keep_ratio={int(level[1] or 100) / 100:g}"


def _detector(record: dict[str, Any]) -> Iterator[WorkloadFigure]:
    for name in ("dense", "fast", "faster"):
        figure = record[name]
        score = figure["accuracy"]["mean_ap"]
        right = f"mAP {score:.1%}, {figure['accuracy']['translation_error_m']:.2f} m off"
        form = next((figure[form] for form in ("native", "bodies") if form in figure), None)
        other = form or next(record["faster"][form] for form in ("native", "bodies") if form in record["faster"])
        speed, latency = (None, other["dense"]) if form is None else (form["speedup"], form["latency"])
        yield _figure("zoo:surround_detector", figure["spec"], right, score, speed, latency)


def _keywords(record: dict[str, Any]) -> Iterator[WorkloadFigure]:
    batch = record["protocol"]["batch"]
    for row in record["rows"]:
        right = f"{row['accuracy']:.1%} of clips"
        yield _figure(row["model"], row["compressor"], right, row["accuracy"], row["speedup"], row["latency"], batch)


def _figure(
    model: str,
    spec: str,
    right: str,
    score: float,
    speed: dict[str, Any] | None,
    latency: dict[str, Any],
    batch: int = 1,
) -> WorkloadFigure:
    return WorkloadFigure(
        model=model,
        spec=spec,
        right=right,
        score=score,
        speed=None if speed is None else Speedup(**speed),
        per_second=batch * 1e9 / latency["median_ns"],
    )


def _speed_text(speed: Speedup | None) -> str:
    if speed is None:
        return "1.00×"
    interval = f" [{speed.low:.2f}, {speed.high:.2f}]" if speed.low and speed.high else ""
    return f"{speed.median:.2f}×{interval}"


_READERS: dict[str, Callable[[dict[str, Any]], Iterator[WorkloadFigure]]] = {
    "video_vit": _video,
    "surround_detector": _detector,
    "keyword_spotter": _keywords,
}
