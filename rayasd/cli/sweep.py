"""``rayasd sweep`` and the commands that run one stage of a run: train, embed, detect."""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rayasd.cli.options import FOLDER, GROUND_TRUTH, PATH, RUN, TRUST, chosen_execution, execution_options
from rayasd.errors import EXIT_STOPPED, RunStopped, UserError
from rayasd.printing import tell
from rayasd.study.execution import Execution

if TYPE_CHECKING:
    from rayasd.cli.screen import Screen
    from rayasd.stages import StageName
    from rayasd.study.study import Study


@click.command()
@click.option("--data", "source", type=PATH,
              help="Folder in a DCASE layout, or a manifest; default $RAYASD_DATA, then data/.")  # fmt: skip
@GROUND_TRUTH
@click.option("--on-bad-clip", type=click.Choice(["fail", "skip"]),
              help="Stop at an unusable clip, or leave it out and count it; default: fail.")  # fmt: skip
@click.option("--machines", default="all", show_default=True, help="all, or some machine types: fan,pump")
@click.option("--preset",
              help="eusipco2022 (default), recommended, serial-oe, small, demo, or a TOML file.")  # fmt: skip
@click.option("--variants", help="Systems of the preset to compare: both,untrained,statistics; "
                                  "default: the preset's first.")  # fmt: skip
@click.option("--seeds", default="0", show_default=True, help="Seeds: 0,1,2 or 0-4")
@click.option(
    "--detectors", help="knn,gmm-4,'sklearn.ensemble.IsolationForest(n_estimators=50)'; default: the preset's."
)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one setting: exposure.epochs=50")
@click.option("--vary", metavar="KEY=V1,V2,…",
              help="Run one variant per value and plot a curve: exposure.real_anomalies=0,1,2,4")  # fmt: skip
@click.option("--run-dir", type=FOLDER, default=Path("runs/default"),
              show_default=True, help="Folder for results; a run that exists continues.")  # fmt: skip
@click.option("--accept-changes", is_flag=True,
              help="Continue a run whose configuration or data differ, and redo what that changes.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Print units, resources and disk, and start nothing.")
@click.option("--simulate", metavar="KEY=VALUE,…",
              help="With --dry-run: estimate the time on nodes=128,gpus-per-node=8 (docs/scaling.md).")  # fmt: skip
@click.option("--set-up-only", is_flag=True,
              help="Only decode clips and write the plan; then use train, embed and detect, or --only.")  # fmt: skip
@click.option("--only", metavar="MACHINES|K/N",
              help="Do these machines, or the K-th of N shares, of a run that is set up.")  # fmt: skip
@click.option("--trust", is_flag=True, help="Allow a run directory that belongs to another user.")
@execution_options
def sweep(**options: Any) -> None:
    """From recordings to a leaderboard: train, embed, detect, rank.

    Also writes report.html. The same command continues where it stopped.

    \b
        rayasd sweep --machines all --data ROOT --preset demo
        rayasd sweep --preset serial-oe --seeds 0-3 --variants both,no-mixup --run-dir runs/ablation
        rayasd sweep --machines fan,pump --set exposure.epochs=50 --dry-run
        rayasd sweep --vary exposure.real_anomalies=0,1,2,4,8,16,32 --run-dir runs/few-anomalies
    """
    execution = chosen_execution(options)
    raise SystemExit(_on_rank_0(execution, lambda: _sweep(execution, **options)))


def _sweep(
    execution: Execution, *, source: Path | None, ground_truth: Path | None, on_bad_clip: str | None, machines: str,
    preset: str | None, variants: str | Sequence[str] | None, seeds: str, detectors: str | None,
    overrides: Sequence[str], vary: str | None, run_dir: Path, accept_changes: bool, dry_run: bool,
    simulate: str | None, set_up_only: bool, only: str | None, trust: bool,
) -> int:  # fmt: skip
    tell("Looking at the data …")  # before imports and listing, which take seconds
    from rayasd import presets
    from rayasd.cli.display import wide_console
    from rayasd.cli.dry_run import DryRun, Simulation
    from rayasd.cli.screen import Screen
    from rayasd.study.choices import choose_variants
    from rayasd.study.notes import kept_by_variants
    from rayasd.study.study import Study

    if simulate is not None and not dry_run:
        raise UserError("--simulate goes with --dry-run")
    if dry_run and set_up_only:
        raise UserError("--dry-run starts nothing: leave --set-up-only out")
    if only is not None and (dry_run or set_up_only):
        raise UserError(f"--only does not go with {'--dry-run' if dry_run else '--set-up-only'}")
    simulation = None if simulate is None else Simulation.parse(simulate)
    short = {"inlier.detectors": detectors, "data.on_bad_clip": on_bad_clip}
    asked = [*overrides, *(f"{name}={value}" for name, value in short.items() if value is not None)]
    config = presets.load(preset or "eusipco2022", asked)
    if vary is not None:
        chosen = choose_variants(variants, config)
        config, variants = presets.varied(config, chosen, *presets.parse_values(vary))
    study = Study(config=config, data=source, run_dir=run_dir, machines=machines, variants=variants, seeds=seeds,
                  ground_truth=ground_truth, command=sys.argv, trust=trust)  # fmt: skip
    for line in kept_by_variants(config, study.variants, presets.parse_overrides(asked)):
        tell(line)
    if preset is None and any(each.learns for each in study.configs.values()):
        tell("note     the default preset, eusipco2022, is for GPUs; --preset recommended is faster")
    screen = Screen(wide_console(), execution.grace)
    if dry_run:
        dry = DryRun(study, execution)
        dry.print_plan(screen.console)
        if simulation is not None:
            dry.simulate(screen.console, simulation)
    elif set_up_only:
        study.set_up(cache=execution.cache, accept_changes=accept_changes, watcher=screen)
        screen.say(f"set up: {study.store.paths.root}, machines {', '.join(study.plan.machines)}")
    else:
        return _run(study, execution, screen, only=only, accept_changes=accept_changes)
    return 0


def _run(study: "Study", execution: Execution, screen: "Screen", **what: Any) -> int:
    """Run a study; returns the exit code."""
    try:
        return screen.exit_code(study.run(execution, watcher=screen, **what))
    except RunStopped:  # which the screen has shown
        if "RAY_ADDRESS" in os.environ:
            from rayasd.cluster.job import leave_stopped

            leave_stopped()
        return EXIT_STOPPED


def _on_rank_0(execution: Execution, command: Callable[[], int]) -> int:
    """Run a command here, or on rank 0 of an MPI job while the other ranks work for it."""
    if execution.executor != "mpi":
        return command()
    from rayasd.sweep.executors.mpi import on_rank_0

    return on_rank_0(command) or 0


def _stage_command(stage: "StageName", text: str, example: str) -> click.Command:
    @click.command(stage, help=f"{text}\n\n\b\n    rayasd {stage} runs/first {example}")
    @RUN
    @click.option("--machines", default="all", show_default=True,
                  help="all, or some: another command may do others at the same time.")  # fmt: skip
    @TRUST
    @execution_options
    def command(run: Path, machines: str, trust: bool, **options: Any) -> None:
        execution = chosen_execution(options)
        stages: list[StageName] = [stage, "detect"] if options.get("detect") else [stage]
        only = None if machines == "all" else machines
        raise SystemExit(_on_rank_0(execution, lambda: _run_stages(run, stages, only, execution, trust)))

    return command


def _run_stages(run: Path, stages: "Sequence[StageName]", only: str | None, execution: Execution, trust: bool) -> int:
    from rayasd.cli.display import wide_console
    from rayasd.cli.screen import Screen
    from rayasd.study.study import Study

    screen = Screen(wide_console(), execution.grace)
    return _run(Study.open(run, trust=trust), execution, screen, stages=stages, only=only)


train = _stage_command("train", "Train missing networks of RUN.", "--machines fan,pump")
embed = click.option("--detect", is_flag=True, help="Also fit and apply missing inlier models.")(
    _stage_command("embed", "Compute missing embeddings of RUN. Its networks must be trained.", "--executor local")
)
detect = _stage_command(
    "detect", "Fit and apply missing inlier models of RUN. Its embeddings must be complete.", "--retry-failed"
)
