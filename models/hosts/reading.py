"""How a model that reads tokens one after the other is cut into runs, as the user says it; without torch."""

from dataclasses import dataclass

from trt_compress.errors import ConfigError, UnsupportedError
from trt_compress.suggest import not_known

CACHE_DTYPES = {"fp32": "float32", "fp16": "float16"}
"""Dtypes of a cache, as a user writes them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadingOptions:
    """What a user may say of it.

    Attributes:
        context: Tokens of the longest sequence; None: as many as the model was made for, up to 4096.
        chunk: Tokens that one run reads at most; None: 256.
        cache_dtype: fp32 or fp16, of keys and values in the caches; None: fp16 in a graph of fp16, else fp32.
    """

    context: int | None = None
    chunk: int | None = None
    cache_dtype: str | None = None

    def __post_init__(self) -> None:
        for name in ("context", "chunk"):
            value = getattr(self, name)
            if value is not None and not 1 <= value < 2**31:
                raise ConfigError(f"{name} {value} is out of range; give a number of tokens from 1 on.")
        if self.cache_dtype is not None and self.cache_dtype not in CACHE_DTYPES:
            raise ConfigError(not_known("cache_dtype", self.cache_dtype, CACHE_DTYPES))

    @property
    def said(self) -> str | None:
        """The first option that is given, as the command line has it; None: none is."""
        given = {"--context": self.context, "--chunk": self.chunk, "--cache-dtype": self.cache_dtype}
        return next((f"{flag} {value}" for flag, value in given.items() if value is not None), None)

    def refuse(self, model: str) -> None:
        """Refuse what is said of a model that reads no tokens, or whose graphs are as they are.

        Raises:
            UnsupportedError: Something is said.
        """
        if self.said is not None:
            raise UnsupportedError(
                f"{self.said}: {model} is no language model that can be cut into runs; leave the option out."
            )
