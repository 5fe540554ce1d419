from pathlib import Path

import pytest

from rayasd.config import from_dict
from rayasd.data.catalog import scan
from rayasd.data.groups import with_groups
from rayasd.data.waveforms import data_fingerprint, decode
from rayasd.errors import UserError
from tests.command import Rayasd
from tests.conftest import write_clip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("microphones")
    for n in range(4):
        name = f"section_00_source_train_normal_{n:04}_speed_{n % 2}_mic_{n // 2}.wav"
        write_clip(root / "fan/train" / name, 300.0, seconds=0.1, seed=n)
    return root


@pytest.mark.parametrize(
    ("rule", "groups"),
    [("", [None] * 4), (r"normal_00\d(\d)", ["0", "1", "2", "3"]), ("speed_[01]", ["speed_0", "speed_1"] * 2),
     ("mic_(1)", [None, None, "1", "1"]), ("attribute:speed", ["speed_0", "speed_1"] * 2),
     ("attribute:mic", ["mic_0", "mic_0", "mic_1", "mic_1"])],
)  # fmt: skip
def test_groups_are_named_by_paths_or_attributes(root: Path, rule: str, groups: list[str | None]):
    assert with_groups(scan(root), rule).table["group"].to_pylist() == groups


@pytest.mark.parametrize("rule", ["track_(\\d+)", "attribute:spee", "attribute:voltage"])
def test_a_rule_that_matches_nothing_is_refused(root: Path, rule: str):
    with pytest.raises(UserError, match="matches no clip of .*, 'fan/train/section_00|matches no clip of .*, 'speed_0"):
        with_groups(scan(root), rule)


def test_a_wrong_expression_is_refused_with_the_configuration():
    with pytest.raises(UserError, match=r"data.groups = '\(' is no regular expression: missing \)"):
        from_dict({"data": {"groups": "("}})


def test_groups_are_part_of_what_the_data_are_and_need_no_other_cache(root: Path, tmp_path: Path):
    plain, grouped = (
        decode(scan(root), from_dict({"data": {"groups": rule}}).data, tmp_path) for rule in ("", "mic_.")
    )
    assert data_fingerprint(plain) != data_fingerprint(grouped)
    assert len(list(tmp_path.glob("*.i16"))) == 1


def test_checking_names_groups_on_both_sides_and_clips_that_differ_in_the_microphone_alone(
    root: Path, tmp_path: Path, rayasd: Rayasd
):
    for n, (folder, mic) in enumerate((("train", 0), ("train", 1), ("source_test", 0))):
        split = "train" if folder == "train" else "test"
        name = f"section_00_source_{split}_normal_0000_take_7_mic_{mic}.wav"
        write_clip(tmp_path / "tree/pump" / folder / name, 300.0, seconds=0.5, seed=n)
    checked = " ".join(rayasd("data", "check", tmp_path / "tree").stdout.split())
    assert "1 moment in clips that differ in microphone, channel or segment alone, pump/train/section_00" in checked
    assert "in training and in test" not in checked
    rows = ""
    for path in sorted((tmp_path / "tree/pump").rglob("*.wav")):
        split = "train" if path.parent.name == "train" else "test"
        rows += f"{path.relative_to(tmp_path)},pump,00,source,{split},normal,7\n"
    (tmp_path / "clips.csv").write_text("path,machine,section,domain,split,label,group\n" + rows)
    checked = " ".join(rayasd("data", "check", tmp_path / "clips.csv").stdout.split())
    assert "1 group with clips in training and in test, 7 first" in checked
    assert "alone" not in checked
