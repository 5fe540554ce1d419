"""The ``rayasd`` command, also as ``python -m rayasd``."""

import atexit
import os
import sys
from contextlib import suppress


def console() -> None:
    """Run the command line in a process of its own, and end it without what libraries do last of all.

    pyarrow's threads, just started, abort a process whose C++ objects are destroyed meanwhile ("terminate called
    without an active exception"). The handler that is registered first runs last: all others have had their turn.
    """
    code = 1

    def leave() -> None:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):  # nobody reads it any more
                stream.flush()
        if "mpi4py.MPI" not in sys.modules:  # MPI tells the other ranks at the very end
            os._exit(code)

    atexit.register(leave)
    from rayasd.cli.main import main

    try:
        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        raise


if __name__ == "__main__":
    console()
