"""`txpert store append` as a user meets it."""

from pathlib import Path

import pytest

from tests.unit.ingest.append_screens import FIRST, SECOND, ingested, screen_of, written
from txpert_dist.cli.app import main
from txpert_dist.store.cells import open_store

KEYS = ("--batch-key=batch", "--cell-line-key=line")


def txpert(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["txpert", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_what_was_added_and_what_is_there_now_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = ingested(tmp_path / "a.zarr", written(tmp_path / "a.h5ad", screen_of(FIRST))).path
    before = open_store(store).manifest_hash
    screen = screen_of(SECOND, 1)
    screen.obs["perturbation"] = screen.obs["perturbation"].replace("JAK2+MYC", "MYC|JAK2")
    part = written(tmp_path / "b.h5ad", screen)
    options = (*KEYS, "--split-seed=1", "--separator=|", "--memory-gib=1")
    assert txpert(monkeypatch, "store", "append", store, part, *options) == 0
    shown = capsys.readouterr().out
    lines = [" ".join(line.replace("│", " ").split()) for line in shown.splitlines()]
    for words in (
        "cells 155, of which 43 controls",
        "cells 65, of which 23 controls",
        "batches 4",
        "batches 2",
        "cell lines of these K562, RPE1",
        "perturbations that were there 6",
        "MYC|JAK2 JAK2+MYC 6",
        "files of counts that stay 2",
    ):
        assert words in lines, shown
    told = "note: b.h5ad: 65 cells of 2 new batches were appended; 2 new perturbations split by seed 1: "
    assert any(line.startswith(told) for line in lines)
    assert f"manifest {before[:12]} -> {open_store(store).manifest_hash[:12]}" in shown
    assert txpert(monkeypatch, "store", "verify", store) == 0


@pytest.mark.parametrize(
    ("option", "fragment"),
    [
        ("--batch-key=plate", "no column 'plate'"),
        ("--input-scale=log1p", "holds counts"),
        ("--embedding=X_pca", "has no embedding 'X_pca'"),
        ("--min-cells=0", "--min-cells"),
        ("--where=batch=none", "keeps no cell"),
        ("--preset=replogle", "'gene'"),
    ],
)
def test_an_error_is_one_line_and_exits_with_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    option: str,
    fragment: str,
) -> None:
    store = ingested(tmp_path / "a.zarr", written(tmp_path / "a.h5ad", screen_of(FIRST))).path
    before, part = open_store(store).manifest_hash, written(tmp_path / "b.h5ad", screen_of(SECOND, 1))
    assert txpert(monkeypatch, "store", "append", store, part, *KEYS, option) == 2
    told = capsys.readouterr().err
    assert fragment in told
    assert told.startswith("error: ")
    assert told.count("\n") == 1
    assert open_store(store).manifest_hash == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.h5ad", "a.zarr", "b.h5ad"]
