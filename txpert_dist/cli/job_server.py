"""The door to Ray Jobs: submit a job to a cluster, find it again, follow its log, stop it.

Enters: the address of a cluster's job server; Ray reads the token from RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH
itself. Leaves: ids, states and logs of jobs. Invariants: one run has one job at a time; whatever the cluster
refuses is one line that says what to do; nothing secret is sent but the token, in a header.
"""

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain, count
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import aiohttp
import ray.exceptions
import requests
from ray.job_submission import JobSubmissionClient

from txpert_dist.errors import InputError

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
_LOGGERS = ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk")
_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
STOP_SECONDS = 120
"""What a job gets between SIGTERM and SIGKILL: time to write a checkpoint."""
_CONNECT_S, _RETRY_S, _LOST_AFTER_S = 10, 2, 120
_TAKEN, _UNKNOWN = "already exists", "does not exist"

IDENTITY = ("txpert_verb", "txpert_run", "txpert_folder")
"""Metadata that say which run a job is about: one run has one job at a time."""


class Job(NamedTuple):
    """A job as the cluster tells it."""

    id: str
    status: str
    """PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED."""
    exit_code: int | None
    """The driver's, once it ended by itself."""
    message: str
    started: float | None
    """Seconds since the epoch."""
    ended: float | None
    metadata: Mapping[str, str]

    @property
    def over(self) -> bool:
        """Whether it ended, one way or another."""
        return self.status in ("STOPPED", "SUCCEEDED", "FAILED")


class Submitted(NamedTuple):
    """A job that was asked for."""

    job: Job
    new: bool
    """False when it was under way before."""


class JobServer(NamedTuple):
    """A connection that was checked."""

    address: str
    client: Any


def connect(address: str | None = None) -> JobServer:
    """Connect to ``address``, else RAY_API_SERVER_ADDRESS, RAY_ADDRESS or this machine's cluster.

    Raises ``InputError`` when no Ray answers there or the token does not let one in.
    """
    given = [address, *(os.environ.get(name) for name in _VARIABLES), DEFAULT_ADDRESS]
    chosen = next(place for place in given if place)
    _reach(chosen)
    for chatty in _LOGGERS:
        logging.getLogger(chatty).setLevel(logging.WARNING)
    os.environ[_VARIABLES[0]] = chosen  # Ray prefers the environment to what it is told
    with _explained(chosen):
        return JobServer(chosen, JobSubmissionClient(chosen))


def submit(
    server: JobServer, name: str, entrypoint: str, package: Path, metadata: Mapping[str, str]
) -> Submitted:
    """Submit a job, unless one with the same values of ``IDENTITY`` in its metadata is not over yet.

    Its id is ``name``, or ``name-2`` and so on when the cluster knows that one.
    """
    refused: set[str] = set()
    while True:
        known = jobs(server)
        for found in known:
            if not found.over and all(found.metadata.get(key) == metadata[key] for key in IDENTITY):
                return Submitted(found, False)
        taken = refused | {found.id for found in known}
        numbered = chain((name,), (f"{name}-{number}" for number in count(2)))
        chosen = next(each for each in numbered if each not in taken)
        try:
            with _explained(server.address):
                server.client.submit_job(
                    submission_id=chosen,
                    entrypoint=entrypoint,
                    metadata=dict(metadata),
                    runtime_env={
                        "working_dir": str(package),
                        "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)},
                    },
                )
            return Submitted(job(server, chosen), True)
        except InputError as error:  # somebody was faster, or a job of that name was deleted
            if _TAKEN not in str(error):
                raise
            refused.add(chosen)


def jobs(server: JobServer) -> list[Job]:
    """Every job that was submitted to the cluster, oldest first."""
    with _explained(server.address):
        found = [_job(details) for details in server.client.list_jobs() if details.submission_id]
    return sorted(found, key=lambda job: job.started or float("inf"))


def job(server: JobServer, job_id: str) -> Job:
    """One job. Raises ``InputError`` when the cluster does not know it."""
    with _explained(server.address):
        return _job(server.client.get_job_info(job_id))


def stop(server: JobServer, job_id: str) -> bool:
    """Tell a job to stop, which lets it write a checkpoint; False when it was over before."""
    with _explained(server.address):
        stopped: bool = server.client.stop_job(job_id)
    return stopped


def log_text(server: JobServer, job_id: str) -> str:
    """All that a job has written so far."""
    with _explained(server.address):
        text: str = server.client.get_job_logs(job_id)
    return text


def follow(server: JobServer, job_id: str, write: Callable[[str], None]) -> Job:
    """Pass on what a job writes until it is over, each character once, whatever happens to connections."""
    passed, lost_since = 0, None
    job(server, job_id)  # one that is not there is no lost connection

    async def tail() -> None:
        nonlocal passed
        seen = 0
        async for text in server.client.tail_job_logs(job_id):
            fresh = text[max(0, passed - seen) :]
            seen += len(text)
            if fresh:
                write(fresh)
                passed = seen

    while True:
        try:
            with _explained(server.address):
                asyncio.run(tail())
            now = job(server, job_id)
            if now.over:
                return now
            lost_since = None
        except InputError as error:
            lost_since = lost_since or time.monotonic()
            if _UNKNOWN in str(error) or time.monotonic() - lost_since > _LOST_AFTER_S:
                raise
        time.sleep(_RETRY_S)


def _job(details: Any) -> Job:
    return Job(
        id=details.submission_id,
        status=str(details.status.value),
        exit_code=details.driver_exit_code,
        message=details.message or "",
        started=details.start_time / 1000 if details.start_time else None,
        ended=details.end_time / 1000 if details.end_time else None,
        metadata=details.metadata or {},
    )


def _reach(address: str) -> None:
    """Say at once when nobody listens at ``address``; Ray's own attempts take minutes or end the process."""
    place = urlsplit(address if "://" in address else f"http://{address}")
    try:
        host, port = place.hostname, place.port or (443 if place.scheme == "https" else 80)
    except ValueError:
        host = None
    if not host:
        raise InputError(f"{address}: is no address of a cluster; write http://HOST:8265")
    try:
        socket.create_connection((host, port), timeout=_CONNECT_S).close()
    except OSError as error:
        raise InputError(
            f"{address}: no Ray cluster answers there ({error.strerror or error}); start one, or give its "
            "job server: --address http://HOST:8265"
        ) from None


@contextmanager
def _explained(address: str) -> Iterator[None]:
    """Ray's failures as ``InputError``."""
    try:
        yield
    except ray.exceptions.AuthenticationError as error:
        raise InputError(
            f"{address}: {_reason(error).partition('. ')[0]}; set RAY_AUTH_TOKEN_PATH to a file with the "
            "cluster's token"
        ) from None
    except (aiohttp.ClientError, requests.RequestException, ConnectionError) as error:
        raise InputError(
            f"{address}: the job server does not answer as one ({_reason(error)}); check the address"
        ) from None
    except (RuntimeError, ValueError, KeyError) as error:
        raise InputError(f"{address}: the job server refused: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    """One line; of what fails in the server, it sends the whole traceback."""
    lines = [line.strip() for line in str(error).splitlines() if any(map(str.isalnum, line))]
    if not lines:
        return type(error).__name__
    return lines[-1 if "Traceback" in lines[0] else 0][:300]
