"""Which of timm's families a module is of, and how it is driven: `timm_vit` or `timm_eva`."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from timm.models.eva import Eva
from torch import nn

from trt_compress.models.hosts import timm_eva, timm_vit
from trt_compress.models.hosts.base import LoadedHost, WeightsInfo

MODULES = ("vision_transformer", "deit", "eva")
"""The files of timm that have the models which are driven."""


def form_of(module: nn.Module) -> type[timm_vit.CompressedViT]:
    """How a module is driven; what none drives is refused there."""
    return timm_eva.CompressedEva if isinstance(module, Eva) else timm_vit.CompressedViT


def check_supported(module: nn.Module, name: str) -> Any:
    """Return `module`; raise UnsupportedError naming what no host of timm's models can drive."""
    return form_of(module).checked(module, name)


def timm_host(
    module: nn.Module, *, source: str, weights: WeightsInfo, options: Mapping[str, Any] = MappingProxyType({})
) -> LoadedHost:
    """One of timm's models with its weights as a host; see `timm_vit.vit_host`."""
    return timm_vit.vit_host(module, source=source, weights=weights, options=options, form=form_of(module))
