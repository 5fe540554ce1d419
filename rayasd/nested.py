"""Nested tables of settings, as in TOML and JSON: checked against dataclasses, merged, flattened."""

import dataclasses
import json
import math
import typing
from collections.abc import Mapping
from dataclasses import field
from typing import Any, Literal, TypeVar

from rayasd.errors import UserError, unknown

Settings = TypeVar("Settings")

ALL_SETTINGS = "'rayasd settings' prints all"
_TYPE_NAMES = {bool: "true/false", int: "whole number", float: "number", str: "text"}


def bounded(default: Any, *, minimum: float | None = None, maximum: float | None = None) -> Any:
    """Declare a numeric field with its default and its valid range, both ends included."""
    return field(default=default, metadata={"minimum": minimum, "maximum": maximum})


def build(cls: type[Settings], values: Any, path: str = "") -> Settings:
    """Make a dataclass of settings, and those that it holds, from nested tables.

    A field that is a mapping holds named tables, each flattened to dotted keys.

    Raises UserError: an unknown key, or a value of the wrong type or out of range; ``path`` comes before its name.
    """
    values = _table(values, path.rstrip("."))
    hints = typing.get_type_hints(cls)
    known = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    built = {}
    for key, value in values.items():
        if key not in known:
            asked = next(iter(flatten({key: value}, path)), f"{path}{key}")
            here = {f"{path}{name}" for name in known if not dataclasses.is_dataclass(hints[name])}
            defaults: Any = cls()
            raise unknown("setting", asked, here | flatten(dataclasses.asdict(defaults), path).keys(), ALL_SETTINGS)
        if dataclasses.is_dataclass(hints[key]):
            built[key] = build(hints[key], value, f"{path}{key}.")
        elif typing.get_origin(hints[key]) is Mapping:
            named = _table(value, f"{path}{key}")
            built[key] = {name: flatten(_table(table, f"{path}{key}.{name}")) for name, table in named.items()}
        else:
            built[key] = _checked(f"{path}{key}", value, hints[key], known[key].metadata)
    return cls(**built)


def _table(values: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(values, Mapping):
        raise UserError(f"{name} is a table of settings, not {values!r}")
    return values


def _checked(name: str, value: Any, hint: Any, bounds: Mapping[str, Any]) -> Any:
    origin = typing.get_origin(hint)
    if origin is Literal:
        choices = typing.get_args(hint)
        if value not in choices:
            raise UserError(f"{name} = {value!r}: choose one of {', '.join(map(str, choices))}")
        return choices[choices.index(value)]
    if origin is tuple:
        element = typing.get_args(hint)[0]
        if isinstance(value, str):
            value = split_list(value)
        if not isinstance(value, list | tuple):
            raise UserError(f"{name} = {value!r}: a list is needed")
        return tuple(_checked(name, item, element, bounds) for item in value)
    if hint is float and type(value) is int:
        value = float(value)
    if hint is str and type(value) in (int, float):
        value = str(value)
    if type(value) is not hint:
        raise UserError(f"{name} = {value!r}: a value of type {_TYPE_NAMES[hint]} is needed")
    low, high = bounds.get("minimum"), bounds.get("maximum")
    if (low is not None and not value >= low) or (high is not None and not value <= high):
        raise UserError(f"{name} = {value}: must be {_span(bounds)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{name} = {value}: must be finite")
    return value


def allowed(hint: Any, bounds: Mapping[str, Any]) -> str:
    """Describe the values that a field takes, as errors describe them."""
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if typing.get_origin(hint) is tuple:
        element = allowed(arguments[0], {})
        return f"list, each {element}" if typing.get_origin(arguments[0]) is Literal else f"list of {element}s"
    return f"{_TYPE_NAMES[hint]}{', ' if bounds else ''}{_span(bounds)}"


def _span(bounds: Mapping[str, Any]) -> str:
    low, high = bounds.get("minimum"), bounds.get("maximum")
    if low is None:
        return ""
    return f"at least {low:g}" if high is None else f"between {low:g} and {high:g}"


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested tables with changes, which replace or add values."""
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Turn dotted keys into nested tables."""
    nested: dict[str, Any] = {}
    for dotted, value in flat.items():
        *tables, leaf = dotted.split(".")
        table = nested
        for name in tables:
            table = table.setdefault(name, {})
        table[leaf] = value
    return nested


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn nested tables into one dictionary with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def differing(settings: Any) -> dict[str, Any]:
    """Return the fields of a dataclass of settings that differ from their defaults."""
    found = {f.name: (getattr(settings, f.name), f.default) for f in dataclasses.fields(settings)}
    return {name: value for name, (value, default) in found.items() if value != default}


def changed_settings(before: Mapping[str, Any], after: Mapping[str, Any], missing: str) -> list[str]:
    """Return a line for each setting that differs, by dotted name, old value first; ``missing`` for one not there."""

    def shown(values: Mapping[str, Any], key: str) -> str:
        value = values.get(key, missing)
        text = value if isinstance(value, str) else json.dumps(value)  # lists and tuples alike
        return f"{text[:12]}…" if len(text) == 64 else text  # a sha256

    pairs = {key: (shown(before, key), shown(after, key)) for key in sorted(before.keys() | after.keys())}
    return [f"{key}: {old} -> {new}" for key, (old, new) in pairs.items() if old != new]


def split_list(text: str) -> list[str]:
    """Split at commas; those inside parentheses belong to a call."""
    parts, depth = [""], 0
    for character in text:
        depth += (character == "(") - (character == ")")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]
