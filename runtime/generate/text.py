"""What a bundle says of its text: tokenizer, chat template, tokens that end an answer, and how tokens are chosen."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from trt_compress.chat_template import Renderer
from trt_compress.errors import BundleError, ConfigError, UnsupportedError
from trt_compress.format.bundle import Bundle
from trt_compress.format.manifest import Manifest
from trt_compress.runtime.generate.sampling import Sampling
from trt_compress.runtime.generate.tokenizer import Tokenizer
from trt_compress.runtime.state_memory import check_count

_CHOOSING = ("temperature", "top_k", "top_p", "min_p")


class BundleText:
    """The text side of a bundle, read and checked; the model itself is not loaded.

    Attributes:
        bundle: The bundle.
        tokenizer: None: it has none, and takes numbers of tokens only.
        template: The chat template, in Jinja; None: it has none.
        stop_ids: Tokens that end an answer.
        sampling: How tokens are chosen where nothing else is said.
        max_new: The most tokens of an answer, likewise; None: nothing says so.
        context: The most tokens of a sequence; None: nothing bounds them but memory.
        vocabulary: How many tokens the model scores.
    """

    def __init__(self, bundle: Bundle, *, capacity: int | Mapping[str, int] | None = None) -> None:
        """Read it.

        Args:
            bundle: A bundle with a procedure.
            capacity: The most slots that a sequence may get, as `States` takes it.

        Raises:
            BundleError: A file is not what it should be, or the tokenizer does not fit the model.
            ConfigError: The bundle does not read tokens by a procedure.
            UnsupportedError: The library tokenizers is not installed, or the bundle reads more than text, or several
                sequences at once and no others.
        """
        manifest = bundle.manifest
        if manifest.procedure is None:
            raise ConfigError(
                f"'{bundle.path}' has no procedure by which it would read tokens, so that it writes no text; give a "
                "bundle of a language model."
            )
        if manifest.procedure.media:
            raise UnsupportedError(
                f"'{bundle.path}' reads pictures or sound before its text, which runtime.sequences does and the "
                "generator does not."
            )
        if (manifest.fixed_batch or 1) > 1:
            raise UnsupportedError(
                f"'{bundle.path}' reads {manifest.fixed_batch} sequences at once and no others, which answers of "
                "unequal length cannot do; export it with a range, --batch 1:2:4, or for one sequence."
            )
        self.bundle = bundle
        self.vocabulary = _vocabulary(bundle)
        self.context = _context(bundle, capacity)
        said = manifest.text
        self.tokenizer: Tokenizer | None = None
        self.template: str | None = None
        self.stop_ids = frozenset(said.stop if said is not None else ())
        self._special = said.special if said is not None else {}
        self._renderer: Renderer | None = None
        if said is not None:
            self.tokenizer = Tokenizer.read(bundle.read(said.tokenizer), f"'{said.tokenizer}' of '{bundle.path}'")
            self.tokenizer.check_fits(self.vocabulary, str(bundle.path))
            if said.chat_template is not None:
                self.template = _decoded(bundle, said.chat_template)
        generation = said.generation if said is not None else {}
        self.max_new: int | None = generation.get("max_new_tokens")
        self.sampling = _sampling(generation, bundle)

    def close(self) -> None:
        """End what renders the template, if it was started."""
        if self._renderer is not None:
            self._renderer.close()

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """The tokens of a text.

        Args:
            text: Special tokens that are written out in it become these.
            special: With the token that begins a text, where the model has one.

        Raises:
            ConfigError: The bundle has no tokenizer, or the text holds half of a character.
        """
        return self._known().encode(text, special=special)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens, without special ones.

        Raises:
            ConfigError: The bundle has no tokenizer.
        """
        return self._known().decode(tokens)

    def render(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """The text of a conversation, as the bundle's chat template makes it.

        Args:
            messages: `{"role": "user", "content": "…"}`, one after the other.
            add_generation_prompt: With what comes before an answer.
            variables: What else the template may use: `tools`, `documents`, ….

        Raises:
            ConfigError: The bundle has no template, the messages are none, or the template refuses them.
            BundleError: The template is at fault: it does not end, or writes without end.
        """
        check_messages(messages)
        if self.template is None:
            raise ConfigError(f"'{self.bundle.path}' has no chat template; give the prompt as the model wants it.")
        if self._renderer is None:
            self._renderer = Renderer(self.template, f"The chat template of '{self.bundle.path}'")
        given = {"tools": None, "documents": None, **self._special, **variables}
        given |= {"messages": list(messages), "add_generation_prompt": add_generation_prompt}
        return self._renderer.render(given)

    def chat(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True, **variables: Any
    ) -> list[int]:
        """The tokens of a conversation; arguments and errors as `render`."""
        text = self.render(messages, add_generation_prompt=add_generation_prompt, **variables)
        return self.encode(text, special=False)

    def tokens(self, prompt: str | Sequence[int], *, what: str = "The prompt") -> list[int]:
        """The tokens of a prompt that the bundle can read.

        Args:
            prompt: A text, or numbers of tokens.
            what: What it is called.

        Raises:
            ConfigError: It is empty, longer than the context, or has tokens that the model does not know.
        """
        tokens = self.encode(prompt) if isinstance(prompt, str) else [int(token) for token in prompt]
        if not tokens:
            raise ConfigError(f"{what} has no token; give at least one.")
        for token in (min(tokens), max(tokens)):
            if not 0 <= token < self.vocabulary:
                raise ConfigError(f"{what} has the token {token}; the model knows 0 to {self.vocabulary - 1}.")
        if self.context is not None and len(tokens) > self.context:
            raise ConfigError(
                f"{what} has {len(tokens)} tokens, and the bundle reads up to {self.context}; shorten it, or export "
                "the bundle for a longer context."
            )
        return tokens

    def _known(self) -> Tokenizer:
        if self.tokenizer is None:
            raise ConfigError(
                f"'{self.bundle.path}' has no tokenizer; give the numbers of tokens, or export it from a model that "
                "has one."
            )
        return self.tokenizer


def check_messages(messages: object) -> None:
    """Refuse what is no conversation.

    Raises:
        ConfigError: It is none.
    """
    listed = list(messages) if isinstance(messages, Sequence) and not isinstance(messages, str) else []
    if not listed or not all(isinstance(one, Mapping) and isinstance(one.get("role"), str) for one in listed):
        raise ConfigError(
            f'{str(messages)[:60]!r} are no messages; give a list of {{"role": "user", "content": "…"}}, at least one.'
        )


def open_bundle(
    path: str | Path, *, check_hashes: bool = True, require_digest: str | Collection[str] | None = None
) -> Bundle:
    """Open a bundle to read its text side before its graphs, which are hashed when they are loaded.

    Raises:
        BundleError, ConfigError: As `Bundle.open`.
    """

    def graphs(manifest: Manifest) -> set[str]:
        return {name for graph in manifest.graphs for name in (graph.file, *graph.external_data)}

    return Bundle.open(path, check_hashes=check_hashes, require_digest=require_digest, later=graphs)


def _context(bundle: Bundle, capacity: int | Mapping[str, int] | None) -> int | None:
    """The most tokens of a sequence; capacities whose used slots are not the tokens bound nothing that is known."""
    manifest = bundle.manifest
    symbols = [one.symbol for one in manifest.capacities if one.used is None]
    limits = [manifest.lengths[symbol].max for symbol in symbols]
    if manifest.text is not None and manifest.text.context is not None:
        limits.append(manifest.text.context)
    most = min(limits, default=None)
    asked = [capacity] if isinstance(capacity, int) else []
    if isinstance(capacity, Mapping):
        asked = [count for symbol, count in capacity.items() if symbol in symbols]
    for count in asked:
        check_count("context", count)
        if most is not None and count > most:
            raise ConfigError(
                f"A context of {count} tokens is asked for, and '{bundle.path}' reads up to {most}; ask for that, or "
                "export it for a longer context."
            )
    return min([*asked, *limits], default=None)


def _decoded(bundle: Bundle, name: str) -> str:
    try:
        return bundle.read(name).decode()
    except UnicodeDecodeError:
        raise BundleError(f"'{name}' of the bundle '{bundle.path}' is no UTF-8; export it again.") from None


def _vocabulary(bundle: Bundle) -> int:
    """How many tokens the logits are of."""
    procedure = bundle.manifest.procedure
    assert procedure is not None
    graph, _, tensor = str(procedure.step.logits).partition(".")
    if procedure.step.logits is not None and procedure.step.rows != "next":
        for info in bundle.manifest.graph(graph).outputs:
            if info.name == tensor and info.shape and isinstance(info.shape[-1], int):
                return info.shape[-1]
    raise BundleError(f"The bundle '{bundle.path}' does not say of how many tokens its logits are; export it again.")


def _sampling(generation: Mapping[str, Any], bundle: Bundle) -> Sampling:
    """How transformers chooses tokens with this generation config: greedily unless it says do_sample."""
    given = {name: generation[name] for name in _CHOOSING if generation.get(name) is not None}
    if generation.get("do_sample") is not True:
        given = {"temperature": 0.0}
    elif "temperature" not in given:
        given["temperature"] = 1.0
    if generation.get("repetition_penalty") is not None:
        given["repetition_penalty"] = generation["repetition_penalty"]
    try:
        return Sampling.of(given)
    except ConfigError as error:
        raise BundleError(f"'text.generation' of the bundle '{bundle.path}' is at fault: {error.message}") from None
