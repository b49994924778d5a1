"""What choosing tokens and text adds to the steps of a bundle: `python -m trt_compress.tools.bench.decode_loop BUNDLE`.

Each way to choose is run in turns, several rounds of it, on the same prompts. Measured is a step, and of it what lies
outside of ONNX Runtime (what is fed, states, choosing, text): as seconds of CPU of the thread that does it, since on a
machine that others load too a thread waits, wherever it is. The goal is less than 5 % outside. One JSON line is
appended to `tools/bench/results/decode_loop.jsonl`.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trt_compress.runtime.backends.ort import OrtBinding
from trt_compress.runtime.generate.generator import Generator
from trt_compress.runtime.generate.sampling import Sampling
from trt_compress.tools.bench.records import append_record
from trt_compress.tools.bench.result import identity
from trt_compress.tools.console import print_table, progress

RESULTS = Path(__file__).parent / "results" / "decode_loop.jsonl"
WAYS = {
    "greedy": Sampling(),
    "temperature": Sampling(temperature=1.0, seed=0),
    "top-k 40, top-p 0.95": Sampling(temperature=0.8, top_k=40, top_p=0.95, seed=0),
    "top-p 0.95, hot": Sampling(temperature=2.0, top_p=0.95, seed=0),
    "repetition penalty, 5 log-probabilities": Sampling(repetition_penalty=1.1, logprobs=5),
    "a stop text": Sampling(stop=("no such text",)),
}
MOST_SHARE = 0.05


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--new", type=int, default=48, help="tokens of an answer")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-record", action="store_true")
    given = parser.parse_args(arguments)
    with progress("decode loop") as step, Generator.open(given.bundle, threads=given.threads) as generator:
        prompts = [[1 + at, 2, 3, 4, 5] for at in range(given.batch)]
        ways = {name: way for name, way in WAYS.items() if generator.text.tokenizer is not None or not way.stop}
        rounds: dict[str, list[tuple[float, float, float]]] = {name: [] for name in ways}
        for number in range(given.rounds + 1):
            step(f"round {number} of {given.rounds}")
            for name, sampling in ways.items():
                rounds[name].append(_once(generator, prompts, sampling, given.new))
        figures = {
            "bundle": identity(generator.session.bundle.manifest),
            "vocabulary": generator.vocabulary,
            "new": given.new,
            "batch": given.batch,
            "threads": given.threads,
            "ways": {name: _figures(seen[1:]) for name, seen in rounds.items()},  # the first warms up
        }
    rows = [
        (
            name,
            f"{way['step_us']:.0f}",
            f"{way['outside_us']:.0f}",
            f"{way['share']:.1%}",
            "yes" if way["holds"] else "no",
        )
        for name, way in figures["ways"].items()
    ]
    print_table(f"{given.bundle}", ("way", "step µs", "outside µs", "share of CPU", "below 5 %"), rows)
    if not given.no_record:
        append_record(RESULTS, "decode_loop", figures)
    return 0


def _figures(seen: Sequence[tuple[float, float, float]]) -> dict[str, Any]:
    whole, cpu, outside = (statistics.median(one[at] for one in seen) for at in range(3))
    share = outside / cpu
    return {
        "step_us": round(whole * 1e6, 1),
        "step_cpu_us": round(cpu * 1e6, 1),
        "outside_us": round(outside * 1e6, 1),
        "share": round(share, 4),
        "holds": share < MOST_SHARE,
    }


def _once(generator: Generator, prompts: list[list[int]], sampling: Sampling, new: int) -> tuple[float, float, float]:
    """Seconds of a step; of CPU of its thread; and of these, the ones outside of ONNX Runtime."""
    with (
        generator.stream(prompts, sampling=sampling, max_new=new, ignore_stop_ids=True, batch=len(prompts)) as stream,
        _inside() as runs,
    ):
        for _ in prompts:  # the first token of each is no step
            next(stream)
        began = time.thread_time()
        for _ in stream:
            pass
        took = time.thread_time() - began
    steps = new - 1
    return stream.timing.decode_s / steps, took / steps, (took - sum(runs[-steps:])) / steps


@contextmanager
def _inside() -> Iterator[list[float]]:
    """The seconds of CPU of each run within ONNX Runtime, as far as this thread spends them."""
    runs: list[float] = []
    before = OrtBinding.run

    def run(self: OrtBinding, *arguments: Any) -> Any:
        began = time.thread_time()
        found = before(self, *arguments)
        runs.append(time.thread_time() - began)
        return found

    setattr(OrtBinding, "run", run)  # noqa: B010
    try:
        yield runs
    finally:
        setattr(OrtBinding, "run", before)  # noqa: B010


if __name__ == "__main__":
    sys.exit(main())
