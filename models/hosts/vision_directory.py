"""Loading of a tower of images from a directory: its config.json, tensors, and how pictures become its input.

Source: the layout of transformers' save_pretrained: config.json, preprocessor_config.json, model.safetensors.
Differs: where an odd number of pixels is cut off, the middle lies half a pixel further right and down, as timm has it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from trt_compress.digest import Sha256
from trt_compress.errors import ConfigError, UnsupportedError
from trt_compress.files import open_regular
from trt_compress.foreign import reading
from trt_compress.methods import CompressorSpec
from trt_compress.models.hosts.base import GraphSpec, LoadedHost, WeightsInfo
from trt_compress.models.hosts.hf_directory import read_json, weight_files
from trt_compress.models.hosts.vision_tower import FAMILY, Size, VisionTower, tower_graph
from trt_compress.models.hosts.weights import load_tensors, read_tensors

_FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # by Pillow's numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class TowerFamily:
    """What a family's directories are like.

    Attributes:
        name: For messages.
        heads: Classes of transformers whose directories are driven.
        named: Tensors under the names of the module that `build` makes, of those in the files and of the configuration.
        build: The tower, of its configuration and of these tensors.
        free_size: Positions are resampled to the size of the pictures without being asked, as transformers does.
    """

    name: str
    heads: tuple[str, ...]
    named: Callable[[Mapping[str, Tensor], Mapping[str, Any]], dict[str, Tensor]]
    build: Callable[[Mapping[str, Any], Mapping[str, Tensor]], VisionTower]
    free_size: bool = False


def pair(value: Any) -> Size:
    """Height and width, of one number for both or of two."""
    sides = (value, value) if isinstance(value, int) else tuple(value)
    if len(sides) != 2 or any(type(side) is not int for side in sides):
        raise ValueError(f"{str(value)[:60]} is no size of one or two whole numbers")
    return sides[0], sides[1]


def load_tower(
    family: TowerFamily,
    path: Path,
    *,
    weights: str | None = None,
    img_size: Size | None = None,
    patch_size: Size | None = None,
    resample_pos: bool = False,
    feature_layer: int | tuple[int, ...] | None = None,
    crops: Size | None = None,
) -> LoadedHost:
    """Load a tower.

    Args:
        family: What is expected there.
        path: The directory.
        weights: Another file with its tensors; default: those in the directory.
        img_size: Height and width of the images; default: those of config.json, or of a family that takes any size
            those of preprocessor_config.json.
        patch_size: Height and width of patches; default: those of config.json. The layer that sees them is resized.
        resample_pos: Positions may be resampled for that size.
        feature_layer: The layer behind which the tower ends, or several, of which it ends behind the last and gives
            the features of each; None: it is run to its end.
        crops: Rows and columns of crops that each sample has behind a thumbnail; None: a sample is one picture.

    Raises:
        ConfigError: a file is missing or cannot be read, or tensors do not fit; they are named.
        UnsupportedError: a variant that is not driven.
    """
    with reading(f"hf:{path}", "save the model again with save_pretrained"):
        config = read_json(path / "config.json")
        heads = config.get("architectures") or [family.heads[0]]
        if heads[0] not in family.heads:
            raise UnsupportedError(
                f"hf:{path}: architectures {str(heads[0])[:60]} is not supported; of {family.name} the tower of images "
                f"is taken, out of {', '.join(family.heads)}."
            )
        files = [Path(weights)] if weights else weight_files(path)
        found = {name: tensor for file in files for name, tensor in read_tensors(file).items()}
        part = config.get("vision_config")
        own: Mapping[str, Any] = part if isinstance(part, Mapping) else config
        tensors = family.named(found, own)
        model = family.build(own, tensors)
        load_tensors(model, tensors, files[0].name)
        front = _processor(path)
        size = img_size or (_cut_out(front) if family.free_size and front else None) or model.size
        model.fit(size, patch_size or model.patch, resample=resample_pos or family.free_size)
        if feature_layer is not None:
            model.stop_behind(*((feature_layer,) if isinstance(feature_layer, int) else feature_layer))
        if crops is not None:
            model.take_crops(crops)
        model.eval()
        digest = Sha256()
        for file in files:
            with open_regular(file) as opened:
                digest.add_file(opened)
        preprocess, note = pictures(front, model)
    source = f"hf:{path}"

    def attach(specs: Sequence[CompressorSpec]) -> tuple[GraphSpec, ...]:
        return (tower_graph(model, specs, name=source),)

    return LoadedHost(
        source=source,
        family=FAMILY,
        module=model,
        weights=WeightsInfo(source=files[0].name, sha256=digest.hex(), provenance=note),
        attach=attach,
        preprocess=preprocess,
        postprocess=_postprocess(model, config.get("id2label")),
    )


def pictures(front: Mapping[str, Any] | None, model: VisionTower) -> tuple[dict[str, Any], str | None]:
    """How pictures become the input, for the manifest, and a remark where that should be known and is not.

    Args:
        front: What preprocessor_config.json says; None: there is none.
        model: The tower, with its size.
    """
    reason = None
    if model.crops is not None:
        reason = "a sample is a thumbnail and crops of a picture, and whoever cuts these makes the input"
    elif front is None:
        reason = "there is no preprocessor_config.json beside the model, which says how pictures become its input"
    elif model.channels not in (1, 3):
        reason = f"pictures have 1 or 3 channels, and the input has {model.channels}"
    else:
        crop, reason = _crop(front)
        if reason is None:
            count = model.channels
            normal = front.get("do_normalize", True)
            mean = _numbers(front["image_mean"], count) if normal else [0.0] * count
            std = _numbers(front["image_std"], count) if normal else [1.0] * count
            resizes = front.get("do_resize", True)
            number = front.get("resample", 3)
            return {
                "kind": "image",
                "layout": "NCHW",
                "scale": front.get("rescale_factor", 1 / 255) if front.get("do_rescale", True) else 1.0,
                "mean": mean,
                "std": std,
                "interpolation": _FILTERS[number] if resizes else None,
                "crop": crop if resizes else None,
            }, None
    return {"kind": "tensors", "reason": reason}, None if model.crops is not None else reason


def _processor(path: Path) -> Mapping[str, Any] | None:
    """What a directory says of how pictures become the input; None: nothing."""
    if (path / "preprocessor_config.json").is_file():
        return read_json(path / "preprocessor_config.json")
    if (path / "processor_config.json").is_file():
        found = read_json(path / "processor_config.json").get("image_processor")
        return found if isinstance(found, Mapping) else None
    return None


def _sides(value: Any) -> Size | None:
    """A size as image processors write it, where it is a height and a width."""
    if isinstance(value, Mapping):
        return (value["height"], value["width"]) if "height" in value and "width" in value else None
    return None if value is None else pair(value)


def _cut_out(front: Mapping[str, Any]) -> Size | None:
    """Height and width of what a picture becomes; None: not one size for all."""
    return _sides(front.get("crop_size")) if front.get("do_center_crop") else _sides(front.get("size"))


def _crop(front: Mapping[str, Any]) -> tuple[float | None, str | None]:
    """The share of the shorter side that is cut out, None for the whole picture; and why neither can be carried."""
    if front.get("do_normalize", True) and not ("image_mean" in front and "image_std" in front):
        return None, "preprocessor_config.json has no image_mean and image_std"
    if front.get("do_pad"):
        return None, "its image processor pads pictures, which is not carried"
    size, cuts = front.get("size"), bool(front.get("do_center_crop"))
    edge = size.get("shortest_edge") if isinstance(size, Mapping) else size if cuts else None
    whole = _sides(size) if edge is None else None
    if not cuts:
        if edge is not None:
            return None, "its image processor keeps the shape of pictures, and the input has one"
        return None, None
    crop = _sides(front.get("crop_size"))
    if crop is None or (edge is None and whole is None):
        return None, "its image processor cuts pictures to a size that preprocessor_config.json does not say"
    if edge is None:
        return None, None if crop == whole else "its image processor squeezes pictures before it cuts them"
    if min(crop) > edge:
        return None, "its image processor pads pictures to a larger size, which is not carried"
    return min(crop) / edge, None


def _numbers(value: Any, count: int) -> list[float]:
    values = [float(value)] * count if isinstance(value, int | float) else [float(each) for each in value]
    if len(values) not in (1, count):
        raise ConfigError(
            f"preprocessor_config.json has {len(values)} numbers for the mean or std of {count} channels; give one for "
            "each."
        )
    return values * (count if len(values) == 1 else 1)


def _postprocess(model: VisionTower, labels: Any) -> dict[str, Any]:
    """What the output means, for the manifest."""
    if not model.num_labels:
        return {"kind": "frames", "output": "features", "sizes": "feature_size"}
    found = {"kind": "classification", "classes": model.num_labels}
    if isinstance(labels, Mapping) and len(labels) == model.num_labels:
        found["labels"] = [str(labels[key]) for key in sorted(labels, key=int)]
    return found
