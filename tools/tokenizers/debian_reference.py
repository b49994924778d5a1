"""Parallel texts in ten languages: `python -m trt_compress.tools.tokenizers.debian_reference -o DIR`.

The manual Debian Reference is there in ten languages, a package each. The packages are downloaded by apt and unpacked;
nothing is installed. Sections have the same identifiers in all languages: where a section has as many paragraphs in
each, these are taken one for one; a paragraph that some language has as it stands in English is left out everywhere, as
it says nothing of languages. DIR gets a file for each language, `en.txt` and so on, with the same number of lines.

The texts are those of Osamu Aoki and the translators, GPL-2 or later; none of them is part of this package.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path

from trt_compress.children import TimeoutExpired, find_program, run
from trt_compress.errors import ConfigError, TrtCompressError, UnsupportedError
from trt_compress.files import write_whole
from trt_compress.paths import check_new_folder
from trt_compress.strays import temporary_folder
from trt_compress.tools.console import print_table, progress, say_error

LANGUAGES = ("en", "de", "es", "fr", "id", "it", "ja", "pt", "zh-cn", "zh-tw")
_SHORTEST = 20  # characters of a paragraph; shorter ones are mostly commands
_WITHIN_S = 600.0


class _Paragraphs(HTMLParser):
    """The paragraphs of a page by the section that they stand in."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.sections: dict[str, list[str]] = {}
        self._section = ""
        self._depth = 0
        self._words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        name = dict(attrs).get("id")
        if tag == "a" and name and not self._depth:
            self._section = name
        if tag == "p":
            self._depth += 1
            self._words = []

    def handle_endtag(self, tag: str) -> None:
        if tag == "p" and self._depth:
            self._depth -= 1
            text = " ".join("".join(self._words).split())
            self.sections.setdefault(self._section, []).append(text)

    def handle_data(self, data: str) -> None:
        if self._depth:
            self._words.append(data)


def paragraphs_of(page: str) -> dict[str, list[str]]:
    """The paragraphs of a page of HTML, white space made one space, by the identifier of their section."""
    parser = _Paragraphs()
    parser.feed(page)
    parser.close()
    return parser.sections


def align(sections: Mapping[str, Mapping[str, Sequence[str]]], reference: str = "en") -> dict[str, list[str]]:
    """The paragraphs that all languages have, as lists of the same length.

    Args:
        sections: Of each language the paragraphs of each section.
        reference: The language whose order is kept, and which others may not repeat.

    Returns:
        Of each language its paragraphs: those of sections with as many in each, if all are long enough and none is that
        of the reference.
    """
    found: dict[str, list[str]] = {language: [] for language in sections}
    for name, own in sections[reference].items():
        sides = {language: parts.get(name, ()) for language, parts in sections.items()}
        if any(len(side) != len(own) for side in sides.values()):
            continue
        for place, text in enumerate(own):
            others = [side[place] for language, side in sides.items() if language != reference]
            if len(text) >= _SHORTEST and all(other and other != text for other in others):
                for language, side in sides.items():
                    found[language].append(side[place])
    return found


def fetch(folder: Path, languages: Sequence[str] = LANGUAGES) -> dict[str, list[str]]:
    """Download the manuals and align them.

    Args:
        folder: Where they are unpacked.
        languages: Which; English is among them.

    Raises:
        UnsupportedError: apt or dpkg-deb is not there, or a package cannot be downloaded; the message has apt's reason.
    """
    sections: dict[str, dict[str, list[str]]] = {}
    for language in languages:
        package = unpacked_package(f"debian-reference-{language}", folder)
        pages = sorted((package / "usr/share/debian-reference").glob(f"*.{language}.html"))
        found: dict[str, list[str]] = {}
        for page in pages:
            for name, texts in paragraphs_of(page.read_text(encoding="utf-8")).items():
                found.setdefault(f"{page.name.partition('.')[0]}#{name}", []).extend(texts)
        if not found:
            raise UnsupportedError(f"The package debian-reference-{language} holds no pages; its form has changed.")
        sections[language] = found
    return align(sections)


def unpacked_package(name: str, folder: Path) -> Path:
    """Download a Debian package and unpack it; nothing is installed.

    Returns:
        The folder that holds its files.

    Raises:
        UnsupportedError: As `fetch`.
    """
    for program in ("apt-get", "dpkg-deb"):
        if find_program(program) is None:
            raise UnsupportedError(f"'{program}' is not on the path, and Debian's packages are fetched with it.")
    place = folder / name
    place.mkdir(parents=True)
    try:
        done = run(["apt-get", "download", "-qq", name], folder=place, timeout=_WITHIN_S)
    except TimeoutExpired:
        raise UnsupportedError(
            f"The package {name} was not there within {_WITHIN_S:.0f} s; see to the network."
        ) from None
    files = list(place.glob("*.deb"))
    if done.returncode or not files:
        said = (done.stderr or b"").decode(errors="replace").strip().splitlines()
        raise UnsupportedError(
            f"The package {name} cannot be downloaded ({(said or ['apt said nothing'])[-1][:200]}); run "
            "'apt-get update', or see to the network."
        )
    unpacked = run(["dpkg-deb", "-x", files[0], place / "files"], folder=place, timeout=_WITHIN_S)
    if unpacked.returncode:
        raise UnsupportedError(f"The package {name} cannot be unpacked: {(unpacked.stderr or b'').decode()[:200]}")
    return place / "files"


def main(arguments: Sequence[str] | None = None) -> int:
    """Fetch, align and write; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", "-o", type=Path, required=True, metavar="DIR", help="gets a file for each language")
    given = parser.parse_args(arguments)
    try:
        check_new_folder(given.output, "--output")
        with progress("Parallel texts") as step, temporary_folder("manuals") as folder:
            step("downloading")
            texts = fetch(folder)
        if not texts["en"]:
            raise ConfigError("The manuals have no paragraphs in common; their form has changed.")
        given.output.mkdir(parents=True, exist_ok=True)
        for language, lines in texts.items():
            write_whole(given.output / f"{language}.txt", "\n".join(lines) + "\n")
    except TrtCompressError as error:
        say_error(error.message, error.hint)
        return error.exit_code
    rows = [(language, len(lines), sum(map(len, lines))) for language, lines in texts.items()]
    print_table("Parallel texts", ("language", "lines", "characters"), rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
