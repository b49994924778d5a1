"""Which files a name or a pattern means, and in which order."""

import glob
import os
import re
from pathlib import Path


def matching_files(pattern: str) -> list[str]:
    """Files that a name or a pattern means, in natural order; none if there is none.

    What exists by exactly that name is taken before the pattern, the folders on the way too: `shot[1].png` and
    `day[2]/*.png` are found. Brackets that match nothing as a pattern are taken as they stand (`shot[1]*.png`).
    """
    if os.path.isfile(pattern):
        return [pattern]
    parts = list(Path(pattern).parts)
    folder = Path()
    while len(parts) > 1 and (folder / parts[0]).is_dir():
        folder /= parts.pop(0)
    start = glob.escape(str(folder))
    rest = os.path.join(*parts) if parts else ""
    for candidate in (rest, rest.replace("[", "[[]")):
        found = glob.glob(os.path.join(start, candidate) if folder.parts else candidate, recursive=True)
        if files := [file for file in found if not os.path.isdir(file)]:
            return sorted(files, key=natural_order)
    return []


def is_pattern(text: str) -> bool:
    """Whether a text is a pattern, and no file by that name exists."""
    return glob.has_magic(text) and not os.path.exists(text)


def nothing_matches(pattern: str, example: str) -> str:
    """Say that there is no such file, and what is there instead.

    Args:
        pattern: What was given.
        example: Of a good pattern.
    """
    stem, suffix = os.path.splitext(pattern)
    if matching_files(other := stem + suffix.swapcase()):
        return f"Nothing matches '{pattern}', and '{other}' does; capitals count, so give that."
    if matching_files(star := re.sub(r"%0?\d*d", "*", pattern)):
        return f"Nothing matches '{pattern}'; numbers are written as a star, so give '{star}', in quotes."
    if not glob.has_magic(pattern):
        return f"'{pattern}' does not exist; give a file, or a pattern such as '{example}', in quotes."
    return f"Nothing matches '{pattern}'; give a pattern such as '{example}', in quotes."


def natural_order(path: str) -> tuple[list[tuple[int, str]], str]:
    """Sort key that takes runs of digits as numbers: `2.png` before `10.png`."""
    parts = re.split(r"(\d+)", str(Path(path)))
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts], path
