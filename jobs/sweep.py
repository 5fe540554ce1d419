"""Entry point of a sweep for the Ray Jobs API; takes the options of ``rayasd sweep``.

ray job submit --address http://HEAD:8265 --working-dir jobs -- python sweep.py --data /shared/data --run-dir /shared/r

Ray sets RAY_ADDRESS for the job, so the sweep runs on the cluster that it was submitted to. rayasd must be installed on
every node; data and run directory must be absolute paths that every node sees.
"""

import sys

from rayasd.__main__ import console

if __name__ == "__main__":
    sys.argv[1:1] = ["sweep"]
    console()
