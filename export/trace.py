"""torch → ONNX: one node for each operator, named after its site."""

import contextlib
import gc
import inspect
import io
import itertools
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
import onnx.helper
import torch
from onnxscript import ir
from torch import Tensor, nn

from trt_compress.errors import ExportError
from trt_compress.export.weight_forms import dequantize_blocks
from trt_compress.export.weights import TakesTensors, without_tensors
from trt_compress.format.graphs import BATCH_SYMBOL
from trt_compress.models.hosts.base import GraphSpec, TensorSpec
from trt_compress.plugins.operator import LENGTHS_KEY, MARKER, RESIZED, SITE_KEY, unique_name
from trt_compress.plugins.registry import operators
from trt_compress.plugins.spec import DOMAIN

_TRACED_BATCH = 2  # 0 and 1 would be taken for constants
_UNBOUNDED = 2**31 - 1
_OUTPUT = "outputs/"  # before the names of outputs until those of other values are known


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceOptions:
    """How to trace one input [batch, …] to one output: their names, the largest batch, the ONNX opset."""

    input_name: str
    output_name: str
    max_batch: int
    opset: int


def onnx_from_module(module: nn.Module, input_shape: Sequence[int], options: TraceOptions) -> onnx.ModelProto:
    """Export a module of one fp32 input [batch, *input_shape] and one output; see `onnx_from_graph`."""
    return _traced(
        module,
        inputs=[TensorSpec(name=options.input_name, shape=(BATCH_SYMBOL, *input_shape))],
        outputs=[options.output_name],
        lengths={BATCH_SYMBOL: (1, _TRACED_BATCH, options.max_batch)},
        opset=options.opset,
    )


def onnx_from_graph(
    graph: GraphSpec, module: nn.Module, *, max_batch: int, opset: int, weights: TakesTensors | None = None
) -> onnx.ModelProto:
    """Export a graph with every symbol of its inputs and states as a dynamic axis; operators are nodes without bodies.

    Args:
        graph: Names, shapes, states, and the lengths of symbols.
        module: `graph.module`, or the same in another precision; in eval mode.
        max_batch: The largest batch.
        opset: ONNX opset.
        weights: Where the weights go, a tensor at a time; None: into the model.

    Returns:
        The model: inputs and then states, outputs and then new states. Nodes and outputs of operators are called
        `<site>/<operator>[/<output>]`, the tokens that leave a site `<site>/tokens`.

    Raises:
        ExportError: torch cannot export the module (the message ends with torch's reason), or an output is not what
            the graph says.
    """
    growing = {
        dim: (0, _TRACED_BATCH, state.capacity or _UNBOUNDED)
        for state in graph.states
        for dim in state.shape
        if isinstance(dim, str) and dim not in graph.input_symbols
    }
    model = _traced(
        module,
        inputs=graph.all_inputs,
        outputs=[spec.name for spec in graph.all_outputs],
        lengths={**growing, BATCH_SYMBOL: (1, _TRACED_BATCH, max_batch), **graph.lengths},
        opset=opset,
        weights=weights,
    )
    for spec, output in zip(graph.all_outputs, model.graph.output, strict=True):
        _check_output(graph.name, spec, output)
    return model


def _check_output(graph: str, spec: TensorSpec, output: onnx.ValueInfoProto) -> None:
    """Raise ExportError if the graph has another output than the host says, which the manifest would repeat."""
    tensor = output.type.tensor_type
    dtype = str(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    shape = [dim.dim_value if dim.HasField("dim_value") else dim.dim_param for dim in tensor.shape.dim]
    lengths = [(given, dim) for given, dim in zip(shape, spec.shape, strict=False) if isinstance(dim, int)]
    if dtype == spec.dtype and len(shape) == len(spec.shape) and all(given == dim for given, dim in lengths):
        return
    raise ExportError(
        f"graph '{graph}': output '{spec.name}' is {dtype} {shape} in ONNX, and its host says {spec.dtype} "
        f"{list(spec.shape)}; correct the host's outputs."
    )


def _traced(
    module: nn.Module,
    *,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[str],
    lengths: Mapping[str, tuple[int, int, int]],
    opset: int,
    weights: TakesTensors | None = None,
) -> onnx.ModelProto:
    symbols = {dim: lengths[dim] for spec in inputs for dim in spec.shape if isinstance(dim, str)}
    # Each symbol is traced at a length of its own, so that torch takes no two for one.
    traced = {name: max(usual, _TRACED_BATCH) for name, (_, usual, _) in symbols.items()}
    for place, name in enumerate(traced):
        while traced[name] in [traced[other] for other in [*traced][:place]]:
            traced[name] += 1
    axes = {
        name: torch.export.Dim(name, min=low, max=max(high, traced[name])) for name, (low, _, high) in symbols.items()
    }
    shapes = tuple({axis: axes[dim] for axis, dim in enumerate(s.shape) if isinstance(dim, str)} for s in inputs)
    try:
        with _no_garbage(), _quiet_torch(), torch.no_grad():
            program = torch.onnx.export(
                module,
                example_tensors(inputs, traced),
                dynamo=True,
                dynamic_shapes=_as_signature(module, shapes),
                input_names=[spec.name for spec in inputs],
                output_names=[f"{_OUTPUT}{name}" for name in outputs],
                opset_version=opset,
                verbose=False,
            )
            if program is None:
                raise ExportError(f"torch exported nothing of {type(module).__name__}, and did not say why.")
            model = program.model_proto if weights is None else without_tensors(program.model, weights)
            del program
    except torch.onnx.errors.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise ExportError(f"torch cannot export {type(module).__name__}: {reason}") from error
    _resize(model)
    dequantize_blocks(model)
    _name_outputs(model)
    _name_sites(model)
    _clean(model)
    return model


def example_tensors(specs: Sequence[TensorSpec], lengths: Mapping[str, int]) -> tuple[Tensor, ...]:
    """Zeros of the shapes of `specs`, a symbol being as long as `lengths` says."""
    return tuple(
        torch.zeros(
            [lengths[dim] if isinstance(dim, str) else dim for dim in spec.shape], dtype=getattr(torch, spec.dtype)
        )
        for spec in specs
    )


def _as_signature(module: nn.Module, shapes: tuple[dict[int, Any], ...]) -> tuple[Any, ...]:
    """Dynamic axes in the form of the arguments of `forward`: one entry each, and one tuple for a starred one.

    A starred one that nothing is given for is no argument.
    """
    kinds = [parameter.kind for parameter in inspect.signature(module.forward).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL not in kinds:
        return shapes
    star = kinds.index(inspect.Parameter.VAR_POSITIONAL)
    return (*shapes[:star], shapes[star:]) if shapes[star:] else shapes


@contextlib.contextmanager
def _no_garbage() -> Iterator[None]:
    """Hold the cycle collector back meanwhile, and see to it that nothing made meanwhile holds the weights afterwards.

    Tracing makes millions of objects that live to its end; those that were there before are not looked through. They
    hold each other in cycles, and the rules of onnxscript's optimizer hold the last graph that they saw, with the
    tensors that they took out of it: in all the model, which could not leave memory.
    """
    was_on = gc.isenabled()
    gc.disable()
    gc.freeze()
    try:
        yield
    finally:
        for item in gc.get_objects():  # without those that were there before
            if issubclass(type(item), ir.Value):
                item.const_value = None
        gc.collect()
        gc.unfreeze()
        if was_on:
            gc.enable()


@contextlib.contextmanager
def _quiet_torch() -> Iterator[None]:
    """Keep the exporter's own progress lines and warnings off the terminal; its errors come as exceptions."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _resize(model: onnx.ModelProto) -> None:
    """Give outputs of operators the sizes that the data decide: what a Resized node makes comes from its operator.

    Of an output that nobody reads, and that so has lost its Resized node, only the largest size was traced. No size is
    left to stand for it: ONNX Runtime would trust it when it plans its memory.
    """
    resized = {node.input[0]: node.output[0] for node in model.graph.node if node.op_type == RESIZED}
    kept = [node for node in model.graph.node if node.op_type != RESIZED]
    untrue = set(resized)
    for node in kept:
        lengths = next((p.value for p in node.metadata_props if p.key == LENGTHS_KEY), "")
        untrue.update(node.output[int(place)] for place in lengths.split())
        node.output[:] = [resized.get(name, name) for name in node.output]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    known = [info for info in model.graph.value_info if info.name not in untrue]
    del model.graph.value_info[:]
    model.graph.value_info.extend(known)


def _name_outputs(model: onnx.ModelProto) -> None:
    """Give the outputs their names, and other ones to values within the graph that torch gave one of these.

    torch calls a value after what made it, `embedding` after an Embedding, whatever the outputs are to be called.
    """
    wanted = {info.name: info.name.removeprefix(_OUTPUT) for info in model.graph.output}
    taken = {value for node in model.graph.node for value in (*node.input, *node.output)} | set(wanted.values())
    inner = {value for node in model.graph.node for value in node.output} & set(wanted.values())
    renamed = dict(wanted)
    for name in sorted(inner):
        number = next(number for number in itertools.count(1) if f"{name}_{number}" not in taken)
        renamed[name] = f"{name}_{number}"
        taken.add(renamed[name])
    for node in model.graph.node:
        node.input[:] = [renamed.get(value, value) for value in node.input]
        node.output[:] = [renamed.get(value, value) for value in node.output]
    for info in (*model.graph.value_info, *model.graph.output):
        info.name = renamed.get(info.name, info.name)


def _name_sites(model: onnx.ModelProto) -> None:
    """Name operator nodes and their outputs after their sites; turn markers into names and remove them.

    Inputs, outputs and weights of the graph keep their names: an Identity stands where one of them is also a site's,
    but not behind an operator that writes in place; one also stands between two sites with one tensor.
    """
    fixed = {value.name for value in (*model.graph.input, *model.graph.output, *model.graph.initializer)}
    taken: set[str] = set()
    renamed: dict[str, str] = {}
    markers: list[onnx.NodeProto] = []
    copied: dict[str, str] = {}
    for node in model.graph.node:
        if node.domain != DOMAIN:
            continue
        site = next((p.value for p in node.metadata_props if p.key == SITE_KEY), "")
        if node.op_type == MARKER:
            name = unique_name(site, taken)
            taken.add(name)
            named = {*fixed, *(marker.output[0] for marker in markers)}  # another site's name may be theirs already
            if not named.isdisjoint((node.input[0], node.output[0])):
                node.op_type, node.domain, node.name = "Identity", "", name
                del node.attribute[:]
                renamed.update((value, name) for value in (node.input[0], node.output[0]) if value not in named)
                continue
            renamed[node.input[0]] = renamed[node.output[0]] = name
            markers.append(node)
            continue
        spec = operators()[node.op_type].spec
        node.name = unique_name(f"{site}/{spec.name}", taken)
        taken.add(node.name)
        for place, (value, output) in enumerate(zip(node.output, spec.outputs, strict=False)):
            name = f"{node.name}/{output.name}"
            if value in fixed and output.aliases is None:
                copied[value] = node.output[place] = name
            elif value in fixed:  # a copy would keep it from being written in place
                continue
            else:
                renamed.setdefault(value, name)
    for node in markers:
        model.graph.node.remove(node)
    for node in model.graph.node:
        node.input[:] = [copied.get(value, renamed.get(value, value)) for value in node.input]
        node.output[:] = [renamed.get(value, value) for value in node.output]
    for value, name in copied.items():
        model.graph.node.append(onnx.helper.make_node("Identity", [name], [value], name=f"{name}/copy"))
    known = [info for info in model.graph.value_info if info.name not in {node.output[0] for node in markers}]
    for info in known:
        info.name = renamed.get(info.name, info.name)
    del model.graph.value_info[:]
    model.graph.value_info.extend(known)


def _clean(model: onnx.ModelProto) -> None:
    """Drop stack traces and other notes of the exporter: they hold paths of the exporting machine."""
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for item in (*model.graph.value_info, *model.graph.initializer, *model.graph.input, *model.graph.output):
        del item.metadata_props[:]
        item.doc_string = ""
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    model.graph.doc_string = model.doc_string = ""
