"""Extension points: a setting names one of rayasd's own by a short name, or anybody's by its import path."""

import ast
import importlib
import inspect
import re
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from rayasd.errors import UserError, one_line, unknown

_NAME = re.compile(r"[A-Za-z_][\w.-]*")
_IMPORT_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")


def find(kind: str, text: str, registry: Mapping[str, Any]) -> Any:
    """Look up ``name``, ``package.name`` or a call of either such as ``package.name(parameter=3)``.

    ``kind`` is for errors; ``registry``: objects, or import paths of objects, by short name.

    Returns the object; a call gives it with its parameters bound (``functools.partial``). Raises UserError: there is no
    such thing, or it does not take these parameters.
    """
    path, parameters = parse_call(kind, text)
    found = registry.get(path, path)
    if isinstance(found, str):
        if not _IMPORT_PATH.fullmatch(found):
            raise unknown(kind, path, registry)
        module, _, name = found.rpartition(".")
        try:
            found = getattr(importlib.import_module(module), name)
        except Exception as error:  # importing runs whatever a person wrote there
            raise UserError(f"{kind} {text}: {error_line(error)}") from None
    if not callable(found):
        raise UserError(f"{kind} {text}: {path} is neither a class nor a function")
    if not parameters:
        return found
    try:
        inspect.signature(found).bind_partial(**parameters)
    except TypeError as error:
        raise UserError(f"{kind} {text}: {error}") from None
    return partial(found, **parameters)


def parse_call(kind: str, text: str) -> tuple[str, dict[str, Any]]:
    """Split ``package.name(parameter=3)`` into the path and its parameters; a bare path has none.

    Raises UserError: it is no call with named literal parameters.
    """
    if "(" not in text:
        return text, {}
    try:
        path, _, arguments = text.partition("(")
        node = ast.parse(f"f({arguments}", mode="eval").body
        if not (_NAME.fullmatch(path) and isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
            raise ValueError
        if node.args or any(keyword.arg is None for keyword in node.keywords):
            raise ValueError
        return path, {str(k.arg): ast.literal_eval(k.value) for k in node.keywords}
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # the last two of deep nesting
        raise UserError(f"{kind} {text!r}: write a name, or package.name(parameter=value)") from None


def import_paths(text: str) -> list[str]:
    """List the import paths in a setting that ``find`` reads, those within parentheses and branches too."""
    try:
        nodes = list(ast.walk(ast.parse(text.strip(), mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return [text]
    found = [ast.unparse(node) for node in nodes if isinstance(node, ast.Attribute)]
    within = [each for node in nodes if isinstance(node, ast.keyword) and node.arg == "encoders"
              for each in ast.walk(node.value) if isinstance(each, ast.Constant)]  # fmt: skip
    return found + [path for each in within for path in import_paths(str(each.value))]


def refuse_code(source: Path, texts: Iterable[str]) -> None:
    """Refuse settings that name code, where they come from a file and not from the command line.

    Raises UserError: one does.
    """
    if paths := [path for text in texts for path in import_paths(text)]:
        raise UserError(f"{source} names code to run: {paths[0]}; --trust accepts it, if you know who made it")


def error_line(error: Exception) -> str:
    """Return one line for an error of somebody else's code, with its kind unless that adds nothing."""
    text = one_line(error)
    return text if isinstance(error, ImportError | AttributeError | TypeError) else f"{type(error).__name__}: {text}"
