"""ToC3D on the 3D detector of the zoo: `python -m trt_compress.tools.bench.surround_detector [--quick] [--scenes N]`.

Dense and at both of ToC3D's settings: mean average precision and translation error on held-out scenes, run through the
exported files in ONNX Runtime as streams with history, and the speed-up over dense in one interleaved run on one thread
(operators as ONNX bodies, and as native operators where they are built). One JSON line is appended to
`tools/bench/results/surround_detector.jsonl`.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from trt_compress.export.api import export_model
from trt_compress.models.hosts.detector3d import INPUTS, STATES
from trt_compress.models.zoo.surround_detector.model import (
    FAST,
    FASTER,
    NUM_HELD_OUT,
    Detector,
    evaluate,
    held_out_frames,
    surround_detector_config,
)
from trt_compress.plugins.library import Library, find
from trt_compress.runtime.backends.ort import register_native
from trt_compress.runtime.measure.latency import interleave, speedup, summarize, verdict
from trt_compress.strays import temporary_folder
from trt_compress.tools.bench.records import append_record, speedup_text
from trt_compress.tools.console import print_table, progress

MODEL = "zoo:surround_detector"
SPECS = {"dense": "none", "fast": FAST, "faster": FASTER}
RESULTS = Path(__file__).parent / "results" / "surround_detector.jsonl"
_STREAMS = 10


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few samples, nothing recorded: to see that it runs")
    scenes_help = f"held-out scenes; 0: only the speed; if not {NUM_HELD_OUT}, nothing is recorded"
    parser.add_argument("--scenes", type=int, default=None, metavar="N", help=scenes_help)
    parser.add_argument("--bundles", type=Path, metavar="DIR", help="where the bundles are, or are to be kept")
    options = parser.parse_args(arguments)
    scenes = options.scenes if options.scenes is not None else 2 if options.quick else NUM_HELD_OUT
    with progress("ToC3D") as step, temporary_folder("bench") as folder:
        figures = measure(options.bundles or folder, scenes=scenes, pairs=8 if options.quick else 130, step=step)
    print_table(f"{MODEL}, batch 1, ONNX Runtime on one thread", ("", "mAP", "error", *_TIMES), rows(figures))
    if not options.quick and scenes == NUM_HELD_OUT:
        append_record(RESULTS, "surround_detector", {"model": MODEL, **figures})
    return 0


def measure(folder: Path, *, scenes: int, pairs: int, step: Callable[[str], None]) -> dict[str, Any]:
    """All figures: `scenes` held-out scenes (0: no accuracy), `pairs` timed runs of each side."""
    files = {}
    for name, spec in SPECS.items():
        files[name] = folder / name / "model.onnx"
        if not files[name].exists():
            step(f"exporting {name}")
            export_model(MODEL, compress=spec, targets=["rtx"], output=folder / name, batch=f"1:1:{_STREAMS}")
    figures: dict[str, Any] = {name: {"spec": spec} for name, spec in SPECS.items()}
    for name, file in files.items():
        if scenes:
            step(f"scoring {name}")
            score = evaluate(detector_of(file), num_scenes=scenes, streams=_STREAMS)
            figures[name]["accuracy"] = {
                "mean_ap": score.mean_ap,
                "translation_error_m": score.translation_error_m,
                "average_precision": score.average_precision,
                "by_threshold": score.by_threshold,
                "boxes": sum(score.num_truth),
                "scenes": scenes,
            }
    native = find("onnxruntime")
    forms: dict[str, Library | None] = {"bodies": None, **({"native": native} if native else {})}
    feed = second_frame(files["dense"])
    for form, library in forms.items():
        calls = {name: _call(_session(file, library), feed) for name, file in files.items()}
        for name in ("fast", "faster"):
            step(f"timing {pairs} pairs of {name} and dense, {form}")
            samples = interleave(calls[name], calls["dense"], warmup=5, pairs=pairs)
            figures[name][form] = {
                "speedup": speedup(samples.a_ns, samples.b_ns).to_json(),
                "latency": summarize(samples.a_ns).to_json(),
                "dense": summarize(samples.b_ns).to_json(),
                "verdict": verdict(samples.a_ns, device="cpu").to_json(),
            }
    figures["protocol"] = {"batch": 1, "pairs": pairs, "warmup": 5, "order": "interleaved ABAB", "threads": 1}
    return figures


def detector_of(file: Path) -> Detector:
    """An exported detector, for `evaluate`."""
    session = _session(file, None)

    def run(*arrays: np.ndarray[Any, np.dtype[np.float32]]) -> tuple[np.ndarray[Any, np.dtype[np.float32]], ...]:
        return tuple(session.run(None, dict(zip((*INPUTS, *STATES), arrays, strict=True))))

    return run


def second_frame(file: Path) -> dict[str, Any]:
    """Inputs and states of a frame that has a history."""
    first, second, *_ = held_out_frames(1)
    empty = {
        name: np.zeros((1, *shape), np.float32) for name, shape in surround_detector_config().state_shapes().items()
    }
    _, _, *states = _session(file, None).run(None, {**first, **empty})
    return {**second, **dict(zip(STATES, states, strict=True))}


_TIMES = ("speed-up, bodies", "speed-up, native", "ms, bodies")


def rows(figures: dict[str, Any]) -> list[tuple[str, ...]]:
    """One line for each setting."""
    table = []
    for name, spec in SPECS.items():
        found = figures[name]
        accuracy = found.get("accuracy")
        cells = (f"{accuracy['mean_ap']:.1%}", f"{accuracy['translation_error_m']:.2f} m") if accuracy else ("", "")
        speeds = tuple(speedup_text(found[form]["speedup"]) if form in found else "" for form in ("bodies", "native"))
        form = found.get("bodies") or figures["faster"]["bodies"]
        latency = form["latency" if "bodies" in found else "dense"]["median_ns"] / 1e6
        table.append((f"{name}: {spec}", *cells, *speeds, f"{latency:.1f}"))
    return table


def _session(file: Path, native: Library | None) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    if native is not None:
        register_native(options, native)
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def _call(session: Any, feed: dict[str, Any]) -> Callable[[], object]:
    return lambda: session.run(None, feed)


if __name__ == "__main__":
    sys.exit(main())
