"""torch's table of translations to ONNX, which it builds anew for every graph that is exported: a tenth of the time.

Here it is built once for each opset and process. An export gets a copy of its own, as it may add to it.
"""

from functools import cache
from typing import Any

MODULE = "torch.onnx._internal.exporter._registration"
"""Where the table is built; loaded by the first export."""


def build_once(*opsets: int) -> None:
    """From now on; the tables of these opsets at once, so that forks of this process have them."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    build = ONNXRegistry.from_torchlib
    if not hasattr(build, "cache_of_tables"):
        built = cache(build)

        def from_torchlib(*given: Any, **named: Any) -> ONNXRegistry:
            table, copy = built(*given, **named), ONNXRegistry()
            copy.__dict__.update(table.__dict__)
            copy.functions = {name: list(found) for name, found in table.functions.items()}
            return copy

        from_torchlib.cache_of_tables = built  # type: ignore[attr-defined]
        ONNXRegistry.from_torchlib = staticmethod(from_torchlib)  # type: ignore[method-assign,assignment]
    for opset in opsets:
        ONNXRegistry.from_torchlib(opset_version=opset)
