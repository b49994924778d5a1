"""Models by name: `timm:NAME` and `zoo:NAME`."""

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trt_compress.errors import ConfigError, UnsupportedError
from trt_compress.models.hosts import timm_vit
from trt_compress.models.hosts.base import LoadedHost, ModelInfo, WeightsInfo
from trt_compress.models.hosts.weights import load_weights, tensors_sha256
from trt_compress.suggest import did_you_mean

RANDOM_SEED = 0


def list_models() -> list[ModelInfo]:
    """Models that can be named, the zoo first; timm's Vision Transformers, of which some forms are refused by name."""
    return [*_zoo_infos().values(), *(_timm_info(name) for name in _timm_names())]


def load_host(model: str, *, weights: str | None = None) -> LoadedHost:
    """Build a model by name and load its weights.

    Args:
        model: `timm:NAME` or `zoo:NAME`.
        weights: A .safetensors file or checkpoint; "pretrained" for timm's own (needs a network); None: the zoo's own,
            or random ones for timm (fixed seed), good for timing only.

    Raises:
        ConfigError: an unknown name, or weights that do not fit.
        UnsupportedError: a model no host drives.
    """
    source, colon, name = model.partition(":")
    loaders: Mapping[str, Callable[[str, str | None], LoadedHost]] = {"timm": _load_timm, "zoo": _load_zoo}
    if not colon or source not in loaders:
        raise ConfigError(
            f"model '{model}' is not known; write timm:NAME (timm:deit_small_patch16_224) or zoo:NAME "
            "(zoo:digits_vit), or give a recipe file ending in .toml."
        )
    return loaders[source](name, weights)


def _timm_names() -> list[str]:
    import timm

    return timm.list_models(module=["vision_transformer", "deit"])


def _timm_info(name: str) -> ModelInfo:
    return ModelInfo(
        name=f"timm:{name}", family=timm_vit.FAMILY, description="Vision Transformer of timm, if its form is driven"
    )


def _zoo_infos() -> dict[str, ModelInfo]:
    return {
        "digits_vit": ModelInfo(
            name="zoo:digits_vit",
            family=timm_vit.FAMILY,
            description="8 blocks, 65 tokens, trained here on scikit-learn's digits",
        )
    }


def _load_timm(name: str, weights: str | None) -> LoadedHost:
    import timm

    if not timm.is_model(name):
        known = timm.list_models()
        raise ConfigError(
            f"model 'timm:{name}' is not known to timm {timm.__version__}.{did_you_mean(name, known)}",
            hint="trt-compress list models shows what can be compressed.",
        )
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
    return LoadedHost(
        source=f"timm:{name}",
        family=timm_vit.FAMILY,
        module=module,
        input_shape=(module.patch_embed.proj.in_channels, *(grid or (height, width))),
        weights=info,
        preprocess=preprocess,
        postprocess={"kind": "classification", "classes": module.num_classes},
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


def _load_zoo(name: str, weights: str | None) -> LoadedHost:
    infos = _zoo_infos()
    if name not in infos:
        raise ConfigError(
            f"model 'zoo:{name}' is not known; there are {', '.join(f'zoo:{n}' for n in infos)}."
            f"{did_you_mean(name, infos)}"
        )
    from trt_compress.models.pretrained import digits_vit

    module = digits_vit.build_digits_vit(weights=weights is None)
    card = digits_vit.digits_vit_card()
    info = WeightsInfo(
        source=digits_vit.WEIGHTS_FILE.name,
        sha256=card["weights"]["sha256"],
        license=card["weights"]["license"],
        provenance=f"trained here on {card['data']['name']} ({card['data']['license']}): {card['command']}",
    )
    return LoadedHost(
        source=f"zoo:{name}",
        family=timm_vit.FAMILY,
        module=module,
        input_shape=(1, 8, 8),
        weights=info if weights is None else load_weights(module, Path(weights)),
        preprocess={"kind": "image", "layout": "NCHW", **card["preprocess"]},
        postprocess={"kind": "classification", "classes": 10},
        examples=lambda count: np.resize(digits_vit.digits_split().test_images, (count, 1, 8, 8)),
    )
