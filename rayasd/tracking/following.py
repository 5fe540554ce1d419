"""Follows a sweep's trainings for its trackers, in a thread of its own: a slow or absent server holds nothing up."""

import json
import os
import re
from collections.abc import Collection, Sequence
from contextlib import suppress
from importlib.util import find_spec
from threading import Event, Thread
from typing import Any

from rayasd.errors import UserError, one_line, unknown
from rayasd.parquet import read_parquet
from rayasd.sweep.executors import Reported
from rayasd.sweep.states import State, Sweep
from rayasd.tracking.tracker import Tracker
from rayasd.unit import RunDirectory, Unit

TRACKERS = ("tensorboard", "mlflow")
_LOOK_SECONDS = 5.0
_MOST_FAILURES = 3  # of one round: the server is away


def check_trackers(names: Sequence[str]) -> None:
    """Make sure that these trackers can be used.

    Raises:
        UserError: no such tracker, its package is not installed, or nobody said where its server is.

    """
    for name in names:
        if name not in TRACKERS:
            raise unknown("tracker", name, TRACKERS)
        if find_spec(name) is None:
            raise UserError(f"--track {name} needs a package: pip install 'rayasd[{name}]'")
        if name == "mlflow" and not os.environ.get("MLFLOW_TRACKING_URI"):
            raise UserError("--track mlflow: set MLFLOW_TRACKING_URI to your server, such as http://host:5000")


class Tracking:
    """Hands a sweep's trainings, and at its end the ranked systems, to trackers by name.

    What a tracker could not take is said once, kept and offered again; a later sweep of the run, which may find nothing
    to do, hands over what is still missing.
    """

    def __init__(self, names: Sequence[str], paths: RunDirectory, sweep: Sweep, units: Collection[Unit]) -> None:
        """Follow those of the ``units`` that train; others may be another driver's."""
        self._names, self._paths, self._sweep = list(dict.fromkeys(names)), paths, sweep
        self._units = [unit for unit in units if unit.stage == "train"]
        self._running: Reported = {}
        self._closing = Event()
        self._with_results = False
        self.problems: dict[str, str] = {}
        """What each tracker that lacks something last complained of."""
        self._thread = Thread(target=self._follow, daemon=True)
        if names:
            self._thread.start()

    def update(self, running: Reported) -> None:
        """Take how far the running units are."""
        self._running = running

    def close(self, seconds: float, *, with_results: bool) -> None:
        """Hand over what has come since, and the leaderboard if there is one; gives up after some seconds."""
        self._with_results = with_results
        self._closing.set()
        if self._names:
            self._thread.join(seconds)
            if self._thread.is_alive():
                self.problems = dict.fromkeys(self._names, f"not done after {seconds:g} s") | self.problems

    def _follow(self) -> None:
        trackers: dict[str, Tracker] = {}
        last = False
        while not last:
            last = self._closing.wait(_LOOK_SECONDS)
            for name in self._names:
                try:
                    if name not in trackers:
                        trackers[name] = _tracker(name, self._paths)
                    problem = self._hand_over(trackers[name], last=last)
                except Exception as error:  # a tracker may fail in any way, and must not harm the sweep
                    problem = _said(error)
                others = {other: why for other, why in self.problems.items() if other != name}
                self.problems = others | ({name: problem} if problem else {})  # a new one: others read it meanwhile

    def _hand_over(self, tracker: Tracker, *, last: bool) -> str | None:
        """Hand over what is new; returns the last complaint. What failed comes last in the next round."""
        problem = None
        if last and self._with_results and self._paths.leaderboard("parquet").exists():
            board = read_parquet(self._paths.leaderboard("parquet"), filters=[("rank", ">", 0)])
            tracker.results(board.to_pylist())
        failed: list[Unit] = []
        for unit in list(self._units):
            state = self._sweep.states[unit]
            ended = state.value if state in (State.DONE, State.FAILED) else None
            if unit in tracker.ended or not (ended or self._running.get(unit, {}).get("total")):
                continue  # a history that stands before a training has begun is an earlier one's
            try:
                tracker.follow(self._sweep.specs[unit], self._history(unit), ended)
            except Exception as error:  # this one must not keep the others
                problem = _said(error)
                failed.append(unit)
                if len(failed) == _MOST_FAILURES:
                    break
        if failed:
            self._units = [unit for unit in self._units if unit not in set(failed)] + failed
        return problem

    def _history(self, unit: Unit) -> list[dict[str, Any]]:
        with suppress(FileNotFoundError):
            return [json.loads(line) for line in self._paths.history(unit).read_text().splitlines()]
        return []


def _said(error: Exception) -> str:
    text = re.sub(r"//[^/@\s]*@", "//", str(error))  # an address may hold a password
    return f"{type(error).__name__}: {one_line(text)}"


def _tracker(name: str, paths: RunDirectory) -> Tracker:
    if name == "tensorboard":
        from rayasd.tracking.tensorboard import TensorBoard

        return TensorBoard(paths)
    from rayasd.tracking.mlflow import MLflow

    return MLflow(paths)
