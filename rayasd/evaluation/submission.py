"""Files of a DCASE Task 2 submission: anomaly scores and decisions of each section (CSV), and a description (YAML)."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayasd.config import Config, EvaluationConfig
from rayasd.errors import UserError
from rayasd.evaluation.scores import SectionScores
from rayasd.evaluation.selection import LEAVE_ONE_OUT
from rayasd.files import write_csv
from rayasd.pretrained import relocated, weight_paths

MAX_ABBREVIATION = 10


def check_label(label: str) -> None:
    """Make sure that a system's label is one that the challenge takes. Raises UserError: it is not."""
    if not re.fullmatch(r"[A-Za-z0-9-]+_[A-Za-z0-9-]+_task2_[1-9]\d*", label):
        raise UserError(f"--system-label {label}: write it as Lastname_Institute_task2_1")


def result_files(year: int, machine: str, section: str, domains: Sequence[str]) -> dict[str, NDArray[np.bool_]]:
    """Name a section's files, without what they hold in front, and say which of its clips (clips,) each lists.

    In 2021 each domain has a file of its own; later a section's domains are not told apart; 2020 has no domains.
    """
    of = np.array(domains, dtype=object)
    if year == 2020:
        return {f"{machine}_id_{section}.csv": np.ones(len(of), bool)}
    if year == 2021:
        return {f"{machine}_section_{section}_{d}_test.csv": of == d for d in sorted(set(domains))}
    return {f"{machine}_section_{section}_test.csv": np.ones(len(of), bool)}


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
    learned = network.is_trained
    paths = weight_paths(config)
    named = relocated(
        config, {path: Path(path).name for path in paths}
    ).network.encoder  # folders are nobody's business
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
