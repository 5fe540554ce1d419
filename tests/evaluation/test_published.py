from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import hmean
from sklearn.metrics import roc_auc_score

from rayasd.config import EvaluationConfig
from rayasd.data.catalog import SCHEMA as CATALOG_SCHEMA
from rayasd.data.catalog import Catalog
from rayasd.data.ground_truth import with_ground_truth
from rayasd.data.years import sections_of
from rayasd.evaluation.bootstrap import metric_replicates, official_replicates
from rayasd.evaluation.cells import cell_scores, labelled_cells, labels_of, score_cells
from rayasd.evaluation.leaderboard import rank
from rayasd.evaluation.published import published_systems, why_not_benchmark
from rayasd.evaluation.scores import Scored
from rayasd.evaluation.selection import select
from rayasd.inlier.scores_file import SCHEMA


def test_published_numbers_are_sorted_and_keep_to_their_part_and_year():
    evaluation, development = published_systems("evaluation", 2021), published_systems("development", 2021)
    assert evaluation[0].name == "BEATs + LoRA"
    assert development[0].score == 0.7306
    assert "challenge winner" in {system.name for system in evaluation}
    assert "challenge winner" not in {system.name for system in development}  # measured on the evaluation set alone
    of_2023 = {system.name: system.score for system in published_systems("evaluation", 2023)}
    assert (of_2023["challenge winner"], of_2023["AE"]) == (0.6697, 0.578)
    assert len(published_systems("development", 2020)) == len(published_systems("development", 2024)) == 12
    assert published_systems("evaluation", 2026) == []
    for year in (2020, 2021, 2022, 2023, 2024, 2025):
        for system in (*published_systems("evaluation", year), *published_systems("development", year)):
            assert 0.5 < system.score < 0.95
            assert system.source


@pytest.mark.parametrize(
    ("year", "development", "evaluation"),
    [(2020, 4 * 4 + 4 + 3, 4 * 3 + 3 + 3), (2022, 42, 42), (2023, 14, 14), (2024, 14, 18), (2025, 14, 16)],
)
def test_all_cells_of_a_year_and_only_they_are_its_benchmark(year: int, development: int, evaluation: int):
    about, domains = {2020: 400, 2022: 100}.get(year, 100), ("source",) if year == 2020 else ("source", "target")
    for part, number in (("development", development), ("evaluation", evaluation)):
        cells = [(m, s, d) for m, s in sections_of(year, part) for d in domains]
        assert len(cells) == number
        rows = [
            {"clip": f"{m}{s}{d}{i}", "machine": m, "section": s, "domain": d, "split": "test", "label": i % 2}
            for m, s, d in cells for i in range(about)
        ]  # fmt: skip
        rules = EvaluationConfig(year=year, ensembles=())  # type: ignore[arg-type]
        table = pa.Table.from_pylist(rows, CATALOG_SCHEMA)
        assert why_not_benchmark(table, part, rules, synthetic=False) is None
        assert f"{number - 1} of its {number} {part} cells" in str(
            why_not_benchmark(table[about:], part, rules, synthetic=False)
        )
        few = table.filter(pa.array(row["clip"].endswith("0") for row in rows))
        assert f"the data are not DCASE {year} Task 2" in str(why_not_benchmark(few, part, rules, synthetic=False))
        fewer = why_not_benchmark(table[1:], part, rules, synthetic=False)
        assert fewer is None or (part == "evaluation" and f"{number * about - 1} evaluation test clips" in fewer)
        assert (fewer is None) == (part == "development" or year == 2020)


RULES = EvaluationConfig(ensembles=())


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


def test_a_few_clips_of_every_cell_are_not_the_development_set():
    machines = ("ToyCar", "ToyTrain", "fan", "gearbox", "pump", "slider", "valve")
    rows = [
        {"clip": f"{m}{s}{d}{i}", "machine": m, "section": s, "domain": d, "split": "test", "label": i % 2}
        for m in machines for s in ("00", "01", "02") for d in ("source", "target") for i in range(200)
    ]  # fmt: skip
    table = pa.Table.from_pylist(rows, CATALOG_SCHEMA)
    assert why_not_benchmark(table, "development", RULES, synthetic=False) is None
    few = pa.Table.from_pylist(
        [row for row in rows if str(row["clip"]).endswith(("e0", "t0", "e1", "t1"))], CATALOG_SCHEMA
    )
    assert "has 2 test clips, not 100 to 400" in str(why_not_benchmark(few, "development", RULES, synthetic=False))


@pytest.mark.realdata
def test_only_the_whole_benchmark_stands_beside_published_systems(official: Catalog):
    table = official.table
    assert why_not_benchmark(table, "evaluation", RULES, synthetic=False) is None
    assert (
        why_not_benchmark(table, "evaluation", RULES, synthetic=True) == "the data are synthetic, not DCASE 2021 Task 2"
    )
    assert "8634 evaluation test clips instead of 8635" in str(
        why_not_benchmark(table[1:], "evaluation", RULES, synthetic=False)
    )
    assert "0 of its 42 development cells" in str(why_not_benchmark(table, "development", RULES, synthetic=False))
    other = EvaluationConfig(year=2022)
    assert "the data are not DCASE 2022 Task 2: 36 of its 42" in str(
        why_not_benchmark(table, "evaluation", other, synthetic=False)
    )
    other = EvaluationConfig(development=("03",))
    assert "not divided as the benchmark" in str(why_not_benchmark(table, "evaluation", other, synthetic=False))
    unlabelled = table.set_column(5, CATALOG_SCHEMA.field("label"), pa.nulls(table.num_rows, pa.int8()))
    assert "8635 of the evaluation test clips have no label" in str(
        why_not_benchmark(unlabelled, "evaluation", RULES, synthetic=False)
    )


def by_hand(rows: list[dict], year: int) -> float:
    """Official score with scikit-learn and scipy alone."""

    def metrics(clips: list[dict]) -> list[float]:
        labels, scores = [row["label"] for row in clips], [row["score"] for row in clips]
        return [roc_auc_score(labels, scores), roc_auc_score(labels, scores, max_fpr=0.1)]

    sections = {(row["machine"], row["section"]) for row in rows}
    of = {key: [row for row in rows if (row["machine"], row["section"]) == key] for key in sections}
    values: dict[str, list[float]] = {machine: [] for machine, _ in sections}
    for (machine, _), clips in of.items():
        if year == 2020:  # no domains
            values[machine] += metrics(clips)
            continue
        if year >= 2022:
            values[machine].append(metrics(clips)[1])
        for domain in ("source", "target"):
            in_domain = [row for row in clips if row["domain"] == domain]
            if year >= 2022:
                values[machine].append(metrics([row for row in clips if row["label"] or row["domain"] == domain])[0])
            else:
                values[machine] += metrics(in_domain)
    if year == 2020:
        return float(np.mean([np.mean(of_machine) for of_machine in values.values()]))
    return float(hmean([value for of_machine in values.values() for value in of_machine]))


@pytest.mark.realdata
@pytest.mark.parametrize(("year", "num_cells"), [(2020, 21), (2021, 42), (2022, 63), (2025, 63)])
def test_the_official_score_of_random_scores_equals_an_independent_computation(
    official: Catalog, tmp_path: Path, year: int, num_cells: int
):
    rng = np.random.default_rng(0)
    rows = official.table.to_pylist()
    for row in rows:
        row |= {"checkpoint": 1, "detector": "random", "pooling": "mean", "score": round(rng.standard_normal(), 2),
                "calibration": None, "reason": None}  # fmt: skip
    units = []
    for machine in official.machines:
        path = tmp_path / f"{machine}.parquet"
        of_machine = [{name: row[name] for name in SCHEMA.names} for row in rows if row["machine"] == machine]
        pq.write_table(pa.Table.from_pylist(of_machine, SCHEMA), path)
        units.append(Scored("both", machine, 0, path))
    rules = EvaluationConfig(year=year, development=("none",), ensembles=())  # type: ignore[arg-type]
    cells, entries = select(score_cells(units, labels_of(official.table), rules), rules)
    assert cells.num_rows == num_cells == sum(labelled_cells(official.table, rules).values())
    board = rank(cells, entries, {"both": num_cells}, rules)
    assert board.ranked[0].complete
    assert board.ranked[0].evaluation == pytest.approx(by_hand(rows, year), abs=1e-12)
    replicate = official_replicates(
        metric_replicates(cell_scores(units, labels_of(official.table), cells, year), 2), year
    )
    assert abs(replicate.mean() - board.ranked[0].evaluation) < 0.02
