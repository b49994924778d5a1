"""The numbers a graph computes in: a module in fp32, fp16 or bf16, its weights as they are or quantized in blocks.

What a graph takes and gives keeps the dtype that the host declares: precision is inside. Everything here changes the
module in place, one tensor at a time, before it is traced, so that its tensors are what the ONNX file will hold and the
module itself is what the file is compared with.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from trt_compress.errors import ConfigError, ExportError
from trt_compress.export.targets import PRECISIONS
from trt_compress.models.hosts.base import GraphSpec
from trt_compress.models.layers.block_form import BlockForm
from trt_compress.models.layers.blocks import BlockLinear, came_as, quantize_linears
from trt_compress.suggest import not_known

TORCH_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class InPrecision(nn.Module):
    """A module that computes in another precision than float32, between ends of the dtypes that are declared.

    An input or state that is declared float32, and is none of `GraphSpec.exact`, enters in the precision of the graph;
    any other one as it is. Results leave as declared.
    """

    def __init__(self, module: nn.Module, dtype: torch.dtype, graph: GraphSpec | None = None) -> None:
        super().__init__()
        self.module = module
        self._dtype = dtype
        self._follows = (
            None
            if graph is None
            else [spec.dtype == "float32" and spec.name not in graph.exact for spec in graph.all_inputs]
        )
        self._declared = None if graph is None else [getattr(torch, spec.dtype) for spec in graph.all_outputs]

    def forward(self, *tensors: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The module's outputs, computed in its precision."""
        follows = [x.is_floating_point() for x in tensors] if self._follows is None else self._follows
        given = (x.to(self._dtype) if follow else x for x, follow in zip(tensors, follows, strict=True))
        results = self.module(*given)
        several = (results,) if isinstance(results, Tensor) else tuple(results)
        declared = [torch.float32] * len(several) if self._declared is None else self._declared
        ends = tuple(_as(y, dtype) for y, dtype in zip(several, declared, strict=True))
        return ends[0] if isinstance(results, Tensor) else ends


def with_precision(module: nn.Module, precision: str, graph: GraphSpec | None = None) -> nn.Module:
    """`module`, converted in place, in `precision`, between ends of the dtypes that `graph` declares.

    Args:
        module: In eval mode; weights of half precision are widened for fp32.
        precision: fp32, fp16 or bf16.
        graph: What the module takes and gives; None: float32, and integers as they are.

    Raises:
        ConfigError: an unknown precision, or a weight beyond its range (named).
        ExportError: an end is declared as something that numpy does not have.
    """
    if precision not in PRECISIONS:
        raise ConfigError(not_known("precision", precision, PRECISIONS))
    if graph is not None:
        _check_ends(graph)
    dtype = TORCH_DTYPES[precision]
    if precision == "fp32":
        if not any(_is_half(tensor) for tensor in module.state_dict().values()):
            return module
        _restore(module)
        return module.float()
    largest = torch.finfo(dtype).max
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point() and tensor.numel() and (peak := _peak(tensor)) > largest:
            limit = 65504 if precision == "fp16" else f"{largest:.3g}"
            raise ConfigError(
                f"precision {precision}: {name} holds {peak:.3g}, beyond {precision}'s {limit}; use fp32."
            )
    return InPrecision(module.to(dtype), dtype, graph)


def as_loaded(module: nn.Module, graph: GraphSpec) -> nn.Module:
    """`module` in the precision in which its weights were loaded, between ends of the dtypes that `graph` declares."""
    dtype = next((x.dtype for x in module.parameters() if x.is_floating_point()), torch.float32)
    return module if dtype == torch.float32 else InPrecision(module, dtype, graph)


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantized:
    """What `quantize` did.

    Attributes:
        layers: How many linear layers it took.
        kept: Those that it left, with the reason for each.
        smaller: Those with a smaller group than was asked for, and that.
        again: Those whose weights came in other blocks and were rounded once more, with the form that keeps them.
    """

    layers: int
    kept: dict[str, str] = field(default_factory=dict)
    smaller: dict[str, int] = field(default_factory=dict)
    again: dict[str, BlockForm] = field(default_factory=dict)

    def sentences(self, form: BlockForm) -> tuple[str, ...]:
        """What is otherwise than was asked for."""
        found = []
        if self.kept:
            found.append(f"the weights of {_some(self.kept)} stay as they are: {next(iter(self.kept.values()))}")
        for group in sorted(set(self.smaller.values()), reverse=True):
            names = [name for name, own in self.smaller.items() if own == group]
            which = f"the weights of {_some(names)} have groups of {group}"
            found.append(f"{which}, as {form.group} does not divide their inputs")
        if self.again:
            came = self.again.values()
            keeps = BlockForm(bits=max(own.bits for own in came), group=min(own.group for own in came))
            found.append(
                f"the weights of {_some(self.again)} came in other blocks, and are rounded once more; {keeps} keeps "
                "them as they are"
            )
        return tuple(f"weights_bits {form}: {sentence}" for sentence in found)


def quantize(modules: Sequence[nn.Module], form: BlockForm, precision: str) -> Quantized:
    """Quantize the weights of all linear layers in place; graphs that share a layer go on sharing it.

    Args:
        modules: Of the graphs, before `with_precision`: scales come from the weights as they were loaded.
        form: Bits and group.
        precision: Of the graph, which is that of the scales.

    Raises:
        ConfigError: No layer can be quantized; the first reasons are named.
    """
    kept: dict[str, str] = {}
    made: dict[str, BlockLinear] = {}
    for module in modules:
        left, anew = quantize_linears(module, form, TORCH_DTYPES[precision])
        kept |= left
        made |= anew
    if not made:
        why = "; ".join(f"{name}: {reason}" for name, reason in list(kept.items())[:3])
        raise ConfigError(
            f"weights_bits {form}: the model has no linear layer that takes it ({why or 'it has none at all'}); give a "
            "smaller group, or leave it out."
        )
    return Quantized(
        layers=len(made),
        kept=kept,
        smaller={name: layer.form.group for name, layer in made.items() if layer.form.group < form.group},
        again={
            name: layer.again if layer.form.bits == form.bits else replace(layer.again, bits=form.bits)
            for name, layer in made.items()
            if layer.again is not None
        },
    )


def _restore(module: nn.Module) -> None:
    """Read weights anew that were rounded to half precision when they were loaded, as exactly as they came."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding) and _is_half(part.weight) and (came := came_as(part)) is not None:
            part.weight.data = came.numbers()


def _some(names: Collection[str]) -> str:
    """The first of some names, and how many more there are."""
    return f"{next(iter(names))} and {len(names) - 1} more" if len(names) > 1 else next(iter(names))


def _as(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() and dtype.is_floating_point else tensor


def _peak(tensor: Tensor) -> float:
    """The largest magnitude, without a second tensor of this size."""
    low, high = tensor.aminmax()
    return max(-float(low), float(high))


def _is_half(tensor: Tensor) -> bool:
    return tensor.dtype in (torch.float16, torch.bfloat16)


def _check_ends(graph: GraphSpec) -> None:
    for spec in (*graph.all_inputs, *graph.all_outputs):
        if np.dtype(spec.dtype).kind not in "biuf":  # bfloat16 is there if onnx has registered it, and of another kind
            raise ExportError(
                f"graph '{graph.name}': '{spec.name}' is declared {spec.dtype}, which numpy does not have, so that it "
                "could not be verified; declare another dtype, such as float16."
            )
