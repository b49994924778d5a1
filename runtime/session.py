"""Run a bundle: load its graphs, check what comes in, feed the graphs in order."""

import logging
import threading
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from trt_compress.errors import BundleError, ConfigError, UnsupportedError
from trt_compress.format.bundle import SMALL, Bundle
from trt_compress.format.manifest import Engine, Graph, Manifest, State, TensorInfo
from trt_compress.plugins import library as native_library
from trt_compress.plugins.library import Absent, Library
from trt_compress.runtime.backends import BACKENDS, OF_ENGINES, load_engines, load_graph
from trt_compress.runtime.backends.base import Executable, carrier
from trt_compress.runtime.backends.ort import OperatorPath, operator_paths
from trt_compress.runtime.inputs import InputCheck, signature
from trt_compress.runtime.loaded import Loaded, LoadedGraph
from trt_compress.runtime.onnx_source import OnnxSource, shared_bytes
from trt_compress.runtime.states import States
from trt_compress.suggest import not_known

Array = np.ndarray[Any, np.dtype[Any]]

_LOGGER = logging.getLogger(__name__)
_NOT_ASKED = Absent("The native operators were not asked for.")


class Session:
    """A loaded bundle: weights, and what runs them.

    `run` runs all opened graphs in order, `run_graph` one of them. With one graph, inputs and outputs go by their own
    names; with several, by `graph.tensor`, and what a link or a state feeds or takes is not among them.

    What one run leaves for the next is in `States`, of which many may live on one session; without any given, runs go
    on with those of the session itself. Several threads may run a session at the same time: graphs without states, or
    each with states of its own.

    Attributes:
        bundle: What was opened.
        backend: What runs it.
        native: The library whose operators run in place of their ONNX bodies, or None. For engines that of the plugins
            that they were built with.
        native_reason: Why there is none, in one sentence: not built, no home, somebody else's, not asked for, …; None
            where the native operators are taken.
        engines: The records of the engines that run, by graph; none where the ONNX files do.
        graphs: Names of the graphs that are loaded, in order.
        inputs: What `run` takes, by name.
        outputs: What `run` returns, by name.
        handed_on: What one graph hands on to another, by name; `run` returns it on request.
        loaded: The graphs, for what is tied to them.
    """

    def __init__(
        self,
        bundle: Bundle,
        backend: str,
        executables: Mapping[str, Executable],
        native: Library | Absent = _NOT_ASKED,
        engines: Mapping[str, Engine] | None = None,
    ) -> None:
        self.bundle = bundle
        self.backend = backend
        self.engines = dict(engines or {})
        self.native = native if isinstance(native, Library) else None
        self.native_reason = native.reason if isinstance(native, Absent) else None
        self.loaded = Loaded(bundle, executables)
        self._graphs = dict(self.loaded.graphs)  # stays when it is closed, as does what they take and give
        self.graphs = tuple(self._graphs)
        self._own: States | None = None
        self._own_lock = threading.Lock()
        self._links = {
            link.to: link.source
            for link in bundle.manifest.links
            if {link.to.partition(".")[0], link.source.partition(".")[0]} <= self._graphs.keys()
        }
        every_output = {f"{g.name}.{name}": info for g in self._graphs.values() for name, info in g.outputs.items()}
        every_input = {f"{g.name}.{name}": info for g in self._graphs.values() for name, info in g.inputs.items()}
        self._public_inputs = {self._public_name(name): name for name in every_input if name not in self._links}
        linked = set(self._links.values())
        self._public_outputs = {self._public_name(name): name for name in every_output if name not in linked}
        self.inputs = {public: every_input[name] for public, name in self._public_inputs.items()}
        self.outputs = {public: every_output[name] for public, name in self._public_outputs.items()}
        self.handed_on = {name: every_output[name] for name in dict.fromkeys(self._links.values())}
        self._check = InputCheck(self.inputs)
        self._checks = {graph.name: InputCheck(graph.inputs) for graph in self._graphs.values()}
        carried = [{*graph.reads.values()} & {*graph.writes.values()} for graph in self._graphs.values()]
        written = Counter(key for keys in carried for key in keys)
        self._alternative = next((key for key, count in written.items() if count > 1), None)
        _refuse_foreign_dtypes({name: info.dtype for name, info in {**self.inputs, **self.outputs}.items()})
        _refuse_foreign_states(self.loaded.states)

    @classmethod
    def open(
        cls,
        bundle: str | Path | Bundle,
        *,
        backend: str = "ort-cpu",
        threads: int | None = None,
        spin: bool = True,
        check_hashes: bool = True,
        native: bool | str | Path | None = None,
        graphs: Sequence[str] | None = None,
        require_digest: str | Collection[str] | None = None,
    ) -> "Session":
        """Load a bundle.

        Args:
            bundle: The directory, or a bundle that is open already.
            backend: "ort-cpu" or "ort-cuda" for the ONNX files, "tensorrt" or "rtx" for the engines that
                `trt-compress build` added; of several targets' the first that fits this machine.
            threads: Threads of one operator on the CPU; None leaves the number to the backend.
            spin: Threads wait for work in a busy loop: faster while a session is alone, but two sessions in one
                process then take the cores from each other.
            check_hashes: Compare the hash of every file, of those that are loaded with what is in memory; without it
                what `Bundle.open` says holds. A bundle that is open already keeps to what it was opened with.
            native: The native operators for the CPU: True needs them, False runs the ONNX bodies, a path is the library
                to take; None takes them if `trt-compress plugins build` made them from these sources. What others
                could have put into the cache is not taken; a path that you give may be another user's, but not one that
                everybody may write to. `session.native`, `session.native_reason` and `session.operator_paths()` say
                what was taken, and why not. Engines that were built with plugins need these, and take no others.
            graphs: Names of the graphs to load; None loads all. An input that a graph left out would feed has to be
                given to `run`, and an output for it is returned.
            require_digest: The digest that the bundle must have, or several of which it must have one, as
                `Bundle.open` takes them.

        Raises:
            BundleError: The bundle cannot be read, has no such graph, a graph is not what the manifest says, or its
                digest is not the one that is required.
            ConfigError: An unknown backend, `threads` below 1, or `require_digest` is no digest.
            PluginError: The native library is not there, or is not one that may be loaded here.
            UnsupportedError: The backend is not installed, or this machine cannot run it; an engine was built for
                another GPU, version or driver.
        """
        if backend not in BACKENDS:
            raise ConfigError(not_known("backend", backend, BACKENDS))
        if threads is not None and (not isinstance(threads, int) or threads < 1):
            raise ConfigError(f"threads={threads!r}; give at least 1, or nothing for the backend's own choice.")
        if native is not None and not isinstance(native, bool | str | Path):
            raise ConfigError(f"native={native!r}; give True, False, the path of a library, or nothing.")
        if graphs is not None and (isinstance(graphs, str) or not graphs):
            raise ConfigError(f"graphs={graphs!r}; give a list of at least one name, or nothing for all graphs.")
        if isinstance(bundle, Bundle):
            bundle.require(require_digest)
            return cls._loaded(bundle, backend, threads, spin, native, graphs)
        unread: set[str] = set()

        def later(manifest: Manifest) -> set[str]:
            unread.clear()
            unread.update(n for graph in _wanted(manifest, graphs) for n in (graph.file, *graph.external_data))
            return unread

        how: dict[str, Any] = {"check_hashes": check_hashes, "require_digest": require_digest, "later": later}
        opened = Bundle.open(bundle, **how)
        try:
            return cls._loaded(opened, backend, threads, spin, native, graphs, unread)
        except BundleError:
            if opened.is_current():
                raise
        return cls._loaded(Bundle.open(bundle, **how), backend, threads, spin, native, graphs, unread)  # the new one

    @classmethod
    def _loaded(
        cls,
        bundle: Bundle,
        backend: str,
        threads: int | None,
        spin: bool,
        native: bool | str | Path | None,
        graphs: Sequence[str] | None,
        unread: Collection[str] = (),
    ) -> "Session":
        """Load graphs of a bundle, and check the files that were left to be checked when they are loaded."""
        if backend in OF_ENGINES:
            return cls._of_engines(bundle, backend, native, graphs, unread)
        chosen = _native_library(native, backend, bundle.manifest)
        library = chosen if isinstance(chosen, Library) else None
        wanted = _wanted(bundle.manifest, graphs)
        # What one graph packs the other cannot use: graphs that share large weights would have a copy each. Quantized
        # ones are packed all the same, or they would be dequantized whole in every run.
        pack = len(wanted) == 1 or shared_bytes(bundle, [graph.file for graph in wanted]) <= SMALL
        quantized = {form.graph for form in bundle.manifest.weights if form.group is not None}
        graphs_of = {
            graph.name: load_graph(bundle, graph, backend, threads, spin, library, pack=pack or graph.name in quantized)
            for graph in wanted
        }
        for name in set(unread).difference(*(graph.files for graph in graphs_of.values())):  # a graph's, and not taken
            bundle.check(name)
        return cls(bundle, backend, graphs_of, chosen)

    @classmethod
    def _of_engines(
        cls,
        bundle: Bundle,
        backend: str,
        native: bool | str | Path | None,
        graphs: Sequence[str] | None,
        unread: Collection[str],
    ) -> "Session":
        """Load engines, and check the files that were left to be checked when graphs are loaded, if they are there."""
        executables, chosen = load_engines(bundle, _wanted(bundle.manifest, graphs), backend, native)
        for name in sorted(bundle.manifest.files.keys() & set(unread)):
            bundle.check(name)
        return cls(bundle, backend, executables, chosen.plugins, chosen.records)

    def __repr__(self) -> str:
        if not self.loaded.graphs:
            return f"<Session {self.bundle.manifest.name}, closed>"
        takes, gives = (signature(tensors) for tensors in (self.inputs, self.outputs))
        count = len(self.loaded.states)
        states = f", {count} state{'s'[: count > 1]}" if count else ""
        native = ", native operators" if self.native else ""
        return f"<Session {self.bundle.manifest.name} on {self.backend}{native}: {takes} → {gives}{states}>"

    def new_states(self, *, batch: int | None = None, capacity: int | Mapping[str, int] | None = None) -> States:
        """Begin sequences of their own on this session, as `States` does.

        Args:
            batch: How many; None: as many as the first run brings.
            capacity: The most slots that they may get; None: as many as the bundle allows.

        Raises:
            ConfigError: The session was closed, a number is out of range, or the bundle has no such capacity.
        """
        self._require_open()
        return States(self, batch=batch, capacity=capacity)

    def load_states(self, path: str | Path, *, capacity: int | Mapping[str, int] | None = None) -> States:
        """Read what `States.save` wrote, of this bundle; see `States.load`."""
        self._require_open()
        return States.load(path, self, capacity=capacity)

    @property
    def states(self) -> States:
        """The session's own states, which runs go on with that are given none."""
        own = self._own
        if own is None:
            with self._own_lock:
                if self._own is None:
                    self._own = self.new_states()
                own = self._own
        return own

    def run(
        self, inputs: Mapping[str, Array] | Array, states: States | None = None, *, handed_on: bool = False
    ) -> dict[str, Array]:
        """Run all opened graphs once.

        Args:
            inputs: Array by name, in the dtype and shape that `self.inputs` gives; nothing is cast. Where there is one
                input, its array alone will do.
            states: What the run goes on with, and takes to the next step; None: the session's own.
            handed_on: Also return what `self.handed_on` lists: the code numbers of a codec, for example.

        Returns:
            Array by name, as `self.outputs` lists them.

        Raises:
            ConfigError: An input is missing or unknown, the session was closed, the states are another session's or
                used by another thread, or several graphs carry on the same state, so that one has to be chosen.
            ShapeError: An input has another dtype or shape, axes with the same symbol differ, or a state would not fit.
                The states stay as they were.
            UnsupportedError: The backend failed.
        """
        if self._alternative is not None:
            raise self._several()
        inputs = self._check.by_name(inputs)
        symbols = self._check.symbols(inputs)
        if len(self.graphs) == 1:
            return self._run_one(self.graphs[0], inputs, symbols, states)
        values = {name: inputs[public] for public, name in self._public_inputs.items()}
        self._run_all(values, symbols, states)
        found = {public: values[name] for public, name in self._public_outputs.items()}
        return found | {name: values[name] for name in self.handed_on} if handed_on else found

    def run_graph(
        self, name: str, inputs: Mapping[str, Array] | Array, states: States | None = None
    ) -> dict[str, Array]:
        """Run one of the opened graphs, with its states.

        Args:
            name: The graph.
            inputs: Array by the graph's own names, as `inputs_of` gives them; linked inputs too. Where there is one
                input, its array alone will do.
            states: As for `run`.

        Returns:
            Array by the graph's own names, as `outputs_of` lists them.

        Raises:
            ConfigError: A graph that is not loaded, and as `run`.
            ShapeError: As `run`.
            UnsupportedError: As `run`.
        """
        self._of(name)
        check = self._checks[name]
        inputs = check.by_name(inputs)
        return self._run_one(name, inputs, check.symbols(inputs), states)

    def inputs_of(self, name: str) -> dict[str, TensorInfo]:
        """What `run_graph` takes for this graph: all inputs but the states.

        Raises:
            ConfigError: The graph is not loaded.
        """
        return dict(self._of(name).inputs)

    def outputs_of(self, name: str) -> dict[str, TensorInfo]:
        """What `run_graph` returns for this graph: all outputs but the new states.

        Raises:
            ConfigError: The graph is not loaded.
        """
        return dict(self._of(name).outputs)

    def operator_paths(self) -> dict[str, OperatorPath]:
        """How each operator of ours runs, by `graph/node`: "native", or "function" for its ONNX body.

        Read from the graphs as ONNX Runtime prepares them, which takes about as long as opening the bundle.

        Raises:
            ConfigError: Engines run, whose records count them by operator: `engines[graph].paths`.
        """
        if self.engines:
            raise ConfigError(
                f"The backend '{self.backend}' runs engines, in which operators have no nodes any more; how many "
                "became plugins is in session.engines[GRAPH].paths."
            )
        paths: dict[str, OperatorPath] = {}
        for name in self.graphs:
            with OnnxSource(self.bundle, self.bundle.manifest.graph(name).file) as source:
                found = operator_paths(source, self.native)
                source.confirm()
            paths |= {f"{name}/{node}": path for node, path in found.items()}
        return paths

    def reset(self) -> None:
        """Let the session's own states begin anew.

        Raises:
            ConfigError: Another thread is using them.
        """
        if self._own is not None:
            self._own.reset()

    def close(self) -> None:
        """Let go of the loaded graphs and all states; a run that another thread is in ends as if it had been first."""
        self.loaded.graphs.clear()
        for made in tuple(self.loaded.made):
            made.let_go()

    def __enter__(self) -> "Session":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _run_one(
        self, name: str, inputs: Mapping[str, Array], symbols: Mapping[str, int], states: States | None
    ) -> dict[str, Array]:
        """Run one graph on inputs that were checked, by its own names."""
        graph = self.loaded.graphs.get(name)
        if graph is None:
            raise self._closed()
        if states is not None and states.session is not self:
            raise self._foreign(states)
        if not graph.keys:
            return graph.executable.run(inputs)
        return (states or self._own or self.states).run(graph, symbols, inputs)

    def _run_all(self, values: dict[str, Array], symbols: Mapping[str, int], states: States | None) -> None:
        """Run all graphs in order; what they give is added to the values, as `graph.tensor`."""
        graphs = tuple(self.loaded.graphs.values())
        if not graphs:
            raise self._closed()

        def feed(graph: LoadedGraph) -> dict[str, Array]:
            return {key: self._value(values, f"{graph.name}.{key}") for key in graph.inputs}

        def took(graph: LoadedGraph, outputs: Mapping[str, Array]) -> None:
            for key, value in outputs.items():
                values[f"{graph.name}.{key}"] = value

        if states is not None and states.session is not self:
            raise self._foreign(states)
        if self.loaded.states:
            (states or self.states).run_all(graphs, symbols, feed, took)
        else:
            for graph in graphs:
                took(graph, graph.executable.run(feed(graph)))

    @staticmethod
    def _foreign(states: States) -> ConfigError:
        return ConfigError(
            f"These states are of another session, of '{states.session.loaded.bundle.manifest.name}'; make them by "
            "new_states() of the session that runs them, or save them and load them there."
        )

    def _of(self, name: str) -> LoadedGraph:
        if name not in self._graphs:
            raise ConfigError(not_known("graph", name, self._graphs))
        return self._graphs[name]

    def _require_open(self) -> None:
        if not self.loaded.graphs:
            raise self._closed()

    @staticmethod
    def _closed() -> ConfigError:
        return ConfigError("The session is closed; open the bundle again.")

    def _several(self) -> ConfigError:
        return ConfigError(
            f"The graphs {', '.join(self._graphs)} carry on the same state '{self._alternative}', so one run takes one "
            "of them; call run_graph(NAME, inputs), or open the bundle with graphs=[NAME]."
        )

    def _public_name(self, name: str) -> str:
        return name if len(self._graphs) > 1 else name.partition(".")[2]

    def _value(self, values: Mapping[str, Array], name: str) -> Array:
        given = values.get(name)
        return values[self._links[name]] if given is None else given


def _wanted(manifest: Manifest, graphs: Sequence[str] | None) -> Sequence[Graph]:
    return manifest.graphs if graphs is None else [manifest.graph(name) for name in graphs]


def _native_library(native: bool | str | Path | None, backend: str, manifest: Manifest) -> Library | Absent:
    if native is None and backend != "ort-cpu":
        return Absent(f"The native operators run on the CPU, and the backend is '{backend}'.")
    if native is None and not manifest.operators:
        return Absent("The bundle has none of the operators that there are native forms of.")
    if native is not False and backend != "ort-cpu":
        raise UnsupportedError(
            f"The native operators run on the CPU, and the backend is '{backend}'; leave native=False, or choose the "
            "backend 'ort-cpu'."
        )
    chosen = native_library.choose("onnxruntime", native)
    if isinstance(chosen, Absent):
        _LOGGER.log(logging.WARNING if chosen.foreign else logging.INFO, "%s", chosen.reason)
    return chosen


def _refuse_foreign_dtypes(dtypes: Mapping[str, str]) -> None:
    for name, dtype in dtypes.items():
        try:
            np.dtype(dtype)
        except TypeError:
            raise UnsupportedError(
                f"'{name}' is {dtype}, which numpy does not have; export inputs, outputs and states as another."
            ) from None


def _refuse_foreign_states(states: Mapping[str, State]) -> None:
    for name, state in states.items():
        try:
            carrier(state.dtype)
        except TypeError:
            raise UnsupportedError(
                f"'{name}' is {state.dtype}, of which a byte holds several; export the states as another."
            ) from None
