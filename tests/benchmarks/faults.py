"""A soak: one run of `txpert train`, two workers, that is hurt again and again, and the model it ends with.

    python -m tests.benchmarks.faults [--faults 33] [--quick] [--json FILE]

Kills are kill -9. Each fault waits for steps since the last one; then comes the time until the run takes
steps again, starts of the driver included. In the end the run is told to stop, and losses, weights and
optimiser are compared, bit for bit, with as many steps of the same run that nobody disturbed. Faults take
turns in a seeded order:

    worker      one of the two, at some step
    writer      the one that writes a checkpoint, while it does
    driver      the command itself; it is given again at once, beside workers that may not know yet
    raylet      Ray's daemon of the node, with all that runs on it
    graphs      the graph service that the run took its snapshot from
    MLflow      the server that the run is recorded at; it comes back later
    damage      driver killed, and a bit of the newest checkpoint flipped
    told        SIGTERM to the driver, or to a worker: exit code 75, then the same command
"""

import argparse
import random
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import psutil

from tests.benchmarks.record import Case, write
from tests.faults import PATIENCE_S, Service, Training, losses_of, same_files, undisturbed, with_services
from txpert_dist.train import checkpoint

STOPPED = 75
BETWEEN = 25
"""Steps from one fault's end to the next one."""


class Injected(NamedTuple):
    """One fault."""

    kind: str
    where: str
    outcome: str
    seconds: float
    """Until the run took steps again; 0 where it never ceased to."""


class Soak:
    """One run, and the harm that is done to it."""

    def __init__(self, training: Training, graphs: Service, mlflow: Service) -> None:
        self.training, self.graphs, self.mlflow = training, graphs, mlflow
        self.number = 0

    def kinds(self) -> dict[str, Callable[[], tuple[str, str]]]:
        """What can be done, each giving where and with what outcome."""
        return {
            "kill -9 of a worker": self.worker,
            "kill -9 of the worker writing a checkpoint": self.writer,
            "kill -9 of the driver": self.driver,
            "kill -9 of the raylet": self.raylet,
            "kill -9 of the graph service": self.graph_service,
            "kill -9 of the MLflow server": self.tracking,
            "newest checkpoint damaged": self.damage,
            "SIGTERM to the driver": self.told,
            "SIGTERM to a worker": self.worker_told,
        }

    def inject(self, kind: str) -> Injected:
        """Do it, and wait until the run goes on."""
        self.number += 1
        started = time.monotonic()
        before = self.training.starts
        where, outcome = self.kinds()[kind]()
        ceased = self.training.starts > before or "worker" in kind
        at = self.training.reached(0)
        seconds = time.monotonic() - started if ceased else 0.0
        self.training.reached(at + BETWEEN)
        return Injected(kind, where, outcome, seconds)

    def worker(self) -> tuple[str, str]:
        where = self.training.kill_worker(self.number)
        self.training.replaced()
        return where, "workers started again"

    def writer(self) -> tuple[str, str]:
        where = self.training.kill_writer()
        self.training.replaced()
        return where, "workers started again from the checkpoint before"

    def driver(self) -> tuple[str, str]:
        where = self.training.kill_driver()
        self.training.start()
        return where, "the same command went on"

    def raylet(self) -> tuple[str, str]:
        where = self.training.kill_raylet()
        code = self.training.ended()
        self.training.start()
        return where, f"exit code {code}, the same command went on"

    def graph_service(self) -> tuple[str, str]:
        return f"step {self.training.step()}, {self.graphs.kill()}", "training went on"

    def tracking(self) -> tuple[str, str]:
        where = f"step {self.training.step()}, {self.mlflow.kill()}"
        self.training.reached(self.training.step() + BETWEEN)
        self.mlflow.start()
        self.mlflow.wait()
        return where, "training went on"

    def damage(self) -> tuple[str, str]:
        orphans = self.training.workers()
        where = self.training.kill_driver()
        psutil.wait_procs(
            orphans, PATIENCE_S
        )  # until then they may write a newer checkpoint than the damaged
        newest = checkpoint.newest_sound(self.training.run_folder).folder
        if newest is None:
            raise AssertionError("no checkpoint to damage")
        file = newest / random.Random(self.number).choice(
            [checkpoint.WEIGHTS, checkpoint.OPTIMISER, checkpoint.STATE]
        )
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 16
        file.write_bytes(content)
        self.training.start()
        self.training.reached(0)
        if str(file) not in " ".join(self.training.log().split()):
            raise AssertionError(f"{file}: damage was not told: {self.training.log()}")
        return f"{where}, {newest.name}/{file.name}", "passed over and said, the one before taken"

    def told(self) -> tuple[str, str]:
        return self._stopped(self.training.tell_driver())

    def worker_told(self) -> tuple[str, str]:
        return self._stopped(self.training.tell_worker(self.number))

    def _stopped(self, where: str) -> tuple[str, str]:
        code = self.training.ended()
        if code != STOPPED:
            raise AssertionError(f"exit code {code}: {self.training.log()}")
        self.training.start()
        return where, f"checkpoint, exit code {code}, the same command went on"


def soak(folder: Path, number: int, seed: int) -> tuple[list[Injected], dict[str, Any]]:
    """Do so much harm, and compare what comes of it."""
    with ExitStack() as running:
        training, graphs, mlflow = running.enter_context(with_services(folder, epochs=40 * number, workers=2))
        started = time.monotonic()
        training.start()
        training.reached(0)
        first_start = time.monotonic() - started
        training.reached(BETWEEN)
        done, harm = [], Soak(training, graphs, mlflow)
        for kind in _order(list(harm.kinds()), number, seed):
            done.append(harm.inject(kind))
            print(f"{len(done)} of {number}: {done[-1]}", flush=True)
        training.tell_driver()
        if (code := training.ended()) != STOPPED:
            raise AssertionError(f"exit code {code}: {training.log()}")
        end = checkpoint.newest_sound(training.run_folder).folder
        steps = checkpoint.read_state(end).step if end else 0
        calm, last = undisturbed(training.config, folder / "calm", workers=2, max_steps=steps)
        losses = losses_of(training.run_folder)
        return done, {
            "first_start_s": first_start,
            "steps": len(calm),
            "starts_of_the_driver": training.starts,
            "losses_recorded": len(losses),
            "losses_bitwise_equal": losses.items() <= calm.items(),
            "model_bitwise_equal": same_files(checkpoint.checkpoints(training.run_folder)[-1], last),
        }


def _order(kinds: list[str], number: int, seed: int) -> list[str]:
    """Every kind in turn, each round in another order."""
    draw = random.Random(seed)
    order: list[str] = []
    while len(order) < number:
        draw.shuffle(kinds)
        order += kinds
    return order[:number]


def table(details: Mapping[str, Any]) -> str:
    """The faults for README."""
    by_kind: dict[str, list[Mapping[str, Any]]] = {}
    for row in details["faults"]:
        by_kind.setdefault(row["kind"], []).append(row)
    lines = ["| fault | times | outcome | goes on after, s |", "| --- | ---: | --- | ---: |"]
    for kind, rows in sorted(by_kind.items(), key=lambda item: -len(item[1])):
        seconds = median(row["seconds"] for row in rows)
        outcomes = "; ".join(sorted({row["outcome"] for row in rows}))
        lines.append(f"| {kind} | {len(rows)} | {outcomes} | {seconds:.0f} |")
    equal = "equal" if details["model_bitwise_equal"] and details["losses_bitwise_equal"] else "NOT equal"
    end = (
        f"{len(details['faults'])} faults in one run of {details['steps']:,} steps on two workers; "
        f"{details['starts_of_the_driver']} starts of the driver. Losses, weights and optimiser are bitwise "
        f"{equal} to those of the undisturbed run."
    )
    return "\n".join(lines) + f"\n\n{end}"


def _cases(done: Sequence[Injected], first_start: float) -> list[Case]:
    kinds = {row.kind for row in done if row.seconds}
    return [
        Case(
            f"{kind}: steps again after",
            median(row.seconds for row in done if row.kind == kind),
            "s",
            "first start of the command",
            first_start,
        )
        for kind in sorted(kinds)
    ]


def main() -> None:
    """Run the soak and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--faults", type=int, default=33)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="three faults")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        done, result = soak(Path(folder), 3 if asked.quick else asked.faults, asked.seed)
    details = {"faults": [row._asdict() for row in done], **result}
    print(table(details))
    if asked.json:
        write(asked.json, _cases(done, result["first_start_s"]), **details)


if __name__ == "__main__":
    main()
