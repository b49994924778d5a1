"""EMS: entries of the largest scores stay, and those that come next are merged into the most similar of them.

Source, Differs: see the method's entry, `methods.cache_selectors.EMS`.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from trt_compress.methods.cache_selectors import EMS, EmsConfig
from trt_compress.models.cache.by_rows import up_to
from trt_compress.models.cache.contract import ROWS, CacheState, Choice, Memory, NewEntries, Store
from trt_compress.models.cache.h2o import H2o
from trt_compress.models.cache.scores import of_groups, pooled, scores_of_last
from trt_compress.models.compressors.sites import Arrival
from trt_compress.models.layers.attention import last_rows
from trt_compress.plugins.operator import cast
from trt_compress.plugins.token_select.op import token_select

_LEAST, _SMALL = -1e30, 1e-12


class Ems(H2o):
    """Attention of all tokens, as H2O adds it up, and of a window of the last, brought to the same mean: the larger of
    both is an entry's score.

    Attributes:
        merged: Entries at most that are looked at for merging.
    """

    method = EMS
    config: EmsConfig
    merges = True

    def __init__(self, config: EmsConfig, arrival: Arrival) -> None:
        super().__init__(config, arrival)
        wanted = config.budget if config.merged is None else config.merged
        self._centres = config.budget - config.window
        self.merged = max(min(wanted, self.layer.context - self._centres), 0)

    @property
    def looks_at(self) -> int:
        """Those that stay, and those that may be merged."""
        return max(self._centres + self.merged, self.at_most)

    def cache_states(self) -> tuple[CacheState, ...]:
        """The sums of each row, and the queries of the window."""
        shape = (self.layer.heads, self.config.window, self.layer.head_dim)
        window = CacheState(name="window", shape=shape, kind="score", compact="r", parts=self.observes)
        return (*super().cache_states(), window)

    def observe(self, reading: NewEntries, store: Store, memory: Memory) -> None:
        """Add the attention of new tokens, and carry the window on."""
        super().observe(reading, store, memory)
        window = memory["window"]
        memory["window"] = last_rows(window, cast(reading.query, window.dtype), reading.count)

    def choose(self, lengths: Mapping[str, Tensor], memory: Memory) -> Choice:
        """The entries of the largest scores and the window; others are merged into them before."""
        length = lengths[ROWS]
        score = self.scores(length, memory)
        if self.merged:
            self._merge(score, length, memory)
        return self.keep_best(score, length, recent=self.config.window)

    def scores(self, length: Tensor, memory: Memory) -> Tensor:
        """Of the entries in front of the window, [B, G, L]; of others 0."""
        layer = self.layer
        before = torch.arange(memory["keys"].shape[2], device=length.device) < (length - self.config.window)[:, None]
        near = scores_of_last(memory["window"], memory["keys"], length, scale=layer.scale, softcap=layer.softcap)
        near = torch.where(before[:, None], of_groups(near, layer.groups, "mean"), 0.0)
        far = torch.where(before[:, None], memory[self.state][..., 0], 0.0)
        near = near * (far.sum(dim=2, keepdim=True) / near.sum(dim=2, keepdim=True).clamp(min=_SMALL))
        return torch.where(before[:, None], pooled(torch.maximum(near, far), "avg", self.config.kernel), 0.0)

    def _merge(self, score: Tensor, length: Tensor, memory: Memory) -> None:
        """Put means of centres and what is merged into them into the centres' places."""
        batch, groups, slots = score.shape
        count = (length - self.config.window)[:, None]
        front = torch.arange(slots, device=score.device) < count
        flat = torch.where(front[:, None], score, _LEAST).reshape(batch * groups, slots)
        total = self._centres + self.merged
        _, index, _ = token_select(flat[..., None], flat, num_kept=total, order="score")
        index = index.reshape(batch, groups, total)
        centre, other = index[:, :, : self._centres], index[:, :, self._centres :]
        rank = torch.arange(total, device=score.device)
        is_centre = (rank[: self._centres] < count)[:, None, None]
        goes = ((rank[self._centres :] < count) & (length[:, None] > self.at_most))[:, None]
        keys, values = (cast(memory[name], torch.float32) for name in ("keys", "values"))
        (k, k_norm), (v, v_norm) = (_directions(_rows(rows, centre)) for rows in (keys, values))
        (new_k, new_k_norm), (new_v, new_v_norm) = (_directions(_rows(rows, other)) for rows in (keys, values))
        like = (new_k @ k.transpose(2, 3)) * (new_v @ v.transpose(2, 3))  # [B, G, M, C]
        like = torch.where(is_centre, like, -2.0)
        nearest, place = like.max(dim=3, keepdim=True)
        chosen = (rank[: self._centres] == place) & ((nearest[..., 0] >= self.config.threshold) & goes)[..., None]
        one_hot = cast(chosen, torch.float32).transpose(2, 3)
        own, weight = score.gather(2, centre)[..., None], one_hot * score.gather(2, other)[:, :, None]
        mass = own + weight.sum(dim=3, keepdim=True)
        gains = (mass > own) & (mass > 0)
        share = 1 / torch.where(gains, mass, 1.0)
        direction, _ = _directions(own * k + weight @ new_k)
        length_ = (own * k_norm + weight @ new_k_norm) * share
        mean = (own * v * v_norm + weight @ (new_v * new_v_norm)) * share
        for name, rows, made in (("keys", keys, direction * length_), ("values", values, mean)):
            put = torch.where(gains, made, _rows(rows, centre))
            places = centre[..., None].expand(-1, -1, -1, rows.shape[3])
            memory[name] = cast(rows.scatter(2, places, put), memory[name].dtype)
        sums = up_to(memory[self.state], length)
        both = _rows(sums, centre) + one_hot @ _rows(sums, other)
        memory[self.state] = sums.scatter(2, centre[..., None].expand(-1, -1, -1, sums.shape[3]), both)


def _rows(rows: Tensor, index: Tensor) -> Tensor:
    """Rows [B, G, K, W] of rows [B, G, L, W]."""
    return rows.gather(2, index[..., None].expand(-1, -1, -1, rows.shape[3]))


def _directions(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of the length 1, and the lengths they had, [..., 1]; zeros stay."""
    norm = rows.square().sum(dim=3, keepdim=True).sqrt()
    return rows / norm.clamp(min=_SMALL), norm
