"""``rayasd launch``: a Ray cluster of a job's own, for the time of one command."""

import os
from pathlib import Path
from typing import Any

import click

from rayasd.cli.options import DASHBOARD_HOST, FOLDER, TEMP_DIR


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--job", help="Name that all launchers of this job share; default from Slurm, OpenMPI or MPICH.")
@click.option("--rank", type=click.IntRange(min=0), help="This launcher's rank; the head, rank 0, runs the command.")
@click.option("--size", type=click.IntRange(min=1), help="Number of launchers of the job, one per node.")
@click.option("--node-address", "address",
              help="IPv4 address or interface (ib0) of this node; default: the address of its host name.")  # fmt: skip
@click.option("--cpus", type=click.IntRange(min=1), help="CPUs of this node; default: Slurm's, else all usable.")
@click.option("--gpus", type=click.IntRange(min=0), help="GPUs of this node; default: Slurm's, else all visible.")
@click.option("--wait", "wait_seconds", type=click.FloatRange(min=0), default=120.0, show_default=True,
              help="Seconds to wait for all nodes.")  # fmt: skip
@click.option("--min-nodes", type=click.IntRange(min=1), default=1, show_default=True,
              help="Continue if at least this many nodes come.")  # fmt: skip
@click.option("--meet", "folder", type=FOLDER, default=Path(),
              help="Folder that all nodes see, where launchers meet; default: the current folder.")  # fmt: skip
@DASHBOARD_HOST
@TEMP_DIR
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def launch(
    command: tuple[str, ...], folder: Path, temp_root: Path, wait_seconds: float, min_nodes: int, dashboard_host: str,
    **place: Any,
) -> None:  # fmt: skip
    """Run a rayasd COMMAND on a Ray cluster of a job's nodes.

    Start it once on every node of the job.

    \b
        srun --ntasks-per-node=1 rayasd launch -- sweep --data /scratch/dcase --run-dir runs/night
        mpirun -np 2 --map-by ppr:1:node rayasd launch -- sweep --data /scratch/dcase
        rayasd launch --job night --rank 0 --size 2 -- sweep --data /scratch/dcase    # and rank 1 on the other
    """
    from rayasd.cluster.launch import launch as run
    from rayasd.cluster.placement import find_placement

    placement = find_placement(os.environ, **place)
    folder, temp_root = folder.absolute(), temp_root.absolute()
    raise SystemExit(run(placement, command, os.environ, folder=folder, temp_root=temp_root,
                         wait_seconds=wait_seconds, min_nodes=min_nodes, dashboard_host=dashboard_host))  # fmt: skip
