"""One Slurm cluster of three hosts for all tests of this folder."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.hosts import Hosts


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
