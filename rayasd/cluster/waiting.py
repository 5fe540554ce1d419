"""Wait until a Ray cluster has so many nodes: ``python -m rayasd.cluster.waiting ADDRESS NODES SECONDS``.

A process of its own, so that a launcher never holds a connection to the cluster that it is to end. Prints the number of
nodes that came; the exit code is 0 where they are enough.
"""

import sys
import time

from rayasd.printing import tell


def main(address: str, wanted: int, seconds: float) -> int:
    """Connect as soon as the head answers and count nodes until there are enough or the time is over."""
    import ray

    until, count = time.monotonic() + seconds, 0
    while time.monotonic() < until and count < wanted:
        try:
            if not ray.is_initialized():
                ray.init(address=address, log_to_driver=False, logging_level="CRITICAL", namespace="rayasd-launch")
            count = sum(node["Alive"] for node in ray.nodes())
        except Exception as error:  # not up yet: tried again until the time is over
            tell(f"{type(error).__name__} {error}", err=True)
        time.sleep(0.5)
    tell(count)
    return 0 if count >= wanted else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))
