"""Runs on an MLflow server: one per training, one per ranked system."""

import os
import re
import time
from collections.abc import Sequence
from functools import cached_property

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run

from rayasd.files import digest
from rayasd.nested import flatten
from rayasd.tracking.tracker import TrackedRow, Tracker, metrics
from rayasd.unit import RunDirectory, Unit, UnitSpec

_MAX_RUNS = 50_000  # that a server lists at once
_LONGEST_VALUE = 500
_RESULT = "result"
_STATUS = {"done": "FINISHED", "failed": "FAILED"}


class MLflow(Tracker):
    """Writes to $MLFLOW_TRACKING_URI; experiment $MLFLOW_EXPERIMENT_NAME, else of the run directory's name."""

    def __init__(self, paths: RunDirectory) -> None:
        super().__init__()
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # rayasd track tries again
        self._paths = paths
        self._key = digest(str(paths.root))
        self._client = MlflowClient()
        self.place = "MLflow"
        self._ids: dict[Unit, str] = {}

    def begin(self, spec: UnitSpec) -> int | None:
        """Find the training's run or make one, with its configuration as parameters."""
        found = self._known.get((str(spec.unit), spec.identity))
        if found is not None:
            self._ids[spec.unit] = found.info.run_id
            if found.info.status == _STATUS["done"]:
                return None
            if found.info.status != "RUNNING":
                self._client.update_run(found.info.run_id, status="RUNNING")
            return max((m.step for m in self._client.get_metric_history(found.info.run_id, "loss")), default=0)
        run = self._create(str(spec.unit).removeprefix("train "), str(spec.unit), spec.identity)
        self._known[str(spec.unit), spec.identity] = run
        self._ids[spec.unit] = run.info.run_id
        settings = flatten({k: v for k, v in spec.config.as_dict().items() if k != "variants"})
        params = [Param(key, str(value)[:_LONGEST_VALUE]) for key, value in settings.items()]
        self._client.log_batch(run.info.run_id, params=params)
        return 0

    def log(self, unit: Unit, rows: Sequence[TrackedRow]) -> None:
        """Add a metric for each number of an epoch."""
        found = [(row["epoch"], metrics(row)) for row in rows]
        self._log(self._ids[unit], [(tag, value, step) for step, row in found for tag, value in row.items()])

    def end(self, unit: Unit, how: str) -> None:
        """Close the training's run."""
        self._client.set_terminated(self._ids[unit], status=_STATUS[how])

    def results(self, entries: Sequence[TrackedRow]) -> None:
        """Write each system's scores as metrics of a run, with the leaderboard beside."""
        for old in self._search():
            if old.data.tags["rayasd.unit"] == _RESULT:
                self._client.delete_run(old.info.run_id)
        for entry in entries:
            new = self._create(f"result {entry['variant']}", _RESULT, "")
            self._log(new.info.run_id, [(tag, value, 0) for tag, value in metrics(entry).items()])
            for tag in ("detector", "pooling"):
                self._client.set_tag(new.info.run_id, tag, entry[tag])
            self._client.log_artifact(new.info.run_id, str(self._paths.leaderboard("md")))
            self._client.set_terminated(new.info.run_id)

    @cached_property
    def _experiment(self) -> str:
        name = re.sub("[\"'`]", "_", os.environ.get("MLFLOW_EXPERIMENT_NAME", self._paths.root.name))
        known = self._client.get_experiment_by_name(name)
        return known.experiment_id if known else self._client.create_experiment(name)

    @cached_property
    def _known(self) -> dict[tuple[str, str], Run]:
        """Runs of our trainings, by unit and identity."""
        return {(run.data.tags["rayasd.unit"], run.data.tags["rayasd.identity"]): run for run in self._search()}

    def _search(self) -> list[Run]:
        """Find all runs of this run directory; by a digest, since paths may hold what a filter cannot."""
        key = f"tags.`rayasd.key` = '{self._key}'"
        return list(self._client.search_runs([self._experiment], key, max_results=_MAX_RUNS))

    def _create(self, name: str, what: str, identity: str) -> Run:
        tags = {"rayasd.key": self._key, "rayasd.run": str(self._paths.root), "rayasd.unit": what}
        return self._client.create_run(self._experiment, run_name=name, tags=tags | {"rayasd.identity": identity})

    def _log(self, run_id: str, numbers: Sequence[tuple[str, float, int]]) -> None:
        moment = int(time.time() * 1000)
        self._client.log_batch(run_id, metrics=[Metric(tag, value, moment, step) for tag, value, step in numbers])
