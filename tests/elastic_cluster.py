"""A run with [1, 2] workers on a Ray cluster: a node is killed, another comes and is told to go.

python -m tests.elastic_cluster FOLDER

Enters: a folder. Leaves: one line of JSON: how many workers each group had, what was said of the node that
went, and where the run stopped.
In a process of its own, because Ray reads its settings once, and nodes are started from the main thread only.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from tests.faults import ENVIRONMENT, wait_for
from tests.unit.train.small_screen import configuration, write_inputs
from txpert_dist.config import Config
from txpert_dist.train.claim import Claim, tell_to_stop
from txpert_dist.train.stop import Stopped
from txpert_dist.train.worker import STARTING
from txpert_dist.train.worker import train as train_on_ray

MORE_STEPS = 25


def settings(folder: Path) -> Config:
    """The run; its length does not matter, for it is told to stop."""
    return configuration(
        folder / "inputs",
        folder / "runs",
        train={"epochs": 2000, "checkpoint_every_epochs": 5, "checkpoint_every_steps": 20, "log_every": 1},
        cluster={"num_workers": [1, 2], "resize_interval_s": 2, "max_failures": 5},
        # AdamW makes steps of the rounding of a gradient that vanishes: small ones, or runs drift apart
        optimiser={"learning_rate": 2e-5},
    )


class Watch:
    """What the run tells: groups of workers that started, and the last step."""

    def __init__(self) -> None:
        self.groups, self.step, self.news = 0, 0, []

    def __call__(self, what: str, done: int, total: int) -> None:
        if (what, done) == (STARTING, total):
            self.groups += 1
            self.step = 0
        if total == 0:
            self.news.append(what)
        if what == "train":
            self.step = done

    def goes_on(self, groups: int, beyond: int = 0) -> Any:
        """Wait for so many groups and for steps of the last one."""
        return wait_for(lambda: self.groups >= groups and self.step > beyond, f"steps of group {groups}")


def workers() -> int:
    """Worker processes of this cluster."""
    found = 0
    for process in psutil.Process().children(recursive=True):
        try:
            found += "RayTrainWorker" in " ".join(process.cmdline())
        except psutil.Error:
            continue
    return found


@contextmanager
def node(address: str) -> Iterator[subprocess.Popen[bytes]]:
    """A node as a pod runs it: until SIGTERM, at which it tells Ray that it goes."""
    ray = Path(sys.executable).with_name("ray")
    command = [str(ray), "start", f"--address={address}", "--num-cpus=1", "--block"]
    with subprocess.Popen(command, stdout=sys.stderr) as process:
        try:
            yield process
        finally:
            process.terminate()


def main() -> None:
    """Lose a node, get another, see it go, stop."""
    folder = Path(sys.argv[1])
    os.environ.update(ENVIRONMENT)
    os.environ.update(RAY_AUTH_MODE="disabled", RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S="15")
    import ray
    from ray.cluster_utils import Cluster

    write_inputs(folder / "inputs")
    config, watch, seen, ending = settings(folder), Watch(), [], []
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    _, lost = cluster.add_node(num_cpus=1), cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)

    def train() -> None:
        try:
            train_on_ray(config, progress=watch)
        except Stopped as stop:
            ending.append(str(stop))

    thread = threading.Thread(target=train)
    thread.start()
    watch.goes_on(1, MORE_STEPS)
    seen.append(workers())
    os.kill(lost.all_processes["raylet"][0].process.pid, signal.SIGKILL)
    watch.goes_on(2)
    seen.append(workers())
    with node(cluster.address) as going:
        watch.goes_on(3)
        watch.goes_on(3, watch.step + MORE_STEPS)
        seen.append(workers())
        watch.news.clear()
        going.terminate()
        watch.goes_on(4)
        news = "\n".join(watch.news)
        watch.goes_on(4, watch.step + MORE_STEPS)
        seen.append(workers())
    start = json.loads((config.run_folder / "claim.json").read_text())["start"]
    tell_to_stop(Claim(config.run_folder, start))
    thread.join()
    print(json.dumps({"workers": seen, "news": news, "ending": ending}), flush=True)
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main()
