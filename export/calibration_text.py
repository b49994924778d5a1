"""Calibration on text: a model that reads tokens is run by its procedure, as it is verified and deployed."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from trt_compress.digest import Sha256
from trt_compress.errors import ConfigError, GateError
from trt_compress.export.questions import token_values
from trt_compress.export.records import wiring_of
from trt_compress.export.sides import TorchSide
from trt_compress.export.verify import run_procedure
from trt_compress.methods import CompressorConfig
from trt_compress.models.calibrate.observe import Reads, WatchedHost
from trt_compress.models.compressors.base import Acting
from trt_compress.models.compressors.calibration import Alphabet, Batch, CalibrationData
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


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeSamples:
    """Samples that a method made of a model's own tokens.

    Attributes:
        data: The samples.
        said: What they are, in words.
        sha256: Of all their tokens.
        count, num_held_out: How many there are, and of these how many only the score is taken of.
    """

    data: CalibrationData
    said: str
    sha256: str
    count: int
    num_held_out: int


def alphabet_of(host: LoadedHost, watched: WatchedHost) -> Alphabet | None:
    """The tokens that samples may be made of; None: the model reads none, or does not say how many at most."""
    inputs, cache = text_inputs(host, watched.graphs()), watched.info.cache
    if inputs is None or inputs[0].values is None or cache is None:
        return None
    low, high = inputs[0].values
    special = [] if host.text is None else [*host.text.stop, host.text.bos, host.text.pad]
    tokens = np.setdiff1d(np.arange(low, high + 1), [token for token in special if token is not None])
    return Alphabet(tokens=tokens, first=None if host.text is None else host.text.bos, context=cache.capacity)


def made_samples(method: type[Acting], alphabet: Alphabet | None, config: CompressorConfig) -> MadeSamples:
    """What a method makes of the tokens of a model.

    Raises:
        ConfigError: The model reads no tokens, or too few for it.
    """
    data = None if alphabet is None else method.samples(alphabet, config)
    if data is None:
        raise ConfigError(
            f"calibrate: {method.method.name} makes samples of a language model's tokens only; give --data FILE.npz."
        )
    digest, counts = Sha256(), []
    for part in (data.fit, data.held_out):
        counts.append(0)
        for batch in part:
            counts[-1] += len(batch[PROMPT])
            for name in sorted(batch):
                digest.add(batch[name].astype("<i8").tobytes())
    said = f"{sum(counts)} samples of its own tokens, seeded"
    return MadeSamples(data=data, said=said, sha256=digest.hex(), count=sum(counts), num_held_out=counts[1])
