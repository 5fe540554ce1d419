import numpy as np
import pytest
from scipy.stats import hmean
from sklearn.metrics import roc_auc_score

from rayasd.evaluation import bootstrap
from rayasd.evaluation.bootstrap import CellScores, interval, official_replicates


def cell(shift: float, clips: int = 40, seeds: int = 1, seed: int = 0) -> CellScores:
    rng = np.random.default_rng(seed)
    anomalous = np.arange(clips) % 2 == 1
    return CellScores(anomalous, rng.standard_normal((seeds, clips)) + shift * anomalous)


def test_each_replicate_is_the_official_score_of_its_clips():
    cells = {("fan", "03", "source"): cell(1.0, seeds=2), ("pump", "03", "target"): cell(0.3, 20, 2, 1)}
    replicates = official_replicates(cells, 5)
    for r in range(5):
        by_seed = []
        for s in range(2):
            values = []
            for name, c in cells.items():
                drawn = bootstrap._draws(name, c.anomalous, 5)[r]
                labels, scores = c.anomalous[drawn], c.scores[s][drawn]
                values += [roc_auc_score(labels, scores), roc_auc_score(labels, scores, max_fpr=0.1)]
            by_seed.append(hmean(values))
        assert replicates[r] == pytest.approx(np.mean(by_seed), abs=1e-12)


def test_draws_keep_the_number_of_each_label_and_come_from_the_cells_name():
    c = cell(1.0)
    a = bootstrap._draws(("fan", "03", "source"), c.anomalous, 50)
    assert (c.anomalous[a].sum(axis=1) == 20).all()
    assert len(np.unique(a, axis=0)) == 50
    np.testing.assert_array_equal(a, bootstrap._draws(("fan", "03", "source"), c.anomalous, 50))
    assert not np.array_equal(a, bootstrap._draws(("fan", "03", "target"), c.anomalous, 50))


def test_intervals_narrow_with_more_clips_and_hold_the_score():
    few, many = (interval(official_replicates({("fan", "03", "source"): cell(1.0, n)})) for n in (20, 2000))
    assert many[1] - many[0] < (few[1] - few[0]) / 4
    whole = cell(1.0, 2000)
    values = [roc_auc_score(whole.anomalous, whole.scores[0], max_fpr=f) for f in (None, 0.1)]
    assert many[0] < hmean(values) < many[1]


def test_a_perfect_system_is_sure():
    assert interval(official_replicates({("fan", "03", "source"): cell(100.0)})) == (1.0, 1.0)
