"""A run's results as the official files of DCASE Task 2: scores, decisions, description."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import yaml

from rayasd.config import Config
from rayasd.errors import UserError, unknown
from rayasd.evaluation.decisions import TRAINED_ON_WARNING, decision_of
from rayasd.evaluation.fused import leaves
from rayasd.evaluation.metrics import harmonic_mean
from rayasd.evaluation.scores import Key, SectionScores, by_name
from rayasd.evaluation.submission import check_label, decision_rule, metadata, write_results
from rayasd.files import write_text
from rayasd.inlier.scores_file import TRAINED_ON
from rayasd.report.run_report import RunReport
from rayasd.wording import counted


def write_submission(
    report: RunReport, *, label: str, entry: str | None, seed: int | None, name: str, abbreviation: str,
    authors: Sequence[str], out: Path | None,
) -> list[str]:  # fmt: skip
    """Write a submission of one entry of the leaderboard: development and evaluation sections in one folder.

    ``label``: ``Lastname_Institute_task2_1``; ``authors``: ``LAST,FIRST,EMAIL,INSTITUTE`` each, the corresponding one
    first. By default, the entry that ranks first, its lowest seed, and the folder ``submission/LABEL`` of the run.

    Returns lines for a person: what was written, then what it lacks. Raises UserError: an unknown entry or seed, a
    section without scores or threshold, a wrong label or author.
    """
    check_label(label)
    store, evaluation = report.store, report.evaluation
    config = replace(store.config(), evaluation=evaluation)
    entries = report.entries(single_variant=True)
    if entry is not None and entry not in entries:
        raise unknown("entry", entry, entries)
    entry = entry or next(iter(entries))
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
    members = _members(files[entry, machine, chosen].systems[key] for machine, key in systems)
    num_files, calibrations = 0, set[str]()
    for machine, key in systems:
        scores = files[entry, machine, chosen].systems[key]
        if scores.failed:
            raise UserError(f"{entry} {key.detector} has no scores of {machine} section {key.section}: {scores.reason}")
        decision = decision_of(files[entry, machine, chosen].systems, key, evaluation)
        if decision.threshold is None:
            raise UserError(
                f"{machine} section {key.section}: {decision.reason}; --set evaluation.threshold=percentile sets one "
                "without a promise (and needs inlier.calibration_folds of 2 or more)"
            )
        calibrations.add(str(decision.calibration))
        num_files += write_results(folder, evaluation.rule_year, machine, key.section, scores, decision.threshold)
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
    text = yaml.safe_dump(description, sort_keys=False, allow_unicode=True)
    write_text(folder / f"{label}.meta.yaml", text)
    of_seed = "" if chosen is None else f", seed {chosen}"
    lines = [f"{entry}{of_seed}: {counted(num_files, 'CSV file')} and {label}.meta.yaml in {folder}"]
    lines.append(f"decisions: {decision_rule(evaluation)}; normal clips: {', '.join(sorted(calibrations))}")
    if TRAINED_ON in calibrations:
        lines.append(f"{TRAINED_ON_WARNING}: expect more false alarms than {evaluation.false_alarm_rate:g}")
    ok, expected = (entries[entry][key] for key in ("cells_ok", "cells_expected"))
    if ok < expected:
        lines.append(f"incomplete: {ok} of {expected} labelled cells have scores")
    if not authors:
        lines.append("no --author given: add authors to the description before you hand it in")
    return lines


def _members(scored: Iterable[SectionScores]) -> dict[str, int]:
    """Count the networks behind scores, by variant."""
    found = {leaf[:3] for scores in scored if scores.tree for leaf in leaves(scores.tree)}
    return Counter(variant for variant, _, _ in sorted(found))


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
