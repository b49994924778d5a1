"""Linear layers whose weights are whole numbers with a scale for each block: weight-only quantization.

The matrix is kept as [K, N] (K inputs, N outputs), which is how `MatMul` takes it: ONNX Runtime fuses a blocked
DequantizeLinear and the MatMul behind it only in this layout.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from trt_compress.models.layers.block_form import BlockForm
from trt_compress.plugins.spec import DOMAIN

BLOCKS = "Blocks"
"""Op type of a node that stands for a blocked DequantizeLinear while torch's exporter might fold it; tracing turns it
into that."""

_ROWS = 4096  # of a matrix that are quantized at once: what a large head needs besides stays small


class BlockLinear(nn.Module):
    """A linear layer with a quantized weight; it takes the place of an `nn.Linear`.

    `matrix` is what every form of the layer computes with: codes times scales, in the precision of the scales. Codes
    are symmetric (no zero point), rounded to nearest; a scale is the smallest with which no weight of its block is cut
    off, rounded to its precision.

    Attributes:
        codes: int8 [K, N]; of 4 bits uint8 [(K * N + 1) // 2], two to a byte in row-major order, the earlier in the
            lower half, as ONNX packs INT4.
        scale: [K / group, N], positive.
        bias: [N] or None.
    """

    codes: Tensor
    scale: Tensor
    bias: nn.Parameter | None

    def __init__(self, linear: nn.Linear, form: BlockForm, dtype: torch.dtype) -> None:
        """Quantize `linear`, whose inputs are a multiple of the group, with scales of `dtype`; it stays as it is."""
        super().__init__()
        self.form = form
        self.in_features, self.out_features = linear.in_features, linear.out_features
        with torch.no_grad():
            parts = [_quantized(rows, form, dtype) for rows in torch.split(linear.weight.detach(), _ROWS)]
            codes = torch.cat([codes for codes, _ in parts], dim=1)
            self.register_buffer("codes", _packed(codes) if form.bits == 4 else codes)
            self.register_buffer("scale", torch.cat([scale for _, scale in parts], dim=1))
        self.register_parameter("bias", linear.bias)

    def matrix(self) -> Tensor:
        """The weight [K, N]; in a graph being exported the node that computes it."""
        shape = (self.in_features, self.out_features)
        if torch.onnx.is_in_onnx_export():
            return torch.onnx.ops.symbolic(
                f"{DOMAIN}::{BLOCKS}",
                [self.codes, self.scale],
                attrs={"bits": self.form.bits, "block_size": self.form.group, "shape": list(shape)},
                dtype=self.scale.dtype,
                shape=shape,
                version=1,
            )
        codes = _unpacked(self.codes, shape) if self.form.bits == 4 else self.codes
        blocks = codes.reshape(-1, self.form.group, self.out_features).to(self.scale.dtype)
        matrix: Tensor = (blocks * self.scale[:, None]).flatten(0, 1)
        return matrix

    @property
    def weight(self) -> Tensor:
        """The weight [N, K], as that of an `nn.Linear`."""
        return self.matrix().t()

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., K] to [..., N]."""
        y = torch.matmul(x, self.matrix())
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        """What `print` says of the layer."""
        return f"{self.in_features}, {self.out_features}, bits={self.form.bits}, group={self.form.group}"


def linears(module: nn.Module) -> Iterator[tuple[str, nn.Module, str, nn.Linear]]:
    """Every linear layer: its full name, its parent, its name there, and itself; one that stands twice comes twice."""
    for path, parent in module.named_modules():
        for name, child in parent._modules.items():  # named_children leaves out what stands there twice
            if isinstance(child, nn.Linear) and type(child).forward is nn.Linear.forward:
                yield f"{path}.{name}".lstrip("."), parent, name, child


def quantize_linears(module: nn.Module, form: BlockForm, dtype: torch.dtype) -> tuple[dict[str, str], int]:
    """Put a BlockLinear in the place of every linear layer of `module` that takes one, one after the other.

    A layer stays as it is if its inputs are no multiple of the group, or if an embedding has the same weight.

    Args:
        module: Changed in place.
        form: Bits and group.
        dtype: Of the scales: the precision of the graph.

    Returns:
        The layers that stay, by name, with the reason; and how many were replaced.
    """
    embedded = {id(part.weight) for part in module.modules() if isinstance(part, nn.Embedding)}
    kept: dict[str, str] = {}
    made: dict[int, BlockLinear] = {}
    for name, parent, attribute, linear in list(linears(module)):
        if id(linear.weight) in embedded:
            kept[name] = "an embedding has the same weight"
        elif linear.in_features % form.group:
            kept[name] = f"its {linear.in_features} inputs are no multiple of {form.group}"
        else:
            made[id(linear)] = made.get(id(linear)) or BlockLinear(linear, form, dtype)
            setattr(parent, attribute, made[id(linear)])
    return kept, len(made)


def _quantized(rows: Tensor, form: BlockForm, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Codes int8 [K, rows] and scales [K / group, rows] of a weight [rows, K]."""
    largest = 2 ** (form.bits - 1) - 1
    blocks = rows.float().t().reshape(-1, form.group, len(rows))
    wanted = torch.maximum(blocks.amax(dim=1) / largest, -blocks.amin(dim=1) / (largest + 1))
    scale = wanted.to(dtype).clamp_min(torch.finfo(dtype).tiny)
    codes = (blocks / scale[:, None].float()).round().clamp(-largest - 1, largest)
    return codes.to(torch.int8).flatten(0, 1).contiguous(), scale


def _packed(codes: Tensor) -> Tensor:
    flat = codes.flatten().view(torch.uint8) & 15
    flat = nn.functional.pad(flat, (0, len(flat) % 2))
    return flat[0::2] | flat[1::2] << 4


def _unpacked(packed: Tensor, shape: tuple[int, int]) -> Tensor:
    halves = torch.stack([packed & 15, packed >> 4], dim=1).flatten()[: shape[0] * shape[1]]
    return ((halves ^ 8).to(torch.int8) - 8).reshape(shape)
