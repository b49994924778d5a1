"""The table of the streaming workloads is what was recorded last."""

import json
from pathlib import Path

from trt_compress.tools.bench import workloads

SPEED = {"median": 2.0, "low": 1.9, "high": 2.1, "n": 60, "reason": None}
LATENCY = {"median_ns": 1e7}


def test_rows_are_those_of_the_last_record(tmp_path: Path) -> None:
    assert list(workloads.rows(tmp_path)) == []
    head = {"commit": "abc", "date": "2026-01-02T03:04:05"}
    old = {**head, "variants": {"none": {}}}
    accuracy = {"both": 0.5}
    figure = {"accuracy": accuracy, "speedup_over_dense": SPEED, "latency": LATENCY}
    new = {**head, "variants": {"static_reuse k25": figure, "zoo:video_pvc": figure}}
    (tmp_path / "video_vit.jsonl").write_text(json.dumps(old) + "\n" + json.dumps(new) + "\n")
    clips = {"model": "zoo:keyword_spotter", "compressor": "none", "accuracy": 0.25, "speedup": SPEED}
    keywords = {**head, "protocol": {"batch": 8}, "rows": [{**clips, "latency": LATENCY}]}
    (tmp_path / "keyword_spotter.jsonl").write_text(json.dumps(keywords) + "\n")
    score = {"mean_ap": 0.3, "translation_error_m": 0.7}
    timed = {"speedup": SPEED, "latency": LATENCY, "dense": {"median_ns": 2e7}}
    level = {"spec": "toc3d", "accuracy": score, "bodies": timed}
    detector = {
        **head,
        "dense": {"spec": "none", "accuracy": score},
        "fast": level,
        "faster": {**level, "native": timed},
    }
    (tmp_path / "surround_detector.jsonl").write_text(json.dumps(detector) + "\n")
    assert list(workloads.rows(tmp_path)) == [
        ("`zoo:video_vit`", "`static_reuse:keep_ratio=0.25`", "50.0% of frames", "2.00× [1.90, 2.10]", "100"),
        ("`zoo:video_pvc`", "`none`", "50.0% of frames", "2.00× [1.90, 2.10]", "100"),
        ("`zoo:surround_detector`", "`none`", "mAP 30.0%, 0.70 m off", "1.00×", "50"),
        ("`zoo:surround_detector`", "`toc3d`", "mAP 30.0%, 0.70 m off", "2.00× [1.90, 2.10]", "100"),
        ("`zoo:surround_detector`", "`toc3d`", "mAP 30.0%, 0.70 m off", "2.00× [1.90, 2.10]", "100"),
        ("`zoo:keyword_spotter`", "`none`", "25.0% of clips", "2.00× [1.90, 2.10]", "800"),
    ]
    assert list(workloads.captions(tmp_path))[0] == "`tools.bench.video_vit`: commit abc, 2026-01-02"
    assert list(workloads.best_rows(tmp_path)) == [
        ("`zoo:surround_detector`", "`toc3d`", "2.00× [1.90, 2.10]", "mAP 30.0%, 0.70 m off", "mAP 30.0%, 0.70 m off")
    ]


def test_a_fast_setting_that_loses_more_than_a_point_is_not_the_best(tmp_path: Path) -> None:
    def row(spec: str, accuracy: float, median: float) -> dict[str, object]:
        speed = {**SPEED, "median": median}
        return {"model": "m", "compressor": spec, "accuracy": accuracy, "speedup": speed, "latency": LATENCY}

    record = {
        "commit": "abc",
        "date": "2026-01-02T03:04:05",
        "protocol": {"batch": 8},
        "rows": [row("none", 0.9, 1.0), row("slow", 0.9, 1.2), row("good", 0.891, 1.5), row("bad", 0.889, 3.0)],
    }
    (tmp_path / "keyword_spotter.jsonl").write_text(json.dumps(record) + "\n")
    (best,) = workloads.best_rows(tmp_path)
    assert best == ("`m`", "`good`", "1.50× [1.90, 2.10]", "90.0% of clips", "89.1% of clips")
