import json
import os
import time
from dataclasses import replace
from pathlib import Path
from threading import Timer

import pyarrow as pa
import pytest

from rayasd import presets
from rayasd.cluster.executor import RayExecutor
from rayasd.data.catalog import Catalog, read_catalog
from rayasd.errors import Interrupted, UserError
from rayasd.files import write_json
from rayasd.sweep import driver, lock
from rayasd.sweep.driver import Queue, check_request, drive
from rayasd.sweep.executors import Request, Resources
from rayasd.sweep.markers import failure, is_done, mark_done
from rayasd.sweep.plan import Plan, prerequisite
from rayasd.sweep.states import State, Sweep, survey
from rayasd.sweep.store import RunStore, differences
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
        self.hanging: set[Unit] = set()
        self.cancelled: list[Unit] = []

    def describe(self) -> list[str]:
        return ["fake"]

    def submit(self, spec: UnitSpec, resources: Resources) -> None:
        self.running.append(spec)
        self.log.append(spec.unit)
        self.most = max(self.most, len(self.running))

    def cancel(self, unit: Unit) -> None:
        self.running = [spec for spec in self.running if spec.unit != unit]
        self.hanging.discard(unit)
        self.cancelled.append(unit)

    def wait(self, timeout: float) -> list[Outcome]:
        spec = next((spec for spec in self.running if spec.unit not in self.hanging), None)
        if spec is None:
            for spec in self.running:  # it began, and says nothing more
                if not (sign := spec.run.progress(spec.unit)).exists():
                    sign.parent.mkdir(parents=True, exist_ok=True)
                    sign.touch()
            time.sleep(0.02)
            return []
        self.running.remove(spec)
        results = self.script.get(spec.unit, [])
        error = results.pop(0) if results else None
        if error is None:
            spec.output.mkdir(parents=True, exist_ok=True)
            (spec.output / "part-0.parquet").write_text("x")
            mark_done(spec)
        if error == "stopped":
            return [Outcome(spec.unit, stopped=True)]
        return [
            Outcome(
                spec.unit, error, "traceback", hopeless=bool(error and error.startswith("hopeless")),
                host_lost=error == "host lost", pause_seconds=0.6 if error == "pause" else 0.0,
            )
        ]  # fmt: skip

    def close(self) -> None: ...


DATA = {"fingerprint": {"fan": "1"}, "root": "root", "pretrained": {}}


def set_up(store: RunStore, config=CONFIG, clips=(("a", "1"), ("b", "2")), plan=PLAN, *, data=DATA, **options) -> None:
    columns = {name: ["x"] * len(clips) for name in ("machine", "section", "domain", "attributes", "split", "group")}
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
    asked = {unit for unit in PLAN.units(config) if unit.stage in stages}
    sweep = survey(specs(store, config), asked, retry_failed=retry_failed)
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


def test_no_slot_is_idle_while_a_unit_could_start(store: RunStore):
    def look(sweep: Sweep) -> None:
        assert sweep.count(State.RUNNING) == 3 or not any(map(sweep.may_start, sweep.units(State.WAITING)))

    run(store, FakeExecutor(slots=3), on_change=look)


def test_the_longest_of_a_seed_go_first_and_seeds_in_their_order(store: RunStore):
    plan = Plan(("fan", "pump", "valve"), ("both",), (0, 1))
    units = [unit for unit in plan.units(CONFIG) if unit.stage == "train"]
    spec = next(iter(specs(store).values()))
    sweep = Sweep({unit: replace(spec, unit=unit) for unit in units})
    for unit in units:
        sweep.move(unit, State.WAITING)
    costs = {"fan": 1.0, "pump": 3.0, "valve": 2.0}
    queue = Queue(sweep, {unit: costs[unit.machine] for unit in units})
    taken = list(queue.take(Resources(9, 0), Request(1, 0)))
    assert [(unit.seed, unit.machine) for unit in taken] == [
        (seed, machine) for seed in (0, 1) for machine in ("pump", "valve", "fan")
    ]


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


def test_a_lost_host_is_not_the_units_fault_but_not_for_ever(store: RunStore):
    unit = Unit("train", "both", "fan", 0)
    executor = FakeExecutor({unit: ["host lost"] * 5})
    assert run(store, executor, max_tries=1).states[unit] is State.DONE
    assert executor.log.count(unit) == 6
    unit = Unit("train", "both", "pump", 0)
    store.paths.marker(unit, "DONE").unlink()
    executor = FakeExecutor({unit: ["host lost"] * 50})
    assert run(store, executor, max_tries=1).states[unit] is State.FAILED
    assert executor.log.count(unit) == 21


def test_a_unit_that_was_killed_for_memory_waits_while_others_go_on(store: RunStore):
    unit = Unit("train", "both", "fan", 0)
    executor = FakeExecutor({unit: ["pause"]})
    began = time.monotonic()
    assert run(store, executor).states[unit] is State.DONE
    assert time.monotonic() - began > 0.5
    assert executor.log.index(Unit("train", "both", "pump", 0)) < len(executor.log) - executor.log[::-1].index(unit) - 1


def test_a_unit_without_a_sign_of_life_is_ended_and_tried_again(store: RunStore):
    unit = Unit("train", "both", "fan", 0)
    executor = FakeExecutor()
    executor.hanging = {unit}
    sweep = run(store, executor, hang_seconds=0.3)
    assert executor.cancelled == [unit]
    assert sweep.states[unit] is State.DONE
    events = [json.loads(line) for line in store.events_file.read_text().splitlines()]
    assert [e["reason"] for e in events if "reason" in e] == ["ended after 0.3 s without a sign of life"]


def test_nodes_that_come_and_go_are_followed(store: RunStore):
    executor = FakeExecutor(slots=1)
    executor.nodes = []
    comes = iter([[], [], [Resources(2, 0)], [Resources(1, 0)]])
    sweep = run(store, executor, on_change=lambda _: setattr(executor, "nodes", next(comes, executor.nodes)))
    assert set(sweep.states.values()) == {State.DONE}


def test_without_any_node_for_its_units_the_sweep_ends_and_says_so(store: RunStore, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(driver, "_STRANDED_SECONDS", 0.2)
    executor = FakeExecutor()
    executor.nodes = []
    sweep = survey(specs(store), set(PLAN.units(CONFIG)), retry_failed=False)
    assert "no node is left on which a unit fits (it asks for 1 CPU" in str(
        drive(sweep, store, executor, Request(1, 0))
    )
    assert sweep.count(State.WAITING) > 0


def test_a_run_that_is_asked_to_stop_starts_nothing_more(store: RunStore):
    unit = Unit("embed", "statistics", "fan", 0)
    executor = FakeExecutor({unit: ["stopped"]}, slots=1)
    sweep = survey(specs(store), set(PLAN.units(CONFIG)), retry_failed=False)
    left = drive(sweep, store, executor, Request(1, 0), on_change=lambda _: store.stop_file.touch())
    assert left == "stopped as asked"
    assert executor.log == [unit]
    assert sweep.states[unit] is State.WAITING
    with store.held():  # whoever goes on begins afresh
        assert set(run(store, FakeExecutor()).states.values()) == {State.DONE}


def test_a_run_that_was_done_when_it_was_asked_to_stop_is_done(store: RunStore):
    sweep = survey(specs(store), set(PLAN.units(CONFIG)), retry_failed=False)

    def stop_at_last(sweep: Sweep) -> None:
        if not sweep.count(State.WAITING):
            store.stop_file.touch()

    assert drive(sweep, store, FakeExecutor(), Request(1, 0), on_change=stop_at_last) is None
    assert set(sweep.states.values()) == {State.DONE}


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


def test_a_worker_that_dies_after_a_halt_is_not_started_again_and_nothing_is_held_against_its_unit(store: RunStore):
    failed, killed = (Unit("train", "both", machine, 0) for machine in ("fan", "pump"))
    executor = FakeExecutor({failed: ["hopeless"], killed: ["its worker died"]})
    sweep = run(store, executor, fail_fast=True)
    assert executor.log.count(killed) == 1
    assert (sweep.states[failed], sweep.states[killed]) == (State.FAILED, State.BLOCKED)
    assert failure(specs(store)[killed]) is None


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
    events = [json.loads(line) for line in store.events_file.read_text().splitlines()]
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
    check_request(Request(32, 0), executor.nodes)
    with pytest.raises(UserError):
        check_request(Request(32, 1), executor.nodes)


def test_a_stage_that_is_done_again_leaves_nothing_done_that_builds_on_it(store: RunStore):
    """Else `rayasd train` and then `embed`, as two commands, would keep embeddings of other weights."""
    run(store, FakeExecutor())
    for unit, spec in specs(store).items():
        if unit.stage == "train":
            spec.run.marker(unit, "DONE").unlink()
    run(store, FakeExecutor(), stages=("train",))
    done = {unit.stage for unit, spec in specs(store).items() if is_done(spec) and unit.variant == "both"}
    assert done == {"train"}
    run(store, executor := FakeExecutor())
    assert {unit.stage for unit in executor.log if unit.variant == "both"} == {"embed", "detect"}


def test_a_request_beyond_every_node_is_refused_with_the_numbers():
    with pytest.raises(UserError, match="asks for 1 CPU and 1 GPU, but the largest node has 2 CPUs and 0 GPUs"):
        check_request(Request(1, 1), FakeExecutor().nodes)
    with pytest.raises(UserError, match="asks for 64 CPUs"):
        check_request(Request(64, 0), FakeExecutor().nodes)


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

    @pytest.mark.parametrize("content", ["", '{"host": "elsewhere", "pid": 1, "started": "1", "since": "then"}'])
    def test_a_lock_that_nobody_renews_is_taken_over(
        self, store: RunStore, content: str, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(lock, "GONE_SECONDS", 0.3)
        store.paths.lock.write_text(content)
        with store.held():
            assert store.holders()[0]["pid"] == os.getpid()
        assert not store.paths.lock.exists()

    def test_a_lock_that_another_host_renews_is_respected(self, store: RunStore):
        write_json(store.paths.lock, {"host": "elsewhere", "pid": 7, "started": "1", "since": "then"})
        renewed = Timer(1.0, os.utime, (store.paths.lock,))
        renewed.start()
        with pytest.raises(UserError, match="held by process 7 on elsewhere since then"), store.held():
            pass
        renewed.join()

    def test_a_driver_that_was_taken_for_gone_leaves(self, store: RunStore, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(lock, "RENEW_SECONDS", 0.05)
        with store.held():
            store.check_held()
            other = {"host": "elsewhere", "pid": 7, "started": "1", "since": "then"}
            write_json(store.paths.lock, other)
            time.sleep(0.3)
            with pytest.raises(Interrupted, match="is another process's now"):  # and this process lives
                run(store, FakeExecutor())
        assert json.loads(store.paths.lock.read_text()) == other  # theirs stays

    def test_parts_of_a_run_go_side_by_side_but_not_beside_the_whole(self, store: RunStore):
        fan, pump = (RunStore(store.paths.root, [machine]) for machine in ("fan", "pump"))
        with fan.held(), pump.held():
            assert len(store.holders()) == 2
            fan.record("x"), pump.record("y")
            with pytest.raises(UserError, match="is held by"), store.held():
                pass
            with pytest.raises(UserError, match="is held by"), RunStore(store.paths.root, ["fan"]).held():
                pass
        assert sorted(event["event"] for event in store.events()) == ["x", "y"]
        with store.held(), pytest.raises(UserError, match="is held by"), fan.held():
            pass
        with fan.held(), pump.held():
            fan.stop_file.touch()  # its time limit is near: the other goes on
            assert not pump.stop_file.exists()
            store.stop()  # by a person: all stop
            assert pump.stop_file.read_text() == "by rayasd stop\n"
        assert not list(store.paths.root.glob("stop*"))
        with store.held():  # nothing is left of those that were refused
            pass

    def test_what_a_killed_driver_left_half_written_is_removed(self, store: RunStore):
        (store.paths.root / ".manifest.json.abc.part").write_text("half")
        with store.held():
            pass
        assert not list(store.paths.root.glob(".*.part"))

    def test_a_lock_whose_holder_is_gone_is_taken_over(self, store: RunStore):
        with store.held():
            ours = json.loads(store.paths.lock.read_text())
        write_json(store.paths.lock, ours | {"started": "1"})  # the number came again, the moment of the start did not
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


def test_ray_gets_no_more_names_than_it_can_bear(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("rayasd.cluster.executor._MOST_NAMES", 2)
    executor = object.__new__(RayExecutor)  # without a cluster
    executor._names = set()
    names = [executor.name(Unit("train", "both", "fan", seed)) for seed in (0, 1, 2, 0)]
    assert names == ["train fan both seed 0", "train fan both seed 1", "train fan both", "train fan both seed 0"]
