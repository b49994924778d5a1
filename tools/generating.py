"""What `trt-compress generate` reads and writes: prompts of the command line, stdin and JSON lines, and answers."""

import json
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trt_compress.errors import ConfigError
from trt_compress.files import read_regular
from trt_compress.foreign import strict_json
from trt_compress.runtime.generate.generator import MAX_NEW, Generator
from trt_compress.runtime.generate.memory import check_memory
from trt_compress.runtime.generate.sampling import Sampling
from trt_compress.runtime.generate.stream import Generated, Prefix, Stream, Timing
from trt_compress.runtime.generate.text import BundleText, check_messages, open_bundle
from trt_compress.runtime.state_memory import check_count
from trt_compress.suggest import not_known

LARGEST_INPUT = 1 << 28
_SETTINGS = (
    *("max_new", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed", "stop", "stop_ids"),
    *("ignore_stop_ids", "logprobs"),
)
_KEYS = ("id", "prompt", "messages", "tokens", *_SETTINGS)


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptLine:
    """One prompt, with what is said of it.

    Attributes:
        id: What its answer is called.
        tokens: What is read.
        max_new: The most new tokens.
        sampling: How they are chosen.
        is_chat: Its answer is a message of its own.
    """

    id: Any
    tokens: list[int]
    max_new: int
    sampling: Sampling
    is_chat: bool


@dataclass(slots=True)
class Written:
    """What has been written so far.

    Attributes:
        results: In the order of the prompts.
        timing: Of all of them.
    """

    prompts: Sequence[PromptLine]
    results: list[Generated] = field(default_factory=list)
    timing: Timing = field(default_factory=Timing)

    def lines(self, text: BundleText) -> list[dict[str, Any]]:
        """Each answer as plain JSON data."""
        return [answer_json(prompt, result, text) for prompt, result in zip(self.prompts, self.results, strict=False)]


class Writer:
    """A bundle that answers: its text side first, the model when the prompts are known to fit."""

    def __init__(
        self,
        bundle: str | Path,
        *,
        context: int | None = None,
        require_digest: str | Collection[str] | None = None,
    ) -> None:
        """Read the text side.

        Raises:
            BundleError, ConfigError, UnsupportedError: As `BundleText`.
        """
        self.text = BundleText(open_bundle(bundle, require_digest=require_digest), capacity=context)
        self._context = context
        self._generator: Generator | None = None

    def load(self, *, backend: str = "ort-cpu", threads: int | None = None, native: bool | None = None) -> Generator:
        """Load the model.

        Raises:
            BundleError, ConfigError, PluginError, UnsupportedError: As `Session.open`.
        """
        self._generator = Generator.open(
            self.text.bundle, text=self.text, capacity=self._context, backend=backend, threads=threads, native=native
        )
        return self._generator

    def close(self) -> None:
        """Let go of everything."""
        (self.text if self._generator is None else self._generator).close()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def prompt(
        self,
        given: Mapping[str, Any],
        settings: Mapping[str, Any],
        *,
        where: str = "The prompt",
        number: int = 0,
        system: str | None = None,
    ) -> PromptLine:
        """A prompt as a line of JSON has it, checked.

        Args:
            given: One of `prompt`, `messages` and `tokens`; an `id`; and settings of its own.
            settings: Those of all.
            where: What it is called.
            number: What its answer is called if it has no `id`.
            system: What a conversation begins with if it does not say so itself.

        Raises:
            ConfigError: It is no prompt, or does not fit the bundle.
        """
        for name in given:
            if name not in _KEYS:
                raise ConfigError(f"{where}: {not_known('key', name, _KEYS)}")
        asked = [name for name in ("prompt", "messages", "tokens") if name in given]
        if len(asked) != 1:
            raise ConfigError(
                f"{where} has {' and '.join(asked) or 'no prompt'}; give one of prompt, messages, tokens."
            )
        (kind,) = asked
        value = given[kind]
        if kind == "messages":
            check_messages(value)
            messages = [*([{"role": "system", "content": system}] if system and not _has_system(value) else []), *value]
            tokens: str | list[int] = self.text.chat(messages)
        elif kind == "prompt" and isinstance(value, str) or kind == "tokens" and _are_numbers(value):
            tokens = value
        else:
            raise ConfigError(f"{where}: {kind} is {json.dumps(value)[:60]}; a prompt is a text, tokens are numbers.")
        own = {**settings, **{name: given[name] for name in _SETTINGS if name in given}}
        most = own.pop("max_new", None)
        most = most if most is not None else self.text.max_new or MAX_NEW
        try:
            check_count("max_new", most)
            sampling = Sampling.of(own, self.text.sampling)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error.message}") from None
        return PromptLine(
            id=given.get("id", number),
            tokens=self.text.tokens(tokens, what=where),
            max_new=most,
            sampling=sampling,
            is_chat=kind == "messages",
        )

    def check_room(self, prompts: Sequence[PromptLine], batch: int | None) -> None:
        """Refuse what there is no memory for, before the model is loaded.

        Raises:
            ConfigError: `batch` is no number of sequences.
            UnsupportedError: There is not enough.
        """
        manifest = self.text.bundle.manifest
        if batch is not None:
            check_count("batch", batch)
        size = min(batch or manifest.batch.max, len(prompts))
        slots = max(len(one.tokens) + one.max_new for one in prompts)
        if self.text.context is not None:
            slots = min(slots, self.text.context)
        check_memory(manifest, batch=size, slots=slots, loaded=False)

    def begin(self, prompts: Sequence[PromptLine], *, batch: int | None = None, **how: Any) -> Stream:
        """Begin to answer; `how` as `Generator.stream` takes it."""
        assert self._generator is not None
        return self._generator.stream(
            [one.tokens for one in prompts],
            max_new=[one.max_new for one in prompts],
            sampling=[one.sampling for one in prompts],
            detached=all(one.is_chat for one in prompts),
            batch=batch,
            **how,
        )


class Conversation:
    """Messages in turn; what was read of them is not read again where the template allows it."""

    def __init__(self, writer: Writer, settings: Mapping[str, Any], system: str | None) -> None:
        """Begin one."""
        self._writer = writer
        self._settings = settings
        self._messages: list[dict[str, str]] = [] if system is None else [{"role": "system", "content": system}]
        self._kept: Prefix | None = None

    def check(self) -> None:
        """Refuse what no turn could do, before the model is loaded.

        Raises:
            ConfigError: The bundle has no chat template, or a setting is not allowed.
            UnsupportedError: There is no memory for a turn.
        """
        hello = [*self._messages, {"role": "user", "content": "?"}]
        prompt = self._writer.prompt({"messages": hello}, self._settings, where="The conversation")
        self._writer.check_room([prompt], 1)

    def say(self, content: str) -> Stream:
        """Say something; the answer is to be taken from the stream, which is then given to `heard`.

        Raises:
            ConfigError: The conversation is longer than the context.
        """
        self._messages.append({"role": "user", "content": content})
        prompt = self._writer.prompt({"messages": self._messages}, self._settings, where="The conversation")
        kept = self._kept if self._kept is not None and self._kept.begins(prompt.tokens) else None
        return self._writer.begin([prompt], keep=True, prefix=kept)

    def heard(self, stream: Stream) -> None:
        """Take the answer into the conversation."""
        self._messages.append({"role": "assistant", "content": stream.results()[0].text})
        self._kept = stream.kept


def answer_json(prompt: PromptLine, result: Generated, text: BundleText) -> dict[str, Any]:
    """An answer as plain JSON data."""
    data: dict[str, Any] = {
        "id": prompt.id,
        "text": result.text,
        "reason": result.reason,
        "prompt_tokens": result.prompt_tokens,
        "new_tokens": len(result.tokens),
        "seed": result.seed if prompt.sampling.temperature > 0 else None,
        "tokens": result.ids,
    }
    if prompt.sampling.logprobs is not None:
        data["logprobs"] = [one.logprob for one in result.tokens]
        data["top"] = [[[number, value] for number, value in one.top] for one in result.tokens]
    return data


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Lines of JSON, each an object: of a file, or of stdin where the path is "-".

    Raises:
        ConfigError: It cannot be read, is no UTF-8, or a line is no object; the message names the line.
    """
    found = []
    for number, line in enumerate(_text_of(path).split("\n"), 1):
        if not line.strip():
            continue
        where = f"Line {number} of {_name(path)}"
        try:
            data = strict_json(line, limit=LARGEST_INPUT, longest=LARGEST_INPUT)
        except ValueError as error:
            raise ConfigError(f'{where} is no JSON ({error}); give lines such as {{"prompt": "…"}}.') from None
        if not isinstance(data, dict):
            raise ConfigError(f'{where} is no JSON object; give lines such as {{"prompt": "…"}}.')
        found.append(data)
    if not found:
        raise ConfigError(f'{_name(path)} has no line; give at least one, such as {{"prompt": "…"}}.')
    return found


def read_stdin() -> str:
    """All of stdin.

    Raises:
        ConfigError: It is no UTF-8, or too long.
    """
    return _text_of(Path("-"))


def stdin_lines(asking: Callable[[], None]) -> Iterator[str]:
    """Lines of stdin as they come, without their ends; empty ones are passed over.

    Args:
        asking: Is called before each is waited for.

    Raises:
        ConfigError: One is no UTF-8.
    """
    while True:
        asking()
        line = sys.stdin.buffer.readline(LARGEST_INPUT)
        if not line:
            return
        if text := _decoded(line, "stdin").strip("\r\n"):
            yield text


def _text_of(path: Path) -> str:
    if str(path) == "-":
        content = sys.stdin.buffer.read(LARGEST_INPUT + 1)
    else:
        try:
            content = read_regular(path, limit=LARGEST_INPUT + 1)
        except (OSError, ValueError) as error:
            said = getattr(error, "strerror", None) or error
            raise ConfigError(f"'{path}' cannot be read ({said}); give a file of JSON lines.") from None
    if len(content) > LARGEST_INPUT:
        raise ConfigError(f"{_name(path)} has more than {LARGEST_INPUT} bytes; give less at once.")
    return _decoded(content, _name(path))


def _decoded(content: bytes, where: str) -> str:
    try:
        return content.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{where} is no UTF-8: the byte {content[error.start]:#04x} at {error.start} begins no character; convert "
            "it, for example by iconv -t UTF-8."
        ) from None


def _name(path: Path) -> str:
    return "stdin" if str(path) == "-" else f"'{path}'"


def _are_numbers(value: object) -> bool:
    return isinstance(value, list) and all(type(one) is int for one in value)


def _has_system(messages: Sequence[Mapping[str, Any]]) -> bool:
    return bool(messages[0]["role"] == "system")
