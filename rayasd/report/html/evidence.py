"""Evidence for an entry of the leaderboard: the clip scores of its systems, its ROC curves, its worst clips."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from sklearn.metrics import roc_curve

from rayasd.config import EvaluationConfig
from rayasd.evaluation.cells import Labels, members_of
from rayasd.evaluation.decisions import decision_of
from rayasd.evaluation.scores import Key, Scored, SectionScores, by_name

FPR: NDArray[np.float64] = np.concatenate([[0.0], np.linspace(0, 0.1, 41)[1:] - 1e-6, np.linspace(0.1, 1, 91)[1:]])
"""False-positive rates at which curves are averaged, (n,); denser where the pAUC is taken."""


@dataclass(frozen=True)
class SectionResult:
    """One section's scores under the system that counts for an entry there."""

    machine: str
    section: str
    part: str
    seed: int | None  # None: an ensemble over seeds
    scores: SectionScores
    labels: NDArray[np.object_]  # 0, 1 or None, (clips,)
    threshold: float | None  # score above which a clip is called anomalous
    p_values: NDArray[np.float64]  # by normal clips' scores, (clips,)
    domains: tuple[str, ...]  # values of the cells that are ok and have an AUC


@dataclass(frozen=True)
class WrongClip:
    """A test clip on the wrong side of clips of the other label."""

    clip: str
    machine: str
    section: str
    domain: str
    anomalous: bool
    score: float  # mean over seeds
    wrongness: float
    """Share of the cell's clips of the other label that it should have been beyond, mean over seeds; the AUC of a cell
    is 1 minus the mean of this over its normal (or its anomalous) clips."""

    @property
    def verdict(self) -> str:
        """Description of the problem."""
        share = f"{100 * self.wrongness:.0f}\N{NO-BREAK SPACE}%"
        if self.anomalous:
            return f"anomalous, scored below {share} of the normal clips"
        return f"normal, scored above {share} of the anomalous clips"


def read_results(
    entry: str, cells: pa.Table, scored: Iterable[Scored], labels: Labels, evaluation: EvaluationConfig
) -> list[SectionResult]:
    """Read the scores that count for an entry, section by section and seed by seed.

    ``cells``: of the run, with ``selected``.
    """
    files = by_name(scored)
    sections: dict[tuple[str, int | None], dict[str, list[dict[str, Any]]]] = {}
    chosen = cells.filter(pc.field("selected") & (pc.field("variant") == entry))
    for row in chosen.to_pylist():
        sections.setdefault((row["machine"], row["seed"]), {}).setdefault(row["section"], []).append(row)
    results = []
    for (machine, seed), by_section in sorted(sections.items(), key=str):
        systems = files[entry, machine, seed].systems
        for section, rows in sorted(by_section.items()):
            key = Key(*(rows[0][name] for name in Key._fields))
            of_section, decision = systems[key], decision_of(systems, key, evaluation)
            results.append(
                SectionResult(
                    machine=machine,
                    section=section,
                    part=rows[0]["part"],
                    seed=seed,
                    scores=of_section,
                    labels=np.array([labels.get(clip) for clip in of_section.clips], dtype=object),
                    threshold=decision.threshold,
                    p_values=decision.p_values(of_section.scores),
                    domains=tuple(r["domain"] for r in rows if r["status"] == "ok" and r["auc"] is not None),
                )
            )
    return results


def mean_roc(
    results: Iterable[SectionResult], year: int, labels: Labels, domain: str | None = None
) -> NDArray[np.float64] | None:
    """Average ROC curves over cells and seeds at each rate of ``FPR``: the area is the mean AUC up to half a point.

    Returns true-positive rates, (n,); None where no cell has an AUC.
    """
    curves = []
    for result in results:
        for of_cell in result.domains if domain is None else {domain} & set(result.domains):
            anomalous, members = members_of(result.scores, of_cell, labels, year)
            fpr, tpr, _ = roc_curve(anomalous[members], result.scores.scores[members], drop_intermediate=False)
            curves.append(np.interp(FPR, fpr, tpr, left=0.0))
    if not curves:
        return None
    mean: NDArray[np.float64] = np.mean(curves, axis=0)
    mean[0] = 0.0
    return mean


def most_wrong(results: Sequence[SectionResult], year: int, labels: Labels, number: int) -> list[WrongClip]:
    """List the clips of one machine that score farthest on the wrong side, worst first; ties go to the more extreme."""
    found: dict[str, list[tuple[float, float, float]]] = {}
    facts: dict[str, Mapping[str, Any]] = {}
    for result in results:
        for domain in result.domains:
            anomalous, members = members_of(result.scores, domain, labels, year)
            scores = result.scores.scores
            spread = float(np.std(scores[members])) or 1.0
            middle = float(np.median(scores[members]))
            for label, sign in ((False, 1.0), (True, -1.0)):  # high normal clips, low anomalous ones
                others = np.sort(sign * scores[members & (anomalous != label)])
                own = np.flatnonzero(members & (anomalous == label))
                beyond = sign * scores[own]
                share = (np.searchsorted(others, beyond, "left") + np.searchsorted(others, beyond, "right")) / 2
                for place, wrong in zip(own, share / len(others), strict=True):
                    clip, score = result.scores.clips[place], float(scores[place])
                    extreme = sign * (score - middle) / spread
                    found.setdefault(clip, []).append((float(wrong), extreme, score))
                    facts[clip] = {"machine": result.machine, "section": result.section, "anomalous": label,
                                   "domain": result.scores.domains[place]}  # fmt: skip
    means = {clip: np.mean(values, axis=0).tolist() for clip, values in found.items()}
    worst = sorted((clip for clip in means if means[clip][0] > 0), key=lambda c: (-means[c][0], -means[c][1], c))
    return [WrongClip(clip=c, score=means[c][2], wrongness=means[c][0], **facts[c]) for c in worst[:number]]
