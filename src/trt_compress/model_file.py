"""What can be said of FILE.py:FACTORY without running the file: it is there, it is Python, it defines the name."""

import ast
from collections.abc import Iterator
from pathlib import Path

from trt_compress.digest import sha256
from trt_compress.errors import ConfigError
from trt_compress.files import read_regular
from trt_compress.foreign import reason_of
from trt_compress.model_name import ModelName
from trt_compress.suggest import did_you_mean

_SHOWN = 8
_DEFINES_ANYTHING = frozenset({"globals", "exec", "setattr", "vars"})


def check_model_file(model: ModelName) -> str:
    """Check the file of an own model, and that it defines the factory as far as that can be read off it.

    Args:
        model: A name of the source "file".

    Returns:
        The file's SHA-256, by which a later run notices a change.

    Raises:
        ConfigError: no such file, not Python, or no such name in it.
    """
    path = Path(model.name)
    try:
        content = read_regular(path)
    except OSError as error:
        raise ConfigError(
            f"model {model.name}: the file cannot be read ({error.strerror}); write FILE.py:FACTORY, the file and the "
            "function in it that makes the model."
        ) from None
    try:
        tree = ast.parse(content, filename=model.name)
    except SyntaxError as error:
        where = f", line {error.lineno}" if error.lineno else ""
        raise ConfigError(f"model {model.name}: the file is not Python ({error.msg}{where}); correct it.") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise ConfigError(f"model {model.name}: the file is not Python ({reason_of(error)}); correct it.") from None
    names = list(dict.fromkeys(_bound_names(tree)))
    makers = [node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)] or names
    choice = f"; it defines {', '.join(makers[:_SHOWN])}" if makers else "; it defines nothing"
    if not model.factory:
        raise ConfigError(
            f"model {model.name}: which function or class in it makes the model? Write {model.name}:FACTORY{choice}."
        )
    first = model.factory.partition(".")[0]
    if first not in names and not _may_define_more(tree):
        raise ConfigError(
            f"model {model.name}:{model.factory}: the file has no '{first}'{choice}.{did_you_mean(first, names)}"
        )
    return sha256(content)


def _bound_names(tree: ast.AST) -> Iterator[str]:
    """Names that the statements of a module bind at its top level, inside `if`, `try`, `with` and loops too."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((alias.asname or alias.name).partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.ExceptHandler) and node.name:
            yield node.name
        if not isinstance(node, ast.Lambda):
            yield from _bound_names(node)


def _may_define_more(tree: ast.Module) -> bool:
    """Whether names may come about in a way that only running the file shows."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names):
            return True
        if isinstance(node, ast.Name) and node.id in _DEFINES_ANYTHING:
            return True
        if isinstance(node, ast.FunctionDef) and node.name == "__getattr__":
            return True
    return False
