"""`txpert train` on Ray: whatever dies or is told to stop, the same command ends with the same model."""

import pytest

from tests.faults import RUN, TOKEN, Training, losses_of, same_files, undisturbed, with_services
from txpert_dist.train import checkpoint
from txpert_dist.train.tracking import read_run_record

pytestmark = [pytest.mark.process, pytest.mark.timeout(900)]

EPOCHS, TEMPORARY = 60, 75


def newest(training: Training) -> checkpoint.RunState:
    folder = checkpoint.newest_sound(training.run_folder).folder
    return checkpoint.read_state(folder)


def test_whatever_dies_the_run_ends_as_if_nothing_had(tmp_path):
    with with_services(tmp_path, epochs=EPOCHS, workers=2) as (training, graphs, mlflow):
        hurt(training, graphs, mlflow)
        losses, last = undisturbed(training.config, tmp_path / "calm", workers=2)
        assert same_files(checkpoint.checkpoints(training.run_folder)[-1], last)
        assert losses_of(training.run_folder).items() <= losses.items()
        folders = (training.run_folder, last.parent.parent)
        best = [checkpoint.best_checkpoint(folder).name for folder in folders]
        assert best[0] == best[1]
        assert not list((training.run_folder / checkpoint.FOLDER).glob(".*"))
        assert TOKEN not in training.log()


def hurt(training, graphs, mlflow):
    """All that can die does, once; the run ends by itself."""
    training.start()
    training.reached(20)
    training.kill_worker(1)
    training.replaced()
    training.kill_writer()
    training.replaced()
    graphs.kill()
    mlflow.kill()
    at = training.reached(training.step() + 10)
    training.kill_driver()

    mlflow.start()  # the graphs are in the run's folder
    training.start()  # beside workers that may not know yet that their driver is dead
    at = training.reached(at)
    training.tell_worker(1)
    assert training.ended() == TEMPORARY, training.log()
    assert "stopped at step" in training.log()
    assert newest(training).step >= at
    assert read_run_record(training.run_folder).status == "KILLED"

    training.start()
    at = training.reached(at)
    training.tell_driver()
    assert training.ended() == TEMPORARY, training.log()
    stopped = newest(training)
    assert stopped.step >= at
    assert f"stopped at step {stopped.step:,}, with a checkpoint; the same command goes on" in training.log()
    assert "Traceback" not in training.log()

    training.start()
    assert training.ended() == 0, training.log()
    assert f"went on from step {stopped.step:,}" in training.log()


def test_after_the_deadline_it_ends_anyway(tmp_path):
    """A worker that is halted can write nothing."""
    late = Training(tmp_path, **RUN | {"train": RUN["train"] | {"stop_deadline_s": 2, "epochs": 10_000}})
    late.start()
    late.reached(20)
    for worker in late.workers():
        worker.suspend()
    late.tell_driver()
    assert late.ended() == TEMPORARY, late.log()
    assert "stopped without a last checkpoint, for train.stop_deadline_s=2 have passed" in late.log()
    assert read_run_record(late.run_folder).status == "KILLED"
