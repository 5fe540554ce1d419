from pathlib import Path

import pytest

from rayasd.wording import counted, elapsed, near, size


@pytest.mark.parametrize(
    ("num_bytes", "said"),
    [(0, "0 B"), (999, "999 B"), (999.6, "1 kB"), (1234, "1.23 kB"), (999_499, "999 kB"), (999_500, "1 MB"),
     (5.6e9, "5.6 GB"), (2.34e12, "2.3 TB")],
)  # fmt: skip
def test_sizes_have_three_digits_and_no_exponent(num_bytes: float, said: str):
    assert size(num_bytes) == said


def test_one_is_not_plural_and_hours_do_not_end():
    assert (counted(0, "unit"), counted(1, "unit"), counted(2, "unit")) == ("0 units", "1 unit", "2 units")
    assert (elapsed(59.9), elapsed(3600), elapsed(360000)) == ("0:00:59", "1:00:00", "100:00:00")


def test_paths_below_the_working_folder_are_short():
    assert near(Path.cwd() / "runs/a") == Path("runs/a")
    assert near(Path.cwd().parent / "b") == Path.cwd().parent / "b"
