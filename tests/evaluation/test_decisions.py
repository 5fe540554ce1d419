from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from scipy.stats import binomtest, gamma
from sklearn.metrics import f1_score, precision_score, recall_score

from rayasd.config import EvaluationConfig
from rayasd.evaluation.cells import labels_of, score_cells
from rayasd.evaluation.decisions import Decision, clopper_pearson, decide, gamma_quantile
from rayasd.evaluation.scores import Calibration, Scored, SectionScores, read_scores
from rayasd.evaluation.selection import select
from rayasd.report.write import compute_results
from tests.evaluation.test_leaderboard import catalog, label, scores_file


def test_the_threshold_is_the_percentile_of_the_gamma_distribution():
    training = gamma.rvs(3.0, loc=5.0, scale=2.0, size=20000, random_state=0)
    assert gamma_quantile(training, 0.9) == pytest.approx(gamma.ppf(0.9, 3.0, loc=5.0, scale=2.0), rel=0.02)
    assert gamma_quantile(training, 0.5) < gamma_quantile(training, 0.9) < gamma_quantile(training, 0.99)


@pytest.mark.parametrize(
    "training",
    [[2.0, 2.0, 2.0], [1.0], [1.0, 2.0], [-5.0, -4.0, -4.5, -4.2], [0.0] * 50 + [1e6]],
    ids=["alike", "one", "two", "negative", "far"],
)
def test_odd_training_scores_give_a_threshold_among_them(training: list[float]):
    found = gamma_quantile(np.array(training), 0.9)
    assert min(training) <= found <= max(training) + np.ptp(training)


@pytest.mark.parametrize("unit", [1e-6, 1e-3, 1e3, 1e6])
def test_a_threshold_does_not_depend_on_the_unit_of_scores(unit: float):
    for seed in range(20):
        training = np.random.default_rng(seed).gamma(3.0, 2.0, 60) - 40.0
        assert gamma_quantile(training * unit, 0.9) == pytest.approx(unit * gamma_quantile(training, 0.9), rel=0.01)


def test_a_threshold_divides_the_scores_as_asked():
    for seed in range(50):
        rng = np.random.default_rng(seed)
        training = np.concatenate([rng.normal(0.0, 1.0, 30), rng.normal(-200.0, 1.0, rng.integers(0, 4))])
        found = gamma_quantile(training, 0.9)
        assert (training > found).mean() <= 0.3
        assert found < 10.0


def calibration(scores: np.ndarray, groups: np.ndarray | None = None, kind: str = "held-out") -> Calibration:
    alone = np.array([f"clip {n}" for n in range(len(scores))], dtype=object)
    return Calibration(np.asarray(scores, float), alone if groups is None else groups, kind)


def decision(scores: np.ndarray, groups: np.ndarray | None = None, **rules: object) -> Decision:
    return Decision.of({"00": calibration(scores, groups)}, "00", EvaluationConfig(**rules))  # type: ignore[arg-type]


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.3])
@pytest.mark.parametrize("n", [3, 9, 10, 19, 60])
def test_exchangeable_scores_raise_no_more_false_alarms_than_promised(n: int, rate: float):
    drawn = np.random.default_rng(n).standard_normal((4000, n + 1))
    alarms = 0
    for scores in drawn:
        found = decision(scores[:n], false_alarm_rate=rate)
        alarms += found.threshold is not None and scores[n] > found.threshold
    promised = int(rate * (n + 1) + 1e-9) / (n + 1)  # exactly, and the most that is not above the rate
    assert promised <= rate
    assert alarms / len(drawn) == pytest.approx(promised, abs=4 * np.sqrt(rate / len(drawn)))


def test_a_group_counts_once_and_its_clips_as_parts_of_it():
    """Clips of a group share most of what they are: n clips are then worth fewer."""
    rng, alarms, of_clips = np.random.default_rng(0), 0, 0
    groups = np.repeat([f"session {n}" for n in range(29)], 5).astype(object)
    for _ in range(2000):
        shared, own = rng.standard_normal(30), rng.standard_normal(146)
        scores = np.repeat(shared[:29], 5) + 0.5 * own[:145]
        new = shared[29] + 0.5 * own[145]
        found = decision(scores, groups)
        assert found.num_groups == 29
        assert found.threshold is not None
        alarms += new > found.threshold
        apart = decision(scores[:20])  # four sessions, taken for 20 clips
        assert apart.threshold is not None
        of_clips += new > apart.threshold
    assert 0.07 < alarms / 2000 < 0.12  # by each group's highest clip they would be 0.04
    assert of_clips / 2000 > 0.13
    few = decision(scores[:30], groups[:30])
    assert few.reason == "no threshold: 6 groups allow no false-alarm rate below 1/7"


def test_too_few_clips_give_no_threshold_but_the_machine_may_have_enough():
    rules = EvaluationConfig()
    sections = {name: calibration(np.arange(8.0) + k, np.array([f"{name}{n}" for n in range(8)], dtype=object))
                for k, name in enumerate(("00", "01"))}  # fmt: skip
    alone = Decision.of({"00": sections["00"]}, "00", rules)
    assert alone.threshold is None
    assert alone.reason == "no threshold: 8 normal clips allow no false-alarm rate below 1/9"
    assert alone.p_values(np.array([-1.0, 3.0, 99.0])).tolist() == [1.0, 6 / 9, 1 / 9]
    hinted = Decision.of(sections, "00", rules)
    assert hinted.reason == f'{alone.reason}; evaluation.threshold_per = "machine" pools the 16 of all sections'
    pooled = Decision.of(sections, "00", replace(rules, threshold_per="machine"))
    assert pooled.threshold == 8.0  # the 16th of 16, rising: floor(0.1 * 17) = 1 of 17 may be above
    assert decision(np.arange(9.0)).threshold == 8.0


def test_a_p_value_is_at_most_the_rate_just_where_a_clip_is_anomalous():
    rng = np.random.default_rng(0)
    for n in (9, 19, 40, 99, 166):
        normal = rng.integers(0, 30, n).astype(float)  # with ties
        for rate in (0.05, 0.1, 0.2):
            found = decision(normal, false_alarm_rate=rate)
            if found.threshold is not None:
                scores = np.arange(-1.0, 31.0)
                assert ((scores > found.threshold) == (found.p_values(scores) <= rate + 1e-12)).all()


def test_the_other_rules_are_quantiles():
    scores = np.random.default_rng(0).gamma(3.0, 2.0, 200)
    assert decision(scores, threshold="gamma").threshold == gamma_quantile(scores, 0.9)
    assert decision(scores, threshold="percentile", false_alarm_rate=0.2).threshold == np.quantile(scores, 0.8)
    assert decision(scores[:5], threshold="percentile").threshold == np.quantile(scores[:5], 0.9)


def test_clips_that_were_trained_on_count_only_where_there_are_no_others_and_are_marked():
    clips, scores = np.array(list("abcdefghijklmnopqrstuvwxyz"), dtype=object), np.arange(26.0)
    test = (clips[:0], clips[:0], scores[:0], None, clips[:0])
    for held in (0, 3):
        how = np.array(["trained-on"] * (26 - held) + ["held-out"] * held, dtype=object)
        found = SectionScores(*test, clips, scores, clips, how).calibrating
        assert found.scores.tolist() == scores[-held:].tolist()
        assert found.kind == ("held-out" if held else "trained-on")
    few = SectionScores(*test, clips[:5], scores[:5], clips[:5], how[-5:]).calibrating
    assert few.kind == "held-out"
    assert "3 normal clips allow" in str(Decision.of({"00": few}, "00", EvaluationConfig()).reason)
    pooled = Calibration.pooled([calibration(scores, kind="trained-on"), calibration(scores[:4], kind="cross-fit")])
    assert (len(pooled.scores), pooled.kind) == (4, "cross-fit")


def test_no_training_scores_give_no_threshold():
    assert decision(np.empty(0)).reason.startswith("no threshold: no normal clip has a score: this needs two")
    assert decision(np.array([np.nan, 1.0])).reason == "no threshold: some normal clips could not be scored"
    assert Decision.of({}, "00", EvaluationConfig()).threshold is None


def test_the_interval_of_a_share_is_clopper_and_pearsons():
    assert clopper_pearson(0, 10) == pytest.approx((0.0, 1 - 0.025 ** (1 / 10)))
    assert clopper_pearson(10, 10) == pytest.approx((0.025 ** (1 / 10), 1.0))
    assert clopper_pearson(3, 20) == pytest.approx(binomtest(3, 20).proportion_ci(0.95, "exact"), abs=1e-9)


@pytest.mark.parametrize("year", [2021, 2023])  # from 2022, the AUC is against anomalies of both domains, these are not
def test_decisions_of_the_selected_systems_are_scikit_learns(tmp_path: Path, year: int):
    unit = Scored(
        "both",
        "fan",
        0,
        scores_file(tmp_path / "s.parquet", {"a": {"00": 2.0, "03": 2.0}, "b": {"00": 0.0, "03": 0.0}}),
    )
    rules = EvaluationConfig(year=year, development=("00",), ensembles=(), false_alarm_rate=0.3)
    labels = labels_of(catalog())
    cells, _ = select(score_cells([unit], labels, rules), rules)
    decided = [cell for cell in decide(cells, [unit], labels, rules).to_pylist() if cell["auc"] is not None]
    assert {cell["domain"] for cell in decided} == {"source", "target"}
    systems = read_scores(unit.path)
    for cell in decided:
        if cell["detector"] == "b":
            assert cell["threshold"] is None
            continue
        of_section = next(s for k, s in systems.items() if (k.section, k.detector) == (cell["section"], "a"))
        assert cell["threshold"] == np.sort(of_section.training)[7]  # 11 * 0.3 = 3 of 11 may be above
        assert (cell["calibration"], cell["num_calibration"]) == ("held-out", 10)
        of_cell = of_section.domains == cell["domain"]
        truth = [label(int(clip.rpartition("/")[2])) for clip in of_section.clips[of_cell]]
        called = of_section.scores[of_cell] > cell["threshold"]
        assert cell["precision"] == precision_score(truth, called, zero_division=0.0)
        assert cell["recall"] == recall_score(truth, called)
        assert cell["f1"] == f1_score(truth, called)
        wrong = called[~np.array(truth, bool)]
        assert cell["false_alarms"] == wrong.mean()
        assert (cell["false_alarms_low"], cell["false_alarms_high"]) == clopper_pearson(wrong.sum(), len(wrong))


@pytest.mark.parametrize("year", [2021, 2023])
def test_healthy_test_clips_alone_measure_false_alarms(tmp_path: Path, year: int):
    unit = Scored("both", "fan", 0, scores_file(tmp_path / "s.parquet", {"a": {"00": 2.0, "03": 2.0}}))
    rules = EvaluationConfig(year=year, development=("00",), ensembles=(), false_alarm_rate=0.3)
    labels = dict.fromkeys(labels_of(catalog()), 0)
    cells, _ = select(score_cells([unit], labels, rules), rules)
    decided = decide(cells, [unit], labels, rules).to_pylist()
    assert {cell["status"] for cell in decided} == {"unlabelled"}
    measured = [cell for cell in decided if cell["false_alarms"] is not None]
    assert {(cell["section"], cell["domain"]) for cell in measured} == {
        (section, domain) for section in ("00", "03") for domain in ("source", "target")
    }
    for cell in measured:
        scores = next(s for k, s in read_scores(unit.path).items() if k.section == cell["section"])
        assert cell["false_alarms"] == (scores.scores[scores.domains == cell["domain"]] > cell["threshold"]).mean()
        assert cell["recall"] is None


def test_without_scores_an_entry_that_decides_ranks_first(tmp_path: Path):
    units = [Scored(v, "fan", 0, scores_file(tmp_path / v, {"a": {"00": 2.0, "03": 2.0}})) for v in ("first", "second")]
    table = pq.read_table(units[0].path)
    few = pc.or_(pc.equal(table["split"], "test"), pc.match_substring_regex(table["clip"], "/[0-4]t$"))
    pq.write_table(table.filter(few), units[0].path)
    healthy = catalog()
    healthy = healthy.set_column(
        healthy.schema.get_field_index("label"), "label", pa.array([0] * len(healthy), pa.int8())
    )
    rules = EvaluationConfig(development=("00",), ensembles=())
    ranked = compute_results(units, healthy, rules, {v: ["fan"] for v in ("first", "second")}).leaderboard.ranked
    assert [(entry.variant, entry.decided.false_alarms is None) for entry in ranked] == [
        ("second", False),
        ("first", True),
    ]
