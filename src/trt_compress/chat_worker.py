"""The process that renders chat templates for `chat_template`: it loads Jinja, and answers each line of JSON by one.

Templates get what transformers gives them: the immutable sandbox with blocks trimmed, loop controls, `tojson` without
HTML escapes, `raise_exception`, `strftime_now`, and the tag `generation`, which leaves its content as it is.
"""

import json
import resource
import sys
from datetime import datetime
from typing import Any, NoReturn

LONGEST = 1 << 24
"""Characters of the longest text that a template may make, and bytes of the longest conversation."""

_MEMORY = 1 << 30


class TemplateRefusal(Exception):
    """What a template raises by itself."""


def main() -> None:
    """Render what is asked, one after the other, until nothing more comes."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    try:
        environment = _environment()
    except ModuleNotFoundError:
        _answer("missing", "")
        return
    _answer("ready", "")
    compiled: dict[str, Any] = {}
    for line in sys.stdin.buffer:
        try:
            asked = json.loads(line)
            text = asked["template"]
            if text not in compiled:
                compiled = {text: environment.from_string(text)}
            said = _rendered(compiled[text], asked["variables"])
        except TemplateRefusal as refused:
            _answer("refused", str(refused))
        except Exception as error:  # a stranger's program raises what it likes
            _answer("fault", str(error) or type(error).__name__)
        else:
            _answer("text", said)


def _rendered(template: Any, variables: dict[str, Any]) -> str:
    parts, length = [], 0
    for part in template.generate(**variables):
        length += len(part)
        if length > LONGEST:
            raise ValueError(f"it writes more than {LONGEST} characters")
        parts.append(part)
    return "".join(parts)


def _environment() -> Any:
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}…{% endgeneration %}` marks what the model wrote, for those who train on it."""

        tags = {"generation"}

        def parse(self, parser: Any) -> nodes.Node | list[nodes.Node]:
            line = next(parser.stream).lineno
            body: list[nodes.Node] = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: object) -> NoReturn:
    raise TemplateRefusal(str(message))


def _answer(kind: str, said: str) -> None:
    sys.stdout.buffer.write(json.dumps([kind, said]).encode() + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
