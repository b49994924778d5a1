"""Which models there are, as far as that can be told without loading torch, timm or transformers.

What is refused here, the hosts would refuse too; what passes here is checked by them again.
"""

import importlib.metadata
import importlib.util
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trt_compress.errors import ConfigError, UnsupportedError
from trt_compress.files import open_regular, read_regular
from trt_compress.foreign import strict_json
from trt_compress.model_file import check_model_file
from trt_compress.model_name import FILE_SOURCE, ModelName, parse_model, timm_refusal, unsupported_vit
from trt_compress.models.hosts.decoder_config import caching_of
from trt_compress.models.hosts.decoder_families import FAMILIES, read_config, refusal
from trt_compress.models.hosts.reading import ReadingOptions
from trt_compress.models.hosts.weights_kind import foreign_kind, no_weights
from trt_compress.models.language.open import open_language
from trt_compress.suggest import did_you_mean, not_known

ZOO: Mapping[str, str] = {  # name → the module under trt_compress.models
    "digits_vit": "zoo.digits_vit.model",
    "video_vit": "zoo.video_vit.model",
    "video_pvc": "zoo.video_pvc.model",
    "surround_detector": "zoo.surround_detector.model",
    "keyword_spotter": "zoo.keyword_spotter.model",
    "keyword_mome": "zoo.keyword_mome.model",
    "keyword_stream": "zoo.keyword_stream.model",
    "speech_codec": "zoo.speech_codec.model",
}
HF: Mapping[str, str] = {  # model_type of config.json → the module under trt_compress.models
    "whisper": "hosts.hf_audio",
    "audio-spectrogram-transformer": "hosts.hf_audio",
    "bert": "hosts.text_encoder",
    "clip": "hosts.clip_tower",
    "clip_vision_model": "hosts.clip_tower",
    "siglip": "hosts.siglip_tower",
    "siglip_vision_model": "hosts.siglip_tower",
    "siglip2": "hosts.siglip_tower",
    "siglip2_vision_model": "hosts.siglip_tower",
    "dinov2": "hosts.dinov2_tower",
    "dinov2_with_registers": "hosts.dinov2_tower",
    "vit": "hosts.vit_tower",
    **dict.fromkeys(FAMILIES, "hosts.decoder_host"),
}

_REGISTERED = re.compile(r"^@register_model\b[^\n]*\n(?:@[^\n]*\n)*def +(\w+)", re.MULTILINE)
_OF_TOWERS = ("img_size", "patch_size", "resample_pos", "feature_layer", "crops")
_DRIVEN = ("VisionTransformer", "class Eva(")  # of which a file of timm must speak for a model in it to be one


def check_model(model: str, weights: str | None = None, reading: ReadingOptions | None = None) -> None:
    """Refuse a model that is not there, or that no host drives.

    Args:
        model: As `load_host` takes it.
        weights: A file, "pretrained", or None.
        reading: How it is to read tokens; None: as it likes.

    Raises:
        ConfigError: a name that is not known, an option that is not, or a file that is not there.
        UnsupportedError: a model that no host drives.
    """
    name = parse_model(model)
    if reading is not None and name.source not in ("hf", "gguf"):
        reading.refuse(model)
    if name.source == "timm":
        check_timm(name)
    elif name.source == "zoo":
        zoo_module(name.name)
    elif is_language(name):
        _check_language(name, weights, reading or ReadingOptions())
    elif name.source == "hf":
        (reading or ReadingOptions()).refuse(model)
        check_hf_options(name)
    elif name.source == FILE_SOURCE:
        check_model_file(name)
    elif weights is not None:
        raise ConfigError(f"{name.source}:{name.name} is a checkpoint itself; leave --weights out.")
    else:
        check_weights(name.name)
    if weights == "pretrained" and name.source != "timm":
        raise ConfigError(
            f"weights: 'pretrained' downloads what timm has, and {model} is none of its models; give a file, or leave "
            "--weights out."
        )
    if weights not in (None, "pretrained"):
        check_weights(str(weights))


def check_weights(file: str) -> None:
    """Refuse a file of weights that cannot be read, or that begins as a file of another kind.

    Raises:
        ConfigError: it is not there, is no file, may not be read, or is of another kind.
    """
    path, advice = Path(file), "give a .safetensors file or a PyTorch checkpoint as --weights FILE."
    try:
        with open_regular(path) as opened:
            other = foreign_kind(opened)
    except OSError as error:
        raise ConfigError(f"weights: {path} cannot be read ({error.strerror}); {advice}") from None
    if other is not None:
        raise ConfigError(f"weights: {path} {no_weights(path.suffix, other)}")


def check_hf_options(model: ModelName) -> None:
    """Refuse an option of `hf:` that is for models of another kind.

    Raises:
        ConfigError, UnsupportedError: it is; or see `hf_config`.
    """
    name = f"{model.source}:{model.name}"
    kind = hf_config(Path(model.name))["model_type"] if model.source == "hf" else ""
    if "lora" in model.options and kind in HF and kind not in FAMILIES:
        raise UnsupportedError(f"{name}: LoRA is for language models, and this is none; leave ?lora= out.")
    for option, of, fits in (
        ("seconds", "audio models", HF.get(kind) == "hosts.hf_audio"),
        ("tokens", "text encoders", HF.get(kind) == "hosts.text_encoder"),
        *((name, "towers of images", HF.get(kind, "").endswith("_tower")) for name in _OF_TOWERS),
    ):
        if option in model.options and not fits:
            raise ConfigError(f"{name}: {option} is an option of {of}; leave it out.")


def zoo_module(name: str) -> str:
    """The module of a model of the zoo.

    Raises:
        ConfigError: there is no model of that name.
    """
    if name not in ZOO:
        raise ConfigError(not_known("model", f"zoo:{name}", [f"zoo:{known}" for known in ZOO]))
    return f"trt_compress.models.{ZOO[name]}"


def is_language(model: ModelName) -> bool:
    """Whether a name is that of a language model.

    Raises:
        ConfigError, UnsupportedError: See `hf_config`.
    """
    return model.source == "gguf" or model.source == "hf" and hf_config(Path(model.name))["model_type"] in FAMILIES


def _check_language(model: ModelName, weights: str | None, reading: ReadingOptions) -> None:
    """Refuse a language model that cannot be read, and what its configuration does not allow."""
    if weights is not None:
        raise ConfigError(f"weights: {model.source}:{model.name} holds its tensors itself; leave --weights out.")
    check_hf_options(model)
    source = open_language(model)
    caching_of(read_config(source.config, name=source.name), reading, name=source.name)


def hf_module(folder: Path) -> str:
    """The module that loads the model in a directory of save_pretrained.

    Raises:
        ConfigError, UnsupportedError: See `hf_config`.
    """
    return f"trt_compress.models.{HF[hf_config(folder)['model_type']]}"


def hf_config(folder: Path) -> dict[str, Any]:
    """The config.json of a directory of save_pretrained, whose model_type is one of `HF`.

    Raises:
        ConfigError: there is no config.json that names a model type.
        UnsupportedError: no host drives that type.
    """
    try:
        config: dict[str, Any] = strict_json(read_regular(folder / "config.json", limit=16 << 20))
        model_type = config["model_type"]
    except OSError as error:
        raise ConfigError(
            f"hf:{folder}: config.json cannot be read ({error.strerror}); give a directory written by save_pretrained."
        ) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(
            f"hf:{folder}: config.json holds no model_type; give a directory written by save_pretrained."
        ) from error
    if not isinstance(model_type, str) or model_type not in HF:
        others = ", ".join(known for known in HF if known not in FAMILIES)
        raise UnsupportedError(
            f"hf:{folder}: {refusal(str(model_type))} Encoders of audio, text and images are {others}."
        )
    return config


def check_timm(model: ModelName) -> None:
    """Refuse what timm does not have, or has and no host drives, as far as its files tell.

    timm itself is asked later; what is written anywhere in its files passes here.

    Raises:
        ConfigError: timm has no such model, or no such weights of it.
        UnsupportedError: a model of another kind.
    """
    architecture, _, tag = model.name.partition(".")
    mentioned = re.compile(rf"\b{re.escape(architecture)}\b")
    tagged = re.compile(rf"[\"']{re.escape(architecture)}\.([\w.-]+)")
    names: list[str] = []
    found = False
    for stem, text in _timm_files():
        here = _REGISTERED.findall(text)
        names += here
        found = found or bool(architecture and mentioned.search(text))
        if architecture not in here:
            continue
        if not any(driven in text for driven in _DRIVEN):
            raise unsupported_vit(f"timm:{model.name}", f"a model of timm.models.{stem}")
        tags = tagged.findall(text)
        if tag and tags and tag not in tags:  # some files make theirs as they go, and name none
            raise ConfigError(
                f"model 'timm:{model.name}': timm {timm_version()} knows no weights '{tag}' of {architecture}; there "
                f"are {', '.join(dict.fromkeys(tags))}.{did_you_mean(tag, tags)}"
            )
    if names and not found:
        raise unknown_timm(model.name, names)
    if not model.options and (what := timm_refusal(model.name)):
        raise unsupported_vit(f"timm:{model.name}", what)


def unknown_timm(name: str, known: list[str]) -> ConfigError:
    """The error for a name that timm does not have."""
    return ConfigError(
        f"model 'timm:{name}' is not known to timm {timm_version()}.{did_you_mean(name, known)}",
        hint="trt-compress list models shows what can be compressed.",
    )


def timm_version() -> str:
    """The version of timm that is installed."""
    return importlib.metadata.version("timm")


def _timm_files() -> Iterator[tuple[str, str]]:
    """Name and text of every file of timm that registers models."""
    spec = importlib.util.find_spec("timm")
    for place in (spec and spec.submodule_search_locations) or ():
        for path in sorted((Path(place) / "models").glob("[!_]*.py")):
            yield path.stem, path.read_text(encoding="utf-8", errors="replace")
