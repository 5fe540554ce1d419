"""Trainings and results in trackers: each epoch once, whatever happens in between."""

import json
import socket
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rayasd.errors import UserError
from rayasd.tracking.following import check_trackers
from tests.conftest import Rayasd, small_sweep

pytestmark = pytest.mark.slow


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


def test_trackers_hold_every_epoch_once_and_the_ranked_systems(tree: Path, tmp_path: Path, rayasd: Rayasd, monkeypatch):
    run, store = tmp_path / "run", f"file:{tmp_path}/mlruns"
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
    (experiment,) = [e for e in client.search_experiments() if e.name == "run"]
    found = client.search_runs([experiment.experiment_id])
    trained = {r.data.params["exposure.epochs"]: r for r in found if r.info.run_name == "fan both seed 0"}
    for epochs in ("3", "2"):
        steps = [metric.step for metric in client.get_metric_history(trained[epochs].info.run_id, "loss")]
        assert steps == list(range(1, int(epochs) + 1))
        assert trained[epochs].info.status == "FINISHED"
    (result,) = [r for r in found if r.info.run_name == "result both"]
    assert result.data.metrics["development"] == development(run)
    assert [artifact.path for artifact in client.list_artifacts(result.info.run_id)] == ["leaderboard.md"]


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
