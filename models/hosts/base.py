"""The contract of a host: a model with weights becomes one or several graphs, with compressors in place.

A host is one file that builds a `LoadedHost`. Its `attach` puts compressors in and returns the graphs: for most models
one, called `model`; for a codec `encode` and `decode`; for a model with several levels `k25`, `k50` and `dense`. Each
has a role; graphs that read a sequence piece by piece have a procedure too. Every step after the host reads the graphs
and nothing else, so any number of inputs, outputs and states is possible.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import nn

from trt_compress.format.graphs import Capacity, Dim, StateSpec
from trt_compress.format.procedure import Procedure
from trt_compress.format.text import Text
from trt_compress.methods import CompressorSpec
from trt_compress.models.compressors.place import SitePlan
from trt_compress.models.hosts.reading import ReadingOptions

Array = np.ndarray[Any, np.dtype[Any]]
Steps = Sequence[Mapping[str, Array]]
"""Consecutive runs: the inputs of each by name. A graph without states has one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsInfo:
    """Where weights come from: a file's name, `random (seed 0)`, timm, or the zoo.

    `sha256` is the hash of the file; of weights without a file, that of the tensors; of several files, that of the
    lines that sha256sum writes of them. `license_files` are names in `LoadedHost.files`.
    """

    source: str
    sha256: str
    license: str | None = None
    provenance: str | None = None
    license_files: tuple[str, ...] = ()


class CompressedModule(nn.Module):
    """What is traced as one graph.

    `forward` takes the graph's inputs and then its states, in order, and returns its outputs and then the new states: a
    tensor if that is one, a tuple otherwise. It enters `at_site` where a compressor acts and calls
    `mark_tensor("tokens", …)` on what leaves the site, once for each entry of `plan` and in its order: verification
    compares there.

    Attributes:
        plan: What happens at each site, in order of execution.
    """

    plan: tuple[SitePlan, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """An input or output; `dtype` is numpy's name for it, and what the graph takes or gives in every precision.

    Attributes:
        shape: Lengths and symbols: "batch", or another such as "time", that means one number in the whole graph.
        values: Smallest and largest value of an input of whole numbers; without them, or real examples, such an input
            cannot be verified.
    """

    name: str
    shape: tuple[Dim, ...]
    dtype: str = "float32"
    values: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphSpec:
    """One graph of a model, with its compressors.

    Attributes:
        module: What is traced.
        inputs: In the order of `module.forward`; the states follow them.
        outputs: In the order in which `module.forward` returns them; the new states follow them.
        states: What is handed from run to run.
        name: Also the name of its file.
        role: What it is for, one of `trt_compress.format.graphs.ROLES`.
        lengths: Smallest, usual and largest length of each symbol but "batch" and those of axes that grow.
        capacities: Of the symbols in `lengths`, those that whoever runs the graph chooses for its states.
        exact: Inputs and states of float32 that `module.forward` takes as they are, as an accumulator needs it; all
            other ones of float32 enter in the precision of the graph, and those of other dtypes always as they are.
        examples: Real inputs that the model was not trained on, by name, for a given batch: one run, or consecutive
            ones (3 or more) of a graph with states. None: there are none at hand, and seeded random numbers are taken.
        layers: The layers of which the last may be left out when it is verified; None: it has none in a row.
    """

    module: CompressedModule
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    states: tuple[StateSpec, ...] = ()
    name: str = "model"
    role: str = "model"
    lengths: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)
    capacities: tuple[Capacity, ...] = ()
    exact: frozenset[str] = frozenset()
    examples: Callable[[int], Steps] | None = None
    layers: "Layers | None" = None

    @property
    def all_inputs(self) -> tuple[TensorSpec, ...]:
        """Inputs and states, as the graph takes them."""
        read = [(state.input, state) for state in self.states if state.input is not None]
        return (*self.inputs, *(TensorSpec(name=name, shape=state.shape, dtype=state.dtype) for name, state in read))

    @property
    def all_outputs(self) -> tuple[TensorSpec, ...]:
        """Outputs and new states, as the graph returns them; a growing axis has another length than before."""
        written = [(state.output, state) for state in self.states if state.output is not None]
        return (*self.outputs, *(self._new_state(name, state) for name, state in written))

    @property
    def carried(self) -> dict[str, str]:
        """Of the states that the graph both reads and writes, the output by the input."""
        return dict(state.carried for state in self.states if state.carried is not None)

    @property
    def input_symbols(self) -> frozenset[str]:
        """Symbols whose length is known when a run begins: by its inputs, or as a capacity."""
        of_inputs = (dim for spec in self.inputs for dim in spec.shape if isinstance(dim, str))
        return frozenset((*of_inputs, *(capacity.symbol for capacity in self.capacities)))

    def _new_state(self, name: str, state: StateSpec) -> TensorSpec:
        known = self.input_symbols
        shape = tuple(f"{dim}_after" if isinstance(dim, str) and dim not in known else dim for dim in state.shape)
        return TensorSpec(name=name, shape=shape, dtype=state.dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layers:
    """Layers of a graph in a row.

    Attributes:
        count: How many there are.
        first: The graph with the first N of them, from 1 to `count - 1`, and what is in front of them and behind: the
            same tensors, not copies, and the same compressors at the sites that are left. It holds nothing of the
            layers that are left out, so that they can leave memory.
    """

    count: int
    first: Callable[[int], GraphSpec]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """Sequences that a procedure reads side by side in its verification, prompts first and then token by token.

    Attributes:
        prompt: For each sequence its tokens, int64; they need not be equally many.
        steps: For each sequence the tokens that follow, equally many.
        media: Inputs of the graphs that read what stands beside the tokens, as `graph.tensor`.
        enough: After so many steps it ends, one step behind that at which all that is due behind steps has come there,
            and twice in all; None: with its text.
    """

    prompt: Sequence[Array]
    steps: Sequence[Array]
    media: Mapping[str, Array] = field(default_factory=dict)
    enough: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedHost:
    """A model with weights, ready to be compressed.

    Attributes:
        source: As the user wrote it, `timm:vit_small_patch16_224`.
        family: The file in `models/hosts` that drives it.
        module: The model, in eval mode.
        weights: Where the weights come from.
        attach: The model's graphs with these compressors in place, in the order in which they run; with none, the model
            as it is.
        links: Outputs that feed an input of a later graph, both as `graph.tensor`.
        procedure: How these graphs, as `attach` made them, are run in turn to read sequences of tokens; None: they read
            none, and the graphs' roles say all.
        scenarios: What a procedure is verified with, for a given batch: real tokens. None: seeded ones, in the range
            that the graphs' inputs declare, with prompts of several chunks and steps until upkeep has come twice.
        read_as: Of a model that reads tokens, the same model cut into runs as a user wants it, for a graph of this
            precision (fp32, fp16, bf16); None: its graphs are as they are.
        preprocess: How real data becomes the inputs; for the manifest.
        postprocess: What the outputs mean; for the manifest.
        text: What makes tokens of a text, and which `files` it does so with; for the manifest.
        files: What belongs to the model and travels in the bundle: path there → content.
    """

    source: str
    family: str
    module: nn.Module
    weights: WeightsInfo
    attach: Callable[[Sequence[CompressorSpec]], tuple[GraphSpec, ...]]
    links: tuple[tuple[str, str], ...] = ()
    procedure: Callable[[Sequence[GraphSpec]], Procedure] | None = None
    scenarios: Callable[[int], Sequence[Scenario]] | None = None
    read_as: "Callable[[ReadingOptions, str], LoadedHost] | None" = None
    preprocess: Mapping[str, Any] = field(default_factory=dict)
    postprocess: Mapping[str, Any] = field(default_factory=dict)
    text: Text | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """One line of `trt-compress list models`."""

    name: str
    family: str
    description: str
