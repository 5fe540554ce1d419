import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayasd.data.naming import SPLIT_FOLDERS, ClipName, parse_clip_name


@pytest.mark.parametrize(
    ("stem", "folder", "expected"),
    [
        # 2021
        ("section_00_source_train_normal_0000_strength_1_ambient", "train",
         ClipName("00", "source", "train", 0, "strength_1_ambient")),
        ("section_02_target_test_anomaly_0099", "target_test", ClipName("02", "target", "test", 1, "")),
        ("section_04_source_test_0007", "source_test", ClipName("04", "source", "test", None, "")),
        # 2020
        ("normal_id_06_00000123", "train", ClipName("06", "source", "train", 0, "")),
        ("anomaly_id_06_00000123", "test", ClipName("06", "source", "test", 1, "")),
        ("id_01_00000000", "test", ClipName("01", "source", "test", None, "")),
        # 2022 to 2025
        ("section_00_target_test_anomaly_0003_car_A1_spd_28V", "test",
         ClipName("00", "target", "test", 1, "car_A1_spd_28V")),
        ("section_00_source_train_normal_0765_noAttribute", "train",
         ClipName("00", "source", "train", 0, "noAttribute")),
        ("section_00_0123", "test", ClipName("00", "unknown", "test", None, "")),
    ],
)  # fmt: skip
def test_names_of_every_year(stem: str, folder: str, expected: ClipName):
    assert parse_clip_name(stem, folder) == expected


@pytest.mark.parametrize(
    ("stem", "folder", "said"),
    [
        ("recording1", "train", "no DCASE scheme"),
        ("section_00_source_test_normal_0000", "train", "named as a test clip but lies in train/"),
        ("section_00_source_test_normal_0000", "target_test", "named as a source-domain clip but lies in target_test/"),
        ("section_0_source_test_normal_0000", "source_test", "no DCASE scheme"),
        ("section_00_source_test_norma_0000", "source_test", "no DCASE scheme"),
    ],
)
def test_a_wrong_name_says_why(stem: str, folder: str, said: str):
    with pytest.raises(ValueError, match=said):
        parse_clip_name(stem, folder)


@given(
    section=st.integers(0, 99),
    domain=st.sampled_from(["source", "target"]),
    label=st.sampled_from(["normal", "anomaly", None]),
    number=st.integers(0, 9999),
    attributes=st.text("abcXYZ019_.-", max_size=12),
)
def test_what_is_written_into_a_name_is_read_from_it(section, domain, label, number, attributes):
    words = [f"section_{section:02}", domain, "test", label, f"{number:04}", attributes]
    name = parse_clip_name("_".join(word for word in words if word), f"{domain}_test")
    assert (name.section, name.domain, name.split) == (f"{section:02}", domain, "test")
    assert name.label == {"normal": 0, "anomaly": 1, None: None}[label]
    assert name.attributes == attributes


@given(st.text(max_size=60), st.sampled_from(sorted(SPLIT_FOLDERS)))
def test_any_text_is_a_name_or_a_value_error(stem: str, folder: str):
    try:
        name = parse_clip_name(stem, folder)
    except ValueError:
        return
    assert name.split == SPLIT_FOLDERS[folder]
