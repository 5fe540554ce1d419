"""Notice units that hang: their workers run, but their progress files no longer change."""

import time
from collections.abc import Collection

from rayasd.unit import RunDirectory, Unit

_LOOKS = 20  # within the time that a unit may be silent: a progress file may lie on a slow shared disk


class Heartbeats:
    """Watches the progress files of running units by this host's own clock: hosts' clocks may differ."""

    def __init__(self, paths: RunDirectory, hang_seconds: float) -> None:
        self.paths, self.hang_seconds = paths, hang_seconds
        self._last: dict[Unit, tuple[int, float]] = {}
        self._looked = 0.0

    def silent(self, running: Collection[Unit]) -> list[Unit]:
        """List units whose progress file has not changed for ``hang_seconds`` (0: none).

        A unit that has not begun yet has no such file: it waits in the executor's queue.
        """
        moment = time.monotonic()
        if not self.hang_seconds or moment - self._looked < self.hang_seconds / _LOOKS:
            return []
        self._looked = moment
        last, self._last = self._last, {}
        for unit in running:
            try:
                written = self.paths.progress(unit).stat().st_mtime_ns
            except OSError:
                continue
            before = last.get(unit)
            self._last[unit] = before if before and before[0] == written else (written, moment)
        return [unit for unit, (_, since) in self._last.items() if moment - since > self.hang_seconds]
