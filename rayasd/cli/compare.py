"""``rayasd leaderboard`` and ``compare``: several runs side by side."""

from collections.abc import Sequence
from pathlib import Path

import click

from rayasd.cli.options import PART, output_format
from rayasd.errors import UserError
from rayasd.printing import tell


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path, file_okay=False))
@PART
@output_format("table", "md", "csv", "json")
def leaderboard(runs: tuple[Path, ...], part: str | None, form: str) -> None:
    """Rank the chosen systems of several RUNS together.

    Entries are ranked by the official score on one part. Runs on the whole of DCASE 2021 Task 2 are ranked among
    published systems, with the source of each number.

    \b
        rayasd leaderboard runs/first runs/ablation
        rayasd leaderboard runs/* --part development --format md
    """
    import csv
    import io
    import json

    from rayasd.report.side_by_side import rank_runs, ranking_part, ranking_table
    from rayasd.report.tables import markdown_table

    rows, year, where, reasons = rank_runs(runs, part or ranking_part(runs))
    for line in reasons:
        tell(line, err=True)
    if form == "json":
        tell(json.dumps([{"part": where, "year": year, **row} for row in rows], indent=2, ensure_ascii=False))
        return
    titles, lines = ranking_table(rows)
    if form == "csv":
        csv.writer(table := io.StringIO(), lineterminator="\n").writerows([titles, *lines])
        tell(table.getvalue(), nl=False)
    elif form == "md":
        tell(markdown_table(titles, lines))
    else:
        _print_table(titles, lines)


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path, file_okay=False))
@click.option("--variants", metavar="A,B", help="A variant of each run; default: the first in rank.")
@PART
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False),
              help="Write a page, too: machine by machine, and trends over runs on the same data.")  # fmt: skip
def compare(runs: tuple[Path, ...], variants: str | None, part: str | None, html: Path | None) -> None:
    """Compare the first of several RUNS with each of the others.

    Prints which is better and how certain that is, by a paired bootstrap over test clips, for the score and the mean
    AUC. A run may be given twice, to compare two of its variants.

    \b
        rayasd compare runs/mine runs/theirs
        rayasd compare runs/ablation runs/ablation --variants both,no-mixup
        rayasd compare runs/monday runs/tuesday runs/friday --html trend.html
    """
    from rich.text import Text

    from rayasd.cli.display import wide_console
    from rayasd.nested import split_list
    from rayasd.report.side_by_side import Contestant, ranking_part, verdicts
    from rayasd.report.tables import percent

    names = [None] * len(runs) if variants is None else split_list(variants)
    if len(names) != len(runs) or len(runs) < 2:
        raise UserError("give two runs or more, and with --variants one variant for each, for example both,no-mixup")
    part, console = part or ranking_part(runs), wide_console()
    systems = [Contestant.named(run, name, part) for run, name in zip(runs, names, strict=True)]
    lines = [[each.name, *map(percent, (each.entry[part], each.entry["auc"], *each.domain_aucs))] for each in systems]
    found = [line for other in systems[1:] for line in verdicts(systems[0], other, part)]
    _print_table(["system", "score", "AUC", "source AUC", "target AUC"], lines)
    sentences = list(dict.fromkeys(found))
    for line in sentences:
        console.print(Text(line))
    if html is not None:
        from rayasd.report.html.comparison import write_comparison

        console.print(write_comparison(systems, sentences, part, html), highlight=False, soft_wrap=True)


def _print_table(titles: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    from rayasd.cli.display import wide_console
    from rayasd.report.terminal import text_table

    wide_console().print(text_table(titles, lines))
