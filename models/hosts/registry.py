"""Models by name: `timm:NAME`, `zoo:NAME`, `hf:PATH` for a directory written by transformers' save_pretrained,
`gguf:FILE` for a language model of llama.cpp, audio codecs by their checkpoint (`wavtokenizer:FILE`,
`xytokenizer:FILE`), and `FILE.py:FACTORY` for a module of one's own.

A model of the zoo is one file that has `INFO` and `load(weights)`, and one line in `catalog.ZOO`. A model type of
transformers is one line in `catalog.HF`: the module that has `load(path, weights=…, **options)`.
"""

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from trt_compress.errors import ConfigError
from trt_compress.methods import CompressorSpec
from trt_compress.model_name import FILE_SOURCE, ModelName, parse_model, timm_refusal
from trt_compress.models.compressors.artifacts import for_weights
from trt_compress.models.hosts import timm_eva, timm_families, timm_vit
from trt_compress.models.hosts.base import GraphSpec, LoadedHost, ModelInfo
from trt_compress.models.hosts.catalog import ZOO, check_hf_options, hf_module, is_language, zoo_module
from trt_compress.models.hosts.own_module import load_own
from trt_compress.models.hosts.reading import ReadingOptions
from trt_compress.models.hosts.timm_build import PRETRAINED, load_timm
from trt_compress.models.language.open import open_language


def list_models() -> list[ModelInfo]:
    """Models that can be compressed, the zoo first."""
    return [*(_zoo_module(name).INFO for name in ZOO), *_timm_models()]


def load_host(model: str, *, weights: str | None = None, model_sha256: str | None = None) -> LoadedHost:
    """Build a model by name and load its weights.

    Args:
        model: `timm:NAME`, `zoo:NAME`, `hf:PATH`, `gguf:FILE`, `wavtokenizer:FILE`, `xytokenizer:FILE` or
            `FILE.py:FACTORY`, whose code is run; options of the model follow a question mark
            (`trt_compress.model_name`).
        weights: A .safetensors file or checkpoint; "pretrained" for timm's own (needs a network); None: the zoo's own,
            or random ones for timm (fixed seed), good for timing only.
        model_sha256: What FILE.py must have, if it was hashed before.

    Raises:
        ConfigError: an unknown name, or weights that do not fit.
        UnsupportedError: a model no host drives.

    Returns:
        The model; its `attach` refuses an artifact that was made for other weights.
    """
    name = parse_model(model)
    if weights == PRETRAINED and name.source != "timm":
        raise ConfigError(
            f"weights: '{PRETRAINED}' downloads what timm has, and {model} is none of its models; give a file, or "
            "leave --weights out."
        )
    loaders: Mapping[str, Callable[[ModelName, str | None], LoadedHost]] = {
        "timm": load_timm,
        "zoo": _load_zoo,
        "hf": _load_hf,
        "gguf": _load_language,
        "wavtokenizer": _load_codec,
        "xytokenizer": _load_codec,
        FILE_SOURCE: lambda name, weights: load_own(name, weights, model_sha256),
    }
    return _named(loaders[name.source](name, weights), model)


def _named(loaded: LoadedHost, model: str) -> LoadedHost:
    """The model under the name that it was asked for by; its `attach` looks at what artifacts were made for."""
    read_as = loaded.read_as

    def attach(specs: Sequence[CompressorSpec]) -> tuple[GraphSpec, ...]:
        return loaded.attach(for_weights(specs, source=loaded.weights.source, sha256=loaded.weights.sha256))

    def named_read_as(reading: ReadingOptions, precision: str) -> LoadedHost:
        assert read_as is not None
        return _named(read_as(reading, precision), model)

    return replace(loaded, source=model, attach=attach, read_as=read_as and named_read_as)


def _timm_models() -> Iterator[ModelInfo]:
    import timm

    of_eva = set(timm.list_models(module="eva"))
    for name in timm.list_models(module=list(timm_families.MODULES)):
        if timm_refusal(name) is not None:
            continue
        family, what = (timm_eva.FAMILY, "Eva family") if name in of_eva else (timm_vit.FAMILY, "Vision Transformer")
        yield ModelInfo(name=f"timm:{name}", family=family, description=f"{what} of timm")


def _zoo_module(name: str) -> Any:
    return importlib.import_module(zoo_module(name))


def _load_zoo(model: ModelName, weights: str | None) -> LoadedHost:
    host: LoadedHost = _zoo_module(model.name).load(weights)
    return host


def _load_language(model: ModelName, weights: str | None) -> LoadedHost:
    from trt_compress.models.hosts.decoder_host import host_of

    return host_of(open_language(model))


def _load_hf(model: ModelName, weights: str | None) -> LoadedHost:
    if is_language(model):
        return _load_language(model, weights)
    folder = Path(model.name)
    check_hf_options(model)
    module = importlib.import_module(hf_module(folder))
    host: LoadedHost = module.load(folder, weights=weights, **model.options)
    return host


def _load_codec(model: ModelName, weights: str | None) -> LoadedHost:
    module = importlib.import_module(f"trt_compress.models.hosts.codec_{model.source}")
    host: LoadedHost = module.load(Path(model.name), weights=weights, **model.options)
    return host
