"""What the records of GPU runs say, as rows of tables. A rehearsal's lines are no records."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent.parent / "bench" / "results"
NO_RECORD = "No record yet: these have not run on a GPU.\n"
MEASURED = ("met", "missed", "reported", "refused")
KERNEL_COLUMNS = ("operator", "shape", "time", "floor", "share", "figure", "wanted", "device", "commit")
MODEL_COLUMNS = ("what", "speed-up over dense", "fewer operations", "wanted", "device", "commit")
_FIGURES = {
    "over_textbook": ("{:.2f} × the textbook", "at least {:.0f} ×"),
    "share_of_block": ("{:.1%} of a ViT-B block", "at most {:.0%}"),
    "over_fp16": ("{:.2f} × fp16", "at least {:.1f} ×"),
    "share_of_layer": ("{:.1%} of an attention layer", "under {:.0%}"),
    "over_launch": ("{:.2f} × a launch", "at most {:.0f} ×"),
    "share_of_floor": ("", "at least {:.0%}"),
}


def latest(name: str, folder: Path = RESULTS) -> list[Mapping[str, Any]]:
    """The newest measured line of each case, in the order of the newest run."""
    path = folder / f"{name}.jsonl"
    if not path.is_file():
        return []
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    found: dict[str, Mapping[str, Any]] = {}
    for line in lines:
        if not line["dry_run"] and line.get("verdict") in MEASURED and line["case"] != "copy":
            found.pop(line["case"], None)
            found[line["case"]] = line
    return list(found.values())


def kernel_rows(folder: Path = RESULTS) -> Iterator[tuple[str, ...]]:
    """One row for each case of gpu_kernels."""
    for line in latest("gpu_kernels", folder):
        time_us, floor_us = line["time_us"]["ours"]["median_us"], line.get("floor_us")
        share = line.get("share_of_floor")
        figures = [text.format(line[key]["median"]) for key, (text, _) in _FIGURES.items() if text and key in line]
        wanted = [
            _FIGURES[key][1].format(value)
            for key, value in line.get("wanted", {}).items()
            if key in _FIGURES and value is not None
        ]
        yield (
            line["case"],
            f"{line['sizes']} {line['dtype']}",
            f"{time_us:.1f} us",
            f"{floor_us:.1f} us" if floor_us else "",
            f"{share['median']:.0%}" if share else "",
            ", ".join(figures),
            f"{', '.join(wanted)}: {line['verdict']}" if wanted else "reported",
            line["gpu"]["name"],
            str(line["commit"]),
        )


def model_rows(folder: Path = RESULTS) -> Iterator[tuple[str, ...]]:
    """One row for each case of gpu_end_to_end; what refused the device says so."""
    for line in latest("gpu_end_to_end", folder):
        speedup, wanted = line.get("speedup"), line.get("wanted", {}).get("speedup")
        figure = _interval(speedup) if speedup else line["detail"][:160].replace("|", "/")
        yield (
            line["case"],
            figure,
            f"{line['fewer_flops']:.2f} ×" if "fewer_flops" in line else "",
            f"at least {wanted} ×: {line['verdict']}" if wanted else line["verdict"],
            line["gpu"]["name"],
            str(line["commit"]),
        )


def _interval(speedup: Mapping[str, Any]) -> str:
    low_high = speedup.get("interval")
    return f"{speedup['median']:.2f} ×" + (f" [{low_high[0]:.2f}, {low_high[1]:.2f}]" if low_high else "")
