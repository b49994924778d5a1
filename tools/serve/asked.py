"""What a client asks for, read strictly: what would be answered otherwise than asked is refused."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trt_compress.errors import ConfigError
from trt_compress.runtime.generate.generator import MAX_NEW
from trt_compress.runtime.generate.sampling import Sampling
from trt_compress.runtime.generate.text import BundleText, check_messages
from trt_compress.suggest import not_known

MOST_CHOICES = 16

_CHOOSING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed", "stop")
_BOTH = (*_CHOOSING, "model", "max_tokens", "n", "stream", "stream_options", "logprobs")
_IGNORED = ("user", "metadata", "store", "prompt_cache_key", "prompt_cache_retention", "safety_identifier")
"""What says nothing about the answer."""
_COMPLETION = (*_BOTH, "prompt")
_CHAT = (*_BOTH, "messages", "max_completion_tokens", "top_logprobs")
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "best_of": (1,),
    "suffix": ("",),
    "echo": (False,),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "prediction": (),
    "reasoning_effort": ("none",),
    "verbosity": (),
    "web_search_options": (),
    "audio": (),
    "service_tier": ("auto", "default"),
}
"""What others know and this server does not do: taken only with the value that asks for nothing."""

_TOOLS: Mapping[str, tuple[Any, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("none", "auto"),
}
"""The same, of tools."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One request.

    Attributes:
        prompts: What is read, one for each answer.
        is_chat: Answers are messages.
        max_new: The most tokens of each answer.
        sampling: How they are chosen, of each answer.
        streams: Answers are sent as they come.
        with_usage: A stream ends with the numbers of tokens.
    """

    prompts: list[list[int]]
    is_chat: bool
    max_new: int
    sampling: list[Sampling]
    streams: bool
    with_usage: bool


class UnknownModel(ConfigError):
    """Another model than the one that is served was asked for."""


def read_request(data: object, text: BundleText, model: str, *, is_chat: bool) -> Asked:
    """Read a request.

    Args:
        data: What the client sent, as JSON.
        text: The text side of the bundle.
        model: The name under which it is served.
        is_chat: Of which kind it is.

    Raises:
        UnknownModel: Another model was asked for.
        ConfigError: Something is missing, unknown, not allowed or not done here.
        BundleError: The bundle's chat template is at fault.
    """
    if not isinstance(data, dict):
        raise ConfigError("The request is no JSON object.")
    given = {name: value for name, value in data.items() if value is not None}
    known = _CHAT if is_chat else _COMPLETION
    for name, value in given.items():
        if name in _TOOLS and value not in _TOOLS[name]:
            raise ConfigError(f"{name} is given, and no tools are called here: answers are text; leave it out.")
        if name in _TOOLS:
            continue
        if name in _NEUTRAL:
            if value not in _NEUTRAL[name]:
                raise ConfigError(f"{name}={str(value)[:60]} is not done here; leave it out.")
        elif name not in known and name not in _IGNORED:
            raise ConfigError(not_known("field", name, known))
    if given.get("model", model) != model:
        raise UnknownModel(f"The model {str(given['model'])[:80]!r} is not served here; there is '{model}'.")
    streams, options = given.get("stream", False), given.get("stream_options", {})
    if not isinstance(streams, bool) or not isinstance(options, dict):
        raise ConfigError("stream is true or false, and stream_options an object.")
    texts = [_messages(given, text)] if is_chat else _prompts(given, text)
    count = _whole("n", given.get("n", 1), 1, MOST_CHOICES)
    named = "max_completion_tokens" if "max_completion_tokens" in given else "max_tokens"
    base = _sampling(given, text, is_chat=is_chat)
    if len(texts) * count > MOST_CHOICES:
        raise ConfigError(f"{len(texts) * count} answers were asked for; one request gives up to {MOST_CHOICES}.")
    return Asked(
        prompts=[prompt for prompt in texts for _ in range(count)],
        is_chat=is_chat,
        max_new=_whole(named, given.get(named, text.max_new or MAX_NEW), 1, 2**31),
        sampling=[
            base if base.seed is None else Sampling.of({"seed": (base.seed + number) % 2**63}, base)
            for _ in texts
            for number in range(count)
        ],
        streams=streams,
        with_usage=options.get("include_usage") is True,
    )


def _prompts(given: Mapping[str, Any], text: BundleText) -> list[list[int]]:
    prompt = given.get("prompt")
    several = isinstance(prompt, list) and bool(prompt) and not all(type(one) is int for one in prompt)
    listed: list[Any] = list(prompt or ()) if several else [prompt]
    for one in listed:
        if not isinstance(one, str) and not (isinstance(one, list) and all(type(token) is int for token in one)):
            raise ConfigError("prompt is a text, the numbers of tokens, or a list of these.")
    return [text.tokens(one) for one in listed]


def _messages(given: Mapping[str, Any], text: BundleText) -> list[int]:
    messages = given.get("messages")
    check_messages(messages)
    assert isinstance(messages, list)
    return text.tokens(text.chat([{**one, "content": _content(one.get("content"))} for one in messages]))


def _content(content: object) -> str:
    """The text of a message, which may come in parts."""
    if isinstance(content, str):
        return content
    if content is None:
        return ""
    parts: list[Any] = content if isinstance(content, list) else [content]
    for part in parts:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise ConfigError('The content of a message is a text, or parts {"type": "text", "text": "…"}.')
    return "".join(part["text"] for part in parts)


def _sampling(given: Mapping[str, Any], text: BundleText, *, is_chat: bool) -> Sampling:
    settings = {name: given[name] for name in _CHOOSING if name in given}
    if isinstance(settings.get("stop"), str):
        settings["stop"] = [settings["stop"]]
    wanted = given.get("logprobs")
    if is_chat and wanted is not None:
        if not isinstance(wanted, bool):
            raise ConfigError("logprobs is true or false; top_logprobs says how many.")
        settings["logprobs"] = given.get("top_logprobs", 0) if wanted else None
    elif wanted is not None:
        settings["logprobs"] = wanted
    return Sampling.of(settings, text.sampling)


def _whole(name: str, value: object, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ConfigError(f"{name}={value!r:.40}; give a whole number from {low} to {high}.")
    return value
