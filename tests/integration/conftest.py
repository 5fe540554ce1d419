"""One undisturbed sweep for all tests of this folder that compare with it."""

from pathlib import Path

import pytest

from tests.conftest import run_locally

TRAINED = ("--set", "exposure.epochs=25")
"""A training that is still going on when a test has found its process."""


@pytest.fixture(scope="session")
def undisturbed(tree: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run directory of that sweep by the local executor."""
    return run_locally(tree, cache, tmp_path_factory.mktemp("local") / "run", *TRAINED)
