"""One build in a process of its own: its memory and its crashes are not the service's.

Enters: on standard input one line of JSON, a ``BuildJob``. Leaves: on standard output a line of JSON for each
``Progress`` and at last a ``Built`` or a ``Refusal``; everything else that is printed goes to standard error.
Invariant: the process ends when its standard input does, so no build outlives the service that asked for it.

``main`` takes what this package does not have, a reader of screens; another module calls it with one.
"""

import os
import resource
import sys
import threading
from pathlib import Path
from typing import BinaryIO

from graph_store.build import build
from graph_store.config import GraphConfig
from graph_store.graph import GraphError
from graph_store.protocol import Built, Message, Progress, Refusal
from graph_store.service.build_job import BuildJob
from graph_store.sources.screen import ScreenReader


def main(read_screen: ScreenReader | None = None) -> None:
    """Entry point of the process."""
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    job = BuildJob.model_validate_json(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_input, daemon=True).start()
    if job.memory_bytes is not None:
        resource.setrlimit(resource.RLIMIT_AS, (job.memory_bytes, job.memory_bytes))
    try:
        done = build(
            GraphConfig.model_validate_json(job.config),
            out=Path(job.out),
            progress=lambda what, done, total: _say(answers, Progress(what=what, done=done, total=total)),
            read_screen=read_screen,
        )
        _say(answers, Built(id=done.id, was_there=done.was_there))
    except GraphError as error:
        _say(answers, Refusal(refused=str(error)))
    except MemoryError:
        _say(answers, Refusal(refused="the build needs more memory than the service gives one build"))


def _say(answers: BinaryIO, message: Message) -> None:
    answers.write(message.to_bytes() + b"\n")


def _end_with_input() -> None:
    while sys.stdin.buffer.read(1):
        pass
    os._exit(3)


if __name__ == "__main__":
    main()
