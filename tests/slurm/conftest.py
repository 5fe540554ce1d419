"""One Slurm cluster of three hosts for all tests of this folder."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.hosts import Hosts
from tests.slurm.jobs import TWO_HOSTS, Job, submit, sweep_words, wait_until_clean


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this folder."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slurm)
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Hosts]:
    """Two hosts of 2 CPUs and one of 1, even where there are fewer."""
    cluster = Hosts()
    if reason := cluster.missing():
        pytest.skip(reason)
    try:
        cluster.up()
        yield cluster
    finally:
        cluster.down()


@pytest.fixture
def hosts(cluster: Hosts) -> Hosts:
    """The cluster, started afresh where a test that failed left it without a host."""
    if not cluster.is_up():
        cluster.down()
        cluster.up()
    return cluster


@pytest.fixture
def job(hosts: Hosts, tree: Path, cache: Path, tmp_path: Path):
    """Submit a sweep on both hosts; afterwards nothing of it is left."""
    jobs: list[Job] = []

    def start(*more: object, options: tuple[str, ...] = TWO_HOSTS, run: str = "run", script: str = "train.sh") -> Job:
        words = sweep_words(tree, tmp_path / run, *more)
        jobs.append(submit(hosts, tmp_path, cache, script, *words, options=options))
        return jobs[-1]

    yield start
    for each in jobs:
        hosts.run("scancel", each.number)
    wait_until_clean(hosts)


@pytest.fixture
def figures(record_property, capsys: pytest.CaptureFixture):
    """Note a measured figure: in the JUnit report, and on the screen."""

    def note(what: str, seconds: float) -> None:
        record_property(what, round(seconds, 1))
        with capsys.disabled():
            print(f"\n[{what}: {seconds:.1f} s] ", end="")

    return note
