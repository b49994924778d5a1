"""Calibration on text: a model that reads tokens is run by its procedure, as it is verified and deployed."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from torch import Tensor

from trt_compress.errors import ConfigError, GateError
from trt_compress.export.questions import token_values
from trt_compress.export.records import wiring_of
from trt_compress.export.sides import TorchSide
from trt_compress.export.verify import run_procedure
from trt_compress.models.calibrate.observe import Reads
from trt_compress.models.compressors.calibration import Batch
from trt_compress.models.hosts.base import GraphSpec, LoadedHost, Scenario, TensorSpec

PROMPT, STEPS = "prompt", "steps"


def text_inputs(host: LoadedHost, graphs: Sequence[GraphSpec]) -> tuple[TensorSpec, ...] | None:
    """The arrays that text is given in, the first of which is needed; None: the model reads no tokens.

    Raises:
        ExportError: The host does not say which tokens there are.
    """
    if host.procedure is None:
        return None
    procedure = host.procedure(graphs)
    values = token_values(procedure, graphs)
    texts = (TensorSpec(name=name, shape=("batch", name), dtype="int64", values=values) for name in (PROMPT, STEPS))
    media = {name for each in procedure.media for name in each.graphs}
    fed = {to for _, to in host.links} | procedure.feeds.keys()
    shown = (
        TensorSpec(name=f"{graph.name}.{spec.name}", shape=spec.shape, dtype=spec.dtype, values=spec.values)
        for graph in graphs
        if graph.name in media
        for spec in graph.inputs
        if f"{graph.name}.{spec.name}" not in fed
    )
    return (*texts, *shown)


def reads_of(host: LoadedHost) -> Reads | None:
    """Reads batches of text by the procedure of a host; None: it has none."""
    if host.procedure is None:
        return None

    def reads(graphs: Sequence[GraphSpec], batch: Batch) -> Iterator[Mapping[str, Tensor]]:
        prompt = batch[PROMPT]
        scenario = Scenario(
            prompt=list(prompt),
            steps=list(batch.get(STEPS, np.zeros((len(prompt), 0), np.int64))),
            media={name: array for name, array in batch.items() if name not in (PROMPT, STEPS)},
        )
        side = TorchSide({graph.name: (graph, graph.module) for graph in graphs})
        try:
            for event in run_procedure(side, wiring_of(host, graphs), scenario):
                yield {f"{event.graph}.{name}": tensor for name, tensor in event.outputs.items()}
        except GateError as error:
            said = error.message.removeprefix("verification failed: ").removeprefix("verification failed ")
            raise ConfigError(f"calibrate: the data cannot be read: {said}") from None

    return reads
