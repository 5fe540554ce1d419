"""From scores to decisions: a threshold from the scores of normal training clips, and how good the decisions are."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rayasd.config import EvaluationConfig
from rayasd.evaluation.cells import Labels, members_of
from rayasd.evaluation.scores import Key, Scored, by_name

_FEWEST_TO_FIT = 30


def threshold(training: NDArray[np.float64], percentile: float) -> float | None:
    """Score above which a clip is called anomalous.

    The percentile of a gamma distribution fitted to the training scores (maximum likelihood, three parameters), as the
    official baseline does; the percentile of the scores themselves where they are fewer than 30, whose fits run away,
    or where such a distribution does not fit them. Scores are standardised before: the search for the likelihood's
    maximum depends on their unit.

    Args:
        training: scores of a section's normal clips, (n,).
        percentile: 0 to 100.

    Returns:
        None where there are no training scores.

    """
    if len(training) == 0 or not np.isfinite(training).all():
        return None
    if len(training) >= _FEWEST_TO_FIT and np.ptp(training) > 0:
        from scipy.stats import gamma  # half a second to import, which no command's refusal should wait for

        mean, deviation = training.mean(), training.std()
        try:
            shape, location, scale = gamma.fit((training - mean) / deviation)
        except (ValueError, RuntimeError, FloatingPointError):
            shape = location = scale = np.nan
        found = mean + deviation * float(gamma.ppf(percentile / 100, shape, loc=location, scale=scale))
        if np.isfinite(found) and _divides(training, found, percentile / 100):
            return float(found)
    return float(np.percentile(training, percentile))


def _divides(training: NDArray[np.float64], found: float, share: float) -> bool:
    """Whether about this share of the scores lies below a threshold near them: a fit that ran away puts it anywhere."""
    near = training.max() + 4 * np.subtract(*np.quantile(training, [0.75, 0.25]))
    chance = np.sqrt(share * (1 - share) / len(training))
    return bool(found <= near and abs((training <= found).mean() - share) <= 3 * chance + 1 / len(training))


def decide(cells: pa.Table, scored: Sequence[Scored], labels: Labels, evaluation: EvaluationConfig) -> pa.Table:
    """Add threshold, precision, recall and F1 to the selected cells that are ok and have an AUC."""
    from sklearn.metrics import precision_recall_fscore_support  # likewise

    rows = cells.to_pylist()
    files = by_name(scored)
    thresholds: dict[tuple[Scored, Key], float | None] = {}
    for row in rows:
        if not row["selected"] or row["status"] != "ok" or row["auc"] is None:
            continue
        unit, key = files[row["variant"], row["machine"], row["seed"]], Key(*(row[name] for name in Key._fields))
        of_section = unit.systems[key]
        if (unit, key) not in thresholds:
            thresholds[unit, key] = threshold(of_section.calibrating, evaluation.threshold_percentile)
        row["threshold"] = thresholds[unit, key]
        if row["threshold"] is not None:
            anomalous, members = members_of(of_section, row["domain"], labels, evaluation.rule_year)
            called = of_section.scores[members] > row["threshold"]
            values = precision_recall_fscore_support(anomalous[members], called, average="binary", zero_division=0.0)
            row["precision"], row["recall"], row["f1"] = map(float, values[:3])
    return pa.Table.from_pylist(rows, cells.schema)
