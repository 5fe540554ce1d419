"""Every setting with its default, allowed values and meaning, as rayasd/config.py declares them."""

import ast
import dataclasses
import inspect
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import pairwise
from typing import Any

from rayasd import config
from rayasd.errors import UserError
from rayasd.nested import allowed


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One setting, for a person to look up."""

    name: str
    """Table and key: exposure.epochs."""
    default: Any
    allowed: str
    meaning: str


@dataclass(frozen=True, kw_only=True)
class SettingsTable:
    """A table of settings."""

    name: str
    meaning: str
    settings: Sequence[Setting]


def all_settings() -> list[SettingsTable]:
    """Return all tables of settings, in the order of the configuration; ``variants`` has no settings of its own."""
    texts = _texts_below_fields()
    hints = typing.get_type_hints(config.Config)
    tables = []
    for field in dataclasses.fields(config.Config):
        table = hints[field.name]
        if isinstance(table, type) and dataclasses.is_dataclass(table):
            types = typing.get_type_hints(table)
            settings = [
                Setting(
                    name=f"{field.name}.{each.name}", default=each.default,
                    allowed=allowed(types[each.name], each.metadata), meaning=texts[table.__name__, each.name],
                )
                for each in dataclasses.fields(table)
            ]  # fmt: skip
            tables.append(SettingsTable(name=field.name, meaning=inspect.getdoc(table) or "", settings=settings))
        else:
            tables.append(SettingsTable(name=field.name, meaning=texts["Config", field.name], settings=()))
    return tables


def find_settings(key: str) -> list[SettingsTable]:
    """Return the table, or the settings, of this name; ``epochs`` finds every setting whose last part it is.

    Raises:
        UserError: there is no such table or setting; names the nearest.

    """
    tables = all_settings()
    found = []
    for table in tables:
        settings = [each for each in table.settings if key in (each.name, each.name.partition(".")[2])]
        if table.name == key:
            found.append(table)
        elif settings:
            found.append(dataclasses.replace(table, settings=settings))
    if not found:
        names = [setting.name for table in tables for setting in table.settings]
        keys = [name.partition(".")[2] for name in names]
        nearest = get_close_matches(key, [*(table.name for table in tables), *names, *keys], n=1)
        hint = f"did you mean {nearest[0]!r}? " if nearest else ""
        raise UserError(f"unknown setting {key!r}: {hint}'rayasd settings' prints all")
    return found


def _texts_below_fields() -> dict[tuple[str, str], str]:
    """Read the string below each field of config.py, by class and field: Python does not keep it at run time."""
    return {
        (node.name, field.target.id): " ".join(str(below.value.value).split())
        for node in ast.parse(inspect.getsource(config)).body
        if isinstance(node, ast.ClassDef)
        for field, below in pairwise(node.body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
    }  # fmt: skip
