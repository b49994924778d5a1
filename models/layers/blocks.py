"""Linear layers whose weights are whole numbers with a scale for each block: weight-only quantization.

The matrix is kept as [K, N] (K inputs, N outputs), which is how `MatMul` takes it: ONNX Runtime fuses a blocked
DequantizeLinear and the MatMul behind it only in this layout.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trt_compress.models.layers.block_form import BlockForm
from trt_compress.plugins.spec import DOMAIN

BLOCKS = "Blocks"
"""Op type of a node that stands for a blocked DequantizeLinear while torch's exporter might fold it; tracing turns it
into that."""

_ROWS = 4096  # of a matrix that are quantized at once: what a large head needs besides stays small


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeNumbers:
    """The weight of a linear layer as whole numbers: weight = (codes - zero) * scale.

    Attributes:
        bits: 4 or 8.
        group: Inputs, one after the other, that share a scale.
        codes: int8 [outputs, inputs], of 4 bits from -8 to 7.
        scale: float16 or float32 [outputs, inputs / group], not negative.
        zero: int8 [outputs, inputs / group], as the codes; None: all are 0.
    """

    bits: int
    group: int
    codes: Tensor
    scale: Tensor
    zero: Tensor | None = None

    @classmethod
    def joined(cls, parts: Sequence["WholeNumbers | None"]) -> "WholeNumbers | None":
        """One layer with the outputs of several behind each other; None: some are of another form, or of none."""
        known = [part for part in parts if part is not None]
        forms = {(part.bits, part.group, part.codes.shape[1], part.scale.dtype) for part in known}
        if len(known) < len(parts) or len(forms) != 1:
            return None
        if len(known) == 1:
            return known[0]
        zeros = [torch.zeros_like(part.scale, dtype=torch.int8) if part.zero is None else part.zero for part in known]
        return cls(
            bits=known[0].bits,
            group=known[0].group,
            codes=torch.cat([part.codes for part in known]),
            scale=torch.cat([part.scale for part in known]),
            zero=None if all(part.zero is None for part in known) else torch.cat(zeros),
        )

    def in_form(self, form: BlockForm) -> "WholeNumbers | None":
        """The same weight, exactly, in another form; None: it cannot be had so.

        A group may be divided, and 4 bits with zero points are 8 bits without.
        """
        if form.bits < self.bits or self.group % form.group:
            return None
        times = self.group // form.group
        scale = self.scale.repeat_interleave(times, dim=1)
        zero = None if self.zero is None else self.zero.repeat_interleave(times, dim=1)
        codes = self.codes
        if form.bits > self.bits and zero is not None:
            codes, zero = codes - zero.repeat_interleave(form.group, dim=1), None
        return WholeNumbers(bits=form.bits, group=form.group, codes=codes, scale=scale, zero=zero)


class BlockLinear(nn.Module):
    """A linear layer with a quantized weight; it takes the place of an `nn.Linear`.

    `matrix` is what every form of the layer computes with: codes less zero points, times scales, in the precision of
    the scales. Codes that are made here are symmetric (no zero point), rounded to nearest; a scale is the smallest with
    which no weight of its block is cut off, rounded to its precision. Those that came with the weights stay the same.

    Attributes:
        codes: int8 [K, N]; of 4 bits uint8 [(K * N + 1) // 2], two to a byte in row-major order, the earlier in the
            lower half, as ONNX packs INT4.
        scale: [K / group, N], positive.
        zero: As the codes, [K / group, N]; None: all are 0.
        bias: [N] or None.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor | None
    bias: nn.Parameter | None

    def __init__(self, linear: nn.Linear, form: BlockForm, dtype: torch.dtype) -> None:
        """Quantize `linear`, whose inputs are a multiple of the group, with scales of `dtype`; it stays as it is."""
        super().__init__()
        self.form = form
        self.in_features, self.out_features = linear.in_features, linear.out_features
        stored = _stored_in(linear, form)
        zero: Tensor | None = None
        with torch.no_grad():
            if stored is None:
                parts = [_quantized(rows, form, dtype) for rows in torch.split(linear.weight.detach(), _ROWS)]
                codes = torch.cat([codes for codes, _ in parts], dim=1)
                scale = torch.cat([scale for _, scale in parts], dim=1)
            else:
                codes, scale, zero = _transposed(stored, dtype)
            self.register_buffer("codes", _packed(codes) if form.bits == 4 else codes)
            self.register_buffer("scale", scale)
            self.register_buffer("zero", _packed(zero) if zero is not None and form.bits == 4 else zero)
        self.register_parameter("bias", linear.bias)

    def matrix(self) -> Tensor:
        """The weight [K, N]; in a graph being exported the node that computes it."""
        shape = (self.in_features, self.out_features)
        if torch.onnx.is_in_onnx_export():
            return torch.onnx.ops.symbolic(
                f"{DOMAIN}::{BLOCKS}",
                [self.codes, self.scale, *([] if self.zero is None else [self.zero])],
                attrs={"bits": self.form.bits, "block_size": self.form.group, "shape": list(shape)},
                dtype=self.scale.dtype,
                shape=shape,
                version=1,
            )
        codes = _unpacked(self.codes, shape) if self.form.bits == 4 else self.codes
        blocks = codes.reshape(-1, self.form.group, self.out_features).to(self.scale.dtype)
        if self.zero is not None:
            shape = (self.in_features // self.form.group, self.out_features)
            zero = _unpacked(self.zero, shape) if self.form.bits == 4 else self.zero
            blocks = blocks - zero[:, None].to(self.scale.dtype)
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

    A layer stays as it is if its inputs are no multiple of the group. One whose weight is an embedding's too, the head
    of many decoders, gets 8 bits: every logit is made of it. The embedding stays as it is.

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
        if linear.in_features % form.group:
            kept[name] = f"its {linear.in_features} inputs are no multiple of {form.group}"
        else:
            own = BlockForm(bits=8, group=form.group) if id(linear.weight) in embedded else form
            made[id(linear)] = made.get(id(linear)) or BlockLinear(linear, own, dtype)
            setattr(parent, attribute, made[id(linear)])
    return kept, len(made)


def _stored_in(linear: nn.Linear, form: BlockForm) -> WholeNumbers | None:
    """The whole numbers that a layer's weight came in, if they are there in this form.

    Whoever loads such a layer gives it the attribute `stored`, a function that reads them.
    """
    read: Callable[[], WholeNumbers | None] | None = getattr(linear, "stored", None)
    found = None if read is None else read()
    return None if found is None else found.in_form(form)


def _transposed(stored: WholeNumbers, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor | None]:
    """Codes [K, N], positive scales of `dtype` and zero points [K / group, N]."""
    codes, scale, zero = (None if x is None else x.t().contiguous() for x in (stored.codes, stored.scale, stored.zero))
    assert codes is not None and scale is not None
    nothing = scale == 0
    if bool(nothing.any()):  # a block of nothing but 0
        middle = torch.zeros_like(scale, dtype=torch.int8) if zero is None else zero
        whole = nothing.repeat_interleave(stored.group, dim=0)
        codes = torch.where(whole, middle.repeat_interleave(stored.group, dim=0), codes)
    return codes, scale.to(dtype).clamp_min(torch.finfo(dtype).tiny), zero


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
