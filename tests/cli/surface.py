"""The command line as a table: every command, argument and option with its type and default. Writes surface.txt anew:

python -m tests.cli.surface > tests/cli/surface.txt
"""

from collections.abc import Iterator
from pathlib import Path

import click

from rayasd.cli.main import cli


def commands(command: click.Command = cli, name: str = "rayasd") -> Iterator[tuple[str, click.Command]]:
    yield name, command
    if isinstance(command, click.Group):
        for below, each in command.commands.items():
            yield from commands(each, f"{name} {below}")


def surface() -> str:
    lines = []
    for name, command in commands():
        lines += [f"\n{name}", *(f"  {described(parameter)}" for parameter in command.params)]
    return "\n".join(lines).strip() + "\n"


def described(parameter: click.Parameter) -> str:
    if isinstance(parameter, click.Argument):
        return f"{parameter.human_readable_name}{'…' if parameter.nargs == -1 else ''}"
    assert isinstance(parameter, click.Option)
    words = ", ".join(parameter.opts)
    if not parameter.is_flag:
        words += f" {of_type(parameter)}{f' x {parameter.nargs}' if parameter.nargs > 1 else ''}"
        if parameter.required:
            words += ", required"
        elif (
            parameter.default is not None and isinstance(parameter.default, str | int | float | Path)
        ) or parameter.multiple:
            words += ", many" if parameter.multiple else f", {str(parameter.default)!r}"
    return words


def of_type(parameter: click.Parameter) -> str:
    kind = parameter.type
    if isinstance(kind, click.Choice):
        return "|".join(kind.choices)
    bounds = [bound for bound in (getattr(kind, "min", None), getattr(kind, "max", None)) if bound is not None]
    return kind.name + (f" {'..'.join(f'{bound:g}' for bound in bounds)}" if bounds else "")


if __name__ == "__main__":
    print(surface(), end="")
