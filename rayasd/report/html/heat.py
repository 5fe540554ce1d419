"""Tables of AUC in colour: rows of machines, entries or runs; columns of sections and domains."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayasd.evaluation.leaderboard import mean_of
from rayasd.report.tables import PARTS, heat_colours, percent

CellColumn = tuple[str, str, str]  # part, section, domain


class HeatCell(NamedTuple):
    """A coloured number."""

    text: str
    note: str  # text on hover: pAUC and number of clips, or why there is no number
    style: str
    is_worst: bool = False


class HeatTable(NamedTuple):
    """Rows of cells below columns; a row's first cell is the mean of the others."""

    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[HeatCell | None]]]


def cell_groups(cells: pa.Table, entry: str, machine: str) -> dict[CellColumn, list[dict[str, Any]]]:
    """Return an entry's chosen cells of a machine, one per seed, by part, section and domain."""
    of_machine = (pc.field("selected")) & (pc.field("variant") == entry) & (pc.field("machine") == machine)
    groups: dict[CellColumn, list[dict[str, Any]]] = {}
    for cell in cells.filter(of_machine).to_pylist():
        if cell["auc"] is not None or cell["status"] != "ok":  # not one that counts for its pAUC alone
            groups.setdefault((cell["part"], cell["section"], cell["domain"]), []).append(cell)
    return groups


def heat_table(rows: Mapping[str, Mapping[CellColumn, Sequence[Mapping[str, Any]]]]) -> HeatTable:
    """Lay out AUCs, means over seeds, with each row's mean; the lowest is marked.

    ``rows``: cells by name of the row and place.
    """
    columns = sorted({column for groups in rows.values() for column in groups})
    means = {(name, column): mean_of(cells, "auc") for name, groups in rows.items() for column, cells in groups.items()}
    known = {place: auc for place, auc in means.items() if auc is not None}
    worst = min(known, key=known.__getitem__) if len(known) > 1 else None
    found = []
    for name, groups in rows.items():
        of_row = [auc for (row, _), auc in known.items() if row == name]
        row: list[HeatCell | None] = [heat_cell(float(np.mean(of_row)) if of_row else None, "mean of the row")]
        for column in columns:
            cells, place = groups.get(column), (name, column)
            row.append(heat_cell(means[place], _note(cells), is_worst=place == worst) if cells else None)
        found.append((name, row))
    names = [f"{PARTS.get(part, part)} {section} {domain}".strip() for part, section, domain in columns]
    return HeatTable(names, found)


def heat_cell(auc: float | None, note: str, *, is_worst: bool = False) -> HeatCell:
    """Colour an AUC, a fraction of 1."""
    if auc is None:
        return HeatCell("–", note, "")
    background, ink = heat_colours(auc)
    return HeatCell(percent(auc), note, f"background:{background};color:{ink}", is_worst)


def _note(cells: Sequence[Mapping[str, Any]]) -> str:
    good = [cell for cell in cells if cell["auc"] is not None]
    if not good:
        return f"{cells[0]['status']}: {cells[0]['reason']}"
    pauc = mean_of(good, "pauc")
    words = [] if pauc is None else [f"pAUC {percent(pauc)}"]
    places, seeds = ({tuple(cell[name] for name in by) for cell in good} for by in (("section", "domain"), ("seed",)))
    clips = f"{good[0]['num_normal']} normal and {good[0]['num_anomaly']} anomalous clips"
    words += [clips if len(places) == 1 else f"{len(places)} sections and domains"]
    words += [f"mean of {len(seeds)} seeds"] if len(seeds) > 1 else []
    return ", ".join(words)
