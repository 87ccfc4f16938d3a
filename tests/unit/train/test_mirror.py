"""Checkpoints at an S3 server on a socket and in a folder: complete or absent, verified on the way back."""

import json
import socket
import uuid
from collections.abc import Iterator

import fsspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.train.test_checkpoint import state, write
from txpert_dist.errors import ConfigError
from txpert_dist.train import checkpoint
from txpert_dist.train.mirror import MirrorError, open_mirror, restore, upload
from txpert_dist.train.sealed import MANIFEST, damage
from txpert_dist.train.tracking import RunRecord, read_run_record, write_run_record

RECORD = RunRecord("id", "http://mlflow", {"seed": 0}, "RUNNING")


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """Address of an S3 server of this process, reached over its socket."""
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    fsspec.get_filesystem_class("s3").clear_instance_cache()  # they know the servers of other tests
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(params=["s3", "file"])
def url(request, tmp_path, monkeypatch):
    if request.param == "file":
        return f"file://{tmp_path}/distant"
    monkeypatch.setenv("AWS_ENDPOINT_URL", request.getfixturevalue("s3"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    bucket = f"bucket-{uuid.uuid4().hex}"
    fsspec.filesystem("s3", skip_instance_cache=True).mkdir(bucket)
    return f"s3://{bucket}/some/runs"


@pytest.fixture
def here(tmp_path):
    write_run_record(tmp_path / "here", RECORD)
    return tmp_path / "here"


def names(run_folder):
    return [folder.name for folder in checkpoint.checkpoints(run_folder)]


def there(mirror):
    """Files at the mirror, by their path below the run's."""
    start = len(mirror.root) + 1
    found = fsspec.core.url_to_fs(mirror.url, use_listings_cache=False)[0].find(mirror.root)
    return {path[start:] for path in found}


def put(mirror, path, content):
    mirror.filesystem.makedirs(mirror.path(path).rpartition("/")[0], exist_ok=True)
    mirror.filesystem.pipe_file(mirror.path(path), content)


def test_the_mirror_keeps_what_is_kept_here_and_an_empty_machine_takes_it(url, here, tmp_path):
    mirror = open_mirror(url, "small")
    upload(mirror, here)
    assert there(mirror) == set()
    for epoch in (1, 2, 3, 4):
        write(here, state(epoch, 10 * epoch, score=0.9 if epoch == 1 else 0.1))
        checkpoint.prune(here, keep=2)
        upload(mirror, here)
        files = {
            f"checkpoints/{name}/{file.name}"
            for name in names(here)
            for file in (here / "checkpoints" / name).iterdir()
        }
        assert there(mirror) == files | {"run.json"}
    assert len(names(here)) == 3  # the best one too
    empty = tmp_path / "elsewhere"
    assert restore(mirror, empty) == ()
    assert read_run_record(empty) == RECORD
    assert names(empty) == names(here)
    for name in names(here):
        for file in (here / "checkpoints" / name).iterdir():
            assert (empty / "checkpoints" / name / file.name).read_bytes() == file.read_bytes()
    assert checkpoint.newest_sound(empty) == (empty / "checkpoints" / names(here)[-1], ())
    assert {path.name for path in empty.iterdir()} == {"run.json", "checkpoints"}
    assert {path.name for path in (empty / "checkpoints").iterdir()} == set(names(here))


def test_an_upload_that_was_broken_off_is_absent_and_made_good(url, here, tmp_path):
    mirror = open_mirror(url, "small")
    write(here, state(1, 10))
    upload(mirror, here)
    newer = write(here, state(2, 20))
    for file in (checkpoint.WEIGHTS, checkpoint.STATE):  # as far as it came
        put(mirror, f"checkpoints/{newer.name}/{file}", (newer / file).read_bytes()[:10])
    restore(mirror, tmp_path / "elsewhere")
    assert names(tmp_path / "elsewhere") == names(here)[:1]
    upload(mirror, here)
    restore(mirror, tmp_path / "elsewhere")
    assert names(tmp_path / "elsewhere") == names(here)
    assert damage(tmp_path / "elsewhere" / "checkpoints" / newer.name) is None


@given(
    file=st.sampled_from([checkpoint.WEIGHTS, checkpoint.OPTIMISER, checkpoint.STATE, MANIFEST]),
    how=st.sampled_from(["cut", "flipped", "empty", "missing"]),
)
@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_there_is_said_and_passed_over(url, tmp_path_factory, file, how):
    here, mirror = tmp_path_factory.mktemp("here"), open_mirror(url, uuid.uuid4().hex)
    write_run_record(here, RECORD)
    good, bad = write(here, state(1, 10)), write(here, state(2, 20))
    upload(mirror, here)
    content = (bad / file).read_bytes()
    spoilt = {
        "cut": content[:-1],
        "flipped": content[:-3] + bytes([content[-3] ^ 1]) + content[-2:],
        "empty": b"",
    }
    path = f"checkpoints/{bad.name}/{file}"
    if how == "missing":
        mirror.filesystem.rm_file(mirror.path(path))
    else:
        put(mirror, path, spoilt[how])
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    lines = restore(mirror, elsewhere)
    assert names(elsewhere) == [good.name]
    if (file, how) == (MANIFEST, "missing"):  # it was never there
        assert lines == ()
    else:
        (line,) = lines
        assert mirror.url in line
        assert bad.name in line
    if (
        file == MANIFEST
    ):  # what is wrong can be seen without reading all: the sound one from here takes its place
        upload(mirror, here)
        restore(mirror, elsewhere)
        assert names(elsewhere) == [good.name, bad.name]


def test_only_what_is_newer_is_brought(url, here, tmp_path):
    mirror = open_mirror(url, "small")
    write(here, state(1, 10))
    upload(mirror, here)
    other = tmp_path / "elsewhere"
    write_run_record(other, RECORD._replace(run_id="its own"))
    own = write(other, state(1, 15))
    restore(mirror, other)
    assert names(other) == [own.name]
    write(here, state(2, 20))
    upload(mirror, here)
    restore(mirror, other)
    assert names(other) == ["epoch-0001-step-000010", own.name, "epoch-0002-step-000020"]
    assert read_run_record(other).run_id == "its own"
    # all damaged here: then what is there is newer, whatever its step
    for folder in checkpoint.checkpoints(other):
        (folder / checkpoint.WEIGHTS).write_bytes(b"")
    restore(mirror, other)
    assert checkpoint.newest_sound(other).folder.name == "epoch-0002-step-000020"


def test_whoever_lost_the_run_changes_nothing_there(url, here):
    mirror = open_mirror(url, "small")
    write(here, state(1, 10))
    upload(mirror, here)
    before = there(mirror)
    write(here, state(2, 20))
    checkpoint.prune(here, keep=1)

    def refuse():
        raise checkpoint.CheckpointError("others have taken this run over")

    with pytest.raises(checkpoint.CheckpointError, match="others have taken"):
        upload(mirror, here, check=refuse)
    assert there(mirror) == before


def test_a_damaged_one_is_not_spread(url, here, tmp_path):
    mirror = open_mirror(url, "small")
    folder = write(here, state(1, 10))
    (folder / checkpoint.WEIGHTS).write_bytes(b"")
    upload(mirror, here)
    assert there(mirror) == {"run.json"}


def test_what_cannot_be_reached_is_one_line(here, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"train\.checkpoint_mirror=nowhere://x: cannot be used"):
        open_mirror("nowhere://x", "small")
    (tmp_path / "distant").write_text("a file where a folder should be")
    mirror = open_mirror(f"file://{tmp_path}/distant", "small")
    write(here, state(1, 10))
    with pytest.raises(MirrorError, match="small cannot be written") as refusal:
        upload(mirror, here)
    assert "\n" not in str(refusal.value)
    assert json.loads((here / "run.json").read_text())["run_id"] == "id"


def test_a_server_that_is_away_is_not_an_empty_mirror(here, tmp_path, monkeypatch):
    """Or a run would begin anew for want of an answer."""
    pytest.importorskip("s3fs")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    mirror = open_mirror(f"s3://bucket-{uuid.uuid4().hex}/runs", "small")
    for attempt in (lambda: restore(mirror, tmp_path / "empty"), lambda: upload(mirror, here)):
        with pytest.raises(MirrorError, match=f"{mirror.url} cannot be (read|written)") as refusal:
            attempt()
        assert "\n" not in str(refusal.value)
