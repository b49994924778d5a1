"""Tokenizers side by side: `python -m trt_compress.tools.bench.tokenizers --vocabulary FILE --texts DIR`.

The vocabulary is one in the form of tiktoken; the texts are parallel, a file for each language, as
`trt_compress.tools.tokenizers.debian_reference` writes them. First the encoders are compared: those that merge give the
same tokens, those by the vocabulary alone the same text, exact never more. Then each encodes the same lines in turns,
the order rotated each round; ratios are medians over rounds, with their 95 % interval. Tokens saved are over true BPE
of the same vocabulary, and for SuperBPE and KL3M over BPE of the same size, all trained on the even lines of all
languages and counted on the odd ones, as are windows of 16 bits (Equal-Info, a token each); intervals draw lines again.
One JSON line is appended to `tools/bench/results/tokenizers.jsonl`. Needs the package tiktoken.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from trt_compress.errors import ConfigError, InternalError, TrtCompressError, UnsupportedError
from trt_compress.files import read_regular
from trt_compress.foreign import reading
from trt_compress.runtime.generate.tokenizer import Tokenizer
from trt_compress.runtime.measure.latency import speedup
from trt_compress.runtime.text.equal_info.model import read_model
from trt_compress.runtime.text.equal_info.windows import encode as in_windows
from trt_compress.tools.bench.records import append_record, speedup_text
from trt_compress.tools.console import print_table, progress, say_error
from trt_compress.tools.tokenizers.measure import ratio_interval
from trt_compress.tools.tokenizers.sources import open_tokenizer, vocabulary_only
from trt_compress.tools.tokenizers.texts import TextFile, read_texts, unpacked
from trt_compress.tools.tokenizers.tiktoken_format import pattern_for, read_ranks
from trt_compress.tools.tokenizers.training import Kind, TrainingPlan, train

RESULTS = Path(__file__).parent / "results" / "tokenizers.jsonl"
LIBRARY, TIKTOKEN, GREEDY, EXACT = "tokenizers", "tiktoken", "vocabulary only, greedy", "vocabulary only, exact"
SUPERBPE, KL3M, WINDOWS = "SuperBPE", "KL3M", "Equal-Info, 16 bits"
_TRAINED: dict[str, Kind] = {SUPERBPE: "superbpe", KL3M: "kl3m"}
_TRAINED_SIZE = 8192
_WINDOW_BITS = 16

Encode = Callable[[str], list[int]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and record; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=Path, required=True, metavar="FILE", help="in the form of tiktoken")
    parser.add_argument("--pattern", metavar="RULE", help="how text is split before (default: what the name says)")
    parser.add_argument("--texts", type=Path, required=True, metavar="DIR", help="LANGUAGE.txt, parallel")
    parser.add_argument("--rounds", type=int, default=20, metavar="N", help="turns of each encoder")
    parser.add_argument("--lines", type=int, default=200, metavar="N", help="lines of each language that are timed")
    parser.add_argument("--quick", action="store_true", help="little is timed, nothing recorded: to see that it runs")
    given = parser.parse_args(arguments)
    try:
        _measure(given)
    except TrtCompressError as error:
        say_error(error.message, error.hint)
        return error.exit_code
    return 0


def _measure(given: argparse.Namespace) -> None:
    rounds, lines = (2, 20) if given.quick else (given.rounds, given.lines)
    if min(rounds, lines) < 1:
        raise ConfigError("--rounds and --lines are at least 1; give larger numbers.")
    files = read_texts(sorted(given.texts.glob("*.txt")))
    if given.quick:
        files = [replace(file, text="".join(file.text.splitlines(keepends=True)[:100])) for file in files[:3]]
    if not any(file.path.stem == "en" for file in files):
        raise ConfigError(
            f"'{given.texts}' holds no en.txt; write it with trt_compress.tools.tokenizers.debian_reference."
        )
    with progress("tokenizers") as step:
        step("reading the vocabulary")
        encoders = encoders_of(given.vocabulary, given.pattern)
        step("comparing")
        timed = [line for file in files for line in file.text.splitlines()[:lines]]
        _check(encoders, timed)
        step("timing")
        times = _in_turns(encoders, timed, rounds)
        step("counting")
        saved = [_saved(encoders, file) for file in files]
        step("training")
        trained = _trained(files, 2048 if given.quick else _TRAINED_SIZE, step)
    num_bytes = sum(len(line.encode()) for line in timed)
    speeds = {name: num_bytes / 1e6 / (float(np.median(ns)) / 1e9) for name, ns in times.items()}
    ratios = {name: speedup(ns, times[LIBRARY]).to_json() for name, ns in times.items() if name != LIBRARY}
    rows = [
        (name, f"{speed:.2f}", speedup_text(ratios[name]) if name in ratios else None) for name, speed in speeds.items()
    ]
    print_table("Encoding in turns", ("encoder", "MB/s", f"times as fast as {LIBRARY}"), rows)
    for title, figures in (
        ("Tokens saved over BPE by the vocabulary alone", saved),
        ("Tokens saved over BPE of one size", trained),
    ):
        cells = [(row["language"], row["tokens_bpe"], *(_share(row, mode) for mode in row["modes"])) for row in figures]
        print_table(title, ("language", "BPE", *figures[0]["modes"]), cells)
    if not given.quick:
        protocol = {"order": "in turns, each round rotated", "rounds": rounds, "lines": lines, "bytes": num_bytes}
        named = {"vocabulary": given.vocabulary.name, "protocol": protocol, "mb_a_second": speeds, "speedups": ratios}
        append_record(RESULTS, "tokenizers side by side", {**named, "saved": saved, "trained": trained})


SPEED_COLUMNS = ("encoder", "MB/s", "times as fast as tokenizers")
SAVED_COLUMNS = (
    "language",
    "tokens by BPE",
    "greedy saves",
    "exact saves",
    "lines that exact changes",
)
TRAINED_COLUMNS = ("language", "tokens by BPE", *(f"{name} saves" for name in (SUPERBPE, KL3M, WINDOWS)))


def last_record() -> dict[str, Any]:
    """The last line of the record.

    Raises:
        ConfigError: There is none.
    """
    if not RESULTS.is_file():
        raise ConfigError(f"{RESULTS} does not exist; run python -m trt_compress.tools.bench.tokenizers first.")
    record: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8").splitlines()[-1])
    return record


def caption(record: dict[str, Any]) -> str:
    """With what it was measured, in a line."""
    device, protocol = record["device"], record["protocol"]
    return (
        f"`{record['vocabulary']}`, {protocol['bytes'] / 1e6:.2f} MB of lines in turns, {device['cpu']}, one thread, "
        f"commit {record['commit']}, {record['date'][:10]}."
    )


def speed_rows(record: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Each encoder with its speed."""
    ratios = record["speedups"]
    return [
        (name, f"{speed:.2f}", speedup_text(ratios[name]) if name in ratios else "1")
        for name, speed in record["mb_a_second"].items()
    ]


def saved_rows(record: dict[str, Any]) -> list[tuple[str, ...]]:
    """Each language with what is saved over BPE by the vocabulary alone."""
    return [
        (
            row["language"],
            str(row["tokens_bpe"]),
            _share(row, GREEDY),
            _share(row, EXACT),
            f"{row['lines_that_differ'][EXACT] / row['lines']:.1%}",
        )
        for row in record["saved"]
    ]


def trained_rows(record: dict[str, Any]) -> list[tuple[str, ...]]:
    """Each language with what is saved over BPE of the same size, on lines that none has seen."""
    return [
        (row["language"], str(row["tokens_bpe"]), *(_share(row, name) for name in (SUPERBPE, KL3M, WINDOWS)))
        for row in record["trained"]
    ]


def encoders_of(vocabulary: Path, pattern: str | None) -> dict[str, Encode]:
    """All encoders of one vocabulary by their names.

    Raises:
        ConfigError: It is not in the form of tiktoken.
        UnsupportedError: The package tiktoken is not installed.
    """
    try:
        tiktoken: Any = import_module("tiktoken")
    except ModuleNotFoundError:
        raise UnsupportedError(
            "This benchmark needs 'tiktoken', which is not installed.", hint="pip install tiktoken"
        ) from None
    with reading(f"'{vocabulary}'", "give a vocabulary in the form of tiktoken"):
        content = read_regular(vocabulary, limit=1 << 28)
        ranks = read_ranks(unpacked(content, 1 << 28) if content[:2] == b"\x1f\x8b" else content)
    rule = pattern_for(vocabulary.name, pattern, f"'{vocabulary}'")
    theirs = tiktoken.Encoding(vocabulary.stem, pat_str=rule, mergeable_ranks=ranks, special_tokens={})
    source = open_tokenizer(vocabulary, pattern=pattern)
    alone = vocabulary_only(source)
    assert isinstance(source.encoder, Tokenizer)
    library = source.encoder.library
    return {
        LIBRARY: lambda text: list(library.encode(text, add_special_tokens=False).ids),
        TIKTOKEN: lambda text: list(theirs.encode_ordinary(text)),
        GREEDY: lambda text: alone.encode(text, "greedy"),
        EXACT: lambda text: alone.encode(text, "exact"),
    }


def _check(encoders: dict[str, Encode], lines: Sequence[str]) -> None:
    for line in lines:
        own, theirs, greedy, exact = (encoders[name](line) for name in (LIBRARY, TIKTOKEN, GREEDY, EXACT))
        if own != theirs or len(exact) > min(len(own), len(greedy)):
            raise InternalError(f"The encoders do not agree on {line[:60]!r}: {own[:8]}, {theirs[:8]}, {exact[:8]}.")


def _in_turns(encoders: dict[str, Encode], lines: Sequence[str], rounds: int) -> dict[str, list[int]]:
    """Nanoseconds of each encoder for all lines, a value a round; what they remember is from the lines themselves."""
    names = list(encoders)
    times: dict[str, list[int]] = {name: [] for name in names}
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            encode = encoders[name]
            start = time.perf_counter_ns()
            for line in lines:
                encode(line)
            times[name].append(time.perf_counter_ns() - start)
    return times


def _saved(encoders: dict[str, Encode], file: TextFile) -> dict[str, Any]:
    lines = file.text.splitlines()
    found = {name: [encoders[name](line) for line in lines] for name in (LIBRARY, GREEDY, EXACT)}
    counts = {name: np.array([len(ids) for ids in parts], np.float64) for name, parts in found.items()}
    return {
        "language": file.path.stem,
        "lines": len(lines),
        "tokens_bpe": int(counts[LIBRARY].sum()),
        "modes": {mode: _change(counts[mode], counts[LIBRARY]) for mode in (GREEDY, EXACT)},
        "lines_that_differ": {
            mode: sum(one != other for one, other in zip(found[mode], found[LIBRARY], strict=True))
            for mode in (GREEDY, EXACT)
        },
    }


def _trained(files: Sequence[TextFile], size: int, step: Callable[[str], object]) -> list[dict[str, Any]]:
    """What is trained against BPE of the same size, and windows, on lines that none of them has seen."""
    seen = ["\n".join(file.text.splitlines()[::2]) for file in files]
    plain = _counter("bpe", seen, size)
    counters = {name: _counter(kind, seen, size) for name, kind in _TRAINED.items()}
    model = read_model()
    counters[WINDOWS] = lambda line: len(in_windows(line.encode(), model, _WINDOW_BITS).words)
    found = []
    for file in files:
        step(f"counting {file.name}")
        lines = file.text.splitlines()[1::2]
        theirs = np.array([plain(line) for line in lines], np.float64)
        modes = {
            name: _change(np.array([count(line) for line in lines], np.float64), theirs)
            for name, count in counters.items()
        }
        found.append({"language": file.path.stem, "lines": len(lines), "tokens_bpe": int(theirs.sum()), "modes": modes})
    return found


def _counter(kind: Kind, texts: Sequence[str], size: int) -> Callable[[str], int]:
    library = train(texts, TrainingPlan(kind=kind, size=size)).library
    return lambda line: len(library.encode(line, add_special_tokens=False).ids)


def _change(ours: "np.ndarray[Any, Any]", theirs: "np.ndarray[Any, Any]") -> dict[str, Any]:
    low, high = ratio_interval(ours, theirs)
    return {"tokens": int(ours.sum()), "ratio": float(ours.sum() / theirs.sum()), "low": low, "high": high}


def _share(row: dict[str, Any], mode: str) -> str:
    found = row["modes"][mode]
    interval = "" if found["low"] is None else f" [{1 - found['high']:.2%}, {1 - found['low']:.2%}]"
    return f"{1 - found['ratio']:.2%}{interval}"


if __name__ == "__main__":
    sys.exit(main())
