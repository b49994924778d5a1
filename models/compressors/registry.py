"""The class that computes each method."""

import importlib

from trt_compress.methods import METHODS, Method
from trt_compress.models.compressors.base import Acting


def compressor_class(method: Method) -> type[Acting]:
    """The class of a method; its module is loaded on first use."""
    module, _, name = method.implementation.partition(":")
    found: type[Acting] = getattr(importlib.import_module(f"trt_compress.{module}"), name)
    return found


def compressor_classes() -> dict[str, type[Acting]]:
    """Every method by its name in spec strings."""
    return {name: compressor_class(method) for name, method in METHODS.items()}
