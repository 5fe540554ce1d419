"""``rayasd report``: what came of a run."""

from pathlib import Path

import click

from rayasd.cli.options import RUN
from rayasd.errors import UserError


@click.command()
@RUN
@click.option(
    "--ground-truth", type=click.Path(path_type=Path), help="Folder of ground_truth_*.csv with labels to add."
)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE",
              help="Other rules for this report: evaluation.selection=leave-one-section-out")  # fmt: skip
@click.option("--all", "all_systems", is_flag=True, help="Show every system, not only the chosen one of each variant.")
@click.option(
    "--oracle", is_flag=True, help="Add the system that is best on the test sections in hindsight; never ranked."
)
@click.option(
    "--by-section", "sections", is_flag=True, help="Add the first entry's AUC and decisions by machine and domain."
)
@click.option("--by-attribute", "attributes", is_flag=True, help="Add its AUC by attribute value and kind of fault.")
@click.option("--with-audio", is_flag=True, help="Put the sound of all shown clips into report.html, some tens of MB.")
@click.option("-o", "--out", type=click.Path(path_type=Path, file_okay=False),
              help="Write the report into this folder, and nothing into RUN.")  # fmt: skip
def report(
    run: Path, ground_truth: Path | None, overrides: tuple[str, ...], all_systems: bool, oracle: bool, sections: bool,
    attributes: bool, with_audio: bool, out: Path | None,
) -> None:  # fmt: skip
    """Compute RUN's leaderboard, print it and write report.html.

    It is made from all finished scores. The run's own report is written into RUN, with the page RUN/report.html; one by
    other rules (--set) is printed, and written only into the folder that --out names.

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
