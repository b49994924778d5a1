"""An operator with its forms: torch function, ONNX body, samples; and how it becomes one node in an exported graph."""

import re
import struct
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from trt_compress.errors import ConfigError, ShapeError
from trt_compress.plugins.spec import DOMAIN, FLOATS, MOST_TOKENS, OpSpec, Sample

if TYPE_CHECKING:
    import onnx

SITE_KEY = "trt_compress.site"  # metadata property of a node: the site it was emitted at
LENGTHS_KEY = "trt_compress.lengths"  # metadata property: which outputs have an axis whose size the data decide
MARKER = "Marker"  # op type of a node that only names its input; tracing removes it
RESIZED = "Resized"  # op type of a node that only says how long its input really is; tracing removes it

_site: ContextVar[str] = ContextVar("trt_compress_site", default="")
_record: ContextVar[dict[str, Tensor] | None] = ContextVar("trt_compress_record", default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """All forms of one operator.

    Attributes:
        spec: The contract.
        function: Public torch function; tensors first, attributes by keyword.
        body: Nodes of the ONNX function in ONNX text form; attributes appear as `@name`. Or what makes them from the
            attributes of the nodes that will call the function, so that it holds what these use and nothing else.
        samples: Sizes and attributes worth testing, each with its reason.
        make_inputs: Tensors for a sample, float32, in the order of `spec.inputs`.
        regret: How much worse than the best a decision is, for each item of the batch, in units of the score: takes
            the inputs by name, the attributes by name, and the outputs by name. 0 for the operator's own decision;
            tiny for one that only took the other side of a near tie. None: the operator decides nothing.
    """

    spec: OpSpec
    function: Callable[..., Any]
    body: str | Callable[[Sequence[Mapping[str, Any]]], str]
    samples: tuple[Sample, ...]
    make_inputs: Callable[[Sample, torch.Generator], tuple[Tensor, ...]]
    regret: Callable[[Mapping[str, Tensor], Mapping[str, Any], Mapping[str, Tensor]], Tensor] | None = None

    def function_proto(self, opset: int, calls: Sequence[Mapping[str, Any]]) -> "onnx.FunctionProto":
        """The operator as a model-local ONNX function of standard operators, for `opset` 18 or newer.

        Args:
            opset: Of the standard operators.
            calls: Attributes of the nodes that will call it, one or more; it is right for these.
        """
        from onnx import parser

        spec = self.spec
        body = self.body if isinstance(self.body, str) else self.body(calls)
        names = [", ".join(t.name for t in tensors) for tensors in (spec.inputs, spec.outputs)]
        used = [a.name for a in spec.attributes if re.search(rf"@{a.name}\b", body)]
        attributes = f"<{', '.join(used)}>" if used else ""
        nodes = "\n".join(line.split("#")[0] for line in body.splitlines())
        return parser.parse_function(
            f'<domain: "{DOMAIN}", opset_import: ["" : {opset}]>\n'
            f"{spec.op_type} {attributes} ({names[0]}) => ({names[1]}) {{ {nodes} }}"
        )


@contextmanager
def at_site(name: str) -> Iterator[None]:
    """Operators called inside belong to site `name`: their exported nodes carry it."""
    token = _site.set(name)
    try:
        yield
    finally:
        _site.reset(token)


@contextmanager
def recording() -> Iterator[dict[str, Tensor]]:
    """Collect what happens at the sites of an eager forward pass.

    Keys are `<site>/<operator>/<input, output or attribute>` and `<site>/tokens`.
    """
    record: dict[str, Tensor] = {}
    token = _record.set(record)
    try:
        yield record
    finally:
        _record.reset(token)


def record_tensor(name: str, tensor: Tensor) -> None:
    """Note `tensor` as `<current site>/<name>` if a recording is on; a second one of that name gets a number."""
    record = _record.get()
    if record is not None:
        record[unique_name(f"{_site.get()}/{name}", record)] = tensor


def mark_tensor(name: str, tensor: Tensor) -> Tensor:
    """Return `tensor`, known as `<current site>/<name>` in a recording and in an exported graph."""
    if torch.onnx.is_in_onnx_export():
        return torch.onnx.ops.symbolic(
            f"{DOMAIN}::{MARKER}",
            [tensor],
            dtype=tensor.dtype,
            shape=tensor.shape,
            version=1,
            metadata_props={SITE_KEY: f"{_site.get()}/{name}"},
        )
    record_tensor(name, tensor)
    return tensor


def with_length(tensor: Tensor, length: int | torch.SymInt) -> Tensor:
    """Say in a graph being exported that axis 1 of an operator's output has a length that the data decide.

    Args:
        tensor: An output that run_operator() gave with the largest size it can have.
        length: Its true size, `.item()` of another output of the operator.
    """
    return torch.onnx.ops.symbolic(
        f"{DOMAIN}::{RESIZED}",
        [tensor],
        dtype=tensor.dtype,
        shape=[tensor.shape[0], length, *tensor.shape[2:]],
        version=1,
    )


def unique_name(name: str, taken: Container[str]) -> str:
    """`name`, or its last-but-one part numbered (`blocks.3/TokenMerge_1/dest`) until it is not in `taken`."""
    site, operator, *output = name.split("/")
    number = 0
    while name in taken:
        number += 1
        name = "/".join([site, f"{operator}_{number}", *output])
    return name


def run_operator(
    spec: OpSpec,
    inputs: Sequence[Tensor],
    attributes: Mapping[str, int | float | Sequence[int]],
) -> Sequence[Tensor]:
    """Call the registered torch operator, or put one node into the graph being exported.

    Args:
        spec: The operator.
        inputs: Tensors in the order of `spec.inputs`.
        attributes: Every attribute, in the order of `spec.attributes`.

    While a graph is exported, an output whose axis 1 has a size that the data decide is as long as it can be, and must
    go through with_length() before it is used.
    """
    attributes = {name: as_float32(value) if isinstance(value, float) else value for name, value in attributes.items()}
    if torch.onnx.is_in_onnx_export():
        # Presence of plugin_namespace is what TensorRT 10.15 and later test before they look for a plugin.
        plugin = {"plugin_version": str(spec.version), "plugin_namespace": DOMAIN}
        return torch.onnx.ops.symbolic_multi_out(
            f"{DOMAIN}::{spec.op_type}",
            inputs,
            {**attributes, **plugin},
            dtypes=_output_dtypes(spec, inputs, attributes),
            shapes=spec.output_shapes([tensor.shape for tensor in inputs], attributes),
            version=spec.version,
            metadata_props={SITE_KEY: _site.get(), LENGTHS_KEY: " ".join(map(str, spec.decided_by_data(attributes)))},
        )
    result = getattr(getattr(torch.ops, DOMAIN), spec.torch_name)(*inputs, *attributes.values())
    results: Sequence[Tensor] = [result] if isinstance(result, Tensor) else result
    if _record.get() is not None:
        for tensor, described in zip([*inputs, *results], [*spec.inputs, *spec.outputs], strict=True):
            record_tensor(f"{spec.name}/{described.name}", tensor)
        for name, value in attributes.items():
            dtype = torch.float32 if isinstance(value, float) else torch.int64
            record_tensor(f"{spec.name}/{name}", torch.tensor(value, dtype=dtype))
    return results


def register_fake(spec: OpSpec, definition: Any) -> None:
    """Let torch know the outputs of the operator `definition`, a `torch.library.custom_op`, without running it."""

    def fake(*arguments: Any) -> Any:
        inputs = arguments[: len(spec.inputs)]
        attributes = dict(zip((a.name for a in spec.attributes), arguments[len(spec.inputs) :], strict=True))
        shapes = [list(shape) for shape in spec.output_shapes([tensor.shape for tensor in inputs], attributes)]
        if decided := spec.decided_by_data(attributes):
            length = torch.library.get_ctx().new_dynamic_size(max=shapes[decided[0]][1])
            for output in decided:
                shapes[output][1] = length
        dtypes = _output_dtypes(spec, inputs, attributes)
        made = [inputs[0].new_empty(shape, dtype=dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]
        return tuple(made) if len(made) > 1 else made[0]

    definition.register_fake(fake)


def _output_dtypes(spec: OpSpec, inputs: Sequence[Tensor], attributes: Mapping[str, Any]) -> list[torch.dtype]:
    names = spec.output_dtypes([str(tensor.dtype).removeprefix("torch.") for tensor in inputs], attributes)
    return [getattr(torch, name) for name in names]


def as_float32(value: float) -> float:
    """`value` as a node of an ONNX file holds it; torch must compute with the same number."""
    rounded: float = struct.unpack("f", struct.pack("f", value))[0]
    return rounded


def ordinary(score: Tensor) -> Tensor:
    """Scores as they are compared, float32, a copy: infinity and NaN count as the largest number."""
    largest = torch.finfo(torch.float32).max
    return torch.where(score < largest, score, largest)


def cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """`tensor` in `dtype`; where it is already, nothing is traced."""
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def check_tensor(
    op: str,
    name: str,
    tensor: Tensor,
    shape: Sequence[int | None],
    letters: str,
    dtypes: Sequence[str] = FLOATS,
) -> None:
    """Raise ShapeError unless `tensor` has `shape` (None: any size) and one of `dtypes`."""
    fits = tensor.ndim == len(shape) and all(
        want is None or have == want for have, want in zip(tensor.shape, shape, strict=True)
    )
    if not fits:
        want = ", ".join(str(s) if s is not None else letter for s, letter in zip(shape, letters, strict=True))
        raise ShapeError(f"{op}: {name} has shape {list(tensor.shape)}; it must be [{want}] with axes {letters}.")
    _check_dtype(op, name, tensor, dtypes)


def check_broadcast(
    op: str,
    name: str,
    tensor: Tensor,
    allowed: Sequence[Sequence[int]],
    axes: str,
    dtypes: Sequence[str] = FLOATS,
) -> None:
    """Raise ShapeError unless each axis of `tensor` has one of its `allowed` sizes, and it one of `dtypes`."""
    # The last choice first: while sizes are traced, a comparison with 1 says something of them.
    fits = tensor.ndim == len(allowed) and all(
        size in reversed(sizes) for size, sizes in zip(tensor.shape, allowed, strict=True)
    )
    if not fits:
        want = ", ".join(" | ".join(map(str, dict.fromkeys(some))) for some in allowed)
        raise ShapeError(f"{op}: {name} has shape {list(tensor.shape)}; it must be [{want}] with axes {axes}.")
    _check_dtype(op, name, tensor, dtypes)


def _check_dtype(op: str, name: str, tensor: Tensor, dtypes: Sequence[str]) -> None:
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in dtypes:
        raise ShapeError(f"{op}: {name} has dtype {dtype}; it must be {' or '.join(dtypes)}.")


def is_decided_by_the_data(error: RuntimeError) -> bool:
    """Whether torch cannot trace a condition since it hangs on a size that only the data decide."""
    from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

    return isinstance(error, GuardOnDataDependentSymNode)


def check_tokens(op: str, n: int | torch.SymInt) -> None:
    """Raise ShapeError if there are more tokens than a body can count in float32 (not while a size is traced)."""
    if isinstance(n, int) and n > MOST_TOKENS:
        raise ShapeError(f"{op}: N={n} tokens are too many; at most {MOST_TOKENS} are allowed.")


def check_count(op: str, name: str, value: object, maximum: int, why: str) -> int:
    """Return `value` if it is an integer in 0..maximum; raise ConfigError with the reason otherwise."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"{op}: {name}={value!r} is not a whole number; give one in 0..{maximum}.")
    try:
        is_allowed = bool(0 <= value <= maximum)
    except RuntimeError as error:
        if not is_decided_by_the_data(error):
            raise
        raise ConfigError(
            f"{op}: {name}={value} may be more than the data leave; the operator before it trims, so let it keep at "
            f"least {value} tokens, or pad."
        ) from error
    if not is_allowed:
        raise ConfigError(f"{op}: {name}={value} is out of range; {why} 0..{maximum}.")
    return value
