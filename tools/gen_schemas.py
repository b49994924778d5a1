"""JSON schemas of the documents, made from the records that define them: `python -m trt_compress.tools.gen_schemas`.

They are no part of the package, as the records are what holds: make them where another program needs them. A field may
say more than its type does by `metadata["schema"]`; what it means stands under `Attributes:` of its class.
"""

import argparse
import dataclasses
import inspect
import json
import re
import sys
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from trt_compress.errors import TrtCompressError
from trt_compress.files import write_whole
from trt_compress.format.manifest import Manifest
from trt_compress.format.record import Record
from trt_compress.paths import check_new_folder
from trt_compress.runtime.stream.result import StreamResult
from trt_compress.tools.console import print_json, say_error
from trt_compress.tools.report.record import Report

DOCUMENTS: Mapping[str, type[Record]] = {"manifest": Manifest, "stream-result": StreamResult, "report": Report}
"""The documents that others may want to read, by name."""

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_ALWAYS = ("schema_version", "document")  # what a document is known by
_NAMES = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}
_ENTRY = re.compile(r"^    (?P<names>\w+(?:, \w+)*): (?P<text>.*(?:\n {8}.*)*)", re.MULTILINE)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the schemas into a folder, or one of them to the terminal."""
    parser = argparse.ArgumentParser(prog="python -m trt_compress.tools.gen_schemas", description="JSON schemas.")
    parser.add_argument("document", nargs="?", choices=[*DOCUMENTS], help="print this one (default: write all)")
    parser.add_argument("-o", "--output", type=Path, default=Path("schemas"), help="the folder (default: schemas)")
    options = parser.parse_args(arguments)
    if options.document is not None:
        print_json(schema_of(options.document))
        return 0
    try:
        check_new_folder(options.output, "--output")
        options.output.mkdir(parents=True, exist_ok=True)
        for name in DOCUMENTS:
            write_whole(options.output / f"{name}-1.schema.json", _text(name).encode())
    except TrtCompressError as error:
        say_error(error.message, error.hint)
        return 2
    return 0


def schema_of(document: str) -> dict[str, Any]:
    """The JSON schema of a document: of version 1, with unknown fields allowed at every level."""
    root = DOCUMENTS[document]
    shared: dict[type[Record], Any] = {}
    top = _object(root, shared)
    head = {"$schema": _DIALECT, "$id": f"urn:trt-compress:{document}:1", "title": f"trt-compress {document}"}
    return {**head, **top, "$defs": dict(sorted((_name(record), schema) for record, schema in shared.items()))}


def _text(document: str) -> str:
    return json.dumps(schema_of(document), indent=2, ensure_ascii=False) + "\n"


def _name(record: type[Any]) -> str:
    """Its name among the parts: `manifest.Site`, as two modules may have records of one name."""
    return f"{record.__module__.rpartition('.')[2]}.{record.__name__}"


def _object(record: type[Any], shared: dict[type[Record], Any]) -> dict[str, Any]:
    """The schema of one record; those that it holds are put into `shared`."""
    hints, said = get_type_hints(record), _descriptions(record)
    items = [item for item in dataclasses.fields(record) if item.name != "extra"]
    names = {item.name: str(item.metadata.get("json", item.name)) for item in items}
    properties = {}
    for item in items:
        told = {"description": said[item.name]} if item.name in said else {}
        properties[names[item.name]] = {**_value(hints[item.name], shared), **item.metadata.get("schema", {}), **told}
    missing = dataclasses.MISSING
    return {
        "description": " ".join(inspect.cleandoc(record.__doc__ or "").split("\n\n")[0].split()),
        "type": "object",
        "required": [
            names[item.name]
            for item in items
            if item.default is item.default_factory is missing or item.name in _ALWAYS
        ],
        "properties": properties,
        "additionalProperties": True,
    }


def _value(hint: Any, shared: dict[type[Record], Any]) -> dict[str, Any]:
    origin, arms = get_origin(hint), get_args(hint)
    if hint is Any:
        return {}
    if origin is Literal:
        return {"enum": [*arms]}
    if origin in (Union, types.UnionType):
        simple = [_NAMES[arm] for arm in arms if arm in _NAMES]
        other = [_value(arm, shared) for arm in arms if arm not in _NAMES]
        if not other:
            return {"type": simple}
        return {"anyOf": [*other, *({"type": name} for name in simple)]}
    if origin is tuple:
        return {"type": "array", "items": _value(arms[0], shared)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _value(arms[1], shared)}
    if isinstance(hint, type) and issubclass(hint, Record):
        if hint not in shared:
            shared[hint] = {}  # before what it holds, which may be of its own kind
            shared[hint] = _object(hint, shared)
        return {"$ref": f"#/$defs/{_name(hint)}"}
    return {"type": _NAMES[hint]}


def _descriptions(record: type[Any]) -> dict[str, str]:
    """What the docstrings of a record and of those that it builds on say of its fields."""
    found: dict[str, str] = {}
    for each in reversed(record.__mro__):
        _, _, entries = inspect.cleandoc(each.__doc__ or "").partition("Attributes:\n")
        for entry in _ENTRY.finditer(entries):
            text = " ".join(entry["text"].split())
            found |= {name: text for name in entry["names"].split(", ")}
    return found


if __name__ == "__main__":
    sys.exit(main())
