"""A folder belongs to one configuration and one process."""

import json
from pathlib import Path

import pytest

from tests.processes import run
from tests.unit.train.small_screen import configuration
from txpert_dist.errors import ConfigError, TrainingError
from txpert_dist.train.run_folder import absolute, claimed, existing_record, git_commit
from txpert_dist.train.tracking import RunRecord, write_run_record


def test_what_may_differ_and_what_may_not(tmp_path):
    config = configuration(tmp_path, tmp_path)
    assert existing_record(config) is None
    record = RunRecord("id", "uri", config.model_dump(mode="json"), "KILLED")
    write_run_record(config.run_folder, record)
    same = configuration(
        tmp_path,
        tmp_path,
        train={
            "epochs": 9,
            "checkpoint_every_epochs": 3,
            "checkpoint_every_steps": 7,
            "keep_checkpoints": 5,
            "checkpoint_mirror": "s3://bucket",
            "stop_deadline_s": 5,
        },
        cluster={"num_workers": 4, "zero_stage": 0},
        tracking={"experiment": "other"},
    )
    assert existing_record(same) == record
    other = configuration(tmp_path, tmp_path, seed=3, model={"latent": 9, "basal": {"kind": "identity"}})
    with pytest.raises(ConfigError) as caught:
        existing_record(other)
    assert "model.latent (8 -> 9), seed (0 -> 3)" in str(caught.value)
    assert "model.basal.hidden (16 -> None), model.basal.kind (mlp -> identity)" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_record_of_another_version_is_said(tmp_path):
    config = configuration(tmp_path, tmp_path)
    write_run_record(config.run_folder, RunRecord("id", "uri", {"gone": 1}, "KILLED"))
    with pytest.raises(ConfigError, match="another version"):
        existing_record(config)


def try_to_claim(_rank, _world, folder):
    with pytest.raises(TrainingError, match="another process is training this run"), claimed(folder):
        pass
    return True


@pytest.mark.process
def test_two_processes_cannot_train_in_one_folder(tmp_path):
    with claimed(tmp_path / "run"):
        assert run(try_to_claim, 1, tmp_path / "run") == [True]
    with claimed(tmp_path / "run"):
        pass


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"), claimed(tmp_path / "file" / "run"):
        pass


def test_paths_hold_in_every_directory(tmp_path):
    relative = configuration(Path("here"), Path("runs"))
    resolved = absolute(relative)
    assert resolved.data.store == Path.cwd() / "here" / "screen.zarr"
    assert resolved.graph.location == str(Path.cwd() / "here" / "graphs")
    assert resolved.run_folder == Path.cwd() / "runs" / "small"
    remote = relative.model_copy(
        update={"graph": relative.graph.model_copy(update={"location": "grpc+tls://host:8815"})}
    )
    assert absolute(remote).graph.location == "grpc+tls://host:8815"
    assert absolute(resolved) == resolved


def test_commit_is_one_word():
    assert git_commit()
    assert not set(" \n") & set(git_commit())


def test_without_a_checkout_the_commit_is_the_one_it_was_installed_from(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))  # no git here
    info = tmp_path / "txpert_dist-9.9.9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: txpert-dist\nVersion: 9.9.9\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert git_commit() == "unknown"
    origin = {"url": "https://example.org/x.git", "vcs_info": {"vcs": "git", "commit_id": "ab12"}}
    (info / "direct_url.json").write_text(json.dumps(origin))
    assert git_commit() == "ab12"
