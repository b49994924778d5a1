"""Text of a result as it stands on a page: as HTML, with control and direction characters shown as everywhere."""

import html

from trt_compress.foreign import shown_lines


def escape(text: str) -> str:
    """Text as HTML, in an element or in an attribute's quotes."""
    return html.escape(shown_lines(text))
