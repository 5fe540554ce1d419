from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from rayasd.config import ExposureConfig
from rayasd.data.catalog import SCHEMA
from rayasd.data.splits import held_out


def machine(source: int = 30, target: int = 10, sections: int = 2, per_group: int = 1) -> pa.Table:
    """Training clips of two domains, in groups, and as many test clips of no group."""
    rows = [
        {"clip": f"fan/{split}/{section:02}_{domain}_{n}", "section": f"{section:02}", "domain": domain, "split": split,
         "group": f"{section} {domain} {n // per_group}" if per_group > 1 and split == "train" else None}
        for section in range(sections) for domain, count in (("source", source), ("target", target))
        for split in ("train", "test") for n in range(count)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, SCHEMA)


def count(table: pa.Table, out: np.ndarray) -> dict[tuple[str, str], int]:
    rows = table.filter(pa.array(out)).to_pylist()
    return dict(Counter((row["section"], row["domain"]) for row in rows))


def test_a_fraction_of_each_domain_is_held_out():
    table = machine()
    out = held_out(table, "fan", ExposureConfig(), 0)
    assert count(table, out) == {(s, d): n for s in ("00", "01") for d, n in (("source", 5), ("target", 2))}
    assert {row["split"] for row in table.filter(pa.array(out)).to_pylist()} == {"train"}
    few = machine(source=2, target=2)
    assert count(few, held_out(few, "fan", ExposureConfig(), 0)) == {("00", "source"): 1, ("01", "source"): 1}
    assert not held_out(table, "fan", ExposureConfig(validation_fraction=0.0), 0).any()
    most = ExposureConfig(validation_fraction=0.9)
    assert max(count(few, held_out(few, "fan", most, 0)).values()) == 1  # one of two always trains


@pytest.mark.parametrize("hold_out", ["fraction", "cross-fit"])
@pytest.mark.parametrize("per_group", [2, 5])
def test_a_group_goes_one_way(hold_out: str, per_group: int):
    table = machine(per_group=per_group)
    exposure = ExposureConfig(hold_out=hold_out, validation_fraction=0.3)  # type: ignore[arg-type]
    for seed in range(5):
        out = held_out(table, "fan", exposure, seed)
        ways: dict[str, set[bool]] = {}
        for row, held in zip(table.to_pylist(), out.tolist(), strict=True):
            if row["group"] is not None:
                ways.setdefault(row["group"], set()).add(held)
        assert all(len(way) == 1 for way in ways.values())
        assert {True} in ways.values()
        assert all(any(not held for row, held in zip(table.to_pylist(), out.tolist(), strict=True)
                       if (row["section"], row["domain"], row["split"]) == (s, d, "train"))
                   for s in ("00", "01") for d in ("source", "target"))  # fmt: skip


def test_a_group_of_several_sections_goes_one_way_in_all():
    table = machine()
    groups = [f"moment {row['clip'].rpartition('_')[2]}" for row in table.to_pylist()]
    table = table.set_column(table.schema.get_field_index("group"), "group", pa.array(groups, pa.string()))
    out = held_out(table, "fan", ExposureConfig(hold_out="cross-fit"), 1)
    training = np.array(table["split"].to_pylist()) == "train"
    held = {group for group, each in zip(groups, out.tolist(), strict=True) if each}
    assert held
    np.testing.assert_array_equal(out, training & np.isin(groups, sorted(held)))


def test_a_group_that_is_most_of_a_section_is_trained_on():
    table = machine(source=30, target=0, sections=1)
    groups = ["big"] * 20 + [f"{n}" for n in range(10)] + [None] * 30
    table = table.set_column(table.schema.get_field_index("group"), "group", pa.array(groups, pa.string()))
    for seed in range(10):
        assert held_out(table, "fan", ExposureConfig(), seed).sum() == 5


def test_seeds_are_folds_that_hold_every_clip_out_once():
    table, exposure = machine(), ExposureConfig(hold_out="cross-fit", folds=4)
    seeds = np.stack([held_out(table, "fan", exposure, seed) for seed in range(8)])
    training = np.array(table["split"].to_pylist()) == "train"
    np.testing.assert_array_equal(seeds[:4].sum(axis=0), training)
    np.testing.assert_array_equal(seeds[:4], seeds[4:])
    sizes = [count(table, out)["00", "target"] for out in seeds[:4]]
    assert sorted(sizes) == [2, 2, 3, 3]


def test_a_section_keeps_a_clip_though_its_groups_are_held_out_of_another():
    table = machine(source=8, target=0)
    groups = [
        None if row["split"] == "test" else "0" if row["section"] == "01" else row["clip"].rpartition("_")[2]
        for row in table.to_pylist()
    ]
    table = table.set_column(table.schema.get_field_index("group"), "group", pa.array(groups, pa.string()))
    kept = {("00", "source"), ("01", "source")}
    for seed in range(2):
        out = held_out(table, "fan", ExposureConfig(hold_out="cross-fit", folds=2), seed)
        training = pc.equal(table["split"], "train").to_numpy(zero_copy_only=False)
        assert count(table, training & ~out).keys() == kept
