"""Alarms and a test of drift for a stream of scores."""

import os
import signal
import subprocess
from collections import deque
from collections.abc import Mapping
from contextlib import suppress

import numpy as np

from rayasd.inlier.scores_file import TRAINED_ON
from rayasd.scoring.model import ClipScore
from rayasd.scoring.sections import SectionModel

DRIFT = 0.01  # p-value below which scores have drifted
_COMMAND_SECONDS = 30.0


class Monitor:
    """Looks at the scores of one machine's clips, section by section, in the order in which they come."""

    def __init__(self, sections: Mapping[str, SectionModel], alarm: tuple[int, int], drift: int) -> None:
        """Prepare.

        ``alarm``: (K, N): an anomalous clip raises an alarm when it is the K-th of the last N clips, or a later one.
        ``drift``: number of clips of one comparison with normal ones.
        """
        self._sections, self._needed, self._drift = sections, alarm[0], drift
        self._anomalous = {name: deque[bool](maxlen=alarm[1]) for name in sections}
        self._scores: dict[str, list[float]] = {name: [] for name in sections}

    def _knows(self, score: ClipScore) -> bool:
        """Whether this model gave the score: another one has another threshold."""
        model = self._sections.get(score.section or "")
        return model is not None and score.score is not None and score.threshold == model.decision.threshold

    def alarm(self, score: ClipScore) -> bool:
        """Whether a clip raises an alarm."""
        if not self._knows(score):
            return False
        last = self._anomalous[str(score.section)]
        last.append(bool(score.anomalous))
        return last[-1] and sum(last) >= self._needed

    def drift(self, score: ClipScore) -> float | None:
        """Compare the scores since the last comparison with those of normal clips, when they are as many as wanted.

        Two-sample Kolmogorov-Smirnov test. Clips of one comparison are in no other one, so that its p-values are not of
        the same clips again and again. Scores of clips that were trained on are lower, and are not compared.

        Returns the p-value.
        """
        if not self._knows(score) or score.score is None:
            return None
        scores, normal = self._scores[str(score.section)], self._sections[str(score.section)].calibration
        scores.append(score.score)
        if len(scores) < self._drift:
            return None
        compared = np.array(scores)
        scores.clear()
        if normal.kind in (None, TRAINED_ON) or not np.isfinite(normal.scores).all():
            return None
        from scipy.stats import ks_2samp  # slow to import

        return float(ks_2samp(compared, normal.scores).pvalue)


def run_command(command: str, given: str) -> str | None:
    """Run a shell command with a text as its input; return why it failed, if it did.

    What it prints goes to standard error. It is ended, with all that it has started, after 30 seconds.
    """
    words = ["timeout", "-s", "KILL", str(_COMMAND_SECONDS), "sh", "-c", command]  # also where we are killed
    try:
        with subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=2, start_new_session=True, encoding="utf-8"
        ) as process:
            try:
                process.communicate(given)
            except BaseException:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                raise
    except OSError as error:
        return str(error.strerror or error)
    if process.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL):
        return f"was ended: it took longer than {_COMMAND_SECONDS:g} s, or somebody killed it"
    return f"ended with exit code {process.returncode}" if process.returncode else None
