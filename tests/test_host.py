import subprocess
import sys

import pytest

SCRIPT = """
import resource, torch
from rayasd.host import freed_memory_kept

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(50_000_000, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
print(faults())
with freed_memory_kept():
    for _ in range(5):  # until pieces that are split off for alignment have come together again
        faults()
    print(faults())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_memory_that_was_freed_is_used_again_without_new_pages():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True
    )  # a heap of its own
    usually, kept = map(int, done.stdout.split())
    assert usually > 5000
    assert kept < 500
