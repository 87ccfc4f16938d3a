"""Every bad input: one line that says what, where and what to do, and nothing left behind."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from tests.bad_inputs import CASES, EMBEDDING_CASES, BadInput, good_screen
from txpert_dist.errors import InputError
from txpert_dist.ingest.config import IngestConfig
from txpert_dist.ingest.run import ingest
from txpert_dist.store.cells import open_store

ALL = (*CASES, *EMBEDDING_CASES)


@pytest.mark.parametrize("case", ALL, ids=[case.name for case in ALL])
def test_bad_input_is_refused_in_one_line_and_leaves_nothing(case: BadInput, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    settings = case.build(tmp_path / "in")
    with pytest.raises(InputError) as caught:
        ingest(IngestConfig(store=tmp_path / "out" / "screen.zarr", **settings))
    message = str(caught.value)
    assert "\n" not in message
    for fragment in case.fragments:
        assert fragment in message, message
    out = tmp_path / "out"
    assert not out.exists() or not list(out.iterdir())


def test_case_names_are_unique() -> None:
    assert len({case.name for case in ALL}) == len(ALL)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "good.h5ad"
    good_screen().write_h5ad(path)
    return path


def test_a_folder_that_is_no_store_is_never_touched(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "thesis"
    target.mkdir()
    (target / "chapter1.tex").write_text("years of work")
    with pytest.raises(InputError, match=r"thesis: exists and is not a cell store"):
        ingest(IngestConfig(sources=(source,), store=target, overwrite=True))
    assert (target / "chapter1.tex").read_text() == "years of work"


def test_a_file_at_the_path_is_never_touched(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "notes.txt"
    target.write_text("notes")
    with pytest.raises(InputError, match="exists and is not a cell store"):
        ingest(IngestConfig(sources=(source,), store=target, overwrite=True))
    assert target.read_text() == "notes"


def test_a_path_that_cannot_be_written(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/screen\.zarr: cannot be written"):
        ingest(IngestConfig(sources=(source,), store=tmp_path / "file" / "screen.zarr"))


def test_a_different_store_is_replaced_only_when_asked(source: Path, tmp_path: Path) -> None:
    config = IngestConfig(sources=(source,), store=tmp_path / "s.zarr", batch_key="batch")
    ingest(config)
    other = config.model_copy(update={"split_seed": 1})
    with pytest.raises(
        InputError, match=r"s\.zarr: holds a store made from other files or settings.*--overwrite"
    ):
        ingest(other)
    assert ingest(config).created is False
    before = open_store(config.store).manifest_hash
    assert ingest(other.model_copy(update={"overwrite": True})).created
    assert open_store(config.store).manifest_hash != before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["good.h5ad", "s.zarr"]


def test_a_damaged_store_is_replaced_only_when_asked(source: Path, tmp_path: Path) -> None:
    config = IngestConfig(sources=(source,), store=tmp_path / "s.zarr", batch_key="batch")
    ingest(config)
    (config.store / "X" / "data" / "c" / "0").write_bytes(b"")
    with pytest.raises(InputError, match=r"X/data/c/0.*--overwrite"):
        ingest(config)
    assert ingest(config.model_copy(update={"overwrite": True})).created
    open_store(config.store).read(0, 64)


def test_an_unknown_setting_is_refused() -> None:
    with pytest.raises(ValidationError, match="perturbation_column"):
        IngestConfig(sources=(), store=Path("s"), perturbation_column="x")  # type: ignore[call-arg]
