"""Where and how units run: one frozen value, with the defaults of the command line."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from rayasd.errors import UserError, unknown

ExecutorName = Literal["ray", "local", "mpi"]
DeviceName = Literal["auto", "cpu", "cuda"]
_LEAST = {"gpus_per_unit": 0, "ranks_per_unit": 1, "max_tries": 1, "hang_seconds": 0, "grace": 1}


@dataclass(frozen=True, kw_only=True)
class Execution:
    """Where and how units run. Raises UserError: an unknown executor or device, or a number that is too small."""

    executor: ExecutorName = "ray"
    """A Ray cluster, plain processes of this host, or the ranks of an MPI job."""
    address: str | None = None
    """HOST:PORT of a running Ray cluster; default $RAY_ADDRESS, else a Ray of this host's own."""
    dashboard_host: str = "127.0.0.1"
    """Address on which the dashboard of this host's own Ray listens; its token is asked for everywhere."""
    cpus_per_unit: float = 1.0
    """CPU cores of one unit, and its threads."""
    gpus_per_unit: float | None = None
    """GPUs per training unit, a fraction or several on one host; default 1 if there are any."""
    ranks_per_unit: int | None = None
    """Processes that train a unit together; default: one per GPU."""
    device: DeviceName = "auto"
    max_tries: int = 2
    """Attempts per unit if its worker dies or its code raises."""
    hang_seconds: float = 900.0
    """Without a sign of life for so long, a unit is ended and tried again; 0: never."""
    grace: float = 60.0
    """Seconds that units have after SIGUSR1 to save; only the command line handles signals."""
    retry_failed: bool = False
    """Retry units that failed earlier."""
    fail_fast: bool = False
    """Start no more units after the first failure."""
    verify: bool = False
    """First compare every file of finished units with its checksum."""
    html: bool = True
    """Write report.html at the end, too."""
    cache: str | Path | None = None
    """Folder of decoded waveforms; default $RAYASD_CACHE, else the user's cache folder."""

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            if (value := getattr(self, name)) is not None and value < least:
                raise UserError(f"{name} = {value:g}: give at least {least}")
        if self.cpus_per_unit <= 0:
            raise UserError(f"cpus_per_unit = {self.cpus_per_unit:g}: give more than 0")
        for kind, names in (("executor", ExecutorName), ("device", DeviceName)):
            if getattr(self, kind) not in get_args(names):
                raise unknown(kind, getattr(self, kind), get_args(names))

    @property
    def num_ranks(self) -> int:
        """Processes of a training unit: by default one per GPU."""
        gpus = 0 if self.device == "cpu" else int(self.gpus_per_unit or 1)
        return self.ranks_per_unit or max(1, gpus)
