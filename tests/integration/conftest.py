"""One undisturbed sweep for all tests of this folder that compare with it."""

from pathlib import Path

import pytest

from tests.conftest import run_locally


@pytest.fixture(scope="session")
def compared(shared_preset: Path) -> tuple[object, ...]:
    """Arguments of a sweep of networks of two machine types, and of one network of all three.

    They are still in training when a test has found their processes.
    """
    return (
        "--preset", shared_preset, "--variants", "both,one", "--machines", "fan,pump", "--set", "exposure.epochs=25",
    )  # fmt: skip


@pytest.fixture(scope="session")
def undisturbed(
    tree: Path, cache: Path, compared: tuple[object, ...], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Run directory of that sweep by the local executor."""
    return run_locally(tree, cache, tmp_path_factory.mktemp("local") / "run", *compared)
