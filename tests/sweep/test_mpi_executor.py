import pytest

from rayasd.errors import UserError
from rayasd.sweep.executors import Resources, mpi


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        ([[], []], [([], 1.0), ([], 1.0)]),
        ([["0", "1"]] * 2, [(["0"], 1.0), (["1"], 1.0)]),
        ([["0", "1", "2", "3"]] * 2, [(["0", "1"], 1.0), (["2", "3"], 1.0)]),
        ([["0"]] * 2, [(["0"], 0.5), (["0"], 0.5)]),  # two ranks share one
        ([["0"], ["1"]], [(["0"], 1.0), (["1"], 1.0)]),  # the launcher gave each its own
    ],
)
def test_a_hosts_gpus_are_shared_out_among_its_ranks(visible: list[list[str]], expected: list[tuple[list[str], float]]):
    assert [mpi._share(visible, rank) for rank in range(len(visible))] == expected


class World:
    """An MPI job that is not there."""

    def __init__(self, *ranks: Resources) -> None:
        self.ranks = [Resources(1), *ranks]


def test_a_rank_does_one_unit_however_many_cpus_it_has(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(mpi, "_world", World(Resources(8, 1), Resources(4, 1)))
    executor = mpi.MPIExecutor(2)
    assert executor.nodes == [Resources(2, 1), Resources(2, 1)]
    assert executor.describe() == ["MPI, 2 ranks that work: 12 CPUs and 2 GPUs"]


def test_ranks_with_unequal_gpus_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(mpi, "_world", World(Resources(8, 1), Resources(8, 0)))
    with pytest.raises(UserError, match=r"different numbers of GPUs \(1, 0\)"):
        mpi.MPIExecutor(2)
