from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayasd.data.catalog import scan
from rayasd.data.manifest import COLUMNS, manifest_text
from rayasd.errors import UserError
from tests.conftest import write_clip

GOOD = dict(zip(COLUMNS, ("x.wav", "fan", "00", "source", "train", "normal"), strict=True))


def write_manifest(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text(manifest_text(rows))


def test_a_parquet_manifest_reads_like_a_csv(tmp_path: Path):
    write_clip(tmp_path / "x.wav", 300, seconds=0.1)
    pq.write_table(pa.Table.from_pylist([GOOD]), tmp_path / "clips.parquet")
    write_manifest(tmp_path / "clips.csv", [GOOD])
    assert scan(tmp_path / "clips.parquet").table.equals(scan(tmp_path / "clips.csv").table)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("\n", "\r\n").encode("utf-8-sig"),
        lambda text: text.encode("utf-16"),
        lambda text: text.replace(",", ";").encode(),
        lambda text: text.replace(",", "\t").encode(),
        lambda text: text.replace("path,machine", "Path,MACHINE").replace("train", "Train").encode(),
        lambda text: text.replace(",00,", ",0.0,").replace("normal", "0.0").encode(),
        lambda text: text.replace("path,", ",path,").replace("sub/x.wav", "0,sub/x.wav").encode(),
        lambda text: text.replace("sub/x.wav", "sub\\x.wav").replace(",fan,", ", fan ,").encode(),
        lambda text: text.replace(",00,", ",section_00,").encode(),
    ],
    ids=["windows", "utf-16", "semicolon", "tab", "capitals", "pandas numbers", "pandas index", "backslash", "section"],
)
def test_a_manifest_of_another_program_reads_the_same(tmp_path: Path, change: Callable[[str], bytes]):
    write_clip(tmp_path / "sub/x.wav", 300, seconds=0.1)
    text = manifest_text([GOOD | {"path": "sub/x.wav"}])
    (tmp_path / "clips.csv").write_text(text)
    expected = scan(tmp_path / "clips.csv").table
    (tmp_path / "clips.csv").write_bytes(change(text))
    assert scan(tmp_path / "clips.csv").table.equals(expected)


def test_clips_may_lie_anywhere(tmp_path: Path):
    for name in ("a/x.wav", "b/y.wav"):
        write_clip(tmp_path / name, 300, seconds=0.1)
    (tmp_path / "mine").mkdir()
    manifest = tmp_path / "mine/clips.csv"
    write_manifest(manifest, [GOOD | {"path": "../a/x.wav"}, GOOD | {"path": str(tmp_path / "b/y.wav")}])
    catalog = scan(manifest)
    assert (catalog.root, catalog.table["clip"].to_pylist()) == (tmp_path, ["a/x.wav", "b/y.wav"])
    manifest.write_text(manifest_text([GOOD | {"path": "x.wav"}], {"root": tmp_path / "a"}))
    assert (scan(manifest).root, scan(manifest).oddities) == (tmp_path / "a", ())


def test_a_machine_in_two_spellings_is_one(tmp_path: Path):
    for name in ("x.wav", "y.wav"):
        write_clip(tmp_path / name, 300, seconds=0.1)
    write_manifest(tmp_path / "clips.csv", [GOOD, GOOD | {"path": "y.wav", "machine": "Fan"}])
    assert scan(tmp_path / "clips.csv").machines == ["fan"]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"path": ""}, "no path"),
        ({"split": "validation"}, "split 'validation': choose train, test, noise, clean"),
        ({"domain": "mars"}, "domain 'mars'"),
        ({"label": "broken"}, "label 'broken': choose normal, anomaly or unknown"),
        ({"label": "anomaly", "split": "train"}, "cannot be a training clip"),
        ({"machine": ""}, "machine and section must be plain names"),
    ],
)
def test_a_wrong_row_is_named(tmp_path: Path, row: dict[str, str], said: str):
    write_manifest(tmp_path / "clips.csv", [GOOD, GOOD | row])
    with pytest.raises(UserError, match=said) as caught:
        scan(tmp_path / "clips.csv")
    assert "row 2" in str(caught.value)


def test_a_row_that_comes_twice_is_named(tmp_path: Path):
    write_manifest(tmp_path / "clips.csv", [GOOD, GOOD])
    with pytest.raises(UserError, match=r"row 2: x.wav is listed already in row 1"):
        scan(tmp_path / "clips.csv")


def test_a_file_that_is_no_table_is_refused(tmp_path: Path):
    for name in ("clips.parquet", "clips.csv"):
        (tmp_path / name).write_bytes(b"path,machine\n\xff\xfe\x00")
        with pytest.raises(UserError, match="cannot be read as a table"):
            scan(tmp_path / name)


def test_numbers_in_a_parquet_manifest_are_names(tmp_path: Path):
    write_clip(tmp_path / "x.wav", 300, seconds=0.1)
    row = {"path": "x.wav", "machine": 7, "section": 0, "domain": None, "split": "test", "label": 1}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "clips.parquet")
    (clip,) = scan(tmp_path / "clips.parquet").table.to_pylist()
    assert (clip["machine"], clip["section"], clip["domain"], clip["label"]) == ("7", "00", "source", 1)


def test_missing_columns_and_files_are_named(tmp_path: Path):
    (tmp_path / "clips.csv").write_text("path,machine\nx.wav,fan\n")
    with pytest.raises(UserError, match=r"no column split, label; .* --table clips.csv --columns"):
        scan(tmp_path / "clips.csv")
    write_clip(tmp_path / "here.wav", 300)
    (tmp_path / "clips.csv").write_text(
        "path,machine,section,domain,split,label\nhere.wav,fan,00,,train,\ngone.wav,fan,00,,train,\n"
    )
    (odd,) = scan(tmp_path / "clips.csv").oddities
    assert (odd.path, odd.unusable) == ("gone.wav", True)


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
    with pytest.raises(UserError, match="row 1: .* control character"):
        scan(tmp_path / "clips.csv")
