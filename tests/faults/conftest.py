"""Fixtures of the tests that break storage."""

import pytest

from tests.faults.bench import Bench
from tests.faults.places import mounted  # noqa: F401 - a fixture


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Return a small undisturbed run; read only."""
    return Bench(tmp_path_factory.mktemp("bench"))
