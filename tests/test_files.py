from pathlib import Path

import pytest

from rayasd.files import digest, read_json, replacing, write_json


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path: Path):
    path = tmp_path / "value.json"
    write_json(path, {"a": 1})
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert read_json(path) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_written_files_follow_the_umask(tmp_path: Path):
    write_json(tmp_path / "value.json", 1)
    plain = tmp_path / "plain"
    plain.touch()
    assert (tmp_path / "value.json").stat().st_mode == plain.stat().st_mode


def test_digest_ignores_the_order_of_keys_only():
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1})
    assert digest([1, 2]) != digest([2, 1])
