"""Trainings and results in trackers: each epoch once, whatever happens in between."""

import json
import socket
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rayasd.errors import UserError
from rayasd.sweep.states import State
from rayasd.tracking.following import Tracking, check_trackers
from rayasd.tracking.tracker import Row, Tracker
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
    command = small_sweep(tree, run, "--machines", "fan", "--track", "tensorboard,mlflow")
    server = {"MLFLOW_TRACKING_URI": store, "MLFLOW_ALLOW_FILE_STORE": "true"}
    done = rayasd(*command, **server)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "not all is in" not in done.stdout
    (events,) = (run / "tensorboard/both/fan/seed=0").iterdir()
    assert read_events(events.parent)["training/loss"] == losses(run)
    with events.open("r+b") as file:  # as a kill would leave it
        file.truncate(events.stat().st_size - 7)
    assert rayasd(*command, **server).returncode == 0  # nothing to do but this
    assert read_events(events.parent)["training/loss"] == losses(run)
    assert read_events(run / "tensorboard/both")["result/development"] == [(0, pytest.approx(development(run)))]

    changed = rayasd(*command, "--set", "exposure.epochs=2", "--accept-changes", **server)
    assert changed.returncode == 0, changed.stdout + changed.stderr
    (other,) = (run / "tensorboard/both/fan/seed=0").iterdir()
    assert other.name != events.name
    assert read_events(other.parent)["training/loss"] == losses(run)
    assert len(losses(run)) == 2

    for name, value in server.items():
        monkeypatch.setenv(name, value)
    from mlflow import MlflowClient

    client = MlflowClient()
    (experiment,) = [e for e in client.search_experiments() if e.name == "o_brien_s run"]
    trained = [r for r in client.search_runs([experiment.experiment_id]) if "seed" in r.info.run_name]
    closed = {r.info.run_id: r.info.end_time for r in trained}
    assert len(closed) == 2
    assert rayasd(*command, "--set", "exposure.epochs=2", **server).returncode == 0
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


@pytest.mark.slow
def test_a_server_that_is_away_holds_no_sweep_up(tree: Path, tmp_path: Path, rayasd: Rayasd):
    with socket.socket() as closed:  # nobody listens on this port
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
        done = rayasd(*small_sweep(tree, tmp_path / "run", "--machines", "fan", "--track", "mlflow"),
                      MLFLOW_TRACKING_URI=address)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "not all is in mlflow" in done.stdout
    assert (tmp_path / "run/leaderboard.md").exists()


def test_a_tracker_that_cannot_be_used_is_refused(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    check_trackers(["tensorboard"])
    with pytest.raises(UserError, match="set MLFLOW_TRACKING_URI"):
        check_trackers(["mlflow"])
    with pytest.raises(UserError, match="did you mean 'tensorboard'"):
        check_trackers(["tensorbord"])
    monkeypatch.setattr("rayasd.tracking.following.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'rayasd\[tensorboard\]'"):
        check_trackers(["tensorboard"])


class Recorded(Tracker):
    """Remembers what it is told; a training whose seed is refused fails."""

    name = "recorded"

    def __init__(self, refused: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.refused = refused
        self.told: list[object] = []

    def begin(self, spec: UnitSpec) -> int | None:
        return None if spec.unit.seed == 9 else 0

    def log(self, unit: Unit, rows: Sequence[Row]) -> None:
        if unit.seed in self.refused:
            raise ConnectionError("http://user:secret@host:5000/api failed")
        self.told.append((unit.seed, len(rows)))

    def end(self, unit: Unit, how: str) -> None:
        self.told.append((unit.seed, how))

    def results(self, entries: Sequence[Row]) -> None:
        self.told.append("results")


def following(tmp_path: Path, seeds: Sequence[int]) -> Tracking:
    units = [Unit("train", "both", "fan", seed) for seed in seeds]
    paths = RunDirectory(tmp_path)
    for unit in units:
        paths.history(unit).parent.mkdir(parents=True)
        paths.history(unit).write_text('{"epoch": 1, "loss": 0.5}\n')
    specs = {unit: SimpleNamespace(unit=unit) for unit in units}
    sweep = SimpleNamespace(states=dict.fromkeys(units, State.DONE), specs=specs)
    return Tracking([], paths, sweep, units)  # type: ignore[arg-type]


def test_a_training_that_cannot_be_handed_over_keeps_no_other_and_passwords_stay_unsaid(tmp_path: Path):
    tracking, tracker = following(tmp_path, [0, 1, 2, 3, 4, 9]), Recorded(refused=(0, 1, 2))
    said = tracking._hand_over(tracker, last=False)
    assert said == "ConnectionError: http://host:5000/api failed"
    assert tracker.told == []  # three failures: the server may be away
    tracking._hand_over(tracker, last=False)
    assert tracker.told == [(3, 1), (3, "done"), (4, 1), (4, "done")]
    tracker.refused = ()
    assert tracking._hand_over(tracker, last=False) is None
    assert {seed for seed, _ in tracker.told} == {0, 1, 2, 3, 4}  # 9 was closed before


def test_a_tracker_that_cannot_be_made_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> None:
        raise ImportError("no such protobuf")

    monkeypatch.setattr("rayasd.tracking.following._tracker", fail)
    tracking = following(tmp_path, [0])
    tracking._names = ["mlflow"]
    tracking._closing.set()
    tracking._follow()
    assert tracking.problems == {"mlflow": "ImportError: no such protobuf"}


def test_an_event_file_that_was_cut_while_it_was_written_is_whole_in_the_end(tmp_path: Path, monkeypatch):
    from rayasd.tracking import tensorboard

    tracker = tensorboard.TensorBoard(RunDirectory(tmp_path))
    spec = SimpleNamespace(unit=Unit("train", "both", "fan", 0), identity="a" * 64)
    history = [{"epoch": n, "loss": 1.0 / n} for n in range(1, 6)]
    whole = tensorboard._append

    def cut(path: Path, events) -> None:
        whole(path, list(events)[:2])
        with path.open("ab") as file:
            file.write(b"half a record")
        raise OSError(28, "No space left on device")

    tracker.follow(spec, [], None)
    monkeypatch.setattr(tensorboard, "_append", cut)
    with pytest.raises(OSError, match="No space"):
        tracker.follow(spec, history, None)
    monkeypatch.setattr(tensorboard, "_append", whole)
    tracker.follow(spec, history, "done")
    events = read_events(tmp_path / "tensorboard/both/fan/seed=0")["training/loss"]
    assert events == [(n, pytest.approx(1.0 / n)) for n in range(1, 6)]
