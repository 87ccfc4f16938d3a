"""A store that cells were appended to is the store of all files ingested together."""

import shutil
from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.bad_inputs import GENES
from tests.unit.ingest.append_screens import (
    FIRST,
    LABELS,
    SECOND,
    SMALL,
    Batch,
    appended,
    ingested,
    screen_of,
    written,
)
from tests.unit.ingest.rows import in_source_order, source_row
from txpert_dist.config import Data
from txpert_dist.errors import StoreError
from txpert_dist.ingest.export import export
from txpert_dist.ingest.resplit import Resplit, resplit
from txpert_dist.ingest.run import no_progress
from txpert_dist.ingest.stored import open_stored
from txpert_dist.ingest.work import Sizes
from txpert_dist.loader.loader import CellLoader, training_rows
from txpert_dist.loader.pairing import control_table
from txpert_dist.store import manifest
from txpert_dist.store.cells import CellStore, open_store, read_summary, verify
from txpert_dist.store.expression import dense
from txpert_dist.store.shard_file import ShardSizes, shard_file
from txpert_dist.store.splits import SPLITS, split_perturbations
from txpert_dist.store.tables import read_element
from txpert_dist.store.write import Labels, StoreWriter

First = Callable[..., Path]
Table = pd.DataFrame


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> First:
    """first(folder, sizes, **options): puts a.h5ad of FIRST and its store a.zarr into the folder."""
    made: dict[str, Path] = {}

    def fresh(folder: Path, sizes: Sizes = SMALL, **options: object) -> Path:
        key = str((sizes, sorted(options.items())))
        if key not in made:
            made[key] = tmp_path_factory.mktemp("first")
            source = written(made[key] / "a.h5ad", screen_of(FIRST))
            ingested(made[key] / "a.zarr", source, sizes=sizes, **{"select_genes": 5, **options})
        shutil.copytree(made[key], folder, dirs_exist_ok=True)
        return folder / "a.zarr"

    return fresh


def knockdown(store: CellStore) -> Table:
    table = Table(read_element(store.path, "uns/txpert/knockdown"))
    return table[["perturbation", "gene", "num_cells", "log_ratio", "share_left"]]


def assert_same_cells(found: CellStore, expected: CellStore) -> None:
    """In the order of the files, each cell is the same."""
    ours, theirs = in_source_order(found), in_source_order(expected)
    assert sorted(source_row(found)) == list(range(expected.num_cells))
    mine, other = found.take(ours), expected.take(theirs)
    for name in ("indptr", "gene", "value", "library_size"):
        np.testing.assert_array_equal(getattr(mine, name), getattr(other, name))
    assert (found.perturbation[ours] == expected.perturbation[theirs]).all()
    assert (found.context[ours] == expected.context[theirs]).all()
    frames = (
        anndata.read_zarr(store.path).obs.iloc[order] for store, order in ((found, ours), (expected, theirs))
    )
    pd.testing.assert_frame_equal(*frames)


def assert_same_labels(found: CellStore, expected: CellStore) -> None:
    """But for the splits, which were decided one after the other."""
    assert (found.genes, found.perturbations) == (expected.genes, expected.perturbations)
    assert found.contexts == expected.contexts == tuple(sorted(found.contexts))
    tables = (Table(read_element(store.path, "uns/txpert/labels")) for store in (found, expected))
    pd.testing.assert_frame_equal(*tables)


def assert_same_controls(found: CellStore, expected: CellStore) -> None:
    assert (found.controls.indptr == expected.controls.indptr).all()
    assert (found.controls.fallback == expected.controls.fallback).all()
    for start, stop in zip(found.controls.indptr, found.controls.indptr[1:], strict=False):
        rows, wanted = found.controls.rows[start:stop], expected.controls.rows[start:stop]
        assert (np.diff(rows) > 0).all()
        assert set(source_row(found)[rows]) == set(source_row(expected)[wanted])
    np.testing.assert_allclose(found.control_mean_CG, expected.control_mean_CG, rtol=1e-6, atol=1e-7)
    ours, theirs = knockdown(found), knockdown(expected)
    for name in ("perturbation", "gene", "num_cells"):
        assert ours[name].tolist() == theirs[name].tolist()
    for name in ("log_ratio", "share_left"):
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-5, atol=1e-5)


def assert_same(found: CellStore, expected: CellStore) -> None:
    assert_same_cells(found, expected)
    assert_same_labels(found, expected)
    assert_same_controls(found, expected)


# --- the same as ingested together ------------------------------------------------------------------------


@st.composite
def batches(draw: st.DrawFn) -> list[Batch]:
    """New contexts in the store's cell line, in others, or in both; every new line has a control."""
    found = []
    for line in draw(st.sampled_from([("K562",), ("RPE1",), ("A549", "K562"), ("K562", "RPE1")])):
        names = draw(st.lists(st.sampled_from("abcde"), min_size=1, max_size=3, unique=True))
        for number, name in enumerate(names):
            some = draw(st.lists(st.sampled_from(LABELS), max_size=4, unique=True))
            needed = not some or (line != "K562" and number == 0)
            controls = needed or draw(st.booleans())
            found.append(Batch(line, name, draw(st.integers(1, 40)), controls, tuple(some)))
    return found


@settings(max_examples=15, deadline=None)
@given(
    more=batches(),
    seeds=st.tuples(st.integers(1, 50), st.integers(0, 3)),
    row_order=st.sampled_from(["split", "source"]),
    shards=st.sampled_from([ShardSizes(64, 64), ShardSizes(32, 128), ShardSizes(64, 4096)]),
)
def test_appended_is_ingested_together(
    first: First,
    tmp_path_factory: pytest.TempPathFactory,
    more: list[Batch],
    seeds: tuple[int, int],
    row_order: str,
    shards: ShardSizes,
) -> None:
    folder, sizes = tmp_path_factory.mktemp("append"), Sizes(SMALL.block_entries, shards)
    old = open_store(first(folder, sizes, row_order=row_order))
    more_cells = written(
        folder / "b.h5ad", screen_of(more, seeds[0], most=int(old.take(np.arange(90)).value.max()))
    )
    before = {path: path.read_bytes() for path in full_shards(old)}
    inodes = {path: path.stat().st_ino for path in before}
    done = appended(old.path, more_cells, split_seed=seeds[1])
    found = open_store(old.path)
    verify(found.path)
    together = ingested(folder / "c.zarr", folder / "a.h5ad", more_cells, row_order=row_order, sizes=sizes)
    assert_same(found, together)
    # Old cells are where they were, in the same files.
    assert (found.matrix.indptr[: old.num_cells + 1] == old.matrix.indptr).all()
    assert (source_row(found)[: old.num_cells] < old.num_cells).all()
    assert {path: path.read_bytes() for path in before} == before
    assert {path: path.stat().st_ino for path in before} == inodes
    assert done.kept_files == len(before)
    # Perturbations of the store keep their split; the others are split among themselves.
    split = dict(zip(old.perturbations, old.split, strict=True))
    new = [name for name in found.perturbations if name not in split]
    split |= dict(zip(new, split_perturbations(new, seed=seeds[1]), strict=True))
    assert found.split.tolist() == [split[name] for name in found.perturbations]
    assert found.selected.tolist() == old.selected.tolist()
    group = np.where(found.perturbation == 0, len(SPLITS), found.split[found.perturbation])
    if row_order == "split":
        assert (np.diff(group[old.num_cells :]) >= 0).all()
    else:
        assert (source_row(found) == np.arange(found.num_cells)).all()


def full_shards(store: CellStore) -> list[Path]:
    form = store.matrix.value.form
    count = int(store.matrix.indptr[-1]) // (form.chunk * form.chunks_per_shard)
    arrays = (store.path / "X" / name for name in ("data", "indices"))
    return [shard_file(array, number, 1) for array in arrays for number in range(count)]


def test_one_append_after_the_other_is_one_ingest(first: First, tmp_path: Path) -> None:
    store = first(tmp_path)
    files = [tmp_path / "a.h5ad"]
    for number, batch in enumerate((*SECOND, Batch("K562", "9", 1, False, ("MYC",)))):
        files.append(written(tmp_path / f"{number}.h5ad", screen_of([batch], number + 1)))
        appended(store, files[-1])
    found = open_store(store)
    assert_same(found, ingested(tmp_path / "all.zarr", *files))
    assert len(manifest.read(store).appended_to) == 3
    verify(store)


@pytest.mark.process
def test_several_files_are_appended_at_once_by_several_processes(first: First, tmp_path: Path) -> None:
    store = first(tmp_path)
    files = [
        written(tmp_path / f"{number}.h5ad", screen_of([batch], number + 1))
        for number, batch in enumerate(SECOND)
    ]
    shutil.copytree(store, tmp_path / "b.zarr")
    appended(store, *files)
    assert_same(open_store(store), ingested(tmp_path / "all.zarr", tmp_path / "a.h5ad", *files))
    appended(tmp_path / "b.zarr", *files, workers=2)
    assert open_store(tmp_path / "b.zarr").manifest_hash == open_store(store).manifest_hash


@pytest.mark.parametrize("entries", [0, 1, 255])
def test_the_last_shard_may_be_full_or_just_begun(tmp_path: Path, entries: int) -> None:
    """Of 512 + ``entries`` entries, 256 a shard; cells have 4, the last one 4 and ``entries``' rest."""
    screen = screen_of([Batch("K562", "1", 128 + entries // 4, True, LABELS[:6])])
    x_BG = np.zeros(screen.shape, np.float32)
    x_BG[:, 3:7] = 1 + np.arange(len(x_BG))[:, None] % 200
    x_BG[-1, 7 : 7 + entries % 4] = 9
    screen.X = scipy.sparse.csr_matrix(x_BG)
    old = ingested(tmp_path / "a.zarr", written(tmp_path / "a.h5ad", screen), row_order="source")
    assert old.matrix.indptr[-1] == 512 + entries
    more = written(tmp_path / "b.h5ad", screen_of(SECOND, 1))
    assert appended(old.path, more).kept_files == 4
    together = ingested(tmp_path / "c.zarr", tmp_path / "a.h5ad", more, row_order="source")
    assert_same(open_store(old.path), together)


def test_batches_that_borrow_get_the_mean_of_all_controls_of_their_line(first: First, tmp_path: Path) -> None:
    store = first(tmp_path)
    old = open_store(store)
    before = knockdown(old)
    more = written(tmp_path / "b.h5ad", screen_of([Batch("K562", "3", 9, True, ())], 1))
    appended(store, more)
    new = open_store(store)
    (borrower,) = np.flatnonzero(new.controls.fallback)
    assert new.contexts[borrower].batch == "2"
    own = {context.batch: number for number, context in enumerate(new.contexts)}
    mean = (20 * old.control_mean_CG[own["1"]] + 9 * new.control_mean_CG[own["3"]]) / 29
    np.testing.assert_allclose(new.control_mean_CG[borrower], mean, rtol=1e-6)
    assert not np.allclose(old.control_mean_CG[borrower], mean)
    # The batch is beside other controls now, so its perturbations have lowered their targets otherwise.
    assert not np.allclose(knockdown(new)["log_ratio"], before["log_ratio"])
    assert_same(new, ingested(tmp_path / "c.zarr", tmp_path / "a.h5ad", more))


def test_a_target_that_no_control_expressed_is_summed_up_anew(tmp_path: Path) -> None:
    """Without controls' counts the store has no share from which a sum could be told."""
    screens = [screen_of([FIRST[0]]), screen_of([Batch("K562", "4", 30, True, ("STAT1", "CD86"))], 1)]
    x_BG = screens[0].X.toarray()
    control = (screens[0].obs["perturbation"] == "ctrl").to_numpy()
    x_BG[:, 0] = np.where(control, 0, 3)
    screens[0].X = scipy.sparse.csr_matrix(x_BG)
    files = [written(tmp_path / f"{number}.h5ad", screen) for number, screen in enumerate(screens)]
    old = ingested(tmp_path / "a.zarr", files[0])
    assert knockdown(old).set_index("gene")["share_left"].isna()["STAT1"]
    appended(old.path, files[1])
    assert not knockdown(open_store(old.path))["share_left"].isna().any()
    assert_same(open_store(old.path), ingested(tmp_path / "c.zarr", *files))


def test_log1p_values_are_appended_to_log1p_values(tmp_path: Path) -> None:
    screens = [screen_of(FIRST), screen_of(SECOND, 1)]
    for screen in screens:
        screen.X = screen.X.log1p()
    files = [written(tmp_path / f"{number}.h5ad", screen) for number, screen in enumerate(screens)]
    ingested(tmp_path / "a.zarr", files[0], input_scale="log1p")
    appended(tmp_path / "a.zarr", files[1], input_scale="log1p")
    assert_same(open_store(tmp_path / "a.zarr"), ingested(tmp_path / "c.zarr", *files, input_scale="log1p"))


def test_given_library_sizes_are_those_of_the_files(tmp_path: Path) -> None:
    screens = [screen_of(FIRST), screen_of(SECOND, 1)]
    for screen in screens:
        screen.obs["total"] = screen.X.sum(1).A1 + 10 + np.arange(len(screen)) % 3
    files = [written(tmp_path / f"{number}.h5ad", screen) for number, screen in enumerate(screens)]
    ingested(tmp_path / "a.zarr", files[0], library_size_key="total")
    appended(tmp_path / "a.zarr", files[1], library_size_key="total")
    assert_same(
        open_store(tmp_path / "a.zarr"), ingested(tmp_path / "c.zarr", *files, library_size_key="total")
    )


# --- tables -----------------------------------------------------------------------------------------------


def test_anndata_reads_the_concatenation(first: First, tmp_path: Path) -> None:
    store, screen = first(tmp_path), screen_of(SECOND, 1)
    screen.obs["age"] = np.arange(len(screen))
    screen.obs["grade"] = pd.Categorical(np.arange(len(screen)) % 3, ordered=True)
    screen.var["length"] = np.arange(12.0)
    notes = appended(store, written(tmp_path / "b.h5ad", screen)).summary.notes
    assert "obs columns 'age', 'grade' are missing for the older cells" in notes
    back = anndata.read_zarr(store)[in_source_order(open_store(store))].copy()
    expected = anndata.concat([anndata.read_h5ad(tmp_path / "a.h5ad"), screen], join="outer", merge="first")
    assert back.obs_names.tolist() == expected.obs_names.tolist()
    assert back.var_names.tolist() == list(GENES)
    assert (back.X != expected.X).nnz == 0
    for name in ("perturbation", "batch", "line"):
        assert back.obs[name].astype(str).tolist() == expected.obs[name].astype(str).tolist()
    assert back.obs["age"].isna().sum() == 90
    assert back.obs["age"].dropna().tolist() == list(range(len(screen)))
    assert back.var["length"].tolist() == screen.var["length"].tolist()


def test_names_of_old_cells_stay_and_new_ones_that_clash_get_a_number(first: First, tmp_path: Path) -> None:
    store = first(tmp_path)
    names = anndata.read_zarr(store).obs_names.tolist()
    for number, batch in enumerate(SECOND, 2):
        screen = screen_of([batch], 1)
        screen.obs_names = [*names[:20], *(f"new{i}" for i in range(len(screen) - 20))]
        notes = appended(store, written(tmp_path / "b.h5ad", screen)).summary.notes
        back = anndata.read_zarr(store).obs_names
        assert back[:90].tolist() == names
        assert not back.has_duplicates
        assert sorted(back[-len(screen) :]) == sorted(f"{name}-{number}" for name in screen.obs_names)
        assert f"20 names of new cells are in the store: all new names end in -{number}" in notes


def test_ordered_categories_that_differ_lose_their_order(first: First, tmp_path: Path) -> None:
    screens = [screen_of(FIRST), screen_of(SECOND, 1)]
    for number, screen in enumerate(screens):
        screen.obs["grade"] = pd.Categorical(np.arange(len(screen)) % 3 + number, ordered=True)
    files = [written(tmp_path / f"{number}.h5ad", screen) for number, screen in enumerate(screens)]
    appended(ingested(tmp_path / "a.zarr", files[0]).path, files[1])
    found, together = open_store(tmp_path / "a.zarr"), ingested(tmp_path / "c.zarr", *files)
    assert_same(found, together)
    grade = anndata.read_zarr(found.path).obs["grade"]
    assert (grade.cat.ordered, grade.cat.categories.tolist()) == (False, [0, 1, 2, 3])


# --- what the store says ----------------------------------------------------------------------------------


def test_the_summary_tells_what_came_and_what_is_there_now(first: First, tmp_path: Path) -> None:
    store = first(tmp_path)
    done = appended(store, written(tmp_path / "b.h5ad", screen_of(SECOND, 1)), split_seed=1)
    together = ingested(tmp_path / "c.zarr", tmp_path / "a.h5ad", tmp_path / "b.h5ad")
    assert (done.num_cells, done.num_control_cells) == (65, 14 + 9)
    assert [tuple(context) for context in done.contexts] == [("K562", "3"), ("RPE1", "1")]
    assert (done.known_perturbations, sum(done.new_perturbations.values())) == (6, 2)
    told = done.summary
    assert (told.num_cells, told.num_contexts, told.cell_lines) == (155, 4, ("K562", "RPE1"))
    assert [source.num_cells for source in told.sources] == [90, 65]
    assert sum(told.cells_per_split.values()) == 155 - told.num_control_cells
    assert told.fallback_contexts == ("K562/2",)
    assert told.num_selected_genes == len(open_store(store).selected) < 12
    assert told.to_json() == read_summary(store)
    assert_same_labels(open_store(store), together)
    splits = ", ".join(f"{number} {name}" for name, number in done.new_perturbations.items())
    assert told.notes[-2:] == (
        f"b.h5ad: 65 cells of 2 new batches were appended; 2 new perturbations split by seed 1: {splits}",
        f"the {told.num_selected_genes} genes for training were selected before b.h5ad came; txpert store "
        "split selects anew",
    )


def test_a_part_may_have_any_cells(first: First, tmp_path: Path) -> None:
    """Controls only, or one perturbation and no control: no split has to be there."""
    store = first(tmp_path)
    only_controls = written(tmp_path / "b.h5ad", screen_of([Batch("RPE1", "1", 3, True, ())], 1))
    assert appended(store, only_controls).new_perturbations == dict.fromkeys(SPLITS, 0)
    one = written(tmp_path / "c.h5ad", screen_of([Batch("RPE1", "2", 1, False, ("KLF1",))], 2))
    done = appended(store, one, control_label="ctrl")
    assert (done.num_cells, done.num_control_cells, done.summary.num_perturbations) == (1, 0, 7)
    assert done.summary.fallback_contexts == ("K562/2", "RPE1/2")
    assert_same(open_store(store), ingested(tmp_path / "all.zarr", tmp_path / "a.h5ad", only_controls, one))


def test_what_is_left_out_is_counted(first: First, tmp_path: Path) -> None:
    store, screen = first(tmp_path, min_cells=2), screen_of(SECOND, 1)
    genes = pd.DataFrame(index=["NEW1", *GENES[::-1], "NEW2"])
    screen = anndata.AnnData(screen.X[:, [0, *range(11, -1, -1), 1]], screen.obs, genes)
    label = screen.obs["perturbation"].astype(object).to_numpy().copy()
    label[label == "XYZ"] = None
    rare = np.flatnonzero(label == "SPI1")[1:]
    label[rare] = "CD86"
    screen.obs["perturbation"] = label
    counts = screen.X.toarray()
    counts[np.flatnonzero(label == "CD86")[:3]] = 0
    screen.X = scipy.sparse.csr_matrix(counts)
    done = appended(
        store, written(tmp_path / "b.h5ad", screen), min_cells=2, unlabelled="drop", empty_cells="drop"
    )
    unlabelled = int(pd.isna(label).sum())
    assert done.num_cells == 65 - unlabelled - 3 - 1
    assert done.summary.filters[-1].dropped == unlabelled
    assert (done.summary.dropped_cells, done.summary.dropped_perturbations) == (4, 1)
    assert "b.h5ad: 2 of its 14 genes are not the store's: left out" in done.summary.notes
    again = written(tmp_path / "c.h5ad", screen_of([Batch("K562", "7", 9, True, ("SPI1",))], 2))
    notes = appended(store, again).summary.notes
    assert "1 perturbations left out before have new cells only: 'SPI1'" in notes
    cells = open_store(store)
    assert (cells.perturbation == cells.perturbations.index("SPI1")).sum() == 6


# --- the store at work ------------------------------------------------------------------------------------


def test_the_loader_serves_every_training_cell_once(tmp_path: Path) -> None:
    """Library sizes say which cell a row is of."""
    screens, files = [screen_of(FIRST), screen_of(SECOND, 1)], []
    for number, screen in enumerate(screens):
        screen.obs["total"] = 5000.0 + 1000 * number + np.arange(len(screen))
        files.append(written(tmp_path / f"{number}.h5ad", screen))
    store = ingested(tmp_path / "a.zarr", files[0], library_size_key="total", select_genes=5).path
    appended(store, files[1], library_size_key="total")
    cells = open_store(store)
    truth = dict(
        zip(
            np.concatenate([screen.obs["total"] for screen in screens]),
            np.concatenate([screen.X.toarray() for screen in screens])[:, cells.selected],
            strict=True,
        )
    )
    rows = training_rows(cells, controls_as_targets=True)
    loader = CellLoader(
        cells,
        rows,
        genes=cells.selected,
        nodes_RM=np.zeros((len(cells.perturbations), 1), np.int32),
        data=Data.model_validate({"store": store, "chunk": 4, "window": 3}),
        table=control_table(cells, "matched_mean", cells.selected),
        seed=1,
        rank=0,
        world=1,
        minibatch_size=1,
    )
    served: list[float] = []
    for minibatch in loader.epoch(0):
        (size,) = minibatch.cells.library_size.tolist()
        served.append(size)
        assert (dense(minibatch.cells, len(cells.selected))[0] == truth[size]).all()
    assert sorted(served) == sorted(cells.library_size[rows].tolist())
    assert {size // 1000 for size in served} == {5, 6}


def test_who_reads_the_old_store_goes_on(first: First, tmp_path: Path) -> None:
    """Though nothing was read before, and the last shard is another by now."""
    store = first(tmp_path)
    reader, late = open_store(store), open_store(store)
    truth = open_store(store).take(np.arange(90))
    for number, batch in enumerate(SECOND):
        appended(store, written(tmp_path / "b.h5ad", screen_of([batch], number)))
        for name, value in zip(truth._fields, reader.take(np.arange(90)), strict=True):
            assert (value == getattr(truth, name)).all()
    for name, value in zip(truth._fields, late.take(np.arange(90)), strict=True):
        assert (value == getattr(truth, name)).all()
    # A store that was replaced is another matter.
    last = open_store(store)
    ingested(store, tmp_path / "a.h5ad", tmp_path / "b.h5ad", overwrite=True)
    with pytest.raises(StoreError, match="replaced since it was opened"):
        last.take(np.arange(90))


@pytest.mark.parametrize("row_order", ["split", "source"])
def test_split_anew_it_is_an_ingest_with_that_seed(first: First, tmp_path: Path, row_order: str) -> None:
    store = first(tmp_path)
    more = written(tmp_path / "b.h5ad", screen_of(SECOND, 1))
    appended(store, more)
    resplit(Resplit(store, tmp_path / "s.zarr", seed=3, select_genes=0, row_order=row_order), sizes=SMALL)  # type: ignore[arg-type]
    found = open_store(tmp_path / "s.zarr")
    together = ingested(
        tmp_path / "c.zarr", tmp_path / "a.h5ad", more, split_seed=3, select_genes=0, row_order=row_order
    )
    assert_same(found, together)
    assert (source_row(found) == source_row(together)).all()
    assert found.split_hash == together.split_hash


def test_the_export_is_the_store(first: First, tmp_path: Path) -> None:
    store = first(tmp_path)
    appended(store, written(tmp_path / "b.h5ad", screen_of(SECOND, 1)))
    export(store, tmp_path / "s.h5ad", compression="none", overwrite=False, progress=no_progress)
    back, expected = anndata.read_h5ad(tmp_path / "s.h5ad"), anndata.read_zarr(store)
    assert (back.X != expected.X).nnz == 0
    assert back.obs_names.tolist() == expected.obs_names.tolist()
    cells = open_store(store)
    assert back.obs["txpert_cell_line"].tolist() == [cells.contexts[code].cell_line for code in cells.context]


# --- embeddings -------------------------------------------------------------------------------------------


def with_embedding(screen: anndata.AnnData, width: int, start: int) -> anndata.AnnData:
    """Each value tells the cell, from ``start`` on, and the column."""
    cell = start + np.arange(len(screen))[:, None]
    screen.obsm["X_pca"] = (cell + np.arange(width) / 4096).astype(np.float32)
    return screen


@pytest.mark.parametrize("width", [3, 4096])
def test_embeddings_follow_their_cells_and_full_shards_of_them_stay(tmp_path: Path, width: int) -> None:
    """4,096 wide, a shard has 1,024 cells."""
    large = [Batch("K562", "1", 1100, True, LABELS[:6])]
    screens = [with_embedding(screen_of(large), width, 0), with_embedding(screen_of(SECOND, 1), width, 1100)]
    files = [written(tmp_path / f"{number}.h5ad", screen) for number, screen in enumerate(screens)]
    store = ingested(tmp_path / "a.zarr", files[0], embeddings=("X_pca",)).path
    old = {path: path.stat().st_ino for path in (store / "obsm").rglob("c/*/0")}
    appended(store, files[1], embeddings=("X_pca",))
    found = open_store(store)
    value_RN = found.take_embedding("X_pca", in_source_order(found))
    assert (value_RN == np.concatenate([screen.obsm["X_pca"] for screen in screens])).all()
    assert (anndata.read_zarr(store).obsm["X_pca"][in_source_order(found)] == value_RN).all()
    origin = {"made": "elsewhere", "key": "X_pca", "file": "0.h5ad", "appended": ["1.h5ad"]}
    assert found.embedding_origin("X_pca") == origin
    assert len(old) == (2 if width == 4096 else 1)
    assert [path.stat().st_ino == inode for path, inode in sorted(old.items())] == [True, False][-len(old) :]
    verify(store)


def test_embeddings_that_new_cells_lack_are_left_out_when_asked(first: First, tmp_path: Path) -> None:
    screen = with_embedding(screen_of(FIRST), 3, 0)
    store = ingested(tmp_path / "a.zarr", written(tmp_path / "a.h5ad", screen), embeddings=("X_pca",)).path
    done = appended(store, written(tmp_path / "b.h5ad", screen_of(SECOND, 1)), drop_embeddings=True)
    assert "embeddings 'X_pca' were left out when b.h5ad came" in done.summary.notes
    assert open_store(store).embeddings == done.summary.embeddings == {}
    assert not anndata.read_zarr(store).obsm


# --- what is read and what is not ---------------------------------------------------------------------------


def test_of_old_counts_only_controls_beside_changed_perturbations_are_read(
    first: First, tmp_path: Path
) -> None:
    """Damaged shards show what is read."""
    store = first(tmp_path, row_order="source")
    cells, before = open_store(store), manifest.read(store)
    full = full_shards(cells)
    for path in full:
        flip(path)
    others = [Batch("RPE1", "1", 40, True, ("SPI1", "KLF1"))]
    appended(store, written(tmp_path / "b.h5ad", screen_of(others, 1)))
    # What was damaged is not listed as whole.
    assert set(manifest.read(store).files) >= {f for f in before.files if store / f.path in full}
    with pytest.raises(StoreError, match="SHA-256"):
        verify(store)
    after = open_store(store).manifest_hash
    shared = [Batch("RPE1", "2", 40, True, ("STAT1",))]
    with pytest.raises(StoreError, match="not as it was written"):
        appended(store, written(tmp_path / "c.h5ad", screen_of(shared, 1)))
    flip(shard_file(store / "X" / "data", len(full), 1))
    with pytest.raises(StoreError, match="not as it was written"):
        appended(store, written(tmp_path / "d.h5ad", screen_of([others[0]._replace(name="3")], 1)))
    assert open_store(store).manifest_hash == after
    assert not list(tmp_path.glob(".*.partial"))


def flip(path: Path) -> None:
    """One bit in every chunk but the index."""
    content = bytearray(path.read_bytes())
    for place in range(20, len(content) - 100, 20):
        content[place] ^= 1
    path.unlink()  # another file of the name, not this one's other links
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("dtype", [np.int16, np.int32])
def test_gene_numbers_keep_the_store_s_type(first: First, tmp_path: Path, dtype: type) -> None:
    store = with_gene_numbers_of(first(tmp_path), tmp_path / "typed.zarr", dtype)
    more = written(tmp_path / "b.h5ad", screen_of(SECOND, 1))
    appended(store, more)
    assert anndata.read_zarr(store).X.indices.dtype == dtype
    found = open_store(store)
    assert found.matrix.gene.form.dtype == dtype
    assert_same(found, ingested(tmp_path / "c.zarr", tmp_path / "a.h5ad", more))


def with_gene_numbers_of(store: Path, path: Path, dtype: type) -> Path:
    """A copy of the store with its gene numbers in another type."""
    cells, uns = open_store(store), read_element(store, "uns/txpert")
    rows = cells.take(np.arange(cells.num_cells))
    writer = StoreWriter(
        path,
        num_cells=cells.num_cells,
        num_genes=len(cells.genes),
        num_entries=len(rows.gene),
        dtype=rows.value.dtype,
        gene_dtype=dtype,
        shards=SMALL.shards,
    )
    writer.append(rows.indptr, rows.gene, rows.value)
    back = anndata.read_zarr(store)
    stored = open_stored(cells)
    writer.finish(
        obs=back.obs,
        var=back.var,
        labels=Labels(
            input_scale=cells.input_scale,
            perturbations=cells.perturbations,
            contexts=cells.contexts,
            perturbation=cells.perturbation,
            context=cells.context,
            library_size=cells.library_size,
            split=cells.split,
            selected=cells.selected,
            controls=cells.controls,
            control_mean_CG=cells.control_mean_CG,
            label_rows=stored.label_rows,
            source_row=stored.source_row,
            row_order="split",
            knockdown_rows=stored.knockdown,
            summary=str(uns["summary"]),
        ),
        fingerprint="made by a test",
    )
    return path
