from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from rayasd.config import EvaluationConfig, from_dict
from rayasd.errors import UserError
from rayasd.evaluation.cells import labels_of, score_cells
from rayasd.evaluation.ensembles import fuse_ensembles, read_ensembles, write_ensemble
from rayasd.evaluation.fused import evaluated, leaves
from rayasd.evaluation.scores import Key, Leaf, Scored, read_scores
from rayasd.report.write import compute_results, write_results
from rayasd.unit import RunDirectory
from tests.evaluation.test_leaderboard import catalog, scores_file

QUALITY = {"a": {"00": 1.0, "03": 1.0}, "b": {"00": 0.6, "03": 0.6}, "noise": {"00": 0.0, "03": 0.0}}


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path)


@pytest.fixture
def units(tmp_path: Path) -> list[Scored]:
    return [Scored("both", "fan", s, scores_file(tmp_path / f"{s}.parquet", QUALITY, seed=s)) for s in range(4)]


def rules(*ensembles: str, **changes: object) -> EvaluationConfig:
    return EvaluationConfig(development=("00",), ensembles=ensembles, **changes)  # type: ignore[arg-type]


def mean_auc(scored: list[Scored], detector: str) -> float:
    cells = score_cells(scored, labels_of(catalog()), rules())
    return pc.mean(cells.filter(pc.field("detector") == detector)["auc"]).as_py()


def members(entry: Scored) -> set[Leaf]:
    return {leaf for scores in entry.systems.values() if scores.tree for leaf in leaves(scores.tree)}


def test_seeds_are_averaged_on_the_scale_of_their_training_scores(units: list[Scored]):
    (entry,) = fuse_ensembles(units, {}, rules("seeds"))
    assert (entry.variant, entry.machine, entry.seed) == ("both+seeds", "fan", None)
    fused, single = entry.systems, [read_scores(unit.path) for unit in units]
    assert fused.keys() == single[0].keys()
    for key, scores in fused.items():
        z = [(s[key].scores - s[key].training.mean()) / s[key].training.std() for s in single]
        np.testing.assert_allclose(scores.scores, np.mean(z, axis=0))
        assert scores.clips.tolist() == single[0][key].clips.tolist()
    assert mean_auc([entry], "a") > mean_auc(units, "a")  # independent noise averages out


def test_no_test_clip_depends_on_another(units: list[Scored]):
    (whole,) = fuse_ensembles(units, {}, rules("seeds"))
    expected = {k: dict(zip(s.clips, s.scores, strict=True)) for k, s in whole.systems.items()}
    for unit in units:
        table = pq.read_table(unit.path)
        some = (
            (pc.field("split") == "train") | pc.ends_with(pc.field("clip"), "/7") | pc.ends_with(pc.field("clip"), "/2")
        )
        pq.write_table(table.filter(some), unit.path)
    (few,) = fuse_ensembles([replace(unit) for unit in units], {}, rules("seeds"))  # read again
    for key, scores in few.systems.items():
        assert len(scores.clips) == 4
        for clip, score in zip(scores.clips, scores.scores, strict=True):
            assert score == expected[key][clip]


def by_others(training: np.ndarray) -> np.ndarray:
    others = [np.delete(training, n) for n in range(len(training))]
    scales = [rest if np.ptp(rest) else training for rest in others]
    return np.array([(score - scale.mean()) / scale.std() for score, scale in zip(training, scales, strict=True)])


def mark(unit: Scored, *, held_out: Callable[[str], bool] = lambda clip: False) -> None:
    """Say that the extractor was trained on all normal clips but some."""
    table = pq.read_table(unit.path)
    clips, place = table["clip"].to_pylist(), table.schema.get_field_index("calibration")
    how = [("held-out" if held_out(clip) else "trained-on") if clip.endswith("t") else None for clip in clips]
    column = pa.array(how, pa.string()).cast(table.schema.field(place).type)
    pq.write_table(table.set_column(place, table.schema.field(place), column), unit.path)


def test_a_clips_score_is_of_the_members_that_held_it_out(units: list[Scored]):
    for seed, unit in enumerate(units[:3]):
        mark(unit, held_out=lambda clip, seed=seed: int(clip[-2]) % 4 == seed)  # no seed holds 3 and 7 out
    mark(units[3], held_out=lambda clip: clip.endswith("0t"))
    (entry,) = fuse_ensembles(units, {}, rules("seeds"))
    single = [read_scores(unit.path) for unit in units]
    for key, scores in entry.systems.items():
        assert [clip[-2:] for clip in scores.calibrating.groups] == [f"{n}t" for n in (0, 1, 2, 4, 5, 6, 8, 9)]
        assert set(scores.calibration) == {"cross-fit", "trained-on"}
        assert scores.calibrating.kind == "cross-fit"
        z = [by_others(s[key].training) for s in single]
        expected = [np.mean([z[0][0], z[3][0]]), *(z[n % 4][n] for n in (1, 2, 4, 5, 6, 8, 9))]
        np.testing.assert_allclose(scores.calibrating.scores, expected)
        of_all = [np.mean([of_seed[n] for of_seed in z]) for n in (3, 7)]
        np.testing.assert_allclose(scores.training[scores.calibration == "trained-on"], of_all)
        every = np.mean([(s[key].scores - s[key].training.mean()) / s[key].training.std() for s in single], axis=0)
        np.testing.assert_allclose(scores.scores, every)


def test_the_highest_score_of_members_is_of_clips_that_all_of_them_held_out(units: list[Scored]):
    """The highest of three scores of a test clip would not compare with the only score of a normal one."""
    for unit in units[:2]:
        mark(unit, held_out=lambda clip: clip[-2:] in ("2t", "5t"))
    mark(units[2], held_out=lambda clip: clip[-2:] in ("2t", "7t"))
    (entry,) = fuse_ensembles(units[:3], {}, rules("seeds", fusion="z-max"))
    for scores in entry.systems.values():
        assert [clip[-2:] for clip in scores.calibrating.groups] == ["2t"]


def test_other_systems_judge_a_clip_together_or_not_at_all(units: list[Scored]):
    """A score of one of them is not spread as the mean of both is."""
    control, trained = (
        replace(unit, variant=name, seed=0) for unit, name in zip(units[:2], ("control", "both"), strict=True)
    )
    mark(trained, held_out=lambda clip: clip[-2:] in ("2t", "5t"))
    (entry,) = fuse_ensembles([control, trained], {}, rules("both&control"))
    for scores in entry.systems.values():
        assert [clip[-2:] for clip in scores.calibrating.groups] == ["2t", "5t"]
        assert scores.calibrating.kind == "held-out"
    mark(trained)
    (entry,) = fuse_ensembles([control, replace(trained)], {}, rules("both&control"))
    for scores in entry.systems.values():
        assert len(scores.training_clips) == 10
        assert set(scores.calibration) == {"trained-on"}


def test_training_scores_are_of_the_clips_that_every_member_has_if_all_were_trained_on(units: list[Scored]):
    for unit in units:
        mark(unit)
    table = pq.read_table(units[0].path)
    kept = (pc.field("split") == "test") | pc.ends_with(pc.field("clip"), "1t") | pc.ends_with(pc.field("clip"), "2t")
    pq.write_table(table.filter(kept), units[0].path)
    (entry,) = fuse_ensembles(units[:2], {}, rules("seeds"))
    single = [read_scores(unit.path) for unit in units[:2]]
    for key, scores in entry.systems.items():
        assert [clip[-2:] for clip in scores.training_clips] == ["1t", "2t"]
        z = []
        for of_key in (seed[key] for seed in single):
            scaled = by_others(of_key.training)
            z.append(scaled[np.isin(of_key.training_clips, scores.training_clips)])
        np.testing.assert_allclose(scores.training, np.mean(z, axis=0))
        assert set(scores.calibration) == {"trained-on"}


def test_detectors_are_averaged_within_each_seed(units: list[Scored]):
    entries = fuse_ensembles(units, {}, rules("detectors", "seeds+detectors"))
    assert [(entry.variant, entry.seed) for entry in entries] == [
        *(("both+detectors", seed) for seed in range(4)), ("both+seeds+detectors", None)
    ]  # fmt: skip
    assert {key.detector for entry in entries for key in entry.systems} == {"fused"}


def test_checkpoints_are_averaged(units: list[Scored]):
    table = pq.read_table(units[0].path)
    at = table.schema.get_field_index("checkpoint")
    other = pq.read_table(units[1].path).set_column(
        at, table.schema.field("checkpoint"), pa.array([9] * table.num_rows, pa.int16())
    )
    pq.write_table(pa.concat_tables([table, other]), units[0].path)
    entries = fuse_ensembles(units, {}, rules("checkpoints"))
    assert [(entry.variant, entry.seed) for entry in entries] == [("both+checkpoints", 0)]  # others have one only


def test_a_member_that_failed_fails_the_ensembles_cell(tmp_path: Path):
    quality = {"a": {"00": 1.0, "03": None}}
    units = [Scored("both", "fan", s, scores_file(tmp_path / f"{s}.parquet", quality, seed=s)) for s in range(2)]
    (entry,) = fuse_ensembles(units, {}, rules("seeds"))
    by_section = {key.section: scores for key, scores in entry.systems.items()}
    assert by_section["03"].reason == "no fit"
    assert by_section["03"].failed
    assert not by_section["00"].failed


def test_detectors_that_failed_somewhere_leave_the_others_their_ensemble(tmp_path: Path):
    quality = {"a": {"00": 1.0, "03": 1.0}, "b": {"00": 1.0, "03": 1.0}, "c": {"00": 1.0, "03": None}}
    unit = Scored("both", "fan", 0, scores_file(tmp_path / "s.parquet", quality))
    table = pq.read_table(unit.path)  # one that is fitted to all clips, and not to a part of them
    lost = pc.and_(
        pc.equal(table["detector"], "c"), pc.and_(pc.equal(table["split"], "train"), pc.equal(table["section"], "00"))
    )
    score = pc.if_else(lost, pa.scalar(None, table.schema.field("score").type), table["score"])
    partly = tmp_path / "partly.parquet"
    pq.write_table(table.set_column(table.schema.get_field_index("score"), "score", score), partly)
    (of_partly,) = fuse_ensembles([replace(unit, path=partly)], {}, rules("detectors"))
    assert {leaf.detector for leaf in members(of_partly)} == {"a", "b"}
    (entry,) = fuse_ensembles([unit], {}, rules("detectors"))
    single = {(k.section, k.detector): s for k, s in read_scores(unit.path).items()}
    for key, scores in entry.systems.items():
        z = [(s.scores - s.training.mean()) / s.training.std() for s in (single[key.section, d] for d in "ab")]
        np.testing.assert_allclose(scores.scores, np.mean(z, axis=0))


def test_greedy_takes_members_that_were_tested_on_the_same_clips(units: list[Scored]):
    fewer = units[3].path.with_name("fewer.parquet")
    pq.write_table(pq.read_table(units[3].path).filter(~pc.ends_with(pc.field("clip"), "/1")), fewer)
    mixed = [*units[:2], Scored("aside", "fan", 0, fewer)]
    (entry,) = fuse_ensembles(mixed, labels_of(catalog()), rules("greedy"))
    assert {leaf.variant for leaf in members(entry)} == {"both"}


def test_one_seed_is_no_ensemble(units: list[Scored]):
    assert fuse_ensembles(units[:1], {}, rules("seeds")) == []


def test_a_control_that_scores_alike_for_every_seed_has_no_ensemble(units: list[Scored]):
    same = [replace(units[0], variant="level", seed=seed) for seed in range(3)]
    assert [entry.variant for entry in fuse_ensembles([*units, *same], {}, rules("seeds"))] == ["both+seeds"]


def test_greedy_members_are_picked_on_the_sections_that_choose(tmp_path: Path):
    # x is good where we choose, y where we report, z nowhere
    quality = {"x": {"00": 9.0, "03": 0.0}, "y": {"00": 0.0, "03": 9.0}, "z": {"00": 0.0, "03": 0.0}}
    units = [Scored("both", "fan", 0, scores_file(tmp_path / "s.parquet", quality))]
    (entry,) = fuse_ensembles(units, labels_of(catalog()), rules("greedy"))
    detectors = {leaf.detector for leaf in members(entry)}
    assert "x" in detectors
    assert "y" not in detectors
    left_out = rules("greedy", selection="leave-one-section-out")
    (entry,) = fuse_ensembles(units, labels_of(catalog()), left_out)
    single, fused = read_scores(units[0].path), entry.systems
    for key, scores in fused.items():  # each section under the members that are good on the other one
        liked = {"00": "y", "03": "x"}[key.section]
        wanted = next(s for k, s in single.items() if (k.section, k.detector) == (key.section, liked))
        assert np.corrcoef(scores.scores, wanted.scores)[0, 1] > 0.99


def test_greedy_is_at_least_as_good_as_its_best_member_where_it_chose(units: list[Scored]):
    (entry,) = fuse_ensembles(units, labels_of(catalog()), rules("greedy"))
    seeds = fuse_ensembles(units, {}, rules("seeds"))
    board = {
        name: score_cells(of, labels_of(catalog()), rules()).filter(pc.field("part") == "development")
        for name, of in (("greedy", [entry]), ("seeds", seeds))
    }
    greedy = pc.mean(board["greedy"]["auc"]).as_py()
    best = max(pc.mean(board["seeds"].filter(pc.field("detector") == d)["auc"]).as_py() for d in QUALITY)
    assert greedy > best - 0.05
    assert fuse_ensembles(units, {}, rules("greedy")) == []  # nothing to choose by


def test_ensembles_are_entries_of_the_leaderboard(units: list[Scored], run: RunDirectory):
    provenance = {"run": "run", "synthetic": False}
    planned = {"both": ["fan"] * 4}
    results = compute_results(units, catalog(), rules("seeds", "greedy"), planned)
    board = results.leaderboard
    assert {s.variant: s.cells_expected for s in board.ranked} == {"both": 16, "both+seeds": 4, "all+greedy": 4}
    assert all(s.complete and s.interval and s.f1 is not None for s in board.ranked)
    assert not run.cells.exists()  # nothing is written before it is asked for
    assert not run.ensembles.exists()
    write_results(run, results, provenance)
    assert "ensembles" in run.leaderboard("md").read_text()
    for entry, read in zip(
        sorted(results.ensembles, key=str), sorted(read_ensembles(run.ensembles), key=str), strict=True
    ):
        assert str(read) == str(entry)
        assert read.systems.keys() == entry.systems.keys()
        for key, scores in entry.systems.items():
            for name, value in vars(scores).items():
                assert np.array_equal(vars(read.systems[key])[name], value) or name == "tree", name
            assert read.systems[key].tree == scores.tree is not None
    write_results(run, compute_results(units, catalog(), rules(), planned), provenance)
    assert not list(run.root.glob("ensembles/*"))


def test_unknown_ensembles_are_refused():
    for wrong in ("variants", "seeds+seeds", "greedy+seeds"):
        with pytest.raises(UserError, match="is none of seeds, checkpoints, detectors, greedy"):
            from_dict({"evaluation": {"ensembles": [wrong]}})


def test_seeds_that_share_no_normal_clip_give_no_greedy_ensemble(units: list[Scored]):
    for seed, unit in enumerate(units[:2]):
        mark(unit)
        table = pq.read_table(unit.path)
        last = pc.cast(pc.replace_substring_regex(table["clip"], r".*?(\d)t?$", r"\1"), pa.int64())
        own = pc.or_(pc.equal(table["split"], "test"), pc.equal(pc.bit_wise_and(last, 1), seed))
        pq.write_table(table.filter(own), unit.path)
    assert fuse_ensembles(units[:2], labels_of(catalog()), rules("greedy")) == []


def test_variants_are_fused_detector_by_detector_at_their_last_checkpoints(tmp_path: Path):
    two = {"a": {"00": 1.0}, "b": {"00": 0.5}}
    units = [
        Scored(variant, "fan", seed, scores_file(tmp_path / f"{variant}{seed}.parquet", quality, seed=9 * seed + n))
        for n, (variant, quality) in enumerate({"both": two, "shared": two, "other": two}.items())
        for seed in (0, 1)
    ]
    entries = fuse_ensembles(units, {}, rules("both&shared"))
    assert [(entry.variant, entry.seed) for entry in entries] == [("both&shared", 0), ("both&shared", 1)]
    (over_seeds,) = fuse_ensembles(units, {}, rules("both&shared+seeds"))
    assert (over_seeds.variant, over_seeds.seed) == ("both&shared+seeds", None)

    def z(scores: np.ndarray, training: np.ndarray) -> np.ndarray:
        return (scores - training.mean()) / training.std()

    for key, scores in over_seeds.systems.items():
        of_variants = []
        for variant in ("both", "shared"):
            of_seeds = [unit.systems for unit in units if unit.variant == variant]
            members = [next(s for k, s in of.items() if (k.section, k.detector) == key[0:3:2]) for of in of_seeds]
            order = [np.argsort(member.training_clips) for member in members]
            training = np.mean([by_others(m.training[o]) for m, o in zip(members, order, strict=True)], axis=0)
            of_variants.append(z(np.mean([z(m.scores, m.training) for m in members], axis=0), training))
        np.testing.assert_allclose(scores.scores, np.mean(of_variants, axis=0))
    assert fuse_ensembles(units[:2], {}, rules("both&shared")) == []


def test_the_tree_of_an_ensemble_gives_its_scores(units: list[Scored]):
    others = [replace(unit, variant="shared") for unit in units]
    names = ("seeds", "detectors", "seeds+detectors", "both&shared", "both&shared+seeds+detectors", "greedy")
    entries = fuse_ensembles([*units, *others], labels_of(catalog()), rules(*names))
    assert {entry.variant.partition("+")[0] for entry in entries} == {"both", "shared", "both&shared", "all"}
    files = {(unit.variant, unit.seed): unit.systems for unit in (*units, *others)}
    for entry in entries:
        for key, scores in entry.systems.items():
            assert scores.tree is not None
            known = {leaf: files[leaf[:2]][Key(key.section, *leaf[2:])] for leaf in leaves(scores.tree)}
            again = evaluated(scores.tree, known)
            assert np.array_equal(again.scores, scores.scores)
            assert np.array_equal(again.calibrating.scores, scores.calibrating.scores)
            assert again.calibrating.kind == scores.calibrating.kind


@pytest.mark.parametrize(("was", "now"), [(b'["both", 0', b'["both", 1'), (b'["both", 0', b'["both" 00')])
def test_a_file_whose_trees_have_changed_is_damaged(units: list[Scored], run: RunDirectory, was: bytes, now: bytes):
    (entry,) = fuse_ensembles(units, {}, rules("seeds"))
    path = run.ensemble("both+seeds", "fan", None)
    write_ensemble(entry, path)
    table = pq.read_table(path, partitioning=None)
    facts = {name: value.replace(was, now) for name, value in table.schema.metadata.items()}
    pq.write_table(table.replace_schema_metadata(facts), path)
    with pytest.raises(UserError, match="is damaged .*: rayasd report makes it again"):
        read_scores(path)


def test_an_ensemble_of_a_variant_that_is_not_there_is_refused():
    with pytest.raises(UserError, match="unknown variant 'shared'"):
        from_dict({"evaluation": {"ensembles": ["both&shared"]}, "variants": {"both": {}}})
    with pytest.raises(UserError, match="nor variants joined by &"):
        from_dict({"evaluation": {"ensembles": ["both&both"]}, "variants": {"both": {}}})


def test_variants_are_fused_only_where_all_have_tested_the_same_clips(tmp_path: Path):
    a, b = (scores_file(tmp_path / f"{n}.parquet", {"a": {"00": 1.0, "03": 1.0}}, seed=n) for n in range(2))
    other = scores_file(tmp_path / "other.parquet", {"b": {"00": 1.0, "03": 1.0}})
    table = pq.read_table(b)
    fewer = table.filter(pc.invert(pc.and_(pc.equal(table["split"], "test"), pc.ends_with(table["clip"], "/7"))))
    pq.write_table(fewer, tmp_path / "fewer.parquet")
    for path, systems in ((b, 2), (tmp_path / "fewer.parquet", 0), (other, 0)):
        units = [Scored("x", "fan", 0, a), Scored("y", "fan", 0, path)]
        entries = fuse_ensembles(units, {}, rules("x&y"))
        assert sum(len(entry.systems) for entry in entries) == systems


def test_an_ensemble_of_variants_is_complete_with_a_cell_for_each_seed(tmp_path: Path):
    units = [
        Scored(variant, "fan", seed, scores_file(tmp_path / f"{variant}{seed}.parquet", QUALITY, seed=seed + 5 * n))
        for n, variant in enumerate(("x", "y")) for seed in (0, 1)
    ]  # fmt: skip
    planned = {variant: ["fan", "fan"] for variant in ("x", "y")}
    results = compute_results(units, catalog(), rules("x&y", "x&y+seeds"), planned)
    counts = {s.variant: (s.cells_ok, s.cells_expected) for s in results.leaderboard.ranked}
    assert counts["x&y"] == counts["x"]
    assert counts["x&y+seeds"] == tuple(count // 2 for count in counts["x"])
    assert all(standing.complete for standing in results.leaderboard.ranked)
