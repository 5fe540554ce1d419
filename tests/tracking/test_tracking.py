"""Trainings and results in trackers: each epoch once, whatever happens in between."""

import json
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rayasd.errors import UserError
from rayasd.sweep.states import State
from rayasd.tracking import handover
from rayasd.tracking.handover import hand_over, open_tracker
from rayasd.tracking.tracker import TrackedRow, Tracker
from rayasd.unit import RunDirectory, Unit, UnitSpec
from tests.command import Rayasd
from tests.conftest import small_sweep


def read_events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Read what TensorBoard would show of a folder."""
    events = EventAccumulator(str(folder)).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def development(run: Path) -> float:
    (score,) = pq.read_table(run / "leaderboard.parquet", filters=[("rank", "=", 1)])["development"].to_pylist()
    return score


def losses(run: Path) -> list[tuple[int, float]]:
    rows = map(json.loads, (run / "models/both/fan/seed=0/history.jsonl").read_text().splitlines())
    return [(row["epoch"], pytest.approx(row["loss"], rel=1e-6)) for row in rows]


@pytest.mark.slow
def test_trackers_hold_every_epoch_once_and_the_ranked_systems(tree: Path, tmp_path: Path, rayasd: Rayasd, monkeypatch):
    run, store = tmp_path / "o'brien's run", f"file:{tmp_path}/mlruns"
    command = small_sweep(tree, run, "--machines", "fan")
    server = {"MLFLOW_TRACKING_URI": store, "MLFLOW_ALLOW_FILE_STORE": "true"}

    def track() -> None:
        for name in ("tensorboard", "mlflow"):
            done = rayasd("track", run, "--to", name, **server)
            assert done.returncode == 0, done.stdout + done.stderr
            assert "1 finished training in" in done.stdout

    assert rayasd(*command).returncode == 0
    track()
    (events,) = (run / "tensorboard/both/fan/seed=0").iterdir()
    os.truncate(events, events.stat().st_size - 7)  # as a kill would leave it
    track()
    assert read_events(events.parent)["training/loss"] == losses(run)
    assert read_events(run / "tensorboard/both")["result/development"] == [(0, pytest.approx(development(run)))]

    changed = rayasd(*command, "--set", "exposure.epochs=2", "--accept-changes")
    assert changed.returncode == 0, changed.stdout + changed.stderr
    track()
    assert read_events(events.parent)["training/loss"] == losses(run)
    assert len(losses(run)) == 2

    for name, value in server.items():
        monkeypatch.setenv(name, value)
    from mlflow import MlflowClient

    client = MlflowClient()
    (experiment,) = [e for e in client.search_experiments() if e.name == "o_brien_s run"]
    trained = [r for r in client.search_runs([experiment.experiment_id]) if "seed" in r.info.run_name]
    closed = {r.info.run_id: r.info.end_time for r in trained}
    track()
    assert {r: client.get_run(r).info.end_time for r in closed} == closed  # what is over stays as it was
    found = client.search_runs([experiment.experiment_id])
    trained = {r.data.params["exposure.epochs"]: r for r in found if r.info.run_name == "fan both seed 0"}
    for epochs in ("3", "2"):
        steps = [metric.step for metric in client.get_metric_history(trained[epochs].info.run_id, "loss")]
        assert steps == list(range(1, int(epochs) + 1))
        assert trained[epochs].info.status == "FINISHED"
    (result,) = [r for r in found if r.info.run_name == "result both"]
    assert result.data.metrics["development"] == development(run)
    assert [artifact.path for artifact in client.list_artifacts(result.info.run_id)] == ["leaderboard.md"]

    with socket.socket() as listening:  # nobody listens on this port
        listening.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        away = rayasd("track", run, "--to", "mlflow", MLFLOW_TRACKING_URI=address)
    assert away.returncode == 1
    assert "not all is in mlflow" in away.stderr


def test_a_tracker_that_cannot_be_used_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UserError, match="set MLFLOW_TRACKING_URI"):
        open_tracker("mlflow", RunDirectory(tmp_path))
    monkeypatch.setattr(handover, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'rayasd\[tensorboard\]'"):
        open_tracker("tensorboard", RunDirectory(tmp_path))


class Recorded(Tracker):
    """Remembers what it is told; a training whose seed is refused fails."""

    def __init__(self, refused: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.refused = refused
        self.told: list[object] = []

    def begin(self, spec: UnitSpec) -> int | None:
        return None if spec.unit.seed == 9 else 0

    def log(self, unit: Unit, rows: Sequence[TrackedRow]) -> None:
        if unit.seed in self.refused:
            raise ConnectionError("http://user:secret@host:5000/api failed")
        self.told.append((unit.seed, len(rows)))

    def end(self, unit: Unit, how: str) -> None:
        self.told.append((unit.seed, how))

    def results(self, entries: Sequence[TrackedRow]) -> None:
        self.told.append("results")


def store_of(tmp_path: Path, states: dict[int, State], monkeypatch: pytest.MonkeyPatch, holders: Sequence[object] = ()):
    """A run of trainings by seed, each with an epoch in its history."""
    units = {Unit("train", "both", "fan", seed): state for seed, state in states.items()}
    paths = RunDirectory(tmp_path)
    for unit in units:
        paths.history(unit).parent.mkdir(parents=True, exist_ok=True)
        paths.history(unit).write_text('{"epoch": 1, "loss": 0.5}\n')
    monkeypatch.setattr(handover, "survey", lambda *_, **__: SimpleNamespace(states=units))
    specs = {unit: SimpleNamespace(unit=unit) for unit in units}
    return SimpleNamespace(paths=paths, states=units, specs=lambda: specs, holders=lambda: holders)


def test_a_training_that_cannot_be_handed_over_keeps_no_other_and_passwords_stay_secret(tmp_path: Path, monkeypatch):
    tracker = Recorded(refused=(0, 1, 2))
    store = store_of(tmp_path, dict.fromkeys([0, 1, 2, 3, 4, 9], State.DONE), monkeypatch)
    assert hand_over(store, tracker) == "ConnectionError: http://host:5000/api failed"
    assert tracker.told == []  # three failures: the server may be away
    hand_over(store, tracker)
    assert tracker.told == [(3, 1), (3, "done"), (4, 1), (4, "done")]
    tracker.refused = ()
    assert hand_over(store, tracker) is None
    assert {seed for seed, _ in tracker.told} == {0, 1, 2, 3, 4}  # 9 was closed before


def test_a_training_is_followed_from_its_beginning_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tracker = Recorded()
    store = store_of(tmp_path, {0: State.WAITING}, monkeypatch, holders=[{}])
    unit = next(iter(store.specs()))
    hand_over(store, tracker)  # its history is an earlier training's
    assert tracker.told == []
    store.paths.progress(unit).write_text('{"total": 3}')
    hand_over(store, tracker)
    hand_over(store, tracker)
    store.paths.history(unit).write_text('{"epoch": 1, "loss": 0.5}\n{"epoch": 2, "loss": 0.5}\n')
    store.states[unit] = State.FAILED
    hand_over(store, tracker)
    assert tracker.told == [(0, 1), (0, 1), (0, "failed")]
    assert tracker.closed == {unit}


def test_an_event_file_that_was_cut_while_it_was_written_is_whole_in_the_end(tmp_path: Path, monkeypatch):
    from rayasd.tracking import tensorboard

    tracker = tensorboard.TensorBoard(RunDirectory(tmp_path))
    spec = SimpleNamespace(unit=Unit("train", "both", "fan", 0), identity="a" * 64)
    history = [{"epoch": n, "loss": 1.0 / n} for n in range(1, 6)]
    write = tensorboard._write

    def full(writer, group, row, step) -> None:
        if step > 2:
            raise OSError(28, "No space left on device")
        write(writer, group, row, step)

    tracker.follow(spec, [], None)
    monkeypatch.setattr(tensorboard, "_write", full)
    with pytest.raises(OSError, match="No space"):
        tracker.follow(spec, history, None)
    monkeypatch.setattr(tensorboard, "_write", write)
    tracker.follow(spec, history, "done")
    events = read_events(tmp_path / "tensorboard/both/fan/seed=0")["training/loss"]
    assert events == [(n, pytest.approx(1.0 / n)) for n in range(1, 6)]


def test_watching_ends_when_nobody_works_on_the_run(tmp_path: Path, rayasd: Rayasd, monkeypatch: pytest.MonkeyPatch):
    holders = iter([[{"silent": 0.0}], [{"silent": 0.0}], []])
    problems = iter(["the server is away", "the server is away", None])
    store = SimpleNamespace(paths=None, manifest=dict, holders=lambda: next(holders))
    monkeypatch.setattr("rayasd.sweep.store.RunStore", lambda run: store)
    monkeypatch.setattr(handover, "open_tracker", lambda *_: SimpleNamespace(closed=[1, 2], place="a place"))
    monkeypatch.setattr(handover, "hand_over", lambda *_: next(problems))
    monkeypatch.setattr("rayasd.cli.status.time", SimpleNamespace(monotonic=lambda: 0.0, sleep=lambda _: None))
    done = rayasd("track", tmp_path, "--watch")
    assert (done.returncode, done.stdout) == (0, "2 finished trainings in a place\n")
    assert done.stderr == "tensorboard: the server is away; trying again\n"
