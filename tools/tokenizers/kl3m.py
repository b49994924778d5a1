"""What KL3M's tokenizers are trained with beside texts: special tokens, custom tokens, and the padding of a vocabulary.

Source: alea-institute/kl3m-tokenizers c0ce8be (kl3m_tokenizers/tokenizers/kl3m_004/train_tokenizer.py and
train_char_tokenizer.py).
Differs: the words of four lists of another project (laws, reporters, journals, abbreviations of case names), which that
code fetches when it trains, are not among the custom tokens; the alphabet of the character variant has all 256 bytes.
"""

import string
from collections.abc import Container, Iterator
from itertools import count

SPECIAL = (
    "<|start|>",
    "<|end|>",
    "<|pad|>",
    "<|unk|>",
    "<|sep|>",
    "<|cls|>",
    "<|mask|>",
    "<|system|>",
    "</|system|>",
    "<|user|>",
    "</|user|>",
    "<|instruction|>",
    "</|instruction|>",
)
"""In the order of their numbers."""

PAD = "<|pad|>"
MISSING_LISTS = (
    "KL3M's own vocabularies also have the words of four lists (laws, reporters, journals, abbreviations of case "
    "names) that its code fetches from another project when it trains; they are not here, and not in this vocabulary."
)

_TAGS = (
    *("html", "head", "body", "div", "span", "img", "table", "thead", "tbody", "tfoot", "tr", "td", "ul", "ol", "li"),
    *("h1", "h2", "h3", "h4", "iframe", "script", "style", "svg", "input", "button", "form", "label", "select"),
    *("option", "textarea", "meta", "link", "title", "pre", "code", "row", "column"),
)
_ATTRIBUTES = ("href", "src", "alt", "title", "class", "id")
_ROMAN = ("ii", "iii", "iv", "v", "vi", "vii", "viii", "ix")
_RUN = range(2, 9)


def custom_groups(*, lowercase: bool = False) -> dict[str, list[str]]:
    """The custom tokens by group, each sorted, without those of one character.

    Args:
        lowercase: As for a tokenizer that knows no capitals.
    """
    cases = (str.lower,) if lowercase else (str.lower, str.upper)
    markdown = [char * times for char in ".-=_*~" for times in _RUN]
    markdown += ["#" * times for times in range(2, 7)]
    markdown += ["```", "![", "http://", "https://", "www.", "ftp://", "mailto:", "tel:", "://"]
    html = [f"<{case(tag)}" for tag in _TAGS for case in cases] + [f"</{tag}>" for tag in _TAGS]
    html += [f" {case(name)}=" for name in _ATTRIBUTES for case in cases]
    citations = [f"({case(letter)})" for letter in string.ascii_lowercase for case in cases]
    citations += [f"({case(roman)})" for roman in _ROMAN for case in cases]
    citations += [f"({number})" for number in range(1, 100)] + [str(number) for number in range(10, 1000)]
    groups = {
        "whitespace": [char * times for char in " \t\r\n" for times in _RUN] + ["\r\n", "\t "],
        "markdown": markdown,
        "html": html,
        "json": ['{"', '"}', '["', '"]', '":', '","', '":"', "null", "true", "false"],
        "xml": ["<!--", "-->", "<![CDATA[", "]]>", "<?xml", "<xml", "</xml>"],
        "years": [str(year) for year in range(1776, 2050)],
        "citations": citations,
    }
    if lowercase:
        groups = {name: [token.lower() for token in tokens] for name, tokens in groups.items()}
    return {name: sorted({token for token in tokens if len(token) > 1}) for name, tokens in groups.items()}


def custom_tokens(*, lowercase: bool = False) -> list[str]:
    """All custom tokens, sorted."""
    return sorted({token for tokens in custom_groups(lowercase=lowercase).values() for token in tokens})


def padding_tokens(size: int, vocabulary: Container[str]) -> list[str]:
    """Runs of spaces and of ends of lines that bring a vocabulary to the next power of two; one that is one is doubled.

    Args:
        size: How many tokens it has.
        vocabulary: Those that it has, as texts; none is given twice.
    """
    wanted = (1 << size.bit_length()) - size
    tokens: list[str] = []
    for token in _runs():
        if token not in vocabulary:
            tokens.append(token)
        if len(tokens) == wanted:
            break
    return tokens


def _runs() -> Iterator[str]:
    for length in count(2):
        yield " " * length
        yield "\n" * length
