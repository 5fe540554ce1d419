import json
import os
import socket
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from rayasd import presets
from rayasd.data.catalog import Catalog, read_catalog
from rayasd.errors import UserError
from rayasd.files import write_json
from rayasd.sweep.driver import State, check_request, drive, survey
from rayasd.sweep.executors import Request, Resources
from rayasd.sweep.plan import Plan, prerequisite
from rayasd.sweep.store import RunStore, differences, mark_done
from rayasd.sweep.worker import Outcome
from rayasd.unit import STAGES, Unit, UnitSpec

CONFIG = presets.load("demo")
PLAN = Plan(("fan", "pump"), ("both", "statistics"), (0,))


class FakeExecutor:
    """Finishes units in the order they came, as its script says: None is success, else the error."""

    def __init__(self, script: dict[Unit, list[str | None]] | None = None, slots: int = 2) -> None:
        self.nodes = [Resources(slots, 0)]
        self.script = script or {}
        self.running: list[UnitSpec] = []
        self.log: list[Unit] = []
        self.most = 0

    def describe(self) -> str:
        return "fake"

    def submit(self, spec: UnitSpec, resources: Resources) -> None:
        self.running.append(spec)
        self.log.append(spec.unit)
        self.most = max(self.most, len(self.running))

    def wait(self, timeout: float) -> list[Outcome]:
        spec = self.running.pop(0)
        results = self.script.get(spec.unit, [])
        error = results.pop(0) if results else None
        if error is None:
            spec.output.mkdir(parents=True, exist_ok=True)
            (spec.output / "part-0.parquet").write_text("x")
            mark_done(spec)
        return [Outcome(spec.unit, error, "traceback", hopeless=bool(error and error.startswith("hopeless")))]

    def close(self) -> None: ...


DATA = {"fingerprint": {"fan": "1"}, "root": "root", "pretrained": {}}


def set_up(store: RunStore, config=CONFIG, clips=(("a", "1"), ("b", "2")), plan=PLAN, *, data=DATA, **options) -> None:
    columns = {name: ["x"] * len(clips) for name in ("machine", "section", "domain", "split")}
    table = pa.table({"clip": [c[0] for c in clips], "digest": [c[1] for c in clips], **columns})
    fingerprint = {"fingerprint": {"fan": str(clips)}}
    store.set_up(config, Catalog(Path("root"), table), data | fingerprint, plan, ["rayasd"], **options)


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    store = RunStore(tmp_path / "run")
    set_up(store)
    return store


def specs(store: RunStore, config=CONFIG) -> dict[Unit, UnitSpec]:
    return {
        unit: UnitSpec(unit=unit, config=config.variant(unit.variant), run=store.paths, cache=Path(), data_root=Path(),
                       data="d")
        for unit in PLAN.units(config)
    }  # fmt: skip


def run(store: RunStore, executor: FakeExecutor, stages=STAGES, *, config=CONFIG, retry_failed=False, **options):
    asked = set(PLAN.units(config, stages))
    sweep = survey(store, specs(store, config), asked, retry_failed=retry_failed)
    drive(sweep, store, executor, Request(1, 0), **options)
    return sweep


def test_the_plan_knows_that_statistics_train_nothing():
    units = PLAN.units(CONFIG)
    assert len(units) == 2 * 3 + 2 * 2
    first = Unit("embed", "statistics", "fan", 0)
    assert prerequisite(first, CONFIG.variant("statistics")) is None
    assert prerequisite(Unit("embed", "both", "fan", 0), CONFIG) == Unit("train", "both", "fan", 0)


def test_all_units_run_within_the_slots_and_after_what_they_build_on(store: RunStore):
    executor = FakeExecutor()
    sweep = run(store, executor)
    assert set(sweep.states.values()) == {State.DONE}
    assert executor.most == 2
    for unit in executor.log:
        needed = prerequisite(unit, CONFIG.variant(unit.variant))
        assert needed is None or executor.log.index(needed) < executor.log.index(unit)


def test_a_machines_later_stages_go_before_another_machines_training(store: RunStore):
    executor = FakeExecutor(slots=1)
    run(store, executor)
    both = [unit for unit in executor.log if unit.variant == "both"]
    assert [(u.machine, u.stage) for u in both[:3]] == [("fan", "train"), ("fan", "embed"), ("fan", "detect")]


def test_a_second_run_does_nothing(store: RunStore):
    run(store, FakeExecutor())
    executor = FakeExecutor()
    run(store, executor)
    assert executor.log == []


def test_a_unit_that_dies_once_is_tried_again(store: RunStore):
    unit = Unit("train", "both", "fan", 0)
    executor = FakeExecutor({unit: ["its worker died"]})
    sweep = run(store, executor)
    assert executor.log.count(unit) == 2
    assert sweep.states[unit] is State.DONE


def test_a_unit_that_keeps_dying_fails_alone_with_its_reason(store: RunStore):
    unit = Unit("train", "both", "fan", 0)
    executor = FakeExecutor({unit: ["died"] * 5})
    sweep = run(store, executor, max_tries=3)
    assert executor.log.count(unit) == 3
    assert sweep.states[unit] is State.FAILED
    assert sweep.count(State.DONE) == len(sweep.states) - 3
    blocked = sweep.units(State.BLOCKED)
    assert blocked == [Unit("embed", "both", "fan", 0), Unit("detect", "both", "fan", 0)]
    assert sweep.reasons[blocked[1]] == "died"
    again = FakeExecutor()
    assert run(store, again).states[unit] is State.FAILED
    assert again.log == []  # what failed for good waits to be asked for
    assert run(store, FakeExecutor(), retry_failed=True).count(State.DONE) == len(sweep.states)


def test_a_hopeless_unit_is_tried_once(store: RunStore):
    unit = Unit("train", "both", "fan", 0)
    executor = FakeExecutor({unit: ["hopeless: bad data"] * 5})
    run(store, executor, max_tries=3)
    assert executor.log.count(unit) == 1


def test_fail_fast_starts_nothing_more(store: RunStore):
    executor = FakeExecutor({Unit("train", "both", "fan", 0): ["hopeless"]}, slots=1)
    sweep = run(store, executor, fail_fast=True)
    assert sweep.count(State.WAITING) == sweep.count(State.RUNNING) == 0
    assert "stopped by --fail-fast" in sweep.reasons.values()
    assert sweep.count(State.DONE) < len(sweep.states) - 3


def test_one_stage_alone_leaves_the_others(store: RunStore):
    executor = FakeExecutor()
    sweep = run(store, executor, ("train",))
    assert {unit.stage for unit in executor.log} == {"train"}
    executor = FakeExecutor()
    sweep = run(store, executor, ("detect",))
    assert executor.log == []
    assert "embed fan both seed 0 has not been done" in sweep.reasons.values()


def test_a_changed_setting_redoes_its_stage_and_what_follows(store: RunStore):
    run(store, FakeExecutor())
    changed = replace(CONFIG, embedding=replace(CONFIG.embedding, num_windows=7))
    executor = FakeExecutor()
    run(store, executor, config=changed)
    assert {unit.stage for unit in executor.log} == {"embed", "detect"}


def test_a_lost_or_cut_file_is_done_again(store: RunStore):
    run(store, FakeExecutor())
    unit = Unit("embed", "both", "pump", 0)
    store.paths.table(unit).write_text("longer than it was")
    executor = FakeExecutor()
    run(store, executor)
    assert executor.log == [unit, Unit("detect", "both", "pump", 0)]


def test_events_tell_the_story(store: RunStore):
    unit = Unit("train", "both", "fan", 0)
    run(store, FakeExecutor({unit: ["died"]}))
    events = [json.loads(line) for line in store.paths.events.read_text().splitlines()]
    story = [event["event"] for event in events if event["unit"] == str(unit)]
    assert story == ["unit started", "unit to be tried again", "unit started", "unit done"]


def test_fractions_of_a_gpu_that_do_not_fit_are_not_counted():
    nodes = [Resources(8, 2)]
    assert Request(1, 0.6).usable(nodes).gpus == pytest.approx(1.2)  # one on each, not three on two
    assert Request(1, 0.25).usable(nodes).gpus == pytest.approx(2.0)
    assert Request(1, 0.0).usable(nodes).gpus == 0


def test_any_node_that_fits_will_do():
    executor = FakeExecutor()
    executor.nodes = [Resources(2, 1), Resources(64, 0)]
    check_request(Request(32, 0), executor)
    with pytest.raises(UserError):
        check_request(Request(32, 1), executor)


def test_a_request_beyond_every_node_is_refused_with_the_numbers():
    with pytest.raises(UserError, match="asks for 1 CPUs and 1 GPUs, but the largest node has 2 CPUs and 0 GPUs"):
        check_request(Request(1, 1), FakeExecutor())
    with pytest.raises(UserError, match="asks for 64 CPUs"):
        check_request(Request(64, 0), FakeExecutor())


class TestRunDirectory:
    def test_another_configuration_stops_with_a_diff(self, store: RunStore):
        other = presets.load("demo", ["exposure.epochs=99"])
        epochs = CONFIG.exposure.epochs
        with pytest.raises(UserError, match=f"exposure.epochs: {epochs} -> 99"):
            set_up(store, other)
        assert store.config() == CONFIG
        set_up(store, other, accept_changes=True)
        assert store.config().exposure.epochs == 99

    def test_other_data_stop_with_the_clips_that_differ(self, store: RunStore):
        with pytest.raises(UserError) as caught:
            set_up(store, clips=(("a", "other"), ("c", "3")))
        for line in ("1 clips added, c first", "1 clips removed, b first", "1 clips changed, a first"):
            assert line in str(caught.value)

    def test_other_weights_at_the_same_place_stop_with_a_diff(self, tmp_path: Path):
        store = RunStore(tmp_path / "weights")
        set_up(store, data=DATA | {"pretrained": {"w.pth": "1"}})
        with pytest.raises(UserError, match=r"weights.w.pth: 1 -> 2"):
            set_up(store, data=DATA | {"pretrained": {"w.pth": "2"}})

    def test_plans_add_up_and_are_no_cross_product(self, store: RunStore):
        more = Plan(("valve",), ("untrained",), (1,))
        set_up(store, plan=more)
        set_up(store, plan=more)
        assert store.plans() == [PLAN, more]
        assert set(store.specs()) == {*PLAN.units(CONFIG), *more.units(CONFIG)}

    def test_a_variant_that_the_preset_no_longer_defines_stays(self, tmp_path: Path):
        store = RunStore(tmp_path / "variants")
        mine = replace(CONFIG, variants={**CONFIG.variants, "mine": {"exposure.epochs": 1}})
        set_up(store, mine, plan=Plan(("fan",), ("mine",), (0,)))
        set_up(store)
        assert {unit.variant for unit in store.specs()} == {"mine", "both", "statistics"}

    def test_identity_is_of_what_decides_the_result(self, store: RunStore):
        def identities(*overrides: str) -> dict[str, str]:
            changed = specs(store, presets.load("demo", overrides))
            return {unit.stage: spec.identity for unit, spec in changed.items() if unit.variant == "both"}

        base = identities()
        assert identities("exposure.checkpoint_every=3", "embedding.batch_size=7") == base
        assert identities("exposure.weight_decay=0.1").keys() == base.keys()
        assert not set(identities("exposure.weight_decay=0.1").values()) & set(base.values())
        detectors = identities("inlier.fit_on=source")
        assert {stage for stage in base if detectors[stage] != base[stage]} == {"detect"}

    def test_a_second_driver_is_told_who_holds_the_run(self, store: RunStore):
        said = rf"is held by process {os.getpid()} on .* since"
        with store.held(), pytest.raises(UserError, match=said), store.held():
            pass
        with store.held():
            pass

    def test_a_lock_that_was_cut_off_is_said_with_the_way_out(self, store: RunStore):
        store.paths.lock.write_text("")
        with pytest.raises(UserError, match=r"held by process \? on \? .* delete .*lock.json"), store.held():
            pass

    def test_what_a_killed_driver_left_half_written_is_removed(self, store: RunStore):
        (store.paths.root / ".manifest.json.abc.part").write_text("half")
        with store.held():
            pass
        assert not list(store.paths.root.glob(".*.part"))

    def test_a_lock_whose_holder_is_gone_is_taken_over(self, store: RunStore):
        gone = {"host": socket.gethostname(), "pid": os.getpid(), "started": "1", "since": "then"}
        write_json(store.paths.lock, gone)  # the process number came again, the moment of its start did not
        with store.held():
            pass
        assert not store.paths.lock.exists()

    @pytest.mark.parametrize("damage", ["{", "[]", "{}", ""])
    def test_damaged_files_of_the_run_are_named(self, store: RunStore, damage: str):
        store.paths.manifest.write_text(damage)
        with pytest.raises(UserError, match=r"manifest.json is damaged: restore it"):
            store.plans()
        store.paths.config.write_text("nonsense")
        with pytest.raises(UserError, match=r"config.toml is damaged"):
            store.config()
        store.paths.catalog.write_text("nonsense")
        with pytest.raises(UserError, match=r"catalog.parquet is damaged"):
            read_catalog(store.paths.catalog, Path())

    @pytest.mark.parametrize("damage", ["{", "[]", "{}", ""])
    def test_a_damaged_marker_is_none(self, store: RunStore, damage: str):
        run(store, FakeExecutor())
        unit = Unit("detect", "both", "pump", 0)
        store.paths.marker(unit, "DONE").write_text(damage)
        store.paths.marker(unit, "FAILED").write_text(damage)
        executor = FakeExecutor()
        run(store, executor)
        assert executor.log == [unit]

    def test_a_folder_that_is_no_run_is_said(self, tmp_path: Path):
        with pytest.raises(UserError, match="is not a run directory"):
            RunStore(tmp_path).plans()

    def test_markers_stay_out_of_the_way_of_parquet_readers(self, store: RunStore):
        import pyarrow.dataset as ds
        import pyarrow.parquet as pq

        for unit, spec in specs(store).items():
            if unit.stage == "embed":
                spec.output.mkdir(parents=True)
                pq.write_table(pa.table({"a": [1]}), store.paths.table(unit))
                mark_done(spec)
                write_json(store.paths.progress(unit), {})
        table = ds.dataset(store.paths.root / "embeddings", partitioning="hive").to_table()
        assert sorted(table.column_names) == ["a", "machine", "seed", "variant"]
        assert table.num_rows == 4


def test_a_run_of_which_nothing_came_leaves_no_folder(tmp_path: Path):
    store = RunStore(tmp_path / "run")
    with pytest.raises(UserError), store.held():
        raise UserError("bad data")
    assert not (tmp_path / "run").exists()


def test_a_variant_that_one_side_lacks_is_no_difference_whatever_its_name():
    old = {"variants": {"both": {}}, "exposure": {"epochs": 3}}
    new = {"variants": {"both": {}, "both-dropout-0.1": {"network.dropout": 0.1}}, "exposure": {"epochs": 3}}
    assert differences(old, new) == []
    assert differences(old, new | {"exposure": {"epochs": 4}}) == ["exposure.epochs: 3 -> 4"]
