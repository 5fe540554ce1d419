"""``rayasd leaderboard`` and ``compare``: several runs side by side."""

from collections.abc import Sequence
from pathlib import Path

import click

from rayasd.cli.options import PART, output_format
from rayasd.errors import UserError


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
    import json
    import sys

    from rayasd.report.side_by_side import rank_runs, ranking_part
    from rayasd.report.tables import markdown_table, percent

    rows, year, where, reasons = rank_runs(runs, part or ranking_part(runs))
    for line in reasons:
        click.echo(line, err=True)
    if form == "json":
        click.echo(json.dumps([{"part": where, "year": year, **row} for row in rows], indent=2, ensure_ascii=False))
        return
    titles = ["#", "system", f"{where} score", "source AUC", "target AUC", "from"]
    lines = [
        [str(i), row["system"], percent(row["score"], row["deviation"]), percent(row["source_auc"]),
         percent(row["target_auc"]), row["from"]]
        for i, row in enumerate(rows, 1)
    ]  # fmt: skip
    if form == "csv":
        csv.writer(sys.stdout, lineterminator="\n").writerows([titles, *lines])
    elif form == "md":
        click.echo(markdown_table(titles, lines))
    else:
        _print_table(titles, lines)


@click.command()
@click.argument("first", type=click.Path(path_type=Path, file_okay=False))
@click.argument("second", type=click.Path(path_type=Path, file_okay=False))
@click.option("--variants", metavar="A,B", help="A variant of FIRST and one of SECOND; default: the first in rank.")
@PART
def compare(first: Path, second: Path, variants: str | None, part: str | None) -> None:
    """Compare two runs: which is better and how certain that is.

    Uses a paired bootstrap over test clips, for the official score and the mean AUC. FIRST and SECOND may be the
    same run, to compare two of its variants.

    \b
        rayasd compare runs/mine runs/theirs
        rayasd compare runs/ablation runs/ablation --variants both,no-mixup
    """
    from rich.text import Text

    from rayasd.cli.display import wide_console
    from rayasd.nested import split_list
    from rayasd.report.side_by_side import Contestant, compare_pair, ranking_part
    from rayasd.report.tables import percent

    console = wide_console()
    names = [None, None] if variants is None else split_list(variants)
    if len(names) != 2:
        raise UserError(f"--variants {variants}: one of the first run and one of the second, for example both,no-mixup")
    part = part or ranking_part([first, second])
    pair = [Contestant.named(run, name, part) for run, name in zip((first, second), names, strict=True)]
    found = compare_pair(pair[0], pair[1], part)
    systems = [f"{each.report.store.paths.root.name} {each.system}" for each in found.pair]
    scores = ((found.official.first, found.auc.first), (found.official.second, found.auc.second))
    titles = ["system", f"{found.where} score", "AUC", "source AUC", "target AUC"]
    rows = zip(systems, scores, found.pair, strict=True)
    _print_table(titles, [[name, *map(percent, (*two, *each.domain_aucs))] for name, two, each in rows])
    for measure, result in ((f"DCASE {found.year} score", found.official), ("mean AUC", found.auc)):
        verdict = f"better: {systems[result.lead <= 0]}" if result.sure else "no sure difference"
        text = (
            f"{measure}: the first leads by {percent(result.lead)} points, 95 % interval {percent(result.low)} to "
            f"{percent(result.high)}, in {percent(result.share)} % of the draws; {verdict}"
        )
        console.print(Text(text))
    over = f"paired bootstrap over the test clips of {found.num_cells} {found.where} cells{found.note}"
    console.print(over, style="dim")


def _print_table(titles: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    from rayasd.cli.display import wide_console
    from rayasd.report.terminal import text_table

    wide_console().print(text_table(titles, lines))
