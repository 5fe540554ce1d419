"""Cells and leaderboard of a run: computed in memory, written as files."""

import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import and_
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from numpy.typing import NDArray

from rayasd.config import EvaluationConfig
from rayasd.ensemble_names import parse_entry
from rayasd.errors import UserError
from rayasd.evaluation import bootstrap
from rayasd.evaluation.bootstrap import MetricReplicates
from rayasd.evaluation.cells import Labels, cell_scores, labelled_cells, labels_of, score_cells
from rayasd.evaluation.decisions import decide
from rayasd.evaluation.ensembles import fuse_ensembles, write_ensemble
from rayasd.evaluation.leaderboard import CELLS, Interval, Leaderboard, Standing, rank
from rayasd.evaluation.scores import Scored
from rayasd.evaluation.selection import EntryCells, select
from rayasd.files import file_digest, replacing, write_text
from rayasd.parquet import write_parquet
from rayasd.printing import printable
from rayasd.report.curves import Curve, curve_chart, curve_rows, find_curves
from rayasd.report.html.svg import write_drawing
from rayasd.report.tables import columns, markdown_table, notes
from rayasd.unit import RunDirectory


@dataclass(frozen=True, kw_only=True)
class Results:
    """Results of a run's scores by one set of rules; none of them need to be on disk."""

    leaderboard: Leaderboard
    cells: pa.Table
    scored: Sequence[Scored]  # the scores of units and of ensembles

    @property
    def ensembles(self) -> list[Scored]:
        """Scores that were fused for this report."""
        return [entry for entry in self.scored if entry.computed is not None]


def compute_results(
    scored: Sequence[Scored], catalog: pa.Table, evaluation: EvaluationConfig, planned: Mapping[str, Sequence[str]]
) -> Results:
    """Compute ensembles, cells and leaderboard from all finished scores; writes nothing.

    ``planned``: for each variant, the machine of every detect unit in the plan (once per seed).

    Raises UserError: a file is damaged, or the data hold no test clips.
    """
    labels = labels_of(catalog)
    everything = [*scored, *fuse_ensembles(scored, labels, evaluation)]
    if pc.all(pc.not_equal(catalog["split"], "test")).as_py():
        raise UserError(
            "nothing to report or export: the data hold no test clips; rayasd score RUN --machine NAME FOLDER "
            "--format csv -o FILE scores new ones"
        )
    cells, entries = select(score_cells(everything, labels, evaluation), evaluation)
    cells = decide(cells, everything, labels, evaluation)
    expected = _expected(planned, everything, labelled_cells(catalog, evaluation))
    leaderboard = rank(cells, entries, expected, evaluation)
    ranked = [_with_intervals(s, everything, labels, cells, entries, leaderboard) for s in leaderboard.ranked]
    leaderboard = replace(leaderboard, standings=(*ranked, *leaderboard.standings[len(ranked) :]))
    return Results(leaderboard=leaderboard, cells=cells, scored=everything)


def write_results(
    paths: RunDirectory, results: Results, provenance: Mapping[str, Any], alerts: Sequence[str] = (),
    variants: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:  # fmt: skip
    """Write ensembles, cells.parquet and leaderboard.parquet, .csv and .md, in the place of those of an earlier report.

    ``provenance`` (run, revision, command, data, synthetic) goes into every file; ``alerts``: sentences about what
    makes the results doubtful; ``variants``: what each changes; those that differ in one number give a curve.
    """
    for entry in results.ensembles:
        write_ensemble(entry, paths.ensemble(entry.variant, entry.machine, entry.seed))
    current = {f"variant={entry.variant}" for entry in results.ensembles}
    for folder in paths.root.glob("ensembles/variant=*"):
        if folder.name not in current:
            shutil.rmtree(folder)  # of an earlier report by other rules
    leaderboard = results.leaderboard
    _write_parquet(results.cells, paths.cells, provenance)
    table = leaderboard_table(leaderboard, synthetic=bool(provenance["synthetic"]))
    with replacing(paths.leaderboard("csv")) as path:
        pyarrow.csv.write_csv(table, path)
    curves = find_curves(variants or {}, leaderboard)
    for curve in curves:
        write_drawing(paths.plot(f"{curve.name}-{curve.setting}"), curve_chart(curve, leaderboard))
    write_text(paths.leaderboard("md"), _markdown(leaderboard, curves, alerts, provenance))
    # last: its metadata prove that the others are complete
    _write_parquet(table, paths.leaderboard("parquet"), {**provenance, CELLS: file_digest(paths.cells)})


def _expected(
    planned: Mapping[str, Sequence[str]], everything: Sequence[Scored], labelled: Mapping[str, int]
) -> dict[str, int]:
    """Count the labelled cells that the plan makes for each variant and each ensemble."""
    expected = {}
    for unit in everything:
        variants, over = parse_entry(unit.variant)
        of_variants = [Counter(planned[name]) for name in variants if name in planned]
        if of_variants:  # of several, each machine as often as all of them have it: once for each seed
            machines = reduce(and_, of_variants)
        else:
            machines = Counter({machine for of_variant in planned.values() for machine in of_variant})
        counted = machines if over and unit.seed is None else machines.elements()
        expected[unit.variant] = sum(labelled.get(machine, 0) for machine in counted)
    return expected


def _with_intervals(
    standing: Standing, scored: Sequence[Scored], labels: Labels, cells: pa.Table, entries: EntryCells,
    leaderboard: Leaderboard,
) -> Standing:  # fmt: skip
    if not standing.complete:
        return standing
    rows = cells.take(entries[standing.variant])
    if leaderboard.ranked_on in ("development", "evaluation"):
        rows = rows.filter(pc.field("part") == leaderboard.ranked_on)
    of_entry = cell_scores(scored, labels, rows, leaderboard.year)
    if not of_entry or not all(of_cell.is_drawable for of_cell in of_entry.values()):
        return standing
    drawn, whole = bootstrap.metric_replicates(of_entry), bootstrap.undrawn(of_entry)

    def around(measure: Callable[[MetricReplicates], NDArray[np.float64]]) -> Interval:
        return bootstrap.interval(measure(drawn), float(measure(whole)[0]))

    return replace(
        standing,
        interval=around(lambda metrics: bootstrap.official_replicates(metrics, leaderboard.year)),
        auc_interval=around(lambda metrics: bootstrap.mean_replicates(metrics, "auc")),
        pauc_interval=around(lambda metrics: bootstrap.mean_replicates(metrics, "pauc")),
    )


def leaderboard_table(leaderboard: Leaderboard, *, synthetic: bool) -> pa.Table:
    """Return one row per system, as leaderboard.parquet has them."""
    rows = []
    for standing in leaderboard.standings:
        columns = {"year": leaderboard.year, **vars(standing)}
        machines = {f"auc_{machine}": value for machine, value in columns.pop("machines").items()}
        columns |= vars(columns.pop("decided"))
        for name in ("interval", "auc_interval", "pauc_interval", "false_alarms_interval"):
            low, high = columns.pop(name) or (None, None)
            prefix = name.removesuffix("interval")
            columns |= {f"{prefix}low": low, f"{prefix}high": high}
        rows.append(columns | {"synthetic": synthetic} | machines)
    return pa.Table.from_pylist(rows)


def _write_parquet(table: pa.Table, path: Path, provenance: Mapping[str, Any]) -> None:
    tagged = table.replace_schema_metadata({key: str(value) for key, value in provenance.items()})
    write_parquet(tagged, path)


def _markdown(
    leaderboard: Leaderboard, curves: Sequence[Curve], alerts: Sequence[str], provenance: Mapping[str, Any]
) -> str:
    shown, ranked = columns(leaderboard), leaderboard.ranked
    titles = [column.title for column in shown]
    table = markdown_table(titles, [[column.text(standing) for column in shown] for standing in ranked])
    facts = [f"- {key}: `{value}`" for key, value in provenance.items()]
    lines = [f"# Leaderboard: {provenance['run']}", "", table, ""]
    lines += [f"{note}\n" for note in (*alerts, *notes(leaderboard, ranked, titles))]
    for curve in curves:
        titles, rows = curve_rows(curve, leaderboard)
        lines += [f"## {curve.name}: {curve.setting}", "", markdown_table(titles, rows), ""]
        lines += [f"![{curve.setting}](plots/{curve.name}-{curve.setting}.svg)", ""]
    return printable("\n".join([*lines, *facts]), "\n").replace("<", "&lt;") + "\n"  # no name is HTML
