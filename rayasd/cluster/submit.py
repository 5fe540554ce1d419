"""Jobs of a standing Ray cluster, by the Jobs API of its dashboard."""

import asyncio
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rayasd.errors import EXIT_STOPPED, UserError
from rayasd.host import why_silent

STOP_SECONDS = 30  # time for a stopped job to save and to end by itself; Ray's default of 3 s is short for a sweep


@contextmanager
def connected(address: str, token_file: Path | None = None) -> Iterator[Any]:
    """Yield Ray's client of a dashboard; what it raises within the block becomes a ``UserError`` of one line."""
    address = (address if "://" in address else f"http://{address}").rstrip("/")
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"--address {address}: give the dashboard's, for example http://HEAD:8265")
    if reason := why_silent(parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)):
        raise UserError(f"no Ray dashboard answers at {address}: {reason}")
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()  # where Ray looks for it
    if token_file is not None:  # before anything imports ray, which reads these variables at its import
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token_file.absolute())}
        os.environ.pop("RAY_AUTH_TOKEN", None)
    elif os.environ.get("RAY_AUTH_TOKEN") or file.is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # without a mode, Ray's client shows no token
    os.environ["RAY_API_SERVER_ADDRESS"] = address  # the client prefers this, and RAY_ADDRESS, to its argument
    from aiohttp import ClientError
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)  # it logs closed connections
    try:
        yield JobSubmissionClient(address)
    except AuthenticationError:
        trouble = "refuses the request: give its token by --token-file or RAY_AUTH_TOKEN_PATH"
        raise UserError(f"the cluster at {address} {trouble}") from None
    except (RuntimeError, OSError, ClientError) as error:
        lines = [line for line in str(error).splitlines() if re.search(r"\w", line)]  # the last of a traceback
        raise UserError(f"the cluster at {address}: {lines[-1][:300] if lines else 'no answer'}") from None


def follow(client: Any, job_id: str, write: Callable[[str], object]) -> int:
    """Write a job's output until it ends; returns its exit code, 77 if it was stopped."""

    async def tail() -> None:
        async for text in client.tail_job_logs(job_id):
            write(text)

    client.get_job_info(job_id)  # raises if there is none
    asyncio.run(tail())
    job = end_of(client, job_id)
    if job.status == "STOPPED":
        return EXIT_STOPPED
    if job.driver_exit_code is None:  # it never ran, or its node was lost
        write(f"{job.message}\n")
        return int(job.status != "SUCCEEDED")
    code = int(job.driver_exit_code)
    return code if code >= 0 else 128 - code  # negative after a signal


def end_of(client: Any, job_id: str, seconds: float = float("inf")) -> Any:
    """Wait for a job's end; returns Ray's ``JobDetails``."""
    until = time.monotonic() + seconds
    while not (job := client.get_job_info(job_id)).status.is_terminal():
        if time.monotonic() > until:
            raise UserError(f"job {job_id} has not ended within {seconds:g} s: it is {str(job.status).lower()}")
        time.sleep(0.5)
    return job
