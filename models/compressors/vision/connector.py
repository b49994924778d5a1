"""What trained connectors behind a tower share: their tensors out of a file, the layers they read, and attention."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from trt_compress.errors import ConfigError, UnsupportedError
from trt_compress.methods.artifact import ArtifactFile
from trt_compress.models.compressors.base import averaged, check_layers
from trt_compress.models.compressors.calibration import artifact_tensors
from trt_compress.models.compressors.passing import Taps, Tokens
from trt_compress.models.compressors.sites import Arrival, HostInfo, Tap
from trt_compress.models.layers.attention import attention, merge_heads, split_heads

Shapes = Mapping[str, tuple[int, ...]]


def part_of(tensors: Mapping[str, Tensor], anchor: str) -> dict[str, Tensor]:
    """The tensors beside the one whose name ends with `anchor`, by their names there; none: there is no such one."""
    fronts = [name.removesuffix(anchor) for name in tensors if f".{name}".endswith(f".{anchor}")]
    if len(fronts) != 1:
        return {}
    return {name.removeprefix(fronts[0]): each for name, each in tensors.items() if name.startswith(fronts[0])}


def side(tensors: Mapping[str, Tensor], name: str, axis: int) -> int:
    """The length of an axis of a matrix; 0: there is no such matrix."""
    found = tensors.get(name)
    return 0 if found is None or found.ndim < 2 else found.shape[axis]


def linear(name: str, inner: int, outer: int) -> Shapes:
    """The tensors of a linear layer."""
    return {f"{name}.weight": (outer, inner), f"{name}.bias": (outer,)}


def mlp(name: str, inner: int, outer: int) -> Shapes:
    """The tensors of two linear layers with an activation between them."""
    return {**linear(f"{name}.0", inner, outer), **linear(f"{name}.2", outer, outer)}


def norm(name: str, width: int) -> Shapes:
    """The tensors of a layer norm."""
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def packed_attention(name: str, width: int) -> Shapes:
    """The tensors of torch's MultiheadAttention."""
    return {
        f"{name}.in_proj_weight": (3 * width, width),
        f"{name}.in_proj_bias": (3 * width,),
        **linear(f"{name}.out_proj", width, width),
    }


def fitting(method: str, tensors: Mapping[str, Tensor], where: str, shapes: Shapes, whose: str) -> dict[str, Tensor]:
    """Tensors that have these names and shapes and no others, in float32.

    Args:
        method: Name of the method, for messages.
        tensors: By their official names.
        where: What they are of, for messages.
        shapes: What there is to be.
        whose: What to give instead, as the end of `…; give `.

    Raises:
        ConfigError: some are missing, too many, misshaped, or not finite numbers in floating point.
    """
    if missing := sorted(shapes.keys() - tensors.keys()):
        raise ConfigError(f"{method}: {where} misses {', '.join(missing)}; give {whose}.")
    if more := sorted(tensors.keys() - shapes.keys()):
        raise ConfigError(f"{method}: {where} has {', '.join(more)} beside what is read; give {whose}.")
    for name, shape in shapes.items():
        found = tensors[name]
        if tuple(found.shape) != shape:
            fit = f"{list(shape)} would fit the others" if all(shape) else f"{len(shape)} axes are needed"
            raise ConfigError(f"{method}: {where} has {name} {list(found.shape)}, and {fit}; give {whose}.")
        if not found.is_floating_point() or not bool(found.isfinite().all()):
            raise ConfigError(f"{method}: {where} has {name} that is not of finite numbers; give {whose}.")
    return {name: tensors[name].float() for name in shapes}


def read_weights(method: str, file: ArtifactFile | None) -> dict[str, Tensor]:
    """The tensors that the option `weights` gives.

    Raises:
        ConfigError: it gives none.
    """
    if file is None:
        raise ConfigError(
            f"{method}: weights=FILE is missing; make it with `trt-compress calibrate MODEL --compress {method} "
            "--tensors FILE`."
        )
    return artifact_tensors(file, f"{method}: weights")


def need_width(method: str, width: int, where: str, arrival: Arrival) -> None:
    """Raise if tensors are for tokens of another width than those that come."""
    if arrival.width is None:
        raise UnsupportedError(f"{method}: {arrival.host.name} does not tell the width of its tokens; use fourier.")
    if arrival.width != width:
        raise ConfigError(
            f"{method}: {where} is for tokens of {width} channels, and {arrival.width} come of {arrival.host.name}; "
            "give what was trained for it."
        )


def need_heads(method: str, heads: int, width: int) -> None:
    """Raise ConfigError if heads do not divide the channels."""
    if width % heads:
        raise ConfigError(f"{method}: heads={heads} does not divide {width} channels; give a number that does.")


class Levels:
    """The outputs of several layers side by side, the last of which may be what the tower gives.

    Args:
        method: Name of the method, for messages.
        layers: From 0, ascending; None: at a half and two thirds of the tower and its last two, as 11, 15, 21 and 22
            of a tower of 24 layers that ends behind 22.
        host: The tower.

    Raises:
        ConfigError: the host lacks one, or is too shallow for the default.
    """

    def __init__(self, method: str, layers: Sequence[int] | None, host: HostInfo) -> None:
        if layers is None:
            whole = host.depth + 1
            layers = (whole // 2 - 1, 2 * whole // 3 - 1, host.depth - 2, host.depth - 1)
            if sorted({max(layer, 0) for layer in layers}) != list(layers):
                raise ConfigError(
                    f"{method}: {host.name} has {host.depth} layers, too few for the usual four; give layers=[…]."
                )
        self.layers = check_layers(method, layers, host)
        self.depth = host.depth

    def taps(self) -> tuple[Tap, ...]:
        """What to ask the host for."""
        return tuple(Tap(kind="hidden", layer=layer + 1) for layer in self.layers if layer + 1 < self.depth)

    def of(self, tokens: Tokens, taps: Taps) -> Tensor:
        """[B, N, layers * C] of tokens [B, N, C]."""
        found = [tokens.x if layer + 1 == self.depth else taps.of("hidden", layer + 1) for layer in self.layers]
        return torch.cat(found, dim=2)


def need_levels(method: str, width: int, where: str, levels: Levels, arrival: Arrival) -> None:
    """Raise ConfigError if tensors read as many channels side by side as the layers do not give."""
    given_width = (arrival.width or 0) * len(levels.layers)
    if width != given_width:
        raise ConfigError(
            f"{method}: {where} reads {width} channels of several layers, and layers={list(levels.layers)} of "
            f"{arrival.host.name} give {given_width}; give the layers that it was trained for."
        )


class CrossAttention(nn.Module):
    """Attention of queries to keys and values that are not theirs.

    Args:
        tensors: As torch's MultiheadAttention has them, the three projections in one.
        name: Of it, in front of theirs.
        heads: They divide the channels.
    """

    def __init__(self, tensors: Mapping[str, Tensor], name: str, heads: int) -> None:
        super().__init__()
        weights, biases = (tensors[f"{name}.in_proj_{kind}"].chunk(3) for kind in ("weight", "bias"))
        self.query, self.key, self.value = (given(*each) for each in zip(weights, biases, strict=True))
        self.out = given(tensors[f"{name}.out_proj.weight"], tensors[f"{name}.out_proj.bias"])
        self.heads = heads

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[B, M, C] of queries [B, M, C], keys and values [B, N, C]."""
        return self._attended(self.query(query), self.key(key), self.value(value))

    def in_windows(self, query: Tensor, key: Tensor, value: Tensor, grid: tuple[int, int], scale: int) -> Tensor:
        """[B, M, C] where each of the queries [B, M, C] attends to its own window of keys and values [B, N, C]."""
        rows = self.query(query).flatten(0, 1)[:, None]
        keys, values = (windows(each, grid, scale).flatten(0, 1) for each in (self.key(key), self.value(value)))
        return self._attended(rows, keys, values).reshape(query.shape)

    def _attended(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        found, _ = attention(*(split_heads(each, self.heads) for each in (query, key, value)))
        out: Tensor = self.out(merge_heads(found))
        return out


def windows(x: Tensor, grid: tuple[int, int], scale: int) -> Tensor:
    """[B, rows * columns, C] to [B, windows, scale * scale, C]."""
    batch, rows, columns = x.shape[0], grid[0] // scale, grid[1] // scale
    split = x.reshape(batch, rows, scale, columns, scale * x.shape[2]).transpose(2, 3)
    return split.reshape(batch, rows * columns, scale**2, x.shape[2])


def of_windows(tokens: Tokens, x: Tensor, front: int, grid: tuple[int, int], scale: int) -> Tokens:
    """Tokens that each stand for a window of the patches behind `front` others.

    Args:
        tokens: What came, [B, N, C].
        x: What is made of each window, [B, windows, E].
        front: Tokens in front of the patches; they are left out.
        grid: Rows and columns of patches.
        scale: Of a window.
    """
    size = windows(tokens.sizes[:, front:], grid, scale).sum(dim=2)
    position = averaged(tokens.position, lambda at: windows(at[:, front:], grid, scale).mean(dim=2))
    return replace(tokens, x=x, size=size, position=position)


def need_windows(method: str, scale: int, grid: tuple[int, int]) -> None:
    """Raise ConfigError if windows do not divide the grid."""
    if grid[0] % scale or grid[1] % scale:
        raise ConfigError(
            f"{method}: windows of {scale} x {scale} patches do not divide the grid of {grid[0]} x {grid[1]}; take a "
            "tower of another size, or other windows."
        )


def given(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A linear layer with these tensors."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.load_state_dict({"weight": weight, **({} if bias is None else {"bias": bias})})
    return layer


def perceptron(tensors: Mapping[str, Tensor], name: str, eps: float | None = None) -> nn.Sequential:
    """Two linear layers with GELU between them, and a norm behind where the tensors have one."""
    first, second = (given(tensors[f"{name}.{at}.weight"], tensors[f"{name}.{at}.bias"]) for at in (0, 2))
    layers: list[nn.Module] = [first, nn.GELU(), second]
    if eps is not None:
        layers.append(normal(tensors, f"{name}.3", eps))
    return nn.Sequential(*layers)


def normal(tensors: Mapping[str, Tensor], name: str, eps: float) -> nn.LayerNorm:
    """A layer norm with these tensors."""
    weight = tensors[f"{name}.weight"]
    layer = nn.LayerNorm(weight.shape[0], eps=eps)
    layer.load_state_dict({"weight": weight, "bias": tensors[f"{name}.bias"]})
    return layer
