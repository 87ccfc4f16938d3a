"""Ingest end to end on small screens: what the store holds is what the files hold."""

import itertools
from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy
import scipy.sparse

from tests.bad_inputs import GENES, good_screen
from tests.unit.ingest.rows import in_source_order, source_row
from txpert_dist.ingest.config import IngestConfig
from txpert_dist.ingest.run import ingest
from txpert_dist.store.cells import CellStore, open_store, verify
from txpert_dist.store.controls import Context
from txpert_dist.store.expression import dense, log1p_normalise
from txpert_dist.store.splits import SPLITS, TRAIN

Run = Callable[..., CellStore]


OURS = ["txpert_library_size", "txpert_detected_genes"]
"""Columns that ingest adds to obs."""


def expression(store: CellStore) -> np.ndarray:
    """In the order of the files."""
    rows = log1p_normalise(store.take(in_source_order(store)), input_scale=store.input_scale)
    return dense(rows, len(store.genes))


def names(store: CellStore) -> list[str]:
    """In the order of the files."""
    return [store.perturbations[code] for code in store.perturbation[in_source_order(store)]]


# --- content ----------------------------------------------------------------------------------------------


def test_anndata_gets_back_what_went_in(run: Run, tmp_path: Path) -> None:
    screen = good_screen()
    screen.obs["number"] = np.arange(64)
    screen.obs["flag"] = np.arange(64) % 3 == 0
    screen.obs["text"] = [f"t{i}" for i in range(64)]
    screen.obs["grade"] = pd.Categorical(np.arange(64) % 4, ordered=True)
    screen.obs["maybe"] = pd.array([1, None] * 32, "Int64")
    screen.var["length"] = np.linspace(0, 1, len(GENES))
    store = run(tmp_path, screen, batch_key="batch")
    back = anndata.read_zarr(store.path)[in_source_order(store)].copy()
    assert (back.X.toarray() == screen.X.toarray()).all()
    assert back.X.dtype == np.uint8
    pd.testing.assert_frame_equal(back.obs.drop(columns=OURS), anndata.read_h5ad(tmp_path / "file0.h5ad").obs)
    assert back.obs["txpert_library_size"].tolist() == screen.X.sum(1).A1.tolist()
    assert back.obs["txpert_detected_genes"].tolist() == (screen.X > 0).sum(1).A1.tolist()
    pd.testing.assert_frame_equal(back.var, screen.var)
    assert store.genes == GENES
    verify(store.path)


@pytest.mark.parametrize(("largest", "dtype"), [(255, np.uint8), (256, np.uint16), (70_000, np.uint32)])
def test_counts_take_the_smallest_type_that_holds_them(
    run: Run, tmp_path: Path, largest: int, dtype: type
) -> None:
    screen = good_screen()
    counts = screen.X.toarray()
    counts[0, 1] = largest
    screen.X = scipy.sparse.csr_matrix(counts)
    store = run(tmp_path, screen)
    first = store.take(in_source_order(store)[:1])
    assert first.value.dtype == dtype
    assert dense(first, 12)[0, 1] == largest


@pytest.mark.parametrize("layout", ["csc", "dense", "layer", "raw"])
def test_the_layout_of_the_file_makes_no_difference(run: Run, tmp_path: Path, layout: str) -> None:
    plain, other = good_screen(), good_screen()
    settings: dict[str, object] = {"batch_key": "batch", "select_genes": 6}
    if layout == "csc":
        other.X = scipy.sparse.csc_matrix(other.X)
    elif layout == "dense":
        other.X = other.X.toarray().astype(np.int64)
    elif layout == "raw":
        other.raw = other.copy()
    else:
        other.layers["umi"] = other.X.copy()
    if layout in ("layer", "raw"):
        other.X = np.log1p(other.X)
        settings["layer"] = "umi" if layout == "layer" else "raw"
    expected = run(tmp_path / "a", plain, batch_key="batch", select_genes=6)
    found = run(tmp_path / "b", other, **settings)
    assert (dense(found.read(0, 64), 12) == dense(expected.read(0, 64), 12)).all()
    assert found.library_size.tolist() == expected.library_size.tolist()
    assert found.selected.tolist() == expected.selected.tolist()
    np.testing.assert_allclose(found.control_mean_CG, expected.control_mean_CG, rtol=1e-6)


def test_expression_and_library_size_are_scanpys(run: Run, tmp_path: Path) -> None:
    screen = good_screen()
    store = run(tmp_path, screen, batch_key="batch")
    scanpy.pp.normalize_total(screen, target_sum=4000)
    scanpy.pp.log1p(screen)
    np.testing.assert_allclose(expression(store), screen.X.toarray(), rtol=1e-5)


def test_a_named_library_size_is_used(run: Run, tmp_path: Path) -> None:
    screen = good_screen()
    screen.obs["total"] *= 3
    store = run(tmp_path, screen, library_size_key="total")
    assert store.library_size[in_source_order(store)].tolist() == screen.obs["total"].tolist()


def test_log1p_input_is_stored_as_such(run: Run, tmp_path: Path) -> None:
    screen = good_screen()
    scanpy.pp.normalize_total(screen, target_sum=1e4)
    scanpy.pp.log1p(screen)
    store = run(tmp_path, screen, input_scale="log1p", batch_key="batch")
    assert store.input_scale == "log1p"
    assert store.read(0, 3).value.dtype == np.float32
    np.testing.assert_array_equal(expression(store), screen.X.toarray())
    np.testing.assert_allclose(store.library_size, 1e4, rtol=1e-4)
    controls = (screen.obs["perturbation"] == "ctrl") & (screen.obs["batch"] == "1")
    np.testing.assert_allclose(store.control_mean_CG[0], screen.X[controls.to_numpy()].mean(0).A1, rtol=1e-5)


# --- labels, contexts, controls ---------------------------------------------------------------------------


def test_one_perturbation_under_many_labels_is_one_code_in_one_split(run: Run, tmp_path: Path) -> None:
    screen = good_screen()
    spellings = {
        "STAT1": itertools.cycle(["STAT1", "STAT1+ctrl", "ctrl+STAT1", "non-targeting+STAT1"]),
        "SPI1+BRD4": itertools.cycle(["SPI1+BRD4", "BRD4+SPI1"]),
        "ctrl": itertools.cycle(["ctrl", "Control", "non-targeting", "NT", "non_targeting"]),
    }
    given = [next(spellings[label]) if label in spellings else label for label in screen.obs["perturbation"]]
    screen.obs["perturbation"] = pd.Categorical(given)
    store = run(tmp_path, screen)
    assert store.perturbations == ("control", "BRD4+SPI1", "CD86", "CUL3", "IRF1", "JAK2", "MYC", "STAT1")
    back = {"ctrl": "control", "SPI1+BRD4": "BRD4+SPI1"}
    assert names(store) == [back.get(label, label) for label in good_screen().obs["perturbation"]]
    summary = ingest(IngestConfig(sources=(tmp_path / "file0.h5ad",), store=store.path))
    table = {row.label: (row.perturbation, row.num_cells) for row in summary.labels}
    assert table["ctrl+STAT1"] == ("STAT1", 2)
    assert table["NT"] == ("control", 1)
    assert sum(count for _name, count in table.values()) == 64
    kept = anndata.read_zarr(store.path).uns["txpert"]["labels"]
    assert dict(zip(kept["label"], kept["perturbation"], strict=True))["NT"] == "control"


def test_splits_depend_on_names_and_seed_only(run: Run, tmp_path: Path) -> None:
    screen = good_screen()
    first = run(tmp_path / "a", screen, split_seed=3)
    second = run(tmp_path / "b", screen[::-1].copy(), split_seed=3)
    assert first.split_hash == second.split_hash
    assert first.split[0] == TRAIN
    assert np.bincount(first.split[1:], minlength=3).tolist() == [4, 1, 2]


def test_contexts_controls_and_their_means(run: Run, tmp_path: Path) -> None:
    screen = good_screen(96)
    number = np.arange(96)
    screen.obs["line"] = pd.Categorical(np.where(number % 3 == 0, "RPE1", "K562"))
    screen.obs["gem"] = 1 + number // 32
    # Batch 2 of K562 gets no control of its own.
    lost = (screen.obs["perturbation"] == "ctrl") & (screen.obs["line"] == "K562") & (screen.obs["gem"] == 2)
    screen.obs.loc[lost, "perturbation"] = "MYC"
    store = run(tmp_path, screen, batch_key="gem", cell_line_key="line")
    assert store.contexts == tuple(Context(line, str(gem)) for line in ("K562", "RPE1") for gem in (1, 2, 3))
    order = in_source_order(store)
    assert [store.contexts[code] for code in store.context[order]] == [
        Context(line, str(gem)) for line, gem in zip(screen.obs["line"], screen.obs["gem"], strict=True)
    ]
    summary = ingest(
        IngestConfig(
            sources=(tmp_path / "file0.h5ad",), store=store.path, batch_key="gem", cell_line_key="line"
        )
    )
    x_BG = expression(store)
    control = (screen.obs["perturbation"] == "ctrl").to_numpy()
    for code, (line, batch) in enumerate(store.contexts):
        in_line = control & (screen.obs["line"] == line).to_numpy()
        own = in_line & (screen.obs["gem"].astype(str) == batch).to_numpy()
        expected = np.flatnonzero(own if own.any() else in_line)
        start, stop = store.controls.indptr[code : code + 2]
        rows = store.controls.rows[start:stop]
        assert rows.tolist() == sorted(rows.tolist())
        assert sorted(source_row(store)[rows].tolist()) == expected.tolist()
        np.testing.assert_allclose(store.control_mean_CG[code], x_BG[expected].mean(0), rtol=1e-5, atol=1e-7)
    assert store.controls.fallback.tolist() == [False, True, False, False, False, False]
    assert summary.fallback_contexts == ("K562/2",)
    assert summary.fallback_cells == int(((screen.obs["line"] == "K562") & (screen.obs["gem"] == 2)).sum())


@pytest.mark.parametrize("as_written", [lambda b: b, lambda b: b.astype(float), lambda b: b.astype(str)])
def test_a_batch_number_has_one_name_whatever_its_type(run: Run, tmp_path: Path, as_written: object) -> None:
    screen = good_screen()
    screen.obs["gem"] = as_written(27 + np.arange(64) % 2)  # type: ignore[operator]
    store = run(tmp_path, screen, batch_key="gem", cell_line="K562")
    assert store.contexts == (Context("K562", "27"), Context("K562", "28"))


def test_what_was_decided_without_being_told_is_in_the_notes(tmp_path: Path) -> None:
    screen = good_screen()
    screen.obs["perturbation"] = screen.obs["perturbation"].astype(str).replace("MYC", "MYC_KLF1")
    path = tmp_path / "thp1.h5ad"
    screen.write_h5ad(path)
    summary = ingest(IngestConfig(sources=(path,), store=tmp_path / "s.zarr"))
    assert open_store(tmp_path / "s.zarr").contexts == (Context("thp1", "all"),)
    notes = "; ".join(summary.notes)
    for words in ("no batch column", "all its cells are of 'thp1'", "'MYC_KLF1'", "--separator"):
        assert words in notes
    split = IngestConfig(sources=(path,), store=tmp_path / "t.zarr", separator="_", cell_line="THP-1")
    assert "--separator" not in "; ".join(ingest(split).notes)
    assert "KLF1+MYC" in open_store(tmp_path / "t.zarr").perturbations


# --- running ----------------------------------------------------------------------------------------------


def test_progress_reaches_its_total_in_each_pass(tmp_path: Path) -> None:
    seen: dict[str, list[tuple[int, int]]] = {}
    path = tmp_path / "s.h5ad"
    good_screen().write_h5ad(path)
    ingest(
        IngestConfig(sources=(path,), store=tmp_path / "s.zarr"),
        progress=lambda what, done, total: seen.setdefault(what, []).append((done, total)),
    )
    assert list(seen) == ["check and measure", "write"]
    for steps in seen.values():
        assert steps == sorted(steps)
        assert steps[-1] == (64, 64)


def test_the_same_again_returns_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "s.h5ad"
    good_screen().write_h5ad(path)
    config = IngestConfig(sources=(path,), store=tmp_path / "s.zarr", batch_key="batch")
    first = ingest(config)
    before = (config.store / "manifest.json").stat().st_mtime_ns
    path.touch()  # another time, the same content
    second = ingest(config)
    assert (first.created, second.created) == (True, False)
    assert second.model_copy(update={"created": True}) == first
    assert (config.store / "manifest.json").stat().st_mtime_ns == before


def test_two_runs_write_the_same_bytes(tmp_path: Path) -> None:
    path = tmp_path / "s.h5ad"
    good_screen().write_h5ad(path)
    for name in ("a.zarr", "b.zarr"):
        ingest(IngestConfig(sources=(path,), store=tmp_path / name, batch_key="batch"))
    first, second = (
        {p.relative_to(f): p for p in f.rglob("*") if p.is_file()}
        for f in (tmp_path / "a.zarr", tmp_path / "b.zarr")
    )
    assert first.keys() == second.keys()
    own = {Path("sources.json")}  # where the input lay
    assert all(first[name].read_bytes() == second[name].read_bytes() for name in first.keys() - own)


def test_a_file_that_changes_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "s.h5ad"
    good_screen().write_h5ad(path)

    def touch(what: str, done: int, total: int) -> None:
        if what == "write":
            path.touch()

    with pytest.raises(Exception, match=r"s\.h5ad: changed while it was read"):
        ingest(IngestConfig(sources=(path,), store=tmp_path / "s.zarr"), progress=touch)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s.h5ad"]


def test_split_names_are_the_contracts() -> None:
    assert SPLITS == ("train", "validation", "test")
