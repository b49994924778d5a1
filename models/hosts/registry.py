"""Models by name: `timm:NAME`, `zoo:NAME`, `hf:PATH` for a directory written by transformers' save_pretrained, and
audio codecs by their checkpoint: `wavtokenizer:FILE`, `xytokenizer:FILE`.

A model of the zoo is one file that has `INFO` and `load(weights)`, and one line in `catalog.ZOO`. A model type of
transformers is one line in `catalog.HF`: the module that has `load(path, weights=…, **options)`.
"""

import importlib
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from trt_compress.errors import ConfigError, UnsupportedError
from trt_compress.model_name import parse_model, timm_refusal, unsupported_vit
from trt_compress.models.hosts import timm_vit
from trt_compress.models.hosts.base import LoadedHost, ModelInfo, WeightsInfo
from trt_compress.models.hosts.catalog import ZOO, hf_module, unknown_timm, zoo_module
from trt_compress.models.hosts.weights import load_weights, tensors_sha256

RANDOM_SEED = 0


def list_models() -> list[ModelInfo]:
    """Models that can be compressed, the zoo first."""
    return [*(_zoo_module(name).INFO for name in ZOO), *(_timm_info(name) for name in _timm_names())]


def load_host(model: str, *, weights: str | None = None) -> LoadedHost:
    """Build a model by name and load its weights.

    Args:
        model: `timm:NAME`, `zoo:NAME`, `hf:PATH`, `wavtokenizer:FILE` or `xytokenizer:FILE`.
        weights: A .safetensors file or checkpoint; "pretrained" for timm's own (needs a network); None: the zoo's own,
            or random ones for timm (fixed seed), good for timing only.

    Raises:
        ConfigError: an unknown name, or weights that do not fit.
        UnsupportedError: a model no host drives.
    """
    source, colon, name = model.partition(":")
    loaders: Mapping[str, Callable[[str, str | None], LoadedHost]] = {
        "timm": _load_timm,
        "zoo": _load_zoo,
        "hf": _load_hf,
        "wavtokenizer": partial(_load_codec, "wavtokenizer"),
        "xytokenizer": partial(_load_codec, "xytokenizer"),
    }
    if not colon or source not in loaders:
        raise ConfigError(
            f"model '{model}' is not known; write timm:NAME (timm:deit_small_patch16_224), zoo:NAME "
            "(zoo:digits_vit) or hf:PATH, or give a recipe file ending in .toml."
        )
    return loaders[source](name, weights)


def _timm_names() -> list[str]:
    import timm

    names = timm.list_models(module=["vision_transformer", "deit"])
    return [name for name in names if timm_refusal(name) is None]


def _timm_info(name: str) -> ModelInfo:
    return ModelInfo(name=f"timm:{name}", family=timm_vit.FAMILY, description="Vision Transformer of timm")


def _load_timm(name: str, weights: str | None) -> LoadedHost:
    import timm

    if not timm.is_model(name):
        raise unknown_timm(name, timm.list_models())
    if what := timm_refusal(name):
        raise unsupported_vit(f"timm:{name}", what)
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(RANDOM_SEED)
        module = _create_timm(name, pretrained=weights == "pretrained")
    module.eval()
    timm_vit.check_supported(module, f"timm:{name}")
    config = module.pretrained_cfg
    if weights == "pretrained":
        info = WeightsInfo(
            source=f"timm {config.get('hf_hub_id') or config.get('url')}",
            sha256=tensors_sha256(module),
            license=config.get("license"),
        )
    elif weights:
        info = load_weights(module, Path(weights))
    else:
        info = WeightsInfo(source=f"random (seed {RANDOM_SEED})", sha256=tensors_sha256(module))
    channels, height, width = config["input_size"]
    grid = module.patch_embed.img_size
    preprocess = {
        "kind": "image",
        "layout": "NCHW",
        "scale": 1 / 255,
        "mean": list(config["mean"]),
        "std": list(config["std"]),
        "interpolation": config.get("interpolation", "bicubic"),
        "crop": config.get("crop_pct"),
    }
    input_shape = (module.patch_embed.proj.in_channels, *(grid or (height, width)))
    return LoadedHost(
        source=f"timm:{name}",
        family=timm_vit.FAMILY,
        module=module,
        weights=info,
        attach=lambda specs: (timm_vit.classifier_graph(module, specs, name=f"timm:{name}", input_shape=input_shape),),
        preprocess=preprocess,
        postprocess={"kind": "classification", "classes": module.num_classes}
        if module.num_classes
        else {"kind": "raw"},
    )


def _create_timm(name: str, *, pretrained: bool) -> Any:
    import timm

    try:
        module = timm.create_model(name, pretrained=pretrained)
    except RuntimeError as error:
        raise UnsupportedError(f"timm:{name} cannot be built: {str(error).splitlines()[0]}") from error
    except OSError as error:
        raise ConfigError(
            f"weights: timm's pretrained weights of {name} cannot be downloaded ({str(error).splitlines()[0][:120]}).",
            hint="download the checkpoint elsewhere and give it as --weights FILE.",
        ) from error
    return module


def _zoo_module(name: str) -> Any:
    return importlib.import_module(zoo_module(name))


def _load_zoo(name: str, weights: str | None) -> LoadedHost:
    host: LoadedHost = _zoo_module(name).load(weights)
    return host


def _load_hf(name: str, weights: str | None) -> LoadedHost:
    model = parse_model(f"hf:{name}")
    folder, options = Path(model.name), model.options
    module = importlib.import_module(hf_module(folder))
    host: LoadedHost = module.load(folder, weights=weights, **options)
    return host


def _load_codec(source: str, name: str, weights: str | None) -> LoadedHost:
    model = parse_model(f"{source}:{name}")
    module = importlib.import_module(f"trt_compress.models.hosts.codec_{source}")
    host: LoadedHost = module.load(Path(model.name), weights=weights, **model.options)
    return host
