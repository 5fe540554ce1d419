"""A run's manifest: a record of each command that worked on it."""

import platform
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rayasd import __version__
from rayasd.files import now
from rayasd.host import package_versions

PACKAGES = ("ray", "torch", "torchaudio", "timm", "scikit-learn", "numpy", "pyarrow", "soundfile")


def describe_invocation(command: Sequence[str]) -> dict[str, Any]:
    """Return when, where, with which arguments and versions a command was run."""
    return {
        "time": now(),
        "command": list(command),
        "host": socket.gethostname(),
        "rayasd": __version__,
        "revision": git_revision(),
        "python": platform.python_version(),
        "packages": package_versions(PACKAGES),
    }


def git_revision() -> str | None:
    """Revision of the source tree that rayasd runs from, with + where it has uncommitted changes."""
    folder = Path(__file__).parent
    try:
        output = subprocess.run(
            ["git", "-C", folder, "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"],
            capture_output=True, text=True, timeout=5, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return output.stdout.strip()
