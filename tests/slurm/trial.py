"""Hosts that die each minute and come back: a trial of up to half an hour, by hand, as root:

python -m pytest -n0 tests/slurm/trial.py
"""

import time
from contextlib import suppress

import pytest

from tests.conftest import run_locally
from tests.slurm.hosts import wait_for
from tests.slurm.jobs import THREE_HOSTS, events, results

QUEUE = ("--machines", "fan,pump", "--variants", "both,statistics", "--seeds", "0-19", "--set", "exposure.epochs=2")
"""200 units."""


@pytest.mark.timeout(1800)
def test_a_queue_of_200_units_ends_though_a_host_dies_each_minute(
    job, hosts, tree, cache, tmp_path, figures, monkeypatch: pytest.MonkeyPatch
):
    """A worker's host, the other one's, the head's, and again; each comes back, before Slurm notices or after it."""
    monkeypatch.setenv("RAYASD_LAUNCH", "--wait 30")
    alone = results(run_locally(tree, cache, tmp_path / "local", *QUEUE))
    batch = job(*QUEUE, "--device", "cpu", options=THREE_HOSTS)  # the hosts' GPUs are counted, not there
    run, began, deaths, ended = tmp_path / "run", time.time(), 0, ("COMPLETED", "FAILED", "CANCELLED")
    wait_for(lambda: any(event["event"] == "unit done" for event in events(run)), 240)
    while batch.state() not in ended and time.time() - began < 1200:
        died, host, pause = time.time(), (2, 3, 1)[deaths % 3], (10, 45)[deaths % 2]
        hosts.kill(host, loud=deaths % 4 > 1)
        deaths += 1
        time.sleep(pause)
        hosts.boot(host)
        with suppress(TimeoutError):
            wait_for(lambda: batch.state() in ended, died + 60 - time.time())
    assert batch.wait(600) == "COMPLETED", batch.log
    starts = int(batch.facts()["Restarts"]) + 1, batch.log.count("started again on")
    figures(f"{deaths} deaths of hosts, {starts[0]} starts of the job, {starts[1]} within it", time.time() - began)
    assert results(run) == alone
    wait_for(hosts.idle, 120)
