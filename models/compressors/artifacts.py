"""Artifacts and the weights that they were made for: the one door through which methods get their tensors."""

from collections.abc import Sequence

from trt_compress.methods import CompressorSpec


def for_weights(specs: Sequence[CompressorSpec], *, source: str, sha256: str) -> tuple[CompressorSpec, ...]:
    """The same with their artifacts read, each compared with the weights of the model.

    Args:
        specs: Methods; what has been read already is not read again.
        source: The weights, for messages.
        sha256: Their hash.

    Raises:
        ConfigError: an artifact cannot be read, is not as it was made, or was made for something else.
    """
    found = []
    for spec in specs:
        read, cards = spec.read()
        for option, card in cards.items():
            card.require_weights(str(spec.config.artifacts[option]), source=source, sha256=sha256)
        found.append(read)
    return tuple(found)
