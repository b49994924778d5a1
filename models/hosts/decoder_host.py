"""Decoders as hosts: `gguf:FILE`, and `hf:DIR` with a model_type of `decoder_families.FAMILIES`.

Source: the layout of transformers' save_pretrained, whatever file it comes from (`models/language`).
Differs: transformers is not loaded.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import cast as typed

import torch
from torch import Tensor, nn

from trt_compress.errors import ConfigError, UnsupportedError
from trt_compress.format.procedure import Procedure
from trt_compress.memory import available_bytes, format_bytes
from trt_compress.methods import CompressorSpec
from trt_compress.models.cache.caches import Caches, caches_of
from trt_compress.models.compressors.place import GraphPlan, place
from trt_compress.models.compressors.sites import AttentionFacts, CacheFacts, HostInfo, Site
from trt_compress.models.hosts.base import GraphSpec, LoadedHost, WeightsInfo
from trt_compress.models.hosts.checkpoint import some
from trt_compress.models.hosts.decoder import Decoder, decoder_graphs, decoder_procedure, fixed_of
from trt_compress.models.hosts.decoder_config import Caching, DecoderConfig, caching_of
from trt_compress.models.hosts.decoder_families import read_config
from trt_compress.models.hosts.reading import ReadingOptions
from trt_compress.models.language.source import LanguageSource
from trt_compress.models.layers.blocks import WholeNumbers

FAMILY = "decoder"


def host_of(source: LanguageSource) -> LoadedHost:
    """Read a decoder.

    Raises:
        UnsupportedError: Another family, or a variant that is not driven.
        ConfigError: Tensors are missing, extra or misshaped, or a file is damaged.
        UnsupportedError: There is no memory for them.
    """
    config = read_config(source.config, name=source.name)
    check_tensors(config, source)
    check_room(source)
    decoder = read_decoder(config, source)
    assets = source.assets()
    weights = WeightsInfo(
        source=", ".join(origin.path.name for origin in source.origins[:1])
        + (f" and {len(source.origins) - 1} more" if len(source.origins) > 1 else ""),
        sha256=source.sha256(),
        license=assets.license,
        license_files=assets.license_files,
        provenance=assets.provenance,
    )

    def read_as(reading: ReadingOptions, precision: str = "fp32") -> LoadedHost:
        caching = caching_of(config, reading, precision=precision, name=source.name)
        return LoadedHost(
            source=source.name,
            family=FAMILY,
            module=decoder,
            weights=weights,
            attach=partial(_attach, decoder, caching, source.name),
            procedure=_procedure,
            read_as=read_as,
            preprocess={"kind": "text", "input": "tokens"},
            postprocess={
                "kind": "tokens",
                "output": "logits",
                "stop": [] if assets.text is None else list(assets.text.stop),
            },
            text=assets.text,
            files=assets.files,
        )

    return read_as(ReadingOptions())


def check_tensors(config: DecoderConfig, source: LanguageSource) -> None:
    """Refuse a checkpoint that has not exactly the tensors of its configuration, before one is read.

    Raises:
        ConfigError: Some are missing, too many, or of another shape; the first few are named.
    """
    wanted, given = config.tensors(), set(source.names())
    if config.tied:
        given.discard("lm_head.weight")  # a second copy of the embedding
    shapes = [
        f"{name} is {list(found)} instead of {list(shape)}"
        for name, shape in wanted.items()
        if name in given and (found := tuple(source.header(name).shape)) != shape
    ]
    problems = [
        ("misses", sorted(wanted.keys() - given)),
        ("has more than the model:", sorted(given - wanted.keys())),
        ("has other shapes:", shapes),
    ]
    found_ = [f"{what} {some(names)}" for what, names in problems if names]
    if found_:
        raise ConfigError(
            f"weights: {source.name} does not fit its config.json: it {'; it '.join(found_)}.",
            hint="download tensors and config.json again, both of the same model.",
        )


def check_room(source: LanguageSource) -> None:
    """Refuse a model that there is no memory to load, before a tensor is read.

    Raises:
        UnsupportedError: Its weights take more than is free.
    """
    dtype, free = _dtype(source), available_bytes()
    needed = dtype.itemsize * sum(math.prod(source.header(name).shape) for name in source.names())
    if free is not None and needed > free:
        raise UnsupportedError(
            f"{source.name} takes {format_bytes(needed)} in memory, as {str(dtype).removeprefix('torch.')}, and "
            f"{format_bytes(free)} are free; take a smaller model, or a machine with more memory."
        )


def read_decoder(config: DecoderConfig, source: LanguageSource) -> Decoder:
    """The decoder with the weights of a source, in eval mode; each tensor is read once, into its place.

    Matrices keep their half precision if all of them are of the same one; norms keep their own.

    Raises:
        ConfigError: A tensor holds something else than finite numbers, or cannot be read.
    """
    with torch.device("meta"):
        decoder = Decoder(config)
    whole = _dtype(source)
    for parameter, names in config.parts().items():
        parts = [_finite(source.tensor(name), name, source) for name in names]
        tensor = parts[0] if len(parts) == 1 else torch.cat(parts)
        del parts
        if tensor.ndim > 1 or parameter.endswith(".bias"):
            tensor = tensor.to(whole)
        owner, _, last = parameter.rpartition(".")
        module = decoder.get_submodule(owner)
        setattr(module, last, nn.Parameter(tensor, requires_grad=False))
        if isinstance(module, nn.Linear | nn.Embedding) and last == "weight":
            module.stored = partial(_stored, source, names)  # type: ignore[assignment]
    decoder.tie()
    if config.tied:
        decoder.head.stored = partial(_stored, source, config.parts()["embed.weight"])  # type: ignore[assignment]
    return decoder.eval()


def _dtype(source: LanguageSource) -> torch.dtype:
    """In which matrices are loaded: half precision if all of them are of the same one."""
    stored = {source.header(name).dtype for name in source.names() if len(source.header(name).shape) > 1}
    half = {"float16", "bfloat16"} & stored
    dtype: torch.dtype = torch.float32 if len(stored) > 1 or not half else getattr(torch, next(iter(half)))
    return dtype


def _stored(source: LanguageSource, names: Sequence[str]) -> WholeNumbers | None:
    """The whole numbers that a joined matrix came in, as `layers.blocks` asks for them; None: it came in none."""
    return WholeNumbers.joined([source.blocks(name) for name in names])


def _finite(tensor: Tensor, name: str, source: LanguageSource) -> Tensor:
    if not tensor.is_floating_point():
        raise ConfigError(
            f"weights: {source.name}: {name} holds {str(tensor.dtype).removeprefix('torch.')}, where weights in "
            "floating point are needed."
        )
    if not bool(tensor.isfinite().all()):
        raise ConfigError(f"weights: {source.name}: {name} holds NaN or infinity; download the file again.")
    return tensor


def decoder_info(config: DecoderConfig, caching: Caching, name: str) -> HostInfo:
    """What cache policies may know of a decoder. Layers that keep a window or checkpoints are no sites: the model says
    what they keep."""
    kept = [
        number for number, layer in enumerate(config.layers) if caching.ring(layer) is None and layer.period is None
    ]
    return HostInfo(
        name=name,
        sites=tuple(
            Site(kind="kv_cache", layer=number, graph="step", tokens=caching.context, width=config.head_dim)
            for number in kept
        ),
        depth=len(config.layers),
        num_tokens=caching.context,
        attention=AttentionFacts(
            num_heads=config.heads,
            head_size=config.head_dim,
            num_kv_heads=config.kv_heads,
            causal=True,
            rotary=any(layer.rope is not None for layer in config.layers),
        ),
        cache=CacheFacts(
            capacity=caching.context,
            chunk=caching.chunk,
            scale=config.attention_scale,
            softcap=config.attention_cap,
            dtype=caching.dtype,
            ropes=tuple(layer.rope for layer in config.layers),
        ),
    )


def plan_of(config: DecoderConfig, caching: Caching, name: str, specs: Sequence[CompressorSpec] = ()) -> Caches:
    """What keeps the caches of a decoder.

    Raises:
        ConfigError: A method does not go with it, or with another one.
    """
    info = decoder_info(config, caching, name)
    plans = place(specs, info)
    return caches_of(plans.get("step") or GraphPlan(info), info, fixed_of(config, caching, name))


def _attach(decoder: Decoder, caching: Caching, name: str, specs: Sequence[CompressorSpec]) -> tuple[GraphSpec, ...]:
    return decoder_graphs(decoder, caching, plan_of(decoder.config, caching, name, specs))


def _procedure(graphs: Sequence[GraphSpec]) -> Procedure:
    return decoder_procedure(typed(Caches, graphs[0].module.caching), graphs)
