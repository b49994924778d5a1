"""Linear layers whose weights are whole numbers with a scale for each block: weight-only quantization.

The matrix is kept as [K, N] (K inputs, N outputs), which is how `MatMul` takes it: ONNX Runtime fuses a blocked
DequantizeLinear and the MatMul behind it only in this layout.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from trt_compress.models.layers.block_form import GROUPS, BlockForm
from trt_compress.plugins.spec import DOMAIN

BLOCKS = "Blocks"
"""Op type of a node that stands for a blocked DequantizeLinear while torch's exporter might fold it; tracing turns it
into that."""

_ROWS = 4096  # of a matrix that are quantized at once: what a large head needs besides stays small


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeNumbers:
    """The weight of a linear layer as whole numbers: weight = (codes - zero) * scale + least.

    Attributes:
        bits: 4 or 8.
        group: Inputs, one after the other, that share a scale.
        codes: int8 [outputs, inputs], of 4 bits from -8 to 7.
        scale: float16 or float32 [outputs, inputs / group], not negative.
        zero: int8 [outputs, inputs / group], as the codes; None: all are 0.
        least: float32 [outputs, inputs / group], what a code of 0 stands for; None: all are 0, as they are where there
            are zero points.
    """

    bits: int
    group: int
    codes: Tensor
    scale: Tensor
    zero: Tensor | None = None
    least: Tensor | None = None

    @property
    def form(self) -> BlockForm:
        """Bits and group."""
        return BlockForm(bits=self.bits, group=self.group)

    @classmethod
    def joined(cls, parts: Sequence["WholeNumbers | None"]) -> "WholeNumbers | None":
        """One layer with the outputs of several behind each other, in the one form that takes all of them exactly.

        None: some are of no form, or there is no such form.
        """
        known = [part for part in parts if part is not None]
        if len(known) < len(parts) or len({part.codes.shape[1] for part in known}) != 1:
            return None
        if len(known) == 1:
            return known[0]
        form = BlockForm(bits=max(part.bits for part in known), group=min(part.group for part in known))
        alike = [found for part in known if (found := part.in_form(form)) is not None]
        if len(alike) < len(known):
            return None
        dtype = torch.float16 if all(part.scale.dtype == torch.float16 for part in alike) else torch.float32
        zeros = [torch.zeros_like(part.scale, dtype=torch.int8) if part.zero is None else part.zero for part in alike]
        least = [torch.zeros_like(p.scale, dtype=torch.float32) if p.least is None else p.least for p in alike]
        has_zero, has_least = any(part.zero is not None for part in alike), any(p.least is not None for p in alike)
        return cls(
            bits=form.bits,
            group=form.group,
            codes=torch.cat([part.codes for part in alike]),
            scale=torch.cat([part.scale.to(dtype) for part in alike]),
            zero=torch.cat(zeros) if has_zero else None,
            least=torch.cat(least) if has_least else None,
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
        least = None if self.least is None else self.least.repeat_interleave(times, dim=1)
        codes = self.codes
        if form.bits > self.bits and zero is not None:
            codes, zero = codes - zero.repeat_interleave(form.group, dim=1), None
        return WholeNumbers(bits=form.bits, group=form.group, codes=codes, scale=scale, zero=zero, least=least)

    def numbers(self) -> Tensor:
        """The weight, float32 [outputs, inputs]."""
        blocks = self.codes.float().reshape(len(self.codes), -1, self.group)
        if self.zero is not None:
            blocks -= self.zero[..., None]
        blocks *= self.scale[..., None].float()
        if self.least is not None:
            blocks += self.least[..., None]
        return blocks.flatten(1)


class BlockLinear(nn.Module):
    """A linear layer with a quantized weight; it takes the place of an `nn.Linear`.

    `matrix` is what every form of the layer computes with: codes less zero points, times scales, and the least number
    of each block, in the precision of the scales. In a graph the latter are a factor of their own, which is multiplied
    with the sums of what the blocks are multiplied with: no library dequantizes with a zero point that is no whole
    number. Codes that are made here are symmetric (no zero point), rounded to nearest; a scale is the smallest with
    which no weight of its block is cut off, rounded to its precision. Those that came with the weights stay the same.

    Attributes:
        codes: int8 [K, N]; of 4 bits uint8 [(K * N + 1) // 2], two to a byte in row-major order, the earlier in the
            lower half, as ONNX packs INT4.
        scale: [K / group, N], positive.
        zero: As the codes, [K / group, N]; None: all are 0.
        least: As the scales; None: all are 0.
        again: The form of the blocks that the weight came in, where it had to be rounded once more; else None.
        bias: [N] or None.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor | None
    least: Tensor | None
    bias: nn.Parameter | None

    def __init__(self, linear: nn.Linear, form: BlockForm, dtype: torch.dtype) -> None:
        """Quantize `linear`, whose inputs are a multiple of the group, with scales of `dtype`; it stays as it is."""
        super().__init__()
        self.form = form
        self.in_features, self.out_features = linear.in_features, linear.out_features
        came = came_as(linear)
        stored = None if came is None else came.in_form(form)
        self.again = came.form if came is not None and stored is None else None
        zero: Tensor | None = None
        least: Tensor | None = None
        with torch.no_grad():
            if stored is None:
                weight = linear.weight.detach() if came is None else came.numbers()
                parts = [_quantized(rows, form, dtype) for rows in torch.split(weight, _ROWS)]
                codes = torch.cat([codes for codes, _ in parts], dim=1)
                scale = torch.cat([scale for _, scale in parts], dim=1)
            else:
                codes, scale, zero = _transposed(stored, dtype)
                least = None if stored.least is None else stored.least.t().contiguous().to(dtype)
            self.register_buffer("codes", _packed(codes) if form.bits == 4 else codes)
            self.register_buffer("scale", scale)
            self.register_buffer("zero", _packed(zero) if zero is not None and form.bits == 4 else zero)
            self.register_buffer("least", least)
        self.register_parameter("bias", linear.bias)

    def matrix(self) -> Tensor:
        """The weight [K, N]."""
        codes = _unpacked(self.codes, (self.in_features, self.out_features)) if self.form.bits == 4 else self.codes
        blocks = codes.reshape(-1, self.form.group, self.out_features).to(self.scale.dtype)
        if self.zero is not None:
            shape = (self.in_features // self.form.group, self.out_features)
            zero = _unpacked(self.zero, shape) if self.form.bits == 4 else self.zero
            blocks = blocks - zero[:, None].to(self.scale.dtype)
        blocks = blocks * self.scale[:, None]
        matrix: Tensor = (blocks if self.least is None else blocks + self.least[:, None]).flatten(0, 1)
        return matrix

    @property
    def weight(self) -> Tensor:
        """The weight [N, K], as that of an `nn.Linear`."""
        return self.matrix().t()

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., K] to [..., N]."""
        y = self._exported(x) if torch.onnx.is_in_onnx_export() else torch.matmul(x, self.matrix())
        return y if self.bias is None else y + self.bias

    def _exported(self, x: Tensor) -> Tensor:
        """The product, without the bias, as a graph computes it."""
        shape = (self.in_features, self.out_features)
        blocks = torch.onnx.ops.symbolic(
            f"{DOMAIN}::{BLOCKS}",
            [self.codes, self.scale, *([] if self.zero is None else [self.zero])],
            attrs={"bits": self.form.bits, "block_size": self.form.group, "shape": list(shape)},
            dtype=self.scale.dtype,
            shape=shape,
            version=1,
        )
        y = torch.matmul(x, blocks)
        if self.least is None:
            return y
        return y + torch.matmul(x.reshape(*x.shape[:-1], -1, self.form.group).sum(dim=-1), self.least)

    def extra_repr(self) -> str:
        """What `print` says of the layer."""
        return f"{self.in_features}, {self.out_features}, bits={self.form.bits}, group={self.form.group}"


def linears(module: nn.Module) -> Iterator[tuple[str, nn.Module, str, nn.Linear]]:
    """Every linear layer: its full name, its parent, its name there, and itself; one that stands twice comes twice."""
    for path, parent in module.named_modules():
        for name, child in parent._modules.items():  # named_children leaves out what stands there twice
            if isinstance(child, nn.Linear) and type(child).forward is nn.Linear.forward:
                yield f"{path}.{name}".lstrip("."), parent, name, child


def quantize_linears(
    module: nn.Module, form: BlockForm, dtype: torch.dtype
) -> tuple[dict[str, str], dict[str, BlockLinear]]:
    """Put a BlockLinear in the place of every linear layer of `module` that takes one, one after the other.

    A layer whose inputs are no multiple of the group gets the largest smaller one that divides them, and stays as it is
    if none does. One whose weight is an embedding's too, the head of many decoders, gets 8 bits: every logit is made of
    it. The embedding stays as it is.

    Args:
        module: Changed in place.
        form: Bits and group.
        dtype: Of the scales: the precision of the graph.

    Returns:
        The layers that stay, by name, with the reason; and those that were made.
    """
    embedded = {id(part.weight) for part in module.modules() if isinstance(part, nn.Embedding)}
    kept: dict[str, str] = {}
    made: dict[int, BlockLinear] = {}
    names: dict[str, BlockLinear] = {}
    for name, parent, attribute, linear in list(linears(module)):
        own = form.dividing(linear.in_features)
        if own is None:
            kept[name] = f"its {linear.in_features} inputs are no multiple of {GROUPS[0]}"
            continue
        if id(linear) not in made:
            own = replace(own, bits=8) if id(linear.weight) in embedded else own
            names[name] = made[id(linear)] = BlockLinear(linear, own, dtype)
        setattr(parent, attribute, made[id(linear)])
    return kept, names


def came_as(layer: nn.Module) -> WholeNumbers | None:
    """The whole numbers that a layer's weight came in; None: it came in none.

    Whoever loads such a layer gives it the attribute `stored`, a function that reads them.
    """
    read: Callable[[], WholeNumbers | None] | None = getattr(layer, "stored", None)
    return None if read is None else read()


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
