from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rayasd.config import Config
from rayasd.data.catalog import Catalog
from rayasd.errors import UserError
from rayasd.exposure.batches import (
    BatchLoader,
    balanced_batches,
    shuffled_batches,
    steps_per_epoch,
    validation_batches,
)
from rayasd.exposure.clips import MachineClips, fits_on, load_machine, load_training_machines
from rayasd.exposure.objectives import ClassObjective, find_classes
from rayasd.exposure.objectives.two_bce import TwoBCE
from rayasd.stages import ALL_MACHINES
from tests.conftest import SpecOf


def with_exposure(config: Config, **changes: object) -> Config:
    return replace(config, exposure=replace(config.exposure, **changes))  # type: ignore[arg-type]


def loader_of(
    target: MachineClips, others: list[MachineClips], config: Config, *, resident: bool | None = None
) -> BatchLoader:
    machines = [target, *others]
    _, classes = find_classes(TwoBCE, config, machines, target.name)
    return BatchLoader(machines, classes, config, torch.device("cpu"), resident=resident)


@pytest.fixture
def loaded(catalog: Catalog, spec_of: SpecOf):
    target, *others = load_training_machines(catalog, spec_of())
    return target, others


def test_every_training_clip_once_an_epoch_beside_as_many_of_all_others(loaded, small_config: Config):
    target, others = loaded
    batches = list(balanced_batches([target, *others], small_config, seed=0, epoch=0))
    assert len(batches) == steps_per_epoch([target, *others], small_config) == 2
    seen = np.concatenate([batch.members[0] for batch in batches])
    assert sorted(seen) == sorted(target.training)
    sizes = [len(batch.members[0]) for batch in batches]
    assert max(sizes) - min(sizes) <= 1
    for batch in batches:
        assert sum(map(len, batch.members[1:])) == len(batch.members[0])
    by_machine = [sum(len(batch.members[m]) for batch in batches) for m in range(1, 3)]
    assert max(by_machine) - min(by_machine) <= 1


@settings(max_examples=30, deadline=None)
@given(
    num_target=st.integers(1, 60), pools=st.lists(st.integers(1, 40), min_size=1, max_size=5), batch=st.integers(2, 40)
)
def test_batches_of_any_sizes(num_target: int, pools: list[int], batch: int):
    class Clips:  # what batches need of a machine
        def __init__(self, name: str, count: int) -> None:
            self.name, self.training, self.per_batch = name, np.arange(count), None

        def in_target_domain(self, clips):
            return np.zeros(len(clips), bool)

    config = with_exposure(Config(), batch_size=batch)
    target, others = Clips("target", num_target), [Clips(str(i), n) for i, n in enumerate(pools)]
    batches = list(balanced_batches([target, *others], config, seed=1, epoch=2))  # type: ignore[arg-type]
    assert sorted(np.concatenate([b.members[0] for b in batches])) == list(range(num_target))
    assert all(b.num_clips == 2 * len(b.members[0]) <= batch for b in batches)
    for m, count in enumerate(pools, 1):
        used = Counter(np.concatenate([b.members[m] for b in batches]).tolist())
        if len(used) == count:
            assert max(used.values()) - min(used.values()) <= 1  # none comes back before all were used
        else:
            assert max(used.values(), default=1) == 1


def test_batches_come_from_seed_and_epoch_alone(loaded, small_config: Config):
    target, others = loaded

    def composition(seed: int, epoch: int) -> list[list[int]]:
        batches = balanced_batches([target, *others], small_config, seed, epoch)
        return [np.concatenate(b.members).tolist() for b in batches]

    assert composition(0, 0) == composition(0, 0)
    assert composition(0, 0) != composition(0, 1)
    assert composition(0, 0) != composition(1, 0)


def test_target_domain_clips_per_batch(loaded, small_config: Config):
    target, others = loaded
    config = with_exposure(small_config, target_domain_per_batch=1)
    batches = list(balanced_batches([target, *others], config, seed=0, epoch=0))
    for batch in batches:
        assert target.in_target_domain(batch.members[0]).sum() == 1
    source = np.concatenate([b.members[0][~target.in_target_domain(b.members[0])] for b in batches])
    assert sorted(source) == sorted(target.training[~target.in_target_domain(target.training)])


def test_held_out_clips_are_stratified_source_clips_and_the_same_for_every_unit(catalog: Catalog, spec_of: SpecOf):
    clips = load_machine(catalog, "fan", spec_of())
    rows = clips.table.take(clips.validation).to_pylist()
    assert [row["section"] for row in rows] == ["00", "03"]  # a sixth of 8, one a section
    assert all(row["domain"] == "source" and row["split"] == "train" for row in rows)
    assert not set(clips.validation) & set(clips.training)
    _, *others = load_training_machines(catalog, spec_of(machine="pump"))
    as_other = next(other for other in others if other.name == "fan")
    np.testing.assert_array_equal(as_other.validation, clips.validation)
    other_seed = load_machine(catalog, "fan", spec_of(seed=3))
    assert other_seed.validation.tolist() != clips.validation.tolist()


def test_validation_negatives_come_from_every_other_machine(loaded, small_config: Config):
    target, others = loaded
    batches = list(validation_batches([target, *others], with_exposure(small_config, batch_size=16)))
    assert all(len(other.validation) for other in others)
    for m, other in enumerate(others, 1):
        used = np.concatenate([batch.members[m] for batch in batches])
        assert len(used) == 1
        assert set(used) <= set(other.validation)


@pytest.mark.parametrize("rule", ["own", "target"])
def test_waveforms_are_scaled_by_own_or_target_machine(loaded, small_config: Config, rule: str):
    target, others = loaded
    config = with_exposure(small_config, waveform_scaling=rule)
    loader = loader_of(target, others, config)
    batch = next(balanced_batches([target, *others], config, seed=0, epoch=0))
    waveforms = loader.waveforms(batch, loader.slack(batch) // 2, np.arange(batch.num_clips))
    row = len(batch.members[0])  # the first clip of the first other machine
    clip, scale = int(batch.members[1][0]), others[0] if rule == "own" else target
    start = (others[0].waveforms.frames[clip] - loader.length) // 2
    raw = np.empty(loader.length, np.int16)
    others[0].waveforms.window(clip, int(start), loader.length, raw)
    np.testing.assert_allclose(waveforms[row], (raw / 32768 - scale.mean) / scale.deviation, rtol=1e-3, atol=1e-4)


def test_windows_cut_on_the_device_are_those_cut_on_the_host(loaded, small_config: Config):
    target, others = loaded
    longer = replace(small_config, front_end=replace(small_config.front_end, window_seconds=1.7))  # clips repeat
    for config in (small_config, longer):
        on_host, on_device = (loader_of(target, others, config, resident=resident) for resident in (False, True))
        for batch in balanced_batches([target, *others], config, seed=0, epoch=0):
            starts = np.random.default_rng(batch.step).integers(0, on_host.slack(batch) + 1)
            rows = np.arange(batch.num_clips)
            assert torch.equal(on_host.waveforms(batch, starts, rows), on_device.waveforms(batch, starts, rows))
    assert not fits_on(torch.device("cpu"), [target])  # where clips are mapped, not copied


def test_targets_are_machine_and_product_and_pseudo_anomalous_products_are_zero(loaded, small_config: Config):
    target, others = loaded
    loader, objective = loader_of(target, others, small_config), TwoBCE(small_config, ["00", "03"], [128])
    for batch in balanced_batches([target, *others], small_config, seed=0, epoch=0):
        targets = objective.targets(*loader.classes_of(batch))
        machine, product = targets[:, 0], targets[:, 1:]
        normals = len(batch.members[0])
        assert machine.tolist() == [1.0] * normals + [0.0] * (batch.num_clips - normals)
        assert not product[normals:].any()
        sections = target.table["section"].take(batch.members[0]).to_pylist()
        assert [objective.classes[k] for k in product[:normals].argmax(dim=1)] == sections
        assert product[:normals].sum(dim=1).eq(1).all()


def test_all_machines_together_every_clip_once_an_epoch(catalog: Catalog, spec_of: SpecOf, small_config: Config):
    config = with_exposure(small_config, scope="all", objective="adacos", batch_size=10)
    machines = load_training_machines(catalog, spec_of(machine=ALL_MACHINES, config=config))
    assert [clips.name for clips in machines] == ["fan", "pump", "valve"]
    batches = list(shuffled_batches(machines, config, seed=0, epoch=0))
    assert len(batches) == steps_per_epoch(machines, config)
    for m, clips in enumerate(machines):
        assert sorted(np.concatenate([batch.members[m] for batch in batches])) == sorted(clips.training)
    sizes = [batch.num_clips for batch in batches]
    assert max(sizes) - min(sizes) <= 1 <= max(sizes) <= 10
    others = [batch.members for batch in shuffled_batches(machines, config, seed=0, epoch=1)]
    assert any(a.tolist() != b.tolist() for a, b in zip(batches[0].members, others[0], strict=True))
    held_out = np.concatenate([np.concatenate(batch.members) for batch in validation_batches(machines, config)])
    assert len(held_out) == sum(len(clips.validation) for clips in machines)


@pytest.mark.parametrize(
    ("columns", "first"),
    [(("machine",), "fan"), (("section", "domain"), "00/source"), (("machine", "section"), "fan/00")],
)
def test_classes_are_made_of_columns(
    catalog: Catalog, spec_of: SpecOf, small_config: Config, columns: tuple[str, ...], first: str
):
    config = with_exposure(small_config, scope="all", objective="adacos", classes=columns)
    machines = load_training_machines(catalog, spec_of(machine=ALL_MACHINES, config=config))
    names, classes = find_classes(ClassObjective, config, machines, ALL_MACHINES)
    assert names[0] == first
    assert names == sorted(set(names))
    for clips, positions in zip(machines, classes, strict=True):
        rows = clips.table.select(list(columns)).to_pylist()
        assert [names[place] for place in positions] == ["/".join(row.values()) for row in rows]


def test_one_machine_alone_has_its_own_clips_transformed(catalog: Catalog, spec_of: SpecOf, small_config: Config):
    import pyarrow.compute as pc

    alone = replace(catalog, table=catalog.table.filter(pc.field("machine") == "fan"))
    target, other = load_training_machines(alone, spec_of())
    assert other.name == "fan transformed"
    assert (len(other.training), len(other.validation)) == (len(target.training), len(target.validation))
    again, later = (load_training_machines(alone, spec_of(seed=seed))[1].waveforms.samples for seed in (0, 1))
    assert np.array_equal(other.waveforms.samples, again)
    assert not np.array_equal(again, later)
    others = replace(small_config, exposure=replace(small_config.exposure, pseudo_anomalies="machines"))
    with pytest.raises(UserError, match="has training clips of fan alone"):
        load_training_machines(alone, spec_of(config=others))
    own = replace(small_config, exposure=replace(small_config.exposure, pseudo_anomalies="transforms"))
    assert [m.name for m in load_training_machines(catalog, spec_of(config=own))] == ["fan", "fan transformed"]


@pytest.mark.parametrize(("count", "batch_size", "steps"), [(5, 2, 2), (2, 2, 1), (1, 8, 1), (48, 10, 5), (9, 8, 2)])
def test_no_batch_of_all_machines_is_of_one_clip_where_there_are_more(count: int, batch_size: int, steps: int):
    class Clips:
        training = np.arange(count)

    config = with_exposure(Config(), scope="all", objective="adacos", batch_size=batch_size)
    batches = list(shuffled_batches([Clips()], config, 0, 0))  # type: ignore[list-item]
    assert len(batches) == steps
    assert min(batch.num_clips for batch in batches) >= min(2, count)
