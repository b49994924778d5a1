"""How a command ends badly: one sentence on stderr, with --json a document on stdout too, and an exit code.

What the command line's own parser refuses (an unknown option, a missing argument, a bad number) is said in the same
form as what the commands refuse.
"""

import dataclasses
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import typer
from typer.core import TyperGroup

from trt_compress.errors import ConfigError, InternalError, TrtCompressError
from trt_compress.suggest import did_you_mean, not_known
from trt_compress.tools.console import LOGGER, configure_logging, print_json, say_error

# Typer carries its own copy of click from some version on; the base of its errors is found where it surely is.
_UsageError: type[Exception] = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")

READER_GONE = 128 + 13
"""The exit code where the reader of stdout went away: that of SIGPIPE, which not every system has."""


class OneVoice(TyperGroup):
    """The group of all commands, which says usage errors as every other error is said."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run a command and end the process with its exit code."""
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, False, windows_expand_args, **extra)
        typed = list(sys.argv[1:] if args is None else args)
        try:
            code = super().main(args, prog_name, complete_var, False, windows_expand_args, **extra)
        except typer.Abort:
            sys.exit(130)
        except SystemExit as ended:
            if isinstance(ended.__context__, BrokenPipeError):  # the parser's own end of it would be a fault of ours
                sys.exit(READER_GONE)
            raise
        except _UsageError as error:
            if type(error).__name__ != "NoArgsIsHelpError":  # the help has been printed
                _report_usage(error, _call(error, self, typed))
            sys.exit(ConfigError.exit_code)
        sys.exit(code if isinstance(code, int) else 0)


def report_error(error: TrtCompressError, *, verbose: bool, log_json: bool, json: bool) -> None:
    """Say an error: one sentence (a log line with `log_json`) on stderr, and with `json` a document on stdout.

    The document is what the command has found so far, if it carries on the error (`report` of a gate, `result` of a
    stream), with `error` beside it: `message`, `hint` and `exit_code`.
    """
    unexpected = isinstance(error, InternalError) and verbose
    if log_json:
        LOGGER.error(str(error), exc_info=unexpected)
    else:
        say_error(error.message, error.hint, raised=sys.exc_info()[1] if unexpected else None)
    if json:
        said = {"message": error.message, "hint": error.hint, "exit_code": error.exit_code}
        with suppress(OSError):  # stdout takes nothing, perhaps for the very reason that has been said
            print_json({**_found_so_far(error), "error": said})


def wants_json(value: object) -> bool:
    """Whether the option --json asks for a document on stdout: as a flag, or as the file "-"."""
    return value is True or (not isinstance(value, bool) and str(value) == "-")


def _found_so_far(error: TrtCompressError) -> dict[str, Any]:
    found = getattr(error, "report", None) or getattr(error, "result", None)
    if isinstance(found, dict):
        return found
    if found is not None and hasattr(found, "to_json"):
        return dict(found.to_json())
    if isinstance(found, tuple) and found and all(map(dataclasses.is_dataclass, found)):
        return {"findings": [dataclasses.asdict(item) for item in found]}
    return {}


@dataclasses.dataclass(frozen=True, slots=True)
class _Call:
    """What was typed, and the command that it is for: its words, `trt-compress plugins build`, and its parameters."""

    typed: list[str]
    path: str
    command: Any

    @property
    def name(self) -> str:
        return f"'{self.path.partition(' ')[2] or self.path}'"


def _call(error: Any, group: Any, typed: list[str]) -> _Call:
    """Find the command; the parser does not say it with every error."""
    context = getattr(error, "ctx", None)
    if context is not None:
        place = context.command_path.removeprefix(context.find_root().info_name or "")
        return _Call(typed, f"trt-compress{place}", context.command)
    path, command = "trt-compress", group
    for word in typed:
        if word in getattr(command, "commands", {}):
            path, command = f"{path} {word}", command.commands[word]
    return _Call(typed, path, command)


def _report_usage(error: Any, call: _Call) -> None:
    said = ConfigError(_sentence(error, call), hint=f"{call.path} --help says what it takes.")
    log_json = "--log-json" in call.typed
    if log_json:
        configure_logging(verbose=False, log_json=True)
    report_error(said, verbose=False, log_json=log_json, json=_json_in(call))


def _json_in(call: _Call) -> bool:
    """Whether what was typed asks for JSON on stdout; an option that takes a file does so with "-" only."""
    words = call.typed[: call.typed.index("--")] if "--" in call.typed else call.typed
    own = [parameter for parameter in call.command.params if "--json" in parameter.opts]
    if own and not own[0].is_flag:
        return "--json=-" in words or ("--json", "-") in zip(words, words[1:], strict=False)
    return "--json" in words


def _sentence(error: Any, call: _Call) -> str:
    """What the parser refuses, in our words; its own where it says something that is not foreseen here."""
    parameter = getattr(error, "param", None)
    message = str(error.format_message()).strip()
    match type(error).__name__:
        case "NoSuchOption":
            options = [name for name in _option_names(call.command) if name.startswith("--")]
            near = did_you_mean(error.option_name, options)
            return f"No such option '{error.option_name}' of {call.name}; it has {', '.join(options)}.{near}"
        case "MissingParameter" if parameter is not None:
            return f"Missing {_place(parameter)} of {call.name}; give {_form(parameter)}."
        case "BadParameter" if parameter is not None:
            return f"Invalid value for {_place(parameter)} of {call.name}: {_reason(error, parameter, call)}."
        case "BadOptionUsage" if "requires an argument" in message:
            asked = [one for one in call.command.params if error.option_name in one.opts]
            if asked:
                return f"Missing value of option '{error.option_name}' of {call.name}; give {_form(asked[0])}."
    if message.startswith("No such command"):
        given, commands = message.split("'")[1], list(call.command.commands)
        return not_known("command", given, commands)
    if extra := re.search(r"unexpected extra arguments?(?:\(s\))? \((.*)\)", message, re.DOTALL):
        takes = [_metavar(one) for one in call.command.params if one.param_type_name == "argument"]
        quotes = " A pattern of file names stands in quotes." if " " in extra.group(1) else ""
        allowed = f"it takes {' '.join(takes)}" if takes else "it takes options only"
        return f"Unexpected argument '{extra.group(1)}' of {call.name}; {allowed}.{quotes}"
    return f"{message.rstrip('.')}."


def _option_names(command: Any) -> list[str]:
    parameters = [one for one in command.params if not getattr(one, "hidden", False)]
    return [*(name for one in parameters for name in (*one.opts, *one.secondary_opts)), "--help"]


def _place(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"argument {_metavar(parameter)}"
    return f"option '{_long_name(parameter)}'"


def _long_name(parameter: Any) -> str:
    return str(next((name for name in parameter.opts if name.startswith("--")), parameter.opts[0]))


def _metavar(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name.upper())


def _form(parameter: Any) -> str:
    """How a parameter is written, with its help: `--output DIR: where the bundle goes`."""
    first, rest = (parameter.help or "")[:1], (parameter.help or "")[1:].rstrip(".")
    what = (first if rest[:1].isupper() else first.lower()) + rest
    name = "" if parameter.param_type_name == "argument" else f"{_long_name(parameter)} "
    return f"{name}{_metavar(parameter)}" + (f": {what}" if what else "")


def _reason(error: Any, parameter: Any, call: _Call) -> str:
    """Why a value is refused; that of a number is said alike by whatever version of the parser there is."""
    message = str(error.message).rstrip(".")
    kind = "a whole number" if "integer" in message else "a number" if re.search("float|number", message) else None
    if kind is None:
        return message
    after = dict(zip(call.typed, call.typed[1:], strict=False))
    joined = dict(word.split("=", 1) for word in call.typed if "=" in word)
    given = next((where[name] for name in parameter.opts for where in (after, joined) if name in where), None)
    return f"{repr(given) if given is not None else 'it'} is not {kind}"
