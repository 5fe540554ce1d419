"""Anomalous sound detection when only normal sounds exist for training: from wav files to a leaderboard."""

import os
import pwd
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rayasd.study.execution import Execution
    from rayasd.study.study import Study

__all__ = ["Execution", "Study"]
__version__ = "0.2.0"

_HOMES = {"Execution": "rayasd.study.execution", "Study": "rayasd.study.study"}

try:
    pwd.getpwuid(os.getuid())
except KeyError:  # a user without a name (docker --user 1234), for whom torch's optimisers find no folder
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", f"{os.environ.get('TMPDIR', '/tmp')}/torchinductor_{os.getuid()}")

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Import what is exported when it is first used: ``import rayasd`` stays light."""
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(_HOMES[name]), name)
