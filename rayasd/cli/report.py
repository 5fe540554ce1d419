"""``rayasd report``, ``leaderboard`` and ``compare``: what came of runs."""

from pathlib import Path

import click

from rayasd.cli.options import PART, RUN, output_format


@click.command()
@RUN
@click.option(
    "--ground-truth", type=click.Path(path_type=Path), help="Folder of ground_truth_*.csv with labels to add."
)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE",
              help="Other rules for this report: evaluation.selection=leave-one-section-out")  # fmt: skip
@click.option("--all", "all_systems", is_flag=True, help="Show every system, not the one chosen of each variant.")
@click.option("--oracle", is_flag=True, help="Add the best system in hindsight: marked, never ranked.")
@click.option(
    "--by-section", "sections", is_flag=True, help="Add the first entry's AUC by machine, section and domain."
)
@click.option("--with-audio", is_flag=True, help="Put the most wrong clips into report.html to be heard: up to 30 MB.")
@click.option("-o", "--out", type=click.Path(path_type=Path, file_okay=False),
              help="Write the report into this folder, and nothing into RUN.")  # fmt: skip
def report(
    run: Path,
    ground_truth: Path | None,
    overrides: tuple[str, ...],
    all_systems: bool,
    oracle: bool,
    sections: bool,
    with_audio: bool,
    out: Path | None,
) -> None:
    """Compute RUN's leaderboard afresh, print it, write its page.

    It is made from all finished scores. The run's own report is written into RUN, with the page RUN/report.html; one by
    other rules (--set) is printed, and written only into the folder that --out names.

    \b
        rayasd report runs/first --by-section --oracle
        rayasd report runs/first --with-audio
        rayasd report runs/first --set evaluation.year=2022 --set evaluation.ensembles=seeds,greedy --out by-2022
    """
    from rayasd.cli.reporting import report_run

    report_run(run, ground_truth, overrides, all_systems=all_systems, oracle=oracle, sections=sections,
               with_audio=with_audio, out=out)  # fmt: skip


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path, file_okay=False))
@PART
@output_format("table", "md", "csv", "json")
def leaderboard(runs: tuple[Path, ...], part: str, form: str) -> None:
    """Rank the chosen systems of several RUNS together.

    By the official score on one part. Runs on the whole of DCASE 2021 Task 2 stand among published systems, with
    the source of each number.

    \b
        rayasd leaderboard runs/first runs/ablation
        rayasd leaderboard runs/* --part development --format md
    """
    from rayasd.cli.comparing import show_leaderboard

    show_leaderboard(runs, part, form)


@click.command()
@click.argument("first", type=click.Path(path_type=Path, file_okay=False))
@click.argument("second", type=click.Path(path_type=Path, file_okay=False))
@click.option("--variants", metavar="A,B", help="A variant of FIRST and one of SECOND; default: the first in rank.")
@PART
def compare(first: Path, second: Path, variants: str | None, part: str) -> None:
    """Say which of two runs is better, and how sure that is.

    By a paired bootstrap over test clips, of the official score and of the mean AUC. FIRST and SECOND may be the
    same run, to compare two of its variants.

    \b
        rayasd compare runs/mine runs/theirs
        rayasd compare runs/ablation runs/ablation --variants both,no-mixup
    """
    from rayasd.cli.comparing import compare_runs

    compare_runs((first, second), variants, part)
