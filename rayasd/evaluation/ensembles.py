"""Ensembles: entries of the leaderboard whose clip scores are fused from several systems' or seeds' scores.

An ensemble's scores have the form of a unit's, in memory and on disk, so that everything that reads those reads these.
"""

import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rayasd.config import EvaluationConfig
from rayasd.ensemble_names import GREEDY, parse_ensemble
from rayasd.evaluation.cells import Labels, members_of, why_not_evaluated
from rayasd.evaluation.fused import fused
from rayasd.evaluation.metrics import METRICS
from rayasd.evaluation.scores import TREES, TREES_DIGEST, Key, Scored, SectionScores, System
from rayasd.evaluation.selection import LEAVE_ONE_OUT, left_out
from rayasd.evaluation.years import cell_kinds, choosing_score, is_development
from rayasd.files import digest
from rayasd.inlier.fusion import z_normalised
from rayasd.inlier.scores_file import SCHEMA, TRAINED_ON
from rayasd.parquet import write_parquet

MAX_MEMBERS = 10
FUSED = "fused"  # detector of an ensemble over detectors


def fuse_ensembles(scored: Sequence[Scored], labels: Labels, evaluation: EvaluationConfig) -> list[Scored]:
    """Fuse finished units' scores by ``evaluation.ensembles``, for each entry and machine; writes nothing.

    Every ensemble is over what is there: one over seeds needs two seeds of a machine. The greedy one picks its members
    on the sections that choose and is made only where these have labels.
    """
    entries: list[Scored] = []
    for name in evaluation.ensembles:
        if name == GREEDY:
            entries += _greedy(scored, labels, evaluation)
        else:
            entries += _averages(scored, name, evaluation.fusion)
    return entries


def _averages(scored: Sequence[Scored], name: str, method: str) -> list[Scored]:
    variants, over = parse_ensemble(name)
    if variants:
        return _across(scored, variants, over, method)
    groups: dict[tuple[str, str, int | None], list[Scored]] = {}
    for unit in scored:
        groups.setdefault((unit.variant, unit.machine, None if "seeds" in over else unit.seed), []).append(unit)
    entries, differing = [], set[tuple[str, int | None]]()
    for (variant, machine, seed), units in groups.items():
        members = _members(units, over)
        if members and all(len(of_key) > 1 for of_key in members.values()):
            computed = {key: fused(of_key, method) for key, of_key in members.items()}
            entries.append(Scored(f"{variant}+{name}", machine, seed, computed=computed))
            if any(map(_differ, members.values())):
                differing.add((f"{variant}+{name}", seed))
    return [entry for entry in entries if (entry.variant, entry.seed) in differing]


def _members(units: Sequence[Scored], over: Sequence[str]) -> dict[Key, list[SectionScores]]:
    """Collect what is averaged, by the system that it becomes."""
    members: dict[Key, list[SectionScores]] = {}
    for unit in units:
        failed = {k[1:] for k, s in unit.systems.items() if s.failed or not np.isfinite(s.training).all()}
        for key, scores in unit.systems.items():
            if "detectors" in over and key[1:] in failed:
                continue  # one that cannot be fitted somewhere leaves the others their ensemble
            checkpoint = 0 if "checkpoints" in over else key.checkpoint
            detector = FUSED if "detectors" in over else key.detector
            members.setdefault(Key(key.section, checkpoint, detector, key.pooling), []).append(scores)
    return members


def _differ(members: Sequence[SectionScores]) -> bool:
    """Whether not all scores are the same, as those of a control are for every seed: there is nothing to fuse."""
    values = [np.concatenate([member.scores, member.training]) for member in members]
    return any(
        each.shape != values[0].shape or not np.allclose(each, values[0], rtol=1e-6, atol=0, equal_nan=True)
        for each in values
    )


def _across(scored: Sequence[Scored], variants: Sequence[str], over: Sequence[str], method: str) -> list[Scored]:
    """Fuse variants, each averaged over seeds, checkpoints or detectors first: all weigh the same.

    Without ``checkpoints``, each variant's last one counts. What not all variants have, or what they have tested on
    other clips, is left out.
    """
    entries = []
    seeds = [None] if "seeds" in over else sorted({unit.seed for unit in scored if unit.seed is not None})
    for machine in sorted({unit.machine for unit in scored}):
        for seed in seeds:
            of_variants = []
            for variant in variants:
                units = [u for u in scored if (u.variant, u.machine) == (variant, machine) and seed in (None, u.seed)]
                members = _members(units, over)
                last = max((key.checkpoint for key in members), default=0)
                of_variants.append({
                    key._replace(checkpoint=0): fused(of_key, method) if len(of_key) > 1 else of_key[0]
                    for key, of_key in members.items() if key.checkpoint == last
                })  # fmt: skip
            computed = {}
            for key, first in of_variants[0].items():
                others = [of_variant[key] for of_variant in of_variants[1:] if key in of_variant]
                if len(others) == len(variants) - 1 and all(list(o.clips) == list(first.clips) for o in others):
                    computed[key] = fused([first, *others], method)
            if computed:
                entries.append(Scored("+".join(["&".join(variants), *over]), machine, seed, computed=computed))
    return entries


def _greedy(scored: Sequence[Scored], labels: Labels, evaluation: EvaluationConfig) -> list[Scored]:
    """Greedy forward selection with replacement (Caruana et al. 2004) among all systems, their seeds fused first."""
    seeds: dict[System, dict[Where, list[SectionScores]]] = {}
    for unit in scored:
        for key, scores in unit.systems.items():
            system = System(unit.variant, key.checkpoint, key.detector, key.pooling)
            seeds.setdefault(system, {}).setdefault((unit.machine, key.section), []).append(scores)
    places = sorted({where for of_system in seeds.values() for where in of_system})
    candidates = {
        s: {w: fused(m, "z-mean") for w, m in of.items()} for s, of in seeds.items() if len(of) == len(places)
    }
    candidates = {  # whose training scores give a scale: seeds may have no normal clip in common
        s: of for s, of in candidates.items()
        if all(not each.failed and len(each.training) > 1 and np.ptp(each.training) > 0 for each in of.values())
    }  # fmt: skip
    tested = {s: tuple(tuple(scores.clips) for scores in of.values()) for s, of in candidates.items()}
    most = max(Counter(tested.values()).items(), key=lambda item: item[1], default=((), 0))[0]
    candidates = {s: of for s, of in candidates.items() if tested[s] == most}  # all are tested on the same clips
    systems = list(candidates)
    if len(systems) < 2:
        return []
    scaled = {w: np.stack([z_normalised(of[w].scores, of[w].training) for of in candidates.values()]) for w in places}
    cells = [cell for w in places for cell in _labelled(w, candidates[systems[0]][w], labels, evaluation.rule_year)]
    members: dict[Where, list[System]] = {}
    for fold, choosing in _folds(places, evaluation):
        basis = [cell for cell in cells if cell.where in choosing]
        if not basis:
            return []
        picked = [systems[i] for i in _pick(scaled, basis, evaluation)]
        members |= dict.fromkeys(fold, picked)
    entries = []
    for machine in sorted({machine for machine, _ in places}):
        sections = [section for m, section in places if m == machine]
        of_machine = {
            Key(section, 0, "several", "several"): fused(
                [candidates[system][machine, section] for system in members[machine, section]], "z-mean"
            )
            for section in sections
        }
        entries.append(Scored(f"all+{GREEDY}", machine, None, computed=of_machine))
    return entries


Where = tuple[str, str]  # machine, section


class _ChoosingCell(NamedTuple):
    where: Where
    metric: str
    anomalous: NDArray[np.bool_]  # which of the cell's clips are anomalous
    members: NDArray[np.bool_]  # which of the section's clips are in the cell


def _labelled(where: Where, scores: SectionScores, labels: Labels, year: int) -> Iterable[_ChoosingCell]:
    for kind in cell_kinds(year, scores.domains):
        if why_not_evaluated(scores.clips, kind, labels) is None:
            anomalous, members = members_of(scores, kind.domain, labels, year)
            for metric in kind.metrics:
                yield _ChoosingCell(where, metric, anomalous[members], members)


def _folds(places: Sequence[Where], evaluation: EvaluationConfig) -> list[tuple[list[Where], Collection[Where]]]:
    """Sections that are reported together, and the sections that choose for them."""
    if evaluation.selection != LEAVE_ONE_OUT:
        return [(list(places), {where for where in places if is_development(evaluation, *where)})]
    by = ("machine", "section").index(left_out(section for _, section in places))
    names = sorted({where[by] for where in places})
    return [([w for w in places if w[by] == name], {w for w in places if w[by] != name}) for name in names]


def _pick(
    scaled: Mapping[Where, NDArray[np.float64]], cells: Sequence[_ChoosingCell], evaluation: EvaluationConfig
) -> list[int]:
    """Add the system that raises the choosing score most, until none does; scores are (systems, clips) by section."""
    machines = [cell.where[0] for cell in cells]
    chosen: list[int] = []
    best = -1.0
    while len(chosen) < MAX_MEMBERS:
        values = []
        for cell in cells:
            scores = scaled[cell.where][:, cell.members]
            values.append(METRICS[cell.metric](cell.anomalous, scores + scores[chosen].sum(axis=0)))
        reached = choosing_score(evaluation, machines, [cell.metric for cell in cells], np.stack(values))
        if reached.max() <= best:
            break
        best = float(reached.max())
        chosen.append(int(reached.argmax()))
    return chosen


def write_ensemble(entry: Scored, path: Path) -> None:
    """Write an ensemble's scores as a detect unit does; the file's metadata list what was fused."""
    columns: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
    for key, scores in entry.systems.items():
        no_domains = [None] * len(scores.training_clips)
        splits = np.where(scores.calibration == TRAINED_ON, "train", "validation")
        for clips, values, domains, of_clips, groups, how in (
            (scores.clips, scores.scores, scores.domains, ["test"] * len(scores.clips), scores.groups,
             [None] * len(scores.clips)),
            (scores.training_clips, scores.training, no_domains, splits, scores.training_groups, scores.calibration),
        ):  # fmt: skip
            for name, value in {**key._asdict(), "label": None, "reason": scores.reason}.items():
                columns[name] += [value] * len(clips)
            columns["group"] += [None if group == clip else group for group, clip in zip(groups, clips, strict=True)]
            columns["calibration"] += list(how)
            columns["clip"] += list(clips)
            columns["domain"] += list(domains)
            columns["split"] += list(of_clips)
            columns["score"] += [None if np.isnan(value) else value for value in values.tolist()]
    arrays = [pa.array(columns[f.name]).cast(f.type) for f in SCHEMA]
    trees = [scores.tree for scores in entry.systems.values()]
    facts = {TREES: json.dumps(trees), TREES_DIGEST: digest(trees)}
    write_parquet(pa.Table.from_arrays(arrays, schema=SCHEMA.with_metadata(facts)), path)


def read_ensembles(folder: Path) -> list[Scored]:
    """List the ensembles that a report has written."""
    found = []
    for path in sorted(folder.glob("*/*/*/part-0.parquet")):
        variant, machine, seed = (part.name.partition("=")[2] for part in reversed(path.parents[:3]))
        found.append(Scored(variant, machine, None if seed == "all" else int(seed), path))
    return found
