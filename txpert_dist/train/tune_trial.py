"""One trial: a whole run, resumable as any other, by one worker in this process.

Enters: a trial's configuration, and whom to tell each epoch's score. Leaves: a run folder with checkpoints,
scores and its own MLflow run. Invariants: a trial that stops anywhere and starts again does the epochs it
would have done; a score and its metrics are on disk before anybody hears of them; nobody else trains in the
folder meanwhile.

One worker, whatever ``cluster.num_workers`` says: a result does not depend on their number, and trials side
by side lose nothing to talking with each other.
"""

from collections.abc import Callable, Mapping

import torch
import torch.distributed as dist

from txpert_dist.config import Config
from txpert_dist.train.checkpoint import SCORE
from txpert_dist.train.inputs import Inputs, open_inputs
from txpert_dist.train.loop import fit
from txpert_dist.train.run import Hooks
from txpert_dist.train.run_folder import claimed_at_last, existing_record
from txpert_dist.train.session import finished, record_run
from txpert_dist.train.tracking import MetricWriter, RunRecord, Status, describe_run, write_run_record
from txpert_dist.train.tune_search import LOWEST
from txpert_dist.train.tune_study import add_score, best_so_far, read_scores, recover_scores

Tell = Callable[[int, float], None]
"""(epoch, the best score up to there)"""

_PARENT = "mlflow.parentRunId"


def run_trial(config: Config, *, parent: str, commit: str, tell: Tell) -> None:
    """Train to the end, or until ``tell`` raises ``SystemExit``: the trial is not wanted any more.

    Raises what training raises, with one line for the user.
    """
    inputs = open_inputs(config)
    with claimed_at_last(config.run_folder):
        recover_scores(config.run_folder)
        record = existing_record(config)
        if record is not None and finished(config) is not None:
            _tell(config, config.train.epochs, tell)  # it ended before anybody noted that it had
            return
        record = record_run(config, inputs, record, commit)
        describe_run(record, status="RUNNING", tags={_PARENT: parent})
        status: Status = "FAILED"
        try:
            _fit(config, inputs, record, commit, tell)
            status = "FINISHED"
        except SystemExit:
            status = "KILLED"
            raise
        finally:
            record = record._replace(status=status)
            write_run_record(config.run_folder, record)
            describe_run(record, status=status)


def _fit(config: Config, inputs: Inputs, record: RunRecord, commit: str, tell: Tell) -> None:
    device = torch.device("cuda:0" if config.cluster.use_gpu else "cpu")
    _alone(device)
    writer = MetricWriter(record)

    def heard(values: Mapping[str, float], epoch: int) -> None:
        writer.keep()  # whoever hears of the score may end this process at once
        add_score(config.run_folder, epoch, values[SCORE])
        _tell(config, epoch, tell)

    hooks = Hooks(progress=lambda *_: None, metrics=writer.log, epoch=heard, keep_records=writer.keep)
    try:
        fit(config, inputs, device=device, hooks=hooks, git_commit=commit)
    finally:
        writer.close()


def _tell(config: Config, epoch: int, tell: Tell) -> None:
    tell(epoch, best_so_far(read_scores(config.run_folder)).get(epoch, LOWEST))


def _alone(device: torch.device) -> None:
    """A process group of this process only; no socket is opened for it."""
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        store = dist.HashStore()  # type: ignore[attr-defined]  # torch does not list it
        dist.init_process_group(backend, store=store, rank=0, world_size=1)
