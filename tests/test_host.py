import resource
import sys

import pytest
import torch

from rayasd.host import freed_memory_kept


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_memory_that_was_freed_is_used_again_without_new_pages():
    def faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(50_000_000, dtype=torch.uint8)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    assert faults() > 5000
    with freed_memory_kept():
        faults()
        assert faults() < 500
