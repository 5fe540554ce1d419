"""A sweep's progress as Ray metrics, for whoever scrapes the cluster's Prometheus ports."""

import math
from collections import Counter
from collections.abc import Callable

from rayasd.cluster.job import tell_dashboard
from rayasd.sweep.executors import Counts, Reported
from rayasd.sweep.worker import how_far
from rayasd.unit import Unit

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
