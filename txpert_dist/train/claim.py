"""Who may write into a run's folder: one start of the driver, and of its groups of workers the last.

Enters: a run's folder, on the driver; its ``Claim``'s words, on a worker. Leaves: the right to write, for as
long as nobody came later; and a place where the driver leaves word to stop. Invariants: workers that outlive
their driver, or their own group, write no checkpoint once somebody else has begun: a claim is taken, and what
it guards is done, under one lock. Where a file system has no locks the check is made all the same, only not
at one instant with what follows.
"""

import fcntl
import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from txpert_dist.errors import CheckpointError, ConfigError, TrainingError

_FILE, _LOCK = "claim.json", ".claim.lock"


class Claim(NamedTuple):
    """One start's right to a run's folder."""

    run_folder: Path
    start: str
    """Drawn by the driver."""
    group: str = ""
    """Drawn by rank 0 of each group of workers; empty on the driver."""


def take(run_folder: Path) -> Claim:
    """The claim of a new start of the driver; every earlier one has ended.

    Raises ``ConfigError`` when the folder cannot be written.
    """
    claim = Claim(run_folder, secrets.token_hex(8))
    with _writable(run_folder), _alone(run_folder):
        _write(claim, stop=False)
    return claim


def join(run_folder: Path, start: str) -> Claim:
    """The claim of a new group of the driver's workers; earlier groups' have ended.

    Raises ``TrainingError`` when another driver was started since, ``ConfigError`` as ``take``.
    """
    claim = Claim(run_folder, start, secrets.token_hex(8))
    with _writable(run_folder), _alone(run_folder):
        found, stop = _read(run_folder)
        if found.start != start:
            raise TrainingError(f"{run_folder}: another command has taken this run over; this one ends")
        _write(claim, stop=stop)
    return claim


@contextmanager
def held(claim: Claim) -> Iterator[None]:
    """Nobody takes the folder over in this context; ``CheckpointError`` when somebody has."""
    with _alone(claim.run_folder):
        if _read(claim.run_folder)[0] != claim:
            raise CheckpointError(
                f"{claim.run_folder}: others have taken this run over; these workers write no checkpoint"
            )
        yield


def tell_to_stop(claim: Claim) -> None:
    """Leave word for the workers of this start, those still to come too."""
    with _alone(claim.run_folder):
        found, _ = _read(claim.run_folder)
        if found.start == claim.start:
            _write(found, stop=True)


def told_to_stop(claim: Claim) -> bool:
    """Whether the driver left word to stop, or another start took the folder over.

    Raises ``OSError`` as the file system does.
    """
    found, stop = _read(claim.run_folder)
    return stop or found.start != claim.start


def _read(run_folder: Path) -> tuple[Claim, bool]:
    tree = json.loads((run_folder / _FILE).read_text(encoding="utf-8"))
    return Claim(run_folder, tree["start"], tree["group"]), tree["stop"]


def _write(claim: Claim, *, stop: bool) -> None:
    partial = claim.run_folder / f".{_FILE}.partial"
    tree = {"start": claim.start, "group": claim.group, "stop": stop}
    partial.write_text(json.dumps(tree), encoding="utf-8")
    partial.replace(claim.run_folder / _FILE)


@contextmanager
def _writable(run_folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"output: {run_folder} cannot be written ({error.strerror or error}); make room there, or choose "
            "another output="
        ) from None


@contextmanager
def _alone(run_folder: Path) -> Iterator[None]:
    with (run_folder / _LOCK).open("a") as lock:
        with suppress(OSError):  # no locks there
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
