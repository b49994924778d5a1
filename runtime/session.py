"""Run a bundle: check what comes in, feed the graphs in order, carry the state from one run to the next."""

import logging
import threading
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np

from trt_compress.errors import BundleError, ConfigError, ShapeError, UnsupportedError
from trt_compress.format.bundle import Bundle
from trt_compress.format.manifest import Graph, Manifest, State, TensorInfo
from trt_compress.plugins import library as native_library
from trt_compress.plugins.library import Absent, Library
from trt_compress.runtime.backends.ort import OperatorPath, OrtGraph, operator_paths
from trt_compress.runtime.onnx_source import OnnxSource
from trt_compress.runtime.state import StateTensor
from trt_compress.suggest import did_you_mean

Array = np.ndarray[Any, np.dtype[Any]]

BACKENDS = ("ort-cpu", "ort-cuda")

_LOGGER = logging.getLogger(__name__)
_NOT_ASKED = Absent("The native operators were not asked for.")


class GraphRunner(Protocol):
    """One loaded graph of any backend."""

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run the graph on all of its inputs and return all of its outputs, by bare name."""
        ...


class Session:
    """A loaded bundle.

    `run` runs all opened graphs in order, `run_graph` one of them. With one graph, inputs and outputs go by their own
    names; with several, by `graph.tensor`, and what a link or a state feeds or takes is not among them.

    Several threads may run graphs without states at the same time. A state is the history of one caller: while a run
    carries it on, a run of another thread that needs it, and `reset`, are refused.

    Attributes:
        bundle: What was opened.
        backend: What runs it.
        native: The library whose operators run in place of their ONNX bodies, or None.
        native_reason: Why there is none, in one sentence: not built, no home, somebody else's, not asked for, …; None
            where the native operators are taken.
        graphs: Names of the graphs that are loaded, in order.
        inputs: What `run` takes, by name.
        outputs: What `run` returns, by name.
        handed_on: What one graph hands on to another, by name; `run` returns it on request.
    """

    def __init__(
        self,
        bundle: Bundle,
        backend: str,
        runners: Mapping[str, GraphRunner],
        native: Library | Absent = _NOT_ASKED,
    ) -> None:
        manifest = bundle.manifest
        self.bundle = bundle
        self.backend = backend
        self.native = native if isinstance(native, Library) else None
        self.native_reason = native.reason if isinstance(native, Absent) else None
        self._runners = dict(runners)
        self._graphs = {graph.name: graph for graph in manifest.graphs if graph.name in runners}
        self.graphs = tuple(self._graphs)
        self._states = {state.key: StateTensor(state, bundle) for state in manifest.states if state.graph in runners}
        self._every_key = frozenset(self._states)
        self._carried: list[frozenset[str]] = []  # states of the runs that are going on
        self._carried_lock = threading.Lock()  # held for an instant, never while a graph runs
        self._states_of = {
            name: tuple(state for state in manifest.states if state.graph == name) for name in self._graphs
        }
        self._keys_of = {name: frozenset(state.key for state in mine) for name, mine in self._states_of.items()}
        self._links = {
            link.to: link.source
            for link in manifest.links
            if {link.to.partition(".")[0], link.source.partition(".")[0]} <= self._graphs.keys()
        }
        graphs = tuple(self._graphs.values())
        states = [state for mine in self._states_of.values() for state in mine]
        state_inputs = {f"{state.graph}.{state.input}" for state in states}
        state_outputs = {f"{state.graph}.{state.output}" for state in states}
        self._public_inputs = _named(graphs, "inputs", hidden={*self._links, *state_inputs})
        self._public_outputs = _named(graphs, "outputs", hidden={*self._links.values(), *state_outputs})
        self.inputs = {self._public_name(name): info for name, info in self._public_inputs.items()}
        self.outputs = {self._public_name(name): info for name, info in self._public_outputs.items()}
        every_output = _named(graphs, "outputs", hidden=set())
        self.handed_on = {name: every_output[name] for name in dict.fromkeys(self._links.values())}
        _refuse_foreign_dtypes({name: info.dtype for name, info in {**self.inputs, **self.outputs}.items()})
        _refuse_foreign_dtypes({f"{state.graph}.{state.input}": state.dtype for state in states})

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
            backend: "ort-cpu" or "ort-cuda".
            threads: Threads of one operator on the CPU; None leaves the number to the backend.
            spin: Threads wait for work in a busy loop: faster while a session is alone, but two sessions in one
                process then take the cores from each other.
            check_hashes: Compare the hash of every file, of those that are loaded with what is in memory; without it
                what `Bundle.open` says holds. A bundle that is open already keeps to what it was opened with.
            native: The native operators for the CPU: True needs them, False runs the ONNX bodies, a path is the library
                to take; None takes them if `trt-compress plugins build` made them from these sources. What others
                could have put into the cache is not taken; a path that you give may be another user's, but not one that
                everybody may write to. `session.native`, `session.native_reason` and `session.operator_paths()` say
                what was taken, and why not.
            graphs: Names of the graphs to load; None loads all. An input that a graph left out would feed has to be
                given to `run`, and an output for it is returned.
            require_digest: The digest that the bundle must have, or several of which it must have one, as
                `Bundle.open` takes them.

        Raises:
            BundleError: The bundle cannot be read, has no such graph, a graph is not what the manifest says, or its
                digest is not the one that is required.
            ConfigError: An unknown backend, `threads` below 1, or `require_digest` is no digest.
            PluginError: The native library is not there, or is not one that may be loaded here.
            UnsupportedError: The backend is not installed, or this machine cannot run it.
        """
        if backend not in BACKENDS:
            near = did_you_mean(str(backend), BACKENDS)
            raise ConfigError(f"Unknown backend '{backend}'; allowed are {', '.join(BACKENDS)}.{near}")
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
        chosen = _native_library(native, backend, bundle.manifest)
        library = chosen if isinstance(chosen, Library) else None
        wanted = _wanted(bundle.manifest, graphs)
        runners = {graph.name: OrtGraph(bundle, graph, backend, threads, spin, library) for graph in wanted}
        for name in set(unread).difference(*(runner.files for runner in runners.values())):  # a graph's, and not taken
            bundle.check(name)
        return cls(bundle, backend, runners, chosen)

    def __repr__(self) -> str:
        if not self._runners:
            return f"<Session {self.bundle.manifest.name}, closed>"
        takes, gives = (_signature(tensors) for tensors in (self.inputs, self.outputs))
        states = f", {len(self._states)} state{'s'[: len(self._states) > 1]}" if self._states else ""
        native = ", native operators" if self.native else ""
        return f"<Session {self.bundle.manifest.name} on {self.backend}{native}: {takes} → {gives}{states}>"

    def run(self, inputs: Mapping[str, Array] | Array, *, handed_on: bool = False) -> dict[str, Array]:
        """Run all opened graphs once.

        Args:
            inputs: Array by name, in the dtype and shape that `self.inputs` gives; nothing is cast. Where there is one
                input, its array alone will do.
            handed_on: Also return what `self.handed_on` lists: the code numbers of a codec, for example.

        Returns:
            Array by name, as `self.outputs` lists them.

        Raises:
            ConfigError: An input is missing or unknown, the session was closed, another thread runs it and it has
                states, or several graphs carry on the same state, so that one of them has to be chosen.
            ShapeError: An input has another dtype or shape, axes with the same symbol differ, or a state would not fit.
                The states stay as they were.
            UnsupportedError: The backend failed.
        """
        self._require_open()
        self._refuse_alternatives()
        inputs = _by_name(inputs, self.inputs)
        symbols = _check_inputs(inputs, self.inputs)
        given = {name: inputs[self._public_name(name)] for name in self._public_inputs}
        values = self._run(self._graphs, given, symbols)
        found = {self._public_name(name): values[name] for name in self._public_outputs}
        return found | {name: values[name] for name in self.handed_on} if handed_on else found

    def run_graph(self, name: str, inputs: Mapping[str, Array] | Array) -> dict[str, Array]:
        """Run one of the opened graphs, with its states.

        Args:
            name: The graph.
            inputs: Array by the graph's own names, as `inputs_of` gives them; linked inputs too. Where there is one
                input, its array alone will do.

        Returns:
            Array by the graph's own names, as `outputs_of` lists them.

        Raises:
            ConfigError: A graph that is not loaded, and as `run`.
            ShapeError: As `run`.
            UnsupportedError: As `run`.
        """
        self._require_open()
        inputs = _by_name(inputs, self.inputs_of(name))
        symbols = _check_inputs(inputs, self.inputs_of(name))
        values = self._run([name], {f"{name}.{key}": value for key, value in inputs.items()}, symbols)
        return {key: values[f"{name}.{key}"] for key in self.outputs_of(name)}

    def inputs_of(self, name: str) -> dict[str, TensorInfo]:
        """What `run_graph` takes for this graph: all inputs but the states.

        Raises:
            ConfigError: The graph is not loaded.
        """
        states = {state.input for state in self._of(name)}
        return {info.name: info for info in self._graphs[name].inputs if info.name not in states}

    def outputs_of(self, name: str) -> dict[str, TensorInfo]:
        """What `run_graph` returns for this graph: all outputs but the new states.

        Raises:
            ConfigError: The graph is not loaded.
        """
        states = {state.output for state in self._of(name)}
        return {info.name: info for info in self._graphs[name].outputs if info.name not in states}

    def operator_paths(self) -> dict[str, OperatorPath]:
        """How each operator of ours runs, by `graph/node`: "native", or "function" for its ONNX body.

        Read from the graphs as ONNX Runtime prepares them, which takes about as long as opening the bundle.
        """
        paths: dict[str, OperatorPath] = {}
        for graph in self._graphs.values():
            with OnnxSource(self.bundle, graph.file) as source:
                found = operator_paths(source, self.native)
                source.confirm()
            paths |= {f"{graph.name}/{node}": path for node, path in found.items()}
        return paths

    def reset(self) -> None:
        """Forget the states: the next run starts from their initial values.

        Raises:
            ConfigError: Another thread runs a graph that has states.
        """
        self._claim(self._every_key)
        try:
            self._forget()
        finally:
            self._give_back(self._every_key)

    def close(self) -> None:
        """Let go of the loaded graphs and the states; a run that another thread is in ends as if it had been first."""
        self._runners.clear()
        self._forget()

    def __enter__(self) -> "Session":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, graphs: Collection[str], given: Mapping[str, Array], symbols: Mapping[str, int]) -> dict[str, Array]:
        """Run graphs in order and keep their new states; returns every value, as `graph.tensor`."""
        values, runners = dict(given), dict(self._runners)
        keys = self._keys_of[next(iter(graphs))] if len(graphs) == 1 else self._every_key
        states = [state for name in graphs for state in self._states_of[name]]
        self._claim(keys)
        try:
            for state in states:
                values[f"{state.graph}.{state.input}"] = self._states[state.key].value(symbols)
            for name in graphs:
                if name not in runners:  # another thread closed the session
                    self._require_open()
                feed = {info.name: self._value(values, f"{name}.{info.name}") for info in self._graphs[name].inputs}
                values |= {f"{name}.{key}": value for key, value in runners[name].run(feed).items()}
            for state in states:
                self._states[state.key].check(values[f"{state.graph}.{state.output}"], symbols)
            for state in states:
                self._states[state.key].keep(values[f"{state.graph}.{state.output}"])
        finally:
            self._give_back(keys)
        return values

    def _claim(self, states: frozenset[str]) -> None:
        """Have states for oneself; whoever else needs one of them meanwhile is refused, and waits for nothing."""
        if not states:
            return
        with self._carried_lock:
            for carried in self._carried:
                if not states.isdisjoint(carried):
                    raise ConfigError(
                        f"Another thread is running this session, and its states ({_some(states)}) hold the history of "
                        "one caller; open the bundle once for each thread."
                    )
            self._carried.append(states)

    def _give_back(self, states: frozenset[str]) -> None:
        if states:
            with self._carried_lock:
                self._carried.remove(states)

    def _forget(self) -> None:
        for state in self._states.values():
            state.reset()

    def _of(self, name: str) -> tuple[State, ...]:
        if name not in self._graphs:
            raise ConfigError(
                f"The graph '{name}' is not loaded; there are {', '.join(self._graphs)}."
                f"{did_you_mean(name, self._graphs)}"
            )
        return self._states_of[name]

    def _require_open(self) -> None:
        if not self._runners:
            raise ConfigError("The session is closed; open the bundle again.")

    def _refuse_alternatives(self) -> None:
        carried = Counter(state.key for states in self._states_of.values() for state in states)
        for key, count in carried.items():
            if count > 1:
                raise ConfigError(
                    f"The graphs {', '.join(self._graphs)} carry on the same state '{key}', so one run takes one of "
                    "them; call run_graph(NAME, inputs), or open the bundle with graphs=[NAME]."
                )

    def _public_name(self, name: str) -> str:
        return name if len(self._graphs) > 1 else name.partition(".")[2]

    def _value(self, values: Mapping[str, Array], name: str) -> Array:
        given = values.get(name)
        return values[self._links[name]] if given is None else given


def _some(names: Collection[str]) -> str:
    first, *rest = sorted(names)
    return f"'{first}' and {len(rest)} more" if rest else f"'{first}'"


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


def _named(graphs: tuple[Graph, ...], kind: str, hidden: set[str]) -> dict[str, TensorInfo]:
    named = {f"{graph.name}.{info.name}": info for graph in graphs for info in getattr(graph, kind)}
    return {name: info for name, info in named.items() if name not in hidden}


def _refuse_foreign_dtypes(dtypes: Mapping[str, str]) -> None:
    for name, dtype in dtypes.items():
        try:
            np.dtype(dtype)
        except TypeError:
            raise UnsupportedError(
                f"'{name}' is {dtype}, which numpy does not have; export inputs, outputs and states as another."
            ) from None


def _by_name(given: Mapping[str, Array] | Array, expected: Mapping[str, TensorInfo]) -> Mapping[str, Array]:
    """The inputs by name; one array alone is that of the only input."""
    if isinstance(given, Mapping):
        return given
    if len(expected) == 1:
        return dict.fromkeys(expected, given)  # what it is, if no array, is said where inputs are checked
    raise ConfigError(
        f"One {type(given).__name__} was given, and the bundle takes {_signature(expected) or 'no input'}; give a "
        "dictionary of arrays by name."
    )


def _signature(tensors: Mapping[str, TensorInfo]) -> str:
    """Write tensors as `image float32 [batch, 3, 224, 224], size int64 [2]`."""
    return ", ".join(f"{name} {info.dtype} {_shape_text(info.shape)}" for name, info in tensors.items())


def _check_inputs(given: Mapping[str, Array], expected: Mapping[str, TensorInfo]) -> dict[str, int]:
    """Check names, dtypes and shapes; return what each symbol stands for in this run."""
    for name in given:
        if name not in expected:
            near = did_you_mean(str(name), expected)
            raise ConfigError(f"Unknown input '{name}'; the bundle takes {', '.join(expected)}.{near}")
    symbols: dict[str, int] = {}
    for name, info in expected.items():
        if name not in given:
            raise ConfigError(f"Input '{name}' is missing; give {info.dtype} of shape {_shape_text(info.shape)}.")
        _check_input(name, given[name], info, symbols)
    return symbols


def _check_input(name: str, array: object, info: TensorInfo, symbols: dict[str, int]) -> None:
    if not isinstance(array, np.ndarray):
        make = ".detach().cpu().numpy()" if hasattr(array, "detach") else f"numpy.asarray(…, '{info.dtype}')"
        raise ShapeError(
            f"Input '{name}' is a {type(array).__name__}; give a numpy array of {info.dtype}, as {make} makes one."
        )
    if array.dtype != np.dtype(info.dtype):
        raise ShapeError(
            f"Input '{name}' is {array.dtype} and the graph takes {info.dtype}; cast it with .astype('{info.dtype}')."
        )
    shape, allowed = list(array.shape), _shape_text(info.shape)
    if array.ndim != len(info.shape):
        raise ShapeError(
            f"Input '{name}' has {array.ndim} axes, shape {shape}; the graph takes {len(info.shape)}, {allowed}."
        )
    for axis, (length, dim) in enumerate(zip(array.shape, info.shape, strict=True)):
        if isinstance(dim, int) and length != dim:
            raise ShapeError(
                f"Input '{name}' has {length} on axis {axis}, shape {shape}; the graph takes {dim}, {allowed}."
            )
        if isinstance(dim, str) and symbols.setdefault(dim, length) != length:
            raise ShapeError(
                f"Input '{name}' has {length} on axis {axis}, where another input has '{dim}' = {symbols[dim]}; "
                f"make the axes named '{dim}' equal."
            )


def _shape_text(shape: tuple[int | str, ...]) -> str:
    """Write a shape as `[batch, 3, 224, 224]`."""
    return f"[{', '.join(map(str, shape))}]"
