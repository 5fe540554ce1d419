"""Cells and leaderboard of a run as files."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from rayasd.errors import UserError
from rayasd.evaluation.bootstrap import interval, official_replicates
from rayasd.evaluation.cells import Scored, cell_scores, score_cells
from rayasd.evaluation.leaderboard import Leaderboard, Standing, rank, select
from rayasd.files import replacing, write_text
from rayasd.report.tables import footnotes, heading, markdown_table, row
from rayasd.unit import RunDirectory


def write_report(
    paths: RunDirectory,
    scored: Sequence[Scored],
    catalog: pa.Table,
    development_sections: Sequence[str],
    expected_units: Mapping[str, Sequence[str]],
    provenance: Mapping[str, Any],
) -> Leaderboard:
    """Compute cells and leaderboard from all finished scores and write cells.parquet and leaderboard.parquet/.csv/.md.

    Args:
        paths: the run.
        scored: finished detect units.
        catalog: with the labels as they are known now.
        development_sections: which sections choose.
        expected_units: for each variant, the machine of every detect unit in the plan (once a seed).
        provenance: run, revision, command, data, synthetic: goes into every file.

    Raises:
        UserError: nothing has been scored yet.

    """
    if not scored:
        raise UserError(f"nothing to report: no unit of {paths.root} has been scored yet")
    cells = select(score_cells(scored, catalog, development_sections))
    _write_parquet(cells, paths.cells, provenance)
    labelled = labelled_cells(catalog)
    expected = {variant: sum(labelled.get(m, 0) for m in machines) for variant, machines in expected_units.items()}
    leaderboard = _with_intervals(rank(cells, expected), scored, catalog, cells)
    machines = sorted(pc.unique(cells["machine"]).to_pylist())
    table = _leaderboard_table(leaderboard.standings, synthetic=bool(provenance["synthetic"]))
    _write_parquet(table, paths.leaderboard("parquet"), provenance)
    with replacing(paths.leaderboard("csv")) as path:
        pyarrow.csv.write_csv(table, path)
    write_text(paths.leaderboard("md"), _markdown(leaderboard, machines, provenance))
    return leaderboard


def _with_intervals(
    leaderboard: Leaderboard, scored: Sequence[Scored], catalog: pa.Table, cells: pa.Table
) -> Leaderboard:
    of_part = cells.filter(pc.field("part") == leaderboard.ranked_on)
    standings = []
    for standing in leaderboard.standings:
        if standing.rank is not None and standing.complete:
            system = (standing.variant, standing.detector, standing.pooling)
            of_system = cell_scores(scored, catalog, of_part, system)
            if of_system:
                low, high = interval(official_replicates(of_system))
                standing = replace(standing, low=low, high=high)
        standings.append(standing)
    return replace(leaderboard, standings=tuple(standings))


def labelled_cells(catalog: pa.Table) -> dict[str, int]:
    """Count, for each machine, the (section, domain) cells whose test clips all have labels, of both classes."""
    test = catalog.filter(pc.field("split") == "test")
    groups = test.group_by(["machine", "section", "domain"]).aggregate(
        [("label", "min"), ("label", "max"), ("label", "count"), ("clip", "count")]
    )
    counts: dict[str, int] = {}
    for cell in groups.to_pylist():
        labelled = cell["label_count"] == cell["clip_count"] and (cell["label_min"], cell["label_max"]) == (
            0,
            1,
        )
        counts[cell["machine"]] = counts.get(cell["machine"], 0) + labelled
    return counts


def _leaderboard_table(standings: Sequence[Standing], *, synthetic: bool) -> pa.Table:
    rows = []
    for standing in standings:
        columns = dict(vars(standing))
        machines = columns.pop("machines")
        rows.append(
            columns | {"synthetic": synthetic} | {f"auc_{machine}": value for machine, value in machines.items()}
        )
    return pa.Table.from_pylist(rows)


def _write_parquet(table: pa.Table, path: Path, provenance: Mapping[str, Any]) -> None:
    tagged = table.replace_schema_metadata({key: str(value) for key, value in provenance.items()})
    with replacing(path) as temporary:
        pq.write_table(tagged, temporary, compression="zstd")


def _markdown(leaderboard: Leaderboard, machines: Sequence[str], provenance: Mapping[str, Any]) -> str:
    table = markdown_table(heading(machines), [row(s) for s in leaderboard.ranked])
    notes = [f"{note}\n" for note in footnotes(leaderboard, synthetic=bool(provenance["synthetic"]))]
    facts = [f"- {key}: `{value}`" for key, value in provenance.items()]
    return "\n".join([f"# Leaderboard: {provenance['run']}", "", table, "", *notes, *facts]) + "\n"
