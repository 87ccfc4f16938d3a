"""The driver of a job on the cluster, started again when it dies: ``python -m txpert_dist.cli.attempts``.

Enters: how often, names of environment variables that the job needs, a verb with its arguments. Leaves: the
verb's exit code. Invariants: every attempt is the same command, so it goes on where the last one stopped; a
user's error (2) is not tried again, nor is a job that was told to stop. Ray signals every process of a job
itself: nothing is passed on here.
"""

import argparse
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Sequence

from txpert_dist.cli.screen import console, print_error

_FINAL = (0, 2)


def command(attempts: int, needs: Sequence[str], verb: Sequence[str]) -> list[str]:
    """The command line that runs ``verb`` under this module on a cluster."""
    needed = [f"--needs={name}" for name in needs]
    return ["python", "-m", __spec__.name, f"--attempts={attempts}", *needed, "--", *verb]


def supervise(run: Sequence[str], attempts: int) -> int:
    """Run a command until it succeeds, at most so often; its last exit code, 128 + N for signal N."""
    stopped = False

    def stop(_number: int, _frame: object) -> None:
        nonlocal stopped
        stopped = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    code = 1
    for attempt in range(1, attempts + 1):
        with subprocess.Popen(run, preexec_fn=_end_with_parent) as driver:
            code = driver.wait()
        code = 128 - code if code < 0 else code
        if code in _FINAL or stopped or attempt == attempts:
            break
        console.print(
            f"attempt {attempt} of {attempts} ended with exit code {code}: starting again from what is there",
            soft_wrap=True,
        )
    return code


def _end_with_parent() -> None:
    """A driver whose supervisor is killed must not go on unseen: the run's folder would stay taken."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def main() -> None:
    """Entry point of a job."""
    parser = argparse.ArgumentParser(prog="txpert_dist.cli.attempts", description=__doc__)
    parser.add_argument("--attempts", type=int, default=1)
    parser.add_argument("--needs", action="append", default=[])
    parser.add_argument("verb", nargs="+")
    asked = parser.parse_args()
    missing = [name for name in asked.needs if not os.environ.get(name)]
    if missing:
        print_error(
            f"{', '.join(missing)}: not set on the cluster; let its pods have it, from a Secret for instance"
        )
        sys.exit(2)
    sys.exit(supervise([sys.executable, "-m", "txpert_dist.cli.app", *asked.verb], asked.attempts))


if __name__ == "__main__":
    main()
