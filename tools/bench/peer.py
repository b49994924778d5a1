"""A runtime of language models as a process that is told line by line what to do: `language_peers` starts several.

Run as a file by the Python of the runtime's own environment: it takes nothing but that runtime and numpy. The command
line names the runtime, the model, the number of threads and the most tokens of a sequence. What it is told is one JSON
list a line: ["prompt", tokens] begins anew and reads these, ["steps", tokens] reads them one by one. Each ends with the
logits behind the last token where numpy can read them. What it answers is one JSON object a line, the first one once
the model is loaded.
"""

import importlib
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol


class Runtime(Protocol):
    """A model that reads one sequence. What a method returns is the token with the largest logit.

    Attributes:
        version: Of the runtime.
    """

    version: str

    def prompt(self, tokens: Sequence[int]) -> int:
        """Begin anew and read all of them."""
        ...

    def step(self, token: int) -> int:
        """Read the next one."""
        ...


class LlamaCpp:
    """llama.cpp by llama-cpp-python: keys and values in float16, as it does by itself."""

    def __init__(self, model: str, threads: int, context: int) -> None:
        self._library = importlib.import_module("llama_cpp")
        self.version = str(self._library.__version__)
        self._llama = self._library.Llama(
            model, n_ctx=context, n_threads=threads, n_threads_batch=threads, n_batch=512, verbose=False
        )

    def prompt(self, tokens: Sequence[int]) -> int:
        """See `Runtime`."""
        self._llama.reset()
        self._llama.eval(list(tokens))
        return self._largest()

    def step(self, token: int) -> int:
        """See `Runtime`."""
        self._llama.eval([token])
        return self._largest()

    def _largest(self) -> int:
        numpy = importlib.import_module("numpy")
        pointer = self._library.llama_get_logits_ith(self._llama.ctx, -1)
        return int(numpy.ctypeslib.as_array(pointer, shape=(self._llama.n_vocab(),)).argmax())


class OnnxRuntimeGenAi:
    """onnxruntime-genai, on a folder that its model builder made."""

    def __init__(self, model: str, threads: int, context: int) -> None:
        self._library = importlib.import_module("onnxruntime_genai")
        self.version = str(self._library.__version__)
        config = self._library.Config(model)
        options = {"session_options": {"intra_op_num_threads": threads, "log_id": "peer"}}
        config.overlay(json.dumps({"model": {"decoder": options}}))
        self._model = self._library.Model(config)
        self._context = context
        self._generator: Any = None

    def prompt(self, tokens: Sequence[int]) -> int:
        """See `Runtime`."""
        self._generator = None
        settings = self._library.GeneratorParams(self._model)
        settings.set_search_options(max_length=self._context, batch_size=1)
        self._generator = self._library.Generator(self._model, settings)
        return self._read(tokens)

    def step(self, token: int) -> int:
        """See `Runtime`."""
        return self._read([token])

    def _read(self, tokens: Sequence[int]) -> int:
        numpy = importlib.import_module("numpy")
        self._generator.append_tokens(numpy.array([tokens], numpy.int32))
        return int(numpy.asarray(self._generator.get_logits()).reshape(-1, self._vocabulary)[-1].argmax())

    @property
    def _vocabulary(self) -> int:
        return int(self._generator.get_logits().shape[-1])


class Ours:
    """A bundle, with the native operators; its caches grow as they have to."""

    def __init__(self, model: str, threads: int, context: int) -> None:
        self.version = str(importlib.import_module("trt_compress.version").__version__)
        sequences = importlib.import_module("trt_compress.runtime.sequences")
        runtime = importlib.import_module("trt_compress.runtime")
        self._new: Callable[..., Any] = sequences.Sequences
        manifest = runtime.Bundle.open(model, check_hashes=False).manifest
        graphs = sequences.graphs_for(manifest)
        self._session = runtime.Session.open(model, threads=threads, native=True, graphs=graphs)
        self._sequences: Any = None
        self._numpy = importlib.import_module("numpy")

    def prompt(self, tokens: Sequence[int]) -> int:
        """See `Runtime`."""
        self._sequences = None
        self._sequences = self._new(self._session, batch=1)
        return int(self._sequences.read([self._numpy.array(tokens)])[0].argmax())

    def step(self, token: int) -> int:
        """See `Runtime`."""
        return int(self._sequences.step([token])[0].argmax())


RUNTIMES: Mapping[str, Callable[[str, int, int], Runtime]] = {
    "llama.cpp": LlamaCpp,
    "onnxruntime-genai": OnnxRuntimeGenAi,
    "trt-compress": Ours,
}


def main(arguments: Sequence[str]) -> None:
    """Do what is told on standard input until that ends."""
    name, model, threads, context = arguments
    start = time.perf_counter_ns()
    made = RUNTIMES[name](model, int(threads), int(context))
    _say({"version": made.version, "load_ns": time.perf_counter_ns() - start, **_memory()})
    for line in sys.stdin:
        what, tokens = json.loads(line)
        if what == "prompt":
            start = time.perf_counter_ns()
            largest = [made.prompt(tokens)]
            took = [time.perf_counter_ns() - start]
        else:
            took, largest = [], []
            for token in tokens:
                start = time.perf_counter_ns()
                largest.append(made.step(token))
                took.append(time.perf_counter_ns() - start)
        _say({"ns": took, "largest": largest, **_memory()})


def _memory() -> dict[str, int]:
    """The most memory that was resident, in bytes; of the system's own count, which a child does not inherit."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return {}
    return {"peak_bytes": next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))}


def _say(answer: Mapping[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
