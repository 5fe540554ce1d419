import errno
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from rayasd.config import Config
from rayasd.data.catalog import SCHEMA, Catalog, scan
from rayasd.data.folders import audio_files
from rayasd.data.ground_truth import scan_labelled, with_ground_truth, with_labels_of
from rayasd.data.waveforms import data_fingerprint, decode
from rayasd.errors import StorageError, UserError
from tests.command import Rayasd
from tests.conftest import write_clip, write_tree


def test_a_dcase_tree_is_cataloged_whole(tree: Path):
    catalog = scan(tree)
    assert catalog.machines == ["fan", "pump", "valve"]
    assert catalog.table.num_rows == 3 * 2 * (9 + 12)
    assert not catalog.oddities
    target = catalog.table.filter((pc.field("domain") == "target") & (pc.field("split") == "test"))
    assert target.num_rows == 3 * 2 * 6
    assert set(target["label"].to_pylist()) == {0, 1}


def test_dev_and_eval_levels_join_to_one_machine(tmp_path: Path):
    write_clip(tmp_path / "dev_data/fan/train/section_00_source_train_normal_0000.wav", 300)
    write_clip(tmp_path / "eval_data/fan/train/section_03_source_train_normal_0000.wav", 300)
    write_clip(tmp_path / "eval_data/fan/source_test/section_03_source_test_0000.wav", 300)
    catalog = scan(tmp_path)
    assert catalog.machines == ["fan"]
    assert catalog.table["label"].to_pylist() == [0, None, 0]


def test_everything_odd_is_named(tmp_path: Path):
    root = write_tree(tmp_path, ("fan", "pump"))
    write_clip(root / "fan/train/my recording.wav", 300)
    write_clip(root / "fan/train/section_00_source_train_anomaly_0000.wav", 300)
    write_clip(root / "loose.wav", 300)
    (root / "fan/train/notes.txt").write_text("hello")
    odd = {oddity.path: oddity for oddity in scan(root).oddities}
    assert odd["fan/train/my recording.wav"].unusable
    assert "anomalous clip among the training" in odd["fan/train/section_00_source_train_anomaly_0000.wav"].problem
    assert not odd["fan/train/notes.txt"].unusable
    assert "1 audio files outside" in odd["."].problem


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_a_folder_that_a_failing_disk_cannot_list_is_not_left_out(number: int, tree: Path, monkeypatch):
    list_folder = os.scandir

    def scandir(folder: str) -> Any:
        if Path(folder) == tree / "fan/source_test":
            raise OSError(number, os.strerror(number), folder)
        return list_folder(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    for read in (scan, audio_files):
        with pytest.raises(StorageError, match="source_test cannot be read: .*look at its disk"):
            read(tree)


def test_a_folder_without_permission_is_named_by_commands_that_search_for_audio(
    tree: Path, tmp_path: Path, rayasd: Rayasd, monkeypatch, capsys
):
    list_folder, closed = os.scandir, tree / "fan/source_test"

    def scandir(folder: str) -> Any:
        if Path(folder) == closed:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), folder)
        return list_folder(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    warning = f"{closed} cannot be opened and is left out: Permission denied\n"
    assert not [path for path in audio_files(tree) if path.is_relative_to(closed)]  # score and recalibrate list by it
    assert capsys.readouterr().err == warning
    words = ("--pattern", "{machine}/{domain}_test/*.wav", "--machine", "fan", "--label", "normal", "--partial")
    done = rayasd("data", "index", tree, *words, "-o", tmp_path / "clips.csv")
    assert (done.returncode, done.stderr) == (0, warning)


def test_ground_truth_fills_labels_with_either_line_end(tmp_path: Path):
    for n in range(2):
        write_clip(tmp_path / f"fan/source_test/section_03_source_test_000{n}.wav", 300)
    truth = tmp_path / "truth"
    truth.mkdir()
    file = truth / "ground_truth_fan_section_03_source_test.csv"
    file.write_bytes(b"section_03_source_test_0000.wav,1\r\nsection_03_source_test_0001.wav,0\r\n")
    assert with_ground_truth(scan(tmp_path), truth).table["label"].to_pylist() == [1, 0]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("section_00_source_test_normal_0000.wav,2\n", "line 1: expected 'clip name,0|1'"),
        ("section_00_source_test_normal_0000.wav\n", "line 1: expected"),
        ("section_00_source_test_normal_0000.wav,1\n", "its name says label 0, the ground truth"),
    ],
)
def test_wrong_ground_truth_is_refused(tree: Path, tmp_path: Path, content: str, said: str):
    (tmp_path / "ground_truth_fan_section_00_source_test.csv").write_text(content)
    with pytest.raises(UserError, match=said.replace("|", r"\|")):
        with_ground_truth(scan(tree), tmp_path)


def test_ground_truth_beside_the_clips_may_name_others(tmp_path: Path):
    write_clip(tmp_path / "fan/source_test/section_00_source_test_normal_0000.wav", 300)
    (tmp_path / "ground_truth_data").mkdir()
    truth = tmp_path / "ground_truth_data/ground_truth_fan_section_03_source_test.csv"
    truth.write_text("section_03_source_test_0000.wav,1\n")
    assert scan_labelled(tmp_path, None).table["label"].to_pylist() == [0]
    with pytest.raises(UserError, match="names none of the test clips"):
        scan_labelled(tmp_path, tmp_path / "ground_truth_data")


@pytest.fixture
def of_2023(tmp_path: Path) -> Path:
    """Two test clips whose names tell neither label nor domain, and the organisers' evaluator beside them."""
    for n in range(2):
        write_clip(tmp_path / f"data/eval_data/raw/Vacuum/test/section_00_000{n}.wav", 300, seconds=0.1)
    evaluator = tmp_path / "evaluator"
    for folder, values in (("ground_truth_data", "10"), ("ground_truth_domain", "01")):
        (evaluator / folder).mkdir(parents=True)
        lines = "".join(f"section_00_000{n}.wav,{value}\r\n" for n, value in enumerate(values))
        (evaluator / folder / "ground_truth_Vacuum_section_00_test.csv").write_text(lines)
    return tmp_path


ANOMALY_THEN_NORMAL = [("source", 1, ""), ("target", 0, "")]


def told(catalog: Catalog) -> list[tuple[str, int, str]]:
    return [(row["domain"], row["label"], row["attributes"]) for row in catalog.table.to_pylist()]


@pytest.mark.parametrize("place", ["evaluator", "evaluator/ground_truth_data"])
def test_domains_come_from_beside_the_labels(of_2023: Path, place: str):
    assert told(scan_labelled(of_2023 / "data", of_2023 / place)) == ANOMALY_THEN_NORMAL


def test_a_list_of_the_evaluation_data_tells_all(of_2023: Path):
    names = ("section_00_source_test_anomaly_0000_car_A.wav", "section_00_target_test_normal_0001_car_B.wav")
    lines = ["Vacuum", *(f"section_00_000{n}.wav,{name}" for n, name in enumerate(names))]
    (of_2023 / "data/eval_data_list_2023.csv").write_text("\n".join(lines))
    (of_2023 / "data/eval_data_list_2022.csv").write_text(
        "fan\nsection_03_0000.wav,section_03_source_test_normal_0.wav"
    )
    expected = [(domain, label, attributes) for (domain, label, _), attributes in
                zip(ANOMALY_THEN_NORMAL, ("car_A", "car_B"), strict=True)]  # fmt: skip
    assert told(scan_labelled(of_2023 / "data", None)) == expected
    (of_2023 / "data/eval_data_list_2023.csv").write_text("Vacuum\nsection_00_0000.wav,rubbish.wav")
    with pytest.raises(UserError, match=r"eval_data_list_2023.csv, line 2: rubbish.wav"):
        scan_labelled(of_2023 / "data", None)


def test_renamed_test_clips_take_the_place_of_those_without_labels(of_2023: Path):
    folder = of_2023 / "data/eval_data/raw/Vacuum/test_rename"
    for name in ("section_00_source_test_anomaly_0000.wav", "section_00_target_test_normal_0001.wav"):
        write_clip(folder / name, 300, seconds=0.1)
    assert told(scan_labelled(of_2023 / "data", None)) == ANOMALY_THEN_NORMAL


def test_domains_that_are_told_later_change_no_fingerprint(of_2023: Path, cache: Path, small_config: Config):
    write_clip(of_2023 / "data/fan/train/section_00_source_train_normal_0000.wav", 300, seconds=0.1)
    before = scan(of_2023 / "data")
    after = scan_labelled(of_2023 / "data", of_2023 / "evaluator")
    prints = [data_fingerprint(decode(catalog, small_config.data, cache)) for catalog in (before, after)]
    assert prints[0] == prints[1]
    assert told(with_labels_of(before, after))[:2] == ANOMALY_THEN_NORMAL


def test_labels_that_a_run_knows_are_kept(tmp_path: Path):
    write_clip(tmp_path / "fan/source_test/section_03_source_test_0000.wav", 300)
    unlabelled = scan(tmp_path)
    known = replace(unlabelled, table=unlabelled.table.set_column(5, SCHEMA.field("label"), pa.array([1], pa.int8())))
    assert with_labels_of(unlabelled, known).table["label"].to_pylist() == [1]
    assert with_labels_of(known, unlabelled).table["label"].to_pylist() == [1]


@pytest.mark.realdata
def test_the_official_ground_truth_reads(shared: Path):
    folder = shared / "dcase2021/ground_truth_data"
    files = sorted(folder.glob("*.csv"))
    names = [(f.name.split("_")[2], line.partition(",")[0]) for f in files for line in f.read_text().splitlines()]
    rows = [{"clip": f"{m}/source_test/{clip}", "machine": m, "split": "test", "label": None} for m, clip in names]
    labels = with_ground_truth(Catalog(folder, pa.Table.from_pylist(rows, SCHEMA)), folder).table["label"]
    assert len(labels) == 8635
    assert labels.null_count == 0
    with pytest.raises(UserError, match="names none of the test clips"):
        with_ground_truth(scan(shared / "data/mimii-mini"), folder)


def test_linked_folders_are_followed_and_circles_are_not(tree: Path, tmp_path: Path):
    (tmp_path / "fan").symlink_to(tree / "fan")
    (tmp_path / "pump").symlink_to(tree / "pump")
    (tmp_path / "loop").symlink_to(tmp_path)
    catalog = scan(tmp_path)
    assert catalog.machines == ["fan", "pump"]
    assert catalog.table.num_rows == 2 * 42
