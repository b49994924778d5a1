"""CompressKV: four heads of each layer, found by calibration, choose for all heads; layers differ in their budgets.

Source, Differs: see the method's entry, `methods.cache_heads.COMPRESSKV`.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from trt_compress.errors import ConfigError
from trt_compress.methods.cache_heads import COMPRESSKV, CompressKvConfig
from trt_compress.models.cache.contract import (
    ROWS,
    CacheLayer,
    CacheState,
    Choice,
    Memory,
    NewEntries,
    Selector,
    Store,
    best,
)
from trt_compress.models.cache.scores import pooled, scores_of_last
from trt_compress.models.calibrate import needles
from trt_compress.models.compressors.calibration import (
    Alphabet,
    Calibrated,
    CalibrationData,
    CalibrationHost,
    artifact_tensors,
)
from trt_compress.models.compressors.sites import Arrival
from trt_compress.models.layers.attention import last_rows
from trt_compress.plugins.operator import cast


class CompressKv(Selector):
    """Attention of the last queries of a few heads, pooled for each head, their mean for all KV heads."""

    method = COMPRESSKV
    observes = ("prefill",)

    @classmethod
    def samples(cls, alphabet: Alphabet, config: CompressKvConfig) -> CalibrationData:
        """Needles of tokens among others."""
        return needles.samples(alphabet)

    @classmethod
    def calibrate(cls, host: CalibrationHost, data: CalibrationData, config: CompressKvConfig) -> Calibrated:
        """How much each head attends to what is asked for, and how much each layer loses by what is evicted.

        Of held-out samples the score says the share that the model answers (`answered`), and how much of their
        attention the chosen heads give to the answer (`attention`), beside all heads (`attention_of_all`).
        """
        found = needles.attention(host, data.fit)

        def choose(layer: CacheLayer, window: Tensor, keys: Tensor, length: Tensor, budget: int) -> Tensor:
            heads = strongest(found.scores[layer.place], config.heads)
            return chosen(window[:, list(heads)], keys, length, heads, config, layer, budget).index

        errors = needles.eviction_errors(host, data.fit, choose, window=config.window, budget=config.budget)
        held_out = needles.attention(host, data.held_out)
        picked = [held_out.scores[layer, list(strongest(row, config.heads))] for layer, row in enumerate(found.scores)]
        return Calibrated(
            tensors={"scores": found.scores, "errors": errors},
            score={
                "answered": held_out.answered,
                "attention": float(torch.stack(picked).mean()),
                "attention_of_all": float(held_out.scores.mean()),
            },
        )

    @classmethod
    def adopt(cls, tensors: Mapping[str, Tensor], config: CompressKvConfig) -> Mapping[str, Tensor]:
        """`scores` [layers, heads] and `errors` [layers], both finite."""
        return calibration_of(tensors, "the file")

    def __init__(self, config: CompressKvConfig, arrival: Arrival) -> None:
        self.config = config
        if config.calibration is None:
            raise ConfigError(
                "compresskv: calibration=FILE is missing; make it with `trt-compress calibrate MODEL --compress "
                f"compresskv:budget={config.budget} -o FILE`."
            )
        where = "compresskv: calibration"
        self._found = calibration_of(artifact_tensors(config.calibration, where), str(config.calibration))
        super().__init__(config, arrival)
        self.heads = strongest(self._found["scores"][self.layer.place], config.heads)

    def entries(self, config: CompressKvConfig) -> int:
        """By the layer's error."""
        layer, (count, heads) = self.layer, self._found["scores"].shape
        if (count, heads) != (layer.count, layer.heads):
            raise ConfigError(
                f"compresskv: {config.calibration} is for {count} layers of {heads} heads, and {layer.host} has "
                f"{layer.count} of {layer.heads}; make one for it with `trt-compress calibrate`."
            )
        if config.heads > heads:
            raise ConfigError(f"compresskv: heads={config.heads} is more than the {heads} of {layer.host}; give less.")
        if config.budgets == "same":
            return config.budget
        errors = self._found["errors"].tolist()
        return layer_budgets(errors, config.budget, min(config.smallest, config.budget), layer.context)[layer.place]

    def cache_states(self) -> tuple[CacheState, ...]:
        """The queries of the heads that choose, those of the window."""
        shape = (self.config.heads, self.config.window, self.layer.head_dim)
        return (CacheState(name="window", shape=shape, kind="score", compact="r", parts=("prefill",)),)

    def observe(self, reading: NewEntries, store: Store, memory: Memory) -> None:
        """Carry the window on."""
        window = memory["window"]
        query = torch.cat([reading.query[:, head : head + 1] for head in self.heads], dim=1)
        memory["window"] = last_rows(window, cast(query, window.dtype), reading.count)

    def choose(self, lengths: Mapping[str, Tensor], memory: Memory) -> Choice:
        """The same for all KV heads."""
        window, keys = memory["window"], memory["keys"]
        return chosen(window, keys, lengths[ROWS], self.heads, self.config, self.layer, self.budget)


def chosen(
    window: Tensor,
    keys: Tensor,
    length: Tensor,
    heads: Sequence[int],
    config: CompressKvConfig,
    layer: CacheLayer,
    budget: int,
) -> Choice:
    """What a few heads choose for all.

    Args:
        window: Their queries, [B, len(heads), W, D].
        keys: Of the layer, [B, G, L, D].
        length: Entries of each sequence, [B].
        heads: Their numbers.
        config: Window and pooling.
        layer: The layer.
        budget: Entries that are kept.
    """
    groups = layer.groups
    own = torch.cat([keys[:, (group := head * groups // layer.heads) : group + 1] for head in heads], dim=1)
    score = scores_of_last(window, own, length, scale=layer.scale)
    before = torch.arange(score.shape[2], device=score.device) < length[:, None] - config.window
    score = pooled(torch.where(before[:, None], score, 0.0), config.pool, config.kernel).mean(dim=1, keepdim=True)
    return best(score.expand(-1, groups, -1), length, budget, recent=config.window)


def strongest(scores: Tensor, count: int) -> tuple[int, ...]:
    """The heads of the largest scores [H], of equal ones the first."""
    return tuple(scores.sort(descending=True, stable=True).indices[:count].tolist())


def layer_budgets(errors: Sequence[float], mean: int, smallest: int, most: int) -> tuple[int, ...]:
    """Entries of each layer: the smallest budget, and a share of the rest by its error.

    Args:
        errors: Of the layers, of the sum 1.
        mean: Entries of a layer in the mean.
        smallest, most: Entries of a layer.
    """
    count, largest = len(errors), max(min(3 * mean, most), smallest)
    rest = (mean - smallest) * count
    found = [min(max(smallest + round(error * rest), smallest), largest) for error in errors]
    order = sorted(range(count), key=lambda layer: -errors[layer])
    while (missing := mean * count - sum(found)) != 0:
        step = 1 if missing > 0 else -1
        free = [
            layer for layer in (order if missing > 0 else order[::-1]) if smallest <= found[layer] + step <= largest
        ]
        if not free:
            break
        for layer in free[: abs(missing)]:
            found[layer] += step
    return tuple(found)


def calibration_of(tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The tensors of a calibration, in float32.

    Raises:
        ConfigError: Some are missing, too many, misshaped or not finite.
    """
    scores, errors = tensors.get("scores"), tensors.get("errors")
    fits = (
        len(tensors) == 2
        and scores is not None
        and errors is not None
        and scores.ndim == 2
        and errors.shape == scores.shape[:1]
        and scores.is_floating_point()
        and errors.is_floating_point()
    )
    if not fits:
        has = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in sorted(tensors.items())) or "no tensors"
        raise ConfigError(
            f"compresskv: {where} has {has}; a calibration is `scores` [layers, heads] and `errors` [layers], in "
            "floating point."
        )
    assert scores is not None and errors is not None
    if not bool(scores.isfinite().all() and errors.isfinite().all() and (errors >= 0).all() and errors.sum() > 0):
        raise ConfigError(
            f"compresskv: {where} holds numbers that are not finite, or errors that are negative or all 0; make it "
            "again with `trt-compress calibrate`."
        )
    return {"scores": scores.float(), "errors": errors.float() / errors.float().sum()}
