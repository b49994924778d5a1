"""What becomes of the patches of a picture at every site of a bundle: a picture for each, of any method.

A token that leaves a site is a mixture of those that came, and the gradient says of which: a patch belongs to the token
that it has the largest share in, and where it has none in any it was dropped. So every method is drawn, whatever its
operators are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw
from torch import nn

from trt_compress.errors import ConfigError, UnsupportedError
from trt_compress.export.sample_inputs import read_arrays
from trt_compress.foreign import shown
from trt_compress.format.kinds import ImageInput, input_kind
from trt_compress.format.manifest import Manifest
from trt_compress.models.compressors.base import Compressor
from trt_compress.models.compressors.passing import Taps, Tokens
from trt_compress.models.compressors.place import GraphPlan
from trt_compress.models.hosts.base import GraphSpec
from trt_compress.plugins.operator import recording
from trt_compress.runtime.stream.pictures import PictureReader
from trt_compress.runtime.stream.preprocess import converter_of
from trt_compress.tools.token_picture import Groups, draw_groups

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

_LEAST_SHARE = 1e-6
_SIDE, _GAP, _CAPTION, _FONT, _ACROSS = 288, 10, 26, 14, 4
_PAPER, _INK = "white", "#24292f"


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteMap:
    """What a method did at a site.

    Attributes:
        site: Its name.
        method: What acted.
        tokens_in, tokens_out: Tokens that came and left.
        owners: For each patch of the image the token that it is in, -1 where it was dropped at this site or before.
    """

    site: str
    method: str
    tokens_in: int
    tokens_out: int
    owners: Groups

    @property
    def dropped(self) -> int:
        """Patches that are in no token."""
        return int((self.owners < 0).sum())


def inputs_beside(graph: GraphSpec, file: Path | None) -> tuple[torch.Tensor, ...]:
    """What a graph takes beside its picture, for one, in its order.

    Args:
        graph: Its first input is the picture.
        file: An .npz file of arrays by the names of the inputs; None: there is none.

    Raises:
        ConfigError: An input is not there, or has another shape.
    """
    wanted = {spec.name: [1 if isinstance(dim, str) else dim for dim in spec.shape] for spec in graph.inputs[1:]}
    if not wanted:
        return ()
    listed = " and ".join(f"{name} {shape}" for name, shape in wanted.items())
    if file is None:
        raise ConfigError(f"show: the bundle takes {listed} beside the picture; give it with --inputs FILE.npz.")
    arrays = read_arrays(file, next(iter(wanted)))
    for name, shape in wanted.items():
        if name not in arrays or list(arrays[name].shape) != shape or arrays[name].dtype.kind != "f":
            given = f"{name} {list(arrays[name].shape)} of {arrays[name].dtype}" if name in arrays else f"no {name}"
            raise ConfigError(
                f"show: '{shown(str(file))}' has {given}; the bundle takes {listed} of float32 beside the picture."
            )
    return tuple(torch.from_numpy(np.asarray(arrays[name], np.float32)) for name in wanted)


def map_tokens(graph: GraphSpec, image: torch.Tensor, *beside: torch.Tensor) -> tuple[SiteMap, ...]:
    """What becomes of the patches of one image, site by site.

    Args:
        graph: A graph that reads one image and has methods in it.
        image: [1, channels, height, width].
        beside: Its other inputs.

    Raises:
        UnsupportedError: It has none, or they act on something else than the patches of one image.
    """
    plans = [part for part in graph.module.modules() if isinstance(part, GraphPlan)]
    grid = getattr(getattr(graph.module, "info", None), "grid", None)
    if len(plans) != 1 or grid is None or not plans[0].sites:
        raise UnsupportedError(
            "show: the bundle has no method that acts on the patches of one image; export one with --compress, of a "
            "timm model, a tower of images or zoo:digits_vit."
        )
    (plan,) = plans
    if any(site.keeps_rest or site.cached or site.groups > 1 for site in plan.sites):
        raise UnsupportedError(
            "show: a method of the bundle keeps what it does not compute, or acts in windows; drawn are methods that "
            "drop or merge patches."
        )
    steps = list(dict.fromkeys(step for site in plan.sites for step in plan.acting(site.name)))
    calls: list[tuple[nn.Module, Tokens, Taps]] = []
    hooks = [
        step.register_forward_hook(lambda module, given, _: calls.append((module, given[0], given[1])))
        for step in steps
    ]
    try:
        with torch.no_grad():
            graph.module(image, *beside)
    finally:
        for hook in hooks:
            hook.remove()
    first = calls[0][1].x.shape[1]
    owner, prefix = np.arange(first), first - grid[0] * grid[1]
    maps = []
    for (module, tokens, taps), site in zip(calls, plan.sites, strict=True):
        assert isinstance(module, Compressor)
        shares = mixing(module, tokens, taps)
        into = np.where(shares.max(axis=0) > _LEAST_SHARE, shares.argmax(axis=0), -1)
        owner = np.where(owner < 0, -1, into[owner])
        maps.append(
            SiteMap(
                site=site.name,
                method=site.compressor,
                tokens_in=tokens.x.shape[1],
                tokens_out=len(shares),
                owners=np.asarray(owner[prefix:], np.int64),
            )
        )
    return tuple(maps)


def mixing(step: Compressor, tokens: Tokens, taps: Taps) -> npt.NDArray[np.float64]:
    """How much of each token that comes to a method is in each that leaves it, [M, N] of the first image."""
    with torch.no_grad(), recording() as record:
        step(tokens, taps)
    if merges := [tensor for name, tensor in record.items() if name.endswith("TokenMerge/dest")]:
        into = merges[0][0].cpu().numpy()  # where each token went, which the operator tells by itself
        return np.asarray(into[None] == np.arange(into.max() + 1)[:, None], np.float64)
    with torch.enable_grad():
        given = tokens.x.detach().clone().requires_grad_(True)
        found = step(tokens.with_x(given), taps)
        sums = found.x[0].sum(dim=1)
        rows = []
        for number in range(len(sums)):
            (row,) = torch.autograd.grad(sums[number], given, retain_graph=True, allow_unused=True)
            rows.append(torch.zeros_like(given[0, :, 0]) if row is None else row[0].mean(dim=1))
    valid = torch.ones(len(rows), dtype=torch.bool) if found.valid is None else found.valid[0]
    shares = torch.stack(rows).abs() * valid[:, None]
    return np.asarray(shares.detach().cpu().numpy(), np.float64)


def read_image(manifest: Manifest, file: Path) -> tuple[torch.Tensor, npt.NDArray[np.uint8]]:
    """A picture as the bundle's input [1, channels, height, width], and as the model sees it, [height, width, 3].

    Raises:
        ConfigError: the file is no picture.
        UnsupportedError: the bundle's input is made of something else.
    """
    info = manifest.graphs[0].inputs[0]
    settings = input_kind(manifest.preprocess)
    converter = converter_of(manifest.preprocess, info) if type(settings) is ImageInput else None
    if not isinstance(settings, ImageInput) or converter is None or settings.layout != "NCHW":
        raise UnsupportedError(
            f"show: the bundle takes no picture ({settings.obstacle or settings.kind}); drawn are bundles that do."
        )
    item = next(iter(PictureReader(Image).read(str(file))), None)
    if item is None or item.data is None:
        why = "it holds none" if item is None else item.error
        raise ConfigError(f"show: '{shown(str(file))}' is no picture that can be read ({why}); give another file.")
    array = np.asarray(converter(item.data), np.float32)
    mean, std = (np.asarray(values, np.float32).reshape(-1, 1, 1) for values in (settings.mean, settings.std))
    pixels = (array * std + mean) / settings.scale
    white = 255.0 if settings.scale <= 1 / 32 else float(max(1.0, pixels.max()))
    seen = np.clip(np.rint(pixels / white * 255), 0, 255).astype(np.uint8).transpose(1, 2, 0)
    return torch.from_numpy(array)[None], np.repeat(seen, 3, axis=2) if seen.shape[2] == 1 else seen


def draw_maps(seen: npt.NDArray[np.uint8], maps: Sequence[SiteMap], grid: tuple[int, int]) -> "Picture":
    """The picture, and beside it what is left at each site: dropped patches pale, merged ones in a common colour."""
    zoom = max(1, _SIDE // max(seen.shape[:2]))
    tiles: list[tuple[Picture, str]] = [
        (Image.fromarray(seen.repeat(zoom, axis=0).repeat(zoom, axis=1)), f"{grid[0] * grid[1]} patches")
    ]
    for each in maps:
        drawn = draw_groups(seen, each.owners, zoom=zoom, shape=grid)
        tiles.append((drawn, f"{each.site} {each.method}: {each.tokens_in} to {each.tokens_out}"))
    high, wide = tiles[0][0].height, tiles[0][0].width
    rows = -(-len(tiles) // _ACROSS)
    across = min(len(tiles), _ACROSS)
    picture = Image.new("RGB", (across * (wide + _GAP) + _GAP, rows * (high + _CAPTION + _GAP) + _GAP), _PAPER)
    draw = ImageDraw.Draw(picture)
    for number, (tile, caption) in enumerate(tiles):
        at = (_GAP + number % _ACROSS * (wide + _GAP), _GAP + number // _ACROSS * (high + _CAPTION + _GAP))
        picture.paste(tile, at)
        draw.text((at[0], at[1] + high + 3), caption, fill=_INK, font_size=_FONT)
    return picture


def grid_of(graph: GraphSpec) -> tuple[int, int]:
    """Rows and columns of patches of a graph whose methods were mapped."""
    info: Any = graph.module.info
    rows, columns = info.grid
    return int(rows), int(columns)
