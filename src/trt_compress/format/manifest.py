"""What `manifest.json` says of a bundle. `python -m trt_compress.tools.gen_schemas manifest` prints its JSON schema.

A newer minor version is read and what it added is kept; a newer major version is refused. `digest` covers the fields
that version 1.0 defines, at every level, except `digest` and `schema_version`: an edited value is noticed, a field that
somebody added is not an edit. (Where all keys are free, as in `recipe`, the whole object is one value.) A later minor
version that wants its own fields covered adds a digest of its own. Numbers are written as Python's json writes them.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any

from trt_compress.digest import sha256
from trt_compress.errors import BundleError, UnsupportedError
from trt_compress.foreign import strict_json
from trt_compress.format import kinds
from trt_compress.format.graphs import DTYPES as DTYPES
from trt_compress.format.graphs import LARGEST_BATCH, MOST_AXES, MOST_ELEMENTS, graph_problems, state_problems
from trt_compress.format.graphs import Capacity as Capacity
from trt_compress.format.graphs import Dim as Dim
from trt_compress.format.graphs import Graph as Graph
from trt_compress.format.graphs import Link as Link
from trt_compress.format.graphs import Range as Range
from trt_compress.format.graphs import State as State
from trt_compress.format.graphs import TensorInfo as TensorInfo
from trt_compress.format.graphs import tensor_problems as tensor_problems
from trt_compress.format.procedure import Procedure as Procedure
from trt_compress.format.record import VERSION, Record
from trt_compress.format.text import Text as Text
from trt_compress.format.wiring import Wiring

SCHEMA_VERSION = "1.0"
MANIFEST_NAME = "manifest.json"
LARGEST_MANIFEST = 16 << 20
"""Bytes; a real one has some ten thousand."""

_LONGEST_PATH = 1000
_MOST_FLOPS = 1e24


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights(Record):
    """Where the weights came from: a file name, or words such as "random (seed 0)".

    `sha256` is the hash of the file; of weights without a file, that of the tensors; of several, that of the lines that
    sha256sum writes of them. `license_files` are files of the bundle: the licence as it came with the model.
    """

    source: str
    sha256: str | None = None
    license: str | None = None
    provenance: str | None = None
    license_files: tuple[str, ...] = field(default=(), metadata={"sparse": True})


@dataclass(frozen=True, slots=True, kw_only=True)
class Model(Record):
    """The model as the caller named it ("timm:deit_small_patch16_224") and the family that it belongs to."""

    source: str
    family: str
    weights: Weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch(Range):
    """The batch sizes that engines are built for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compression(Record):
    """One compressor at one site, and its tokens in and out; a number that varies is given as a symbol.

    The counts are of one group of tokens. Version 1.0 did not say how many groups a sample has and what becomes of the
    rest; `with_groups` adds it, among the fields that are no part of the digest.
    """

    site: str
    compressor: str
    config: dict[str, Any]
    tokens_in: Dim
    tokens_out: Dim

    @property
    def groups(self) -> int:
        """Groups of `tokens_in` tokens that a sample has at this site: windows, images."""
        return self._count("groups", 1) or 1

    @property
    def padding(self) -> int:
        """Of all `groups * tokens_in` tokens of a sample, those that fill up windows and are none of the model's."""
        return self._count("padding", 0)

    @property
    def keeps_rest(self) -> bool:
        """Whether the tokens that are not computed here are kept, so that none is removed."""
        return self.extra.get("keeps_rest") is True

    @property
    def of_cache(self) -> bool:
        """Whether the counts are entries of a layer's cache, and no token that passes is removed."""
        return self.site.rpartition("/")[2].startswith("cache.")

    def with_groups(self, *, groups: int, padding: int, keeps_rest: bool) -> "Compression":
        """The same, and what version 1.0 did not say, where it is not what goes without saying."""
        said = {"groups": groups, "padding": padding, "keeps_rest": keeps_rest}
        usual = {"groups": 1, "padding": 0, "keeps_rest": False}
        return replace(self, extra={**self.extra, **{name: v for name, v in said.items() if v != usual[name]}})

    @property
    def bytes_per_token(self) -> float | None:
        """Of a cache, the bytes by which one sequence grows in this layer with a token; None: not said."""
        value = self.extra.get("bytes_per_token")
        return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None

    @property
    def bytes(self) -> int | None:
        """Of a cache, the bytes of one sequence in this layer with all tokens that it may keep; None: not said."""
        return self._count("bytes", -1) if "bytes" in self.extra else None

    @property
    def bits(self) -> tuple[int, ...]:
        """Of a cache that is packed, the bits of its codes, ascending; none: it is not, or that is not said."""
        value = self.extra.get("bits", ())
        is_list = isinstance(value, (list, tuple)) and all(type(each) is int and each > 0 for each in value)
        return tuple(value) if is_list else ()

    def with_bytes(self, per_token: float | None, whole: int | None, bits: Sequence[int] = ()) -> "Compression":
        """The same, and what a cache takes, if that is told."""
        if per_token is None or whole is None:
            return self
        packed = {"bits": list(bits)} if bits else {}
        return replace(self, extra={**self.extra, "bytes_per_token": per_token, "bytes": whole, **packed})

    def _count(self, name: str, default: int) -> int:
        value = self.extra.get(name, default)
        return value if type(value) is int and value >= 0 else default


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorUse(Record):
    """One operator of the domain `trt_compress`, with the number of its nodes."""

    name: str
    op_type: str
    domain: str
    version: int
    nodes: int
    lowering: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Lowered(Record):
    """The ONNX file of one graph, as lowered for one target."""

    target: str
    file: str
    lowering: str
    sha256: str
    graph: str = "model"


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine(Record):
    """A built engine.

    Attributes:
        onnx_sha256: Hash of the ONNX file it was built from.
        precision_achieved: Layers counted by precision, as the engine reports them.
        paths: For each operator, the nodes that became a plugin and those that became a function.
        profile: Input name → {"min": shape, "opt": shape, "max": shape}.
        seconds: Build time.
        plugins: Source hash of the plugin library that the engine needs, or None.
        sm: The GPU that it was built for, its compute capability times ten; None: any that the library knows.
        driver: The CUDA version that the driver knew when it was built: "13.0".
    """

    target: str
    file: str
    sha256: str
    bytes: int
    library: str
    library_version: str
    onnx_sha256: str
    precision_asked: str
    precision_achieved: dict[str, Any]
    paths: dict[str, dict[str, int]]
    profile: dict[str, dict[str, tuple[int, ...]]]
    seconds: float
    graph: str = "model"
    plugins: str | None = None
    sm: int | None = field(default=None, metadata={"sparse": True})
    driver: str | None = field(default=None, metadata={"sparse": True})


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement(Record):
    """How far graphs in INT8 answer as the model in floating point does.

    Attributes:
        inputs: Which samples were asked.
        samples: How many.
        cosine: Of the outputs of both, the mean over the samples; of several outputs the least.
        top1: Of classes, the share of samples whose first is the same.
        tokens: The least mean cosine of the tokens that leave a site.
        indices: The least share of equal indices that a site kept.
    """

    inputs: str
    samples: int
    cosine: float | None = None
    top1: float | None = field(default=None, metadata={"sparse": True})
    tokens: float | None = field(default=None, metadata={"sparse": True})
    indices: float | None = field(default=None, metadata={"sparse": True})

    @property
    def text(self) -> str:
        """What was found, in words: `98.4% of 64 samples (held-out examples of the model) have the same class, …`."""
        of = f"{self.samples} samples ({self.inputs})"
        parts = [f"{self.top1:.1%} of {of} have the same class" if self.top1 is not None else ""]
        if self.cosine is not None:
            parts.append(f"cosine {self.cosine:.4f}" + (f" over {of}" if self.top1 is None else ""))
        parts.append("" if self.indices is None else f"{self.indices:.1%} of what sites keep is the same")
        return ", ".join(filter(None, parts))


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification(Record):
    """The summary of `file`, which holds what was compared.

    Attributes:
        method: How a graph was run that ONNX Runtime cannot run on the CPU as it is; "" as it is.
        agreement: Of graphs in INT8, how they answer; `max_abs_error` is then that of the graphs in floating point that
            they were made of.
        quantization_error: Of quantized weights: the largest distance of an output from the model as it was loaded,
            relative to its largest value.
        deployment_error: The same, of ONNX Runtime's own way with quantized weights from the way that was verified.
        layers: How many layers were run, the first ones; None: all of the model was.
        layers_of: How many the model has.
        left_out: Methods of the model that do not act in these layers, and where they would.
    """

    passed: bool
    max_abs_error: float | None
    file: str = "verify.json"
    method: str = field(default="", metadata={"sparse": True})
    agreement: Agreement | None = field(default=None, metadata={"sparse": True})
    quantization_error: float | None = field(default=None, metadata={"sparse": True})
    deployment_error: float | None = field(default=None, metadata={"sparse": True})
    layers: int | None = field(default=None, metadata={"sparse": True})
    layers_of: int | None = field(default=None, metadata={"sparse": True})
    left_out: tuple[str, ...] = field(default=(), metadata={"sparse": True})

    @property
    def text(self) -> str:
        """What was found and on how much of the model, in words, without saying whether it passed."""
        error = "" if self.max_abs_error is None else f"largest error {self.max_abs_error:.1e}"
        if self.agreement is not None:
            error = ", ".join(filter(None, (self.agreement.text, f"{error} before it was quantized" if error else "")))
        part = "" if self.layers is None else f"the first {self.layers} of {self.layers_of} layers only"
        without = f"without {' and '.join(self.left_out)}" if self.left_out else ""
        return ", ".join(filter(None, (error, part, without)))


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightForm(Record):
    """The weights of one dtype in a graph, as they were found in the ONNX file after it was written.

    Attributes:
        group: Of quantized weights, how many share a scale.
        tensors: How many there are.
        parameters: Numbers in all of them.
        bytes: What they take, with their scales.
    """

    graph: str
    dtype: str
    group: int | None = None
    tensors: int = 0
    parameters: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8Use(Record):
    """What of a graph runs in INT8, as it was read back from the graph that ONNX Runtime made of the file for the CPU.

    Of a bundle for engines alone it is what stands between quantizers in the file; an engine has a record of its own.

    Attributes:
        way: "static" or "dynamic".
        method: How static ranges were found; "" of dynamic ones.
        layers: Layers with weights.
        in_int8: Products of 8 bits that ran.
        products: Products of two activations, which stay in floating point.
        kept: Layers that were left in floating point, with the reason.
        data: The samples that ranges were found with, by the name of their file or folder.
        data_sha256: Hash of these samples.
        samples: How many of them.
    """

    graph: str
    way: str
    layers: int
    in_int8: int
    products: int
    method: str = field(default="", metadata={"sparse": True})
    kept: dict[str, str] = field(default_factory=dict)
    data: str | None = field(default=None, metadata={"sparse": True})
    data_sha256: str | None = field(default=None, metadata={"sparse": True})
    samples: int | None = field(default=None, metadata={"sparse": True})

    @property
    def share(self) -> float:
        """Of the layers with weights, those that ran in INT8."""
        return self.in_int8 / self.layers if self.layers else 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FileInfo(Record):
    """Hash and size of one file."""

    sha256: str = field(metadata={"schema": {"pattern": "^[0-9a-f]{64}$"}})
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest(Record):
    """Everything that `manifest.json` says.

    Attributes:
        recipe: The content of recipe.toml, so that the export can be repeated.
        lengths: The lengths of every symbol but "batch", as far as they are bounded; those of a capacity always are.
        capacities: The symbols whose length is chosen by whoever runs the bundle.
        procedure: How the graphs are run in turn to read sequences of tokens; None: as `procedure` says of others.
        text: What makes tokens of a text; None: the model reads none, or nothing is known of it.
        flops: FLOPs of one sample, by part of the model.
        files: Every file of the bundle except the manifest. The writer fills this and `digest`.
    """

    name: str
    created_with: dict[str, str]
    model: Model
    recipe: dict[str, Any]
    precision: str
    opset: int
    batch: Batch
    graphs: tuple[Graph, ...] = field(metadata={"schema": {"minItems": 1}})
    schema_version: str = field(default=SCHEMA_VERSION, metadata=VERSION)
    links: tuple[Link, ...] = ()
    states: tuple[State, ...] = ()
    lengths: dict[str, Range] = field(default_factory=dict)
    capacities: tuple[Capacity, ...] = ()
    procedure: Procedure | None = None
    text: Text | None = field(default=None, metadata={"sparse": True})
    preprocess: dict[str, Any] = field(default_factory=dict)
    postprocess: dict[str, Any] = field(default_factory=dict)
    compression: tuple[Compression, ...] = ()
    operators: tuple[OperatorUse, ...] = ()
    flops: dict[str, Any] | None = None
    baseline_flops: float | None = None
    lowered: tuple[Lowered, ...] = ()
    engines: tuple[Engine, ...] = ()
    weights: tuple[WeightForm, ...] = ()
    int8: tuple[Int8Use, ...] = field(default=(), metadata={"sparse": True})
    verification: Verification | None = None
    targets: tuple[str, ...] = ()
    files: dict[str, FileInfo] = field(default_factory=dict)
    digest: str = ""

    @classmethod
    def from_text(cls, text: str | bytes, where: str = MANIFEST_NAME) -> "Manifest":
        """Read `manifest.json`.

        Raises:
            BundleError: It is not JSON, was written to a newer schema, or does not fit the schema.
        """
        try:
            data = strict_json(text, limit=LARGEST_MANIFEST)
        except ValueError as error:
            raise BundleError(f"{where} is not valid JSON ({error}); copy or export the bundle again.") from None
        _check_version(data, where)
        _check_age(data, where)
        return cls.from_json(data, where)

    def to_text(self) -> str:
        """Write `manifest.json`."""
        return json.dumps(self.to_json(), indent=2, allow_nan=False, ensure_ascii=False) + "\n"

    def compute_digest(self) -> str:
        """Hash the canonical JSON (sorted keys, no spaces, UTF-8) of the fields that version 1.0 defines."""
        known = self.to_json(with_extra=False)
        del known["digest"], known["schema_version"]
        text = json.dumps(known, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
        return sha256(text)

    @property
    def fixed_batch(self) -> int | None:
        """How many sequences are read at once by a procedure, neither more nor fewer; None: it can be chosen."""
        for name, what in () if self.procedure is None else self.procedure.feeds.items():
            graph, _, tensor = name.partition(".")
            shape = next((info.shape for info in self.graph(graph).inputs if info.name == tensor), ())
            if what == "tokens" and shape and isinstance(shape[0], int):
                return shape[0]
        return None

    def graph(self, name: str) -> Graph:
        """Look up a graph by its name."""
        for graph in self.graphs:
            if graph.name == name:
                return graph
        names = ", ".join(repr(graph.name) for graph in self.graphs)
        raise BundleError(f"The bundle has no graph '{name}'; it has {names}.")

    def check(self) -> None:
        """Check that the parts fit each other: names are unique, references lead somewhere, every file is listed.

        Raises:
            BundleError: They do not fit; the message names the part.
        """
        for problem in self._problems():
            raise BundleError(f"{MANIFEST_NAME}: {problem}.")

    def _problems(self) -> Iterator[str]:
        yield from (f"file path '{name}' {reason}" for name in self.files if (reason := path_problem(name)))
        for part, file in self._referenced_files():
            if file not in self.files:
                yield f"{part} needs the file '{file}', which is not listed in 'files'"
        if not self.graphs:
            yield "'graphs' is empty; a bundle has at least one graph"
        yield from (f"the graph name '{graph.name}' has a dot" for graph in self.graphs if "." in graph.name)
        for name, count in Counter(graph.name for graph in self.graphs).items():
            if count > 1:
                yield f"two graphs are named '{name}'"
        yield from self._value_problems()
        wiring = Wiring(
            graphs=self.graphs,
            links=self.links,
            states=self.states,
            lengths=self.lengths,
            capacities=self.capacities,
            procedure=self.procedure,
        )
        yield from wiring.problems()
        yield from self._kind_problems()

    def _value_problems(self) -> Iterator[str]:
        """Values that no bundle has: each is checked here once, so that whoever reads it need not."""
        low, usual, high = self.batch.min, self.batch.opt, self.batch.max
        if not 1 <= low <= usual <= high <= LARGEST_BATCH:
            yield f"batch {low}:{usual}:{high} is not in ascending order from 1 to {LARGEST_BATCH}"
        yield from (problem for graph in self.graphs for problem in graph_problems(graph))
        for state in self.states:
            yield from state_problems(state)
        for site in self.compression:
            for count in (site.tokens_in, site.tokens_out):
                if isinstance(count, int) and not 0 <= count <= MOST_ELEMENTS:
                    yield f"compression at '{site.site[:60]}' has {count} tokens"
        for name, info in self.files.items():
            if info.bytes < 0:
                yield f"file '{name[:60]}' has {info.bytes} bytes"
        yield from _flops_problems(self.flops, self.baseline_flops)
        yield from self.text.problems() if self.text else ()
        yield from (problem for engine in self.engines for problem in _engine_problems(engine))
        names = {graph.name for graph in self.graphs}
        parts: tuple[Lowered | Engine | State, ...] = (*self.lowered, *self.engines, *self.states)
        for part in parts:
            if part.graph not in names:
                yield f"a {type(part).__name__.lower()} is of the graph '{part.graph[:60]}', which there is not"

    def _kind_problems(self) -> Iterator[str]:
        """What is wrong with `preprocess` and `postprocess`, as far as that can be told without a session."""
        inputs, outputs = (
            {
                key: info.shape
                for graph in self.graphs
                for info in getattr(graph, side)
                for key in (info.name, f"{graph.name}.{info.name}")
            }
            for side in ("inputs", "outputs")
        )
        yield from _input_problems("preprocess", self.preprocess, inputs)
        for media in self.procedure.media if self.procedure else ():
            yield from _input_problems("procedure.media.input", media.input, inputs)
        after: kinds.OutputKind | None = None
        with suppress(UnsupportedError):  # of a later version; whoever needs it says so
            after = kinds.output_kind(self.postprocess)
        for what, name in after.named().items() if after is not None else ():
            if name not in outputs:
                yield f"'postprocess.{what}' names '{name[:60]}', which is no output of a graph"
            elif after is not None:
                for misfit in after.misfits(what, outputs[name]):
                    yield f"'postprocess.{what}' names the output '{name}', and {misfit}"

    def _constants(self) -> dict[str, str]:
        """Inputs that never change, and the file of each."""
        found = self.preprocess.get("constants")
        return {name: str(file) for name, file in found.items()} if isinstance(found, dict) else {}

    def _referenced_files(self) -> Iterator[tuple[str, str]]:
        own_form = {part.graph for part in self.lowered} | {part.graph for part in self.engines}
        for graph in self.graphs:
            if graph.file in self.files or graph.name not in own_form:  # else pruned to what one target needs
                yield from ((f"graph '{graph.name}'", file) for file in (graph.file, *graph.external_data))
        for state in self.states:
            if isinstance(state.initial, dict) and "file" in state.initial:
                yield f"state '{state.key}'", str(state.initial["file"])
        yield from (("'preprocess.constants'", file) for file in self._constants().values())
        yield from ((f"'text.{what}'", file) for what, file in (self.text.files() if self.text else ()))
        yield from (("'model.weights.license_files'", file) for file in self.model.weights.license_files)
        yield from ((f"lowered graph for '{lowered.target}'", lowered.file) for lowered in self.lowered)
        yield from ((f"engine for '{engine.target}'", engine.file) for engine in self.engines)
        if self.verification:
            yield "verification", self.verification.file


def path_problem(name: str) -> str | None:
    """Say why a file path cannot stand in a bundle, or None: it must be relative, with '/', and stay inside."""
    path = PurePosixPath(name)
    if path.is_absolute() or "\\" in name or ":" in name or "\0" in name:
        return "is not a relative path with '/' between its parts"
    if ".." in path.parts:
        return "leads out of the bundle"
    if name != str(path) or name in (".", MANIFEST_NAME) or len(name) > _LONGEST_PATH:
        return "cannot be the name of a file in a bundle"
    return None


def _input_problems(where: str, settings: dict[str, Any], inputs: Mapping[str, tuple[Dim, ...]]) -> Iterator[str]:
    """What is wrong with what says how an input is made."""
    try:
        kind = kinds.input_kind(settings)
    except UnsupportedError:  # of a later version; whoever needs it says so
        return
    named = {} if kind.input is None else {f"{where}.input": kind.input}
    named |= {f"{where}.constants['{name}']": name for name in kind.constants}
    for what, name in named.items():
        if name not in inputs:
            yield f"'{what}' names '{name[:60]}', which is no input of a graph"
        elif what == f"{where}.input":
            for misfit in kind.misfits(inputs[name]):
                yield f"'{where}' of kind '{kind.kind}' does not fit the input '{name}': {misfit}"


def _engine_problems(engine: Engine) -> Iterator[str]:
    what = f"engine for '{engine.target[:60]}'"
    if engine.bytes < 0 or not 0 <= engine.seconds < 1e9:
        yield f"{what} has {engine.bytes} bytes and was built in {engine.seconds} s"
    for name, shapes in engine.profile.items():
        ranks = {len(shape) for shape in shapes.values()}
        sizes = [length for shape in shapes.values() for length in shape]
        if not {"min", "opt", "max"} <= shapes.keys() or len(ranks) > 1 or max(ranks) > MOST_AXES:
            yield f"{what} has a profile of '{name[:60]}' without min, opt and max of the same number of axes"
        elif not all(0 <= length <= MOST_ELEMENTS for length in sizes):
            yield f"{what} has a profile of '{name[:60]}' with an axis that is not from 0 to {MOST_ELEMENTS}"


def _flops_problems(flops: dict[str, Any] | None, baseline: float | None) -> Iterator[str]:
    """`total`, or `graphs` with one for each graph; what else stands there is for people."""
    parts = {} if flops is None else flops
    counts: list[Any] = [parts.get("total", 0), 0 if baseline is None else baseline]
    graphs = parts.get("graphs", {})
    if not isinstance(graphs, dict) or not all(isinstance(part, dict) for part in graphs.values()):
        yield "'flops.graphs' is no object of objects by graph"
    else:
        counts += [part.get("total", 0) for part in graphs.values()]
    for count in counts:
        if type(count) not in (int, float) or not 0 <= count <= _MOST_FLOPS:
            yield f"the FLOPs are {str(count)[:60]}; they are a number from 0 to {_MOST_FLOPS:g}"


def _check_version(data: object, where: str) -> None:
    version = data.get("schema_version") if isinstance(data, dict) else None
    if not isinstance(version, str) or not re.fullmatch(r"[0-9]{1,6}\.[0-9]{1,6}", version):
        raise BundleError(f"{where} has no 'schema_version' such as \"{SCHEMA_VERSION}\", so it is not a bundle's.")
    major, ours = version.split(".")[0], SCHEMA_VERSION.split(".")[0]
    if int(major) > int(ours):
        raise BundleError(
            f"{where} has schema version {version}, and this trt-compress reads up to {ours}.x; "
            "install a newer trt-compress or export the bundle again with this one."
        )
    if int(major) < int(ours):
        raise BundleError(f"{where} has schema version {version}, which was never published; export the bundle again.")


def _check_age(data: dict[str, Any], where: str) -> None:
    """Refuse what was written before version 1.0 was settled: a graph had no role then."""
    graphs = data.get("graphs")
    if isinstance(graphs, list) and any(isinstance(graph, dict) and "role" not in graph for graph in graphs):
        raise BundleError(
            f"{where} was written by a trt-compress from before 0.1.0 was released (its graphs have no role); export "
            "the bundle again."
        )
