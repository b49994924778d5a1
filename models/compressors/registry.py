"""The class that computes each method."""

import importlib

from trt_compress.methods import METHODS, Method
from trt_compress.models.compressors.base import Compressor


def compressor_class(method: Method) -> type[Compressor]:
    """The class of a method; its module is loaded on first use."""
    module, _, name = method.implementation.partition(":")
    found: type[Compressor] = getattr(importlib.import_module(f"trt_compress.{module}"), name)
    return found


def compressor_classes() -> dict[str, type[Compressor]]:
    """Every compressor by its name in spec strings."""
    return {name: compressor_class(method) for name, method in METHODS.items()}
