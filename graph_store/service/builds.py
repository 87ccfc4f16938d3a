"""Builds that clients ask for: each recipe once at a time, however many ask.

Enters: a recipe. Leaves: its progress, and the id of a snapshot that is there. Invariants: a build runs in a
process of its own; when nobody listens any more it still finishes, and asking again finds its snapshot.
"""

import hashlib
import logging
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

from graph_store.config import GraphConfig
from graph_store.graph import GraphError
from graph_store.protocol import Built, Progress, parse_build_news, parse_refusal
from graph_store.service.build_job import BuildJob
from graph_store.service.refusal import busy
from graph_store.service.settings import Limits

_LOG = logging.getLogger(__name__)
HEARTBEAT_S = 2.0
"""A client that is told nothing new is told the old again this often; so one that is gone is noticed."""


class _Job:
    """One build and what is known of it; ``changed`` guards all of it."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.news = Progress(what="wait for other builds", done=0, total=1)
        self.built: Built | None = None
        self.failure: Exception | None = None
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def ended(self) -> bool:
        return self.built is not None or self.failure is not None


class Builds:
    """The builds of one service."""

    def __init__(
        self, folder: Path, command: Sequence[str], limits: Limits, publish: Callable[[str], None]
    ) -> None:
        self._folder = folder
        self._command = tuple(command)
        self._limits = limits
        self._publish = publish
        self._lock = threading.Lock()
        self._jobs: dict[str, _Job] = {}
        self._turns = threading.BoundedSemaphore(limits.builds)
        self._stopping = False

    @property
    def running(self) -> int:
        """Builds that run or wait."""
        return len(self._jobs)

    def build(self, config: GraphConfig) -> Iterator[Progress | Built]:
        """Join the build of ``config``, or start it; ends with ``Built`` or raises why there is none."""
        job = self._join(config.model_dump_json())
        told: Progress | None = None
        while True:
            with job.changed:
                job.changed.wait_for(lambda: job.ended or job.news is not told, HEARTBEAT_S)  # noqa: B023
                news, built, failure = job.news, job.built, job.failure
            if failure is not None:
                raise failure
            if built is not None:
                yield built
                return
            told = news
            yield news

    def stop(self) -> None:
        """End all builds; who waits for one is asked to come again."""
        with self._lock:
            self._stopping = True
            jobs = list(self._jobs.values())
        for job in jobs:
            with job.changed:
                if job.process is not None:
                    job.process.kill()

    def _join(self, recipe: str) -> _Job:
        key = hashlib.sha256(recipe.encode()).hexdigest()
        with self._lock:
            if self._stopping:
                raise busy("the service is stopping")
            job = self._jobs.get(key)
            if job is None:
                if len(self._jobs) >= self._limits.builds + self._limits.waiting_builds:
                    raise busy(f"{len(self._jobs)} builds are waiting already")
                job = self._jobs[key] = _Job()
                threading.Thread(target=self._run, args=(key, recipe, job), daemon=True).start()
            return job

    def _run(self, key: str, recipe: str, job: _Job) -> None:
        built, failure = None, None
        try:
            with self._turns:
                built = self._run_process(recipe, job)
            self._publish(built.id)
        except Exception as error:  # noqa: BLE001 - whatever it was, those who wait must hear of it
            built, failure = None, error
        with self._lock:
            del self._jobs[key]
        with job.changed:
            job.built, job.failure = built, failure
            job.changed.notify_all()

    def _run_process(self, recipe: str, job: _Job) -> Built:
        work = BuildJob(config=recipe, out=str(self._folder), memory_bytes=self._limits.build_memory_bytes)
        with job.changed:
            if self._stopping:
                raise busy("the service is stopping")
            # A session of its own: an interrupt from the terminal is for the service, which ends its builds.
            job.process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
            )
        with job.process as process:
            try:
                return self._listen(process, work, job)
            finally:
                process.kill()

    def _listen(self, process: "subprocess.Popen[bytes]", work: BuildJob, job: _Job) -> Built:
        requests, answers = _pipes(process)
        try:
            requests.write(work.to_bytes() + b"\n")
            requests.flush()
            for line in answers:
                refused = parse_refusal(line)
                if refused is not None:
                    raise GraphError(refused)
                news = parse_build_news(line)
                if isinstance(news, Built):
                    return news
                with job.changed:
                    job.news = news
                    job.changed.notify_all()
        except BrokenPipeError:
            pass
        if self._stopping:
            raise busy("the service is stopping")
        code = process.wait()
        _LOG.error("the build process ended with %s", code)
        raise GraphError(
            "the build ended without a result (it may have needed more memory than there is); the service's "
            "log says more"
        )


def _pipes(process: "subprocess.Popen[bytes]") -> tuple[IO[bytes], IO[bytes]]:
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("the build process has no pipes")
    return process.stdin, process.stdout
