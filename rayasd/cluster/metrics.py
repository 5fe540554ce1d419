"""A sweep's progress as Ray metrics, and a Prometheus on this host for as long as somebody looks at them."""

import json
import math
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from rayasd.cluster.job import tell_dashboard
from rayasd.errors import UserError
from rayasd.host import end_with_parent
from rayasd.printing import tell
from rayasd.sweep.executors import Counts, Reported
from rayasd.sweep.worker import how_far
from rayasd.unit import Unit

ADDRESS = "127.0.0.1:9090"
"""Where Ray's dashboard looks for it unless told otherwise; everybody on this host can read there."""
_TOLD = 100  # running units in a job's message


class Metrics:
    """Gauges that the driver keeps: units by stage and state; epoch, loss and clips a second of each unit."""

    def __init__(self, run: str, name_of: Callable[[Unit], str]) -> None:
        from ray.util.metrics import Gauge

        self._states = Gauge("rayasd_units", "Units of the run by stage and state.", ("run", "stage", "state"))
        self._gauges = {
            "clips_per_second": Gauge(
                "rayasd_clips_per_second", "Clips that a unit works off a second.", ("run", "unit")
            ),
            "done": Gauge("rayasd_unit_done", "Epochs, clips or sections that a unit has done.", ("run", "unit")),
            "total": Gauge("rayasd_unit_total", "Epochs, clips or sections that a unit has to do.", ("run", "unit")),
            "loss": Gauge("rayasd_loss", "Mean loss of a unit's last epoch.", ("run", "unit")),
        }
        self._run, self._name_of = run, name_of
        self._seen: set[Unit] = set()

    def publish(self, counts: Counts, progress: Reported) -> None:
        """Set all gauges, and the job's message; a unit that no longer runs has the speed 0."""
        states = Counter[str]()
        for (_, state), count in counts.items():
            states[state] += count
        told = ", ".join(f"{count} {state}" for state, count in states.items() if count)
        tell_dashboard("\n".join([told, *(how_far(unit, record) for unit, record in [*progress.items()][:_TOLD])]))
        for (stage, state), count in counts.items():
            self._states.set(count, {"run": self._run, "stage": stage, "state": state})
        for unit in self._seen - progress.keys():
            self._gauges["clips_per_second"].set(0.0, {"run": self._run, "unit": self._name_of(unit)})
        self._seen = set(progress)
        for unit, record in progress.items():
            for key, gauge in self._gauges.items():
                value = record.get(key)
                if value is not None and math.isfinite(value):
                    gauge.set(value, {"run": self._run, "unit": self._name_of(unit)})


def run_prometheus(discovery: Sequence[str]) -> None:
    """Run Prometheus until Ctrl-C, then remove what it has stored.

    ``discovery``: files in which Ray lists the ports of its metrics.

    Raises UserError: it is not installed, ends by itself, or this is not the host of these files.
    """
    if shutil.which("prometheus") is None:
        raise UserError("no prometheus on the PATH: apt install prometheus, or unpack one of prometheus.io there")
    if missing := [path for path in discovery if not Path(path).is_file()]:
        raise UserError(f"no {missing[0]} here: start this on the sweep's head node, a few seconds after the sweep")
    with tempfile.TemporaryDirectory(prefix="rayasd-prometheus-") as folder:
        config, log = Path(folder, "prometheus.yml"), Path(folder, "log")
        listed = {"files": list(discovery), "refresh_interval": "5s"}  # Ray adds ports; not each change raises an event
        scrape = {"job_name": "ray", "scrape_interval": "5s", "file_sd_configs": [listed]}
        config.write_text(json.dumps({"scrape_configs": [scrape]}))  # which is YAML too
        options = {"config.file": config, "storage.tsdb.path": f"{folder}/data", "web.listen-address": ADDRESS}
        with log.open("wb") as output:
            process = subprocess.Popen(
                ["prometheus", "--log.level=error", *(f"--{name}={value}" for name, value in options.items())],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=folder, preexec_fn=end_with_parent,
            )  # fmt: skip
        try:
            process.wait()
        except KeyboardInterrupt:
            process.terminate()
            process.wait()
            tell("Prometheus has ended, and its data are removed")
            return
        said = [line for line in log.read_text(errors="replace").splitlines() if "err=" in line]
        raise UserError(f"prometheus ended with exit code {process.returncode}: {' '.join(said[-1:])[:300]}")
