"""A run's results as the official files of DCASE Task 2: scores, decisions, description."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from rayasd.config import Config
from rayasd.errors import UserError, unknown
from rayasd.evaluation.decisions import threshold
from rayasd.evaluation.metrics import harmonic_mean
from rayasd.evaluation.scores import Key, Scored, by_name
from rayasd.evaluation.submission import check_label, metadata, write_metadata, write_results
from rayasd.report.run_report import RunReport
from rayasd.unit import Unit
from rayasd.wording import counted


def write_submission(
    report: RunReport,
    *,
    label: str,
    variant: str | None,
    seed: int | None,
    name: str,
    abbreviation: str,
    authors: Sequence[str],
    out: Path | None,
) -> list[str]:
    """Write a submission of one entry of the leaderboard: development and evaluation sections in one folder.

    Args:
        report: of the run.
        label: of the system, ``Lastname_Institute_task2_1``.
        variant: entry of the leaderboard; default: the first in rank.
        seed: which, where the entry is no ensemble of seeds; default: the lowest.
        name: of the system.
        abbreviation: of the name, at most 10 characters.
        authors: ``LAST,FIRST,EMAIL,INSTITUTE`` each, the corresponding one first.
        out: folder; default: ``submission/LABEL`` in the run.

    Returns:
        Lines for a person: what was written, then what it lacks.

    Raises:
        UserError: an unknown entry or seed, a section without scores or threshold, a wrong label or author.

    """
    check_label(label)
    store, evaluation = report.store, report.evaluation
    config = replace(store.config(), evaluation=evaluation)
    entries = report.entries(single_variant=True)
    if variant is not None and variant not in entries:
        raise unknown("entry", variant, entries)
    entry = variant or next(iter(entries))
    cells = report.cells.filter((pc.field("variant") == entry) & pc.field("selected"))
    seeds = sorted(seed for seed in pc.unique(cells["seed"]).to_pylist() if seed is not None)
    if seed is not None and seed not in seeds:
        raise unknown("seed", str(seed), map(str, seeds))
    chosen = None if not seeds else seeds[0] if seed is None else seed
    if chosen is not None:
        cells = cells.filter(pc.field("seed") == chosen)
    files = by_name(report.scored)
    folder = out or store.paths.root / "submission" / label
    folder.mkdir(parents=True, exist_ok=True)
    systems = {(row["machine"], Key(*(row[n] for n in Key._fields))): None for row in cells.to_pylist()}
    members = _members(entry, report.sweep.specs, config, [files[entry, machine, chosen] for machine, _ in systems])
    num_files = 0
    for machine, key in systems:
        scores = files[entry, machine, chosen].systems[key]
        if scores.failed:
            raise UserError(f"{entry} {key.detector} has no scores of {machine} section {key.section}: {scores.reason}")
        limit = threshold(scores.calibrating, evaluation.threshold_percentile)
        if limit is None:
            raise UserError(
                f"{machine} section {key.section} has no scores of normal training clips to set a threshold by: "
                "inlier.calibration_folds needs to be 2 or more, the section as many normal clips, and an ensemble "
                "clips that all its members have scored (inlier.fit_on=train)"
            )
        num_files += write_results(folder, evaluation.rule_year, machine, key.section, scores, limit)
    resolved = config.variant(next(iter(members))) if members else config
    description = metadata(
        label=label,
        name=name,
        abbreviation=abbreviation,
        authors=[_author(text, corresponding=i == 0) for i, text in enumerate(authors)],
        config=resolved,
        systems=sorted({f"{key.detector} ({key.pooling})" for _, key in systems}),
        num_subsystems=sum(members.values()),
        total_parameters=_parameters(members, config),
        results=_development_results(cells),
    )
    write_metadata(folder / f"{label}.meta.yaml", description)
    of_seed = "" if chosen is None else f", seed {chosen}"
    lines = [f"{entry}{of_seed}: {counted(num_files, 'CSV file')} and {label}.meta.yaml in {folder}"]
    ok, expected = (entries[entry][key] for key in ("cells_ok", "cells_expected"))
    if ok < expected:
        lines.append(f"incomplete: {ok} of {expected} labelled cells have scores")
    if not authors:
        lines.append("no --author given: add authors to the description before you hand it in")
    return lines


def _members(entry: str, units: Collection[Unit], config: Config, scored: Sequence[Scored]) -> dict[str, int]:
    """Count the networks behind an entry, by variant."""
    variant, _, ensemble = entry.partition("+")
    greedy = [member for unit in scored for of_section in (unit.members or {}).values() for member in of_section]
    if greedy:
        chosen = {(member.variant, member.checkpoint) for member in greedy}
        seeds = {v: len({u.seed for u in units if u.variant == v}) for v, _ in chosen}
        return {v: seeds[v] * sum(name == v for name, _ in chosen) for v, _ in sorted(chosen)}
    counts = {}
    for name in variant.split("&"):
        counts[name] = len({u.seed for u in units if u.variant == name}) if "seeds" in ensemble else 1
        if "checkpoints" in ensemble:
            counts[name] *= config.variant(name).exposure.num_checkpoints
    return counts


def _parameters(members: dict[str, int], config: Config) -> int:
    from rayasd.exposure.network import num_parameters  # imports torch: 3 s

    resolved = {variant: config.variant(variant) for variant in members}
    networks = {v: num_parameters(c) if c.network.is_trained else 0 for v, c in resolved.items()}
    return sum(count * networks[variant] for variant, count in members.items())


def _author(text: str, *, corresponding: bool) -> dict[str, Any]:
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 4 or not all(parts):
        raise UserError(f"--author {text}: write it as LAST,FIRST,EMAIL,INSTITUTE")
    last, first, email, institute = parts
    person = {"lastname": last, "firstname": first, "email": email, "affiliation": {"institute": institute}}
    return person | ({"corresponding": True} if corresponding else {})


def _development_results(cells: pa.Table) -> dict[str, dict[str, float]]:
    rows = [row for row in cells.to_pylist() if row["part"] == "development" and row["status"] == "ok"]
    results = {}
    for machine in sorted({row["machine"] for row in rows}):
        of_machine = [row for row in rows if row["machine"] == machine]
        results[machine] = {
            f"harmonic_mean_{name}": round(100 * harmonic_mean([r[name] for r in of_machine if r[name] is not None]), 2)
            for name in ("auc", "pauc")
        }
    return results
