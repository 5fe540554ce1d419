"""Every setting with its default, allowed values and meaning, as rayasd/config/ declares them."""

import ast
import inspect
from dataclasses import dataclass, fields, is_dataclass
from itertools import pairwise
from typing import Any, get_type_hints

from rayasd import config
from rayasd.config import tables
from rayasd.errors import unknown
from rayasd.nested import ALL_SETTINGS, allowed


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One setting, for a person to look up."""

    table: str
    key: str  # its name within the table
    name: str  # table and key: exposure.epochs
    default: Any
    allowed: str
    meaning: str


def tables_of_settings() -> dict[str, str]:
    """Return what each table of settings is about."""
    return {
        name: inspect.getdoc(table) or ""
        for name, table in get_type_hints(config.Config).items()
        if is_dataclass(table)
    }


def all_settings() -> list[Setting]:
    """Return all settings, in the order of the configuration."""
    meanings = _meanings()
    settings = [
        Setting(
            table=name, key=field.name, name=f"{name}.{field.name}", default=field.default,
            meaning=meanings[table.__name__, field.name],
            allowed=allowed(get_type_hints(table)[field.name], field.metadata),
        )
        for name, table in get_type_hints(config.Config).items() if isinstance(table, type) and is_dataclass(table)
        for field in fields(table)
    ]  # fmt: skip
    variants = Setting(
        table="variants", key="variants", name="variants", default={}, meaning=meanings["Config", "variants"],
        allowed="tables of settings, by name",
    )  # fmt: skip
    return [*settings, variants]


def find_settings(name: str) -> list[Setting]:
    """Return the settings of a table, or those with this name or key: ``exposure``, ``exposure.epochs``, ``epochs``.

    Raises UserError: there is no such table or setting; names the nearest.
    """
    settings = all_settings()
    found = [each for each in settings if name in (each.table, each.name, each.key)]
    if not found:
        raise unknown("setting", name, {text for each in settings for text in (each.table, each.name)}, ALL_SETTINGS)
    return found


def _meanings() -> dict[tuple[str, str], str]:
    """Read the string below each field of rayasd/config/, by class and field: Python does not keep it at run time."""
    return {
        (node.name, field.target.id): " ".join(str(below.value.value).split())
        for module in (config, tables)
        for node in ast.parse(inspect.getsource(module)).body
        if isinstance(node, ast.ClassDef)
        for field, below in pairwise(node.body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
    }  # fmt: skip
