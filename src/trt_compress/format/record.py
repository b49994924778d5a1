"""Typed records and plain JSON, both ways, keeping the fields that this version does not know."""

import dataclasses
import json
import types
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from trt_compress.errors import BundleError

RecordType = TypeVar("RecordType", bound="Record")

VERSION = {"schema": {"pattern": r"^1\.[0-9]+$"}}
"""Metadata of a field that holds a schema version."""

_WORDS = {str: "a string", int: "an integer", float: "a number", bool: "true or false", type(None): "null"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """Base of every JSON object with known fields.

    A field's JSON name is its Python name, or `metadata["json"]`. A field without a default is required. One with
    `metadata["sparse"]` is written only where it differs from its default. `metadata["schema"]` is what the document's
    JSON schema says of a field beside its type.

    Attributes:
        extra: Fields of the JSON object that this version does not know, written back unchanged.
    """

    extra: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls: type[RecordType], data: object, where: str) -> RecordType:
        """Read a record from parsed JSON; `where` is the place named in messages.

        Raises:
            BundleError: A required field is missing, or a value has the wrong type.
        """
        if not isinstance(data, dict):
            raise _wrong(where, "an object", data)
        kind: Any = cls  # mypy takes a class of records for a record, which has no hash
        known, hints = _fields(kind), _hints(kind)
        values: dict[str, Any] = {
            name: _decode(hints[item.name], data[name], f"{where}.{name}")
            for name, item in known.items()
            if name in data
        }
        for name, item in known.items():
            if name not in data and item.default is item.default_factory is dataclasses.MISSING:
                raise BundleError(f"{where} has no field '{name}', which is required.")
        unknown = {name: value for name, value in data.items() if name not in known}
        return cls(**{known[name].name: value for name, value in values.items()}, extra=unknown)

    def to_json(self, *, with_extra: bool = True) -> dict[str, Any]:
        """Write the record as plain JSON data, with or without the fields that this version does not know."""
        kind: Any = type(self)
        known = {
            name: _encode(getattr(self, item.name), with_extra)
            for name, item in _fields(kind).items()
            if not (item.metadata.get("sparse") and getattr(self, item.name) == item.default)
        }
        return {**known, **self.extra} if with_extra else known


def one_of(*values: str | None) -> dict[str, Any]:
    """Metadata of a field that holds one of these, for the document's schema; the reader checks it by itself."""
    return {"schema": {"enum": [*values]}}


@cache
def _hints(cls: type[Any]) -> dict[str, Any]:
    return get_type_hints(cls)


@cache
def _fields(cls: type[Any]) -> dict[str, "dataclasses.Field[Any]"]:
    return {item.metadata.get("json", item.name): item for item in dataclasses.fields(cls) if item.name != "extra"}


def _wrong(where: str, expected: str, value: object) -> BundleError:
    return BundleError(f"{where} is {json.dumps(value)[:60]}; it must be {expected}.")


def _describe(hint: Any) -> str:
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(_describe(arm) for arm in get_args(hint))
    if get_origin(hint) is tuple:
        return "a list"
    return _WORDS.get(hint, "an object")


def _decode(hint: Any, value: Any, where: str) -> Any:
    if hint is Any:
        return value
    if isinstance(hint, type) and issubclass(hint, Record):
        return hint.from_json(value, where)
    origin, arms = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _decode_union(arms, value, where)
    if origin is tuple and isinstance(value, list):
        if set(map(type, value)) <= _plain_types(arms[0]):  # a long column of plain values, at once
            return tuple(value)
        return tuple(_decode(arms[0], item, f"{where}[{index}]") for index, item in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {name: _decode(arms[1], item, f"{where}['{name}']") for name, item in value.items()}
    if hint in _WORDS and (type(value) is hint or (hint is float and type(value) is int)):
        return value
    raise _wrong(where, _describe(hint), value)


def _plain_types(hint: Any) -> set[type]:
    """The exact types of JSON values that need no decoding for this hint; empty if it holds records or containers."""
    arms = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    return set(arms) if all(arm in _WORDS for arm in arms) else set()


def _decode_union(arms: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in arms:
        return None
    concrete = [arm for arm in arms if arm is not type(None)]
    if len(concrete) == 1:
        return _decode(concrete[0], value, where)
    for arm in concrete:
        if type(value) is (get_origin(arm) or arm):
            return _decode(arm, value, where)
    raise _wrong(where, " or ".join(map(_describe, arms)), value)


def _encode(value: Any, with_extra: bool) -> Any:
    if isinstance(value, Record):
        return value.to_json(with_extra=with_extra)
    if isinstance(value, tuple | list):
        return [_encode(item, with_extra) for item in value]
    if isinstance(value, dict):
        return {name: _encode(item, with_extra) for name, item in value.items()}
    return value
