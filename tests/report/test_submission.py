import csv
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy.stats import hmean
from sklearn.metrics import roc_auc_score

from rayasd.config import Config
from rayasd.errors import UserError
from rayasd.evaluation.scores import Fusion, Leaf, SectionScores
from rayasd.report.dcase import _members, check_label, metadata, result_files, write_results


def section(clips: list[str], domains: list[str], scores: list[float]) -> SectionScores:
    none = np.array([], dtype=object)
    return SectionScores(
        np.array(clips, dtype=object),
        np.array(domains, dtype=object),
        np.array(scores),
        None,
        np.array(clips, dtype=object),
        none,
        np.empty(0),
        none,
        none,
    )


def rows(file: Path) -> list[list[str]]:
    return list(csv.reader(file.open(newline="")))


def test_a_file_a_domain_with_decisions_above_the_threshold(tmp_path: Path):
    clips = [f"eval_data/fan/x/section_03_{d}_test_{n:04}.wav" for n in (1, 0) for d in ("source", "target")]
    scores = section(clips, ["source", "target"] * 2, [0.1, 2.0, 1 / 3, 1.5])
    assert write_results(tmp_path, 2021, "fan", "03", scores, 1.5) == 4
    assert rows(tmp_path / "anomaly_score_fan_section_03_source_test.csv") == [
        ["section_03_source_test_0000.wav", repr(1 / 3)], ["section_03_source_test_0001.wav", "0.1"]
    ]  # fmt: skip
    assert rows(tmp_path / "decision_result_fan_section_03_target_test.csv") == [
        ["section_03_target_test_0000.wav", "0"], ["section_03_target_test_0001.wav", "1"]
    ]  # fmt: skip


def test_file_names_of_each_year():
    domains = ["source", "target"]
    assert list(result_files(2020, "ToyCar", "05", domains)) == ["ToyCar_id_05.csv"]
    assert list(result_files(2021, "fan", "03", domains)) == [
        "fan_section_03_source_test.csv", "fan_section_03_target_test.csv"
    ]  # fmt: skip
    (later,) = result_files(2023, "shaker", "00", domains).items()
    assert later[0] == "shaker_section_00_test.csv"
    assert later[1].all()


def evaluate(submission: Path, truth: Path) -> float:
    """The official score of a folder of submission files, by the ground truth's own file names."""
    values = []
    for file in sorted(truth.glob("ground_truth_*.csv")):
        label = {name: int(value) for name, value in rows(file)}
        score = rows(submission / file.name.replace("ground_truth", "anomaly_score"))
        decision = rows(submission / file.name.replace("ground_truth", "decision_result"))
        assert [name for name, _ in score] == [name for name, _ in decision]
        assert sorted(name for name, _ in score) == sorted(label)
        assert {value for _, value in decision} <= {"0", "1"}
        y, s = [label[name] for name, _ in score], [float(value) for _, value in score]
        values += [roc_auc_score(y, s), roc_auc_score(y, s, max_fpr=0.1)]
    assert len(values) == 84
    return float(hmean(np.maximum(values, np.finfo(float).eps)))


@pytest.mark.realdata
def test_all_8635_clips_are_scored_from_our_files_as_by_us(shared: Path, tmp_path: Path):
    truth = shared / "dcase2021/ground_truth_data"
    rng, ours = np.random.default_rng(0), []
    sections: dict[tuple[str, str], list[tuple[str, str, int]]] = {}
    for file in sorted(truth.glob("*.csv")):
        machine, _, name, domain = file.stem.removeprefix("ground_truth_").removesuffix("_test").split("_")
        sections.setdefault((machine, name), []).extend((clip, domain, int(value)) for clip, value in rows(file))
    for (machine, name), clips in sections.items():
        scores = rng.standard_normal(len(clips)) * 1e-3 + [label * 1e-4 for *_, label in clips]
        of_section = section([f"{d}/{c}" for c, d, _ in clips], [d for _, d, _ in clips], scores.tolist())
        write_results(tmp_path, 2021, machine, name, of_section, float(np.quantile(scores, 0.9)))
        for domain in ("source", "target"):
            of = [i for i, clip in enumerate(clips) if clip[1] == domain]
            y = [clips[i][2] for i in of]
            ours += [roc_auc_score(y, scores[of]), roc_auc_score(y, scores[of], max_fpr=0.1)]
    assert sum(len(clips) for clips in sections.values()) == 8635
    assert evaluate(tmp_path, truth) == pytest.approx(hmean(ours), abs=1e-9)


def test_the_description_is_the_challenges():
    values = metadata(
        label="Doe_Lab_task2_1", name="n", abbreviation="a", authors=[{"lastname": "Doe"}], config=Config(),
        systems=["knn-1 (mean)"], num_subsystems=5, total_parameters=123, results={"fan": {"harmonic_mean_auc": 61.2}},
    )  # fmt: skip
    read = yaml.safe_load(yaml.safe_dump(values))
    description = read["system"]["description"]
    assert description["input_sampling_rate"] == "16 kHz"
    assert description["data_augmentation"] == "mixup"
    assert description["ensemble_method_subsystem_count"] == 5
    assert "tf_efficientnet_b0" in description["machine_learning_method"]
    assert "knn-1 (mean)" in description["machine_learning_method"]
    assert "false-alarm rate of at most 0.1" in description["decision_making"]
    assert read["results"]["development_dataset"]["fan"]["harmonic_mean_auc"] == 61.2


def test_labels_are_checked():
    check_label("Kuroyanagi_NU_task2_1")
    for wrong in ("x", "a_b_task1_1", "a_b_task2_0", "../a_b_task2_1", "a_b_task2_1/.."):
        with pytest.raises(UserError, match="Lastname_Institute_task2_1"):
            check_label(wrong)


def test_networks_behind_an_entry_are_those_that_were_scored():
    def scores(*systems: Leaf) -> SectionScores:
        none = np.empty(0, object)
        tree = Fusion("z-mean", systems)
        return SectionScores(none, none, np.empty(0), None, none, none, np.empty(0), none, none, tree)

    both = [Leaf("both", seed, epochs, "knn-1", "mean") for seed in (0, 1) for epochs in (1, 2, 5)]
    shared = [Leaf("shared", seed, 9, "knn-1", "mean") for seed in (0, 1)]
    of_detectors = [leaf._replace(detector="gmm-1") for leaf in shared]  # of the same networks
    assert _members([scores(*both, *shared), scores(*both, *shared, *of_detectors)]) == {"both": 6, "shared": 2}
    assert _members([scores(both[0])]) == {"both": 1}
    assert _members([scores(both[0]), scores(both[1])]) == {"both": 1}  # each section has its own checkpoint
