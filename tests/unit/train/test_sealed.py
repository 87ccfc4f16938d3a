"""Complete or absent, and no damage goes unnoticed."""

import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from txpert_dist.train.sealed import MANIFEST, damage, seal, sha256, sweep


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
