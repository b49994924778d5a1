"""What a language model would take on a device: bytes of weights and caches in every form, and what fits.

Read off configuration and headers alone: no tensor is read and torch is not loaded.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

from trt_compress.errors import ConfigError, UnsupportedError
from trt_compress.export.targets import PRECISIONS, TARGETS, Target, get_target
from trt_compress.methods.cache import KiviConfig
from trt_compress.model_name import parse_model
from trt_compress.models.hosts.decoder_config import Caching, DecoderConfig, caching_of
from trt_compress.models.hosts.decoder_families import FAMILIES, read_config
from trt_compress.models.hosts.reading import ReadingOptions
from trt_compress.models.language.open import open_language
from trt_compress.models.layers.block_form import BLOCKED_OPSET, BlockForm

MEMORIES = (8, 16, 64)
"""Of the devices that are looked at, in GiB."""
USABLE = 0.8
"""The share of a device's memory that is counted on: the rest is the system's, the library's and the program's."""

_GIB = 1 << 30
_ITEM = {"fp32": 4, "fp16": 2, "bf16": 2}
_FORMS = (BlockForm(bits=8, group=32), BlockForm(bits=4, group=32), BlockForm(bits=4, group=128))
_STORES: Mapping[str, int | tuple[int, int, int]] = {
    **{"fp32": 4, "fp16": 2},
    **{
        "int8": (8, 0, 0),
        "kivi:bits=4,group=64": (4, 64, KiviConfig(bits=4, group=64).residual),
        "kivi:bits=2,group=32": (2, 32, KiviConfig(bits=2, group=32).residual),
    },
}
"""Of each store the bytes of a number; or bits, tokens that share a scale of keys (0: each has its own), and tokens
that are packed at once. Scales are in float16, and so is what is not packed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightPlan:
    """What the weights take in one form.

    Attributes:
        name: `fp16`, or with quantized linear layers `fp16, 4:32`.
        bytes: Of all of them, a tied head once.
        whole_share: The share of the parameters that is quantized.
        groups: Inputs that share a scale, largest first: where a group does not divide a layer's, the next smaller one
            that does.
        refused: Why a target that was asked for does not take it; None: it does.
    """

    name: str
    bytes: int
    whole_share: float
    groups: tuple[int, ...]
    refused: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CachePlan:
    """What keys and values take in one form.

    Attributes:
        name: `fp16`, or what `--compress` takes, `kivi:bits=4,group=64`.
        bytes_per_token: Of one sequence, in all layers that keep everything; of a token that is packed.
        bytes: Of all sequences at full length.
    """

    name: str
    bytes_per_token: int
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """How weights and caches go into a memory together.

    Attributes:
        memory_gib: Of the device.
        weights: A `WeightPlan`'s name.
        cache: A `CachePlan`'s name.
        bytes: Of both, and of what one run works on.
        fits: Whether that is within `USABLE` of the memory.
        longest: Tokens of the longest sequences that would fit, as many of them as were asked for; 0: none.
    """

    memory_gib: int
    weights: str
    cache: str
    bytes: int
    fits: bool
    longest: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPlan:
    """What a model is and takes.

    Attributes:
        model: As it was named.
        family: What it is.
        model_type: The same, as config.json has it.
        parameters: Numbers of its weights, of a tied head once.
        stored_bytes: Of the tensors where they lie.
        stored_as: What they are there: "bfloat16", "q4_1, q8_0, f32".
        layers: How many it has.
        limit: Tokens of the longest sequence that it was made for.
        context: Tokens of the sequences that were asked for.
        batch: How many of them at once.
        chunk: Tokens of a run.
        targets: What was asked for.
        work_bytes: What one run works on, roughly: activations of a layer, scores, logits.
        weights: In every form.
        caches: In every form.
        fits: Every weight form with every cache form, in every memory.
    """

    model: str
    family: str
    model_type: str
    parameters: int
    stored_bytes: int
    stored_as: str
    layers: int
    limit: int
    context: int
    batch: int
    chunk: int
    targets: tuple[str, ...]
    work_bytes: int
    weights: tuple[WeightPlan, ...]
    caches: tuple[CachePlan, ...]
    fits: tuple[Fit, ...]

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {**asdict(self), "memories_gib": list(MEMORIES), "usable": USABLE}


def plan(
    model: str,
    *,
    context: int | None = None,
    batch: int = 1,
    chunk: int | None = None,
    targets: Sequence[str] = (),
) -> ModelPlan:
    """Say what a language model takes, and what fits.

    Args:
        model: `hf:DIR` or `gguf:FILE`.
        context: Tokens of a sequence; None: as many as the model was made for, up to 4096.
        batch: How many sequences there are at once.
        chunk: Tokens that one run reads; None: 256.
        targets: Names of targets; what one of them does not take is refused. None: nothing is.

    Raises:
        ConfigError: A file is missing or damaged, or more is asked for than the model was made for.
        UnsupportedError: It is no language model that is driven.
    """
    chosen = [get_target(name) for name in targets]
    if not 1 <= batch <= 1 << 16:
        raise ConfigError(f"--batch {batch} is out of range; give a number of sequences from 1 to {1 << 16}.")
    parsed = parse_model(model)
    if parsed.source not in ("hf", "gguf"):
        raise UnsupportedError(f"{model} is no language model; plan takes hf:DIR and gguf:FILE.")
    source = open_language(parsed)
    config = read_config(source.config, name=source.name)
    caching = caching_of(config, ReadingOptions(context=context, chunk=chunk), name=source.name)
    headers = [source.header(name) for name in source.names()]
    weights = tuple(_weights(config, chosen))
    caches = tuple(_cache(config, caching.context, caching.chunk, batch, name) for name in _STORES)
    work = _work(config, caching.context, caching.chunk, batch)
    return ModelPlan(
        model=model,
        family=FAMILIES[config.family].title,
        model_type=config.family,
        parameters=config.parameters,
        stored_bytes=sum(header.bytes for header in headers),
        stored_as=", ".join(dict.fromkeys(header.kind for header in sorted(headers, key=lambda h: -h.bytes))),
        layers=len(config.layers),
        limit=config.limit,
        context=caching.context,
        batch=batch,
        chunk=caching.chunk,
        targets=tuple(targets),
        work_bytes=work,
        weights=weights,
        caches=caches,
        fits=tuple(
            _fit(config, caching.chunk, batch, memory, one, other, caching.context)
            for memory in MEMORIES
            for one in weights
            for other in caches
        ),
    )


def weight_bytes(
    config: DecoderConfig, precision: str, form: BlockForm | None = None
) -> tuple[int, int, tuple[int, ...]]:
    """Bytes of the weights of a decoder, how many of its numbers are quantized, and in which groups.

    Args:
        config: Of the decoder.
        precision: One of `PRECISIONS`.
        form: Of the linear layers that take it; None: all stay as they are.
    """
    item, total, whole = _ITEM[precision], 0, 0
    groups: set[int] = set()
    for name, shape in config.tensors().items():
        count = math.prod(shape)
        linear = len(shape) > 1 and not name.startswith("model.embed_tokens")
        own = form.dividing(math.prod(shape[1:])) if form is not None and linear else None
        if own is not None:
            total += count * own.bits // 8 + count // own.group * item
            whole += count
            groups.add(own.group)
        else:
            total += count * item
    own = None if form is None or not config.tied else form.dividing(config.width)
    if own is not None:  # the head in 8 bits, beside the embedding
        count = config.vocabulary * config.width
        total += count + count // own.group * item
        groups.add(own.group)
    return total, whole, tuple(sorted(groups, reverse=True))


def cache_bytes(config: DecoderConfig, *, context: int, chunk: int, batch: int, store: str) -> tuple[int, int]:
    """Bytes of a token of one sequence in a layer's linear cache times the layers, and of all caches at full length.

    Args:
        config: Of the decoder.
        context: Tokens of a sequence.
        chunk: Tokens of a run: a layer with a window keeps it and one chunk.
        batch: How many sequences there are.
        store: One of the names of the caches.
    """
    how = _STORES[store]
    row = 2 * config.kv_heads * config.head_dim * (how if isinstance(how, int) else 2)
    one, residual = (row, 0) if isinstance(how, int) else (_bytes_of_packed(config, *how[:2]), how[2])
    rest = min(context, residual)
    total = 0
    for layer in config.layers:
        if layer.period is not None:
            slots: int | None = (context + chunk) // layer.period + 1
        else:
            slots = Caching(context=context, chunk=chunk).ring(layer)
        total += (context - rest) * one + rest * row if slots is None else slots * row
    return one * len(config.layers), total * batch


def _bytes_of_packed(config: DecoderConfig, bits: int, group: int) -> int:
    """Keys and values of one token in one layer: codes, scales and minima, as `models.cache` keeps them."""
    width = config.head_dim
    of_keys = Fraction(width, group) if group else 1
    of_values = width // group if group and width % group == 0 else 1
    return math.ceil(config.kv_heads * (2 * Fraction(width * bits, 8) + 4 * (of_keys + of_values)))


def _weights(config: DecoderConfig, targets: Sequence[Target]) -> Iterator[WeightPlan]:
    for precision in PRECISIONS:
        for form in (None, *(_FORMS if precision != "bf16" else ())):
            total, whole, groups = weight_bytes(config, precision, form)
            if form is not None and not whole:
                continue
            yield WeightPlan(
                name=precision if form is None else f"{precision}, {form}",
                bytes=total,
                whole_share=round(whole / config.parameters, 4),
                groups=groups,
                refused=_refusal(precision, form, targets),
            )


def _refusal(precision: str, form: BlockForm | None, targets: Sequence[Target]) -> str | None:
    """Why a target does not take weights of this form: what an export for it would say."""
    for target in targets:
        needed = [precision] if form is None else [precision, f"int{form.bits}"]
        if lacking := [name for name in needed if name not in target.precisions]:
            others = [name for name, other in TARGETS.items() if set(needed) <= set(other.precisions)]
            return f"{target.name} has no {lacking[0]}; {', '.join(others)} have"
        if form is not None and target.max_opset < BLOCKED_OPSET:
            return f"{target.name} reads opset {target.max_opset}, and weights in blocks need {BLOCKED_OPSET}"
    return None


def _cache(config: DecoderConfig, context: int, chunk: int, batch: int, store: str) -> CachePlan:
    one, whole = cache_bytes(config, context=context, chunk=chunk, batch=batch, store=store)
    return CachePlan(name=store, bytes_per_token=one, bytes=whole)


def _work(config: DecoderConfig, context: int, chunk: int, batch: int) -> int:
    """Activations of one layer, the scores of one layer's attention, and logits of one row, in float32."""
    rows = batch * chunk
    scores = rows * config.heads * min(context, max(layer.window or context for layer in config.layers))
    return 4 * (rows * (4 * config.width + 3 * config.inner) + scores + batch * config.vocabulary)


def _fit(
    config: DecoderConfig, chunk: int, batch: int, memory: int, weights: WeightPlan, cache: CachePlan, context: int
) -> Fit:
    usable = int(memory * _GIB * USABLE)

    def needed(length: int) -> int:
        run = min(chunk, length)
        _, caches = cache_bytes(config, context=length, chunk=run, batch=batch, store=cache.name)
        return weights.bytes + caches + _work(config, length, run, batch)

    low, high = 0, config.limit
    while low < high:  # the longest that fits
        middle = (low + high + 1) // 2
        low, high = (middle, high) if needed(middle) <= usable else (low, middle - 1)
    total = needed(context)
    return Fit(
        memory_gib=memory,
        weights=weights.name,
        cache=cache.name,
        bytes=total,
        fits=total <= usable,
        longest=low,
    )
