"""Whether there is memory for an export or a verification, before more of it is taken than the model itself."""

from collections.abc import Sequence

from torch import Tensor, nn

from trt_compress.errors import UnsupportedError
from trt_compress.export.few_layers import first_of
from trt_compress.export.precision import TORCH_DTYPES
from trt_compress.export.recipe import Recipe
from trt_compress.memory import available_bytes, format_bytes
from trt_compress.models.hosts.base import GraphSpec
from trt_compress.models.layers.block_form import BlockForm

_COPIES = 2
"""Of a graph's weights in memory while ONNX Runtime runs it: as it read them and as it multiplies with them. It is more
for some graphs, so that this refuses none that would have had room."""


def check_room(graphs: Sequence[GraphSpec], recipe: Recipe, layers: int | None) -> None:
    """Refuse what there is no memory for: weights in the precision of the graphs, and what runs in a verification.

    Args:
        graphs: Of the model, as it was loaded.
        recipe: Precision, and how weights are quantized.
        layers: How many layers are run in the verification, the first ones; None: all are.

    Raises:
        UnsupportedError: There is not enough.
    """
    free = available_bytes()
    if free is None:
        return
    tensors = _tensors([graph.module for graph in graphs])
    held = sum(tensor.numel() * tensor.element_size() for tensor, _ in tensors)
    item = TORCH_DTYPES[recipe.floats].itemsize
    widened = sum(_bytes(tensor, item) for tensor, _ in tensors) if recipe.weights_bits is None else 0
    more = max(widened - held, 0)

    def needed(count: int | None) -> int:
        """What is taken besides with so many layers."""
        form = recipe.weights_bits
        parts = [part for graph in graphs for part in _tensors([first_of(graph, count).module])]
        return more + _COPIES * sum(_bytes(tensor, item, form if linear else None) for tensor, linear in parts)

    if (besides := needed(layers)) <= free:
        return
    deep = any(graph.layers is not None and graph.layers.count > 1 for graph in graphs)
    fewer = layers is None and deep and needed(1) <= free
    raise UnsupportedError(
        f"{recipe.model} takes {format_bytes(held)} as it is loaded and at least {format_bytes(besides)} besides, in "
        f"{recipe.precision} and for its verification, and {format_bytes(free)} are free; "
        + ("give --verify-layers N to run its first N layers only, " if fewer else "")
        + ("or take a machine with more memory." if fewer else "take a machine with more memory.")
    )


def _tensors(modules: Sequence[nn.Module]) -> list[tuple[Tensor, bool]]:
    """Every tensor of these modules once, and whether it is the weight of a linear layer."""
    found: dict[int, tuple[Tensor, bool]] = {}
    for module in modules:
        for part in module.modules():
            for name, tensor in (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)):
                linear = isinstance(part, nn.Linear) and name == "weight"
                found[id(tensor)] = (tensor, linear or found.get(id(tensor), (tensor, False))[1])
    return list(found.values())


def _bytes(tensor: Tensor, item: int, form: BlockForm | None = None) -> int:
    """Bytes of a tensor in a graph of this precision; with a form, quantized."""
    if not tensor.is_floating_point():
        return tensor.numel() * tensor.element_size()
    if form is None:
        return tensor.numel() * item
    return tensor.numel() * form.bits // 8 + tensor.numel() // form.group * item
