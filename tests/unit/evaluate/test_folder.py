"""A folder of results appears complete or not at all, and replaces its own kind only."""

from pathlib import Path

import pytest

from txpert_dist.errors import InputError
from txpert_dist.evaluate.folder import replace_folder


def put(text: str):
    def write(folder: Path) -> None:
        (folder / "mark").write_text(text)

    return write


def test_only_its_own_kind_is_replaced(tmp_path: Path) -> None:
    place = tmp_path / "deep" / "out"
    replace_folder(place, put("one"), mark="mark", what="not one")
    (place / "more").touch()
    replace_folder(place, put("two"), mark="mark", what="not one")
    assert [(path.name, path.read_text()) for path in place.iterdir()] == [("mark", "two")]
    (place / "mark").unlink()
    replace_folder(place, put("three"), mark="mark", what="not one")
    (place / "mark").rename(place / "thesis")
    with pytest.raises(InputError, match="exists and is not one; give a new folder"):
        replace_folder(place, put("four"), mark="mark", what="not one")
    with pytest.raises(InputError, match="exists and is not one"):
        replace_folder(place / "thesis", put("five"), mark="mark", what="not one")
    assert [(path.name, path.read_text()) for path in place.iterdir()] == [("thesis", "three")]


def test_a_failure_leaves_what_was_there_and_nothing_else(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "mark").write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        replace_folder(tmp_path / "out", fail, mark="mark", what="not one")
    assert list(tmp_path.iterdir()) == []
    replace_folder(tmp_path / "out", put("one"), mark="mark", what="not one")
    with pytest.raises(OSError, match="disk full"):
        replace_folder(tmp_path / "out", fail, mark="mark", what="not one")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "mark").read_text() == "one"
