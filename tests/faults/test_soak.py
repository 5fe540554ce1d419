"""A short soak; ``make soak`` is the long one."""

from pathlib import Path

import pytest

from tests.faults.soak import Sample, growth, soak


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.long
def test_many_small_units_leave_nothing_behind_in_the_driver(tmp_path: Path):
    samples, problems = soak(tmp_path, 60, "ray")
    assert not problems
    assert len(samples) > 3


def test_growth_is_noticed():
    steady = [Sample(n, 300_000_000, 40, 30) for n in range(100)]
    assert not growth(steady, 1000)
    leaking = [Sample(n, 300_000_000 + 2_000_000 * n, 40 + n, 30) for n in range(100)]
    assert growth(leaking, 1000) == ["60 more open files at the end", "120 MB more at the end"]
