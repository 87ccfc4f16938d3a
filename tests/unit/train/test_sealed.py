"""Complete or absent, and no damage goes unnoticed."""

import os
import shutil
from contextlib import contextmanager

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from txpert_dist.train.sealed import MANIFEST, adopt, damage, seal, sha256, sweep


def fill(content):
    def write(folder):
        for name, data in content.items():
            (folder / name).write_bytes(data)

    return write


@pytest.fixture
def folder(tmp_path):
    seal(tmp_path / "kept", fill({"a": b"alpha", "b": b"", "c": bytes(range(256))}))
    return tmp_path / "kept"


def test_a_sealed_folder_is_sound(folder):
    assert damage(folder) is None
    assert sorted(path.name for path in folder.iterdir()) == ["a", "b", "c", MANIFEST]
    assert [path.name for path in folder.parent.iterdir()] == ["kept"]
    assert sha256(folder / "a") == "8ed3f6ad685b959ead7022518e1af76cd816f8e8ec7ccdda1ed4018e8f2223f8"


@given(position=st.integers(0, 255), bit=st.integers(0, 7))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
def test_one_flipped_bit_is_noticed(folder, position, bit):
    data = bytearray((folder / "c").read_bytes())
    data[position] ^= 1 << bit
    (folder / "c").write_bytes(data)
    assert str(folder / "c") in damage(folder)
    assert damage(folder, ["a", "b"]) is None
    (folder / "c").write_bytes(bytes(range(256)))


def test_missing_truncated_and_unlisted_files_are_told_apart(folder):
    (folder / "a").unlink()
    assert "a is missing" in damage(folder)
    (folder / "a").write_bytes(b"alph")
    assert "another size" in damage(folder)
    assert MANIFEST in damage(folder, ["never written"])
    (folder / MANIFEST).write_text("{")
    assert MANIFEST in damage(folder)


def test_a_writer_that_fails_leaves_what_was_there(folder):
    def fail(partial):
        (partial / "a").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        seal(folder, fail)
    assert damage(folder) is None
    assert (folder / "a").read_bytes() == b"alpha"
    with pytest.raises(OSError, match="No space"):
        seal(folder.with_name("new"), fail)
    assert [path.name for path in folder.parent.iterdir()] == ["kept"]


def test_a_damaged_folder_is_replaced(folder):
    (folder / "a").unlink()
    seal(folder, fill({"a": b"again"}))
    assert damage(folder) is None
    assert not (folder / "b").exists()


def test_sweep_removes_what_killed_writers_left(folder):
    left = folder.with_name(".partial-epoch")
    left.mkdir()
    (left / "x").write_bytes(b"x")
    os.replace(folder, folder.with_name(".replaced-kept"))
    sweep(folder.parent)
    assert list(folder.parent.iterdir()) == []


def test_two_writers_of_one_folder_do_not_mix(folder):
    """The slower one comes last and whole, whatever the other does meanwhile."""
    started = fill({"a": b"mine", "b": b"mine"})

    def slow(partial):
        started(partial)
        seal(folder, fill({"a": b"theirs", "b": b"theirs"}))
        assert (folder / "a").read_bytes() == b"theirs"

    seal(folder, slow)
    assert damage(folder) is None
    assert [(folder / name).read_bytes() for name in "ab"] == [b"mine", b"mine"]
    assert [path.name for path in folder.parent.iterdir()] == ["kept"]


def test_who_is_not_allowed_changes_nothing(folder):
    @contextmanager
    def refused():
        raise PermissionError("somebody else's now")
        yield

    with pytest.raises(PermissionError, match="somebody else's"):
        seal(folder, fill({"a": b"late"}), refused)
    assert (folder / "a").read_bytes() == b"alpha"
    assert [path.name for path in folder.parent.iterdir()] == ["kept"]


def copied_from(folder, but=()):
    def fetch(partial):
        for path in folder.iterdir():
            if path.name not in but:
                shutil.copy(path, partial / path.name)

    return fetch


def test_what_was_sealed_elsewhere_is_adopted_when_sound(folder, tmp_path):
    other = tmp_path / "elsewhere" / "copy"
    assert adopt(other, copied_from(folder)) is None
    assert damage(other) is None
    assert adopt(other, copied_from(folder, but=["a"])) == "copy/a is missing"
    assert damage(other) is None  # the one that was there
    assert "manifest" in adopt(other.with_name("new"), copied_from(folder, but=[MANIFEST]))
    with pytest.raises(ZeroDivisionError):
        adopt(other, lambda _: 1 / 0)
    (other / "a").write_bytes(b"spoilt")
    assert adopt(other, copied_from(folder)) is None
    assert damage(other) is None
    assert [path.name for path in other.parent.iterdir()] == ["copy"]
