from pathlib import Path

import pytest

from rayasd.config import from_dict
from rayasd.data.catalog import scan
from rayasd.data.groups import with_groups
from rayasd.data.waveforms import data_fingerprint, decode
from rayasd.errors import UserError
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
