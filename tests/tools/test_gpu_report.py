"""The tables of GPU figures: of records only, the newest of each case, and honest where there are none."""

import json
from pathlib import Path
from typing import Any

from trt_compress.tools import gen_tables
from trt_compress.tools.gpu.report import KERNEL_COLUMNS, MODEL_COLUMNS, kernel_rows, latest, model_rows

ROOT = Path(__file__).parents[2]
RATIO = {"median": 8.5, "interval": [8.25, 8.75], "n": 100}


def line(case: str, **more: Any) -> dict[str, Any]:
    gpu = {"name": "NVIDIA H100 80GB HBM3", "sm": 90}
    return {"case": case, "dry_run": False, "commit": "abc1234", "gpu": gpu, "verdict": "met", **more}


RUN = {"case": "run", "dry_run": False, "gpu": {"name": "NVIDIA H100 80GB HBM3"}}
MERGE = line(
    "TokenMerge, 64 images",
    sizes="B=64,N=197",
    dtype="float16",
    floor_us=13.04,
    share_of_floor={"median": 0.652},
    over_textbook=RATIO,
    share_of_block={"median": 0.0612},
    time_us={"ours": {"median_us": 20.04}},
    wanted={"over_textbook": 8.0, "share_of_block": 0.12},
)


def write(folder: Path, name: str, *lines: dict[str, Any]) -> None:
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))


def test_kernels(tmp_path: Path) -> None:
    assert list(kernel_rows(tmp_path)) == []
    old = {**MERGE, "commit": "0000000"}
    select = line(
        "TokenSelect", sizes="B=1", dtype="float16", floor_us=180.0, share_of_floor={"median": 0.81}, verdict="met",
        time_us={"ours": {"median_us": 222.2}}, wanted={"share_of_floor": 0.8},
    )  # fmt: skip
    rehearsed, skipped = {**MERGE, "dry_run": True, "commit": "x"}, line("KVAppend", verdict="skipped")
    write(tmp_path, "gpu_kernels", RUN, line("copy"), old, select, MERGE, rehearsed, skipped)
    first, second = kernel_rows(tmp_path)
    device = ("NVIDIA H100 80GB HBM3", "abc1234")
    assert first == ("TokenSelect", "B=1 float16", "222.2 us", "180.0 us", "81%", "", "at least 80%: met", *device)
    assert second == (
        *("TokenMerge, 64 images", "B=64,N=197 float16", "20.0 us", "13.0 us", "65%"),
        *("8.50 × the textbook, 6.1% of a ViT-B block", "at least 8 ×, at most 12%: met", *device),
    )
    assert len(first) == len(KERNEL_COLUMNS)


def test_models(tmp_path: Path) -> None:
    refused = line("TensorRT-RTX, SM80 engine", verdict="refused", detail="refused at deserialize: a | b")
    vit = line("PyTorch, vit_large, batch 64", verdict="missed", speedup={**RATIO, "median": 1.5},
               fewer_flops=2.02, wanted={"speedup": 1.76}, detail="")  # fmt: skip
    write(tmp_path, "gpu_end_to_end", RUN, vit, refused)
    first, second = model_rows(tmp_path)
    assert first[:4] == ("PyTorch, vit_large, batch 64", "1.50 × [8.25, 8.75]", "2.02 ×", "at least 1.76 ×: missed")
    assert second[1] == "refused at deserialize: a / b" and second[3] == "refused"
    assert len(first) == len(MODEL_COLUMNS) == len(second)
    assert len(latest("gpu_end_to_end", tmp_path)) == 2


def test_tables_of_the_operators_readme_are_up_to_date(monkeypatch: Any, tmp_path: Path) -> None:
    text = (ROOT / "plugins" / "README.md").read_text(encoding="utf-8")
    assert gen_tables.fill(text) == text
    monkeypatch.setattr("trt_compress.tools.gpu.report.kernel_rows", lambda: iter([]))
    assert gen_tables.gpu_kernels_table() == "\nNo record yet: these have not run on a GPU.\n\n"
    monkeypatch.setattr("trt_compress.tools.gpu.report.kernel_rows", lambda: kernel_rows(tmp_path))
    write(tmp_path, "gpu_kernels", MERGE)
    assert "| TokenMerge, 64 images | B=64,N=197 float16 | 20.0 us |" in gen_tables.gpu_kernels_table()
