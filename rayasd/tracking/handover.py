"""Fills trackers from a run's files, as ``rayasd status`` reads them."""

import json
import os
import re
from contextlib import suppress
from importlib.util import find_spec
from typing import Any

from rayasd.errors import UserError, one_line
from rayasd.files import read_record
from rayasd.parquet import read_parquet
from rayasd.sweep.states import State, survey
from rayasd.sweep.store import RunStore
from rayasd.tracking.tracker import Tracker
from rayasd.unit import RunDirectory, Unit

_MAX_FAILURES = 3  # per call of hand_over: the server does not answer


def open_tracker(name: str, paths: RunDirectory) -> Tracker:
    """Open tensorboard or mlflow.

    Raises UserError: its package is not installed, or the address of its server is not set.
    """
    if find_spec("tensorboardX" if name == "tensorboard" else name) is None:
        raise UserError(f"--to {name} needs a package: pip install 'rayasd[{name}]'")
    if name == "tensorboard":
        from rayasd.tracking.tensorboard import TensorBoard

        return TensorBoard(paths)
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        raise UserError("--to mlflow: set MLFLOW_TRACKING_URI to your server, such as http://host:5000")
    from rayasd.tracking.mlflow import MLflow

    return MLflow(paths)


def hand_over(store: RunStore, tracker: Tracker) -> str | None:
    """Hand over what a tracker lacks; returns the last problem. What fails comes last in the next call."""
    problem, paths = None, store.paths
    specs, is_driven = store.specs(), bool(store.holders())
    sweep = survey(specs, set(specs), retry_failed=False)
    try:
        board = paths.leaderboard("parquet")
        if board.exists() and (time := board.stat().st_mtime_ns) != tracker.leaderboard_time:
            tracker.results(read_parquet(board, filters=[("rank", ">", 0)]).to_pylist())
            tracker.leaderboard_time = time
    except Exception as error:
        problem = _problem(error)
    trainings = [unit for unit in specs if unit.stage == "train" and unit not in tracker.closed]
    failed_before, tracker.failed = tracker.failed, set()
    for unit in sorted(trainings, key=failed_before.__contains__):
        ended = sweep.states[unit].value if sweep.states[unit] in (State.DONE, State.FAILED) else None
        if not ended and not (is_driven and read_record(paths.progress(unit)).get("total")):
            continue  # not begun: its history, if any, is an earlier training's
        try:
            tracker.follow(specs[unit], _history(paths, unit), ended)
        except Exception as error:  # this training must not keep back the others
            problem = _problem(error)
            tracker.failed.add(unit)
            if len(tracker.failed) == _MAX_FAILURES:
                break
    return problem


def _history(paths: RunDirectory, unit: Unit) -> list[dict[str, Any]]:
    with suppress(FileNotFoundError):
        return [json.loads(line) for line in paths.history(unit).read_text().splitlines()]
    return []


def _problem(error: Exception) -> str:
    text = re.sub(r"//[^/@\s]*@", "//", str(error))  # an address may hold a password
    return f"{type(error).__name__}: {one_line(text)}"
