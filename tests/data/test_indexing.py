import os
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from rayasd.data.catalog import scan
from rayasd.data.indexing import Row, Rules, index_table, index_tree
from rayasd.errors import UserError
from tests.command import Rayasd
from tests.conftest import write_clip

PATTERN = "{machine}/id_{section}/{label}/*.wav"


def put(root: Path, *names: str) -> None:
    for n, name in enumerate(names):
        write_clip(root / name, 300 + n, seconds=0.05, seed=n)


@pytest.fixture
def mimii(tmp_path: Path) -> Path:
    """The original MIMII tree: machine / id / normal or abnormal, 8 channels."""
    for machine in ("fan", "pump"):
        for section in ("00", "02"):
            for label, count in (("normal", 12), ("abnormal", 2)):
                for n in range(count):
                    path = tmp_path / f"{machine}/id_{section}/{label}/{n:08}.wav"
                    write_clip(path, 400, seconds=0.05, seed=n, channels=8)
    return tmp_path


def rows_of(root: Path, pattern: str = PATTERN, **rules: object) -> list[Row]:
    rows, left = index_tree(root, pattern, Rules(**rules))  # type: ignore[arg-type]
    assert left == []
    return rows


def splits(rows: list[Row]) -> dict[str, str]:
    return {row["path"]: row["split"] for row in rows}


def test_the_mimii_tree_becomes_a_catalog(mimii: Path, rayasd: Rayasd):
    assert rayasd("data", "index", mimii).returncode == 0
    rows = scan(mimii / "clips.csv").table.to_pylist()
    assert len(rows) == 2 * 2 * 14
    assert sum(row["label"] for row in rows) == 2 * 2 * 2
    assert {(row["section"], row["split"]) for row in rows if row["label"] == 0} == {
        (section, split) for section in ("00", "02") for split in ("train", "test")
    }


def test_new_clips_move_no_old_one(mimii: Path):
    before = splits(rows_of(mimii))
    put(mimii, *(f"fan/id_00/normal/more{n}.wav" for n in range(9)), "fan/id_00/abnormal/more.wav")
    after = splits(rows_of(mimii))
    assert len(after) == len(before) + 10
    assert {path: after[path] for path in before} == before
    assert splits(rows_of(mimii, seed=1)) != after


def test_no_test_fraction_holds_nothing_out(mimii: Path):
    assert {row["split"] for row in rows_of(mimii, test_fraction=0.0) if row["label"] == "normal"} == {"train"}


def test_microphones_and_segments_of_a_recording_stay_together_without_being_told(tmp_path: Path):
    names = [f"fan/normal/{n}_{m}.wav" for n in range(12) for m in ("ch1", "CH2", "mic-3", "seg_004")]
    put(tmp_path, *names, *(f"pump/normal/batch{n}.wav" for n in range(12)))
    rows = rows_of(tmp_path, "{machine}/{label}/*.wav")
    fan = [row for row in rows if row["machine"] == "fan"]
    sides = {(row["group"], row["split"]) for row in fan}
    assert len(sides) == 12 == len({group for group, _ in sides})
    assert {split for _, split in sides} == {"train", "test"}
    assert {row["group"] for row in rows if row["machine"] == "pump"} == {""}
    named = rows_of(tmp_path, "{machine}/{label}/{group}.wav")
    assert len({row["group"] for row in named}) == 60


def test_clips_of_a_group_stay_together(tmp_path: Path):
    put(tmp_path, *(f"car/normal/{take}_ch{ch}.wav" for take in range(8) for ch in range(3)))
    rows = rows_of(tmp_path, "{machine}/{label}/{group}_ch*.wav")
    sides = {(row["group"], row["split"]) for row in rows}
    assert len(sides) == 8
    assert {split for _, split in sides} == {"train", "test"}


def test_audio_that_matches_nothing_is_counted(tmp_path: Path, rayasd: Rayasd):
    put(tmp_path, "fan/normal/a.wav", "fan/normal/b.WAV", "pump/a.wav")
    done = rayasd("data", "index", tmp_path, "--pattern", "{machine}/{label}/*.wav")
    assert (done.returncode, (tmp_path / "clips.csv").exists()) == (1, False)
    assert f"1 audio files match nothing, first: {tmp_path / 'pump/a.wav'}" in done.stderr
    done = rayasd("data", "index", tmp_path, "--pattern", "{machine}/{label}/*.wav", "--partial")
    assert done.returncode == 0
    assert "2 clips" in done.stdout  # b.WAV, too
    assert "left out" in done.stdout


def test_what_is_there_is_named_where_nothing_matches(mimii: Path):
    with pytest.raises(UserError, match=r"matches --pattern '.*': the first path there is fan/id_00/"):
        index_tree(mimii, "{machine}/{label}/*.wav", Rules())
    with pytest.raises(UserError, match="no such files there"):
        index_tree(mimii, "{machine}/{label}/*.csv", Rules())
    with pytest.raises(UserError, match=r"no clips in .*/normal; 12 audio files outside a folder named train"):
        scan(mimii / "fan/id_00/normal")


def test_linked_folders_are_followed(tmp_path: Path):
    put(tmp_path / "elsewhere", "normal/a.wav")
    put(tmp_path / "data", "pump/normal/a.wav")
    (tmp_path / "data/fan").symlink_to(tmp_path / "elsewhere")
    assert {row["machine"] for row in rows_of(tmp_path / "data", "{machine}/{label}/*.wav")} == {"fan", "pump"}


def test_ones_own_words_for_labels(tmp_path: Path):
    put(tmp_path, "m/good/a.wav", "m/LM_NON-DEF/b.wav", "m/rattle/c.wav", "m/abnormal/d.wav")
    with pytest.raises(UserError, match=r"label 'LM_NON-DEF' is unknown: --normal WORDS"):
        rows_of(tmp_path, "{machine}/{label}/*.wav", normal=["good"])
    rows = rows_of(tmp_path, "{machine}/{label}/*.wav", normal=["Good", "*_NON-DEF"], anomaly=["*"])
    assert {Path(row["path"]).stem: (row["label"], row["attributes"]) for row in rows} == {
        "a": ("normal", ""), "b": ("normal", ""), "c": ("anomaly", "rattle"), "d": ("anomaly", ""),
    }  # fmt: skip


def test_a_pattern_without_a_label_needs_one(tmp_path: Path):
    put(tmp_path, *(f"fan/{n}.wav" for n in range(5)))
    with pytest.raises(UserError, match="does not tell {label}: add it, or --label normal"):
        rows_of(tmp_path, "{machine}/*.wav")
    rows = rows_of(tmp_path, "*/*.wav", label="normal", machine="engine")
    assert {(row["label"], row["machine"]) for row in rows} == {("normal", "engine")}


def test_what_a_check_would_refuse_is_not_written(tmp_path: Path, rayasd: Rayasd):
    put(tmp_path, "fan/training/a.wav", "fan/validation/b.wav")
    words = ("data", "index", tmp_path, "--pattern", "{machine}/{split}/*.wav")
    done = rayasd(*words)
    assert (done.returncode, (tmp_path / "clips.csv").exists()) == (2, False)
    assert "split 'validation' is neither train nor test: --split validation=test" in done.stderr
    assert rayasd(*words, "--split", "validation=test").returncode == 0
    assert scan(tmp_path / "clips.csv").table["split"].to_pylist() == ["train", "test"]
    with pytest.raises(UserError, match="domain 'mars'"):
        put(tmp_path / "x", "fan/mars/a.wav")
        rows_of(tmp_path / "x", "{machine}/{domain}/*.wav", label="normal")


def test_a_manifest_is_replaced_only_by_force(tmp_path: Path, rayasd: Rayasd):
    put(tmp_path, "fan/normal/a.wav")
    (tmp_path / "clips.csv").write_text("notes of a month\n")
    words = ("data", "index", tmp_path, "--pattern", "{machine}/{label}/*.wav")
    done = rayasd(*words)
    assert (done.returncode, (tmp_path / "clips.csv").read_text()) == (2, "notes of a month\n")
    assert "--force" in done.stderr
    assert rayasd(*words, "--force").returncode == 0
    assert rayasd(*words).returncode == 0  # the same again


def test_a_manifest_may_lie_beside_its_clips(tmp_path: Path, rayasd: Rayasd):
    put(tmp_path / "shared", "fan/normal/a.wav")
    out = tmp_path / "mine/clips.csv"
    out.parent.mkdir()
    done = rayasd("data", "index", tmp_path / "shared", "--pattern", "{machine}/{label}/*.wav", "-o", out)
    assert done.returncode == 0, done.stderr
    assert scan(out).table["clip"].to_pylist() == ["fan/normal/a.wav"]
    (tmp_path / "shared").rename(tmp_path / "there")
    words = ("--pattern", "{machine}/{label}/*.wav", "-o", out, "--force", "--root", "../there")
    assert rayasd("data", "index", tmp_path / "there", *words).returncode == 0
    assert out.read_text().startswith("# root: ../there\n")
    assert not scan(out).oddities


def test_a_table_of_other_columns(tmp_path: Path, rayasd: Rayasd):
    put(tmp_path, *(f"sounds/{n}.wav" for n in range(3)))
    lines = ["Filename;ClassId", "0.wav;1", "1.wav;4", "2.wav;1"]
    (tmp_path / "motor.csv").write_bytes("\r\n".join(lines).encode("utf-16"))
    columns = "path=sounds\\{filename},label=ClassId"
    words = ("--table", tmp_path / "motor.csv", "--columns", columns, "--machine", "motor")
    done = rayasd("data", "index", tmp_path, *words, "--normal", "1", "--anomaly", "*")
    assert done.returncode == 0, done.stderr
    rows = scan(tmp_path / "clips.csv").table.to_pylist()
    assert [(row["clip"], row["machine"], row["label"]) for row in rows] == [
        ("sounds/0.wav", "motor", 0), ("sounds/1.wav", "motor", 1), ("sounds/2.wav", "motor", 0),
    ]  # fmt: skip
    assert rows[1]["attributes"] == "4"
    with pytest.raises(UserError, match="unknown column of motor.csv 'Name'.*Filename"):
        index_table(tmp_path, tmp_path / "motor.csv", {"path": "Name"}, Rules(label="normal"))
    (tmp_path / "sounds/0.wav").unlink()
    with pytest.raises(UserError, match="row 1: there is no .*0.wav"):
        index_table(tmp_path, tmp_path / "motor.csv", {"path": "sounds/{Filename}"}, Rules(label="normal", machine="m"))


def test_long_recordings_are_cut(tmp_path: Path, rayasd: Rayasd):
    sound = np.arange(2 * 16000 + 100, dtype=np.int16)
    (tmp_path / "fan/normal").mkdir(parents=True)
    soundfile.write(tmp_path / "fan/normal/a.flac", sound, 16000)
    done = rayasd("data", "index", tmp_path, "--pattern", "{machine}/{label}/*.flac", "--cut", "0.5")
    assert done.returncode == 0, done.stderr
    catalog = scan(tmp_path / "clips.csv")
    assert catalog.table["clip"].to_pylist()[1] == "fan/normal/a.flac#t=0.5,1"
    assert set(catalog.table["group"].to_pylist()) == {"fan/normal/a.flac"}
    checked = rayasd("data", "check", tmp_path / "clips.csv", "--set", "front_end.window_seconds=0.5")
    assert "4 clips" in checked.stdout
    assert "0 unusable" in checked.stdout


@pytest.mark.parametrize("pattern", ["{machine}/{colour}/*.wav", "{machine}/{machine}/*.wav"])
def test_a_wrong_pattern_is_refused(mimii: Path, pattern: str):
    with pytest.raises(UserError, match="pattern"):
        rows_of(mimii, pattern, label="normal")


def test_indexing_passes_over_hidden_files_and_refuses_names_that_no_manifest_can_hold(mimii: Path):
    rows = rows_of(mimii)
    write_clip(mimii / "fan/id_00/normal/._00000000.wav", 400)
    assert rows_of(mimii) == rows
    (mimii / "fan/id_00/normal/caf\udce9.wav").touch()
    with pytest.raises(UserError, match=r"caf\\xe9.wav has a name that is not UTF-8: rename it"):
        rows_of(mimii)


def test_indexing_goes_as_deep_as_folders_do():
    root = Path(tempfile.mkdtemp())  # not pytest's, which Python 3.11 could not remove
    try:
        for depth in range(1, 1101):
            os.mkdir(f"{root}/" + "d/" * depth)  # noqa: PTH102 - pathlib takes long over such a path
        (root / ("d/" * 1100) / "x.wav").touch()
        (row,) = rows_of(root, "{machine}/**/*.wav", label="unknown")
    finally:
        subprocess.run(["rm", "-rf", root], check=True)
    assert row["path"] == "d/" * 1100 + "x.wav"
