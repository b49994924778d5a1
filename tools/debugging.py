"""Write what finds the node at which an engine differs: ONNX files, inputs, and ready calls of Polygraphy on them.

The scripts run where TensorRT is; here nothing of TensorRT is loaded. ONNX Runtime reads the graph with its bodies,
TensorRT the form that the target gets, so that one call makes the reference and another compares.
"""

import importlib.util
import io
import os
import re
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trt_compress import strays
from trt_compress.errors import BundleError, ConfigError, UnsupportedError
from trt_compress.export.build import choose_plugins, input_shapes, profile_shapes
from trt_compress.export.forms import source_file, target_file
from trt_compress.export.ranges import BatchRange, lengths_of
from trt_compress.export.targets import TARGETS, Target, get_target
from trt_compress.files import mapped, write_whole
from trt_compress.foreign import reading
from trt_compress.format.bundle import Bundle
from trt_compress.format.manifest import Graph, Manifest
from trt_compress.paths import check_apart, check_new_folder
from trt_compress.plugins.library import refuse_on
from trt_compress.runtime.initial import Initial
from trt_compress.runtime.onnx_nodes import Node, read_nodes
from trt_compress.runtime.onnx_source import copy_graph
from trt_compress.runtime.seeded import load_inputs, random_array, usual_lengths
from trt_compress.suggest import not_known
from trt_compress.tools.against_engine import ALLOWED

Array = np.ndarray[Any, np.dtype[Any]]

_DATA = '''"""The inputs, as `polygraphy --data-loader-script` takes them."""

from pathlib import Path

import numpy as np


def load_data():
    with np.load(Path(__file__).with_name("inputs.npz")) as arrays:
        yield dict(arrays)
'''

_HEAD = """#!/bin/sh
# {what}
# {made}
set -eu
cd -- "$(dirname -- "$0")"
command -v polygraphy > /dev/null || {{
    echo "{name}: 'polygraphy' is not on the path; pip install polygraphy onnxruntime onnx-graphsurgeon." >&2
    exit 2
}}
"""

_PLUGINS = """PLUGINS=${{PLUGINS:-{path}}}
[ -f "$PLUGINS" ] || {{
    echo "{name}: PLUGINS='$PLUGINS' is no file; set it to the library that 'trt-compress plugins list' names." >&2
    exit 2
}}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class DebugFiles:
    """What was written.

    Attributes:
        path: The folder.
        target: Whose form TensorRT reads.
        graph: The graph.
        outputs: The tensors that are compared; none: all outputs of the graph.
        plugins: Whether the calls load the library of plugins.
        reference, compare, reduce: The calls, as the scripts have them.
    """

    path: Path
    target: str
    graph: str
    outputs: tuple[str, ...]
    plugins: bool
    reference: str
    compare: str
    reduce: str

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        values = {name: getattr(self, name) for name in self.__slots__}
        return {**values, "path": str(self.path), "outputs": list(self.outputs)}


def write_debug(
    bundle: str | Path,
    *,
    target: str,
    folder: str | Path,
    graph: str | None = None,
    node: str | None = None,
    output: str | None = None,
    inputs: str | Path | None = None,
    plugins: bool | str | Path | None = None,
    require_digest: str | Collection[str] | None = None,
) -> DebugFiles:
    """Write `run.sh`, which compares ONNX Runtime and TensorRT, `reduce.sh`, which looks for the smallest graph that
    differs, and all that they read.

    Args:
        bundle: The bundle's directory.
        target: A target with engines, whose form of the graph TensorRT reads.
        folder: The folder to make.
        graph: Name of the graph; None: the only one.
        node: A node of it, whose outputs are compared in place of the graph's.
        output: A tensor of it, which is compared in place of the graph's outputs.
        inputs: .npz file with arrays for inputs of the graph, states too; what it leaves out is seeded, and states are
            as they begin.
        plugins: The library: a path, or False for none; None: as the bundle's engine for this target has it, else the
            one that is built here, if TensorRT is.
        require_digest: The digest that the bundle must have, as `Bundle.open` takes it.

    Raises:
        ConfigError: There is no such target with engines, graph, node or tensor, an input does not fit, or the folder
            is there.
        BundleError: The bundle cannot be read.
        UnsupportedError: An input has a dtype that numpy lacks.
        PluginError: The target takes no plugins, or the library is not one that may be loaded.
    """
    chosen, folder = get_target(target), Path(folder)
    if not chosen.is_tensorrt:
        engines = ", ".join(name for name, other in TARGETS.items() if other.is_tensorrt)
        raise ConfigError(f"The target '{target}' has no engine that could differ; give one of {engines}.")
    if node is not None and output is not None:
        raise ConfigError("--node and --output both say what is compared; give one of them.")
    if os.path.lexists(folder):
        raise ConfigError(f"'{folder}' exists; give -o a folder that is not there yet.")
    check_new_folder(folder, "-o")
    opened = Bundle.open(bundle, require_digest=require_digest)
    check_apart({"-o": folder}, {}, [opened.path])
    wanted = _graph(opened.manifest, graph)
    library = _library(opened, chosen, wanted, plugins)
    arrays = _inputs(opened, wanted, None if inputs is None else load_inputs(Path(inputs)))
    try:
        with strays.staged_folder(Path(os.path.realpath(folder))) as staged:
            for part in ("reference", "target"):
                (staged / part).mkdir()
            reference = copy_graph(opened, source_file(opened, wanted), staged / "reference")
            theirs = target_file(opened, wanted, chosen, with_plugins=library is not None, folder=staged / "target")
            compared = _compared(reference, theirs, node, output)
            packed = io.BytesIO()
            np.savez(packed, **arrays)  # type: ignore[arg-type]
            write_whole(staged / "inputs.npz", packed.getvalue())
            write_whole(staged / "data.py", _DATA)
            calls = _Calls(
                manifest=opened.manifest,
                graph=wanted,
                target=chosen,
                reference=reference.relative_to(staged).as_posix(),
                theirs=theirs.relative_to(staged).as_posix(),
                outputs=compared,
                plugins=library,
            )
            for name, text in calls.scripts().items():
                write_whole(staged / name, text)
                (staged / name).chmod(0o755)
            os.rename(staged, folder)
    except OSError as error:
        raise ConfigError(
            f"'{folder}' cannot be written ({error.strerror or error}); give -o a folder with room, which you may "
            "write to."
        ) from error
    return DebugFiles(
        path=folder,
        target=chosen.name,
        graph=wanted.name,
        outputs=tuple(compared),
        plugins=library is not None,
        reference=_on_one_line(calls.reference_call()),
        compare=_on_one_line(calls.compare_call()),
        reduce=_on_one_line(calls.reduce_call()),
    )


def _graph(manifest: Manifest, name: str | None) -> Graph:
    names = [graph.name for graph in manifest.graphs]
    if name is None and len(names) > 1:
        raise ConfigError(f"The bundle has the graphs {', '.join(names)}; give one of them with --graph.")
    if name is not None and name not in names:
        raise ConfigError(not_known("graph", name, names))
    return manifest.graph(name or names[0])


def _library(bundle: Bundle, target: Target, graph: Graph, asked: bool | str | Path | None) -> str | None:
    """The path of the library of plugins, "" where only the device knows it, or None: none is loaded."""
    if target.plugin_wins == "never":
        if asked:
            refuse_on(target.backend)
        return None
    if asked is False:
        return None
    if isinstance(asked, str | Path):
        if not Path(asked).is_file():
            raise ConfigError(f"--plugins {asked} is no file; give the library, 'yes' or 'no'.")
        return str(Path(asked).resolve())
    record = next(
        (one for one in bundle.manifest.engines if (one.target, one.graph) == (target.name, graph.name)), None
    )
    if record is not None and asked is None and record.plugins is None:
        return None
    if importlib.util.find_spec(target.backend) is None:
        return "" if asked or record is not None or target.lowering == "plugin" else None
    found = choose_plugins(target, asked)
    return None if found is None else str(found.path)


# ---- what is read ----------------------------------------------------------------------------------------------------


def _inputs(bundle: Bundle, graph: Graph, given: Mapping[str, Array] | None) -> dict[str, Array]:
    """An array for every input of the graph, states too."""
    manifest, draw = bundle.manifest, np.random.default_rng(0)
    batch = manifest.fixed_batch or manifest.batch.opt
    lengths = {"batch": batch, **usual_lengths(manifest)}
    states = {state.input: state for state in manifest.states if state.graph == graph.name and state.input}
    known = {info.name for info in graph.inputs}
    if given is not None and (unknown := given.keys() - known):
        raise ConfigError(not_known("input", min(unknown), sorted(known)))
    found = {}
    for info in graph.inputs:
        try:
            np.dtype(info.dtype)
        except TypeError:
            raise UnsupportedError(
                f"The input '{info.name}' is {info.dtype}, which numpy lacks, so that no file of inputs holds it; "
                f"export with another precision to look for the node."
            ) from None
        if given is not None and info.name in given:
            array = given[info.name]
            if array.dtype != np.dtype(info.dtype) or array.ndim != len(info.shape):
                raise ConfigError(
                    f"Input '{info.name}' is {array.dtype} {list(array.shape)}, and the graph takes {info.dtype} "
                    f"{list(info.shape)}."
                )
            found[info.name] = array
        elif info.name in states:
            shape = tuple(lengths.get(dim, 0) if isinstance(dim, str) else dim for dim in info.shape)
            found[info.name] = Initial(states[info.name], bundle).value(shape)
        else:
            found[info.name] = random_array(info.name, info, lengths, draw)
    return found


def _compared(reference: Path, theirs: Path, node: str | None, output: str | None) -> list[str]:
    """The tensors that are compared; none: the outputs of the graph."""
    if node is None and output is None:
        return []
    ours, others = _nodes(reference), _nodes(theirs)
    if node is not None:
        found = next((one for one in (*ours, *others) if one.name == node), None)
        if found is None:
            raise ConfigError(not_known("node", node, [one.name for one in ours if one.name]))
        wanted = [name for name in found.outputs if name]
    else:
        wanted = [str(output)]
    made, theirs_too = ({name for one in nodes for name in one.outputs if name} for nodes in (ours, others))
    for name in wanted:
        if name not in made | theirs_too:
            raise ConfigError(not_known("tensor", name, sorted(made)))
        if name not in made & theirs_too:
            raise ConfigError(
                f"'{name}' is a tensor of one form of the graph only, inside of an operator; give one before or behind "
                "that."
            )
    return wanted


def _nodes(file: Path) -> list[Node]:
    with reading(f"'{file.name}'", "export the bundle again", error=BundleError), file.open("rb") as stream:
        return [node for node in read_nodes(mapped(stream)) if not node.inner]


# ---- what is called --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Calls:
    """The calls of Polygraphy, with paths from the folder on."""

    manifest: Manifest
    graph: Graph
    target: Target
    reference: str
    theirs: str
    outputs: Sequence[str]
    plugins: str | None

    def scripts(self) -> dict[str, str]:
        """What the files hold."""
        graph = re.sub(r"[^\w.-]+", "-", self.graph.name)
        calls = {
            "run.sh": (
                f"Compare '{graph}' in ONNX Runtime and in TensorRT; './run.sh reference' runs the first.",
                [self.reference_call(), '[ "${1:-}" != reference ] || exit 0'],
                [self.compare_call()],
            ),
            "reduce.sh": (
                f"Look for the smallest part of '{graph}' that still differs, and write it to reduced.onnx.",
                [self._every_tensor(), self._layerwise()],
                [self.reduce_call()],
            ),
        }
        named = re.sub(r"[^\w.-]+", "-", self.manifest.name)
        made = f"For '{self.target.name}', of the bundle {named} ({self.manifest.digest[:16]})."
        found = {}
        for name, (what, before, behind) in calls.items():
            lines = [_HEAD.format(what=what, made=made, name=name).rstrip("\n")]
            if self.target.backend == "tensorrt_rtx":
                lines.append("export POLYGRAPHY_USE_TENSORRT_RTX=1")
            lines += before
            if self.plugins is not None:
                lines.append(_PLUGINS.format(path=shlex.quote(self.plugins), name=name).rstrip("\n"))
            found[name] = "\n".join([*lines, *behind]) + "\n"
        return found

    def reference_call(self) -> str:
        """What ONNX Runtime gives, written down."""
        return _line(
            ["polygraphy", "run", self.reference, "--onnxrt"],
            _option("--onnx-outputs", self.outputs),
            ["--data-loader-script", "data.py"],
            ["--save-inputs", "inputs.json", "--save-outputs", "reference.json"],
        )

    def compare_call(self) -> str:
        """TensorRT on the same inputs, held against it."""
        return self._engine(self.theirs, "inputs.json", "reference.json", self.outputs)

    def reduce_call(self) -> str:
        """The graph made smaller as long as it differs."""
        check = self._engine("polygraphy_debug.onnx", "layerwise.json", "every.json", [])
        reduce = ["polygraphy", "debug", "reduce", self.theirs, "-o", "reduced.onnx", "--mode", "bisect"]
        return f"{_line(reduce, ['--load-inputs', 'layerwise.json'])}{_BREAK}--check {check}"

    def _every_tensor(self) -> str:
        return _line(
            ["polygraphy", "run", self.reference, "--onnxrt", "--onnx-outputs", "mark", "all"],
            ["--data-loader-script", "data.py", "--save-inputs", "inputs.json", "--save-outputs", "every.json"],
        )

    def _layerwise(self) -> str:
        return _line(["polygraphy", "data", "merge", "inputs.json", "every.json", "-o", "layerwise.json"])

    def _engine(self, file: str, inputs: str, expected: str, outputs: Sequence[str]) -> str:
        manifest, allowed = self.manifest, f"{ALLOWED.get(self.manifest.precision, ALLOWED['fp16']):g}"
        batch = BatchRange(min=manifest.batch.min, opt=manifest.batch.opt, max=manifest.batch.max)
        profile = profile_shapes(input_shapes(self.graph.inputs), batch, lengths_of(manifest))
        words: list[list[str]] = [["polygraphy", "run", file, "--trt", "--strongly-typed"]]
        for end in ("min", "opt", "max"):
            shapes = [f"{name}:[{','.join(map(str, ends[end]))}]" for name, ends in profile.items()]
            words.append(_option(f"--trt-{end}-shapes", shapes))
        words.append(_option("--trt-outputs", outputs))
        if self.plugins is not None:
            words += [["--plugins", _VARIABLE], ["--preview-features", "aliased_plugin_io_10_03"]]
        words += [["--load-inputs", inputs, "--load-outputs", expected], ["--rtol", allowed, "--atol", allowed]]
        return _line(*words)


_VARIABLE = '"$PLUGINS"'
_BREAK = " \\\n    "


def _option(name: str, values: Sequence[str]) -> list[str]:
    return [name, *values] if values else []


def _line(*groups: Iterable[str]) -> str:
    """One call, a line for each group of words, quoted for the shell."""
    lines = [" ".join(word if word == _VARIABLE else shlex.quote(word) for word in group) for group in groups]
    return _BREAK.join(line for line in lines if line)


def _on_one_line(call: str) -> str:
    return call.replace(_BREAK, " ")
