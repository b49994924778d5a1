"""The shape of one of timm's ViTs: what a checkpoint shows of it, and what the options behind the model's name say.

What a checkpoint shows (classes, channels, patches, class and register tokens, a norm of the pooling, how many
positions) is read off it, and an option that contradicts it is refused. The position table is resampled only with
`resample_pos=true`.

Source: timm's VisionTransformer, Eva and resample_abs_pos_embed.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from trt_compress.errors import ConfigError
from trt_compress.models.hosts.checkpoint import CheckpointWeights

Size = tuple[int, int]
Plain = VisionTransformer | Eva

_NOT_OF_DISTILLED = ("class_token", "reg_tokens", "global_pool", "no_embed_class")
SHAPE_OPTIONS = ("num_classes", "img_size", "in_chans", "patch_size", *_NOT_OF_DISTILLED)


def shape_of_options(source: str, plain: Plain, options: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords of timm's create_model for a model without a file of weights: what the options say.

    Args:
        source: The model's name, for messages.
        plain: The model as its name alone gives it.
        options: As `parse_model` reads them.

    Raises:
        ConfigError: the options do not go together.
    """
    _check_options(source, plain, options)
    keywords = {name: options[name] for name in SHAPE_OPTIONS if name in options}
    pool, token = keywords.get("global_pool", plain.global_pool), keywords.get("class_token", _has_class_token(plain))
    if pool == "token" and not token:
        raise ConfigError(f"{source}: class_token=false leaves nothing for global_pool=token; add global_pool=avg.")
    return keywords


def shape_of_weights(
    source: str, plain: Plain, options: Mapping[str, Any], weights: CheckpointWeights
) -> tuple[dict[str, Any], str | None]:
    """Keywords of timm's create_model for the weights of a file, and in words what of them was read off the file.

    Args:
        source: The model's name, for messages.
        plain: The model as its name alone gives it.
        options: As `parse_model` reads them.
        weights: What was found in the file.

    Raises:
        ConfigError: the file contradicts an option, or does not show what no option says.
    """
    _check_options(source, plain, options)
    _check_distilled(source, plain, weights)
    facts = dict(_facts(plain, weights.tensors))
    for name, (value, seen) in facts.items():
        if name in options and options[name] != value:
            raise ConfigError(
                f"{source}: {name}={written(options[name])} contradicts {weights.file}, where {seen}; leave {name} "
                f"out, or write {name}={written(value)}."
            )
    keywords = {name: value for name, (value, _) in facts.items()}
    patch = keywords.get("patch_size", plain.patch_embed.patch_size)
    if patch != plain.patch_embed.patch_size and "patch_size" not in options:
        raise ConfigError(
            f"{source}: the patches of {weights.file} have {written(patch)} pixels, and those of the model "
            f"{written(plain.patch_embed.patch_size)}; name the model that it belongs to, or write "
            f"patch_size={written(patch)}."
        )
    if not isinstance(plain, VisionTransformerDistilled):
        keywords |= _pooling(source, plain, options, weights, keywords)
    keywords |= _positions(source, plain, options, weights, keywords)
    own = own_shape(plain)
    read = {name: value for name, value in keywords.items() if name not in options and value != own.get(name, value)}
    square = {"img_size": " (taken to be square)"}
    text = ", ".join(f"{name}={written(value)}{square.get(name, '')}" for name, value in read.items())
    return keywords, f"read off the file: {text}" if text else None


def resampled(weights: CheckpointWeights, module: Plain, plain: Plain) -> CheckpointWeights:
    """The weights with their position table resampled to that of `module`, if it has another length.

    Args:
        weights: What was found in the file.
        module: The model they go into, of the size that was asked for.
        plain: The model as its name alone gives it: its grid is the table's, if it has as many places.
    """
    table = weights.tensors.get("pos_embed")
    if table is None or module.pos_embed is None or table.ndim != 3 or table.shape == module.pos_embed.shape:
        return weights
    prefix = 0 if module.no_embed_class else module.num_prefix_tokens
    grid = _grid(table.shape[1] - prefix, plain)
    if grid is None:
        return weights
    with torch.no_grad():
        table = resample_abs_pos_embed(
            table.float(), new_size=list(module.patch_embed.grid_size), old_size=list(grid), num_prefix_tokens=prefix
        )
    return replace(weights, tensors=weights.tensors.replaced("pos_embed", table))


def keywords_of(plain: Plain, keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords of `shape_of_options` and `shape_of_weights` as timm calls them for the class of a model."""
    names = {"reg_tokens": "num_reg_tokens", "fc_norm": "use_fc_norm"} if isinstance(plain, Eva) else {}
    return {names.get(name, name): value for name, value in keywords.items()}


def written(value: Any) -> str:
    """A value as an option is written."""
    if isinstance(value, tuple):
        return "x".join(str(part) for part in value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _check_options(source: str, plain: Plain, options: Mapping[str, Any]) -> None:
    if isinstance(plain, VisionTransformerDistilled):
        for name in _NOT_OF_DISTILLED:
            if name in options:
                raise ConfigError(f"{source}: a distilled model has no option {name}; leave it out.")
    patch, size = options.get("patch_size", plain.patch_embed.patch_size), options.get("img_size")
    if size is not None and (size[0] < patch[0] or size[1] < patch[1]):
        raise ConfigError(
            f"{source}: img_size={written(size)} is smaller than a patch of {written(patch)} pixels; give a larger one."
        )
    if options.get("resample_pos") and size is None:
        raise ConfigError(f"{source}: resample_pos=true needs the size to resample to; add img_size=HEIGHTxWIDTH.")


def _check_distilled(source: str, plain: Plain, weights: CheckpointWeights) -> None:
    """Refuse weights of the other kind of DeiT: its one token more or less would make the positions look wrong."""
    distilled, there = isinstance(plain, VisionTransformerDistilled), "dist_token" in weights.tensors
    if distilled == there or not weights.tensors.keys() & {"cls_token", "dist_token"}:
        return
    token, name = ("a", "distilled") if there else ("no", "plain")
    raise ConfigError(
        f"{source}: {weights.file} has {token} dist_token, so it belongs to a {name} model and not to this one; name "
        f"that, such as timm:deit_small_{'distilled_' if there else ''}patch16_224."
    )


def own_shape(plain: Plain) -> dict[str, Any]:
    """What the options say of the model as its name alone gives it."""
    return {
        "num_classes": plain.num_classes,
        "in_chans": plain.in_chans,
        "patch_size": plain.patch_embed.patch_size,
        "img_size": plain.patch_embed.img_size,
        "class_token": _has_class_token(plain),
        "reg_tokens": _num_registers(plain),
        "global_pool": plain.global_pool,
        "fc_norm": not isinstance(plain.fc_norm, nn.Identity),
    }


def _has_class_token(plain: Plain) -> bool:
    return plain.cls_token is not None if isinstance(plain, Eva) else bool(plain.has_class_token)


def _num_registers(plain: Plain) -> int:
    if isinstance(plain, Eva):
        return 0 if plain.reg_token is None else plain.reg_token.shape[1]
    return int(plain.num_reg_tokens)


def _facts(plain: Plain, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, tuple[Any, str]]]:
    """What tensors show beyond doubt: the value of each option, and where it is seen."""
    kernel = tensors.get("patch_embed.proj.weight")
    if kernel is not None and kernel.ndim == 4:
        seen = f"patch_embed.proj.weight is {list(kernel.shape)}"
        yield "in_chans", (kernel.shape[1], seen)
        yield "patch_size", ((kernel.shape[2], kernel.shape[3]), seen)
    head = next((n for n in ("head.weight", "head.bias") if n in tensors and tensors[n].ndim > 0), None)
    if head is not None:
        yield "num_classes", (tensors[head].shape[0], f"{head} is {list(tensors[head].shape)}")
    elif not any(name.startswith("head") for name in tensors):
        yield "num_classes", (0, "there is no head")
    if not isinstance(plain, VisionTransformerDistilled):
        token, registers = "cls_token" in tensors, tensors.get("reg_token")
        yield "class_token", (token, f"there is {'a' if token else 'no'} cls_token")
        if registers is not None and registers.ndim == 3:
            yield "reg_tokens", (registers.shape[1], f"reg_token is {list(registers.shape)}")
        else:
            yield "reg_tokens", (0, "there is no reg_token")


def _pooling(
    source: str,
    plain: Plain,
    options: Mapping[str, Any],
    weights: CheckpointWeights,
    known: Mapping[str, Any],
) -> dict[str, Any]:
    """How tokens are pooled, and on which side of it the last norm stands: `norm` before, `fc_norm` behind."""
    behind, before = "fc_norm.weight" in weights.tensors, "norm.weight" in weights.tensors
    token = known.get("class_token", _has_class_token(plain))
    pool = options.get("global_pool")
    if pool == "token" and not token:
        raise ConfigError(
            f"{source}: global_pool=token contradicts {weights.file}, where there is no cls_token; write "
            "global_pool=avg."
        )
    if pool is None:
        own_behind = not isinstance(plain.fc_norm, nn.Identity)
        if before and not behind and own_behind and token:
            raise ConfigError(
                f"{source}: {weights.file} has the norm before the pooling, and the model by its name behind it, so "
                "how tokens are pooled cannot be read off; write global_pool=token or global_pool=avg."
            )
        averaged = (behind and not before) or not token
        pool = "avg" if plain.global_pool == "token" and averaged else plain.global_pool
    return {"global_pool": pool, **({"fc_norm": behind} if behind != before else {})}


def _positions(
    source: str,
    plain: Plain,
    options: Mapping[str, Any],
    weights: CheckpointWeights,
    known: Mapping[str, Any],
) -> dict[str, Any]:
    """The size of the input, by the length of the position table; a square one, if no option says otherwise."""
    asked: Size | None = options.get("img_size")
    table = weights.tensors.get("pos_embed")
    if table is None or table.ndim != 3:
        return {} if asked is None else {"img_size": asked}
    patch: Size = known.get("patch_size", plain.patch_embed.patch_size)
    distilled = isinstance(plain, VisionTransformerDistilled)
    prefix = 2 if distilled else int(known["class_token"]) + known["reg_tokens"]
    without_prefix = options.get("no_embed_class", plain.no_embed_class)
    count = table.shape[1] - (0 if without_prefix else prefix)
    more = {"no_embed_class": without_prefix} if "no_embed_class" in options else {}
    grid = _grid(count, plain, patch)
    if asked is None and grid is None:
        raise ConfigError(
            f"{source}: the position table of {weights.file} has {count} places for patches, which form no square; say "
            f"which image they are for by img_size=HEIGHTxWIDTH, patches of {written(patch)} pixels."
        )
    if asked is None and grid is not None:
        same = grid == plain.patch_embed.grid_size and patch == plain.patch_embed.patch_size
        return {"img_size": plain.patch_embed.img_size if same else (grid[0] * patch[0], grid[1] * patch[1]), **more}
    assert asked is not None
    wanted = (asked[0] // patch[0], asked[1] // patch[1])
    if count == wanted[0] * wanted[1] or (grid is not None and options.get("resample_pos")):
        return {"img_size": asked, **more}
    places = f"{grid[0]} x {grid[1]} patches" if grid else f"{count} patches"
    how = "it forms no square, so it cannot be resampled"
    if grid:
        how = (
            "add resample_pos=true to have it resampled, or leave img_size out for "
            f"{grid[0] * patch[0]}x{grid[1] * patch[1]}"
        )
    raise ConfigError(
        f"{source}: the position table of {weights.file} is for {places}, and img_size={written(asked)} needs "
        f"{wanted[0]} x {wanted[1]}; {how}."
    )


def _grid(count: int, plain: Plain, patch: Size | None = None) -> Size | None:
    """Rows and columns of `count` patches: the model's own, if it has as many, or a square; None if they form none."""
    rows, columns = plain.patch_embed.grid_size
    if count == rows * columns and patch in (None, plain.patch_embed.patch_size):
        return rows, columns
    side = math.isqrt(max(count, 0))
    return (side, side) if side and side * side == count else None
