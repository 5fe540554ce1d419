"""``rayasd track``: a run's trainings and results in TensorBoard or MLflow, from the run's files alone."""

import time
from pathlib import Path

import click

from rayasd.cli.options import RUN
from rayasd.printing import tell

_LOOK_SECONDS = 5.0
_PAUSE_FACTOR = 20  # times as long as a look took: a large run on a slow file system takes long to read


@click.command()
@RUN
@click.option("--to", "name", type=click.Choice(["tensorboard", "mlflow"]), default="tensorboard", show_default=True,
              help="TensorBoard's files in RUN/tensorboard, or the server at $MLFLOW_TRACKING_URI.")  # fmt: skip
@click.option("--watch", is_flag=True, help="Continue until no process works on RUN.")
def track(run: Path, name: str, watch: bool) -> None:
    """Show the trainings and results of RUN in a tracker.

    Reads the run's files, during a sweep or after it. Run again, it adds what is missing.

    \b
        rayasd track runs/night
        rayasd track runs/night --to mlflow --watch
    """
    from rayasd.sweep.lock import GONE_SECONDS
    from rayasd.sweep.store import RunStore
    from rayasd.tracking.handover import hand_over, open_tracker
    from rayasd.wording import counted

    store = RunStore(run)
    store.manifest()
    tracker = open_tracker(name, store.paths)
    shown = None
    while True:
        began = time.monotonic()
        is_driven = any(holder["silent"] < 2 * GONE_SECONDS for holder in store.holders())
        problem = hand_over(store, tracker)
        if not (watch and is_driven):
            break
        if problem and problem != shown:
            tell(f"{name}: {problem}; trying again", err=True)
            shown = problem
        time.sleep(max(_LOOK_SECONDS, _PAUSE_FACTOR * (time.monotonic() - began)))
    if problem:
        tell(f"not all is in {name} ({problem}): the same command adds what is missing", err=True)
        raise SystemExit(1)
    tell(f"{counted(len(tracker.closed), 'finished training')} in {tracker.place}")
