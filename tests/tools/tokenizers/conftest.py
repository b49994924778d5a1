"""The commands of this folder load neither torch nor ONNX; what they are typed into need not either."""

from collections.abc import Iterator

import pytest

from tests.typed_commands import LIGHT, Typed


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Typed]:
    """A command line that has loaded what every command loads, and the library tokenizers."""
    with Typed(tmp_path_factory.mktemp("typed"), loaded=(*LIGHT, "tokenizers")) as typed:
        yield typed
