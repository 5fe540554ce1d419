"""Options and their values that several commands share."""

from collections.abc import Callable
from dataclasses import fields
from functools import reduce
from pathlib import Path
from typing import Any, get_args

import click

from rayasd.study.execution import DeviceName, Execution, ExecutorName

PATH = click.Path(path_type=Path)
FOLDER = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, dir_okay=False)

RUN = click.argument("run", type=FOLDER)
RUNS = click.argument("runs", nargs=-1, required=True, type=FOLDER)
GROUND_TRUTH = click.option(
    "--ground-truth", type=PATH,
    help="Folder of ground_truth_*.csv; default: ground_truth_data in or below the data's folder.",
)  # fmt: skip
CACHE = click.option(
    "--cache", type=FOLDER,
    help="Folder for decoded clips and features, shared by runs; default $RAYASD_CACHE, else ~/.cache/rayasd.",
)  # fmt: skip
DEVICE = click.option(
    "--device", type=click.Choice(get_args(DeviceName)), default=Execution.device, show_default=True,
    help="Device of the networks; auto: a GPU if there is one.",
)  # fmt: skip
TRUST = click.option("--trust", is_flag=True,
                     help="Run code that the run directory or the packed model names by import path.")  # fmt: skip
PART = click.option(
    "--part", type=click.Choice(["evaluation", "development"]),
    help="Sections whose scores are shown; default: evaluation, or development where no evaluation section has labels.",
)  # fmt: skip
ADDRESS = click.option("--address", metavar="HOST:PORT", envvar="RAY_ADDRESS", show_envvar=True,
                       help="Address of a running Ray cluster.")  # fmt: skip
DASHBOARD_HOST = click.option(
    "--dashboard-host", default=Execution.dashboard_host, show_default=True, metavar="HOST",
    help="Address on which the dashboard of a Ray that this starts listens; 0.0.0.0: all addresses of the host.",
)  # fmt: skip
TEMP_DIR = click.option(
    "--temp-dir", "temp_root", type=FOLDER, default=Path("/tmp"),
    envvar="RAYASD_TMP", show_envvar=True, show_default=True,
    help="Folder on the node's own disk for Ray's files; its path must be short.",
)  # fmt: skip


def output_format(*formats: str) -> Callable[..., Any]:
    """Make the option for the form in which a command prints; the first is its default."""
    return click.option(
        "--format", "form", type=click.Choice(formats), default=formats[0], show_default=True,
        help="Output format.",
    )  # fmt: skip


def chosen_execution(options: dict[str, Any]) -> Execution:
    """Take the options for where and how units run out of a command's options."""
    return Execution(**{field.name: options.pop(field.name) for field in fields(Execution)})


def together(*options: Callable[..., Any]) -> Callable[..., Any]:
    """Join several options into one decorator."""
    return lambda command: reduce(lambda decorated, option: option(decorated), reversed(options), command)


execution_options = together(
    click.option("--executor", type=click.Choice(get_args(ExecutorName)), default=Execution.executor,
                 show_default=True,
                 help="ray: cluster at --address, else a Ray of this host; local: plain processes; mpi: MPI ranks."),
    ADDRESS,
    DASHBOARD_HOST,
    click.option("--cpus-per-unit", type=click.FloatRange(min=0, min_open=True), default=Execution.cpus_per_unit,
                 show_default=True, help="CPU cores and threads of one unit."),
    click.option("--gpus-per-unit", type=click.FloatRange(min=0), default=None,
                 help="GPUs per training unit: a fraction, or several of one host; default 1 if there are any."),
    click.option("--ranks-per-unit", type=click.IntRange(min=1), default=None,
                 help="Processes that train one unit together (data-parallel); default: one per GPU."),
    DEVICE,
    click.option("--max-tries", type=click.IntRange(min=1), default=Execution.max_tries, show_default=True,
                 help="Attempts per unit if its worker dies or its code raises an exception."),
    click.option("--hang-after", "hang_seconds", type=click.FloatRange(min=0), default=Execution.hang_seconds,
                 show_default=True,
                 help="End and retry a unit that reports nothing for this many seconds; 0: never."),
    click.option("--grace", type=click.FloatRange(min=1), default=Execution.grace, show_default=True,
                 help="Seconds after SIGUSR1 in which units may finish and save their epoch."),
    click.option("--retry-failed", is_flag=True, help="Retry units that failed earlier."),
    click.option("--fail-fast", is_flag=True, help="Start no more units after the first failure."),
    click.option("--verify", is_flag=True,
                 help="First compare files of finished units with their checksums, and redo damaged units."),
    click.option("--html/--no-html", default=Execution.html, help="Write report.html at the end; default: yes."),
    CACHE,
)  # fmt: skip
"""Options for where and how units run."""
