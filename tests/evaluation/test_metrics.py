import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import hmean
from sklearn.metrics import roc_auc_score

from rayasd.evaluation.metrics import auc, harmonic_mean, partial_auc

# Few distinct values make ties; many make none.
score = st.one_of(st.integers(-3, 3).map(float), st.floats(-1e6, 1e6))


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.booleans(), score), min_size=2, max_size=60))
def test_equal_to_scikit_learn_with_and_without_ties(rows):
    labels, scores = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    if labels.all() or not labels.any():
        assert np.isnan(auc(labels, scores)).all()
        return
    assert auc(labels, scores)[0] == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    for max_fpr in (0.1, 0.37):
        expected = roc_auc_score(labels, scores, max_fpr=max_fpr)
        assert partial_auc(labels, scores, max_fpr)[0] == pytest.approx(expected, abs=1e-12)


def test_many_systems_at_once_are_each_their_own():
    rng = np.random.default_rng(0)
    labels, scores = rng.random(200) < 0.5, rng.standard_normal((50, 200)).round(1)
    expected = [roc_auc_score(labels, row, max_fpr=0.1) for row in scores]
    np.testing.assert_allclose(partial_auc(labels, scores), expected, rtol=0, atol=1e-12)


def test_ends_of_the_scale():
    labels = np.array([0, 0, 1, 1])
    assert auc(labels, [1, 2, 3, 4])[0] == 1.0
    assert auc(labels, [4, 3, 2, 1])[0] == 0.0
    assert auc(labels, [1, 1, 1, 1])[0] == 0.5
    assert partial_auc(labels, [1, 1, 1, 1])[0] == pytest.approx(0.5)


def test_means_are_scipys_with_a_floor():
    values = np.random.default_rng(1).random(84)
    assert harmonic_mean(values) == pytest.approx(hmean(values), abs=1e-15)
    assert harmonic_mean([0.0, 1.0]) == pytest.approx(2 * np.finfo(float).eps, rel=1e-6)
    assert harmonic_mean([0.5]) == 0.5
    assert np.isnan(harmonic_mean([]))


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_alone_has_no_auc_and_divides_by_nothing(label: int):
    with np.errstate(all="raise"):
        assert np.isnan(partial_auc([label] * 4, [[1.0, 2.0, 3.0, 4.0]])).all()
