from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import hmean
from sklearn.metrics import roc_auc_score

from rayasd.data.catalog import SCHEMA as CATALOG_SCHEMA
from rayasd.data.catalog import Catalog, with_ground_truth
from rayasd.evaluation.cells import score_cells
from rayasd.evaluation.leaderboard import rank, select
from rayasd.evaluation.published import published_systems, why_not_benchmark
from rayasd.inlier.scoring import SCHEMA
from rayasd.report.write import labelled_cells


def test_published_numbers_are_sorted_and_keep_to_their_part():
    evaluation, development = published_systems("evaluation"), published_systems("development")
    assert evaluation[0].name == "BEATs + LoRA"
    assert development[0].score == 0.7306
    assert "challenge winner" in {system.name for system in evaluation}
    assert "challenge winner" not in {system.name for system in development}  # measured on the evaluation set alone
    for system in (*evaluation, *development):
        assert 0.5 < system.score < 0.8
        assert system.source


@pytest.fixture(scope="module")
def official(shared: Path) -> Catalog:
    """The whole evaluation test set of DCASE 2021 as a labelled catalog, without audio."""
    folder = shared / "dcase2021/ground_truth_data"
    rows = []
    for file in sorted(folder.glob("*.csv")):
        machine, _, section, domain = file.stem.removeprefix("ground_truth_").removesuffix("_test").split("_")
        for line in file.read_text().splitlines():
            clip = f"eval_data/{machine}/{domain}_test/{line.partition(',')[0]}"
            rows.append({"clip": clip, "machine": machine, "section": section, "domain": domain, "split": "test"})
    return with_ground_truth(Catalog(folder, pa.Table.from_pylist(rows, CATALOG_SCHEMA)), folder)


@pytest.mark.realdata
def test_only_the_whole_benchmark_stands_beside_published_systems(official: Catalog):
    table = official.table
    assert why_not_benchmark(table, "evaluation", synthetic=False) is None
    assert why_not_benchmark(table, "evaluation", synthetic=True) == "the data are synthetic, not DCASE 2021 Task 2"
    assert "8634 evaluation test clips instead of 8635" in str(
        why_not_benchmark(table[1:], "evaluation", synthetic=False)
    )
    assert "0 of its 42 development cells" in str(why_not_benchmark(table, "development", synthetic=False))
    unlabelled = table.set_column(5, CATALOG_SCHEMA.field("label"), pa.nulls(table.num_rows, pa.int8()))
    assert "8635 of the evaluation test clips have no label" in str(
        why_not_benchmark(unlabelled, "evaluation", synthetic=False)
    )


@pytest.mark.realdata
def test_the_official_score_of_random_scores_equals_an_independent_computation(official: Catalog, tmp_path: Path):
    rng = np.random.default_rng(0)
    rows = official.table.to_pylist()
    for row in rows:
        row |= {"detector": "random", "pooling": "mean", "score": round(rng.standard_normal(), 2), "reason": None}
    units = []
    for machine in official.machines:
        path = tmp_path / f"{machine}.parquet"
        of_machine = [{name: row[name] for name in SCHEMA.names} for row in rows if row["machine"] == machine]
        pq.write_table(pa.Table.from_pylist(of_machine, SCHEMA), path)
        units.append(("both", machine, 0, path))
    cells = select(score_cells(units, official.table, ["00", "01", "02"]))
    board = rank(cells, {"both": sum(labelled_cells(official.table).values())})
    values = []
    for cell in sorted({(row["machine"], row["section"], row["domain"]) for row in rows}):
        of_cell = [row for row in rows if (row["machine"], row["section"], row["domain"]) == cell]
        labels, scores = [row["label"] for row in of_cell], [row["score"] for row in of_cell]
        values += [roc_auc_score(labels, scores), roc_auc_score(labels, scores, max_fpr=0.1)]
    assert len(values) == 84
    assert board.ranked[0].complete
    assert board.ranked[0].evaluation == pytest.approx(hmean(values), abs=1e-12)
