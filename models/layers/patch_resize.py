"""Patches of another size: the kernel that sees resized patches as the old one saw them, as far as there is one.

Source: FlexiViT, arXiv:2212.08013; code google-research/big_vision 0127fb6, models/proj/flexi/vit.py. It brings trained
models to the patch sizes of Scaling Laws in Patchification, arXiv:2502.03738.
Differs: the inverse is of float64, and singular values below a millionth of the largest are left out, so that nothing
breaks where one side grows and the other shrinks.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

_LEAST = 1e-6


def resized_kernel(kernel: Tensor, size: tuple[int, int]) -> Tensor:
    """A kernel for patches of another size.

    Args:
        kernel: [out, in, height, width].
        size: Height and width of the new patches.

    Returns:
        [out, in, *size]: with larger patches the products are those of the old kernel with the patches resized back;
        with smaller ones they are as close to these as can be. Resizing is bilinear, without antialiasing.
    """
    height, width = kernel.shape[2:]
    if (height, width) == size:
        return kernel
    each = torch.eye(height * width, dtype=torch.float64).reshape(-1, 1, height, width)
    larger = functional.interpolate(each, size=size, mode="bilinear", align_corners=False).flatten(1)
    back = torch.linalg.pinv(larger, rtol=_LEAST)
    flat = kernel.detach().double().flatten(2)
    found: Tensor = flat @ back.T
    return found.reshape(*kernel.shape[:2], *size).to(kernel.dtype)


def resize_patches(embedding: nn.Conv2d, size: tuple[int, int]) -> None:
    """Let a patch embedding take patches of another size."""
    embedding.weight = nn.Parameter(resized_kernel(embedding.weight, size))
    embedding.kernel_size = embedding.stride = size
