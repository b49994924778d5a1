"""Names of models, read without torch: `timm:NAME?num_classes=10`, `zoo:NAME`, `hf:PATH`, `gguf:FILE`,
`FILE.py:FACTORY`, codecs.

The same text stands on the command line, in Python and in a recipe. What follows the question mark is one table for all
sources, `OPTIONS`; which of them a source takes is `SOURCES`.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from types import MappingProxyType
from typing import Any

from trt_compress.errors import ConfigError, UnsupportedError
from trt_compress.suggest import not_known

POOLINGS = ("token", "avg", "avgmax")
FILE_SOURCE = "file"
"""The source of `FILE.py:FACTORY`, which is written without one."""

TIMM_REFUSED: Mapping[str, str] = MappingProxyType(
    {
        "test_vit3": "global_pool='map'",
        "vit_*_map_*": "global_pool='map'",
        "vit_pe_core_*": "global_pool='map'",
        "vit_*_siglip_[0-9]*": "global_pool='map'",
        "vit_*_18x2_*": "block type ParallelThingsBlock",
        "vit_*_rpn_*": "block type ResPostBlock",
        "vit_*_xp_*": "block type ParallelScalingBlock",
        "vit_pwee_*": "block type ParallelScalingBlock",
        "vit_dpwee_*": "block type DiffParallelScalingBlock",
        "vit_dwee_*": "attention type DiffAttention",
        "vit_dlittle_*": "attention type DiffAttention",
    }
)
"""Which of timm's models of its files vision_transformer, deit and eva are refused, and for what, by patterns of their
names; a test builds them all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelName:
    """A model's name, taken apart.

    Attributes:
        source: A key of `SOURCES`.
        name: timm's name with its tag, the zoo's name, or a path.
        factory: Of `FILE.py:FACTORY` what follows the colon; empty otherwise.
        options: Values by name, each of the type that `OPTIONS` says.
    """

    source: str
    name: str
    factory: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> Path | None:
        """The file or directory that is named; None of a name that is none."""
        return Path(self.name) if SOURCES[self.source].is_path else None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """What may follow a source's colon."""

    form: str
    options: tuple[str, ...] = ()
    is_path: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Option:
    """How the text of an option is read; `form` says so in messages. `read` raises ValueError for any other text."""

    form: str
    example: str
    read: Callable[[str], Any]
    is_path: bool = False


def _whole(text: str, least: int) -> int:
    if not re.fullmatch("[0-9]{1,9}", text) or int(text) < least:
        raise ValueError
    return int(text)


def _signed(text: str) -> int:
    if not re.fullmatch("-?[0-9]{1,4}", text):
        raise ValueError
    return int(text)


def _layers(text: str) -> int | tuple[int, ...]:
    layers = tuple(_signed(part) for part in text.split(","))
    return layers if len(layers) > 1 else layers[0]


def _size(text: str) -> tuple[int, int]:
    parts = [_whole(part, 1) for part in text.split("x")]
    if len(parts) > 2:
        raise ValueError
    return parts[0], parts[-1]


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError
    return value


def _numbers(text: str, *, positive: bool) -> tuple[float, ...]:
    values = tuple(_number(part) for part in text.split(","))
    if positive and min(values) <= 0:
        raise ValueError
    return values


def _choice(text: str, words: Mapping[str, Any]) -> Any:
    if text not in words:
        raise ValueError
    return words[text]


def _flag(text: str) -> bool:
    return bool(_choice(text, {"true": True, "false": False}))


def _path(text: str) -> Path:
    if not text:
        raise ValueError
    return Path(text)


def _key(text: str) -> str:
    if not text.strip("."):
        raise ValueError
    return text.strip(".")


_WORDS_OF_SIZE = "pixels, HEIGHTxWIDTH or one number for both"
OPTIONS: Mapping[str, _Option] = MappingProxyType(
    {
        "num_classes": _Option(form="whole number from 0 on", example="10", read=lambda text: _whole(text, 0)),
        "img_size": _Option(form=_WORDS_OF_SIZE, example="384", read=_size),
        "in_chans": _Option(form="whole number from 1 on", example="1", read=lambda text: _whole(text, 1)),
        "patch_size": _Option(form=_WORDS_OF_SIZE, example="8", read=_size),
        "class_token": _Option(form="true or false", example="false", read=_flag),
        "reg_tokens": _Option(form="whole number from 0 on", example="4", read=lambda text: _whole(text, 0)),
        "global_pool": _Option(
            form=f"one of {', '.join(POOLINGS)}",
            example="avg",
            read=lambda text: _choice(text, {word: word for word in POOLINGS}),
        ),
        "no_embed_class": _Option(form="true or false", example="true", read=_flag),
        "resample_pos": _Option(form="true or false", example="true", read=_flag),
        "mean": _Option(
            form="a number for each channel, or one for all",
            example="0.485,0.456,0.406",
            read=lambda text: _numbers(text, positive=False),
        ),
        "std": _Option(
            form="a number above 0 for each channel, or one for all",
            example="0.229,0.224,0.225",
            read=lambda text: _numbers(text, positive=True),
        ),
        "weights_key": _Option(form="a place in the file of weights", example="state_dict_ema", read=_key),
        "seconds": _Option(form="number", example="5", read=_number),
        "tokens": _Option(form="whole number from 2 on", example="64", read=lambda text: _whole(text, 2)),
        "feature_layer": _Option(
            form="whole number, where a negative one counts from the end, or several with commas between",
            example="-2",
            read=_layers,
        ),
        "crops": _Option(form="rows and columns, ROWSxCOLUMNS or one number for both", example="2x2", read=_size),
        "lora": _Option(form="directory of a LoRA adapter", example="ADAPTER", read=_path, is_path=True),
    }
)
"""What may follow a question mark. Mean and std are of pixels from 0 to 1."""

_TIMM_SHAPE = (
    "num_classes",
    "img_size",
    "in_chans",
    "patch_size",
    "class_token",
    "reg_tokens",
    "global_pool",
    "no_embed_class",
)
_TOWER = ("img_size", "patch_size", "resample_pos", "feature_layer", "crops")
SOURCES: Mapping[str, _Source] = MappingProxyType(
    {
        "timm": _Source(form="timm:NAME", options=(*_TIMM_SHAPE, "resample_pos", "mean", "std", "weights_key")),
        "zoo": _Source(form="zoo:NAME"),
        "hf": _Source(form="hf:PATH", options=("seconds", "tokens", *_TOWER, "lora"), is_path=True),
        "gguf": _Source(form="gguf:FILE", options=("lora",), is_path=True),
        "wavtokenizer": _Source(form="wavtokenizer:FILE", options=("seconds",), is_path=True),
        "xytokenizer": _Source(form="xytokenizer:FILE", options=("seconds",), is_path=True),
        FILE_SOURCE: _Source(form="FILE.py:FACTORY", options=("mean", "std", "weights_key"), is_path=True),
    }
)


def parse_model(text: str) -> ModelName:
    """Take a model's name apart; whether there is such a model is not looked at.

    Raises:
        ConfigError: it has no form of `SOURCES`, or an option that is not known, given twice or of a wrong value.
    """
    if "\0" in text:
        raise ConfigError(f"model {text[:60]!r} holds a null character, which no name and no path has; leave it out.")
    source, colon, rest = text.partition(":")
    if colon and source in SOURCES and source != FILE_SOURCE:
        name, _, query = rest.partition("?")
        return ModelName(source=source, name=name, options=_options(text, source, query))
    found = re.fullmatch(r"(?P<path>[^?]*\.py)(?::(?P<factory>[^?:]*))?(?:\?(?P<query>.*))?", text, re.DOTALL)
    if found is None:
        raise ConfigError(
            f"model '{text}' is not known; write timm:NAME (timm:deit_small_patch16_224), zoo:NAME (zoo:digits_vit) or "
            "hf:PATH, gguf:FILE, FILE.py:FACTORY for a model of your own, or give a recipe file ending in .toml."
        )
    options = _options(text, FILE_SOURCE, found["query"] or "")
    return ModelName(source=FILE_SOURCE, name=found["path"], factory=found["factory"] or "", options=options)


def with_absolute_path(text: str, base: Path | None = None) -> str:
    """The same name with the paths in it, if it has any, made absolute; a relative one counts from `base`.

    Args:
        text: A model's name.
        base: A folder; None: the current one.

    Raises:
        ConfigError: see `parse_model`.
    """
    parsed = parse_model(text)
    if parsed.path is None:
        return text
    head = "" if parsed.source == FILE_SOURCE else f"{parsed.source}:"
    start = Path.cwd() if base is None else base.absolute()
    rest, mark, query = text[len(head) + len(parsed.name) :].partition("?")
    pairs = [pair.partition("=") for pair in query.split("&")]
    whole = (
        [
            f"{name}={start / value}" if OPTIONS[name].is_path else f"{name}{equals}{value}"
            for name, equals, value in pairs
        ]
        if query
        else []
    )
    return f"{head}{start / parsed.path}{rest}{mark}{'&'.join(whole)}"


def timm_refusal(name: str) -> str | None:
    """Why timm's model `name`, of one of these files, is refused: the words of `TIMM_REFUSED`. None if it is driven.

    Args:
        name: With or without the tag of its weights.
    """
    plain = name.partition(".")[0]
    return next((what for pattern, what in TIMM_REFUSED.items() if fnmatchcase(plain, pattern)), None)


def unsupported_vit(name: str, what: str, *, hint: str | None = None) -> UnsupportedError:
    """The error that says why a model is refused: `what` it has that is not driven."""
    return UnsupportedError(
        f"{name}: {what} is not supported; this host drives timm's VisionTransformer, "
        f"VisionTransformerDistilled and Eva with plain blocks, fixed input size and {', '.join(POOLINGS)} pooling.",
        hint=hint,
    )


def _options(text: str, source: str, query: str) -> dict[str, Any]:
    allowed, form = SOURCES[source].options, SOURCES[source].form
    values: dict[str, Any] = {}
    if "?" in text and not allowed:
        raise ConfigError(f"model '{text}': {form} takes no options; leave out what follows the question mark.")
    for pair in query.split("&") if query else ():
        name, equals, value = pair.partition("=")
        if name not in allowed:
            raise ConfigError(
                not_known(f"model '{text}': option", name, allowed),
                hint=f"write {form}?{allowed[0]}={OPTIONS[allowed[0]].example}, several options joined by '&'.",
            )
        if name in values:
            raise ConfigError(f"model '{text}': option '{name}' is given twice; leave one out.")
        option = OPTIONS[name]
        try:
            if not equals:
                raise ValueError
            values[name] = option.read(value)
        except ValueError:
            raise ConfigError(
                f"model '{text}': '{pair}' is not key={option.form}; write {form}?{name}={option.example}."
            ) from None
    return values
