"""Settings of every Ray that rayasd starts, its token, and joining a Ray."""

import os
import re
import signal
import threading
from pathlib import Path
from typing import Any

from rayasd.errors import UserError, one_line
from rayasd.host import why_silent

OBJECT_STORE_BYTES = 100_000_000
"""Specs and outcomes are small, everything large goes through files: Ray's default is 30 % of the node's memory."""

NO_GPU_NO_SIGHT = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1"}
"""A task without GPUs must not see any; Ray hides them only if told so."""

SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0", **NO_GPU_NO_SIGHT}  # environment of every Ray that we start


def join(address: str, where: str, **options: Any) -> Any:
    """Connect to the Ray at an address; ``local`` starts one. Returns Ray's context.

    Raises UserError: nobody answers there, or Ray does not start; ``where`` says what could not be had.
    """
    match = re.fullmatch(r"(?:ray://)?(.+):(\d+)", address)  # not auto, nor a name that Ray resolves
    if match is not None and (reason := why_silent(match[1], int(match[2]))):  # Ray would try for two minutes
        raise UserError(f"no Ray cluster answers at {address}: {reason}")
    import ray

    handler = signal.getsignal(signal.SIGTERM)
    try:
        return ray.init(address=address, log_to_driver=False, logging_level="ERROR", **options)
    except Exception as error:  # plain ones too: a dashboard that does not start in time
        raise UserError(f"cannot start or reach {where}: {one_line(error, 300)}") from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray's would end this process at once


def write_token(path: Path, secret: str) -> None:
    """Write a cluster's token where nobody else can read it; without one, whoever reaches a port runs code as us."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secret)
