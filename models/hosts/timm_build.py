"""timm's ViTs and models of its Eva family by name: `timm:NAME`, in the shape that weights and options say, with a
file's, timm's or random weights.

Source: timm's create_model.
"""

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import get_arch_pretrained_cfgs
from torch import nn

from trt_compress.errors import ConfigError, UnsupportedError
from trt_compress.model_name import ModelName, timm_refusal, unsupported_vit
from trt_compress.models.hosts.base import LoadedHost, WeightsInfo
from trt_compress.models.hosts.catalog import unknown_timm
from trt_compress.models.hosts.checkpoint import read_checkpoint
from trt_compress.models.hosts.timm_download import check_has_weights, download_errors, source_overlay
from trt_compress.models.hosts.timm_families import check_supported, timm_host
from trt_compress.models.hosts.timm_shape import (
    keywords_of,
    own_shape,
    resampled,
    shape_of_options,
    shape_of_weights,
    written,
)
from trt_compress.models.hosts.weights import load_found, tensors_sha256
from trt_compress.suggest import did_you_mean

RANDOM_SEED = 0
PRETRAINED = "pretrained"


def load_timm(model: ModelName, weights: str | None) -> LoadedHost:
    """Build one of timm's ViTs and load its weights.

    Args:
        model: A name of the source "timm".
        weights: A file; "pretrained" for timm's own (needs a network); None: random ones of a fixed seed.

    Raises:
        ConfigError: an unknown name or tag, options that the weights contradict, or weights that do not fit.
        UnsupportedError: a model this host does not drive.
    """
    name, source = model.name, f"timm:{model.name}"
    check_name(name)
    if weights == PRETRAINED:
        check_has_weights(name)
    checkpoint = read_checkpoint(Path(weights)) if weights and weights != PRETRAINED else None
    plain, fixed = _plain(source, name)
    note = None
    if checkpoint is None:
        if "weights_key" in model.options:
            raise ConfigError(f"{source}: weights_key is for a file of weights; give one as --weights FILE.")
        keywords = shape_of_options(source, plain, model.options)
        if weights == PRETRAINED:
            note = _check_pretrained(source, plain, keywords, resample=bool(model.options.get("resample_pos")))
        found = None
    else:
        found = checkpoint.weights(plain.state_dict(), model.options.get("weights_key"))
        keywords, note = shape_of_weights(source, plain, model.options, found)
    keywords = {**keywords_of(plain, keywords), **fixed}
    if keywords:
        check_supported(_on_meta(source, name, keywords), source)
    if weights == PRETRAINED:
        more = {"pretrained": True, "pretrained_cfg_overlay": source_overlay(name)}
        with download_errors(name):
            module = _create(name, {**keywords, **more})
        config = module.pretrained_cfg
        info = WeightsInfo(
            source=f"timm {config.get('hf_hub_id') or config.get('url')}",
            sha256=tensors_sha256(module),
            license=config.get("license"),
            provenance=note,
        )
    else:
        module = _create(name, keywords)
        if found is not None:
            if model.options.get("resample_pos"):
                before, found = found, resampled(found, module, plain)
                note = _join(note, None if found is before else "its position table was resampled")
            info = load_found(module, found, Path(str(weights)), note=note)
        else:
            info = WeightsInfo(source=f"random (seed {RANDOM_SEED})", sha256=tensors_sha256(module))
    return timm_host(module.eval(), source=source, weights=info, options=model.options)


def check_name(name: str) -> None:
    """Check that timm has a ViT of this name and tag that this host drives, before anything is built.

    Raises:
        ConfigError: an unknown name or tag.
        UnsupportedError: a name that is refused.
    """
    if not timm.is_model(name):
        raise unknown_timm(name, timm.list_models())
    arch, dot, tag = name.partition(".")
    if dot:
        tags = [full.partition(".")[2] for full in get_arch_pretrained_cfgs(arch)]
        if tag not in tags:
            listed = f"there are {', '.join(tags)}" if any(tags) else f"write timm:{arch}"
            raise ConfigError(f"model 'timm:{name}': {arch} has no weights '{tag}'; {listed}.{did_you_mean(tag, tags)}")
    if what := timm_refusal(name):
        pooled = arch.replace("_siglip_", "_siglip_gap_")
        hint = f"timm:{pooled} has the same blocks and pools by the mean." if pooled != arch else None
        raise unsupported_vit(f"timm:{name}", what, hint=hint if timm.is_model(pooled) else None)


def _seeded(make: Callable[[], Any]) -> Any:
    """What `make()` gives with torch's generator seeded, which is afterwards as it was."""
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(RANDOM_SEED)
        return make()


def _plain(source: str, name: str) -> tuple[Any, dict[str, Any]]:
    """The model as its name alone gives it, without storage, for images of one size; and keywords that make it so."""
    module = _on_meta(source, name)
    if not getattr(module, "dynamic_img_size", False):
        return check_supported(module, source), {}
    fixed = {"dynamic_img_size": False}
    return check_supported(_on_meta(source, name, fixed), source), fixed


def _check_pretrained(source: str, plain: Any, keywords: Mapping[str, Any], *, resample: bool) -> str | None:
    """Refuse what timm's own weights contradict; timm would make up a head, or drop what does not fit."""
    own = {**own_shape(plain), "no_embed_class": plain.no_embed_class}
    for name, value in own.items():
        if name in ("img_size", "fc_norm"):
            continue
        if keywords.get(name, value) != value:
            raise ConfigError(
                f"{source}: {name}={written(keywords[name])} contradicts timm's pretrained weights, which have "
                f"{name}={written(value)}; leave {name} out, or give your own weights as --weights FILE."
            )
    size = keywords.get("img_size", plain.patch_embed.img_size)
    patch = plain.patch_embed.patch_size
    if plain.pos_embed is None or (size[0] // patch[0], size[1] // patch[1]) == plain.patch_embed.grid_size:
        return None
    if not resample:
        raise ConfigError(
            f"{source}: the position table of timm's pretrained weights is for {written(plain.patch_embed.img_size)} "
            f"pixels, and img_size={written(size)} needs another; add resample_pos=true to have it resampled."
        )
    return "its position table was resampled"


def _on_meta(source: str, name: str, keywords: Mapping[str, Any] | None = None) -> nn.Module:
    """The model without storage, to see what it is made of."""
    with torch.device("meta"):
        try:
            module: nn.Module = _create(name, keywords or {})
        except (AssertionError, TypeError, ValueError, RuntimeError) as error:
            if not keywords:
                raise UnsupportedError(f"{source} cannot be built: {_line(error)}") from error
            given = ", ".join(f"{key}={written(value)}" for key, value in keywords.items())
            raise ConfigError(f"{source}: timm cannot build it with {given}: {_line(error)}") from error
    return module


def _create(name: str, keywords: Mapping[str, Any]) -> Any:
    return _seeded(lambda: timm.create_model(name, **keywords))


def _line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:200]


def _join(*notes: str | None) -> str | None:
    return "; ".join(note for note in notes if note) or None
