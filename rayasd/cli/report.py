"""``rayasd report``, ``leaderboard``, ``compare`` and ``export``: the results of runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from rayasd.cli.options import FILE, FOLDER, PART, PATH, RUN, RUNS, output_format
from rayasd.errors import UserError
from rayasd.printing import tell


@click.command()
@RUN
@click.option("--ground-truth", type=PATH, help="Folder of ground_truth_*.csv: adds their labels to RUN.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE",
              help="Report by other rules: evaluation.selection=leave-one-section-out")  # fmt: skip
@click.option("--all", "all_systems", is_flag=True, help="Show every system, not only the chosen one of each variant.")
@click.option("--oracle", is_flag=True,
              help="Add the best system in hindsight, on the test sections; it is not ranked.")  # fmt: skip
@click.option("--by-section", "sections", is_flag=True,
              help="Add the first entry's AUC and false alarms by machine, section and domain.")  # fmt: skip
@click.option("--by-attribute", "attributes", is_flag=True, help="Add its AUC by attribute value and kind of fault.")
@click.option("--with-audio", is_flag=True, help="Include the sound of all clips in report.html: tens of MB.")
@click.option("-o", "--out", type=FOLDER, help="Write the report to this folder and nothing to RUN.")
def report(
    run: Path, ground_truth: Path | None, overrides: tuple[str, ...], all_systems: bool, oracle: bool, sections: bool,
    attributes: bool, with_audio: bool, out: Path | None,
) -> None:  # fmt: skip
    """Print RUN's leaderboard and write report.html.

    It uses all finished scores. A report by the run's own rules is written into RUN. One by other rules (--set) is
    printed, and written only to --out.

    \b
        rayasd report runs/first --by-section --oracle
        rayasd report runs/first --with-audio
        rayasd report runs/first --set evaluation.year=2022 --set evaluation.ensembles=seeds,greedy --out by-2022
    """
    from dataclasses import replace

    from rayasd.cli.display import wide_console
    from rayasd.data.catalog import write_catalog
    from rayasd.data.ground_truth import with_ground_truth
    from rayasd.report.html.page import write_page
    from rayasd.report.terminal import print_attributes, print_report, print_sections, print_untested
    from rayasd.study.study import Study
    from rayasd.sweep.states import State
    from rayasd.unit import RunDirectory
    from rayasd.wording import counted

    console, found = wide_console(), Study.open(run).report()

    def write(to: RunDirectory | None) -> None:
        console.print(found.write(to), highlight=False, soft_wrap=True)
        console.print(write_page(found, to, with_audio=with_audio), highlight=False, soft_wrap=True)

    if ground_truth is not None:
        found = replace(found, catalog=with_ground_truth(found.catalog, ground_truth))
    found = found.by_settings(overrides)
    if not found.catalog.has_tests:
        print_untested(console, found)
        return
    print_report(console, found, all_systems=all_systems, oracle=oracle)
    if (sections or attributes) and (entries := found.entries(single_variant=True)):
        first = next(iter(entries))  # any variant has no cells of its own
        if sections:
            print_sections(console, found.results.cells, first, found.evaluation)
        if attributes:
            print_attributes(console, found, first)
    if missing := len(found.sweep.states) - found.sweep.count(State.DONE) + len(found.damaged):
        console.print(f"{counted(missing, 'unit')} not done or damaged: rayasd sweep continues", style="yellow")
    if out is not None:
        if (out / "manifest.json").exists():
            raise UserError(f"--out {out} is a run directory, whose own report would be lost: choose another folder")
        write(RunDirectory(out.absolute()))
    elif overrides:
        console.print("nothing written: these are not the run's own rules; --out FOLDER writes them there", style="dim")
    else:
        with found.store.held("--out FOLDER writes the report elsewhere"):
            if ground_truth is not None:  # every later report and sweep knows these labels
                write_catalog(found.store.paths.catalog, found.catalog)
            write(None)


@click.command()
@RUNS
@PART
@output_format("table", "md", "csv", "json")
def leaderboard(runs: tuple[Path, ...], part: str | None, form: str) -> None:
    """Rank the chosen systems of several RUNS together.

    The official score on one part ranks them. Runs on a complete DCASE Task 2 set of 2020 to 2025 are ranked among
    published systems, with the source of each number.

    \b
        rayasd leaderboard runs/first runs/ablation
        rayasd leaderboard runs/* --part development --format md
    """
    import csv
    import io
    import json

    from rayasd.report.run_report import RunReport
    from rayasd.report.side_by_side import rank_runs, ranking_part, ranking_table
    from rayasd.report.tables import markdown_table

    reports = [RunReport.of(run) for run in runs]
    rows, year, where, reasons = rank_runs(reports, part or ranking_part(reports))
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
@RUNS
@click.option("--variants", metavar="A,B", help="One variant per run; default: the first in rank.")
@PART
@click.option("--html", type=FILE, help="Also write a page by machine, with trends over runs on the same data.")
def compare(runs: tuple[Path, ...], variants: str | None, part: str | None, html: Path | None) -> None:
    """Compare the first RUN with each of the others.

    Prints which is better in score and mean AUC, by how much and how certainly: by a paired bootstrap over test clips.
    Name a run twice to compare two of its variants.

    \b
        rayasd compare runs/mine runs/theirs
        rayasd compare runs/ablation runs/ablation --variants both,no-mixup
        rayasd compare runs/monday runs/tuesday runs/friday --html trend.html
    """
    from rich.text import Text

    from rayasd.cli.display import wide_console
    from rayasd.nested import split_list
    from rayasd.report.run_report import RunReport
    from rayasd.report.side_by_side import Contestant, ranking_part, verdicts
    from rayasd.report.tables import percent

    names = [None] * len(runs) if variants is None else split_list(variants)
    if len(names) != len(runs) or len(runs) < 2:
        raise UserError("give two runs or more, and with --variants one variant for each, for example both,no-mixup")
    read, console = {run: RunReport.of(run) for run in runs}, wide_console()
    reports = [read[run] for run in runs]
    part = part or ranking_part(reports)
    systems = [Contestant.named(report, name, part) for report, name in zip(reports, names, strict=True)]
    lines = [[each.name, *map(percent, (each.entry[part], each.entry["auc"], *each.domain_aucs))] for each in systems]
    found = [line for other in systems[1:] for line in verdicts(systems[0], other, part)]
    _print_table(["system", "score", "AUC", "source AUC", "target AUC"], lines)
    sentences = list(dict.fromkeys(found))
    for line in sentences:
        console.print(Text(line), soft_wrap=not console.is_terminal)
    if html is not None:
        from rayasd.report.html.page import write_comparison

        console.print(write_comparison(systems, sentences, part, html), highlight=False, soft_wrap=True)


def _print_table(titles: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    from rayasd.cli.display import wide_console
    from rayasd.report.terminal import text_table

    wide_console().print(text_table(titles, lines))


@click.group()
def export() -> None:
    """Write results in the form of a challenge."""


@export.command()
@RUN
@click.option("--system-label", "label", required=True, metavar="LABEL", help="Lastname_Institute_task2_1")
@click.option("--entry", help="Entry of the leaderboard, for example both+seeds; default: the first in rank.")
@click.option("--seed", type=int,
              help="Seed of an entry that is not over seeds; default: the lowest.")  # fmt: skip
@click.option("--name", default="Outlier exposure and inlier modelling", show_default=True, help="Name of the system.")
@click.option("--abbreviation", default="rayasd", show_default=True, help="Short name, at most 10 characters.")
@click.option("--author", "authors", multiple=True, metavar="LAST,FIRST,EMAIL,INSTITUTE",
              help="One author; may be repeated, the corresponding author first.")  # fmt: skip
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE",
              help="Other rules: evaluation.false_alarm_rate=0.05")  # fmt: skip
@click.option("-o", "--out", type=FOLDER, help="Default RUN/submission/LABEL.")
def dcase(run: Path, overrides: tuple[str, ...], **options: Any) -> None:
    """Write RUN's scores and decisions as official CSV files.

    A YAML file describes the system.

    \b
        rayasd export dcase runs/first --system-label Doe_Lab_task2_1
        rayasd export dcase runs/first --system-label Doe_Lab_task2_2 --entry both+seeds \\
            --author Doe,Jo,jo@lab.org,Lab
    """
    from rich.text import Text

    from rayasd.cli.display import wide_console
    from rayasd.report.dcase import write_submission
    from rayasd.study.study import Study

    written, *notes = write_submission(Study.open(run).report().by_settings(overrides), **options)
    wide_console().print(Text(written), soft_wrap=True)
    for note in notes:
        wide_console().print(note, style="yellow")
