"""Entry point of scoring for the Ray Jobs API; takes the arguments of ``rayasd score``.

ray job submit --address http://HEAD:8265 --working-dir jobs -- python score.py /shared/run --machine fan /shared/new

Ray sets RAY_ADDRESS for the job, so the clips are spread over the cluster that it was submitted to. rayasd must be
installed on every node; run and clips must be absolute paths that every node sees.
"""

import os
import sys

from rayasd.cli.main import main

if __name__ == "__main__":
    sys.argv[1:1] = ["score", "--address", os.environ.get("RAY_ADDRESS", "auto")]
    main()
