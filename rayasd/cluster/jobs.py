"""Jobs of a standing Ray cluster, through the Jobs API that its dashboard serves: send, follow, stop, list."""

import asyncio
import logging
import os
import re
import shlex
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path
from typing import Any

from rayasd.errors import EXIT_INTERRUPTED, UserError

_THEN = "; exec "  # no shell between Ray and us
_ANSWER_SECONDS = 5.0
_POLL_SECONDS = 0.5
_STOP_SECONDS = 30
"""What a stopped job has to save and end by itself; Ray's default of 3 s is short for a sweep."""


def default_token_file(environment: Mapping[str, str]) -> Path:
    """Return the file where Ray looks for a token, unless ``RAY_AUTH_TOKEN`` holds one."""
    path = environment.get("RAY_AUTH_TOKEN_PATH")
    return Path(path) if path else Path.home() / ".ray" / "auth_token"


class Jobs:
    """The jobs of one cluster."""

    def __init__(self, address: str, token_file: Path | None = None) -> None:
        """Connect; must come before anything imports ray, which reads the token's variables then.

        Args:
            address: of the dashboard, with or without http://.
            token_file: with the cluster's token; None: as Ray's own variables say.

        Raises:
            UserError: nobody answers there, or the token is missing or wrong.

        """
        self.address = (address if "://" in address else f"http://{address}").rstrip("/")
        _authenticate(token_file)
        _check_answers(self.address)
        os.environ["RAY_API_SERVER_ADDRESS"] = self.address  # Ray heeds it, or RAY_ADDRESS, before what it is given
        from ray.job_submission import JobSubmissionClient

        logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)  # it tells of closed connections
        with self._errors():
            self._client = JobSubmissionClient(self.address)

    def submit(self, words: Sequence[str], *, job_id: str | None, python: str, folder: Path) -> str:
        """Start a rayasd command in a folder of the cluster's head; returns the job's name.

        Raises:
            UserError: the cluster refuses it, as when a job of this name was there before.

        """
        with self._errors():
            return self._client.submit_job(
                entrypoint=(
                    f"cd {shlex.quote(str(folder))} || "
                    "{ echo 'submit --folder: the head has no such folder' >&2; exit 2; }"
                    f"{_THEN}{shlex.join([python, '-m', 'rayasd', *words])}"
                ),
                submission_id=job_id,
                runtime_env={"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_SECONDS)}},
            )

    def follow(self, job_id: str, write: Callable[[str], object]) -> int:
        """Hand on what a job says until it ends; returns its exit code, 75 if it was stopped, 1 if we lose sight of it.

        Raises:
            UserError: there is no such job.

        """

        async def tail() -> None:
            async for text in self._client.tail_job_logs(job_id):
                write(text)

        with self._errors():
            self._client.get_job_info(job_id)
        try:
            with self._errors():
                asyncio.run(tail())
                job = self._wait(job_id)
        except UserError as error:
            write(f"lost sight of job {job_id}, which may go on: {error}\n")
            return 1
        if job.status == "STOPPED":
            return EXIT_INTERRUPTED
        code = job.driver_exit_code
        if code is None:  # it never ran, or its node was lost
            write(f"{job.message}\n")
            return int(job.status != "SUCCEEDED")
        return int(code) if code >= 0 else 128 - int(code)

    def stop(self, job_id: str) -> str:
        """End a job, and wait for it; returns how it ended.

        Raises:
            UserError: there is no such job, or it does not end.

        """
        with self._errors():
            self._client.stop_job(job_id)
            return str(self._wait(job_id, 2 * _STOP_SECONDS).status).lower()

    def list(self) -> list[dict[str, Any]]:
        """List submitted jobs: name, status, start (seconds since 1970), command; the last first."""
        with self._errors():
            jobs = [job for job in self._client.list_jobs() if job.submission_id]
        jobs.sort(key=lambda job: -(job.start_time or 0))
        return [
            {
                "job": job.submission_id,
                "status": str(job.status).lower(),
                "start": (job.start_time or 0) / 1000,
                "command": job.entrypoint.rpartition(_THEN)[2],
            }
            for job in jobs
        ]

    def _wait(self, job_id: str, seconds: float = float("inf")) -> Any:
        until = time.monotonic() + seconds
        while not (job := self._client.get_job_info(job_id)).status.is_terminal():
            if time.monotonic() > until:
                raise UserError(f"job {job_id} has not ended within {seconds:g} s: it is {str(job.status).lower()}")
            time.sleep(_POLL_SECONDS)
        return job

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Say in one line what Ray's client raises."""
        from aiohttp import ClientError
        from ray.exceptions import AuthenticationError

        try:
            yield
        except AuthenticationError as error:
            if "Authentication required" in str(error):
                said = "wants a token: give --token-file, or set RAY_AUTH_TOKEN_PATH"
            else:
                said = "refuses this token: give that cluster's own by --token-file or RAY_AUTH_TOKEN_PATH"
            raise UserError(f"the cluster at {self.address} {said}") from None
        except (RuntimeError, OSError, ClientError) as error:
            lines = [line for line in str(error).splitlines() if re.search(r"\w", line)]  # a traceback's last says it
            reason = (
                re.sub(r"^(Request failed with status code \d+|\w+Error): ", "", lines[-1]) if lines else "no answer"
            )
            raise UserError(f"the cluster at {self.address}: {reason[:300]}") from None


def _authenticate(token_file: Path | None) -> None:
    """Let Ray show a token if one is known; left alone, its Jobs client shows none unless the mode is set."""
    if token_file is not None:
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token_file.absolute())}
        os.environ.pop("RAY_AUTH_TOKEN", None)
    elif os.environ.get("RAY_AUTH_TOKEN") or default_token_file(os.environ).is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def _check_answers(address: str) -> None:
    """Refuse an address where no dashboard answers: Ray's own requests have no time limit.

    Raises:
        UserError: nobody is there.

    """
    if not address.startswith(("http://", "https://")):
        raise UserError(f"--address {address}: give the dashboard's, for example http://HEAD:8265")
    try:
        urllib.request.urlopen(f"{address}/api/version", timeout=_ANSWER_SECONDS).close()
    except urllib.error.HTTPError as error:
        if error.code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            return  # it wants a token, which is for the client to show
        raise UserError(f"no Ray dashboard answers at {address}: HTTP {error.code} {error.reason}") from None
    except HTTPException:
        raise UserError(f"no Ray dashboard answers at {address}: who is there does not speak HTTP") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise UserError(f"no Ray dashboard answers at {address}: {reason}") from None
