"""Presets: the configuration as TOML files, changed by ``a.b=value`` overrides."""

import re
import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from rayasd.config import WHOLE_RUN, Config, from_dict
from rayasd.errors import UserError, unknown
from rayasd.nested import merge, nest, split_list

FOLDER = resources.files(__name__)


def load(preset: str, overrides: Sequence[str] = ()) -> Config:
    """Read a preset by name, or a TOML file by path, and apply overrides of the form ``a.b=value``.

    Raises UserError: an unknown preset, key or value, with the nearest valid one.
    """
    return from_dict(with_overrides(_read_preset(preset), parse_overrides(overrides)))


def with_overrides(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested tables with changes by dotted keys, applied in order: the last of two that clash counts."""
    changed = dict(values)
    for key, value in overrides.items():
        changed = merge(changed, nest({key: value}))
    return changed


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """Parse overrides of the form ``a.b=value``; the last one of a key counts. Raises UserError: one has no ``=``."""
    found = {}
    for override in overrides:
        key, sign, text = override.partition("=")
        if not sign:
            raise UserError(f"--set {override}: write it as key=value, for example exposure.epochs=50")
        found[key.strip()] = _toml_value(text.strip())
    return found


def parse_values(text: str) -> tuple[str, list[Any]]:
    """Parse ``a.b=1,2,4``: a setting and values for it. Raises UserError: there is no ``=``, or no value."""
    key, _, values = text.partition("=")
    found = [_toml_value(value) for value in split_list(values)]
    if not found:
        raise UserError(f"--vary {text}: write it as key=value,value, for example exposure.real_anomalies=0,1,2")
    return key.strip(), found


def preset_names() -> list[str]:
    """List the presets that come with rayasd."""
    return sorted(entry.name.removesuffix(".toml") for entry in FOLDER.iterdir() if entry.name.endswith(".toml"))


def _read_preset(preset: str, extended_by: tuple[str, ...] = ()) -> dict[str, Any]:
    if preset in extended_by:
        raise UserError(f"preset {preset} extends itself")
    path = Path(preset)
    if preset in preset_names():
        text = (FOLDER / f"{preset}.toml").read_text(encoding="utf-8")
    elif path.suffix == ".toml" and path.is_file():
        text = path.read_bytes().decode(errors="replace")
    elif path.suffix == ".toml":
        raise UserError(f"no such preset file: {preset}")
    else:
        raise unknown("preset", preset, preset_names())
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{preset}: not valid TOML: {error}") from None
    base = values.pop("extends", None)
    if base is None:
        return values
    return merge(_read_preset(str(base), (*extended_by, preset)), values)


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text  # bare words need no quotes on the command line


def varied(config: Config, variants: Sequence[str], key: str, values: Sequence[Any]) -> tuple[Config, tuple[str, ...]]:
    """Add a variant per given variant and value of a setting, named ``<variant>-<setting>-<value>``.

    Where the setting removes anomalies from the test, all variants remove as many as the largest value does.

    Returns the configuration with the new variants, and their names. Raises UserError: no such variant or setting, an
    invalid value, or a setting that all variants share.
    """
    if key.partition(".")[0] in WHOLE_RUN:
        raise UserError(f"--vary {key}: {', '.join(WHOLE_RUN)} apply to the whole run, variants cannot differ in them")
    made: dict[str, dict[str, Any]] = {}
    for variant in variants:
        for value in values:
            name = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{variant}-{key.rpartition('.')[2]}-{value}").strip("-")
            made[name] = {**config.overrides(variant), key: value}
    result = from_dict(merge(config.as_dict(), {"variants": made}))
    aside = {result.variant(name).exposure.anomalies_aside for name in made}
    if len(aside) > 1:
        made = {name: {**overrides, "exposure.reserved_anomalies": max(aside)} for name, overrides in made.items()}
        result = from_dict(merge(config.as_dict(), {"variants": made}))
    return result, tuple(made)
