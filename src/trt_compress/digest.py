"""The digest of a bundle, as a user requires it."""

import re
from collections.abc import Collection

from trt_compress.errors import ConfigError
from trt_compress.foreign import shown


def as_digests(required: str | Collection[str] | None) -> tuple[str, ...]:
    """What `require_digest` may be, as digests in small letters; nothing is read for it.

    Raises:
        ConfigError: Something is not the 64 hexadecimal digits of a SHA-256.
    """
    given: Collection[object] = (required,) if isinstance(required, str) else () if required is None else required
    for digest in given:
        if not isinstance(digest, str) or not re.fullmatch("[0-9a-fA-F]{64}", digest):
            raise ConfigError(
                f"'{shown(str(digest))[:80]}' is no digest of a bundle; give all 64 hexadecimal digits, as "
                "'trt-compress inspect BUNDLE' shows them where the bundle was made."
            )
    return tuple(str(digest).lower() for digest in given)
