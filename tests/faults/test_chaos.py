"""A sweep that is killed at random, and in the middle of its writes, ends as an undisturbed one: in short."""

from pathlib import Path

import pytest

from tests.conftest import write_tree
from tests.faults.chaos import Chaos, undisturbed

pytestmark = [pytest.mark.slow, pytest.mark.long]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """Two machines, and what an undisturbed sweep of them finds out."""
    folder = tmp_path_factory.mktemp("chaos")
    tree = write_tree(folder / "tree", ("fan", "pump"))
    return tree, undisturbed(folder, tree)


@pytest.mark.parametrize(
    ("executor", "num_kills"), [("local", 8), pytest.param("ray", 4, marks=pytest.mark.ray)], ids=["local", "ray"]
)
def test_a_sweep_that_is_killed_again_and_again_ends_as_an_undisturbed_one(
    executor: str, num_kills: int, data: tuple[Path, dict[str, bytes]], tmp_path: Path
):
    chaos = Chaos(tmp_path, *data, executor=executor, seed=3)
    chaos.run(num_kills)
    assert chaos.faults == []
    assert chaos.kills.total() >= num_kills
