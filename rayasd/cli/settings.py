"""``rayasd settings``: what can be configured."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from rayasd.cli.options import output_format

if TYPE_CHECKING:
    from rich.console import Console

    from rayasd.settings import Setting, SettingsTable

    PresetValues = dict[str, dict[str, Any]]
    """Values of each preset, by the dotted names of settings."""

_INTRODUCTION = """# Settings

Every setting of a configuration, as `rayasd settings` prints it. `--set exposure.epochs=50` changes one, a TOML file of
your own several ([extending.md](extending.md#a-variant)); [method.md](method.md) explains them in context.

`make docs-settings` writes this page.
"""


@click.command()
@click.argument("key", required=False)
@click.option("--preset", help="Preset or TOML file whose other values are shown; default: all presets of rayasd.")
@output_format("table", "md", "json")
def settings(key: str | None, preset: str | None, form: str) -> None:
    """Print settings with their defaults, allowed values and meaning.

    KEY is a table or a setting; without it, all are printed.

    \b
        rayasd settings exposure
        rayasd settings exposure.epochs
        rayasd settings --preset demo
    """
    from rayasd import presets
    from rayasd.cli.display import wide_console
    from rayasd.nested import flatten
    from rayasd.settings import all_settings, find_settings

    tables = all_settings() if key is None else find_settings(key)
    values = {name: flatten(presets.load(name).as_dict()) for name in ([preset] if preset else presets.preset_names())}
    if form == "table":
        _print(wide_console(), tables, values)
    elif form == "md":
        click.echo("\n".join([*([_INTRODUCTION] if key is None else []), *_markdown(tables, values)]))
    else:
        rows = [vars(each) | {"presets": _others(each, values)} for table in tables for each in table.settings]
        click.echo(json.dumps(rows, indent=2, ensure_ascii=False))


def _print(console: "Console", tables: Sequence["SettingsTable"], values: "PresetValues") -> None:
    from rich.text import Text

    for number, table in enumerate(tables):
        console.print(Text.assemble("\n" if number else "", (table.name, "bold"), f"  {table.meaning}"))
        for setting in table.settings:
            console.print(Text.assemble((setting.name, "cyan"), f" = {_toml(setting.default)}"))
            text = Text.assemble(f"{setting.meaning} ", (f"({setting.allowed})", "dim"))
            for value, names in _by_value(setting, values).items():
                text.append(f"\n{names}: {value}", "yellow")
            for line in text.wrap(console, console.width - 4):
                line.rstrip()
                console.print(Text.assemble("    ", line))


def _markdown(tables: Sequence["SettingsTable"], values: "PresetValues") -> list[str]:
    lines = []
    for table in tables:
        lines += [f"## {table.name}", "", table.meaning, ""]
        if table.settings:
            lines += ["| setting | default | presets | allowed | meaning |", "|---|---|---|---|---|"]
        for each in table.settings:
            others = "<br>".join(f"{names}: `{value}`" for value, names in _by_value(each, values).items())
            cells = (f"`{each.name}`", f"`{_toml(each.default)}`", others, each.allowed, each.meaning)
            lines.append(f"| {' | '.join(cells)} |")
        lines += [""] if table.settings else []
    return lines


def _others(setting: "Setting", values: "PresetValues") -> dict[str, Any]:
    """Return the values of the presets that differ from the default."""
    return {preset: of[setting.name] for preset, of in values.items() if of[setting.name] != setting.default}


def _by_value(setting: "Setting", values: "PresetValues") -> dict[str, str]:
    """Return the other values, as TOML, with the names of their presets."""
    presets: dict[str, list[str]] = {}
    for preset, value in _others(setting, values).items():
        presets.setdefault(_toml(value), []).append(preset)
    return {value: ", ".join(names) for value, names in presets.items()}


def _toml(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return f"{value:g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)
