"""From scores to decisions: a threshold from the scores of normal clips, and how good the decisions are."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rayasd.arrays import Scores
from rayasd.config import EvaluationConfig
from rayasd.evaluation.bootstrap import CONFIDENCE
from rayasd.evaluation.cells import Labels, members_of
from rayasd.evaluation.scores import Calibration, Key, Scored, SectionScores, by_name
from rayasd.evaluation.years import BOTH_DOMAINS
from rayasd.wording import counted

TRAINED_ON_WARNING = "calibrated on clips that were trained on"
_FEWEST_TO_FIT = 30
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Decision:
    """A decision threshold from the scores of normal clips."""

    threshold: float | None  # score above which a clip is called anomalous
    reason: str | None  # why there is no threshold
    calibration: str | None
    """How the normal clips' scores came about: held-out, cross-fit, leave-one-out, trained-on; None without scores."""
    normal: Scores  # scores of normal clips, rising, (n,)
    above: Scores
    """For each of these scores the number of groups at or above it, then 0; (n + 1,). A clip of a group of k counts
    1/k, so the first is the number of groups."""

    @property
    def num_groups(self) -> int:
        """Groups of normal clips; a clip without a group is its own."""
        return round(float(self.above[0]))

    @classmethod
    def of(cls, calibrations: Mapping[str, Calibration], section: str, evaluation: EvaluationConfig) -> "Decision":
        """Decide about the clips of a section.

        ``calibrations``: scores of the normal clips of each of the machine's sections; ``section`` need not be one of
        them.
        """
        machine = Calibration.pooled(calibrations.values())
        own = calibrations.get(section, Calibration.pooled([]))
        pools = evaluation.threshold_per == "machine"
        found = cls._by(machine if pools else own, evaluation)
        if found.threshold is None and not pools:
            pooled = cls._by(machine, evaluation)
            if pooled.threshold is not None:
                way = f'evaluation.threshold_per = "machine" pools the {pooled.num_groups} of all sections'
                return replace(found, reason=f"{found.reason}; {way}")
        return found

    @classmethod
    def _by(cls, calibration: Calibration, evaluation: EvaluationConfig) -> "Decision":
        scores, rate = calibration.scores, evaluation.false_alarm_rate
        if len(scores) == 0 or not np.isfinite(scores).all():
            none = (
                "no normal clip has a score: this needs two of them (or two groups), and inlier.calibration_folds of 2"
            )
            why = "some normal clips could not be scored" if len(scores) else none
            return cls(None, f"no threshold: {why}", None, np.empty(0), np.zeros(1))
        order = np.argsort(scores, kind="stable")
        _, group, sizes = np.unique(calibration.groups.astype(str), return_inverse=True, return_counts=True)
        above = np.append(np.cumsum(1 / sizes[group[order]][::-1])[::-1].round(9), 0.0)
        found = cls(None, None, calibration.kind, scores[order], above)
        if evaluation.threshold == "gamma":
            return replace(found, threshold=gamma_quantile(scores, 1 - rate))
        if evaluation.threshold == "percentile":
            return replace(found, threshold=float(np.quantile(scores, 1 - rate)))
        n = found.num_groups
        if rate * (n + 1) < 1 - _ROUNDING:
            noun, verb = "normal clip" if n == len(scores) else "group", "allows" if n == 1 else "allow"
            why = f"{counted(n, noun)} {verb} no false-alarm rate below 1/{n + 1}"
            return replace(found, reason=f"no threshold: {why}")
        # the lowest score above which a p-value is at most the rate
        beyond = above[np.searchsorted(found.normal, found.normal, "right")]
        return replace(found, threshold=float(found.normal[beyond <= rate * (n + 1) - 1 + _ROUNDING][0]))

    def p_values(self, scores: Scores) -> Scores:
        """Compute conformal p-values: the chance of so high a score, or a higher one, if a clip is normal.

        (1 + number of groups that score as high) / (number of groups + 1), whatever ``evaluation.threshold`` is. A clip
        without a group is its own; one of a group of k counts as 1 / k, which is exact for a single new clip of a new
        group (hierarchical conformal prediction; Lee, Barber, Willett, arXiv 2306.06342).

        ``scores``: of clips, (m,).

        Returns (m,), at least 1 / (number of groups + 1).
        """
        return (1 + self.above[np.searchsorted(self.normal, scores, "left")]) / (self.num_groups + 1)


def decision_of(systems: Mapping[Key, SectionScores], key: Key, evaluation: EvaluationConfig) -> Decision:
    """Decide by one system, of which ``systems`` has the scores in all sections of the machine."""
    of_system = {k.section: scores.calibrating for k, scores in systems.items() if k[1:] == key[1:]}
    return Decision.of(of_system, key.section, evaluation)


@dataclass(frozen=True)
class Decided:
    """False alarms and recall of the decisions in some cells."""

    false_alarms: float | None
    """Share of their normal test clips that are called anomalous, mean over seeds; None without decisions."""
    false_alarms_interval: tuple[float, float] | None  # 95 % interval of that share, for as many clips as one seed has
    recall: float | None  # mean over cells with anomalies and seeds
    calibration: str | None  # how the normal clips' scores came about, all the words that apply
    num_calibration: int | None  # normal clips (or groups) behind a threshold, where they are fewest
    no_threshold: str | None  # why one of the cells has no threshold

    @classmethod
    def of(cls, rows: Iterable[Mapping[str, Any]]) -> "Decided":
        """Put cells together; those without a decision are passed over."""
        rows = [row for row in rows if row["num_calibration"] is not None]
        decided = [row for row in rows if row["false_alarms"] is not None]
        reason = next((row["no_threshold"] for row in rows if row["no_threshold"]), None)
        kinds = ", ".join(sorted({row["calibration"] for row in rows} - {None})) or None
        fewest = min((row["num_calibration"] for row in rows), default=None)
        if not decided:
            return cls(None, None, None, kinds, fewest, reason)
        seeds = len({row["seed"] for row in decided})
        clips = sum(row["num_normal"] for row in decided)
        rate = sum(row["num_normal"] * row["false_alarms"] for row in decided) / clips
        of_one_seed = round(clips / seeds)
        interval = clopper_pearson(rate * of_one_seed, of_one_seed)
        recalls = [row["recall"] for row in decided if row["recall"] is not None]
        return cls(rate, interval, float(np.mean(recalls)) if recalls else None, kinds, fewest, reason)


def clopper_pearson(count: float, of: int) -> tuple[float, float]:
    """Exact 95 % interval of a share (Clopper and Pearson 1934), given how many of how many."""
    from scipy.stats import beta  # slow to import, like gamma

    tail = (1 - CONFIDENCE) / 2
    low = 0.0 if count <= 0 else float(beta.ppf(tail, count, of - count + 1))
    high = 1.0 if count >= of else float(beta.ppf(1 - tail, count + 1, of - count))
    return low, high


def gamma_quantile(scores: Scores, share: float) -> float:
    """Quantile of a gamma distribution fitted to scores (maximum likelihood, three parameters).

    The official baseline's threshold. The quantile of the scores themselves where they are fewer than 30, whose fits
    run away, or where such a distribution does not fit them. Scores are standardised before: the search for the
    likelihood's maximum depends on their unit.

    ``scores``: of normal clips, (n,), n at least 1; ``share``: 0 to 1.
    """
    if len(scores) >= _FEWEST_TO_FIT and np.ptp(scores) > 0:
        from scipy.stats import gamma  # half a second to import, which no command's refusal should wait for

        mean, deviation = scores.mean(), scores.std()
        try:
            shape, location, scale = gamma.fit((scores - mean) / deviation)
        except (ValueError, RuntimeError, FloatingPointError):
            shape = location = scale = np.nan
        found = mean + deviation * float(gamma.ppf(share, shape, loc=location, scale=scale))
        if np.isfinite(found) and _divides(scores, found, share):
            return float(found)
    return float(np.quantile(scores, share))


def _divides(training: NDArray[np.float64], found: float, share: float) -> bool:
    """Whether about this share of the scores lies below a threshold near them: a fit that ran away puts it anywhere."""
    near = training.max() + 4 * np.subtract(*np.quantile(training, [0.75, 0.25]))
    chance = np.sqrt(share * (1 - share) / len(training))
    return bool(found <= near and abs((training <= found).mean() - share) <= 3 * chance + 1 / len(training))


def decide(cells: pa.Table, scored: Sequence[Scored], labels: Labels, evaluation: EvaluationConfig) -> pa.Table:
    """Add decisions and what they are worth to the selected cells that have an AUC, or normal test clips alone.

    Precision, recall and F1 are of the cell's own domain, as in the official evaluators, even from 2022, where its AUC
    takes the anomalies of both.
    """
    from sklearn.metrics import precision_recall_fscore_support  # slow to import

    rows = cells.to_pylist()
    files = by_name(scored)
    decisions: dict[tuple[Scored, Key], Decision] = {}
    for row in rows:
        healthy_only = row["status"] == "unlabelled" and row["num_normal"] and row["domain"] != BOTH_DOMAINS
        if not row["selected"] or (row["auc"] is None and not healthy_only):
            continue
        unit, key = files[row["variant"], row["machine"], row["seed"]], Key(*(row[name] for name in Key._fields))
        of_section = unit.systems[key]
        if (unit, key) not in decisions:
            decisions[unit, key] = decision_of(unit.systems, key, evaluation)
        decision = decisions[unit, key]
        row["threshold"], row["no_threshold"] = decision.threshold, decision.reason
        row["calibration"], row["num_calibration"] = decision.calibration, decision.num_groups
        if decision.threshold is not None:
            anomalous, members = members_of(of_section, row["domain"], labels, evaluation.rule_year)
            members &= of_section.domains == row["domain"] if row["domain"] in of_section.domains else True
            truth, called = anomalous[members], of_section.scores[members] > decision.threshold
            if truth.any():
                values = precision_recall_fscore_support(truth, called, average="binary", zero_division=0.0)
                row["precision"], row["recall"], row["f1"] = map(float, values[:3])
            alarms = int(called[~truth].sum())
            row["false_alarms"] = alarms / row["num_normal"]
            row["false_alarms_low"], row["false_alarms_high"] = clopper_pearson(alarms, row["num_normal"])
    return pa.Table.from_pylist(rows, cells.schema)
