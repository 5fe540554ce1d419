"""One network for all machine types: trained once, embedded and scored by machine, resumed to the same bits."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from rayasd.config import Config
from rayasd.data.catalog import Catalog
from rayasd.errors import UserError
from rayasd.evaluation.scores import read_scores
from rayasd.exposure.embedding import embed
from rayasd.exposure.training import train
from rayasd.scoring import load
from rayasd.scoring.loading import RunModels
from rayasd.scoring.packing import write_pack
from rayasd.stages import ALL_MACHINES, NumClips
from rayasd.sweep.checks import check_data
from rayasd.sweep.plan import Plan, prerequisite
from rayasd.sweep.store import RunStore
from rayasd.unit import Progress, Stopped, Unit
from tests.command import Rayasd
from tests.conftest import SHARED, SpecOf, run_locally, small_sweep, write_clip


def shared(config: Config, **exposure: object) -> Config:
    return replace(config, exposure=replace(config.exposure, **{**SHARED, **exposure}))  # type: ignore[arg-type]


def test_the_plan_trains_once_for_all_machines(small_config: Config):
    config = replace(small_config, variants={"both": {}, "shared": {f"exposure.{k}": v for k, v in SHARED.items()}})
    plan = Plan(("fan", "pump"), ("both", "shared"), (0, 1))
    units = plan.units(config)
    assert [unit for unit in units if unit.stage == "train"] == [
        Unit("train", variant, machine, seed)
        for seed in (0, 1)
        for variant, machine in (("both", "fan"), ("both", "pump"), ("shared", ALL_MACHINES))
    ]
    assert len(units) == len(set(units)) == 2 * (2 * 3 + 2 * 2 + 1)
    embed_fan = Unit("embed", "shared", "fan", 1)
    assert prerequisite(embed_fan, config.variant("shared")) == Unit("train", "shared", ALL_MACHINES, 1)


def test_one_training_costs_what_the_machines_together_hold(catalog: Catalog, small_config: Config):
    clips = NumClips.of(catalog.table)
    config = shared(small_config, validation_fraction=0.0, epochs=10)
    assert clips.trained_on(ALL_MACHINES, config) == 10 * sum(clips.train.values())
    two_bce = replace(small_config, exposure=replace(small_config.exposure, validation_fraction=0.0, epochs=10))
    assert sum(clips.trained_on(machine, two_bce) for machine in clips.train) == 2 * 10 * sum(clips.train.values())
    longer = shared(small_config, validation_fraction=0.0, epochs=1, min_steps=100)
    steps = -(-sum(clips.train.values()) // longer.exposure.batch_size)
    assert clips.epochs(longer) == -(-100 // steps)
    assert clips.trained_on(ALL_MACHINES, longer) == clips.epochs(longer) * sum(clips.train.values())


def test_seeds_that_hold_out_other_numbers_of_clips_train_as_many_epochs(spec_of: SpecOf, small_config: Config):
    """Else their weights would be of different epochs, and no system of several seeds."""
    few = shared(small_config, hold_out="cross-fit", folds=5, batch_size=11, epochs=1, min_steps=9)
    found = []
    for seed in range(5):
        spec = spec_of(machine=ALL_MACHINES, config=few, seed=seed)
        train(spec)
        found.append(len((spec.output / "history.jsonl").read_text().splitlines()))
    assert len(set(found)) == 1


def test_a_shared_training_goes_on_to_the_same_bits(spec_of: SpecOf, small_config: Config):
    spec = spec_of(machine=ALL_MACHINES, config=shared(small_config, min_steps=14))
    train(spec)
    expected, rows = (spec.output / "model.safetensors").read_bytes(), (spec.output / "history.jsonl").read_text()
    facts = json.loads((spec.output / "config.json").read_text())
    assert facts["epochs"] == 5  # 48 clips: 3 steps of 16 in an epoch
    assert len(facts["classes"]) == 12
    assert facts["classes"][0] == "fan/00/x/source"
    losses = [json.loads(row)["loss"] for row in rows.splitlines()]
    assert losses[-1] < losses[0]
    (spec.output / "model.safetensors").unlink()
    with pytest.raises(Stopped):
        train(spec, lambda progress: progress.done == 2)
    state = [name for name in load_file_names(spec.output / "state.pt") if name.startswith("objective.")]
    assert state == ["objective.head.vectors", "objective.head.scale"]
    train(spec)
    assert (spec.output / "model.safetensors").read_bytes() == expected
    assert (spec.output / "history.jsonl").read_text() == rows


def load_file_names(path: Path) -> list[str]:
    return list(torch.load(path, weights_only=True)["model"])


def test_the_centres_of_classes_are_trained_and_saved(spec_of: SpecOf, small_config: Config):
    for trainable in (True, False):
        vectors = []
        for epochs in (0, 2):
            objective = f"sub-cluster-adacos(subclusters=2, trainable={trainable})"
            spec = spec_of(machine=ALL_MACHINES, config=shared(small_config, epochs=epochs, objective=objective))
            train(spec)
            vectors.append(load_file(spec.output / "model.safetensors")["objective.head.vectors"])
        assert bool((vectors[0] != vectors[1]).any()) is trainable


def test_embeddings_of_a_shared_network_have_no_outputs_of_heads(spec_of: SpecOf, small_config: Config):
    config = shared(small_config)
    train(spec_of(machine=ALL_MACHINES, config=config))
    spec = spec_of("embed", "pump", config=config)
    embed(spec)
    table = pq.read_table(spec.run.table(spec.unit))
    assert table.num_rows == 42 * 3
    assert {"machine_logit", "product_logits"}.isdisjoint(table.column_names)
    assert table["clip"][0].as_py().startswith("pump/")


def test_classes_work_for_one_machine_against_the_others_too(spec_of: SpecOf, small_config: Config, catalog: Catalog):
    spec = spec_of(config=shared(small_config, scope="machine", classes=("machine", "section")))
    train(spec)
    facts = json.loads((spec.output / "config.json").read_text())
    assert facts["classes"] == [
        f"{machine}/{section}" for machine in ("fan", "pump", "valve") for section in ("00", "03")
    ]


def test_one_class_is_refused_in_one_line(spec_of: SpecOf, small_config: Config):
    spec = spec_of(machine=ALL_MACHINES, config=shared(small_config, classes=("attributes",)))
    with pytest.raises(
        UserError, match=r"^exposure.objective sub-cluster-adacos\(subclusters=2\): .* two classes, not 1"
    ):
        train(spec)


def test_anomalies_of_machines_that_are_only_trained_on_are_checked(catalog: Catalog, small_config: Config):
    known = (pc.field("machine") != "pump") | pc.is_null(pc.field("label")) | (pc.field("label") == 0)
    few = replace(catalog, table=catalog.table.filter(known))
    config = shared(small_config, contamination=1)
    with pytest.raises(UserError, match="^pump: exposure asks for 1 anomalies a section"):
        check_data(few, ["fan"], {"one": config})
    check_data(few, ["fan"], {"both": shared(small_config, contamination=1, scope="machine")})


@pytest.fixture(scope="module")
def preset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("preset") / "own.toml"
    settings = "\n".join(f"exposure.{key} = {json.dumps(value)}" for key, value in SHARED.items())
    path.write_text(
        f'extends = "demo"\n[variants.base]\n{settings}\ninlier.metric = "cosine"\n'
        '[variants.one]\nextends = "base"\nexposure.epochs = 2\n'
    )
    return path


@pytest.fixture(scope="module")
def swept(tree: Path, cache: Path, preset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run directory of a sweep of the paper's method beside a shared network, and the ensemble of both."""
    run = tmp_path_factory.mktemp("shared") / "run"
    return run_locally(tree, cache, run, "--preset", preset, "--variants", "both,one",
                       "--set", "evaluation.ensembles=both&one")  # fmt: skip


@pytest.mark.slow
def test_both_worlds_and_their_fusion_are_in_one_table(swept: Path):
    table = pq.read_table(swept / "leaderboard.parquet").to_pylist()
    assert {row["variant"] for row in table} >= {"both", "one", "both&one"}
    assert [path.name for path in (swept / "models/one").iterdir()] == [ALL_MACHINES]
    both, one, fused = (
        read_scores(swept / f"{place}/machine=fan/seed=0/part-0.parquet")
        for place in ("scores/variant=both", "scores/variant=one", "ensembles/variant=both&one")
    )
    for key, scores in fused.items():
        members = [next(s for k, s in of.items() if k[0] == key[0] and k[2:] == key[2:]) for of in (both, one)]
        z = [(m.scores - m.training.mean()) / m.training.std() for m in members]
        np.testing.assert_allclose(scores.scores, np.mean(z, axis=0))


@pytest.mark.slow
def test_a_shared_network_scores_from_its_run_and_packed(swept: Path, tree: Path, tmp_path: Path):
    path = swept / "scores/variant=one/machine=pump/seed=0/part-0.parquet"
    packed = tmp_path / "pump.rayasd"
    write_pack(packed, [RunModels(swept, entry="one").parts("pump")])
    for model in (load(swept, machine="pump", entry="one"), load(packed)):
        (system,) = model.parts.leaves["00"]
        known = next(s for k, s in read_scores(path).items()
                     if (k.section, k.detector, k.pooling) == ("00", system.detector, system.pooling))  # fmt: skip
        found = [clip.score for clip in model.score([tree / clip for clip in known.clips], "00")]
        np.testing.assert_allclose(found, known.scores, rtol=1e-5, atol=1e-6)
        with pytest.raises(UserError, match="cannot tell: --section 00"):
            list(model.score([tree / known.clips[0]]))


@pytest.mark.slow
def test_parts_of_a_run_share_out_the_network_and_the_machines(
    swept: Path, preset: Path, tree: Path, rayasd: Rayasd, tmp_path: Path
):
    run = tmp_path / "parts"
    arguments = [*small_sweep(tree, run), "--preset", preset, "--variants", "one"]
    assert rayasd(*arguments, "--set-up-only").returncode == 0
    early = rayasd(*arguments, "--only", "fan")
    assert early.returncode == 1
    assert f"train {ALL_MACHINES} one seed 0 has not been done" in early.stdout
    assert rayasd(*arguments, "--only", ALL_MACHINES).returncode == 0
    for machine in ("fan", "pump", "valve"):
        done = rayasd(*arguments, "--only", machine)
        assert done.returncode == 0, done.stdout + done.stderr
    whole = swept / "scores/variant=one/machine=fan/seed=0/part-0.parquet"
    part = run / "scores/variant=one/machine=fan/seed=0/part-0.parquet"
    assert pq.read_table(part).equals(pq.read_table(whole))


@pytest.mark.slow
def test_a_damaged_shared_network_is_trained_and_applied_again(
    swept: Path, preset: Path, tree: Path, rayasd: Rayasd, tmp_path: Path
):
    run = Path(shutil.copytree(swept, tmp_path / "run"))
    weights = run / f"models/one/{ALL_MACHINES}/seed=0/model.safetensors"
    intact = weights.read_bytes()
    weights.write_bytes(intact[:-1] + bytes([intact[-1] ^ 1]))
    before = len(RunStore(run).events())
    done = rayasd(*small_sweep(tree, run, "--preset", preset, "--variants", "both,one", "--verify",
                               "--set", "evaluation.ensembles=both&one"))  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    events = RunStore(run).events()[before:]
    assert sorted(event["unit"] for event in events if event["event"] == "unit started") == [
        *(f"{stage} {machine} one seed 0" for stage in ("detect", "embed") for machine in ("fan", "pump", "valve")),
        f"train {ALL_MACHINES} one seed 0",
    ]
    assert weights.read_bytes() == intact


@pytest.mark.slow
def test_a_shared_network_that_failed_is_named_once_and_tried_again(
    preset: Path, tree: Path, rayasd: Rayasd, tmp_path: Path
):
    words = small_sweep(tree, tmp_path / "run", "--preset", preset, "--variants", "one",
                        "--set", "exposure.learning_rate=1e30")  # fmt: skip
    for more, tries in (((), 1), ((), 0), (("--retry-failed",), 1)):
        done = rayasd(*words, *more)
        assert done.returncode == 1
        assert "1 unit failed, 6 blocked by them" in done.stdout
        assert done.stdout.count("lower exposure.learning_rate") == 1 + tries  # when it fails, and at the end


@pytest.mark.slow
def test_a_stage_without_units_of_the_machines_asked_for_is_refused(swept: Path, rayasd: Rayasd):
    assert rayasd("train", swept, "--machines", f"fan,{ALL_MACHINES}", "--executor", "local").returncode == 0
    done = rayasd("embed", swept, "--machines", ALL_MACHINES, "--executor", "local")
    assert done.returncode == 2
    assert done.stderr == (
        f"error: this run has nothing to embed for {ALL_MACHINES} alone: give --machines fan,pump,valve\n"
    )


def test_a_machine_cannot_have_the_name_of_them_all(tmp_path: Path, rayasd: Rayasd):
    for machine in ("fan", ALL_MACHINES):
        write_clip(tmp_path / machine / "train" / "section_00_source_train_normal_0000.wav", 300)
        write_clip(tmp_path / machine / "source_test" / "section_00_source_test_normal_0000.wav", 300)
    done = rayasd(*small_sweep(tmp_path, tmp_path / "run"))
    assert done.returncode == 2
    assert f"a machine type cannot be called {ALL_MACHINES}" in done.stderr


def test_progress_is_reported_for_a_shared_training(spec_of: SpecOf, small_config: Config):
    reports: list[Progress] = []
    train(spec_of(machine=ALL_MACHINES, config=shared(small_config)), reports.append)
    assert sum(report.clips for report in reports) == 3 * 48
