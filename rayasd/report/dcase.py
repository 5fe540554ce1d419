"""A run's results as the official files of DCASE Task 2: scores and decisions (CSV), and a description (YAML)."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml
from numpy.typing import NDArray

from rayasd.config import Config, EvaluationConfig
from rayasd.errors import UserError, unknown
from rayasd.evaluation.decisions import TRAINED_ON_WARNING, decision_of
from rayasd.evaluation.fused import leaves
from rayasd.evaluation.metrics import harmonic_mean
from rayasd.evaluation.scores import Key, SectionScores, by_name
from rayasd.evaluation.selection import LEAVE_ONE_OUT
from rayasd.files import write_csv, write_text
from rayasd.inlier.scores_file import TRAINED_ON
from rayasd.pretrained import relocated, weight_paths
from rayasd.report.run_report import RunReport
from rayasd.wording import counted

MAX_ABBREVIATION = 10


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
    evaluation = report.evaluation
    config = replace(report.store.config(), evaluation=evaluation)
    entries = report.entries(single_variant=True)
    if entry is not None and entry not in entries:
        raise unknown("entry", entry, entries)
    entry = entry or next(iter(entries))
    cells = report.cells.filter((pc.field("variant") == entry) & pc.field("selected"))
    seeds = sorted(seed for seed in pc.unique(cells["seed"]).to_pylist() if seed is not None)
    if seed is not None and seed not in seeds:
        raise unknown("seed", str(seed), map(str, seeds))
    if seeds:  # else, the entry is an ensemble over seeds
        seed = seeds[0] if seed is None else seed
        cells = cells.filter(pc.field("seed") == seed)
    files = by_name(report.scored)
    folder = out or report.store.paths.root / "submission" / label
    folder.mkdir(parents=True, exist_ok=True)
    systems = {(row["machine"], Key(*(row[n] for n in Key._fields))): None for row in cells.to_pylist()}
    num_files, calibrations, scored = 0, set[str](), []
    for machine, key in systems:
        of_machine = files[entry, machine, seed].systems
        scores, decision = of_machine[key], decision_of(of_machine, key, evaluation)
        if scores.failed:
            raise UserError(f"{entry} {key.detector} has no scores of {machine} section {key.section}: {scores.reason}")
        if decision.threshold is None:
            raise UserError(
                f"{machine} section {key.section}: {decision.reason}; --set evaluation.threshold=percentile sets one "
                "without a promise (and needs inlier.calibration_folds of 2 or more)"
            )
        calibrations.add(str(decision.calibration))
        scored.append(scores)
        num_files += write_results(folder, evaluation.rule_year, machine, key.section, scores, decision.threshold)
    members = _members(scored)
    description = metadata(
        label=label,
        name=name,
        abbreviation=abbreviation,
        authors=[_author(text, corresponding=i == 0) for i, text in enumerate(authors)],
        config=config.variant(next(iter(members))) if members else config,
        systems=sorted({f"{key.detector} ({key.pooling})" for _, key in systems}),
        num_subsystems=sum(members.values()),
        total_parameters=_num_parameters(members, config),
        results=_development_results(cells),
    )
    text = yaml.safe_dump(description, sort_keys=False, allow_unicode=True)
    write_text(folder / f"{label}.meta.yaml", text)
    of_seed = "" if seed is None else f", seed {seed}"
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


def check_label(label: str) -> None:
    """Check that the challenge takes a system's label. Raises UserError: it does not."""
    if not re.fullmatch(r"[A-Za-z0-9-]+_[A-Za-z0-9-]+_task2_[1-9]\d*", label):
        raise UserError(f"--system-label {label}: write it as Lastname_Institute_task2_1")


def result_files(year: int, machine: str, section: str, domains: Sequence[str]) -> dict[str, NDArray[np.bool_]]:
    """Return a section's file names, without the prefix for their content, and which of its clips (clips,) each lists.

    In 2021 each domain has its own file; in later years all domains of a section share one; 2020 has no domains.
    """
    of = np.array(domains, dtype=object)
    if year == 2021:
        return {f"{machine}_section_{section}_{d}_test.csv": of == d for d in sorted(set(domains))}
    name = f"{machine}_id_{section}.csv" if year == 2020 else f"{machine}_section_{section}_test.csv"
    return {name: np.ones(len(of), bool)}


def write_results(folder: Path, year: int, machine: str, section: str, scores: SectionScores, threshold: float) -> int:
    """Write a section's anomaly scores and decisions (1 where the score is above the threshold), clips in name order.

    Returns number of files.
    """
    names = np.array([clip.rpartition("/")[2] for clip in scores.clips], dtype=object)
    files = result_files(year, machine, section, scores.domains.tolist())
    for file, members in files.items():
        rows = np.flatnonzero(members)[np.argsort(names[members])]
        write_csv(folder / f"anomaly_score_{file}", [(names[i], repr(float(scores.scores[i]))) for i in rows])
        decisions = [(names[i], int(scores.scores[i] > threshold)) for i in rows]
        write_csv(folder / f"decision_result_{file}", decisions)
    return 2 * len(files)


def decision_rule(evaluation: EvaluationConfig) -> str:
    """Describe how decisions are made."""
    share = 100 * (1 - evaluation.false_alarm_rate)
    rule = {
        "conformal": f"conformal, false-alarm rate of at most {evaluation.false_alarm_rate:g}",
        "gamma": f"percentile {share:g} of a gamma distribution fitted to the scores",
        "percentile": f"percentile {share:g} of the scores",
    }[evaluation.threshold]
    return f"{rule}, by scores of the {evaluation.threshold_per}'s normal training clips"


def metadata(
    *, label: str, name: str, abbreviation: str, authors: Sequence[Mapping[str, Any]], config: Config,
    systems: Sequence[str], num_subsystems: int, total_parameters: int, results: Mapping[str, Mapping[str, float]],
) -> dict[str, Any]:  # fmt: skip
    """Describe a system in the challenge's own terms.

    ``systems``: detector and pooling, one for each that was chosen; ``results``: for each machine of the development
    set, harmonic means of AUC and pAUC, in percent; ``total_parameters``: of all members' networks.

    Raises UserError: the abbreviation is too long.
    """
    if len(abbreviation) > MAX_ABBREVIATION:
        raise UserError(f"--abbreviation {abbreviation}: at most {MAX_ABBREVIATION} characters")
    exposure, network, front_end = config.exposure, config.network, config.front_end
    learned, paths = network.is_trained, weight_paths(config)
    named = relocated(config, {path: Path(path).name for path in paths}).network.encoder  # without private folders
    of_mel = f"{'log-' if front_end.log else ''}mel spectrogram, {front_end.n_mels} bands"
    is_mel = network.encoder.partition("(")[0] == "mel-timm"
    features, encoder = (of_mel, network.backbone) if is_mel else (named, named)
    method = [f"{exposure.objective} with {encoder}" if learned else named, *systems]
    target = exposure.target_domain_per_batch
    return {
        "submission": {"label": label, "name": name, "abbreviation": abbreviation, "authors": list(authors)},
        "system": {
            "description": {
                "input_sampling_rate": f"{config.data.sample_rate / 1000:g} kHz",
                "data_augmentation": "mixup" if learned and exposure.mixup_schedule != "never" else None,
                "front_end": None,
                "acoustic_features": features,
                "embeddings": encoder if paths else None,
                "machine_learning_method": "; ".join(method),
                "aggregation_method": f"{config.embedding.num_windows} windows a clip",
                "domain_adaptation_method": f"{target} target-domain clips in each batch" if target else None,
                "ensemble_method_subsystem_count": num_subsystems if num_subsystems > 1 else None,
                "decision_making": decision_rule(config.evaluation),
                "external_data_usage": "pre-trained model" if paths else None,
                "development_data_usage": "detector and pooling chosen on "
                + ("all other sections" if config.evaluation.selection == LEAVE_ONE_OUT else "the development set"),
            },
            "complexity": {"total_parameters": total_parameters},
            "source_code": None,
        },
        "results": {"development_dataset": {machine: dict(values) for machine, values in results.items()}},
    }


def _members(scored: Iterable[SectionScores]) -> dict[str, int]:
    """Count the networks behind a section's scores, by variant; of the section with most."""
    networks = (sorted({leaf[:3] for leaf in leaves(scores.tree)}) for scores in scored if scores.tree)
    return Counter(variant for variant, _, _ in max(networks, key=len, default=[]))


def _num_parameters(members: dict[str, int], config: Config) -> int:
    from rayasd.exposure.network import num_parameters  # imports torch: 3 s

    trained = {variant: count for variant, count in members.items() if config.variant(variant).network.is_trained}
    return sum(count * num_parameters(config.variant(variant)) for variant, count in trained.items())


def _author(text: str, *, corresponding: bool) -> dict[str, Any]:
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 4 or not all(parts):
        raise UserError(f"--author {text}: write it as LAST,FIRST,EMAIL,INSTITUTE")
    last, first, email, institute = parts
    person = {"lastname": last, "firstname": first, "email": email, "affiliation": {"institute": institute}}
    return person | ({"corresponding": True} if corresponding else {})


def _development_results(cells: pa.Table) -> dict[str, dict[str, float]]:
    ok = cells.filter((pc.field("part") == "development") & (pc.field("status") == "ok"))
    results: dict[str, dict[str, float]] = {}
    for machine in sorted(pc.unique(ok["machine"]).to_pylist()):
        of_machine = ok.filter(pc.field("machine") == machine)
        values = {name: of_machine[name].drop_null().to_numpy() for name in ("auc", "pauc")}
        results[machine] = {f"harmonic_mean_{n}": round(100 * float(harmonic_mean(v)), 2) for n, v in values.items()}
    return results
