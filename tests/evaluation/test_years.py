import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import hmean
from sklearn.metrics import roc_auc_score

from rayasd.config import EvaluationConfig
from rayasd.data.years import years_told
from rayasd.errors import UserError
from rayasd.evaluation.cells import labelled_cells, score_cells
from rayasd.evaluation.scores import Scored
from rayasd.evaluation.selection import official
from rayasd.evaluation.years import RULES, is_development, official_score, settled
from rayasd.inlier.scores_file import SCHEMA

YEARS = sorted(RULES)


def rules(year: int, **changes: object) -> EvaluationConfig:
    return EvaluationConfig(year=year, ensembles=(), **changes)  # type: ignore[arg-type]


Clip = tuple[str, int | None, float]


def write(path: Path, clips: list[Clip]) -> tuple[Scored, dict[str, int | None], pa.Table]:
    """One section of one machine: a scores file, its labels and its catalog."""
    rows = [
        {"clip": str(i), "section": "00", "domain": domain, "split": "test", "label": None, "checkpoint": 0,
         "detector": "d", "pooling": "p", "score": score, "reason": None}
        for i, (domain, _, score) in enumerate(clips)
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), path)
    labels = {str(i): label for i, (_, label, _) in enumerate(clips)}
    catalog = [{"clip": r["clip"], "machine": "fan", "section": "00", "domain": r["domain"], "split": "test",
                "label": labels[r["clip"]]} for r in rows]  # fmt: skip
    return Scored("both", "fan", 0, path), labels, pa.Table.from_pylist(catalog)


def independent(clips: list[Clip], year: int) -> list[float]:
    """Every AUC and pAUC of the year's rule that can be computed, by scikit-learn."""
    groups: list[tuple[list[Clip], tuple[float | None, ...]]] = []
    if year == 2020:
        groups.append((clips, (None, 0.1)))
    for domain in sorted({clip[0] for clip in clips}):
        if year == 2021:
            groups.append(([c for c in clips if c[0] == domain], (None, 0.1)))
        elif year >= 2022:
            groups.append(([c for c in clips if c[1] or c[0] == domain], (None,)))
    if year >= 2022:
        groups.append((clips, (0.1,)))
    return [
        roc_auc_score([c[1] for c in group], [c[2] for c in group], max_fpr=max_fpr)
        for group, metrics in groups if {c[1] for c in group} == {0, 1}
        for max_fpr in metrics
    ]  # fmt: skip


clips = st.lists(
    st.tuples(st.sampled_from(["source", "target"]), st.sampled_from([0, 1]), st.sampled_from([0.0, 0.5, 1.0, 2.0])),
    min_size=1,
    max_size=12,
)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(clips=clips, year=st.sampled_from(YEARS))
def test_any_few_clips_with_ties_and_missing_classes(tmp_path_factory, clips: list[Clip], year: int):
    unit, labels, catalog = write(tmp_path_factory.mktemp("s") / "s.parquet", clips)
    cells = score_cells([unit], labels, rules(year)).to_pylist()
    values = independent(clips, year)
    found = [cell[name] for cell in cells for name in ("auc", "pauc") if cell[name] is not None]
    same_score = [cell for cell in cells if cell["status"] == "failed"]
    chance = [0.5] * (len(values) - len(found))  # what they would be worth
    assert bool(chance) == bool(same_score)
    assert sorted(found + chance) == pytest.approx(sorted(values), abs=1e-12)
    assert labelled_cells(catalog, rules(year)) == {"fan": sum(cell["status"] != "unlabelled" for cell in cells)}
    for cell in cells:
        one_class = cell["num_normal"] == 0 or cell["num_anomaly"] == 0
        assert (cell["status"] == "unlabelled") == one_class
        assert not one_class or "AUC needs both" in cell["reason"]
    scores = official(cells, year)
    if found:
        floored = np.maximum(found, np.finfo(float).eps)
        assert scores == pytest.approx([np.mean(found) if year == 2020 else hmean(floored)], abs=1e-12)
    else:
        assert scores == []


def test_since_2022_a_domains_normal_clips_meet_the_anomalies_of_both(tmp_path: Path):
    three = [("source", 0, 1.0), ("target", 0, 3.0), ("target", 1, 2.0)]
    unit, labels, _ = write(tmp_path / "s.parquet", three)
    by_year = {
        year: {c["domain"]: (c["auc"], c["pauc"]) for c in score_cells([unit], labels, rules(year)).to_pylist()}
        for year in (2021, 2022)
    }
    assert by_year[2021] == {"source": (None, None), "target": (0.0, pytest.approx(0.4736842105263158))}
    assert by_year[2022]["source"] == (1.0, None)
    assert by_year[2022]["target"] == (0.0, None)
    assert by_year[2022]["both"][0] is None


def test_one_unknown_label_makes_its_section_unlabelled_since_2022(tmp_path: Path):
    some = [("source", 0, 1.0), ("source", 1, 3.0), ("target", None, 2.0)]
    unit, labels, catalog = write(tmp_path / "s.parquet", some)
    assert [c["status"] for c in score_cells([unit], labels, rules(2021)).to_pylist()] == ["ok", "unlabelled"]
    assert {c["status"] for c in score_cells([unit], labels, rules(2023)).to_pylist()} == {"unlabelled"}
    assert labelled_cells(catalog, rules(2023)) == {"fan": 0}


def test_unknown_domains_make_no_score_since_2022(tmp_path: Path):
    some = [("source", 0, 1.0), ("source", 1, 3.0), ("unknown", 0, 2.0)]
    unit, labels, catalog = write(tmp_path / "s.parquet", some)
    cells = {c["domain"]: c for c in score_cells([unit], labels, rules(2022)).to_pylist()}
    assert {domain: c["status"] for domain, c in cells.items()} == {
        "source": "unlabelled", "unknown": "unlabelled", "both": "unlabelled"
    }  # fmt: skip
    assert cells["source"]["reason"] == "the domain of 1 of 3 clips is unknown"
    assert labelled_cells(catalog, rules(2022)) == {"fan": 0}


def test_2020_averages_a_machines_ids_first():
    machines, values = ["ToyCar", "ToyCar", "ToyCar", "fan"], [0.9, 0.9, 0.9, 0.5]
    assert official_score(2020, machines, values) == pytest.approx(0.7)
    assert official_score(2021, machines, values) == pytest.approx(hmean(values))


def test_zero_is_floored_and_nothing_is_nan():
    for year in YEARS:
        assert np.isnan(official_score(year, [], []))
    assert official_score(2021, ["fan"] * 2, [0.0, 1.0]) == pytest.approx(2 * np.finfo(float).eps, rel=1e-6)


@pytest.mark.parametrize(
    ("year", "development", "evaluation"),
    [
        (2020, [("fan", "00"), ("valve", "06"), ("ToyCar", "01"), ("ToyConveyor", "03")],
         [("fan", "01"), ("ToyCar", "05"), ("ToyConveyor", "04")]),
        (2021, [("fan", "00"), ("ToyTrain", "02")], [("fan", "03"), ("pump", "05")]),
        (2022, [("bearing", "02")], [("bearing", "03")]),
        (2023, [("fan", "00"), ("bearing", "00")], [("shaker", "00"), ("bandsaw", "00")]),
        (2025, [("ToyTrain", "00")], [("AutoTrash", "00"), ("ToyCarEmu", "00")]),
        (2026, [("ToyCarEmu", "00"), ("toycar", "00")], [("ToyTrain", "00"), ("Sander", "00")]),
    ],
)  # fmt: skip
def test_each_year_divides_its_sections(year: int, development: list, evaluation: list):
    assert all(is_development(rules(year), *where) for where in development)
    assert not any(is_development(rules(year), *where) for where in evaluation)


def clips_of(*names: str) -> pa.Table:
    """Catalog rows of clips by their paths."""
    section = [re.search(r"(?:section|id)_(\d+)", name) for name in names]
    return pa.table({"clip": names, "machine": [name.split("/")[0] for name in names],
                     "section": [found[1] if found else "00" for found in section]})  # fmt: skip


@pytest.mark.parametrize(
    ("names", "years"),
    [
        (["fan/train/normal_id_00_00000000.wav", "ToyCar/test/id_05_00000001.wav"], [2020]),
        (["fan/source_test/section_00_source_test_0000.wav", "pump/train/section_03_source_train_normal_0000.wav"],
         [2021, 2022]),
        (["bearing/test/section_03_source_test_normal_0000.wav"], [2022, 2021]),
        (["bearing/test/section_00_source_test_normal_0000.wav"], [2023, 2024, 2025, 2022]),
        (["fan/test/section_00_source_test_normal_0000.wav"], [2023, 2024, 2025, 2026, 2022]),
        (["fan/test/section_00_source_test_normal_0000.wav", "Vacuum/test/section_00_0000.wav"], [2023]),
        (["Polisher/test/section_00_0000.wav"], [2025]),
        (["fan/train/section_00_source_train_normal_0000_.wav", "valveEmu/train/section_00_source_train_normal_0.wav"],
         [2026]),
        (["ToyDrone/test/section_00_0000.wav", "Sander/test/section_00_0000.wav"], [2026]),
        (["mine/train/section_03_source_train_normal_0000.wav"], []),
        (["fan/good/1.wav"], []),
    ],
)  # fmt: skip
def test_the_year_is_told_by_names_machines_and_folders(names: list[str], years: list[int]):
    found, by = years_told(clips_of(*names))
    assert (found, bool(by)) == (years, bool(years))
    settled_year = settled(EvaluationConfig(), clips_of(*names)).year
    assert settled_year == (years[0] if years else 2021)
    assert years_told(clips_of(*names), "dcase2024")[0] == [2024]


def test_a_year_that_contradicts_the_data_is_refused():
    of_2020 = clips_of("fan/train/normal_id_00_00000000.wav")
    with pytest.raises(UserError, match=r"these are DCASE 2020 data .*evaluation.year = 2021 would"):
        settled(rules(2021), of_2020)
    assert settled(rules(2020), of_2020).year == 2020
    assert settled(rules(2021, development=("00",)), of_2020).year == 2021
    of_2021 = clips_of("pump/source_test/section_03_source_test_normal_0000.wav")
    assert settled(rules(2022), of_2021).year == 2022  # the same division, another score
    with pytest.raises(UserError, match="2021"):
        settled(rules(2023), of_2021)
    assert settled(rules(2025), clips_of("Vacuum/test/section_00_0000.wav")).year == 2025  # scored alike
    with pytest.raises(UserError, match="2026"):
        settled(rules(2025), clips_of("valveEmu/test/section_00_0000.wav"))


def test_a_division_of_ones_own_names_sections_machines_or_both():
    own = rules(2021, development=("07", "fan", "pump/01"))
    assert [is_development(own, *where) for where in (("x", "07"), ("fan", "03"), ("pump", "01"), ("pump", "00"))] == [
        True, True, True, False
    ]  # fmt: skip
