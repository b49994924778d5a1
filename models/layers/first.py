"""The first layers of a model, without a copy of their tensors: for a verification of a part of it."""

import copy
from collections.abc import Sequence
from typing import TypeVar, cast

from torch import nn

_Module = TypeVar("_Module", bound=nn.Module)


def shallow(module: _Module) -> _Module:
    """A module with the same parts and tensors, whose own parts can be replaced."""
    copied = copy.copy(module)
    copied.__dict__["_modules"] = dict(module._modules)
    return copied


def first_layers(module: _Module, rows: Sequence[str], count: int) -> _Module:
    """The same module with the first layers of some rows of them only, whose tensors are these.

    Args:
        module: The model.
        rows: Paths of its parts that are a ModuleList or a Sequential of layers.
        count: How many of each are left; a row that is shorter stays as it is.
    """
    short = shallow(module)
    for row in rows:
        parent: nn.Module = short
        *between, last = row.split(".")
        for name in between:
            parts = parent._modules
            parent = parts[name] = shallow(parent.get_submodule(name))
        parent._modules[last] = cast(nn.ModuleList, parent.get_submodule(last))[:count]
    return short
