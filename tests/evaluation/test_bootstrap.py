from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import hmean
from sklearn.metrics import roc_auc_score

from rayasd.errors import UserError
from rayasd.evaluation import bootstrap
from rayasd.evaluation.bootstrap import (
    NUM_REPLICATES,
    Cell,
    CellScores,
    compare,
    interval,
    mean_replicates,
    metric_replicates,
    official_replicates,
    undrawn,
)


def cell(shift: float, clips: int = 40, seeds: int = 1, seed: int = 0) -> CellScores:
    rng = np.random.default_rng(seed)
    anomalous = np.arange(clips) % 2 == 1
    names = tuple(f"{clip:04}" for clip in range(clips))
    domains, scores = np.full(clips, "source", dtype=object), rng.standard_normal((seeds, clips)) + shift * anomalous
    return CellScores(names, anomalous, scores, domains, np.array(names, dtype=object))


def drawn_scores(cells: dict[Cell, CellScores], replicates: int = NUM_REPLICATES) -> np.ndarray:
    return official_replicates(metric_replicates(cells, replicates), 2021)


FAN = ("fan", "03", "source")


def interval_of(cells: dict[Cell, CellScores]) -> tuple[float, float]:
    return interval(drawn_scores(cells), float(official_replicates(undrawn(cells), 2021)[0]))


def test_each_replicate_is_the_official_score_of_its_clips():
    cells = {("fan", "03", "source"): cell(1.0, seeds=2), ("pump", "03", "target"): cell(0.3, 20, 2, 1)}
    replicates = drawn_scores(cells, 5)
    for r in range(5):
        by_seed = []
        for s in range(2):
            values = []
            for name, c in cells.items():
                drawn = bootstrap._draws(name, c, 5)[r]
                labels, scores = c.anomalous[drawn], c.scores[s][drawn]
                values += [roc_auc_score(labels, scores), roc_auc_score(labels, scores, max_fpr=0.1)]
            by_seed.append(hmean(values))
        assert replicates[r] == pytest.approx(np.mean(by_seed), abs=1e-12)


def test_draws_keep_the_number_of_each_label_and_come_from_the_cells_name():
    c = cell(1.0)
    a = bootstrap._draws(("fan", "03", "source"), c, 50)
    assert (c.anomalous[a].sum(axis=1) == 20).all()
    assert len(np.unique(a, axis=0)) == 50
    np.testing.assert_array_equal(a, bootstrap._draws(("fan", "03", "source"), c, 50))
    assert not np.array_equal(a, bootstrap._draws(("pump", "03", "source"), c, 50))


def test_groups_are_drawn_as_a_whole_and_widen_the_interval():
    c = cell(0.0, 400)
    session = np.array([f"{n // 20}" for n in range(400)], dtype=object)
    shared = np.random.default_rng(0).standard_normal(20)[np.arange(400) // 20]
    grouped = replace(c, scores=c.scores * 0.3 + shared + 0.5 * c.anomalous, groups=session)
    for row in bootstrap._draws(FAN, grouped, 20):
        assert len(row) == 400
        for label in (False, True):  # ten clips of each label in each session
            counts = np.bincount(row[c.anomalous[row] == label], minlength=400)[c.anomalous == label].reshape(20, 10)
            assert (counts == counts[:, :1]).all()
    low, high = interval_of({FAN: grouped})
    alone = interval_of({FAN: replace(grouped, groups=c.groups)})
    assert high - low > 1.5 * (alone[1] - alone[0])
    uneven = replace(c, groups=np.array([f"{min(n // 30, 3)}" for n in range(400)], dtype=object))
    assert bootstrap._draws(FAN, uneven, 5).shape == (5, 400)


def test_cells_that_share_clips_share_their_draws():
    c = cell(1.0)
    mixed = replace(c, domains=np.array(["source", "target"] * 10 + ["target"] * 20, dtype=object))
    both, of_source = ((mixed.domains == "source") | mixed.anomalous), mixed.domains == "source"
    assert (both != of_source).any()
    for anomalous in (False, True):
        stratum = np.flatnonzero((mixed.domains == "source") & (mixed.anomalous == anomalous))
        a, b = (bootstrap._draws(("fan", "03", name), mixed, 3) for name in ("source", "both"))
        assert np.array_equal(np.isin(a, stratum), np.isin(b, stratum))
        np.testing.assert_array_equal(a, b)  # by the clips' own domains, not the cell's name


def test_means_have_intervals_too():
    cells = {("fan", "03", "source"): cell(1.0, 200, seeds=2), ("pump", "03", "target"): cell(0.3, 200, 2, 1)}
    drawn = metric_replicates(cells, 200)
    for name, max_fpr in (("auc", None), ("pauc", 0.1)):
        values = [roc_auc_score(c.anomalous, s, max_fpr=max_fpr) for c in cells.values() for s in c.scores]
        low, high = interval(mean_replicates(drawn, name), float(np.mean(values)))
        assert low < np.mean(values) < high


def test_intervals_narrow_with_more_clips_and_hold_the_score():
    few, many = (interval_of({FAN: cell(1.0, n)}) for n in (20, 2000))
    assert many[1] - many[0] < (few[1] - few[0]) / 4
    whole = cell(1.0, 2000)
    values = [roc_auc_score(whole.anomalous, whole.scores[0], max_fpr=f) for f in (None, 0.1)]
    assert many[0] < hmean(values) < many[1]


def test_a_perfect_system_is_sure():
    assert interval_of({FAN: cell(100.0)}) == (1.0, 1.0)


def test_an_interval_holds_its_score_though_resampling_raises_the_pauc():
    """With 10 normal clips a draw often lacks the highest one, and the pAUC rises."""
    systems = [{FAN: cell(0.8, 20, seed=seed)} for seed in range(30)]
    drawn = [mean_replicates(metric_replicates(system), "pauc") for system in systems]
    scores = [float(mean_replicates(undrawn(system), "pauc")[0]) for system in systems]
    assert np.mean([of_system.mean() for of_system in drawn]) > np.mean(scores) + 0.02
    for of_system, score in zip(drawn, scores, strict=True):
        low, high = interval(of_system, score)
        assert low <= score <= high
        assert high - low == pytest.approx(np.ptp(np.quantile(of_system, [0.025, 0.975])))


def test_a_better_system_leads_for_sure_and_an_equal_one_does_not():
    good, poor = {FAN: cell(2.0, 200, seed=1)}, {FAN: cell(0.2, 200, seed=2)}
    result, by_auc = compare(good, poor, 2021)
    assert result.sure
    assert result.share > 0.99
    assert result.low <= result.lead <= result.high
    assert by_auc.sure
    assert by_auc.low < by_auc.lead < by_auc.high
    back, _ = compare(poor, good, 2021)
    assert (back.lead, back.share) == pytest.approx((-result.lead, 1 - result.share))
    same, _ = compare(good, good, 2021)
    assert (same.lead, same.low, same.high, same.share, same.sure) == (0, 0, 0, 0.5, False)


def test_pairing_is_sharper_than_two_intervals():
    base = cell(0.8, 200)
    shifted = replace(base, scores=base.scores + 0.05 * base.anomalous)  # a little better on the very same clips
    lead, _ = compare({FAN: shifted}, {FAN: base}, 2021)
    alone = interval_of({FAN: base})
    assert lead.high - lead.low < (alone[1] - alone[0]) / 3


def test_systems_are_paired_though_one_alone_knows_groups():
    base = cell(0.8, 200)
    grouped = replace(base, groups=np.array([str(clip // 4) for clip in range(200)], dtype=object))
    for pair in ((base, grouped), (grouped, base)):
        lead, _ = compare({FAN: pair[0]}, {FAN: pair[1]}, 2021)
        assert (lead.low, lead.high, lead.ties) == (0, 0, 1)


def test_systems_of_different_clips_are_not_compared():
    c = cell(1.0)
    with pytest.raises(UserError, match="only one of the two has scores of pump 03 source"):
        compare({FAN: c, ("pump", "03", "source"): c}, {FAN: c}, 2021)
    with pytest.raises(UserError, match="not scored on the same clips, or labels, of fan 03 source"):
        compare({FAN: c}, {FAN: replace(c, anomalous=~c.anomalous)}, 2021)


def test_many_ties_are_no_sure_lead():
    normal, anomalous = np.linspace(0.0, 1.0, 12), np.linspace(2.0, 3.0, 25)
    perfect = np.concatenate([normal, anomalous])
    nearly = perfect.copy()
    nearly[11] = 2.01  # one normal clip above one anomalous clip
    labels, domains = np.arange(37) >= 12, np.array(["source"] * 37, object)
    clips = tuple(f"{i:02}" for i in range(37))
    groups = np.array(clips, object)
    first, second = (
        {("fan", "00", "source"): CellScores(clips, labels, s[None], domains, groups)} for s in (nearly, perfect)
    )
    for found in compare(first, second, 2021):
        assert found.ties > 0.3
        assert not found.sure
    far = perfect[::-1].copy()
    worse = {("fan", "00", "source"): CellScores(clips, labels, far[None], domains, groups)}
    assert all(found.sure for found in compare(second, worse, 2021))


def test_an_interval_holds_its_estimate_and_stays_within_bounds():
    rng = np.random.default_rng(0)
    for replicates, estimate in ((rng.uniform(0.9, 1, 500), 1.0), (rng.uniform(0, 0.1, 500), 0.0)):
        low, high = interval(replicates, estimate)
        assert 0 <= low <= estimate <= high <= 1
