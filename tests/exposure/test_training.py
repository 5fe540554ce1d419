import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from rayasd.config import Config
from rayasd.data.catalog import Catalog
from rayasd.errors import UserError
from rayasd.exposure import training
from rayasd.exposure.batches import balanced_batches
from rayasd.exposure.clips import load_machine, load_training_machines
from rayasd.exposure.embedding import embed
from rayasd.exposure.objectives.two_bce import TwoBCE
from rayasd.exposure.training import train
from rayasd.stages import NumClips
from rayasd.unit import Progress, Stopped
from rayasd.windows import window_starts
from tests.conftest import SpecOf
from tests.exposure.test_batches import loader_of


class PowerCut(Exception):
    """Ends a training between two epochs."""


def weights(spec) -> bytes:
    return (spec.output / "model.safetensors").read_bytes()


def history(spec) -> list[dict[str, float]]:
    return [json.loads(line) for line in (spec.output / "history.jsonl").read_text().splitlines()]


def with_exposure(config: Config, **changes: object) -> Config:
    return replace(config, exposure=replace(config.exposure, **changes))  # type: ignore[arg-type]


@pytest.mark.slow
def test_training_learns_and_ends_its_schedule(spec_of: SpecOf, small_config: Config):
    spec = spec_of(config=with_exposure(small_config, epochs=8))
    train(spec)
    rows = history(spec)
    assert [row["epoch"] for row in rows] == list(range(1, 9))
    assert rows[-1]["validation_loss"] < rows[0]["validation_loss"]
    peak = small_config.exposure.learning_rate
    assert rows[-1]["learning_rate"] == pytest.approx(peak / 25 / 1e4, rel=1e-6)  # OneCycleLR's own last rate
    assert max(row["learning_rate"] for row in rows) > peak / 2
    assert rows[-1]["mixup_probability"] == pytest.approx(0, abs=1e-9)
    assert 0 <= rows[-1]["validation_machine_auc"] <= 1
    assert not (spec.output / training.STATE).exists()


@pytest.mark.parametrize("last_epoch", [1, 2])
def test_an_interrupted_training_goes_on_to_the_same_bits(spec_of: SpecOf, last_epoch: int):
    torch.set_num_threads(1)
    undisturbed = spec_of(machine="pump")
    train(undisturbed)
    expected, expected_history = weights(undisturbed), history(undisturbed)
    (undisturbed.output / "model.safetensors").unlink()

    def cut(progress: Progress) -> None:
        if progress.done == last_epoch + 1:
            raise PowerCut

    with pytest.raises(PowerCut):
        train(undisturbed, cut)
    state = torch.load(undisturbed.output / training.STATE, weights_only=True)
    assert len(json.loads(state["history"])) == last_epoch
    torch.manual_seed(12345)  # whatever else the process did must not matter
    reports: list[Progress] = []
    train(undisturbed, reports.append)
    assert [progress.done for progress in reports if progress.loss] == list(range(last_epoch + 1, 4))
    assert weights(undisturbed) == expected
    assert history(undisturbed) == expected_history


def test_a_stopped_training_goes_on_to_the_same_bits(spec_of: SpecOf, small_config: Config):
    spec = spec_of(config=with_exposure(small_config, checkpoint_every=10))
    train(spec)
    expected, expected_history = weights(spec), history(spec)
    (spec.output / "model.safetensors").unlink()
    with pytest.raises(Stopped):
        train(spec, lambda progress: True)  # asked at once, it stops at the end of the epoch
    assert [row["epoch"] for row in history(spec)] == [1]
    train(spec, lambda progress: progress.done == 3)  # there is nothing to stop after the last epoch
    assert weights(spec) == expected
    assert history(spec) == expected_history


def test_progress_within_an_epoch_counts_each_clip_once(spec_of: SpecOf):
    reports: list[Progress] = []
    train(spec_of(), reports.append)
    assert [(p.done, p.clips, p.loss is not None) for p in reports[1:]] == [
        row for epoch in range(3) for row in ((epoch, 16, False), (epoch, 16, False), (epoch + 1, 0, True))
    ]


def test_a_checkpoint_of_another_configuration_is_not_gone_on_from(spec_of: SpecOf, small_config: Config):
    def cut(progress: Progress) -> None:
        if progress.done == 2:
            raise PowerCut

    with pytest.raises(PowerCut):
        train(spec_of(), cut)
    changed = spec_of(config=with_exposure(small_config, mixup_schedule="never"))
    assert (changed.output / training.STATE).exists()
    train(changed)
    after_a_cut = weights(changed)
    train(changed)
    assert weights(changed) == after_a_cut


@pytest.mark.slow
def test_a_damaged_checkpoint_costs_its_epochs_and_not_the_unit(spec_of: SpecOf):
    def cut(progress: Progress) -> None:
        if progress.done == 2:
            raise PowerCut

    train(spec_of())
    expected = weights(spec_of())
    for damage in (lambda data: data[:1000], lambda data: b"", lambda data: b"x" * len(data)):
        with pytest.raises(PowerCut):
            train(spec_of(), cut)
        state = spec_of().output / training.STATE
        state.write_bytes(damage(state.read_bytes()))
        train(spec_of())
        assert weights(spec_of()) == expected


def test_more_epochs_than_files_can_name_are_refused(spec_of: SpecOf, small_config: Config):
    with pytest.raises(UserError, match="50000 epochs of 2 steps, at most 32767"):
        train(spec_of(config=with_exposure(small_config, min_steps=100_000)))


def test_seeds_differ(spec_of: SpecOf):
    train(spec_of(seed=0))
    train(spec_of(seed=1))
    assert weights(spec_of(seed=0)) != weights(spec_of(seed=1))


def test_no_epochs_leave_the_network_as_it_was_made(spec_of: SpecOf, small_config: Config):
    spec = spec_of(config=with_exposure(small_config, epochs=0))
    notes: list[Progress] = []
    train(spec, notes.append)
    assert history(spec) == []
    assert "random: network.pretrained names no file" in notes[0].note
    assert weights(spec)


@pytest.mark.filterwarnings("ignore")
def test_a_loss_that_is_not_finite_stops_the_unit_with_its_reason(spec_of: SpecOf, small_config: Config):
    spec = spec_of(config=with_exposure(small_config, learning_rate=1e30))
    with pytest.raises(UserError, match=r"the loss is (nan|inf) in epoch \d: lower exposure.learning_rate"):
        train(spec)
    assert not (spec.output / "model.safetensors").exists()


@pytest.mark.parametrize("switch", ["mixup", "product", "machine"])
def test_each_switch_changes_what_is_learned(spec_of: SpecOf, small_config: Config, switch: str):
    base, changed = spec_of(), {
        "mixup": with_exposure(small_config, mixup_schedule="never"),
        "product": with_exposure(small_config, lambda_product=0.0),
        "machine": with_exposure(small_config, lambda_machine=0.0),
    }[switch]  # fmt: skip
    train(base)
    before = weights(base)
    train(spec_of(config=changed))
    assert weights(base) != before


def test_windows_are_even_and_the_last_is_flush():
    assert window_starts(160000, 32000, 10).tolist()[:2] == [0, 14222]
    assert window_starts(160000, 32000, 10)[-1] == 128000
    assert window_starts(32000, 32000, 3).tolist() == [0, 0, 0]
    assert window_starts(100, 32000, 3).tolist() == [0, 0, 0]
    assert window_starts(160000, 32000, 1).tolist() == [64000]


def test_embeddings_are_the_contracts_table(spec_of: SpecOf):
    train(spec_of())
    spec = spec_of("embed")
    embed(spec)
    table = pq.read_table(spec.run.table(spec.unit))
    assert table.num_rows == 42 * 3
    embedding = table.schema.field("embedding").type
    assert (embedding.list_size, embedding.value_type) == (128, pa.float32())
    splits = {split: table["split"].to_pylist().count(split) for split in ("train", "validation", "test")}
    assert splits == {"train": 16 * 3, "validation": 2 * 3, "test": 24 * 3}
    assert table["start"].to_pylist()[:3] == [0.0, 0.25, 0.5]
    assert len(table["product_logits"][0]) == 2
    assert table["machine_logit"].null_count == 0


def test_bfloat16_trains_and_its_embeddings_keep_float32(spec_of: SpecOf, small_config: Config):
    config = replace(small_config, network=replace(small_config.network, precision="bfloat16"))
    train(spec_of(config=config))
    assert history(spec_of())[-1]["loss"] > 0
    spec = spec_of("embed", config=config)
    notes: list[Progress] = []
    embed(spec, notes.append)
    assert "bfloat16 as asked" in notes[0].note
    embeddings = pq.read_table(spec.run.table(spec.unit))["embedding"]
    values = torch.tensor(embeddings.combine_chunks().flatten().to_numpy())
    assert not torch.equal(values, values.bfloat16().float())  # 8 bits would make distances tie


def test_statistics_need_no_training(spec_of: SpecOf, small_config: Config):
    config = replace(small_config, network=replace(small_config.network, encoder="statistics", train="frozen"))
    spec = spec_of("embed", config=config)
    embed(spec)
    table = pq.read_table(spec.run.table(spec.unit))
    assert not {"machine_logit", "product_logits"} & set(table.column_names)
    assert table.num_rows == 126


def test_kept_weights_are_embedded_to_choose_from(spec_of: SpecOf, small_config: Config, catalog: Catalog):
    config = with_exposure(small_config, keep_every=1)
    train(spec_of(config=config))
    final = weights(spec_of())
    names = sorted(path.name for path in spec_of().output.glob("model*"))
    assert names == ["model-epoch-1.safetensors", "model-epoch-2.safetensors", "model.safetensors"]
    embed(spec_of("embed", config=config))
    table = pq.read_table(spec_of("embed").run.table(spec_of("embed").unit))
    assert {epochs: table["checkpoint"].to_pylist().count(epochs) for epochs in (1, 2, 3)} == {1: 126, 2: 126, 3: 126}
    assert NumClips.of(catalog.table).checkpoints(config) == 3
    longer = with_exposure(config, min_steps=10)  # 2 steps an epoch
    assert NumClips.of(catalog.table).checkpoints(longer) == 5
    first, last = (table.filter(pc.field("checkpoint") == epochs)["embedding"] for epochs in (1, 3))
    assert first != last
    train(spec_of())  # keeps nothing: the other training's weights go
    assert weights(spec_of()) == final
    assert [path.name for path in spec_of().output.glob("model*")] == ["model.safetensors"]


def test_real_anomalies_are_trained_on_and_leave_the_test(spec_of: SpecOf, small_config: Config, catalog: Catalog):
    config = with_exposure(small_config, real_anomalies=2, contamination=1, reserved_anomalies=4)
    target, *others = load_training_machines(catalog, spec_of(config=config))
    *_, exposed = others
    labels = np.array(target.table["label"].to_pylist())
    counts = {split: int((target.split == split).sum()) for split in set(target.split)}
    assert counts == {"train": 16 + 2, "validation": 2, "test": 24 - 8, "exposed": 4, "reserved": 2}
    assert labels[exposed.training].tolist() == [1] * 4
    assert labels[target.training].sum() == 2  # hidden among the normal clips
    assert not set(exposed.training) & set(target.training)
    for batch in balanced_batches([target, *others], config, 0, 0):
        assert len(batch.members[-1]) == 1
        assert sum(map(len, batch.members[1:])) == len(batch.members[0])
    loader = loader_of(target, others, config)
    targets = TwoBCE(config, ["00", "03"], [128]).targets(*loader.classes_of(batch))
    assert not targets[-1].any()
    train(spec_of(config=config))
    embed(spec_of("embed", config=config))
    table = pq.read_table(spec_of("embed").run.table(spec_of("embed").unit))
    assert table["split"].to_pylist().count("exposed") == 4 * 3


def test_fewer_anomalies_are_among_more_and_the_test_stays_the_same(
    spec_of: SpecOf, small_config: Config, catalog: Catalog
):
    splits = [
        load_machine(
            catalog, "fan", spec_of(config=with_exposure(small_config, real_anomalies=n, reserved_anomalies=4))
        )
        for n in (0, 1, 4)
    ]
    exposed = [set(np.flatnonzero(clips.split == "exposed")) for clips in splits]
    assert [len(clips) for clips in exposed] == [0, 2, 8]
    assert exposed[1] < exposed[2]
    tests = [np.flatnonzero(clips.split == "test").tolist() for clips in splits]
    assert tests[0] == tests[1] == tests[2]
    another = load_machine(catalog, "pump", spec_of(config=with_exposure(small_config, real_anomalies=4)))
    assert another.split.tolist().count("test") == 24


def test_a_test_without_anomalies_is_refused(spec_of: SpecOf, small_config: Config, catalog: Catalog):
    for changes in ({"real_anomalies": 6}, {"contamination": 5}, {"reserved_anomalies": 7}):
        with pytest.raises(UserError, match=r"fan section 00: setting \d anomalies aside .* of 3 \+ 3"):
            load_machine(catalog, "fan", spec_of(config=with_exposure(small_config, **changes)))


@pytest.mark.parametrize(("value", "reason"), [(0.0, "collapsed: it gives the same embedding"), (np.nan, "NaN or inf")])
def test_embeddings_that_tell_nothing_fail_the_unit(spec_of: SpecOf, value: float, reason: str):
    train(spec_of())
    path = spec_of().output / "model.safetensors"
    weights = load_file(path)
    save_file({name: torch.full_like(w, value) if w.ndim == 2 else w for name, w in weights.items()}, path)
    with pytest.raises(UserError, match=reason):
        embed(spec_of("embed"))
    assert not spec_of("embed").run.table(spec_of("embed").unit).exists()
