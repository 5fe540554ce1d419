"""``rayasd status``, ``stop``, ``dashboard`` and ``track``: a run followed from any host, by its files alone."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rayasd.cli.options import RUN, output_format
from rayasd.errors import UserError
from rayasd.printing import printable, tell

if TYPE_CHECKING:
    from rayasd.sweep.states import Sweep
    from rayasd.sweep.store import RunStore

_LOOK_SECONDS, _TRACK_SECONDS = 2.0, 5.0
_PAUSE_FACTOR = 20  # times as long as a look took: a large run on a slow file system takes long to read


@click.command()
@RUN
@click.option("--watch", is_flag=True,
              help="Repeat every 2 seconds (for a large run less often) until no process works on RUN.")  # fmt: skip
@output_format("table", "json")
def status(run: Path, watch: bool, form: str) -> None:
    """Show the progress of RUN.

    Prints which process drives it, what runs where, and what failed. It reads only files, so it works on any host.

    \b
        rayasd status runs/night --watch
        rayasd status runs/night --format json | jq .states
    """
    from rayasd.cli.display import wide_console
    from rayasd.sweep.lock import GONE_SECONDS
    from rayasd.sweep.store import RunStore

    store, console = RunStore(run), wide_console()
    while True:
        began = time.monotonic()
        state, sweep = _look(store)
        took = time.monotonic() - began
        if form == "json":
            tell(json.dumps(state))
        else:
            if watch and console.is_terminal:
                console.clear()
            _show(state, sweep)
        if not (watch and any(holder["silent"] < 2 * GONE_SECONDS for holder in state["holders"])):
            return
        time.sleep(max(_LOOK_SECONDS, _PAUSE_FACTOR * took))


@click.command()
@RUN
@click.option("--wait", "wait_seconds", type=click.FloatRange(min=0), default=0.0, metavar="SECONDS",
              help="Wait up to this long until no process works on RUN.")  # fmt: skip
def stop(run: Path, wait_seconds: float) -> None:
    """Stop a RUN; the same sweep command continues it.

    Units save at the end of their epoch, and the sweep exits with 77. Batch scripts do not put the job back in the
    queue.

    \b
        rayasd stop runs/first --wait 120
    """
    from rayasd.sweep.store import RunStore

    store = RunStore(run)
    store.manifest()
    if not store.holders():
        raise UserError(f"no process works on {store.paths.root}")
    store.stop()
    until = time.monotonic() + wait_seconds
    while (holders := store.holders()) and time.monotonic() < until:
        time.sleep(0.2)
    tell("stopped" if not holders else "asked to stop: rayasd status shows the progress")


@click.command()
@RUN
@click.option("--with-prometheus", is_flag=True,
              help="Also run Prometheus for the metrics of RUN, until Ctrl-C; on the sweep's head node.")  # fmt: skip
def dashboard(run: Path, with_prometheus: bool) -> None:
    """Print how to reach the Ray dashboard of RUN.

    It prints the tunnel's command, the address and the token, for each process that works on RUN by Ray.

    \b
        rayasd dashboard runs/night
        rayasd dashboard runs/night --with-prometheus
    """
    from rayasd.cluster.metrics import ADDRESS, run_prometheus
    from rayasd.sweep.store import RunStore, dashboards

    store = RunStore(run)
    store.manifest()
    found = dashboards(store.holders(), store.events())
    if not found:
        raise UserError(f"nobody works on {store.paths.root} by Ray: a dashboard ends with its job")
    for place in found:
        if "tunnel" in place:
            tell(f"on your machine  {place['tunnel']}")
        tell(f"in a browser     {place['address']}")
        if "token" in place:
            token = Path(place["token"])
            tell(f"token            {token.read_text().strip() if token.is_file() else f'in {token}'}")
    if with_prometheus:
        tell(f"Prometheus       http://{ADDRESS} until Ctrl-C; for Ray's page Metrics, a Grafana that uses it, and "
             "RAY_GRAFANA_HOST and RAY_GRAFANA_IFRAME_HOST where the sweep starts")  # fmt: skip
        run_prometheus([place["metrics"] for place in found if "metrics" in place])


@click.command()
@RUN
@click.option("--to", "name", type=click.Choice(["tensorboard", "mlflow"]), default="tensorboard", show_default=True,
              help="tensorboard: files in RUN/tensorboard; mlflow: the server at $MLFLOW_TRACKING_URI.")  # fmt: skip
@click.option("--watch", is_flag=True, help="Continue until no process works on RUN.")
def track(run: Path, name: str, watch: bool) -> None:
    """Copy trainings and results of RUN to TensorBoard or MLflow.

    Works during a sweep or after it. The same command adds what is missing.

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
        time.sleep(max(_TRACK_SECONDS, _PAUSE_FACTOR * (time.monotonic() - began)))
    if problem:
        tell(f"not all is in {name} ({problem}): the same command adds what is missing", err=True)
        raise SystemExit(1)
    tell(f"{counted(len(tracker.closed), 'finished training')} in {tracker.place}")


def _look(store: "RunStore") -> tuple[dict[str, Any], "Sweep"]:
    from rayasd.sweep.states import State, read_progress, survey
    from rayasd.sweep.store import dashboards

    specs = store.specs()
    holders = store.holders()
    sweep = survey(specs, set(specs), retry_failed=False)
    for unit in sweep.units(State.WAITING):
        if holders and store.paths.progress(unit).exists():
            sweep.move(unit, State.RUNNING)
    events = store.events()
    state = {
        "run": str(store.paths.root),
        "holders": holders,
        "states": {state.value: sweep.count(state) for state in State},
        "running": [{"unit": str(unit), **progress} for unit, progress in read_progress(store.paths, sweep).items()],
        "failed": [{"unit": str(unit), "reason": sweep.reasons[unit]} for unit in sweep.units(State.FAILED)],
        "dashboards": dashboards(holders, events),
        "last_event": events[-1] if events else None,
    }
    return state, sweep


def _show(state: dict[str, Any], sweep: "Sweep") -> None:
    from rich.text import Text

    from rayasd.cli.display import counts, print_failures, running_table, wide_console
    from rayasd.sweep.lock import GONE_SECONDS
    from rayasd.sweep.states import State

    console = wide_console()
    for holder in state["holders"]:
        who = f"process {holder['pid']} on {holder['host']} since {holder['since']}"
        quiet = f", silent for {holder['silent']:.0f} s" if holder["silent"] > GONE_SECONDS else ""
        console.print(Text(f"{state['run']}: driven by {printable(who)}{quiet}"), soft_wrap=True)
    for place in state["dashboards"]:
        console.print(Text(f"dashboard {place['address']}; rayasd dashboard prints how to reach it"), soft_wrap=True)
    if not state["holders"]:
        console.print(Text(f"{state['run']}: no process works on it"), soft_wrap=True)
    if running := sweep.units(State.RUNNING):
        console.print(running_table(dict(zip(running, state["running"], strict=True))))
    console.print(counts(sweep), style="bold", highlight=False)
    print_failures(console, sweep, list(sweep.states))
    if event := state["last_event"]:
        what = " ".join(str(event[key]) for key in ("time", "event", "unit", "reason") if key in event)
        console.print(Text(f"last: {printable(what)}", style="dim"), soft_wrap=True)
