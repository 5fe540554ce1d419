"""Options and their values that several commands share."""

import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import click

from rayasd.errors import UserError, unknown

DEFAULT_DATA = Path("data")
MAX_SEEDS = 10_000

RUN = click.argument("run", type=click.Path(path_type=Path, file_okay=False))
GROUND_TRUTH = click.option(
    "--ground-truth", type=click.Path(path_type=Path),
    help="Folder of ground_truth_*.csv; default ground_truth_data in the data's folder or right below.",
)  # fmt: skip
CACHE = click.option(
    "--cache", type=click.Path(path_type=Path, file_okay=False),
    help="Decoded waveforms, shared by all runs; default $RAYASD_CACHE, else ~/.cache/rayasd.",
)  # fmt: skip
DEVICE = click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True,
    help="What networks compute on; auto: a GPU where there is one.",
)  # fmt: skip
PART = click.option(
    "--part", type=click.Choice(["evaluation", "development"]), default="evaluation", show_default=True,
    help="Sections whose scores are shown.",
)  # fmt: skip
ADDRESS = click.option(
    "--address", metavar="HOST:PORT", envvar="RAY_ADDRESS", show_envvar=True, help="Standing Ray cluster."
)
TEMP_DIR = click.option(
    "--temp-dir", "temp_root", type=click.Path(path_type=Path, file_okay=False), default=Path("/tmp"),
    envvar="RAYASD_TMP", show_envvar=True, show_default=True,
    help="Node-local folder for Ray's own files; a short path.",
)  # fmt: skip


def output_format(*formats: str) -> Callable[..., Any]:
    """Make the option that says in which of these forms a command prints; the first is its default."""
    return click.option(
        "--format", "form", type=click.Choice(formats), default=formats[0], show_default=True,
        help="Of what is printed.",
    )  # fmt: skip


def data_source(option: Path | None) -> Path:
    """Where the clips are: the option, else $RAYASD_DATA, else data/.

    Raises:
        UserError: none of them is there; says how to get some.

    """
    if option is not None:
        return option
    if place := os.environ.get("RAYASD_DATA"):
        return Path(place)
    if DEFAULT_DATA.is_dir():
        return DEFAULT_DATA
    raise UserError(
        "no data: give --data ROOT or set RAYASD_DATA; to make some, 'rayasd data synth data' (synthetic machines) or "
        "'rayasd data index FOLDER' (your own recordings)"
    )


def cache_folder(option: Path | None) -> Path:
    """Where decoded waveforms go: the option, else $RAYASD_CACHE, else the user's cache folder."""
    if option is not None:
        return option.absolute()
    if place := os.environ.get("RAYASD_CACHE"):
        return Path(place).absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "rayasd"


def choose(kind: str, text: str, available: list[str]) -> tuple[str, ...]:
    """Resolve 'all' or a comma-separated choice among what is available.

    Raises:
        UserError: an unknown name, or none.

    """
    if text == "all":
        return tuple(available)
    names = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    for name in names:
        if name not in available:
            raise unknown(kind, name, available)
    if not names:
        raise UserError(f"no {kind} chosen: all, or some of {', '.join(available)}")
    return tuple(names)


def parse_seeds(text: str) -> tuple[int, ...]:
    """Read seeds such as '0,1,2' or '0-4'.

    Raises:
        UserError: not whole numbers from 0.

    """
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise UserError(f"--seeds {text}: give whole numbers from 0, for example 0,1,2 or 0-4")
        if int(last or first) - int(first) >= MAX_SEEDS:
            raise UserError(f"--seeds {text}: more than {MAX_SEEDS} seeds")
        seeds += range(int(first), int(last or first) + 1)
    if not seeds:
        raise UserError(f"--seeds {text}: an empty range")
    return tuple(dict.fromkeys(seeds))


@dataclass(frozen=True, kw_only=True)
class Execution:
    """Where and how units run, as ``execution_options`` ask for it."""

    executor: str
    address: str | None
    cpus_per_unit: float
    gpus_per_unit: float | None
    ranks_per_unit: int | None
    device: str
    max_tries: int
    hang_seconds: float
    grace: float
    retry_failed: bool
    fail_fast: bool
    verify: bool
    cache: Path | None

    @classmethod
    def taken_from(cls, options: dict[str, Any]) -> "Execution":
        """Take these options out of all that a command was given."""
        return cls(**{field.name: options.pop(field.name) for field in fields(cls)})

    @property
    def num_ranks(self) -> int:
        """Processes of a training unit: by default one a GPU."""
        return self.ranks_per_unit or max(1, int(self.gpus_per_unit or 1))


def execution_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say where and how units run."""
    options = [
        click.option("--executor", type=click.Choice(["ray", "local", "mpi"]), default="ray", show_default=True,
                     help="A Ray cluster (by --address, else one of this host's own), plain processes, or MPI ranks."),
        ADDRESS,
        click.option("--cpus-per-unit", type=click.FloatRange(min=0, min_open=True), default=1.0, show_default=True,
                     help="CPU cores of one unit, and its threads."),
        click.option("--gpus-per-unit", type=click.FloatRange(min=0), default=None,
                     help="GPUs of a training unit, a fraction or several of one host; default 1 if there are any."),
        click.option("--ranks-per-unit", type=click.IntRange(min=1), default=None,
                     help="Processes that train a unit together, data-parallel; default: one per GPU."),
        DEVICE,
        click.option("--max-tries", type=click.IntRange(min=1), default=2, show_default=True,
                     help="How often a unit is tried whose worker dies or whose code raises."),
        click.option("--hang-after", "hang_seconds", type=click.FloatRange(min=0), default=900.0, show_default=True,
                     help="Seconds without a sign of life after which a unit is ended and tried again; 0: never."),
        click.option("--grace", type=click.FloatRange(min=1), default=60.0, show_default=True,
                     help="Seconds that units have after SIGUSR1 to save at their epoch's end."),
        click.option("--retry-failed", is_flag=True, help="Try units again that failed for good earlier."),
        click.option("--fail-fast", is_flag=True, help="Start nothing more after the first failed unit."),
        click.option("--verify", is_flag=True,
                     help="First compare every file of finished units with its checksum; do damaged units again."),
        CACHE,
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command
