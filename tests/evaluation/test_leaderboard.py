from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from scipy.stats import hmean
from sklearn.metrics import roc_auc_score

from rayasd.config import EvaluationConfig
from rayasd.evaluation.cells import cell_scores, labelled_cells, labels_of, score_cells
from rayasd.evaluation.leaderboard import Leaderboard, rank
from rayasd.evaluation.scores import Scored
from rayasd.evaluation.selection import select
from rayasd.inlier.scores_file import SCHEMA
from rayasd.report.tables import alerts, columns
from rayasd.report.write import compute_results, write_results
from rayasd.unit import RunDirectory

CLIPS = 10


def label(clip: int) -> int:
    return clip % 2


def scores_file(path: Path, quality: dict[str, dict[str, float]], seed: int = 0) -> Path:
    """Write scores of one machine: quality[detector][section] shifts the anomalies; None fails the detector."""
    rng, rows = np.random.default_rng(seed), []
    for section in next(iter(quality.values())):
        for detector, shifts in quality.items():
            for split, domain in (("test", "source"), ("test", "target"), ("train", "source")):
                for clip in range(CLIPS):
                    shift = shifts[section]
                    anomaly = label(clip) if split == "test" else 0
                    score = None if shift is None else rng.standard_normal() + shift * anomaly
                    rows.append({"clip": f"{section}/{domain}/{clip}" + "t" * (split == "train"), "section": section,
                                 "domain": domain, "split": split, "label": None, "checkpoint": 3,
                                 "detector": detector, "pooling": "mean", "score": score,
                                 "calibration": "held-out" if split == "train" else None,
                                 "reason": "no fit" if shift is None else None})  # fmt: skip
    table = pa.Table.from_pylist(rows, SCHEMA)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return path


def catalog(labelled: tuple[str, ...] = ("00", "03"), sections: tuple[str, ...] = ("00", "03")) -> pa.Table:
    rows = [
        {"clip": f"{section}/{domain}/{clip}", "machine": "fan", "section": section, "domain": domain, "split": "test",
         "label": label(clip) if section in labelled else None}
        for section in sections for domain in ("source", "target") for clip in range(CLIPS)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows).cast(
        pa.schema(
            [(n, pa.string()) for n in ("clip", "machine", "section", "domain", "split")] + [("label", pa.int8())]
        )
    )


RULES = EvaluationConfig(development=("00",), ensembles=())


def cells_of(units: list[Scored], table: pa.Table | None = None, rules: EvaluationConfig = RULES) -> pa.Table:
    return score_cells(units, labels_of(catalog() if table is None else table), rules)


def board_of(
    units: list[Scored], expected: dict[str, int], table: pa.Table | None = None, rules: EvaluationConfig = RULES
) -> Leaderboard:
    cells, entries = select(cells_of(units, table, rules), rules)
    return rank(cells, entries, expected, rules)


GOOD_ON_DEV = {"a": {"00": 3.0, "03": 0.0}, "b": {"00": 0.5, "03": 3.0}}


def test_cells_equal_scikit_learn(tmp_path: Path):
    path = scores_file(tmp_path / "s.parquet", GOOD_ON_DEV)
    cells = cells_of([Scored("both", "fan", 0, path)])
    assert cells.num_rows == 2 * 2 * 2
    table = pq.read_table(path, filters=[("split", "=", "test")]).to_pylist()
    for cell in cells.to_pylist():
        rows = [r for r in table if all(r[k] == cell[k] for k in ("section", "domain", "detector"))]
        truth = [label(int(r["clip"].rpartition("/")[2])) for r in rows]
        assert cell["auc"] == pytest.approx(roc_auc_score(truth, [r["score"] for r in rows]), abs=1e-12)
        assert cell["status"] == "ok"
        assert (cell["num_normal"], cell["num_anomaly"]) == (5, 5)
        assert cell["part"] == ("development" if cell["section"] == "00" else "evaluation")


def test_the_system_is_chosen_on_development_whatever_evaluation_says(tmp_path: Path):
    path = scores_file(tmp_path / "s.parquet", GOOD_ON_DEV)
    board = board_of([Scored("both", "fan", 0, path)], {"both": 4})
    first, second = board.standings
    assert (first.detector, first.rank, second.rank) == ("a", 1, None)
    assert second.evaluation > first.evaluation  # the oracle would have taken b
    assert (board.oracle, second.oracle, first.oracle) == (second, True, False)
    assert board.ranked_on == "evaluation"
    assert first.complete


def test_official_score_is_the_harmonic_mean_of_all_aucs_and_paucs(tmp_path: Path):
    path = scores_file(tmp_path / "s.parquet", GOOD_ON_DEV)
    cells, entries = select(cells_of([Scored("both", "fan", 0, path)]), RULES)
    chosen = [c for c in cells.to_pylist() if c["selected"] and c["part"] == "evaluation"]
    expected = hmean([c["auc"] for c in chosen] + [c["pauc"] for c in chosen])
    assert rank(cells, entries, {"both": 4}, RULES).ranked[0].evaluation == pytest.approx(expected, abs=1e-12)


def test_seeds_are_averaged_with_their_deviation(tmp_path: Path):
    units = [Scored("both", "fan", s, scores_file(tmp_path / f"{s}.parquet", GOOD_ON_DEV, seed=s)) for s in range(3)]
    board = board_of(units, {"both": 12})
    single = [board_of([u], {"both": 4}) for u in units]
    values = [next(s for s in b.standings if s.detector == "a").development for b in single]
    assert board.ranked[0].development == pytest.approx(np.mean(values))
    assert board.ranked[0].development_std == pytest.approx(np.std(values, ddof=1))
    assert board.ranked[0].num_seeds == 3


def test_unlabelled_evaluation_is_said_and_ranking_falls_back(tmp_path: Path):
    unit = Scored("both", "fan", 0, scores_file(tmp_path / "s.parquet", GOOD_ON_DEV))
    table = catalog(labelled=("00",))
    evaluation = [c for c in cells_of([unit], table).to_pylist() if c["part"] == "evaluation"]
    assert {c["status"] for c in evaluation} == {"unlabelled"}
    assert {c["auc"] for c in evaluation} == {None}
    assert evaluation[0]["reason"] == "10 of 10 clips have no label"
    board = board_of([unit], {"both": 2}, table)
    assert board.ranked_on == "development"
    assert board.ranked[0].evaluation is None
    assert board.oracle is None  # the chosen one is the best there is


def test_a_failed_detector_is_neither_chosen_nor_averaged(tmp_path: Path):
    path = scores_file(tmp_path / "s.parquet", {"a": {"00": 5.0, "03": None}, "b": {"00": 0.1, "03": 0.1}})
    unit = Scored("both", "fan", 0, path)
    failed = [c for c in cells_of([unit]).to_pylist() if c["status"] == "failed"]
    assert {(c["detector"], c["section"], c["reason"], c["auc"]) for c in failed} == {("a", "03", "no fit", None)}
    board = board_of([unit], {"both": 4})
    assert board.ranked[0].detector == "b"
    assert [s.complete for s in board.standings] == [True, False]


def test_a_complete_system_ranks_above_one_with_missing_cells(tmp_path: Path):
    whole = scores_file(tmp_path / "w.parquet", {"a": {"00": 0.2, "03": 0.2}})
    part = scores_file(tmp_path / "p.parquet", {"a": {"00": 5.0, "03": 5.0}})
    units = [Scored("whole", "fan", 0, whole), Scored("part", "fan", 0, part)]
    board = board_of(units, {"whole": 4, "part": 8})  # the other machine of 'part' failed
    assert [s.variant for s in board.ranked] == ["whole", "part"]
    assert (board.ranked[1].cells_ok, board.ranked[1].cells_expected) == (4, 8)


def test_leaving_a_section_out_each_section_counts_under_the_choice_of_the_others(tmp_path: Path):
    sections = ("00", "01", "02")
    quality = {"a": {"00": 9.0, "01": 9.0, "02": 0.0}, "b": {"00": 1.0, "01": 1.0, "02": 9.0}}
    unit = Scored("both", "fan", 0, scores_file(tmp_path / "s.parquet", quality))
    rules = EvaluationConfig(selection="leave-one-section-out", ensembles=())
    table = catalog(sections, sections)
    cells, entries = select(cells_of([unit], table, rules), rules)
    chosen = {(c["section"], c["detector"]) for c in cells.to_pylist() if c["selected"]}
    assert chosen == {("00", "b"), ("01", "b"), ("02", "a")}  # never what was best on the section itself
    board = rank(cells, entries, {"both": 6}, rules)
    entry = board.ranked[0]
    assert (entry.detector, entry.complete, entry.development) == ("per section", True, None)
    counted = [c for c in cells.to_pylist() if c["selected"]]
    assert entry.evaluation == pytest.approx(hmean([c[m] for c in counted for m in ("auc", "pauc")]))
    assert board.ranked_on == "leave-one-section-out"
    assert board.oracle.development > entry.evaluation
    assert all(s.evaluation is None for s in board.standings if s.rank is None)  # nothing of theirs was held out


def test_leaving_a_section_out_the_variant_may_be_chosen_too(tmp_path: Path):
    sections = ("00", "01", "02")
    units = [
        Scored(name, "fan", 0, scores_file(tmp_path / f"{name}.parquet", {"a": shifts}))
        for name, shifts in (("x", {"00": 9.0, "01": 9.0, "02": 9.0}), ("y", {"00": 0.0, "01": 0.0, "02": 0.5}))
    ]
    rules = EvaluationConfig(selection="leave-one-section-out", ensembles=())
    cells, entries = select(cells_of(units, catalog(sections, sections), rules), rules)
    rows = cells.to_pylist()
    assert {(rows[i]["section"], rows[i]["variant"]) for i in entries["any variant"]} == {(s, "x") for s in sections}
    board = rank(cells, entries, {"x": 6, "y": 6}, rules)
    assert {s.variant for s in board.ranked} == {"x", "y", "any variant"}
    assert set(select(cells_of(units[:1], catalog(sections, sections), rules), rules)[1]) == {"x"}  # nothing to choose


def test_the_mean_auc_may_choose_instead_of_the_official_score(tmp_path: Path):
    path = scores_file(tmp_path / "s.parquet", {"a": {"00": 9.0, "03": 1.0}, "b": {"00": -0.5, "03": 1.0}})
    table = pq.read_table(path)
    of_target = (pc.field("detector") == "a") & (pc.field("domain") == "target")
    upside_down = table.filter(of_target)
    at = upside_down.schema.get_field_index("score")
    upside_down = upside_down.set_column(at, "score", pc.negate(upside_down["score"]))
    pq.write_table(pa.concat_tables([table.filter(~of_target), upside_down]), path)
    for criterion, expected in (("official", "b"), ("auc", "a")):  # a: AUC 1 and 0; b: less than a half, never 0
        rules = EvaluationConfig(development=("00",), ensembles=(), criterion=criterion)  # type: ignore[arg-type]
        board = board_of([Scored("both", "fan", 0, path)], {"both": 4}, rules=rules)
        assert board.ranked[0].detector == expected


def test_a_variant_does_not_win_by_what_it_lacks(tmp_path: Path):
    sections = ("00", "01", "02")
    hard, easy = dict.fromkeys(sections, 0.0), dict.fromkeys(sections, 2.0)
    units = [
        Scored(variant, machine, seed, scores_file(tmp_path / f"{variant}{machine}{seed}.parquet", {"a": shifts}, seed))
        for variant, machine, seed, shifts in (
            ("whole", "fan", 0, easy), ("whole", "pump", 0, hard),
            ("whole", "fan", 1, easy), ("whole", "pump", 1, hard),
            ("other", "fan", 0, hard), ("other", "pump", 0, hard), ("part", "fan", 0, easy),
        )
    ]  # fmt: skip
    rules = EvaluationConfig(selection="leave-one-section-out", ensembles=())
    cells, entries = select(cells_of(units, catalog(sections, sections), rules), rules)
    rows = cells.to_pylist()
    assert {(rows[i]["variant"], rows[i]["seed"]) for i in entries["any variant"]} == {("whole", 0)}
    board = rank(cells, entries, {"whole": 24, "other": 12, "part": 12}, rules)
    of = {s.variant: s for s in board.ranked}
    assert (of["any variant"].cells_ok, of["any variant"].cells_expected) == (12, 12)
    assert not of["part"].complete


def test_where_nothing_is_left_to_choose_on_that_is_said(tmp_path: Path):
    path = scores_file(tmp_path / "s.parquet", {"a": {"00": 0.0}, "b": {"00": 3.0}})
    rules = replace(RULES, selection="leave-one-section-out")
    board = board_of([Scored("both", "fan", 0, path)], {"both": 2}, catalog(("00",), ("00",)), rules)
    assert not board.chosen
    assert "No labelled sections to choose on" in alerts(board, RULES, synthetic=False)[0]


def test_with_one_section_a_machine_is_left_out(tmp_path: Path):
    units = [
        Scored("both", machine, 0, scores_file(tmp_path / f"{machine}.parquet", {"a": {"00": a}, "b": {"00": b}}))
        for machine, a, b in (("fan", 0.0, 9.0), ("pump", 0.0, 9.0), ("valve", 9.0, 0.0))
    ]
    rules = EvaluationConfig(selection="leave-one-section-out", ensembles=())
    cells, _ = select(cells_of(units, catalog(("00",), ("00",)), rules), rules)
    chosen = {(c["machine"], c["detector"]) for c in cells.to_pylist() if c["selected"]}
    assert ("valve", "b") in chosen  # which the others choose, though a is better there, and comes first
    assert ("valve", "a") not in chosen


def test_an_earlier_checkpoint_can_be_chosen(tmp_path: Path):
    path = scores_file(tmp_path / "s.parquet", {"a": {"00": 9.0, "03": 0.5}})
    table = pq.read_table(path)
    last = pq.read_table(scores_file(tmp_path / "l.parquet", {"a": {"00": 0.0, "03": 9.0}}))
    at = table.schema.get_field_index("checkpoint")
    last = last.set_column(at, table.schema.field("checkpoint"), pa.array([6] * last.num_rows, pa.int16()))
    pq.write_table(pa.concat_tables([table, last]), path)
    board = board_of([Scored("both", "fan", 0, path)], {"both": 4})
    assert (board.ranked[0].checkpoint, board.oracle.checkpoint) == (3, 6)
    first = {column.title: column.text(board.ranked[0]) for column in columns(board)}
    assert [first[title] for title in ("#", "entry", "epochs", "detector")] == ["1", "both", "3", "a"]


def test_scores_behind_the_cells_are_collected_seed_by_seed(tmp_path: Path):
    units = [Scored("both", "fan", s, scores_file(tmp_path / f"{s}.parquet", GOOD_ON_DEV, seed=s)) for s in range(2)]
    cells = cells_of(units)
    collected = cell_scores(units, labels_of(catalog()), cells.filter(pc.field("detector") == "b"), 2021)
    assert set(collected) == {("fan", s, d) for s in ("00", "03") for d in ("source", "target")}
    for cell in cells.to_pylist():
        if cell["detector"] == "b":
            of_cell = collected[cell["machine"], cell["section"], cell["domain"]]
            assert of_cell.scores.shape == (2, CLIPS)
            value = roc_auc_score(of_cell.anomalous, of_cell.scores[cell["seed"]])
            assert value == pytest.approx(cell["auc"], abs=1e-12)


def test_report_files_agree_and_say_synthetic(tmp_path: Path):
    run = RunDirectory(tmp_path / "run")
    path = scores_file(tmp_path / "s.parquet", GOOD_ON_DEV)
    provenance = {"run": "run", "command": "rayasd sweep | more", "synthetic": True}
    scored = [Scored("both", "fan", 0, path)]
    results = compute_results(scored, catalog(), RULES, {"both": ["fan"]})
    board = results.leaderboard
    write_results(run, results, provenance, alerts(board, RULES, synthetic=True))
    table = pq.read_table(run.leaderboard("parquet"))
    assert table["detector"].to_pylist() == [s.detector for s in board.standings]
    assert table.schema.metadata[b"command"] == b"rayasd sweep | more"
    assert len(run.leaderboard("csv").read_text().splitlines()) == 1 + len(board.standings)
    first = board.ranked[0]
    for value, interval in (
        (first.evaluation, first.interval), (first.auc, first.auc_interval), (first.pauc, first.pauc_interval)
    ):  # fmt: skip
        assert interval[0] <= value <= interval[1]
        assert interval[0] < interval[1]
    assert first.precision is not None
    assert all(s.interval is None for s in board.standings if s.rank is None)
    markdown = run.leaderboard("md").read_text()
    assert "Synthetic data" in markdown
    assert f"{100 * board.ranked[0].evaluation:.2f}" in markdown
    assert "| # | entry | score | 95 % interval | held-out AUC |" in markdown
    assert "Score: DCASE 2021, harmonic mean of AUC and pAUC" in markdown
    assert labelled_cells(catalog(), RULES) == {"fan": 4}


def test_a_cell_whose_clips_all_score_the_same_has_no_auc(tmp_path: Path):
    path = scores_file(tmp_path / "x.parquet", {"good": {"00": 2.0, "03": 2.0}, "dull": {"00": 2.0, "03": 2.0}})
    table = pq.read_table(path)
    dull = pc.and_(pc.equal(table["detector"], "dull"), pc.equal(table["section"], "03"))
    pq.write_table(
        table.set_column(table.schema.get_field_index("score"), "score", pc.if_else(dull, 0.25, table["score"])), path
    )
    cells = score_cells([Scored("both", "fan", 0, path)], labels_of(catalog()), EvaluationConfig())
    failed = cells.filter(pc.field("status") == "failed").select(["detector", "section", "domain", "auc", "reason"])
    same = {"detector": "dull", "section": "03", "auc": None, "reason": "all its clips have the same score"}
    assert failed.to_pylist() == [same | {"domain": domain} for domain in ("source", "target")]


@pytest.mark.parametrize(("low", "hinted"), [(0.45, True), (0.55, False), (None, False)])
def test_a_table_no_better_than_chance_says_so(tmp_path: Path, low: float | None, hinted: bool):
    board = board_of([Scored("both", "fan", 0, scores_file(tmp_path / "x.parquet", GOOD_ON_DEV))], {"both": 4})
    first = replace(board.standings[0], auc_interval=None if low is None else (low, 0.7))
    board = replace(board, standings=(first, *board.standings[1:]))
    assert any(note.startswith("No better than chance") for note in alerts(board, RULES, synthetic=False)) == hinted


def test_a_control_that_beats_what_was_trained_is_named(tmp_path: Path):
    quality = {"both": {"a": {"00": 0.3, "03": 0.3}}, "statistics": {"a": {"00": 3.0, "03": 3.0}}}
    units = [Scored(v, "fan", 0, scores_file(tmp_path / f"{v}.parquet", of)) for v, of in quality.items()]
    board = board_of(units, {"both": 4, "statistics": 4})
    assert board.beaten_by_control is None
    assert not any(note.startswith("Beaten") for note in alerts(board, RULES, synthetic=False))
    board = replace(board, controls=("statistics",))
    (note,) = (note for note in alerts(board, RULES, synthetic=False) if note.startswith("Beaten"))
    assert "statistics, which is not trained, has a higher mean AUC" in note
    assert note.endswith("than both.")
    assert replace(board, controls=("both",)).beaten_by_control is None


def test_variants_whose_detectors_see_no_target_domain_clip_are_named(tmp_path: Path):
    board = board_of([Scored("both", "fan", 0, scores_file(tmp_path / "x.parquet", GOOD_ON_DEV))], {"both": 4})
    assert not any("target-domain clip" in note for note in alerts(board, RULES, synthetic=False))
    (note,) = (
        n for n in alerts(replace(board, source_only=("both",)), RULES, synthetic=False) if "target-domain clip" in n
    )
    assert note.startswith("The detectors of both were fitted to no target-domain clip (docs/method.md")


def test_more_false_alarms_than_promised_are_an_alert(tmp_path: Path):
    board = board_of([Scored("both", "fan", 0, scores_file(tmp_path / "x.parquet", GOOD_ON_DEV))], {"both": 4})
    first = board.ranked[0]

    def alerted(low: float, rules: EvaluationConfig = RULES) -> bool:
        decided = replace(first.decided, false_alarms=0.3, false_alarms_interval=(low, 0.5))
        changed = replace(board, standings=(replace(first, decided=decided), *board.standings[1:]))
        return any(
            a.startswith("Too many false alarms") and "30.00" in a for a in alerts(changed, rules, synthetic=False)
        )

    assert alerted(0.11)
    assert not alerted(0.09)  # it may be chance
    assert not alerted(0.11, replace(RULES, threshold="percentile"))  # which promises nothing
