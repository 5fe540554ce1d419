"""All that the page of a run is made of, and what it says about where that came from."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa

from rayasd.config import Config, EvaluationConfig
from rayasd.data.catalog import Catalog
from rayasd.evaluation.cells import Labels
from rayasd.evaluation.leaderboard import Leaderboard, Standing
from rayasd.evaluation.published import published_systems
from rayasd.evaluation.scores import Scored
from rayasd.evaluation.selection import ANY_VARIANT
from rayasd.files import read_record
from rayasd.report.tables import coverage, percent
from rayasd.unit import RunDirectory, Unit


@dataclass(frozen=True, kw_only=True)
class ReportedRun:
    """A run and what its scores come to."""

    paths: RunDirectory
    out: RunDirectory
    """Where the page and its charts go."""
    config: Config
    evaluation: EvaluationConfig
    """Rules of this report."""
    catalog: Catalog
    labels: Labels
    """As they are known now."""
    leaderboard: Leaderboard
    cells: pa.Table
    scored: Sequence[Scored]
    """Scores files of units and of ensembles."""
    done: Sequence[Unit]
    problems: Mapping[Unit, str]
    """Why a planned unit is not done."""
    provenance: Mapping[str, Any]
    why_not_published: str | None
    """Why published systems cannot be compared with this run; None when they can."""

    @property
    def part(self) -> str:
        """Sections that rank: evaluation or development."""
        return self.leaderboard.part

    @property
    def entries(self) -> list[Standing]:
        """Entries with scores of their own, best first: not those whose variant is chosen section by section."""
        return [s for s in self.leaderboard.ranked if not s.variant.startswith(ANY_VARIANT)]

    def markers(self) -> Iterator[tuple[Unit, dict[str, Any]]]:
        """Read the markers of all units that are done."""
        for unit in self.done:
            yield unit, read_record(self.paths.marker(unit, "DONE"))


def facts(run: ReportedRun) -> list[tuple[str, str]]:
    """Say what was run, on what, where and for how long; name and value."""
    machines = Counter(run.catalog.table["machine"].to_pylist())
    markers = list(run.markers())
    notes = Counter(note for _, marker in markers for note in marker.get("notes", ()))
    busy = sum(marker.get("seconds", 0.0) for _, marker in markers)
    best = run.entries[0] if run.entries else None
    planned = len(run.done) + len(run.problems)
    given = {name: str(run.provenance[name]) for name in ("command", "rayasd", "revision", "data", "data_fingerprint")}
    return [
        ("command", given["command"]),
        ("rayasd", f"{given['rayasd']}, revision {given['revision']}"),
        ("data", f"{given['data']}: {len(run.catalog.table)} clips of {', '.join(sorted(machines))}"),
        ("data fingerprint", given["data_fingerprint"]),
        *((name, str(run.provenance[name])) for name in ("clips left out", "odd in the data")),
        ("synthetic", "yes: made by rayasd data synth, not recorded" if run.provenance["synthetic"] else "no"),
        ("devices", "; ".join(f"{note} ({n} units)" for note, n in notes.most_common()) or "not noted"),
        ("hosts", ", ".join(sorted({marker["host"] for _, marker in markers if "host" in marker})) or "not noted"),
        ("wall time", f"{_duration(_wall_seconds(run.paths.root))} of sweeps; {_duration(busy)} of all units together"),
        ("units", f"{len(run.done)} of {planned} done"),
        ("cells", f"{coverage(best)} of the first in rank, {best.variant}" if best else "none"),
        ("rules", str(run.provenance["evaluation"])),
    ]


def published_rank(run: ReportedRun) -> tuple[str, list[tuple[str, str, str, bool]]]:
    """Put our entries among the published systems.

    Returns:
        A sentence, and lines of system, official score in percent, source, and whether it is ours; none where they are
        not to be compared.

    """
    if run.why_not_published is not None:
        return f"Published systems are not listed: {run.why_not_published}.", []
    ours = [(s.variant, getattr(s, run.part), getattr(s, f"{run.part}_std")) for s in run.entries if s.complete]
    lines = [(name, score, percent(score, deviation), "this run", True)
             for name, score, deviation in ours if score is not None]  # fmt: skip
    lines += [
        (p.name, p.score, percent(p.score), p.source, False)
        for p in published_systems(run.part, run.evaluation.rule_year)
    ]
    lines.sort(key=lambda line: -line[1])
    rows = [(name, score, source, own) for name, _, score, source, own in lines]
    place = next((i for i, row in enumerate(rows, 1) if row[3]), None)
    if place is None:
        return "No entry is complete: none can be ranked among published systems.", rows
    return f"{rows[place - 1][0]} is number {place} of {len(rows)} by the official score on the {run.part} set.", rows


def _wall_seconds(root: Path) -> float:
    """Length of the time in which at least one sweep was at work, by its events."""
    spans: list[tuple[datetime, datetime]] = []
    for path in root.glob("events*.jsonl"):
        began = last = None
        for line in path.read_text(encoding="utf-8").splitlines():
            with suppress(ValueError, KeyError, TypeError):
                event = json.loads(line)
                time = datetime.fromisoformat(event["time"])
                if event["event"] == "sweep started" and began and last:
                    spans.append((began, last))
                if event["event"] == "sweep started" or began is None:
                    began = time
                last = time
        if began and last:
            spans.append((began, last))
    total, reached = timedelta(), None
    for start, end in sorted(spans):
        total += max(timedelta(), end - (start if reached is None else max(start, reached)))
        reached = end if reached is None else max(reached, end)
    return total.total_seconds()


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
