"""DiffRate: prune by class attention and merge what is next, by numbers that were searched for every layer."""

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from trt_compress.errors import ConfigError, UnsupportedError
from trt_compress.foreign import shown
from trt_compress.methods.vision import DIFFRATE, DiffRateConfig
from trt_compress.models.compressors.base import Compressor, after_attention, averaged, refuse_without_class_token
from trt_compress.models.compressors.calibration import (
    Batch,
    Calibrated,
    CalibrationData,
    CalibrationHost,
    artifact_tensors,
)
from trt_compress.models.compressors.diffrate_search import Search, SearchConfig, SearchSpec, flops_ratio
from trt_compress.models.compressors.passing import Taps, Tokens
from trt_compress.models.compressors.sites import Arrival, HostInfo, Placement
from trt_compress.plugins.operator import cast
from trt_compress.plugins.token_mix.op import token_mix
from trt_compress.plugins.token_select.op import token_select

_NEVER = -8.0  # below any cosine
_LEAST_SIZE = 2.0**-20
_STEPS = 96
_COMPARED = ("logits", "pooled", "features")


class DiffRate(Compressor):
    """Keep the tokens of the largest class attention; of these the last merge into the first."""

    method = DIFFRATE
    asks = frozenset({"class_attention"})
    layer_option = "prune_kept=[…], merge_kept=[…]"
    positions = "averaged"

    @classmethod
    def placements(cls, config: DiffRateConfig, host: HostInfo) -> tuple[Placement, ...]:
        """Layers that remove a token."""
        refuse_without_class_token("diffrate", host)
        kept = _counts(config)
        if not kept:  # not searched yet
            return after_attention(range(host.depth))
        what = "the lists are" if config.table is None else f"table={config.table} is"
        if config.schedule is not None:
            what = f"schedule {shown(config.schedule.path)} is"
        if len(kept) != host.depth:
            raise ConfigError(
                f"diffrate: {what} for {len(kept)} layers, and {host.name} has {host.depth}; give prune_kept and "
                "merge_kept with one number a layer."
            )
        if config.prune_kept is None and host.num_tokens != kept[0][0]:
            raise ConfigError(
                f"diffrate: {what} for {kept[0][0]} tokens, and {host.name} has {host.num_tokens}; give prune_kept and "
                "merge_kept."
            )
        before, layers = host.num_tokens, []
        for layer, (_, left) in enumerate(kept):
            if left < before:
                layers.append(layer)
            before = min(before, left)
        return after_attention(layers)

    @classmethod
    def calibrate(cls, host: CalibrationHost, data: CalibrationData, config: Any) -> Calibrated:
        """Search for the counts: the model stays as it is, and only probabilities of counts are trained.

        The score tells how far the outputs are from those of the whole model: with the counts, with as many tokens
        removed in every layer, which the search starts from, and the FLOPs of the blocks. Of the two the better one on
        what is not held out is taken.
        """
        search = Search(host.info, config.flops_ratio)
        batches = itertools.islice(itertools.cycle(data.fit), _STEPS)
        wanted, found = itertools.tee(batches)
        spec = SearchSpec(name="diffrate", config=SearchConfig(search=search))
        for dense, soft in zip(host.outputs(wanted), host.outputs_with(spec, found), strict=True):
            search.step(_distance(soft, dense))

        def distance(counts: tuple[tuple[int, int], ...], part: Iterable[Batch]) -> float:
            pruned, merged = zip(*counts, strict=True)
            lists = DiffRateConfig(prune_kept=pruned, merge_kept=merged)
            pairs = zip(host.outputs(part, lists), host.outputs(part), strict=True)
            far = [float(_distance(ours, dense)) for ours, dense in pairs]
            return sum(far) / len(far)

        counts = min((search.start, search.counts()), key=lambda each: distance(each, data.fit))
        table = torch.tensor(counts)
        return Calibrated(
            tensors={"prune_kept": table[:, 0], "merge_kept": table[:, 1]},
            score={
                "distance": distance(counts, data.held_out),
                "distance_of_even_counts": distance(search.start, data.held_out),
                "flops_ratio": float(flops_ratio(table.float(), host.info)),
            },
        )

    def __init__(self, config: DiffRateConfig, arrival: Arrival) -> None:
        super().__init__(config, arrival)
        self.prefix = arrival.prefix
        kept = _counts(config)
        if not kept:
            raise ConfigError(
                "diffrate: schedule=FILE is missing; make it with `trt-compress calibrate MODEL --compress "
                f"diffrate:flops_ratio={config.flops_ratio} --data FILE.npz`."
            )
        pruned, merged = kept[arrival.layer]
        self.pruned, self.merged = min(pruned, arrival.tokens), min(merged, arrival.tokens)
        if self.merged <= self.prefix:
            raise ConfigError(
                f"diffrate: merge_kept={merged} at layer {arrival.layer} leaves no patch beside the {self.prefix} "
                f"tokens in front of those of {arrival.host.name}; give {self.prefix + 1} or more."
            )
        self.tokens_out = self.merged

    @property
    def proportional_attention(self) -> bool:
        """Attention after this site weighs keys by size."""
        return True

    def forward(self, tokens: Tokens, taps: Taps) -> Tokens:
        """Tokens by falling class attention, each with the mean of those that merged into it."""
        front = range(self.prefix)
        x, index, _ = token_select(tokens.x, taps["class_attention"], num_kept=self.pruned, forced=front, order="score")
        kept, count = tokens.at(x, index), self.merged
        size = kept.sizes
        if self.merged == self.pruned:
            return replace(kept, size=size)
        unit = functional.normalize(x.float(), dim=-1)
        likeness = unit[:, count:] @ unit[:, :count].transpose(1, 2)
        place = torch.arange(count, device=x.device)
        best, to = torch.where(place < self.prefix, _NEVER, likeness).max(dim=2)
        joins = cast(to[..., None] == place, torch.float32).transpose(1, 2)
        itself = torch.eye(count, device=x.device).expand(x.shape[0], -1, -1)
        weight = torch.cat([itself, joins], dim=2) / (1 + joins.sum(dim=2, keepdim=True))
        first = torch.arange(count, device=x.device).expand(x.shape[0], -1)
        found = kept.at(token_mix(x, weight), first)
        return replace(
            found,
            size=(size[:, :count] + joins @ (best[..., None] * size[:, count:])).clamp_min(_LEAST_SIZE),
            position=averaged(
                kept.position,
                lambda places: (places[:, :count] + joins @ places[:, count:]) / (1 + joins.sum(dim=2, keepdim=True)),
            ),
        )


def _counts(config: DiffRateConfig) -> tuple[tuple[int, int], ...]:
    """What pruning and merging leave in each layer; empty where that is still to be searched for.

    Raises:
        ConfigError: The artifact holds something else.
    """
    if config.schedule is None:
        return () if config.flops_ratio is not None else config.kept
    where = f"diffrate: schedule {shown(config.schedule.path)}"
    tensors = artifact_tensors(config.schedule, "diffrate: schedule")
    lists = [tensors.get(name, torch.empty(0)) for name in ("prune_kept", "merge_kept")]
    if len(tensors) != 2 or any(each.ndim != 1 or each.dtype != torch.int64 or not len(each) for each in lists):
        raise ConfigError(
            f"{where} does not hold the whole numbers prune_kept and merge_kept, one for each layer; make it again "
            "with `trt-compress calibrate`."
        )
    pruned, merged = (tuple(int(count) for count in each) for each in lists)
    return DiffRateConfig(prune_kept=pruned, merge_kept=merged).kept


def _distance(ours: Mapping[str, Tensor], dense: Mapping[str, Tensor]) -> Tensor:
    """How far outputs are from those of the whole model: of logits the divergence in nats, else the squared distance
    as a share of their square.

    Raises:
        UnsupportedError: No output is of the whole image.
    """
    for name in _COMPARED:
        for key, wanted in dense.items():
            if key.endswith(f".{name}") and wanted.ndim == 2:
                found = ours[key].float()
                if name != "logits":
                    return (found - wanted).square().sum() / wanted.float().square().sum()
                aim = wanted.float().log_softmax(dim=-1)
                return functional.kl_div(found.log_softmax(dim=-1), aim, reduction="batchmean", log_target=True)
    raise UnsupportedError(
        "diffrate: the search compares logits, or one vector of each image, and the model puts out neither; give "
        "prune_kept=[…] and merge_kept=[…]."
    )
