"""``rayasd sweep`` and the commands that run one stage of a run: train, embed, detect."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rayasd.cli.options import GROUND_TRUTH, RUN, Execution, execution_options

if TYPE_CHECKING:
    from rayasd.stages import StageName


@click.command()
@click.option("--data", "source", type=click.Path(path_type=Path),
              help="Folder in a DCASE layout, or a manifest; default $RAYASD_DATA, then data/.")  # fmt: skip
@GROUND_TRUTH
@click.option("--on-bad-clip", type=click.Choice(["fail", "skip"]),
              help="A clip that cannot be used stops the sweep, or is left out and counted; default fail.")  # fmt: skip
@click.option("--machines", default="all", show_default=True, help="all, or some of those that the data hold: fan,pump")
@click.option("--preset", default="eusipco2022", show_default=True,
              help="eusipco2022, serial-oe, small, demo, or a TOML file.")  # fmt: skip
@click.option("--variants", default="both", show_default=True,
              help="Systems to compare, as the preset names them: both,untrained,statistics")  # fmt: skip
@click.option("--seeds", default="0", show_default=True, help="0,1,2 or 0-4")
@click.option(
    "--detectors",
    help="knn,gmm-4,'sklearn.ensemble.IsolationForest(n_estimators=50)' …; default from the preset.",
)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one setting: exposure.epochs=50")
@click.option("--vary", metavar="KEY=V1,V2,…",
              help="A variant of each for each value, and a curve: exposure.real_anomalies=0,1,2,4")  # fmt: skip
@click.option("--run-dir", type=click.Path(path_type=Path, file_okay=False), default=Path("runs/default"),
              show_default=True, help="Where results go; a run that is there goes on.")  # fmt: skip
@click.option("--accept-changes", is_flag=True, help="Go on in a run of another configuration; redo what that changes.")
@click.option("--dry-run", is_flag=True, help="Print units, resources and disk, and start nothing.")
@click.option("--simulate", metavar="KEY=VALUE,…",
              help="With --dry-run: how long on nodes=128,gpus-per-node=8 (docs/scaling.md).")  # fmt: skip
@click.option("--set-up-only", is_flag=True, help="Decode and write the plan; train, embed, detect do the rest.")
@click.option("--only", metavar="MACHINES",
              help="Do these machines alone, of a run that is set up; other commands may do the rest.")  # fmt: skip
@execution_options
def sweep(**options: Any) -> None:
    """From recordings to a leaderboard: train, embed, detect, rank.

    Running the same command again goes on where it stopped.

    \b
        rayasd sweep --machines all --data ROOT --preset demo
        rayasd sweep --preset serial-oe --seeds 0-3 --variants both,no-mixup --run-dir runs/ablation
        rayasd sweep --machines fan,pump --set exposure.epochs=50 --dry-run
        rayasd sweep --vary exposure.real_anomalies=0,1,2,4,8,16,32 --run-dir runs/few-anomalies
    """
    from rayasd.cli.sweeping import run_sweep

    execution = Execution.taken_from(options)
    raise SystemExit(_run(execution, lambda: run_sweep(**options, execution=execution, command=sys.argv)))


def _run(execution: Execution, command: Callable[[], int]) -> int:
    """Run a command here, or on rank 0 of an MPI job while the other ranks work for it."""
    if execution.executor != "mpi":
        return command()
    from rayasd.sweep.executors.mpi import on_rank_0

    return on_rank_0(command)


def _stage_command(stage: "StageName", text: str, example: str) -> click.Command:
    @click.command(stage, help=f"{text}\n\n\b\n    rayasd {stage} runs/first {example}")
    @RUN
    @click.option("--machines", default="all", show_default=True,
                  help="all, or some; others may be done by another command at the same time.")  # fmt: skip
    @execution_options
    def command(run: Path, machines: str, **options: Any) -> None:
        from rayasd.cli.sweeping import run_stages

        execution = Execution.taken_from(options)
        raise SystemExit(_run(execution, lambda: run_stages(run, (stage,), machines, execution)))

    return command


train = _stage_command("train", "Train what is missing of RUN's extractors.", "--machines fan,pump")
embed = _stage_command("embed", "Embed what is missing of RUN. Its extractors must stand.", "--executor local")
detect = _stage_command(
    "detect", "Fit and apply what is missing of RUN's inlier models. Its embeddings must stand.", "--retry-failed"
)
