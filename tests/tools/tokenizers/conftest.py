"""Tokenizer commands are typed into as little as they need: the library tokenizers, and torch where tables are made."""

from collections.abc import Iterator

import pytest

from tests.typed_commands import LIGHT, Typed

_WITH_TORCH = (
    "tokenizers",
    "safetensors.torch",
    "trt_compress.models.language.open",
    "trt_compress.models.text.transplant",
    "trt_compress.tools.tokenizers.transplant",
)


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Typed]:
    """A command line that has loaded what every command loads, and the library tokenizers."""
    with Typed(tmp_path_factory.mktemp("typed"), loaded=(*LIGHT, "tokenizers")) as typed:
        yield typed


@pytest.fixture(scope="session")
def tokenizer_commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Typed]:
    """The same with torch, for what makes tables of a model."""
    with Typed(tmp_path_factory.mktemp("typed-torch"), loaded=(*LIGHT, *_WITH_TORCH)) as typed:
        yield typed
