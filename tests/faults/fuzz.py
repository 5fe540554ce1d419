"""Mutate what the readers of ``tests.faults.targets`` are given, guided by coverage (pip install atheris).

``python -m tests.faults.fuzz audio --seconds 600``; a finding ends it and is written to a file.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["rayasd"]):
    from tests.faults.targets import TARGETS, seeds


def main() -> None:
    """Fuzz one reader until the time is over."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=600)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rayasd-fuzz-") as folder:
        corpus = Path(folder) / "corpus"
        corpus.mkdir()
        for number, content in enumerate(seeds(chosen.target, Path(folder))):
            (corpus / str(number)).write_bytes(content)
        where = f"-artifact_prefix={tempfile.gettempdir()}/"
        limits = [where, f"-max_total_time={chosen.seconds}", "-max_len=20000", "-timeout=60", "-rss_limit_mb=4000"]
        atheris.Setup([sys.argv[0], str(corpus), *limits], lambda data: TARGETS[chosen.target](data, Path(folder)))
        atheris.Fuzz()


if __name__ == "__main__":
    main()
