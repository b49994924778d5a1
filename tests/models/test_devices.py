"""Models and compressors make what they need on the device of their inputs (tests/plugins/test_devices.py says how)."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.models.arrivals import a_host, arrival_at
from trt_compress.errors import ConfigError, UnsupportedError
from trt_compress.format.graphs import StateSpec
from trt_compress.methods import METHODS, parse_spec
from trt_compress.methods.config import CACHE_KINDS
from trt_compress.models.compressors.frame_stack import FrameStack, FrameStackConfig
from trt_compress.models.compressors.passing import Taps, Tokens
from trt_compress.models.hosts.base import GraphSpec
from trt_compress.models.hosts.registry import list_models, load_host

REQUIRED = {
    "tome": "tome:num_merged=1",
    "diffrate": "diffrate:prune_kept=[60,50,50,50,50,50],merge_kept=[55,50,50,50,50,50]",
}
TOKEN_COMPRESSORS = [name for name, method in METHODS.items() if method.kind not in CACHE_KINDS]
SPECS = ["none", *(REQUIRED.get(name, name) for name in TOKEN_COMPRESSORS)]
MODELS = [info.name for info in list_models() if info.name.startswith("zoo:")]

host = cache(load_host)


def graphs_of(model: str, spec: str) -> Sequence[GraphSpec]:
    """The graphs of a model with a compressor; none where it does not fit."""
    try:
        return host(model).attach(parse_spec(spec))
    except (ConfigError, UnsupportedError):
        return ()


def first_state(state: StateSpec, sizes: Mapping[str, int]) -> Tensor:
    shape = [sizes.get(size, 0) if isinstance(size, str) else size for size in state.shape]
    fill = 0.0 if isinstance(state.initial, str) else state.initial["fill"]
    return torch.from_numpy(np.full(shape, fill, state.dtype))


def first_run(graph: GraphSpec) -> list[Tensor]:
    """A real first run of a graph, batch 2, in the order of its module."""
    assert graph.examples is not None
    given = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in graph.examples(2)[0].items()}
    states = [first_state(state, {"batch": 2}) for state in graph.states]
    return [given[spec.name] for spec in graph.inputs] + states


@pytest.mark.parametrize("model", MODELS)
def test_a_model_computes_where_its_inputs_are(model: str) -> None:
    for spec in SPECS:
        for graph in graphs_of(model, spec):
            inputs = first_run(graph)
            with torch.no_grad():
                wanted: Any = graph.module(*inputs)
                with torch.device("meta"):
                    found: Any = graph.module(*inputs)
            for ours, theirs in zip(
                *(out if isinstance(out, tuple) else (out,) for out in (found, wanted)), strict=True
            ):
                assert torch.equal(ours, theirs), (model, spec, graph.name)


def test_every_compressor_is_among_them() -> None:
    fits = {spec for model in MODELS for spec in SPECS if graphs_of(model, spec)}
    behind = {name for name, method in METHODS.items() if ".compressors.vision." in method.implementation}
    left_out = {"frame_stack", "dynamicvit", *behind}  # which have tests of their own
    assert set(SPECS) - left_out <= fits <= set(SPECS) - {"frame_stack"}, (
        "what fits no model of the zoo needs a test of its own"
    )


def test_frame_stack_computes_where_its_inputs_are() -> None:
    host = a_host(1, 7, 1, kinds=("encoder_output",), width=4)
    module = FrameStack(FrameStackConfig(stride=2), arrival_at(host, "encoder_output"))
    state = Tokens(x=torch.ones(2, 7, 4), size=torch.ones(2, 7, 1))
    with torch.device("meta"):
        found = module(state, Taps())
    assert found.x.shape == (2, 3, 8) and found.x.device.type == "cpu"
