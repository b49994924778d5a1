"""RMSNorm, computed in float32 in every precision.

Source: arXiv:1910.07467; Gemma's weight is what is added to one.
"""

import torch
from torch import Tensor, nn

from trt_compress.plugins.operator import cast


class RMSNorm(nn.Module):
    """Divides the last axis by its root mean square, and multiplies it by a weight.

    Args:
        width: Channels.
        eps: Added to the mean square.
        around_one: The weight is kept less one, as Gemma does; the product is then rounded once, behind it.
    """

    def __init__(self, width: int, *, eps: float, around_one: bool = False) -> None:
        super().__init__()
        self.eps, self.around_one = eps, around_one
        self.weight = nn.Parameter(torch.zeros(width) if around_one else torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize [..., C]."""
        wide = cast(x, torch.float32)
        # a square root and a division, not its reciprocal: ONNX Runtime makes one kernel of these nodes
        scaled = wide / torch.sqrt(wide.pow(2).mean(dim=-1, keepdim=True) + self.eps)
        if self.around_one:
            return cast(scaled * (1.0 + cast(self.weight, torch.float32)), x.dtype)
        return cast(self.weight, x.dtype) * cast(scaled, x.dtype)

    def extra_repr(self) -> str:
        """What `print` says of the layer."""
        return f"{len(self.weight)}, eps={self.eps}" + (", around_one" if self.around_one else "")
