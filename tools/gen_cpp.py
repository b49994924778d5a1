"""What the C++ runtime knows of the manifest's fields, made from the records: `python -m trt_compress.tools.gen_cpp`.

The file is committed, so that the C++ builds without Python; a test compares it with the records. A kind is written in
a few letters: `s` a string, `i` an integer, `f` a number, `b` true or false, `*` anything, `?K` K or null, `[K]` a
list, `{K}` an object of any names, `<KL>` one of several, `@Name;` a record.
"""

import argparse
import dataclasses
import json
import sys
import types
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from trt_compress.files import write_whole
from trt_compress.format.graphs import COMPARISONS, DTYPES, ROLES, STATE_KINDS
from trt_compress.format.manifest import Manifest
from trt_compress.format.procedure import FEEDS, MOMENTS, ROWS
from trt_compress.format.record import Record
from trt_compress.tools.console import say_error

TARGET = Path("runtime/cpp/src/manifest_fields.inc")
_PLAIN = {str: "s", int: "i", float: "f", bool: "b"}
_WORDS: Mapping[str, Collection[str]] = {
    "DTYPES": sorted(DTYPES),
    "ROLES": tuple(ROLES),
    "STATE_KINDS": tuple(STATE_KINDS),
    "COMPARISONS": tuple(COMPARISONS),
    "FEEDS": FEEDS,
    "ROWS": ROWS,
    "MOMENTS": MOMENTS,
}


def text() -> str:
    """The content of the file."""
    order: dict[type[Any], list[str]] = {}
    _collect(Manifest, order)
    lines = ["// Made by `python -m trt_compress.tools.gen_cpp` from the records in src/trt_compress/format.", ""]
    for record, fields in order.items():
        lines += [f"constexpr Field k{record.__name__}Fields[] = {{", *fields, "};"]
    lines += ["constexpr Type kTYPES[] = {"]
    lines += [f'    {{"{each.__name__}", k{each.__name__}Fields, {len(fields)}}},' for each, fields in order.items()]
    lines += ["};"]
    for name, words in _WORDS.items():
        quoted = [f'"{word}"' for word in words]
        lines += [f"constexpr char const* k{name}[] = {{", *(f"    {word}," for word in quoted), "};"]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the file, or say whether it is up to date."""
    parser = argparse.ArgumentParser(prog="python -m trt_compress.tools.gen_cpp", description="Fields of the manifest.")
    parser.add_argument("--check", action="store_true", help="write nothing; end with 3 if it is not up to date")
    options = parser.parse_args(arguments)
    if options.check:
        if TARGET.read_text(encoding="utf-8") != text():
            say_error(f"{TARGET} is not up to date; run python -m trt_compress.tools.gen_cpp.")
            return 3
        return 0
    write_whole(TARGET, text())
    return 0


def _collect(record: type[Any], order: dict[type[Any], list[str]]) -> None:
    """The fields of a record behind those of the records that it holds."""
    if record in order:
        return
    hints = get_type_hints(record)
    items = [item for item in dataclasses.fields(record) if item.name != "extra"]
    fields = []
    for item in items:
        kind = _kind(hints[item.name], order)
        name = item.metadata.get("json", item.name)
        has_default = item.default is not dataclasses.MISSING
        made: Any = item.default if has_default else None
        if item.default_factory is not dataclasses.MISSING:
            made = item.default_factory()
        required = not has_default and item.default_factory is dataclasses.MISSING
        fallback = "nullptr" if required else f'R"({json.dumps(made, sort_keys=True)})"'
        sparse = "true" if item.metadata.get("sparse") and has_default else "false"
        fields.append(f'    {{"{name}", "{kind}", {fallback}, {sparse}}},')
    order[record] = fields


def _kind(hint: Any, order: dict[type[Any], list[str]]) -> str:
    origin, arms = get_origin(hint), get_args(hint)
    if hint is Any:
        return "*"
    if origin in (Union, types.UnionType):
        concrete = [_kind(arm, order) for arm in arms if arm is not type(None)]
        one = concrete[0] if len(concrete) == 1 else f"<{''.join(concrete)}>"
        return f"?{one}" if type(None) in arms else one
    if origin is tuple:
        return f"[{_kind(arms[0], order)}]"
    if origin is dict:
        return f"{{{_kind(arms[1], order)}}}"
    if isinstance(hint, type) and issubclass(hint, Record):
        _collect(hint, order)
        return f"@{hint.__name__};"
    return _PLAIN[hint]


if __name__ == "__main__":
    sys.exit(main())
