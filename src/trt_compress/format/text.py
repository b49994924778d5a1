"""How a bundle of a language model becomes text and text its tokens, as `text` of the manifest says it."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from trt_compress.format.record import Record

LARGEST_VOCABULARY = 1 << 24
LONGEST_CONTEXT = 1 << 31
_MOST_STOPS = 1024
_SPARSE: Mapping[str, Any] = {"sparse": True}

GENERATION: Mapping[str, type] = {
    **{"do_sample": bool, "temperature": float, "top_k": int, "top_p": float, "min_p": float},
    **{"repetition_penalty": float, "max_new_tokens": int},
}
"""What `generation` may hold, by the names of Hugging Face's generation_config.json."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Text(Record):
    """What makes tokens of a text and a text of tokens.

    Attributes:
        tokenizer: A file of the bundle, as the library `tokenizers` writes it.
        vocabulary: How many tokens the model knows: all of the tokenizer's are below.
        stop: Tokens that end a text.
        bos: The token that begins a text; that the tokenizer puts it there, or does not, stands in its file.
        pad: The token that fills up shorter texts.
        chat_template: A file of the bundle: the template, in Jinja, that makes one text of a conversation.
        special: Texts that the template names: `bos_token`, `eos_token`.
        generation: How the model's makers want tokens to be chosen; what may stand there says `GENERATION`.
        context: Tokens of the longest sequence that the model was trained for.
    """

    tokenizer: str
    vocabulary: int
    stop: tuple[int, ...] = ()
    bos: int | None = None
    pad: int | None = None
    chat_template: str | None = None
    special: dict[str, str] = field(default_factory=dict)
    generation: dict[str, Any] = field(default_factory=dict)
    context: int | None = None

    def files(self) -> Iterator[tuple[str, str]]:
        """The files that it names, each with its field."""
        yield "tokenizer", self.tokenizer
        if self.chat_template is not None:
            yield "chat_template", self.chat_template

    def problems(self) -> Iterator[str]:
        """Values that no model has."""
        if not 1 <= self.vocabulary <= LARGEST_VOCABULARY:
            yield f"'text.vocabulary' is {self.vocabulary}; it is 1 to {LARGEST_VOCABULARY}"
        if self.context is not None and not 1 <= self.context <= LONGEST_CONTEXT:
            yield f"'text.context' is {self.context}; it is 1 to {LONGEST_CONTEXT}"
        if len(self.stop) > _MOST_STOPS:
            yield f"'text.stop' has {len(self.stop)} tokens; it has up to {_MOST_STOPS}"
        named = {"bos": self.bos, "pad": self.pad, **{f"stop[{place}]": token for place, token in enumerate(self.stop)}}
        for name, token in named.items():
            if token is not None and not 0 <= token < max(self.vocabulary, 1):
                yield f"'text.{name}' is {token}; tokens are 0 to {self.vocabulary - 1}"
                break
        yield from generation_problems(self.generation)


def generation_problems(settings: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with settings of `GENERATION`; others are of a later version, and are kept."""
    for name, kind in GENERATION.items():
        value = settings.get(name)
        if value is None:
            continue
        number = type(value) in (int, float) and math.isfinite(value)
        if not (type(value) is kind or kind is float and number):
            yield f"'text.generation.{name}' is {str(value)[:60]!r}; it is {_WORDS[kind]}"
        elif number and not _LIMITS.get(name, (0, math.inf))[0] <= value <= _LIMITS.get(name, (0, math.inf))[1]:
            low, high = _LIMITS[name]
            yield f"'text.generation.{name}' is {value}; it is {low:g} to {high:g}"


_WORDS = {bool: "true or false", float: "a number", int: "a whole number"}
_LIMITS = {
    **{"temperature": (0, 1e4), "top_k": (0, LARGEST_VOCABULARY), "top_p": (0, 1), "min_p": (0, 1)},
    **{"repetition_penalty": (1e-4, 1e4), "max_new_tokens": (1, LONGEST_CONTEXT)},
}
