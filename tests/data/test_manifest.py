import os
import subprocess
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayasd.data.catalog import scan
from rayasd.data.manifest import COLUMNS, index_tree, write_manifest
from rayasd.errors import UserError
from tests.conftest import write_clip


@pytest.fixture
def mimii(tmp_path: Path) -> Path:
    """The original MIMII tree: machine / id / normal or abnormal, 8 channels."""
    for machine in ("fan", "pump"):
        for section in ("00", "02"):
            for label, count in (("normal", 6), ("abnormal", 2)):
                for n in range(count):
                    write_clip(tmp_path / f"{machine}/id_{section}/{label}/{n:08}.wav", 400, seconds=0.1, channels=8)
    return tmp_path


def test_the_mimii_tree_becomes_a_catalog(mimii: Path):
    rows = index_tree(mimii, "{machine}/id_{section}/{label}/*.wav")
    write_manifest(mimii / "clips.csv", rows)
    table = scan(mimii / "clips.csv").table
    assert table.num_rows == 32
    test = [row for row in table.to_pylist() if row["split"] == "test"]
    assert len(test) == 2 * 2 * 4  # as many normal clips are held out as there are anomalies
    assert sum(row["label"] for row in test) == 2 * 2 * 2
    assert {row["section"] for row in test} == {"00", "02"}
    assert all(row["label"] == 0 for row in table.to_pylist() if row["split"] == "train")


def test_held_out_clips_depend_on_the_seed_alone(mimii: Path):
    pattern = "{machine}/id_{section}/{label}/*.wav"
    assert index_tree(mimii, pattern) == index_tree(mimii, pattern)
    assert index_tree(mimii, pattern) != index_tree(mimii, pattern, seed=1)


def test_a_parquet_manifest_reads_like_a_csv(mimii: Path):
    rows = index_tree(mimii, "{machine}/id_{section}/{label}/*.wav")
    pq.write_table(pa.Table.from_pylist(rows), mimii / "clips.parquet")
    write_manifest(mimii / "clips.csv", rows)
    assert scan(mimii / "clips.parquet").table.equals(scan(mimii / "clips.csv").table)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"path": "../x.wav"}, "must be relative and stay below"),
        ({"path": "/x.wav"}, "must be relative and stay below"),
        ({"split": "validation"}, "split 'validation': choose train or test"),
        ({"domain": "mars"}, "domain 'mars'"),
        ({"label": "broken"}, "label 'broken': choose normal, anomaly or unknown"),
        ({"label": "anomaly", "split": "train"}, "cannot be a training clip"),
        ({"machine": ""}, "machine and section must be plain names"),
    ],
)
def test_a_wrong_row_is_named(tmp_path: Path, row: dict[str, str], said: str):
    good = dict(zip(COLUMNS, ("x.wav", "fan", "00", "source", "train", "normal"), strict=True))
    write_manifest(tmp_path / "clips.csv", [good, good | row])
    with pytest.raises(UserError, match=said) as caught:
        scan(tmp_path / "clips.csv")
    assert "row 2" in str(caught.value)


def test_a_row_that_comes_twice_is_named(tmp_path: Path):
    good = dict(zip(COLUMNS, ("x.wav", "fan", "00", "source", "train", "normal"), strict=True))
    write_manifest(tmp_path / "clips.csv", [good, good])
    with pytest.raises(UserError, match=r"row 2: x.wav is listed already in row 1"):
        scan(tmp_path / "clips.csv")


def test_a_file_that_is_no_table_is_refused(tmp_path: Path):
    for name in ("clips.parquet", "clips.csv"):
        (tmp_path / name).write_bytes(b"path,machine\n\xff\xfe\x00")
        with pytest.raises(UserError, match="cannot be read as a manifest"):
            scan(tmp_path / name)


def test_numbers_in_a_parquet_manifest_are_names(tmp_path: Path):
    write_clip(tmp_path / "x.wav", 300, seconds=0.1)
    row = {"path": "x.wav", "machine": 7, "section": 0, "domain": None, "split": "test", "label": 1}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "clips.parquet")
    (clip,) = scan(tmp_path / "clips.parquet").table.to_pylist()
    assert (clip["machine"], clip["section"], clip["domain"], clip["label"]) == ("7", "0", "source", 1)


def test_missing_columns_and_files_are_named(tmp_path: Path):
    (tmp_path / "clips.csv").write_text("path,machine\nx.wav,fan\n")
    with pytest.raises(UserError, match="no column section, domain, split, label"):
        scan(tmp_path / "clips.csv")
    write_clip(tmp_path / "here.wav", 300)
    (tmp_path / "clips.csv").write_text(
        "path,machine,section,domain,split,label\nhere.wav,fan,00,,train,\ngone.wav,fan,00,,train,\n"
    )
    (odd,) = scan(tmp_path / "clips.csv").oddities
    assert (odd.path, odd.unusable) == ("gone.wav", True)


@pytest.mark.parametrize("pattern", ["*/*.wav", "{machine}/{colour}/*.wav", "{machine}/{machine}/*.wav"])
def test_a_wrong_pattern_is_refused(mimii: Path, pattern: str):
    with pytest.raises(UserError, match="pattern"):
        index_tree(mimii, pattern)


def test_indexing_passes_over_hidden_files_and_refuses_names_that_no_manifest_can_hold(mimii: Path):
    pattern = "{machine}/id_{section}/{label}/*.wav"
    rows = index_tree(mimii, pattern)
    write_clip(mimii / "fan/id_00/normal/._00000000.wav", 400)
    assert index_tree(mimii, pattern) == rows
    (mimii / "fan/id_00/normal/caf\udce9.wav").touch()
    with pytest.raises(UserError, match=r"caf\\xe9.wav has a name that is not UTF-8: rename it"):
        index_tree(mimii, pattern)


def test_indexing_goes_as_deep_as_folders_do():
    root = Path(tempfile.mkdtemp())  # not pytest's, which Python 3.11 could not remove
    try:
        for depth in range(1, 1101):
            os.mkdir(f"{root}/" + "d/" * depth)  # noqa: PTH102 - pathlib takes long over such a path
        (root / ("d/" * 1100) / "x.wav").touch()
        (row,) = index_tree(root, "{machine}/**/*.wav")
    finally:
        subprocess.run(["rm", "-rf", root], check=True)
    assert row["path"] == "d/" * 1100 + "x.wav"


def test_a_manifests_clip_that_cannot_be_opened_is_an_oddity_and_names_of_folders_are_no_machines(tmp_path: Path):
    write_clip(tmp_path / "a.wav", 400.0)
    lines = ["path,machine,section,domain,split,label", "a.wav,fan,00,source,train,0"]
    (tmp_path / "clips.csv").write_text("\n".join([*lines, f"{'x' * 300}.wav,fan,00,source,train,0"]))
    catalog = scan(tmp_path / "clips.csv")
    assert catalog.table.num_rows == 1
    assert "File name too long" in catalog.oddities[0].problem
    (tmp_path / "clips.csv").write_text("\n".join([*lines, "a.wav,..,00,source,train,0"]))
    with pytest.raises(UserError, match="machine and section must be plain names"):
        scan(tmp_path / "clips.csv")


@pytest.mark.parametrize(("column", "without"), [("attributes", ""), ("group", None)])
def test_a_manifest_may_have_attributes_and_groups(tmp_path: Path, column: str, without: str | None):
    write_clip(tmp_path / "x.wav", 300, seconds=0.1)
    lines = f"path,machine,section,domain,split,label,{column}\nx.wav,fan,00,source,train,normal,{{}}\n"
    for words, expected in (("speed 3", "speed 3"), ("", without)):
        (tmp_path / "clips.csv").write_text(lines.format(words))
        (clip,) = scan(tmp_path / "clips.csv").table.to_pylist()
        assert clip[column] == expected
    (tmp_path / "clips.csv").write_text(lines.format("a\x07b"))
    with pytest.raises(UserError, match=f"row 1: {column} .* control character"):
        scan(tmp_path / "clips.csv")
