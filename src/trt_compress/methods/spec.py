"""Spec strings: `tome:num_merged=13+evit:keep_ratio=0.7`, read into checked options and written again."""

import dataclasses
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from trt_compress.errors import ConfigError
from trt_compress.foreign import shown
from trt_compress.methods.artifact import ArtifactCard, ArtifactFile, read_artifact
from trt_compress.methods.config import CompressorConfig, Method
from trt_compress.methods.table import METHODS
from trt_compress.suggest import not_known


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressorSpec:
    """One compressor of a spec string: its name and its checked configuration."""

    name: str
    config: CompressorConfig

    @property
    def method(self) -> Method:
        """The method of that name."""
        return METHODS[self.name]

    def read(self) -> tuple["CompressorSpec", Mapping[str, ArtifactCard]]:
        """The same with the content of its artifacts, and their cards by option.

        Raises:
            ConfigError: One cannot be read, is not as it was made, or was made for something else.
        """
        found = {
            option: read_artifact(file, method=self.name, option=option)
            for option, file in self.config.artifacts.items()
        }
        for option, (file, card) in found.items():
            self._check_form(option, file, card)
        if not found:
            return self, {}
        config = dataclasses.replace(self.config, **{option: file for option, (file, _) in found.items()})
        return dataclasses.replace(self, config=config), {option: card for option, (_, card) in found.items()}

    def settings(self, option: str) -> dict[str, Any]:
        """The options that the artifact of one depends on, as plain JSON values."""
        options = self.config.to_json()
        return {name: options[name] for name in self.method.artifacts[option].settings}

    def _check_form(self, option: str, file: ArtifactFile, card: ArtifactCard) -> None:
        where, wanted = f"{self.name}: {option} {shown(file.path)}", self.method.artifacts[option].version
        if card.version != wanted:
            raise ConfigError(
                f"{where} has version {card.version} of its form, and {wanted} is read here; make it again with "
                "`trt-compress calibrate`."
            )
        for name, value in self.settings(option).items():
            if card.settings.get(name) != value:
                raise ConfigError(
                    f"{where} was made for {name}={shown(str(card.settings.get(name)))}, and {name}={value} is given; "
                    "give what it was made for, or make another with `trt-compress calibrate`."
                )


def parse_spec(text: str) -> tuple[CompressorSpec, ...]:
    """Read a spec string.

    Args:
        text: `name:key=value,…`, several joined by `+`; a list is written `[1,2,3]`; `none` for no compressor.

    Raises:
        ConfigError: an unknown name or key, or a value that does not fit.
    """
    if text.strip() in ("none", ""):
        return ()
    return tuple(_parse_one(part.strip()) for part in text.split("+"))


def spec_from_table(table: Mapping[str, Any]) -> CompressorSpec:
    """One compressor from a recipe's table: `name` and its options, with lists as lists."""
    options = dict(table)
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise ConfigError('recipe: a [[compressors]] table has no name; write name = "tome" or another compressor.')
    return make_spec(name, options)


def spec_string(specs: Sequence[CompressorSpec]) -> str:
    """The spec string that says the same; options with their default value are left out."""
    return "+".join(_one_string(spec) for spec in specs) or "none"


def make_spec(name: str, options: Mapping[str, Any]) -> CompressorSpec:
    """Check options (text or plain values) and make the configuration of compressor `name`."""
    if name not in METHODS:
        raise ConfigError(not_known("compressor", name, METHODS, ", or none"))
    config_class = METHODS[name].config
    hints = typing.get_type_hints(config_class)
    fields = {field.name: field for field in dataclasses.fields(config_class)}
    for key in options:
        if key not in fields:
            raise ConfigError(not_known(f"{name}: option", key, fields))
    missing = [f.name for f in fields.values() if f.default is dataclasses.MISSING and f.name not in options]
    if missing:
        raise ConfigError(f"{name}: option '{missing[0]}' is missing; write {name}:{missing[0]}=….")
    values = {key: _value(name, key, value, hints[key]) for key, value in options.items()}
    return CompressorSpec(name=name, config=config_class(**values))


def _parse_one(text: str) -> CompressorSpec:
    match = re.fullmatch(r"(?P<name>[^:=,]*)(:(?P<options>.*))?", text)
    if match is None or not match["name"]:
        raise ConfigError(f"spec '{text}' cannot be read; write name:key=value,key=[1,2], several joined by +.")
    options: dict[str, Any] = {}
    found = re.findall(r"(?:\[[^\[\]]*\]|[^,\[\]])+", match["options"] or "")
    if ",".join(found) != (match["options"] or ""):
        raise ConfigError(f"spec '{text}' cannot be read; write name:key=value,key=[1,2], several joined by +.")
    for option in found:
        key, equals, value = option.partition("=")
        if not equals or not key.strip() or not value.strip():
            raise ConfigError(f"spec '{text}': '{option}' is not key=value.")
        if key.strip() in options:
            raise ConfigError(f"spec '{text}': {key.strip()} stands twice; give it once.")
        options[key.strip()] = value.strip()
    return make_spec(match["name"].strip(), options)


def _value(name: str, key: str, value: Any, hint: Any) -> Any:
    """`value`, given as text or as a plain value, as one of the types in `hint`."""
    choices = get_args(hint) if get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
    for choice in choices:
        try:
            return _as_type(value, choice)
        except ValueError:
            continue
    allowed = " or ".join(_describe(choice) for choice in choices if choice is not type(None))
    shown = value if isinstance(value, str) else repr(value)
    raise ConfigError(f"{name}: {key}={shown} is not {allowed}.")


def _as_type(value: Any, wanted: Any) -> Any:
    if get_origin(wanted) is Literal:
        if value in get_args(wanted):
            return value
    elif get_origin(wanted) is tuple:
        if isinstance(value, str) and value.startswith("[") and value.endswith("]"):
            value = [item.strip() for item in value[1:-1].split(",")]
        if isinstance(value, list | tuple) and value:
            return tuple(_as_type(item, get_args(wanted)[0]) for item in value)
    elif wanted is bool:
        if isinstance(value, bool) or value in ("true", "false"):
            return value in (True, "true")
    elif wanted is int:
        if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
            if re.fullmatch(r"[+-]?\d+", str(value)):
                return int(value)
    elif wanted is float:
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            return float(value)
    elif wanted is str and isinstance(value, str):
        return value
    elif wanted is ArtifactFile and isinstance(value, ArtifactFile | str):
        if str(value) and "\0" not in str(value):
            return ArtifactFile(value) if isinstance(value, str) else value
    raise ValueError


def _describe(wanted: Any) -> str:
    if get_origin(wanted) is Literal:
        return "one of " + ", ".join(get_args(wanted))
    if get_origin(wanted) is tuple:
        plural = {int: "whole numbers", float: "numbers"}[get_args(wanted)[0]]
        return f"a list of {plural} like [1,2]"
    plain = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", ArtifactFile: "a file"}
    return plain[wanted]


def _one_string(spec: CompressorSpec) -> str:
    options = []
    for field in dataclasses.fields(spec.config):
        value = getattr(spec.config, field.name)
        if value != field.default:
            text = "[" + ",".join(map(str, value)) + "]" if isinstance(value, tuple) else str(value)
            options.append(f"{field.name}={text.lower() if isinstance(value, bool) else text}")
    return spec.name + (":" + ",".join(options) if options else "")
