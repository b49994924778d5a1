"""Square windows of a grid of tokens, padded where they do not fit."""

from torch import Tensor
from torch.nn import functional


def to_windows(x: Tensor, window: int, *, fill: float = 0.0) -> Tensor:
    """Cut a grid [R, H, W, C] into windows [R * windows, window * window, C], padded with `fill` below and right."""
    rows, height, width, channels = x.shape
    below, right = -height % window, -width % window
    if below or right:
        x = functional.pad(x, (0, 0, 0, right, 0, below), value=fill)
    x = x.reshape(rows, (height + below) // window, window, (width + right) // window, window, channels)
    return x.transpose(2, 3).reshape(-1, window * window, channels)


def from_windows(x: Tensor, window: int, height: int, width: int) -> Tensor:
    """Put windows [R * windows, window * window, C] back into the grid [R, height, width, C]; padding is dropped."""
    down, across, channels = -(-height // window), -(-width // window), x.shape[2]
    x = x.reshape(-1, down, across, window, window, channels).transpose(2, 3)
    x = x.reshape(-1, down * window, across * window, channels)
    return x[:, :height, :width] if (down * window, across * window) != (height, width) else x
