"""The leaderboard in a terminal."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rayasd.evaluation.leaderboard import Leaderboard
from rayasd.report.tables import footnotes, heading, row

_WORDS = {"variant", "detector", "pooling"}


def print_leaderboard(
    console: Console, leaderboard: Leaderboard, machines: Sequence[str], *, title: str, synthetic: bool
) -> None:
    """Print the ranked systems, then what the table means. Machine columns go where the terminal is too narrow."""
    shown = list(machines) if console.width >= 112 + 8 * len(machines) else []
    table = Table(title=Text(title), title_justify="left", header_style="bold", pad_edge=False, box=None)
    for name in heading(shown):
        table.add_column(name, justify="left" if name in _WORDS else "right", no_wrap=name not in _WORDS)
    first_machine = heading(machines).index("target") + 1
    for standing in leaderboard.ranked:
        cells = row(standing)
        if not shown:
            del cells[first_machine : first_machine + len(machines)]
        table.add_row(*(Text(cell) for cell in cells), style="bold" if standing.rank == 1 else "")
    console.print(table)
    for note in footnotes(leaderboard, synthetic=synthetic):
        console.print(
            Text(note),
            style="yellow" if note.startswith(("Synthetic", "No labelled", "Incomplete")) else "dim",
        )
