from pathlib import Path

import numpy as np
import pytest
from scipy.stats import gamma
from sklearn.metrics import f1_score, precision_score, recall_score

from rayasd.config import EvaluationConfig
from rayasd.evaluation.cells import labels_of, score_cells
from rayasd.evaluation.decisions import decide, threshold
from rayasd.evaluation.scores import Scored, SectionScores, read_scores
from rayasd.evaluation.selection import select
from tests.evaluation.test_leaderboard import catalog, label, scores_file


def test_the_threshold_is_the_percentile_of_the_gamma_distribution():
    training = gamma.rvs(3.0, loc=5.0, scale=2.0, size=20000, random_state=0)
    assert threshold(training, 90.0) == pytest.approx(gamma.ppf(0.9, 3.0, loc=5.0, scale=2.0), rel=0.02)
    assert threshold(training, 50.0) < threshold(training, 90.0) < threshold(training, 99.0)


@pytest.mark.parametrize(
    "training",
    [[2.0, 2.0, 2.0], [1.0], [1.0, 2.0], [-5.0, -4.0, -4.5, -4.2], [0.0] * 50 + [1e6]],
    ids=["alike", "one", "two", "negative", "far"],
)
def test_odd_training_scores_give_a_threshold_among_them(training: list[float]):
    found = threshold(np.array(training), 90.0)
    assert found is not None
    assert min(training) <= found <= max(training) + np.ptp(training)


@pytest.mark.parametrize("unit", [1e-6, 1e-3, 1e3, 1e6])
def test_a_threshold_does_not_depend_on_the_unit_of_scores(unit: float):
    for seed in range(20):
        training = np.random.default_rng(seed).gamma(3.0, 2.0, 60) - 40.0
        assert threshold(training * unit, 90.0) == pytest.approx(unit * threshold(training, 90.0), rel=0.01)


def test_a_threshold_divides_the_scores_as_asked():
    for seed in range(50):
        rng = np.random.default_rng(seed)
        training = np.concatenate([rng.normal(0.0, 1.0, 30), rng.normal(-200.0, 1.0, rng.integers(0, 4))])
        found = threshold(training, 90.0)
        assert found is not None
        assert (training > found).mean() <= 0.3
        assert found < 10.0


def test_thresholds_come_from_clips_that_the_extractor_does_not_know_if_there_are_enough():
    clips, scores = np.array(list("abcdefghijklmnopqrstuvwxyz"), dtype=object), np.arange(26.0)
    nothing = (clips[:0], clips[:0], scores[:0], None)
    few = SectionScores(*nothing, clips, scores, scores >= 17)
    enough = SectionScores(*nothing, clips, scores, scores >= 16)
    assert few.held_out.sum() == 9
    assert few.calibrating.tolist() == scores.tolist()
    assert enough.calibrating.tolist() == scores[16:].tolist()


def test_no_training_scores_give_none():
    assert threshold(np.array([]), 90.0) is None
    assert threshold(np.array([np.nan, 1.0]), 90.0) is None


def test_decisions_of_the_selected_systems_are_scikit_learns(tmp_path: Path):
    unit = Scored(
        "both",
        "fan",
        0,
        scores_file(tmp_path / "s.parquet", {"a": {"00": 2.0, "03": 2.0}, "b": {"00": 0.0, "03": 0.0}}),
    )
    rules = EvaluationConfig(development=("00",), ensembles=(), threshold_percentile=70.0)
    labels = labels_of(catalog())
    cells, _ = select(score_cells([unit], labels, rules), rules)
    decided = decide(cells, [unit], labels, rules).to_pylist()
    systems = read_scores(unit.path)
    for cell in decided:
        if cell["detector"] == "b":
            assert cell["threshold"] is None
            continue
        of_section = next(s for k, s in systems.items() if (k.section, k.detector) == (cell["section"], "a"))
        assert cell["threshold"] == threshold(of_section.training, 70.0)
        of_cell = of_section.domains == cell["domain"]
        truth = [label(int(clip.rpartition("/")[2])) for clip in of_section.clips[of_cell]]
        called = of_section.scores[of_cell] > cell["threshold"]
        assert cell["precision"] == precision_score(truth, called, zero_division=0.0)
        assert cell["recall"] == recall_score(truth, called)
        assert cell["f1"] == f1_score(truth, called)
