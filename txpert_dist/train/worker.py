"""The door to Ray Train, and the only place that reads rank, world and environment.

Enters: a configuration, on the driver. Leaves: ``TrainResult``, checkpoints and an MLflow run. Invariants:
what a user can get wrong is said before Ray starts; the same command goes on after any interruption and does
nothing when the run is complete; what fails in a worker with a message for the user is raised here with that
message, not with Ray's.
"""

import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from graph_store.graph import GraphError
from txpert_dist import errors
from txpert_dist.config import Config
from txpert_dist.errors import CheckpointError, TrainingError, TxPertError
from txpert_dist.train.checkpoint import SCORE, newest_sound
from txpert_dist.train.claim import Claim, held, join, take
from txpert_dist.train.cluster import connected
from txpert_dist.train.graph_actor import node_snapshot, offered
from txpert_dist.train.graphs import with_graphs
from txpert_dist.train.inputs import open_inputs
from txpert_dist.train.mirror import MirrorError, open_mirror, restore, upload
from txpert_dist.train.notices import Notices
from txpert_dist.train.progress import ProgressFile, followed
from txpert_dist.train.run_folder import absolute, claimed, existing_record, git_commit, pinned_snapshot
from txpert_dist.train.session import Ended, TrainResult, finished, record_run, result
from txpert_dist.train.stop import (
    Stopped,
    attended,
    listen_for_sigterm,
    listening,
    told_by_sigterm,
    word_awaited,
)
from txpert_dist.train.tracking import MetricWriter, RunRecord, Status, describe_run, write_run_record

Progress = Callable[[str, int, int], None]

PROGRESS, RAY = "progress.jsonl", "ray"
STARTING = "start workers"
"""Stage of the progress from the call to the first step."""

_FAILED_STARTS = 3  # of a whole group of workers, before the cluster is said to be too small
_ELASTIC = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "60"}  # with a lost node counted on, before it is not
_DRIVER_ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # also what reporting an epoch costs
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "120",
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "2",  # some clouds leave a node half a minute
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    # a tracking server that is down must cost seconds, not the minutes of MLflow's defaults
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}
log = logging.getLogger(__name__)


def _silent(_what: str, _done: int, _total: int) -> None:
    return None


def train(config: Config, *, progress: Progress = _silent, graph_token: str | None = None) -> TrainResult:
    """Train to the end on Ray: on the cluster at RAY_ADDRESS, else on this machine.

    ``graph_token`` lets this process, and no other, into the graph service of ``graph.location``.
    ``progress`` is called with (what, done, total) from a thread of its own; a total of 0 is news, not a
    count. Raises ``StoreError``, ``GraphError``, ``InputError``, ``ConfigError``, ``CheckpointError`` or
    ``TrainingError``, each with one line for the user, and ``Stopped`` when this process, or a worker, was
    told to stop (SIGTERM, Ctrl-C): the same call later goes on from the last checkpoint.
    """
    config = absolute(config)
    _bring_back(config, progress)
    config = with_graphs(config, token=graph_token, pinned=pinned_snapshot(config.run_folder))
    inputs = open_inputs(config)
    with claimed(config.run_folder):
        record = existing_record(config)
        ended = finished(config) if record is not None else None
        if record is None or ended is None:
            progress(STARTING, 0, 3)
            elastic = isinstance(config.cluster.num_workers, tuple)
            _default_environment(_DRIVER_ENVIRONMENT | (_ELASTIC if elastic else {}))
            commit = git_commit()
            record = record_run(config, inputs, record, commit)
            progress(STARTING, 1, 3)
            ended = _recorded(config, record, commit, progress)
        elif config.train.checkpoint_mirror is not None:
            upload(open_mirror(config.train.checkpoint_mirror, config.name), config.run_folder)
        return result(config, record, ended)


def _bring_back(config: Config, progress: Progress) -> None:
    """Take from the mirror what it has and the run's folder lacks."""
    if config.train.checkpoint_mirror is None:
        return
    mirror = open_mirror(config.train.checkpoint_mirror, config.name)
    with claimed(config.run_folder):
        try:
            damaged = restore(mirror, config.run_folder)
        except MirrorError as error:
            if newest_sound(config.run_folder).folder is None:
                raise
            progress(f"{error}; going on from what is here", 0, 0)
            return
    for line in damaged:
        progress(f"a damaged checkpoint is passed over: {line}", 0, 0)


def _recorded(config: Config, record: RunRecord, commit: str, progress: Progress) -> Ended:
    """Run on Ray and leave the right status behind, whatever happens."""
    status: Status = "FAILED"
    try:
        with followed(config.run_folder / PROGRESS, progress):
            ended = _on_ray(config, record, commit, progress)
        status = "FINISHED"
    except (KeyboardInterrupt, Stopped):
        status = "KILLED"
        raise
    finally:
        record = record._replace(status=status)
        write_run_record(config.run_folder, record)
        describe_run(record, status=status)
    for line in ended.damaged:
        log.warning("a damaged checkpoint was passed over: %s", line)
    return ended


def _on_ray(config: Config, record: RunRecord, commit: str, progress: Progress) -> Ended:
    """Rank 0's answer, or the error that a worker has for the user."""
    claim = take(config.run_folder)
    task = {
        "config": config.model_dump(mode="json"),
        "record": record._asdict(),
        "commit": commit,
        "start": claim.start,
    }
    try:
        with listening() as ear, connected(_cpus(config)):
            ear.listen()  # again, for Ray sets handlers of its own
            progress(STARTING, 2, 3)
            if config.cluster.graph_service:
                offered(config)  # what is wrong with it is said before workers start
            answer = attended(
                partial(_fit_while_nodes_leave, config, task, progress),
                ear,
                claim,
                deadline_s=config.train.stop_deadline_s,
                news=lambda text: progress(text, 0, 0),
            )
    finally:
        shutil.rmtree(config.run_folder / RAY, ignore_errors=True)
        _mailbox(claim).unlink(missing_ok=True)
    if "error" in answer:
        raise _user_error(*answer["error"])
    return Ended(answer["started_at"], tuple(answer["damaged"]), answer["lost_metrics"])


def _fit_while_nodes_leave(config: Config, task: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Rank 0's answer; a group that ended because one of its nodes is taken away is followed by another.

    Not by an error in the workers, which Ray Train would count as a failure of theirs.
    """
    while (answer := _fit_on_ray(config, task)).get("left_at") is not None:
        step = answer["left_at"]
        progress(f"a node is taken away: a checkpoint is written at step {step:,}; going on elsewhere", 0, 0)
    return answer


def _fit_on_ray(config: Config, task: dict[str, Any]) -> dict[str, Any]:
    import ray.exceptions
    import ray.train
    from ray.train.torch import TorchTrainer

    cluster = config.cluster
    resources = {"CPU": cluster.cpus_per_worker} | ({"GPU": 1} if cluster.use_gpu else {})
    lost_nodes = cluster.max_failures if isinstance(cluster.num_workers, tuple) else 0
    trainer = TorchTrainer(
        _work,
        train_loop_config=task,
        scaling_config=ray.train.ScalingConfig(
            num_workers=cluster.num_workers,
            use_gpu=cluster.use_gpu,
            resources_per_worker=resources,
            elastic_resize_monitor_interval_s=cluster.resize_interval_s,
        ),
        run_config=ray.train.RunConfig(
            # Our own checkpoints say where to go on; under its old name Ray would look for its own.
            name=f"{config.name}-{time.time_ns():x}",
            storage_path=str(config.run_folder / RAY),
            failure_config=ray.train.FailureConfig(
                max_failures=cluster.max_failures,
                controller_failure_limit=_FAILED_STARTS + lost_nodes,  # each is counted on once more
            ),
            worker_runtime_env={"env_vars": _worker_environment(config)},
        ),
    )
    try:
        answer: dict[str, Any] = trainer.fit().return_value
    except ray.train.ControllerError as error:
        raise TrainingError(
            f"the Ray cluster cannot run {cluster.possible_workers[0]} workers of {resources} "
            f"({_last_line(error)}); add nodes or lower cluster.*"
        ) from error
    except ray.train.WorkerGroupError as error:
        if not any(isinstance(e, ray.exceptions.RayError) for e in error.worker_failures.values()):
            raise
        raise TrainingError(
            f"workers died more often than cluster.max_failures={cluster.max_failures} allows "
            f"({_last_line(error)}); the same command goes on from the last checkpoint"
        ) from error
    return answer


def _work(task: dict[str, Any]) -> dict[str, Any]:
    """What every worker runs: ends with the run's outcome, or with the error to show to the user."""
    config = Config.model_validate(task["config"])
    mailbox = _mailbox(Claim(config.run_folder, task["start"]))
    if mailbox.exists():  # a rank's own error ended the last group: nothing to repeat
        return {"error": json.loads(mailbox.read_text(encoding="utf-8"))}
    try:
        return _fit(config, RunRecord(**task["record"]), task["commit"], task["start"])
    except (TrainingError, CheckpointError) as error:  # raised by all ranks together
        return {"error": [type(error).__name__, str(error)]}
    except (TxPertError, GraphError) as error:  # perhaps this rank's alone: the others must be ended
        partial_file = mailbox.with_name(f"{mailbox.name}.{os.getpid()}")
        partial_file.write_text(json.dumps([type(error).__name__, str(error)]), encoding="utf-8")
        partial_file.replace(mailbox)
        raise


def _fit(config: Config, record: RunRecord, commit: str, start: str) -> dict[str, Any]:
    import ray.train
    from ray.train.torch import get_device

    from txpert_dist.train.gauges import Gauges
    from txpert_dist.train.loop import fit
    from txpert_dist.train.run import Hooks

    told = _told()
    first = ray.train.get_context().get_world_rank() == 0
    notices = Notices(first=first)
    claim = join(config.run_folder, start) if first else None
    writer = MetricWriter(record, system_metrics=True) if first else None
    progress = ProgressFile(config.run_folder / PROGRESS) if first else _silent
    progress(STARTING, 3, 3)

    gauges = Gauges(config.name) if first else None

    def measured(values: Mapping[str, float], step: int) -> None:
        if writer and gauges:
            writer.log(values, step)
            gauges.set(values, step)

    def tell(values: Mapping[str, float], epoch: int) -> None:
        score = f"validation Pearson delta {values[SCORE]:.4f}"
        progress(f"epoch {epoch} of {config.train.epochs}: {score}", 0, 0)
        ray.train.report({**values, "epoch": epoch})

    hooks = Hooks(
        progress=progress,
        metrics=measured,
        epoch=tell,
        told_to_stop=told.is_set,
        time_to_ask=notices.time_to_ask,
        node_leaves=notices.node_leaves,
        keep_records=writer.keep if writer else lambda: None,
        artefact=writer.artefact if writer else lambda _path: None,
    )
    lost = 0
    try:
        copy = node_snapshot(config) if config.cluster.graph_service else None
        with word_awaited(claim, told) if claim else nullcontext():
            outcome = fit(
                config,
                open_inputs(config, copy),
                device=get_device(),
                hooks=hooks,
                git_commit=commit,
                allowed=partial(held, claim) if claim else nullcontext,
            )
    finally:
        lost = writer.close() if writer else 0
    return {
        "started_at": outcome.started_at,
        "damaged": outcome.damaged,
        "lost_metrics": lost,
        "stopped_at": outcome.step if outcome.early == "told to stop" else None,
        "left_at": outcome.step if outcome.early == "a node leaves" else None,
    }


def _told() -> threading.Event:
    """Set once this worker gets SIGTERM: from its node, say, which goes down.

    Only the main thread may listen; in it Ray runs the methods of the actor that this thread belongs to.
    """
    import ray

    ray.get(ray.get_runtime_context().current_actor.execute.remote(listen_for_sigterm))
    return told_by_sigterm()


def _mailbox(claim: Claim) -> Path:
    """Where a worker leaves its error for the driver and the groups to come; each start has its own."""
    return claim.run_folder / f".error-{claim.start}.json"


def _cpus(config: Config) -> int:
    return config.cluster.possible_workers[-1] * config.cluster.cpus_per_worker


def _worker_environment(config: Config) -> dict[str, str]:
    return {
        "DS_ACCELERATOR": "cuda" if config.cluster.use_gpu else "cpu",
        **{name: os.environ[name] for name in _DRIVER_ENVIRONMENT if name.startswith("MLFLOW_")},
        # OpenMP's threads spin for milliseconds after a matrix product, on the cores that attention's need
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "passive"),
        # c10d announces future changes of names on every rank; they are DeepSpeed's to follow
        "PYTHONWARNINGS": "ignore::FutureWarning",
    }


def _default_environment(values: Mapping[str, str]) -> None:
    for name, value in values.items():
        os.environ.setdefault(name, value)


def _user_error(kind: str, message: str) -> Exception:
    if kind == GraphError.__name__:
        return GraphError(message)
    error: TxPertError = getattr(errors, kind, TrainingError)(message)
    return error


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1][:200]
