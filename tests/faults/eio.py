"""The library of ``eio.c``, preloaded: one of so many calls on files below a folder ends with EIO."""

import subprocess
from pathlib import Path


def library(folder: Path) -> Path:
    """Compile it with gcc into a folder."""
    made = folder / "eio.so"
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-O1", "-o", made, Path(__file__).with_name("eio.c"), "-ldl"], check=True
    )
    return made


def failing(made: Path, below: Path, one_in: int) -> dict[str, str]:
    """Variables of a process whose calls fail."""
    return {"LD_PRELOAD": str(made), "EIO_BELOW": str(below), "EIO_ONE_IN": str(one_in)}
