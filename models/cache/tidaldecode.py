"""TidalDecode: two layers choose entries at every generated token, and the others attend to what was chosen last.

Source, Differs: see the method's entry, `methods.cache_readers.TIDALDECODE`.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import cast as typed

import torch
from torch import Tensor

from trt_compress.errors import ConfigError
from trt_compress.methods.cache_readers import TIDALDECODE, TidalDecodeConfig
from trt_compress.models.cache.contract import Memory, NewEntries, Reader, Store
from trt_compress.models.cache.scores import of_groups
from trt_compress.models.calibrate import needles
from trt_compress.models.compressors.calibration import (
    Alphabet,
    Calibrated,
    CalibrationData,
    CalibrationHost,
    alike_tensors,
    artifact_tensors,
)
from trt_compress.models.compressors.sites import Arrival
from trt_compress.plugins.attention_score.op import attention_score
from trt_compress.plugins.operator import cast
from trt_compress.plugins.token_select.op import token_select

_CHOSEN = "tidaldecode"
_LEAST, _MOST = -1e30, 1e29  # products of slots that hold no entry, and of others at most


class TidalDecode(Reader):
    """Full attention in the first layers and in those that choose; elsewhere the entries that were chosen last."""

    method = TIDALDECODE
    carries = True

    @classmethod
    def samples(cls, alphabet: Alphabet, config: TidalDecodeConfig) -> CalibrationData:
        """Needles of tokens among others."""
        return needles.samples(alphabet)

    @classmethod
    def calibrate(cls, host: CalibrationHost, data: CalibrationData, config: TidalDecodeConfig) -> Calibrated:
        """How well needles are found with each layer behind the first that may choose anew.

        At most a quarter of a prompt is read. Of held-out samples the score says the share of tokens of the answer that
        are right with the best layer (`answered`), and with full attention (`answered_in_full`).
        """
        count = len(host.info.layers_with("kv_cache"))
        _check_layers(config.start, count, host.info.name)
        budget = min(config.budget, *(batch["prompt"].shape[1] // 4 for batch in data.fit))
        answered, probability = torch.zeros(count), torch.zeros(count)

        def with_layer(number: int) -> TidalDecodeConfig:
            return replace(config, budget=max(budget, 1), reselect=number, calibration=None)

        for number in range(config.start + 1, count):
            found = needles.answers(host, data.fit, with_layer(number))
            answered[number], probability[number] = found.right, found.probability
        tensors = {"answered": answered, "probability": probability}
        held_out = needles.answers(host, data.held_out, with_layer(best_layer(tensors, config.start)))
        whole = needles.answers(host, data.held_out, None)
        return Calibrated(tensors=tensors, score={"answered": held_out.right, "answered_in_full": whole.right})

    @classmethod
    def adopt(cls, tensors: Mapping[str, Tensor], config: TidalDecodeConfig) -> Mapping[str, Tensor]:
        """`answered` and `probability`, [layers], both finite."""
        return calibration_of(tensors, "the file")

    def __init__(self, config: TidalDecodeConfig, arrival: Arrival) -> None:
        super().__init__(config, arrival)
        self.config, layer = config, self.layer
        _check_layers(config.start, layer.count, layer.host)
        self.reselect = self._reselect()
        self.chooses = layer.place == config.start or layer.place == self.reselect > config.start
        self.reads_all = layer.place <= config.start or self.chooses
        if config.budget >= layer.context:
            raise ConfigError(
                f"tidaldecode: budget={config.budget} is no less than the {layer.context} tokens of the context, so "
                "that everything is read; give a smaller budget, or leave tidaldecode out."
            )
        self.tokens_out = self.tokens_in if self.reads_all else config.budget

    def _reselect(self) -> int:
        config, layer = self.config, self.layer
        if config.reselect is not None:
            if config.reselect >= layer.count:
                raise ConfigError(
                    f"tidaldecode: reselect={config.reselect} is out of range; {layer.host} has {layer.count} layers "
                    "that keep everything, from 0 on."
                )
            return config.reselect
        if config.calibration is None:
            raise ConfigError(
                "tidaldecode: nothing says which layer chooses anew; give reselect=LAYER, or calibration=FILE, made "
                f"with `trt-compress calibrate MODEL --compress tidaldecode:budget={config.budget} -o FILE`."
            )
        where = str(config.calibration)
        found = calibration_of(artifact_tensors(config.calibration, "tidaldecode: calibration"), where)
        if (count := len(found["answered"])) != layer.count:
            raise ConfigError(
                f"tidaldecode: {where} is for {count} layers, and {layer.host} has {layer.count} that keep everything; "
                "make one for it with `trt-compress calibrate`."
            )
        return best_layer(found, config.start)

    @property
    def acts(self) -> bool:
        """Not in front of the first layer that chooses."""
        return self.chooses or not self.reads_all

    def forward(self, reading: NewEntries, store: Store, memory: Memory) -> Tensor:
        """Attend to everything and choose, or attend to what was chosen."""
        if not self.reads_all:
            return store.forward_some(reading, memory, reading.carried[_CHOSEN])
        y = typed(Tensor, store(reading, memory))
        if self.chooses:
            reading.carried[_CHOSEN] = self.choose(reading, store, memory)
        return y

    def choose(self, reading: NewEntries, store: Store, memory: Memory) -> Tensor:
        """The slots of the largest products, ascending, [B, H | G, K] int64; where there are fewer entries than the
        budget, numbers of no entry behind them."""
        layer, budget = self.layer, self.config.budget
        parts = []
        for part in store.slot_keys(reading, memory):
            products = attention_score(
                reading.query,
                cast(part.keys, reading.query.dtype),
                length=part.length,
                scale=layer.scale,
                softmax="none",
                rows="sum",
                heads="none",
            )
            if self.config.heads == "group":
                if layer.softcap:
                    products = torch.tanh(products / layer.softcap) * layer.softcap
                products = of_groups(products, layer.groups, "sum")
            there = torch.arange(products.shape[2], device=products.device) < part.length[:, None]
            parts.append(torch.where(there[:, None], products.clamp(-_MOST, _MOST), _LEAST))
        rest = torch.full_like(parts[0][:, :, :1], _LEAST).expand(-1, -1, budget)  # a cache may have fewer slots
        ranked = torch.cat([*parts, rest], dim=2)
        flat = ranked.flatten(0, 1)
        _, index, _ = token_select(flat[..., None], flat, num_kept=budget)
        return index.reshape(*ranked.shape[:2], budget)


def best_layer(tensors: Mapping[str, Tensor], start: int) -> int:
    """The layer behind the first with which most is answered, of equal ones that of the most probable answers, of these
    the first."""
    pairs = list(zip(tensors["answered"].tolist(), tensors["probability"].tolist(), strict=True))
    return max(range(start + 1, len(pairs)), key=lambda layer: (pairs[layer], -layer))


def calibration_of(tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The tensors of what `calibrate` made; as `alike_tensors`."""
    return alike_tensors(tensors, f"tidaldecode: {where}", "a calibration", ("answered", "probability"), ("layers",))


def _check_layers(start: int, count: int, host: str) -> None:
    """Raise ConfigError if no layer is left that may choose anew."""
    if start + 1 >= count:
        raise ConfigError(
            f"tidaldecode: start={start} leaves none of the {count} layers of {host} that keep everything behind it; "
            "give an earlier one."
        )
