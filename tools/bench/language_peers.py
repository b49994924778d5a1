"""Language models beside others: `python -m trt_compress.tools.bench.language_peers --gguf FILE`.

A GGUF file is read by llama.cpp as it is; as bundles with INT4 weights, exported here unless they are given; and by
onnxruntime-genai as its own model builder quantizes the same weights to 4 bits. Each runtime is a process of its own,
in an environment of its own, which is made under `--environments` unless a Python is given. For each number of threads
and each fill they read the same prompt and then the same tokens one by one, in turns. The ratios are medians over pairs
of the same round. One JSON line is appended to `tools/bench/results/language_peers.jsonl`.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trt_compress.children import PIPE, Process, find_program, python_command, run, started
from trt_compress.errors import ConfigError, InternalError
from trt_compress.plugins.build import build as build_native
from trt_compress.runtime.measure.latency import speedup
from trt_compress.strays import temporary_folder
from trt_compress.tools.bench.environments import FOLDER, environment, require_done
from trt_compress.tools.bench.records import append_record, speedup_text
from trt_compress.tools.console import print_table, progress

RESULTS = Path(__file__).parent / "results" / "language_peers.jsonl"
PEER = Path(__file__).with_name("peer.py")
LLAMA, GENAI, OURS = "llama.cpp", "onnxruntime-genai", "trt-compress"
PACKAGES = {
    LLAMA: ("llama-cpp-python",),
    GENAI: ("onnxruntime-genai", "onnx", "onnx-ir", "torch", "transformers"),
}
CONTEXT = 8192
_FILLS = (128, 2048, 8000)
_FORMS = ("4:128", "4")  # of the second one many GGUF files are, which then stay the same numbers
_TURN = 8  # tokens that are read one by one before it is the next one's turn
_INSTRUCTIONS = {
    "avx": "AVX",
    "avx2": "AVX2",
    "fma": "FMA",
    "f16c": "F16C",
    "bmi2": "BMI2",
    "avx512f": "AVX512",
    "avx512vbmi": "AVX512_VBMI",
    "avx512_vnni": "AVX512_VNNI",
    "avx512_bf16": "AVX512_BF16",
}
_REST_S = 0.02  # until no thread waits in a busy loop any more, which would take a core from the next one


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerSide:
    """One runtime with its model.

    Attributes:
        name: In the record.
        runtime: `LLAMA`, `GENAI` or `OURS`.
        model: File or folder.
        python: Of its environment; None: this one.
    """

    name: str
    runtime: str
    model: Path
    python: Path | None = None


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", type=Path, required=True, metavar="FILE", help="the model")
    parser.add_argument(
        "--weights-bits", nargs="+", default=list(_FORMS), metavar="FORM", help="of the bundles that are exported"
    )
    parser.add_argument("--bundle", type=Path, action="append", metavar="DIR", help="instead of an export; several may")
    parser.add_argument("--genai-model", type=Path, metavar="DIR", help="instead of running the model builder")
    parser.add_argument("--llama-python", type=Path, metavar="FILE", help="the Python that has llama-cpp-python")
    parser.add_argument("--genai-python", type=Path, metavar="FILE", help="the Python that has onnxruntime-genai")
    parser.add_argument("--environments", type=Path, metavar="DIR", default=FOLDER)
    parser.add_argument("--without", action="append", default=[], choices=(LLAMA, GENAI), help="leave one out")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], metavar="N")
    parser.add_argument("--fill", type=int, nargs="+", default=list(_FILLS), metavar="N", help="tokens of the prompt")
    parser.add_argument("--rounds", type=int, default=12, metavar="N", help=f"turns of {_TURN} steps each")
    parser.add_argument("--quick", action="store_true", help="little is timed, nothing recorded: to see that it runs")
    options = parser.parse_args(arguments)
    rounds = 2 if options.quick else options.rounds
    if min(*options.fill, *options.threads, rounds) < 1 or max(options.fill) + _TURN * (rounds + 1) > CONTEXT:
        raise ConfigError(f"Fills and steps go up to {CONTEXT} tokens; give numbers of at least 1 within that.")
    with progress("language models") as step, temporary_folder("bench") as folder:
        step("building the native operators")
        build_native(only=("onnxruntime",))
        sides = _sides(options, folder, step)
        tokens = _tokens(next(side.model for side in sides if side.runtime == OURS))
        points = [
            _point(sides, threads, fill, tokens, rounds, options.quick, step)
            for threads in options.threads
            for fill in options.fill
        ]
    print_table("tokens/s", ("threads, fill", "side", "prompt", "decode", "first token", "peak"), _rows(points))
    print_table("times as fast as", ("threads, fill", "sides", "prompt", "decode", "same token"), _ratios(points))
    if not options.quick:
        protocol = {"order": "in turns, each round rotated", "rounds": rounds, "steps_a_turn": _TURN, "batch": 1}
        append_record(RESULTS, "language models beside others", {"points": points, "protocol": protocol})
    return 0


def _sides(options: argparse.Namespace, folder: Path, step: Callable[[str], None]) -> list[PeerSide]:
    gguf = options.gguf.absolute()
    if not gguf.is_file():
        raise ConfigError(f"--gguf {gguf} is no file; give a model in GGUF.")
    bundles = [path.absolute() for path in options.bundle or ()]
    for form in () if bundles else options.weights_bits:
        step(f"exporting {form}")
        bundles.append(folder / f"bundle-{form.replace(':', '-')}")
        sizes = ("--context", str(CONTEXT), "--batch", "1")
        store = ("--weights-bits", form, "--cache-dtype", "fp16")  # as llama.cpp keeps its own
        require_done(run(python_command("trt_compress", "export", f"gguf:{gguf}", *sizes, *store, "-o", bundles[-1])))
    names = [f"{OURS}, {_form(bundle)}" for bundle in bundles]
    sides = [
        PeerSide(name=name if names.count(name) == 1 else f"{name}, {bundle.name}", runtime=OURS, model=bundle)
        for name, bundle in zip(names, bundles, strict=True)
    ]
    if LLAMA not in options.without:
        python = options.llama_python or _environment(LLAMA, options.environments, step)
        sides.append(PeerSide(name=LLAMA, runtime=LLAMA, model=gguf, python=python))
    if GENAI not in options.without:
        python = options.genai_python or _environment(GENAI, options.environments, step)
        model = options.genai_model or _genai_model(gguf, python, folder, step)
        sides.append(PeerSide(name=GENAI, runtime=GENAI, model=model.absolute(), python=python))
    return sides


def _form(bundle: Path) -> str:
    from trt_compress.format.bundle import Bundle

    recipe = Bundle.open(bundle, check_hashes=False).manifest.recipe
    cache = recipe.get("cache_dtype")
    return f"{recipe.get('weights_bits') or 'not quantized'}{f', cache in {cache}' if cache else ''}"


def _environment(runtime: str, folder: Path, step: Callable[[str], None]) -> Path:
    """The Python of a runtime's environment, which is made where it is not there."""
    return environment(runtime, PACKAGES[runtime], folder, step, {"CMAKE_ARGS": _instructions()})


def _instructions() -> str:
    """How llama.cpp is compiled: for all that this processor can do but AMX.

    With AMX a prompt of a model in Q4_1 ends its process with a general protection fault (llama-cpp-python 0.3.36 on a
    virtual Xeon of the fourth generation).
    """
    cpu = Path("/proc/cpuinfo")
    flags = set(cpu.read_text(errors="replace").split()) if cpu.is_file() else set[str]()
    if "amx_tile" not in flags:
        return "-DGGML_NATIVE=ON"
    return " ".join(
        ["-DGGML_NATIVE=OFF", *(f"-DGGML_{name}=ON" for flag, name in _INSTRUCTIONS.items() if flag in flags)]
    )


def _genai_model(gguf: Path, python: Path, folder: Path, step: Callable[[str], None]) -> Path:
    """What onnxruntime-genai's model builder makes of the same weights: 4 bits by 32, inputs rounded to 8 bits."""
    step("running onnxruntime-genai's model builder")
    checkpoint, made = folder / "checkpoint", folder / "genai"
    _write_checkpoint(gguf, checkpoint)
    builder: list[str | Path] = [
        "-m",
        "onnxruntime_genai.models.builder",
        "-i",
        checkpoint,
        "-o",
        made,
        "-c",
        folder / "downloads",
    ]
    form = ["-p", "int4", "-e", "cpu", "--extra_options", "int4_block_size=32", "int4_accuracy_level=4"]
    command: list[str | Path] = [python, *builder, *form]
    require_done(run(command, folder=folder))
    return made


def _write_checkpoint(gguf: Path, folder: Path) -> None:
    """The model as Hugging Face keeps one, its weights in float16."""
    from trt_compress.models.language.gguf_model import GgufModel
    from trt_compress.models.language.written import Planned, config_of, tensors_of, write_checkpoint

    source = GgufModel(gguf)
    config = {**config_of(source), "torch_dtype": "float16"}
    folder.mkdir()
    files = {Path(name).name: content for name, content in source.assets().files.items()}
    files["tokenizer_config.json"] = json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}).encode()

    def halved(tensor: Planned) -> Planned:
        return tensor._replace(read=lambda: tensor.read().half())

    write_checkpoint(folder, [halved(each) for each in tensors_of(source)], config, files)


def _tokens(bundle: Path) -> list[int]:
    """Text that every Python has, as the model reads it."""
    from pydoc_data.topics import topics

    from trt_compress.runtime.generate.text import BundleText, open_bundle

    text = BundleText(open_bundle(bundle, check_hashes=False))
    try:
        return text.encode("\n\n".join(topics.values())[:200_000], special=False)
    finally:
        text.close()


class _Child:
    """A side that runs."""

    def __init__(self, side: PeerSide, threads: int, context: int, stack: ExitStack) -> None:
        self.side = side
        given = [side.runtime, str(side.model), str(threads), str(context)]
        module = "trt_compress.tools.bench.peer"
        command: list[str | Path] = [*python_command(module, *given)]
        if side.python is not None:
            command = [side.python, "-I", PEER, *given]
        if find_program(command[0]) is None:
            raise ConfigError(f"{side.name}: '{command[0]}' is no program; give the Python of its environment.")
        folder = stack.enter_context(temporary_folder("peer"))
        self._errors = stack.enter_context((folder / "errors").open("w+b"))
        self._process: Process[bytes] = stack.enter_context(
            started(command, given=PIPE, output=PIPE, errors=self._errors)
        )
        stack.callback(self._end)
        self.began = self._answer()
        self.peak_bytes = 0

    def ask(self, what: str, tokens: Sequence[int]) -> dict[str, Any]:
        """Have it do something, and leave it alone until it has come to rest."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{json.dumps([what, list(tokens)])}\n".encode())
        self._process.stdin.flush()
        found = self._answer()
        self.peak_bytes = found["peak_bytes"]
        time.sleep(_REST_S)
        return found

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._errors.seek(0)
            said = self._errors.read().decode(errors="replace").strip()
            raise InternalError(f"{self.side.name} ended instead of answering: {said[-600:]}")
        found: dict[str, Any] = json.loads(line)
        return found

    def _end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()


def _point(
    sides: Sequence[PeerSide],
    threads: int,
    fill: int,
    tokens: Sequence[int],
    rounds: int,
    quick: bool,
    step: Callable[[str], None],
) -> dict[str, Any]:
    """All figures of one number of threads and one fill."""
    context = fill + _TURN * (rounds + 1)
    prompts = 1 if quick else 6 if fill <= 256 else 3 if fill <= 2048 else 2
    prompt_ns: dict[str, list[int]] = {side.name: [] for side in sides}
    steps_ns: dict[str, list[list[int]]] = {side.name: [] for side in sides}
    largest: dict[str, list[int]] = {side.name: [] for side in sides}
    with ExitStack() as stack:
        children = []
        for side in sides:
            step(f"{threads} threads, {fill} tokens: loading {side.name}")
            children.append(_Child(side, threads, context, stack))
        for child in children:
            child.ask("prompt", tokens[:64])
            child.ask("steps", tokens[64:68])
        for turn in range(prompts):
            step(f"{threads} threads: prompt {turn + 1} of {prompts}, {fill} tokens")
            for child in _rotated(children, turn):
                prompt_ns[child.side.name] += child.ask("prompt", tokens[:fill])["ns"]
        for turn in range(rounds + 1):
            step(f"{threads} threads: steps behind {fill} tokens, round {turn} of {rounds}")
            for child in _rotated(children, turn):
                first = fill + _TURN * turn
                found = child.ask("steps", tokens[first : first + _TURN])
                if turn:  # the first one is to warm up
                    steps_ns[child.side.name].append(found["ns"])
                    largest[child.side.name] += found["largest"]
    return {
        "threads": threads,
        "fill": fill,
        "sides": {
            child.side.name: {
                "version": child.began["version"],
                "load_s": round(child.began["load_ns"] / 1e9, 3),
                "prompt_tokens_per_s": round(fill / statistics.median(prompt_ns[child.side.name]) * 1e9, 2),
                "first_token_ms": round(statistics.median(prompt_ns[child.side.name]) / 1e6, 2),
                "decode_tokens_per_s": round(1e9 / statistics.median(sum(steps_ns[child.side.name], [])), 2),
                "peak_mb": round(child.peak_bytes / 1e6, 1),
            }
            for child in children
        },
        "beside": [
            {
                "side": ours.name,
                "over": other.name,
                "prompt": speedup(prompt_ns[ours.name], prompt_ns[other.name]).to_json(),
                "decode": speedup(*([sum(turn) for turn in steps_ns[side.name]] for side in (ours, other))).to_json(),
                "same_token": round(
                    statistics.fmean(a == b for a, b in zip(largest[ours.name], largest[other.name], strict=True)), 3
                ),
            }
            for ours in sides
            if ours.runtime == OURS
            for other in sides
            if other is not ours
        ],
    }


def _rotated(children: Sequence[_Child], turn: int) -> list[_Child]:
    first = turn % len(children)
    return [*children[first:], *children[:first]]


def _rows(points: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    return [
        (
            f"{point['threads']}, {point['fill']}",
            name,
            f"{side['prompt_tokens_per_s']:.0f}",
            f"{side['decode_tokens_per_s']:.1f}",
            f"{side['first_token_ms']:.0f} ms",
            f"{side['peak_mb']:.0f} MB",
        )
        for point in points
        for name, side in point["sides"].items()
    ]


def _ratios(points: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    return [
        (
            f"{point['threads']}, {point['fill']}",
            f"{pair['side']} over {pair['over']}",
            speedup_text(pair["prompt"]),
            speedup_text(pair["decode"]),
            f"{pair['same_token']:.0%}",
        )
        for point in points
        for pair in point["beside"]
    ]


if __name__ == "__main__":
    raise SystemExit(main())
