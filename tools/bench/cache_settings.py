"""What of caches is compared: settings by the list of methods, with the artifacts that they take, and their bytes."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from trt_compress.errors import ConfigError
from trt_compress.methods import METHODS, CompressorSpec, parse_spec, spec_string
from trt_compress.model_name import parse_model

FP32, FP16 = "fp32", "fp16"
"""Plain caches of these; every other setting keeps in float16 what it keeps in full precision."""

RANDOM = "random_kv"
CONTEXTS = (2048, 8192, 32768)
"""Tokens of the sequences whose bytes are told."""

_OTHERS = (
    "int4:group=64",
    "kivi:bits=4,group=64,residual=128",
    "kivi:bits=2,group=32,residual=128",
    "snapkv:budget={budget}+int4:group=64",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSetting:
    """One line of the comparison.

    Attributes:
        name: `fp32`, `fp16`, or the spec string as it was given, without the files that are made for it.
        spec: The spec string with these.
    """

    name: str
    spec: str

    @property
    def cache_dtype(self) -> str:
        """Of keys and values in full precision."""
        return FP32 if self.name == FP32 else FP16

    @property
    def budget(self) -> int | None:
        """Of a selector whose store is the plain one; None: it is something else."""
        specs = parse_spec(self.spec)
        if len(specs) != 1 or METHODS[specs[0].name].kind != "selector":
            return None
        return int(getattr(specs[0].config, "budget", 0)) or None


def usual_settings(budget: int) -> list[str]:
    """Every selector with a budget, every store, and some more: what is compared if nothing is named."""
    found = [FP16, FP32]
    for kind in ("selector", "store", "reader"):
        for name, method in METHODS.items():
            if method.kind != kind or name == "plain":
                continue
            takes_budget = any(field.name == "budget" for field in fields(method.config))
            found.append(f"{name}:budget={budget}" if takes_budget else name)
    return list(dict.fromkeys([*found, *(each.format(budget=budget) for each in _OTHERS)]))


def in_order(names: Sequence[str]) -> list[str]:
    """Each once: what others are compared with first, and `random_kv` at every budget that a selector has."""
    needed = [FP16, FP32]
    for name in names:
        budget = None if name in needed else CacheSetting(name=name, spec=name).budget
        needed += [] if budget is None else [f"{RANDOM}:budget={budget}"]
    return list(dict.fromkeys([*needed, *names]))


def with_artifacts(model: str, name: str, folder: Path, say: Callable[[str], None]) -> CacheSetting:
    """A setting with the artifacts that its methods take and can make by themselves, made in the folder.

    Raises:
        ConfigError: The spec string is wrong.
        UnsupportedError, GateError: As `calibrate`.
    """
    if name in (FP16, FP32):
        return CacheSetting(name=name, spec="none")
    specs: list[CompressorSpec] = []
    for spec in parse_spec(name):
        missing = [each for each in METHODS[spec.name].artifacts if each not in spec.config.artifacts]
        text = spec_string([spec])
        for artifact in missing:
            place = folder / f"{_file_name(text)}.{artifact}.safetensors"
            if not place.is_file():
                from trt_compress.export.calibration import calibrate

                say(f"calibrating {text}")
                calibrate(model, compress=text, output=place)
            text += f"{',' if ':' in text else ':'}{artifact}={place}"
        specs += parse_spec(text)
    return CacheSetting(name=name, spec=spec_string(specs))


def bytes_figures(model: str, setting: CacheSetting, chunk: int) -> dict[str, Any]:
    """Bytes of one sequence in all layers: of a token, with the formula, and against float16 at several lengths.

    All is the count of the policies themselves, of what they say that they store.
    """
    config, name = _config(model)
    specs = parse_spec(setting.spec)
    at: dict[str, dict[str, float | int | None]] = {}
    for context in CONTEXTS:
        plain = _bytes(config, name, (), context, chunk, FP16)
        try:
            total = _bytes(config, name, specs, context, chunk, setting.cache_dtype)
        except ConfigError:  # it would remove nothing there
            at[str(context)] = {"bytes": None, "of_fp16": None}
            continue
        at[str(context)] = {"bytes": total, "of_fp16": round(total / plain, 4)}
    layers = _plan(config, name, specs, CONTEXTS[-1], chunk, setting.cache_dtype).layers
    terms = Counter(_formula(layer) for layer in layers)
    token = sum(count * value for (_, value), count in terms.items())
    formula = " + ".join(f"{count}·({text or 0})" for (text, _), count in terms.items())
    return {"of_a_token": token, "formula": formula, "budget": setting.budget, "at": at}


def _formula(layer: Any) -> tuple[str, float]:
    """The bytes of a token in a layer: in words, of the states that grow, and as a number."""
    from trt_compress.models.cache.sizes import growing, growth_of

    if not layer.policies:  # a ring, which does not grow
        return "0", 0.0
    states, value = growing(layer.policies), growth_of(layer.policies)
    texts = [
        f"{state.name} {state.numbers}·{state.bytes}"
        + (f"/{state.tokens}" if state.tokens > 1 else "")
        + (f"·{state.share:g}" if state.share < 1 else "")
        for state in states
    ]
    said = sum(state.numbers * state.bytes / state.tokens * state.share for state in states)
    return " + ".join(texts) if abs(said - value) < 1e-6 else f"{value:g}", value


def _bytes(config: Any, name: str, specs: Sequence[CompressorSpec], context: int, chunk: int, dtype: str) -> int:
    return sum(layer.bytes_of(context) for layer in _plan(config, name, specs, context, chunk, dtype).layers)


def _plan(config: Any, name: str, specs: Sequence[CompressorSpec], context: int, chunk: int, dtype: str) -> Any:
    from trt_compress.models.hosts.decoder_config import Caching
    from trt_compress.models.hosts.decoder_host import plan_of

    caching = Caching(context=context, chunk=chunk, dtype={FP32: "float32", FP16: "float16"}[dtype])
    return plan_of(config, caching, name, specs)


def _config(model: str) -> tuple[Any, str]:
    from trt_compress.models.hosts.decoder_families import read_config
    from trt_compress.models.language.open import open_language

    source = open_language(parse_model(model))
    return read_config(source.config, name=source.name), source.name


def _file_name(text: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in text)
