"""What passes a site: tokens with everything that is known of them, and the tensors that a method asked for."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import cast

import torch
from torch import Tensor

from trt_compress.models.compressors.sites import BESIDE, Asked, Tap, TapKind, as_tap, token_axis
from trt_compress.models.layers.partial import Reuse, Route


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """Tokens [B, N, C], and what is known of them. A method hands on all of it, for the tokens that it leaves.

    Attributes:
        x: The tokens.
        size: How many original tokens each stands for, [B, N, 1] in fp32; None: one each.
        weighed: Attention adds log(size) to the logits of every key.
        position: Where each stands, for rotary positions and for what a cache stores, [B, N] or [B, N, axes] int64;
            None: nobody asks.
        valid: Whether each is a token at all and no padding, [B, N] bool; padding stands behind. None: all are.
        route: Set where only some tokens pass a block: `x` are those, everything else is of all tokens.
        reuse: Set where only some tokens are computed and the others keep what was computed for them before.
        memory: States that methods own, by the names of their inputs; a method puts the new ones in their places.
    """

    x: Tensor
    size: Tensor | None = None
    weighed: bool = False
    position: Tensor | None = None
    valid: Tensor | None = None
    route: Route | None = None
    reuse: Reuse | None = None
    memory: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def key_size(self) -> Tensor | None:
        """What attention weighs keys by, [B, N, 1]; None: nothing."""
        return self.size if self.weighed else None

    @property
    def sizes(self) -> Tensor:
        """How many original tokens each stands for, [B, N, 1] in fp32."""
        return torch.ones_like(self.x[..., :1], dtype=torch.float32) if self.size is None else self.size

    def with_x(self, x: Tensor) -> "Tokens":
        """The same tokens with other channels."""
        return replace(self, x=x)

    def at(self, x: Tensor, index: Tensor) -> "Tokens":
        """Some of the tokens, x [B, K, C], which stand at `index` [B, K] among these."""
        return replace(
            self,
            x=x,
            size=_rows(self.size, index),
            position=_rows(self.position, index),
            valid=_rows(self.valid, index),
        )


class Taps:
    """What the host computed for methods, by kind and layer.

    Args:
        here: Tensors of the layer of the site.
    """

    def __init__(self, **here: Tensor) -> None:
        self._layer: int | None = None
        self._count: int | None = None
        self._found: dict[tuple[Asked, int | None], Tensor] = {
            (cast(TapKind, kind), None): tensor for kind, tensor in here.items()
        }

    def put(self, layer: int, found: Mapping[Asked, Tensor]) -> None:
        """Note what was computed at a layer."""
        self._found.update({(asked, layer): tensor for asked, tensor in found.items()})

    def seen_from(self, layer: int, count: int | None = None) -> "Taps":
        """The same, with another layer as the one of the site, and of the first `count` tokens only."""
        seen = Taps()
        seen._layer, seen._count, seen._found = layer, count, self._found
        return seen

    def __getitem__(self, kind: TapKind) -> Tensor:
        return self._cut(kind, self._found[kind, self._layer])

    def of(self, kind: TapKind, layer: int) -> Tensor:
        """A tensor of any layer."""
        return self._cut(kind, self._found[kind, layer])

    def at(self, tap: Tap) -> Tensor:
        """What a tap asked for."""
        return self._cut(tap.asked, self._found[tap.asked, tap.layer])

    def _cut(self, asked: Asked, tensor: Tensor) -> Tensor:
        probe = as_tap(asked).probe
        if as_tap(asked).kind in BESIDE:
            return tensor
        if self._count is None or (probe is not None and (probe.first_key, probe.stop_key) != (0, 0)):
            return tensor
        return tensor.narrow(token_axis(asked), 0, self._count)


def _rows(known: Tensor | None, index: Tensor) -> Tensor | None:
    """Rows [B, K, …] at `index` [B, K]."""
    if known is None:
        return None
    places = index.reshape(*index.shape, *(1,) * (known.ndim - 2)).expand(*index.shape, *known.shape[2:])
    return torch.gather(known, 1, places)
