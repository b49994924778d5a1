"""What methods behind a tower share: where they act, which layer they look at, and how patches are taken out."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from trt_compress.errors import ConfigError, UnsupportedError
from trt_compress.models.compressors.base import refuse_without_class_token
from trt_compress.models.compressors.passing import Tokens
from trt_compress.models.compressors.sites import ENCODER_OUTPUT, Arrival, HostInfo, Placement, Tap, TapKind
from trt_compress.plugins.operator import cast
from trt_compress.plugins.token_select.op import token_select

WITHOUT_CLASS = "avg_pool, random or visionzip"
_EARLY = 2  # layers behind the first


def behind_tower() -> tuple[Placement, ...]:
    """Behind the last layer."""
    return (Placement(kind=ENCODER_OUTPUT),)


def last_layer(name: str, layer: int | None, host: HostInfo) -> int:
    """The layer that is looked at: the one that was asked for, or the last that is run.

    Raises:
        ConfigError: The host lacks it.
    """
    if layer is not None and layer >= host.depth:
        raise ConfigError(f"{name}: layer={layer} is out of range; {host.name} has layers 0..{host.depth - 1}.")
    return host.depth - 1 if layer is None else layer


def layer_ahead(name: str, layer: int | None, host: HostInfo, tap: TapKind) -> int:
    """As `last_layer`, where the one behind the features may be looked at too, and is by default.

    Raises:
        ConfigError: The host lacks it.
    """
    has_next = any(site.layer == host.depth and tap in site.taps for site in host.sites)
    if has_next and layer in (None, host.depth):
        return host.depth
    return last_layer(name, layer, host)


def early_layer(name: str, layer: int | None, host: HostInfo) -> int:
    """The early layer that is looked at: the one that was asked for, or the third; of a shorter tower the last.

    Raises:
        ConfigError: The host lacks it.
    """
    if layer is not None and layer >= host.depth:
        raise ConfigError(f"{name}: early_layer={layer} is out of range; {host.name} has layers 0..{host.depth - 1}.")
    return min(_EARLY, host.depth - 1) if layer is None else layer


def need_class_token(name: str, host: HostInfo) -> None:
    """Raise UnsupportedError if the host has no class token."""
    refuse_without_class_token(name, host, instead=WITHOUT_CLASS)


def need_texts(name: str, host: HostInfo) -> None:
    """Raise UnsupportedError if the host does not bring patches into the space of texts."""
    if not any("text_space" in site.taps for site in host.sites):
        raise UnsupportedError(
            f"{name}: {host.name} has no projection to a space of texts, where patches are compared with a question; "
            "take a CLIP that has one (CLIPModel, CLIPVisionModelWithProjection), or use divprune."
        )


def texts_taps(host: HostInfo, rows: int = 1) -> tuple[Tap, Tap]:
    """The tokens behind the tower in the space of texts, and the vectors of a text there."""
    return Tap(kind="text_space", layer=host.depth), Tap(kind="texts", layer=host.depth, rows=rows)


def text_cosines(tokens: Tensor, texts: Tensor) -> Tensor:
    """The mean cosine [B, N] of tokens [B, N, P] with the texts [B, S, P] that there are; without any it is 0."""
    unit, words = (functional.normalize(each.float(), dim=-1) for each in (tokens, texts))
    count = cast(texts.abs().amax(dim=2) > 0, torch.float32).sum(dim=1, keepdim=True)
    return (unit @ words.transpose(1, 2)).sum(dim=2) / count.clamp_min(1)


def need_patches(name: str, wanted: int, option: str, arrival: Arrival) -> None:
    """Raise ConfigError if more patches are asked for than come."""
    if wanted > arrival.patches:
        raise ConfigError(
            f"{name}: {option} is too large for the {arrival.patches} patches that {arrival.host.name} gives; give at "
            f"most {arrival.patches}."
        )


def rows_at(x: Tensor, index: Tensor) -> Tensor:
    """Rows [B, K, C] of x [B, N, C] at index [B, K]."""
    return torch.gather(x, 1, index[..., None].expand(-1, -1, x.shape[2]))


def best_of(score: Tensor, count: int) -> Tensor:
    """Places [B, count] of the largest of scores [B, N], descending; of equal ones the smaller first."""
    _, index, _ = token_select(score[..., None], score, num_kept=count, order="score")
    return index


def ranks(score: Tensor) -> Tensor:
    """How many come before each of scores [B, N] by falling score, of equal ones the smaller place first; [B, N]."""
    place = torch.arange(score.shape[1], device=score.device)
    one, other = score[:, :, None], score[:, None]
    before = (other > one) | ((other == one) & (place < place[:, None]))
    return cast(before, torch.float32).sum(dim=2)


def keep_patches(tokens: Tokens, score: Tensor, prefix: int, count: int) -> Tokens:
    """The tokens in front, and the patches of the largest scores [B, patches], in their order."""
    full = functional.pad(score.float(), (prefix, 0))
    x, index, _ = token_select(tokens.x, full, num_kept=prefix + count, forced=range(prefix))
    return tokens.at(x, index)


def places(index: Tensor, count: int) -> Tensor:
    """Which of `count` places stand in each row of index [B, K]: 0 or 1, [B, K, count] in float32."""
    return cast(index[..., None] == torch.arange(count, device=index.device), torch.float32)


def constant_rows(rows: Sequence[int], like: Tensor) -> Tensor:
    """Places that are the same for every item, [B, K] int64."""
    index = torch.tensor(rows, dtype=torch.int64, device=like.device)
    return index.expand(like.shape[0], -1)


def need_grid(name: str, arrival: Arrival) -> tuple[int, int]:
    """Rows and columns of the patches that come.

    Raises:
        UnsupportedError: The host has none.
        ConfigError: Others have removed patches, so that they are no grid any more.
    """
    grid = arrival.host.grid
    if grid is None:
        raise UnsupportedError(
            f"{name}: {arrival.host.name} has no grid of patches, whose neighbours it looks at; use divprune or "
            "visionzip."
        )
    if arrival.patches != grid[0] * grid[1]:
        raise ConfigError(
            f"{name}: it needs the whole grid of {grid[0]} x {grid[1]} patches, and {arrival.patches} come to it; "
            "leave out what removes some before."
        )
    return grid
