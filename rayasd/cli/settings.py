"""``rayasd settings``: what can be configured."""

import json
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import click

from rayasd.cli.options import output_format
from rayasd.printing import tell

if TYPE_CHECKING:
    from rayasd.settings import Setting

    PresetValues = dict[str, dict[str, Any]]
    """Values of each preset, by the dotted names of settings."""

_INTRODUCTION = """# Settings

Every setting of a configuration, as `rayasd settings` prints it. `--set exposure.epochs=50` changes one, a TOML file of
your own several ([extending.md](extending.md#a-variant)); [method.md](method.md) explains them in context.

`make docs-settings` writes this page.
"""


@click.command()
@click.argument("key", required=False)
@click.option("--preset", help="Preset or TOML file to show beside the defaults; default: all presets of rayasd.")
@output_format("table", "md", "json")
def settings(key: str | None, preset: str | None, form: str) -> None:
    """Print settings: defaults, allowed values and meaning.

    KEY is a table or a setting. Without it, all settings are printed.

    \b
        rayasd settings exposure
        rayasd settings exposure.epochs
        rayasd settings --preset demo
    """
    from rayasd import presets
    from rayasd.nested import flatten
    from rayasd.settings import all_settings, find_settings

    found = all_settings() if key is None else find_settings(key)
    values = {name: flatten(presets.load(name).as_dict()) for name in ([preset] if preset else presets.preset_names())}
    if form == "table":
        _print(found, values)
    elif form == "md":
        tell(_INTRODUCTION if key is None else "", nl=False)
        _print_markdown(found, values)
    else:
        rows = [vars(each) | {"presets": _others(each, values)} for each in found]
        tell(json.dumps(rows, indent=2, ensure_ascii=False))


def _print(found: Sequence["Setting"], values: "PresetValues") -> None:
    from rich.text import Text

    from rayasd.cli.display import wide_console
    from rayasd.settings import tables_of_settings

    console, tables = wide_console(), tables_of_settings()
    for number, (table, settings) in enumerate(groupby(found, lambda each: each.table)):
        if number:
            console.print()
        if table in tables:
            console.print(Text.assemble((table, "bold"), f"  {tables[table]}"))
        for setting in settings:
            console.print(Text.assemble((setting.name, "cyan"), f" = {_toml(setting.default)}"))
            text = Text.assemble(f"{setting.meaning} ", (f"({setting.allowed})", "dim"))
            for value, names in _by_value(setting, values).items():
                text.append(f"\n{names}: {value}", "yellow")
            for line in text.wrap(console, console.width - 4):
                line.rstrip()
                console.print(Text.assemble("    ", line))


def _print_markdown(found: Sequence["Setting"], values: "PresetValues") -> None:
    from rayasd.settings import tables_of_settings

    tables = tables_of_settings()
    for table, settings in groupby(found, lambda each: each.table):
        tell(f"\n## {table}\n" + (f"\n{tables[table]}\n" if table in tables else ""))
        tell("| setting | default | presets | allowed | meaning |\n|---|---|---|---|---|")
        for each in settings:
            others = "<br>".join(f"{names}: `{value}`" for value, names in _by_value(each, values).items())
            cells = (f"`{each.name}`", f"`{_toml(each.default)}`", others, each.allowed, each.meaning)
            tell(f"| {' | '.join(cells)} |")


def _others(setting: "Setting", values: "PresetValues") -> dict[str, Any]:
    """Return the values of the presets that differ from the default."""
    found = {preset: of.get(setting.name, setting.default) for preset, of in values.items()}
    return {preset: value for preset, value in found.items() if value != setting.default}


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
