"""GlobalCom²: a thumbnail says how much of each crop of a large picture is kept, and helps to say what."""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from trt_compress.errors import UnsupportedError
from trt_compress.methods.crops import GLOBALCOM2, GlobalCom2Config
from trt_compress.models.compressors.base import Compressor
from trt_compress.models.compressors.passing import Taps, Tokens
from trt_compress.models.compressors.sites import PICTURES, Arrival, HostInfo, Placement, Site, Tap
from trt_compress.models.compressors.vision.behind import best_of, layer_ahead, ranks, rows_at
from trt_compress.plugins.attention_score.op import attention_score
from trt_compress.plugins.operator import cast
from trt_compress.plugins.token_select.op import token_select

_HEAT = 10.0  # sums of a thumbnail's scores are divided by it
_NEVER = -3e38  # a score below that of every patch
_TINY = 1e-12  # a length below which a vector counts as zero
_ROUNDED = 1 + 2.0**-20  # times a number of patches, which float32 may put just below a whole one


class GlobalCom2(Compressor):
    """Keep the best of a thumbnail, and of its crops as many as it finds in each."""

    method = GLOBALCOM2
    layer_option = "layer=…"
    alone = "shares a budget between the whole grids of all pictures of a sample"
    keeps_prefix = False

    cells: Tensor
    raster: Tensor

    @classmethod
    def placements(cls, config: GlobalCom2Config, host: HostInfo) -> tuple[Placement, ...]:
        """Behind the tower, where all pictures of a sample are there."""
        if host.crops is None:
            raise UnsupportedError(
                f"globalcom2: {host.name} reads one picture a sample, and globalcom2 shares a budget between a "
                "thumbnail and its crops; say how these lie (hf:DIR?crops=2x2), or use hiprune."
            )
        return (Placement(kind=PICTURES),)

    @classmethod
    def taps(cls, config: GlobalCom2Config, host: HostInfo, site: Site) -> tuple[Tap, ...]:
        """Queries and keys of all heads where there is a class token, and how large the picture is."""
        size = (Tap(kind="picture_size", layer=host.depth),) if config.unpad else ()
        if not host.has_class_token:
            return size
        layer = layer_ahead("globalcom2", config.layer, host, "queries")
        return (*size, *(Tap(kind=kind, layer=layer, heads="each") for kind in ("queries", "keys")))

    def __init__(self, config: GlobalCom2Config, arrival: Arrival) -> None:
        super().__init__(config, arrival)
        host = arrival.host
        assert host.crops is not None and host.grid is not None  # else there is no such site
        self.wanted = {tap.kind: tap for tap in self.taps(config, host, arrival.site)}
        self.prefix, self.ratio, self.as_code = host.num_prefix, config.keep_ratio, config.order == "code"
        self.crops, self.grid = host.crops, host.grid
        count, number = self.grid[0] * self.grid[1], self.crops[0] * self.crops[1]
        self.of_thumbnail = max(1, int(count * config.keep_ratio))
        self.of_crops = max(1, min(count * number, int(count * number * config.keep_ratio * _ROUNDED)))
        self.register_buffer("cells", _cells(self.grid, self.crops), persistent=False)
        in_crops = torch.arange(number * count).reshape(1, number, count)
        self.register_buffer("raster", self._in_rows(in_crops)[0], persistent=False)
        self.tokens_out = self.of_thumbnail + self.of_crops

    @property
    def acts(self) -> bool:
        """It orders tokens even where none goes."""
        return True

    def forward(self, tokens: Tokens, taps: Taps) -> Tokens:
        """Patches of the thumbnail by falling score, those of the crops in their order, and padding behind them."""
        count = self.grid[0] * self.grid[1]
        score = self._scores(tokens, taps)
        guide, seen = self._seen(score[:, 0], taps)
        own, ratio = score[:, 1:], shares(score[:, 0], self.cells, self.ratio)
        origin = torch.arange(own[0].numel(), device=own.device).expand(own.shape[0], -1)
        if self.as_code:  # a crop's real patches first
            first = best_of(cast(seen.flatten(0, 1), torch.float32), count).reshape(seen.shape)
            own, guide, seen = (each.gather(2, first) for each in (own, guide, seen))
            origin = (first + torch.arange(own.shape[1], device=own.device)[:, None] * count).flatten(1)
        kept = chosen(own, guide, seen, ratio)
        return self._kept(tokens, score[:, 0], self._in_rows(kept), origin[:, self.raster] + count)

    def _scores(self, tokens: Tokens, taps: Taps) -> Tensor:
        """How important each patch is within its picture, [B, P, N] in float32."""
        number = 1 + self.crops[0] * self.crops[1]
        patches = tokens.x.reshape(tokens.x.shape[0], number, -1, tokens.x.shape[2])
        if "queries" not in self.wanted:
            unit = functional.normalize(patches.float(), dim=-1)
            mean = functional.normalize(patches.float().mean(dim=2, keepdim=True), dim=-1)
            return -(unit * mean).sum(dim=3)
        query, key = (taps.at(self.wanted[kind]) for kind in ("queries", "keys"))
        logits = attention_score(query[:, :, :1], key, softmax="none", start=self.prefix)
        return logits.float().reshape(patches.shape[:3])

    def _seen(self, thumbnail: Tensor, taps: Taps) -> tuple[Tensor, Tensor]:
        """The thumbnail's scores at the patches of all crops, and which of these show the picture, [B, J, N]."""
        shape = self.crops[0] * self.grid[0], self.crops[1] * self.grid[1]
        if "picture_size" in self.wanted:
            size = cast(taps.at(self.wanted["picture_size"]), torch.float32).clamp_min(1)
            spans = inside((size[:, 0], size[:, 1]), shape)
        else:
            whole = torch.zeros_like(thumbnail[:, 0])
            spans = [(whole, whole + length) for length in shape]
        (weights, rows), (across, columns) = (
            stretched(*span, length, per) for span, length, per in zip(spans, shape, self.grid, strict=True)
        )
        guide = weights @ thumbnail.reshape(-1, *self.grid) @ across.transpose(1, 2)
        return self._in_crops(guide), self._in_crops(rows[:, :, None] & columns[:, None])

    def _kept(self, tokens: Tokens, thumbnail: Tensor, flags: Tensor, origin: Tensor) -> Tokens:
        """Tokens of the thumbnail, and of the crops those with a flag; both [B, J * N] by the rows of all crops.

        Args:
            tokens: Of all pictures.
            thumbnail: Its scores.
            flags: Which are kept.
            origin: Which of the tokens stands there.
        """
        x, best, _ = token_select(
            tokens.x[:, : thumbnail.shape[1]], thumbnail, num_kept=self.of_thumbnail, order="score"
        )
        flags = cast(flags, torch.float32)
        more, place, _ = token_select(rows_at(tokens.x, origin), flags, num_kept=self.of_crops, order="score")
        there = torch.arange(self.of_crops, device=place.device) < flags.sum(dim=1, keepdim=True)
        found = tokens.at(torch.cat([x, more], dim=1), torch.cat([best, origin.gather(1, place)], dim=1))
        return replace(found, valid=torch.cat([torch.ones_like(best, dtype=torch.bool), there], dim=1))

    def _in_crops(self, grid: Tensor) -> Tensor:
        """Of each crop what stands in the grid of all [B, rows, columns]; [B, J, N]."""
        (down, across), (rows, columns) = self.crops, self.grid
        split = grid.reshape(-1, down, rows, across, columns).transpose(2, 3)
        return split.reshape(-1, down * across, rows * columns)

    def _in_rows(self, crops: Tensor) -> Tensor:
        """Of the grid of all crops, row by row, what stands in each [B, J, N]; [B, J * N]."""
        (down, across), (rows, columns) = self.crops, self.grid
        return crops.reshape(-1, down, across, rows, columns).transpose(2, 3).flatten(1)


def _cells(grid: tuple[int, int], crops: tuple[int, int]) -> Tensor:
    """Which part of a thumbnail each crop shows, [N, J] of ones and zeros; the last ones have what is left over."""
    parts = [
        (torch.arange(length) // max(1, length // number)).clamp_max(number - 1)
        for length, number in zip(grid, crops, strict=True)
    ]
    place = (parts[0][:, None] * crops[1] + parts[1]).flatten()
    return (place[:, None] == torch.arange(crops[0] * crops[1])).float()


def shares(thumbnail: Tensor, cells: Tensor, ratio: float) -> Tensor:
    """How much of each crop is kept, [B, J], by a thumbnail's scores [B, N] in the part that it shows [N, J]."""
    part = torch.softmax(thumbnail @ cells / _HEAT, dim=1)
    return (ratio * (1 + part - part.mean(dim=1, keepdim=True))).clamp_max(1)


def chosen(own: Tensor, guide: Tensor, seen: Tensor, ratio: Tensor) -> Tensor:
    """Which patches of crops are kept, [B, J, N] bool; of equal ones the smaller place.

    Args:
        own: What the crop says of each.
        guide: What the thumbnail says.
        seen: Which are no padding.
        ratio: How many of these are kept, [B, J], rounded down.
    """
    there = cast(seen, torch.float32)
    score = sum(
        each * there / (each * there).square().sum(dim=2, keepdim=True).sqrt().clamp_min(_TINY) for each in (own, guide)
    )
    rank = ranks(torch.where(seen, score, _NEVER).flatten(0, 1)).reshape(own.shape)
    return (rank < (there.sum(dim=2) * ratio * _ROUNDED).floor()[..., None]) & seen


def inside(size: tuple[Tensor, Tensor], grid: tuple[int, int]) -> list[tuple[Tensor, Tensor]]:
    """Where in a grid a picture stands that is scaled to fit and has as much padding on both sides.

    Args:
        size: Height and width of each picture, [B] in float32.
        grid: Rows and columns.

    Returns:
        For rows and for columns the first, and the one behind the last, [B]; where padding is odd the last is one
        more, as LLaVA-NeXT cuts it.
    """
    found = []
    for axis in (0, 1):
        length, other = grid[axis], grid[1 - axis]
        scaled = (size[axis] * other / size[1 - axis]).floor()
        before = ((length - scaled.clamp_max(length)) / 2).floor()
        found.append((before, length - before))
    return found


def stretched(start: Tensor, stop: Tensor, length: int, number: int) -> tuple[Tensor, Tensor]:
    """Weights [B, length, number] that draw values out over the places from start to stop [B], linearly between their
    centres; and which places these are, [B, length]."""
    place = torch.arange(length, dtype=torch.float32, device=start.device)
    start, stop = start[:, None], stop[:, None]
    at = ((place - start + 0.5) * number / (stop - start).clamp_min(1) - 0.5).clamp(0, number - 1)
    source = torch.arange(number, dtype=torch.float32, device=start.device)
    return (1 - (at[..., None] - source).abs()).clamp_min(0), (place >= start) & (place < stop)
