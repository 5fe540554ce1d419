from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import hmean
from sklearn.metrics import roc_auc_score

from rayasd.evaluation.cells import cell_scores, score_cells
from rayasd.evaluation.leaderboard import rank, select
from rayasd.inlier.scoring import SCHEMA
from rayasd.report.write import labelled_cells, write_report
from rayasd.unit import RunDirectory

CLIPS = 10


def label(clip: int) -> int:
    return clip % 2


def scores_file(path: Path, quality: dict[str, dict[str, float]], seed: int = 0) -> Path:
    """Write scores of one machine: quality[detector][section] shifts the anomalies; None fails the detector."""
    rng, rows = np.random.default_rng(seed), []
    for section in ("00", "03"):
        for detector, shifts in quality.items():
            for domain in ("source", "target"):
                for clip in range(CLIPS):
                    shift = shifts[section]
                    score = None if shift is None else rng.standard_normal() + shift * label(clip)
                    rows.append({"clip": f"{section}/{domain}/{clip}", "section": section, "domain": domain,
                                 "split": "test", "label": None, "detector": detector, "pooling": "mean",
                                 "score": score, "reason": "no fit" if shift is None else None})  # fmt: skip
    table = pa.Table.from_pylist(rows, SCHEMA)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return path


def catalog(labelled: tuple[str, ...] = ("00", "03")) -> pa.Table:
    rows = [
        {"clip": f"{section}/{domain}/{clip}", "machine": "fan", "section": section, "domain": domain, "split": "test",
         "label": label(clip) if section in labelled else None}
        for section in ("00", "03") for domain in ("source", "target") for clip in range(CLIPS)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows).cast(
        pa.schema(
            [(n, pa.string()) for n in ("clip", "machine", "section", "domain", "split")] + [("label", pa.int8())]
        )
    )


GOOD_ON_DEV = {"a": {"00": 3.0, "03": 0.0}, "b": {"00": 0.5, "03": 3.0}}


def test_cells_equal_scikit_learn(tmp_path: Path):
    path = scores_file(tmp_path / "s.parquet", GOOD_ON_DEV)
    cells = score_cells([("both", "fan", 0, path)], catalog(), ["00"])
    assert cells.num_rows == 2 * 2 * 2
    table = pq.read_table(path).to_pylist()
    for cell in cells.to_pylist():
        rows = [r for r in table if all(r[k] == cell[k] for k in ("section", "domain", "detector"))]
        truth = [label(int(r["clip"].rpartition("/")[2])) for r in rows]
        assert cell["auc"] == pytest.approx(roc_auc_score(truth, [r["score"] for r in rows]), abs=1e-12)
        assert cell["status"] == "ok"
        assert (cell["num_normal"], cell["num_anomaly"]) == (5, 5)
        assert cell["part"] == ("development" if cell["section"] == "00" else "evaluation")


def test_the_system_is_chosen_on_development_whatever_evaluation_says(tmp_path: Path):
    path = scores_file(tmp_path / "s.parquet", GOOD_ON_DEV)
    cells = select(score_cells([("both", "fan", 0, path)], catalog(), ["00"]))
    board = rank(cells, {"both": 4})
    first, second = board.standings
    assert (first.detector, first.rank, second.rank) == ("a", 1, None)
    assert second.evaluation > first.evaluation  # the oracle would have taken b
    assert board.ranked_on == "evaluation"
    assert first.complete


def test_official_score_is_the_harmonic_mean_of_all_aucs_and_paucs(tmp_path: Path):
    path = scores_file(tmp_path / "s.parquet", GOOD_ON_DEV)
    cells = select(score_cells([("both", "fan", 0, path)], catalog(), ["00"]))
    chosen = [c for c in cells.to_pylist() if c["selected"] and c["part"] == "evaluation"]
    expected = hmean([c["auc"] for c in chosen] + [c["pauc"] for c in chosen])
    assert rank(cells, {"both": 4}).ranked[0].evaluation == pytest.approx(expected, abs=1e-12)


def test_seeds_are_averaged_with_their_deviation(tmp_path: Path):
    units = [("both", "fan", s, scores_file(tmp_path / f"{s}.parquet", GOOD_ON_DEV, seed=s)) for s in range(3)]
    board = rank(select(score_cells(units, catalog(), ["00"])), {"both": 12})
    single = [rank(select(score_cells([u], catalog(), ["00"])), {"both": 4}) for u in units]
    values = [next(s for s in b.standings if s.detector == "a").development for b in single]
    assert board.ranked[0].development == pytest.approx(np.mean(values))
    assert board.ranked[0].development_std == pytest.approx(np.std(values, ddof=1))
    assert board.ranked[0].num_seeds == 3


def test_unlabelled_evaluation_is_said_and_ranking_falls_back(tmp_path: Path):
    path = scores_file(tmp_path / "s.parquet", GOOD_ON_DEV)
    cells = select(score_cells([("both", "fan", 0, path)], catalog(labelled=("00",)), ["00"]))
    evaluation = [c for c in cells.to_pylist() if c["part"] == "evaluation"]
    assert {c["status"] for c in evaluation} == {"unlabelled"}
    assert {c["auc"] for c in evaluation} == {None}
    assert evaluation[0]["reason"] == "10 of 10 clips have no label"
    board = rank(cells, {"both": 2})
    assert board.ranked_on == "development"
    assert board.ranked[0].evaluation is None


def test_a_failed_detector_is_neither_chosen_nor_averaged(tmp_path: Path):
    path = scores_file(tmp_path / "s.parquet", {"a": {"00": 5.0, "03": None}, "b": {"00": 0.1, "03": 0.1}})
    cells = select(score_cells([("both", "fan", 0, path)], catalog(), ["00"]))
    failed = [c for c in cells.to_pylist() if c["status"] == "failed"]
    assert {(c["detector"], c["section"], c["reason"], c["auc"]) for c in failed} == {("a", "03", "no fit", None)}
    board = rank(cells, {"both": 4})
    assert board.ranked[0].detector == "b"
    assert [s.complete for s in board.standings] == [True, False]


def test_a_complete_system_ranks_above_one_with_missing_cells(tmp_path: Path):
    whole = scores_file(tmp_path / "w.parquet", {"a": {"00": 0.2, "03": 0.2}})
    part = scores_file(tmp_path / "p.parquet", {"a": {"00": 5.0, "03": 5.0}})
    cells = select(score_cells([("whole", "fan", 0, whole), ("part", "fan", 0, part)], catalog(), ["00"]))
    board = rank(cells, {"whole": 4, "part": 8})  # the other machine of 'part' failed
    assert [s.variant for s in board.ranked] == ["whole", "part"]
    assert (board.ranked[1].cells_ok, board.ranked[1].cells_expected) == (4, 8)


def test_scores_behind_the_cells_are_collected_seed_by_seed(tmp_path: Path):
    units = [("both", "fan", s, scores_file(tmp_path / f"{s}.parquet", GOOD_ON_DEV, seed=s)) for s in range(2)]
    cells = score_cells(units, catalog(), ["00"])
    collected = cell_scores(units, catalog(), cells, ("both", "b", "mean"))
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
    board = write_report(run, [("both", "fan", 0, path)], catalog(), ["00"], {"both": ["fan"]}, provenance)
    table = pq.read_table(run.leaderboard("parquet"))
    assert table["detector"].to_pylist() == [s.detector for s in board.standings]
    assert table.schema.metadata[b"command"] == b"rayasd sweep | more"
    assert len(run.leaderboard("csv").read_text().splitlines()) == 1 + len(board.standings)
    first = board.ranked[0]
    assert first.low < first.evaluation < first.high
    assert all(s.low is None for s in board.standings if s.rank is None)
    markdown = run.leaderboard("md").read_text()
    assert "Synthetic data" in markdown
    assert f"{100 * board.ranked[0].evaluation:.2f}" in markdown
    assert labelled_cells(catalog()) == {"fan": 4}
