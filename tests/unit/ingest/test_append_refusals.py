"""What cannot be appended is one line, and the store is as it was."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse

from tests.unit.ingest.append_screens import (
    FIRST,
    LABELS,
    SECOND,
    Batch,
    appended,
    ingested,
    screen_of,
    written,
)
from txpert_dist.errors import InputError, StoreError
from txpert_dist.ingest.claim import claimed
from txpert_dist.store import manifest
from txpert_dist.store.cells import open_store, verify
from txpert_dist.store.remote import make_view

Change = Callable[[anndata.AnnData], anndata.AnnData | None]


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of the FIRST batches with the embedding X_pca, alone in its folder."""
    folder = tmp_path_factory.mktemp("refusals")
    screen = screen_of(FIRST)
    screen.obsm["X_pca"] = np.ones((90, 3), np.float32)
    (folder / "store").mkdir()
    ingested(folder / "store" / "a.zarr", written(folder / "a.h5ad", screen), embeddings=("X_pca",))
    return folder / "store" / "a.zarr"


@pytest.fixture
def store(untouched: Path, tmp_path: Path) -> Path:
    shutil.copytree(untouched.parent, tmp_path / "store")
    return tmp_path / "store" / "a.zarr"


def value(number: float) -> Change:
    def change(screen: anndata.AnnData) -> None:
        x_BG = screen.X.toarray()
        x_BG[7, 2] = number
        screen.X = scipy.sparse.csr_matrix(x_BG)

    return change


def column(name: str, content: object) -> Change:
    def change(screen: anndata.AnnData) -> None:
        screen.obs[name] = content

    return change


def batch_of(names: list[str]) -> Change:
    return lambda screen: column("batch", np.resize(names, len(screen)))(screen)


def embedded(width: int) -> Change:
    return lambda screen: screen.obsm.update({"X_pca": np.ones((len(screen), width), np.float32)})


def labelled(old: str, new: str) -> Change:
    def change(screen: anndata.AnnData) -> None:
        screen.obs["perturbation"] = screen.obs["perturbation"].replace(old, new)

    return change


def nothing(screen: anndata.AnnData) -> None:
    """As it is."""


NEW_LINE_WITHOUT_CONTROL = [Batch("RPE1", "1", 9, False, LABELS[:2])]
DROP = {"drop_embeddings": True}

CASES: dict[str, tuple[Change, dict[str, object], tuple[str, ...]]] = {
    "a batch that is there": (
        batch_of(["1", "7", "2"]),
        DROP,
        ("b.h5ad", "a.zarr has batch '1' of cell line 'K562' already and 1 more", "--where"),
    ),
    "genes that lack": (
        lambda screen: screen[:, :9].copy(),
        DROP,
        ("b.h5ad: lacks 3 of the store's 12 genes ('CEBPA'", "ingest all files together"),
    ),
    "a count above the type": (
        value(256),
        DROP,
        ("b.h5ad: X: value 256 of cell '", "(row 7), gene 'JAK2'", "uint8", "together"),
    ),
    "a value that is no count": (value(0.5), DROP, ("b.h5ad", "not a whole number", "JAK2")),
    "another scale": (nothing, {"input_scale": "log1p", **DROP}, ("a.zarr: holds counts", "log1p")),
    "an embedding that lacks": (nothing, {}, ("a.zarr: has embeddings 'X_pca'", "--drop-embeddings")),
    "an embedding not in the file": (nothing, {"embeddings": ("X_pca",)}, ("b.h5ad: obsm has no 'X_pca'",)),
    "an embedding of another width": (
        embedded(4),
        {"embeddings": ("X_pca",)},
        ("b.h5ad: obsm/X_pca is 4 wide, but 3 in", "a.zarr"),
    ),
    "an embedding too many": (
        embedded(3),
        {"embeddings": ("X_pca", "X_more")},
        ("a.zarr: has no embedding 'X_more'", "embed add"),
    ),
    "an embedding taken and dropped": (
        embedded(3),
        {"embeddings": ("X_pca",), **DROP},
        ("--embedding and --drop-embeddings",),
    ),
    "a new cell line without controls": (
        lambda _: screen_of(NEW_LINE_WITHOUT_CONTROL),
        DROP,
        ("b.h5ad: no control cell in cell line RPE1",),
    ),
    "no cell": (
        nothing,
        {"min_cells": 30, "where": ("perturbation=SPI1",), **DROP},
        ("b.h5ad: no cell is left to append", "--min-cells"),
    ),
    "a label of another meaning": (
        lambda _: screen_of([Batch("K562", "8", 9, False, ("STAT1", "ctrl"))]),
        {"control_label": "STAT1", **DROP},
        ("b.h5ad: label 'STAT1' is control here and STAT1 in the store", "options"),
    ),
    "a control label that is nowhere": (
        nothing,
        {"control_label": "AAVS", **DROP},
        ("b.h5ad", "'AAVS'", "--control-label"),
    ),
    "no such column": (nothing, {"batch_key": "plate", **DROP}, ("b.h5ad", "'plate'")),
    "no label": (column("perturbation", ""), DROP, ("b.h5ad", "'perturbation'", "--unlabelled")),
}


@pytest.mark.parametrize("case", CASES)
def test_a_bad_part_is_one_line_and_changes_nothing(store: Path, tmp_path: Path, case: str) -> None:
    change, options, words = CASES[case]
    screen = screen_of(SECOND, 1)
    changed = change(screen)
    source = written(tmp_path / "b.h5ad", changed if isinstance(changed, anndata.AnnData) else screen)
    before = state(store)
    with pytest.raises(InputError) as caught:
        appended(store, source, **options)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    assert state(store) == before
    assert [path.name for path in store.parent.iterdir()] == ["a.zarr"]


def state(store: Path) -> dict[Path, tuple[int, int]]:
    """Every file below the store: which it is, and when it was written."""
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in store.rglob("*")}


def test_the_same_files_twice_are_refused(store: Path, tmp_path: Path) -> None:
    source = written(tmp_path / "b.h5ad", screen_of(SECOND, 1))
    appended(store, source, **DROP)
    before = state(store)
    with pytest.raises(InputError, match=r"has batch '3' of cell line 'K562' already and 1 more"):
        appended(store, source)
    assert state(store) == before


def test_files_that_nobody_named_or_that_are_not_there(store: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no source file"):
        appended(store)
    with pytest.raises(InputError, match=r"b\.h5ad: no such file"):
        appended(store, tmp_path / "b.h5ad", **DROP)
    source = written(tmp_path / "b.h5ad", screen_of(SECOND, 1))
    with pytest.raises(InputError, match="given twice"):
        appended(store, source, source, **DROP)
    with pytest.raises(StoreError, match=r"other\.zarr: no cell store there"):
        appended(tmp_path / "other.zarr", source)
    assert not (tmp_path / "other.zarr").exists()


def test_a_view_is_not_changed(store: Path, tmp_path: Path) -> None:
    view = make_view(f"file://{store}", tmp_path / "view.zarr")
    with pytest.raises(InputError, match="is a view of a store that lies elsewhere"):
        appended(view, written(tmp_path / "b.h5ad", screen_of(SECOND, 1)), **DROP)


def test_one_process_at_a_time_changes_a_store(store: Path, tmp_path: Path) -> None:
    source = written(tmp_path / "b.h5ad", screen_of(SECOND, 1))
    with claimed(store), pytest.raises(InputError, match="another process is changing this store"):
        appended(store, source, **DROP)


def test_files_of_others_in_the_store_do_not_vanish(store: Path, tmp_path: Path) -> None:
    (store / "layers").mkdir()
    (store / "layers" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"layers/notes\.txt: was not written by txpert"):
        appended(store, written(tmp_path / "b.h5ad", screen_of(SECOND, 1)), **DROP)
    assert (store / "layers" / "notes.txt").read_text() == "mine"


def test_a_source_that_changes_while_it_is_read_is_refused(store: Path, tmp_path: Path) -> None:
    from txpert_dist.ingest.append import append
    from txpert_dist.ingest.config import AppendConfig

    source = written(tmp_path / "b.h5ad", screen_of(SECOND, 1))
    keys = {"batch_key": "batch", "cell_line_key": "line"}
    before = state(store)

    def touch(what: str, done: int, total: int) -> None:
        if what == "write" and done == total:
            written(source, screen_of(SECOND, 2))

    with pytest.raises(InputError, match="changed while it was read"):
        append(AppendConfig(sources=(source,), store=store, **keys, **DROP), progress=touch)
    assert state(store) == before


def test_a_store_of_another_form_is_refused(store: Path, tmp_path: Path) -> None:
    """Its files would be read by metadata that is not theirs: here, of another level of compression."""
    metadata = store / "X" / "indices" / "zarr.json"
    tree = json.loads(metadata.read_text())
    (sharding,) = tree["codecs"]
    (codec,) = (codec for codec in sharding["configuration"]["codecs"] if codec["name"] == "blosc")
    codec["configuration"]["clevel"] = 1
    before = manifest.read(store)
    metadata.write_text(json.dumps(tree))
    manifest.amend(store, before, [metadata], replaced="nothing")
    verify(store)
    with pytest.raises(InputError, match=r"X/indices was written in another form.*txpert store split"):
        appended(store, written(tmp_path / "b.h5ad", screen_of(SECOND, 1)), **DROP)
    assert open_store(store).num_cells == 90


def test_a_damaged_store_is_refused(store: Path, tmp_path: Path) -> None:
    (store / "uns/txpert/knockdown/gene/c/0").unlink()
    with pytest.raises(StoreError, match="knockdown/gene/c/0: file of the cell store is missing"):
        appended(store, written(tmp_path / "b.h5ad", screen_of(SECOND, 1)), **DROP)
    assert [path.name for path in store.parent.iterdir()] == ["a.zarr"]


def test_cells_without_a_gene_of_the_store_are_refused(store: Path, tmp_path: Path) -> None:
    screen = screen_of(SECOND, 1)
    x_BG = np.zeros((len(screen), 13), np.float32)
    x_BG[:, 12] = 1
    genes = pd.DataFrame(index=[*screen.var_names, "OTHER"])
    other = anndata.AnnData(scipy.sparse.csr_matrix(x_BG), screen.obs, genes)
    with pytest.raises(InputError, match=r"b\.h5ad: no count in any of the store's 12 genes"):
        appended(store, written(tmp_path / "b.h5ad", other), **DROP)
