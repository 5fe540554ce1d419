"""The command line as one piece: what it takes is written down, and one name means one thing everywhere."""

from collections import defaultdict
from pathlib import Path

import click
from click.testing import CliRunner

from rayasd.cli.main import cli
from tests.cli.surface import commands, of_type, surface

_OF_THEIR_COMMAND = {
    "--out": "a file, or a folder of files",
    "--html": "whether a sweep writes the page of its run, or the file of a comparison",
    "--normal": "words that mark a clip as normal, or a folder of normal clips",
    "--format": "what the command can write",
    "--seed": "which of a run's, or what draws are made from",
}
"""Options that are not the same everywhere, and why."""


def test_the_surface_is_what_is_written_down():
    written = Path(__file__).with_name("surface.txt").read_text(encoding="utf-8")
    assert surface() == written, "if this is meant: python -m tests.cli.surface > tests/cli/surface.txt"


def test_an_option_of_one_name_takes_the_same_everywhere():
    kinds: dict[str, set[str]] = defaultdict(set)
    for _, command in commands():
        for option in command.params:
            if isinstance(option, click.Option):
                long = next(name for name in option.opts if name.startswith("--"))
                kinds[long].add(f"{of_type(option)} {'/'.join(option.opts)} {option.multiple}")
    different = {name for name, of_name in kinds.items() if len(of_name) > 1}
    assert different == _OF_THEIR_COMMAND.keys()


def test_every_command_says_in_a_line_what_it_does():
    for name, command in commands():
        if isinstance(command, click.Group):
            said = CliRunner().invoke(cli, [*name.split()[1:], "--help"], terminal_width=80).output
            listed = said.partition("Commands:")[2].splitlines()
            assert len([line for line in listed if line.strip()]) == len(command.commands)
            assert not [line for line in listed if line.endswith("...") or (line.strip() and not line.endswith("."))]


def test_every_option_says_what_it_is_for():
    silent = [
        f"{name} {option.opts[0]}"
        for name, command in commands()
        for option in command.params
        if isinstance(option, click.Option) and not option.help
    ]
    assert not silent
