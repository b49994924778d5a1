"""The gated feed-forward part of decoders: two matrices as one, the first half through an activation.

Source: GLU variants, arXiv:2002.05202.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "relu": torch.relu,
}


class GatedFeed(nn.Module):
    """`down(activation(gate(x)) * up(x))`; rows of `gate_up` are those of gate, then those of up.

    Args:
        width: Channels.
        inner: Channels inside.
        activation: One of `ACTIVATIONS`.
        bias: All of them have one.
    """

    def __init__(self, width: int, inner: int, *, activation: str, bias: bool = False) -> None:
        super().__init__()
        self.activation = activation
        self.gate_up = nn.Linear(width, 2 * inner, bias=bias)
        self.down = nn.Linear(inner, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., C] to [..., C]."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        y: Tensor = self.down(ACTIVATIONS[self.activation](gate) * up)
        return y
