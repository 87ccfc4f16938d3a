"""One folder, one configuration, one process that trains in it.

Enters: a configuration. Leaves: the right to train in its folder. Invariants: two processes never train in
one folder; a folder is never reused with another configuration, but for what does not change the result's
meaning: how long, on which workers, recorded and kept where, how often.
"""

import fcntl
import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from pydantic import ValidationError

from txpert_dist.config import Config
from txpert_dist.config_file import flatten
from txpert_dist.errors import ConfigError, TrainingError
from txpert_dist.train.tracking import RECORD, RunRecord, read_run_record

MAY_DIFFER = (
    "output",
    "train.epochs",
    "train.checkpoint_",
    "train.keep_checkpoints",
    "train.stop_deadline_s",
    "train.profile_steps",
    "cluster.",
    "tracking.",
    "graph.tls_roots",
)
"""Keys, or beginnings of keys, that may change between two starts of one run."""

_PATIENCE_S = 60.0  # what a killed driver's own processes may take to end


def absolute(config: Config) -> Config:
    """The same configuration with paths that hold in any working directory."""
    location, roots = config.graph.location, config.graph.tls_roots
    data = config.data.model_copy(update={"store": config.data.store.absolute()})
    if "://" not in location:
        location = str(Path(location).absolute())
    graph = config.graph.model_copy(
        update={"location": location, "tls_roots": roots.absolute() if roots else None}
    )
    cache = config.cluster.graph_cache
    cluster = config.cluster.model_copy(update={"graph_cache": cache.absolute() if cache else None})
    output = config.output.absolute()
    return config.model_copy(update={"data": data, "graph": graph, "cluster": cluster, "output": output})


@contextmanager
def claimed(run_folder: Path) -> Iterator[None]:
    """Hold the folder, making it if need be; ``TrainingError`` when another process on this machine does."""
    try:
        run_folder.mkdir(parents=True, exist_ok=True)
        lock = (run_folder / ".lock").open("w")
    except OSError as error:
        raise ConfigError(
            f"output: {run_folder} cannot be written ({error.strerror}); choose another output="
        ) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise TrainingError(
                f"{run_folder}: another process is training this run; wait for it or choose another name="
            ) from None
        yield


@contextmanager
def claimed_at_last(run_folder: Path) -> Iterator[None]:
    """As ``claimed``, as soon as a process that outlived its killed driver lets go, a minute at most."""
    until = time.monotonic() + _PATIENCE_S
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(claimed(run_folder))
                break
            except TrainingError:
                if time.monotonic() > until:
                    raise
            time.sleep(1)
        yield


def existing_record(config: Config) -> RunRecord | None:
    """The folder's record; None when it is new.

    Raises ``ConfigError`` listing the keys in which ``config`` differs from what the run was made with.
    """
    if not (config.run_folder / RECORD).exists():
        return None
    record = read_run_record(config.run_folder)
    try:
        before = flatten(Config.model_validate(record.config))
    except ValidationError:
        raise ConfigError(
            f"{config.run_folder}: was made by another version of this software; choose another name="
        ) from None
    after = flatten(config)
    differing = sorted(
        key
        for key in before.keys() | after.keys()
        if before.get(key) != after.get(key) and not key.startswith(MAY_DIFFER)
    )
    if differing:
        listed = ", ".join(f"{key} ({before.get(key)} -> {after.get(key)})" for key in differing)
        raise ConfigError(
            f"{config.run_folder}: was made with other values of {listed}; choose another name="
        )
    return record


def pinned_snapshot(run_folder: Path) -> str | None:
    """Id of the graph snapshot that the folder's run was begun with; None when it is new or has none."""
    if not (run_folder / RECORD).exists():
        return None
    graph = read_run_record(run_folder).config.get("graph")
    return graph.get("snapshot") if isinstance(graph, dict) else None


def git_commit() -> str:
    """Commit of this package's checkout, with ``-dirty`` when files differ, or the one it was installed from.

    "unknown" where there is neither.
    """
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return _installed_commit()
    return done.stdout.strip()


def _installed_commit() -> str:
    """What the installer noted of the package's origin (PEP 610); a submitted job's package has it too."""
    try:
        noted = json.loads(distribution("txpert-dist").read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, ValueError):
        return "unknown"
    return str(noted.get("vcs_info", {}).get("commit_id", "unknown"))
