"""Inputs that are no h5ad file: Zarr AnnData, 10x folders with their labels, cell stores; and presets."""

import gzip
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy
import scipy.io
import scipy.sparse
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.bad_inputs import GENES, good_embedding, good_screen
from tests.unit.ingest.rows import in_source_order
from txpert_dist.errors import InputError, StoreError
from txpert_dist.ingest.config import IngestConfig
from txpert_dist.ingest.matrix import stream
from txpert_dist.ingest.run import ingest
from txpert_dist.ingest.source import open_source
from txpert_dist.ingest.summary import IngestSummary
from txpert_dist.ingest.tenx import open_folder
from txpert_dist.store import manifest
from txpert_dist.store.cells import CellStore, open_store, verify

Run = Callable[..., CellStore]


def ingested(folder: Path, *sources: Path, **settings: Any) -> tuple[CellStore, IngestSummary]:
    config = IngestConfig(sources=sources, store=folder / "screen.zarr", **settings)
    summary = ingest(config)
    verify(config.store)
    return open_store(config.store), summary


def content(store: CellStore) -> dict[str, str]:
    """Hash of every file but those that name the input."""
    about = ("uns/txpert/summary/", "sources.json", "zarr.json", "obsm/X_pca/zarr.json")
    listed = manifest.read(store.path).files
    return {record.path: record.sha256 for record in listed if not record.path.startswith(about)}


# --- Zarr -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("layout", ["csr", "csc", "dense", "raw"])
def test_a_zarr_anndata_gives_the_store_of_its_h5ad(
    run: Run, tmp_path: Path, layout: str, version: int
) -> None:
    screen = good_screen()
    screen.obsm["X_pca"] = good_embedding()
    chosen: dict[str, Any] = {"batch_key": "batch", "select_genes": 6, "embeddings": ("X_pca",)}
    if layout == "raw":
        screen.raw = screen.copy()
        screen.X = np.log1p(screen.X)
        chosen["layer"] = "raw"
    elif layout == "dense":
        screen.X = screen.X.toarray()
    else:
        screen.X = getattr(scipy.sparse, f"{layout}_matrix")(screen.X)
    expected = run(tmp_path / "h5ad", screen, **chosen)
    (tmp_path / "zarr").mkdir()
    with anndata.settings.override(zarr_write_format=version):
        screen.write_zarr(tmp_path / "zarr" / "file0.zarr")
    found, summary = ingested(tmp_path / "zarr", tmp_path / "zarr" / "file0.zarr", **chosen)
    assert content(found) == content(expected)
    assert summary.sources[0].name == "file0.zarr"
    again = ingest(IngestConfig(sources=(tmp_path / "zarr" / "file0.zarr",), store=found.path, **chosen))
    assert not again.created


def _write_array(
    group: Any, name: str, values: np.ndarray, chunks: tuple[int, ...], shards: tuple[int, ...] | None
) -> None:
    array = group.create_array(
        name,
        shape=values.shape,
        dtype=values.dtype,
        chunks=chunks,
        shards=shards,
        config={"write_empty_chunks": True},
    )
    array[:] = values


@given(
    seed=st.integers(0, 3),
    layout=st.sampled_from(["csr", "csc", "dense"]),
    shards=st.sampled_from([None, 20]),
    block=st.integers(10, 400),
)
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_every_zarr_layout_and_block_size_gives_the_same_cells(
    tmp_path_factory: pytest.TempPathFactory, seed: int, layout: str, shards: int | None, block: int
) -> None:
    folder, rng = tmp_path_factory.mktemp("zarr"), np.random.default_rng(seed)
    x_BG = (rng.poisson(1.0, (61, 13)) * (rng.random((61, 1)) < 0.8)).astype(np.float32)
    frames = (pd.DataFrame(index=[f"{axis}{i}" for i in range(n)]) for axis, n in (("c", 61), ("g", 13)))
    with anndata.settings.override(zarr_write_format=3):
        anndata.AnnData(None, *frames).write_zarr(folder / "s.zarr")
    group = zarr.open_group(str(folder / "s.zarr"), mode="r+", use_consolidated=False)
    if layout == "dense":
        _write_array(group, "X", x_BG, (5, 13), shards and (shards, 13))
    else:
        sparse = group.create_group("X")
        sparse.attrs.update({"encoding-type": f"{layout}_matrix", "encoding-version": "0.1.0"})
        sparse.attrs["shape"] = [61, 13]
        matrix = getattr(scipy.sparse, f"{layout}_matrix")(x_BG)
        for name in ("data", "indices", "indptr"):
            _write_array(sparse, name, getattr(matrix, name), (5,), shards and (shards,))
    zarr.consolidate_metadata(str(folder / "s.zarr"))
    source = open_source(folder / "s.zarr", "X")
    joined = scipy.sparse.vstack([b.matrix for b in stream(source, folder / "scratch", block_entries=block)])
    assert (joined.toarray() == x_BG).all()


def _lose(name: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        next((path / "X" / name).glob("c/*")).unlink()

    return damage


def _flip(path: Path) -> None:
    chunk = next((path / "X" / "data").glob("c/*"))
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2 :] = b"\0" * len(content[len(content) // 2 :])
    chunk.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_lose("data"), ["X/data", "lacks 1 of its 1 chunks"]),
        (_lose("indices"), ["X/indices", "lacks 1"]),
        (_lose("indptr"), ["X/indptr", "lacks 1"]),
        (_flip, ["X cannot be read"]),
        (lambda path: shutil.rmtree(path / "obs"), ["obs table cannot be read"]),
        (lambda path: (path / "zarr.json").write_text("{"), ["Zarr metadata cannot be read"]),
        (lambda path: (path / "zarr.json").unlink(), ["a folder that holds neither", "h5ad"]),
    ],
)
def test_a_damaged_zarr_input_is_named_and_never_read_as_zeros(
    tmp_path: Path, damage: Callable[[Path], None], words: list[str]
) -> None:
    path = tmp_path / "bad.zarr"
    with anndata.settings.override(zarr_write_format=3):
        good_screen().write_zarr(path)
    damage(path)
    with pytest.raises(InputError) as error:
        ingested(tmp_path, path)
    for word in ("bad.zarr", *words):
        assert word in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["bad.zarr"]


def test_a_cell_store_is_an_input_too_and_its_damage_is_seen(run: Run, tmp_path: Path) -> None:
    old = run(tmp_path / "old", good_screen(), batch_key="batch", select_genes=0)
    (tmp_path / "new").mkdir()
    new, _ = ingested(tmp_path / "new", old.path, batch_key="batch", select_genes=0, row_order="source")
    assert (new.read(0, 64).value == old.read(0, 64).value).all()
    assert (new.control_mean_CG == old.control_mean_CG).all()
    shard = next((old.path / "X" / "indices").glob("c/*"))
    content = shard.read_bytes()
    shard.write_bytes(content[:50] + bytes([content[50] ^ 4]) + content[51:])
    (tmp_path / "other").mkdir()
    with pytest.raises(StoreError, match="X/indices"):
        ingested(tmp_path / "other", old.path, batch_key="batch")
    assert list((tmp_path / "other").iterdir()) == []


# --- 10x --------------------------------------------------------------------------------------------------

GUIDES = ("STAT1-g1", "MYC-g2")


def write_10x(folder: Path, screen: anndata.AnnData, *, packed: bool = True, guides: bool = True) -> Path:
    """The files that Cell Ranger writes, and the labels as a table beside the folder."""
    folder.mkdir(parents=True)
    counts = scipy.sparse.csc_matrix(screen.X.T.astype(np.int64))
    features = [(f"ENSG{i:05d}", name, "Gene Expression") for i, name in enumerate(screen.var_names)]
    if guides:  # in between, so that genes have to be numbered anew
        extra = scipy.sparse.csc_matrix(np.random.default_rng(1).poisson(3, (2, screen.n_obs)))
        counts = scipy.sparse.vstack([counts[:5], extra, counts[5:]]).tocsc()
        features[5:5] = [(name, name, "CRISPR Guide Capture") for name in GUIDES]
    scipy.io.mmwrite(folder / "matrix.mtx", counts)
    lines = {"barcodes.tsv": list(screen.obs_names), "features.tsv": ["\t".join(row) for row in features]}
    for name, rows in lines.items():
        (folder / name).write_text("\n".join(rows) + "\n")
    if packed:
        for file in list(folder.iterdir()):
            file.with_name(f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
            file.unlink()
    screen.obs[["perturbation", "batch"]].to_csv(folder.parent / "labels.csv", index_label="cell_barcode")
    return folder


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("block", [1, 50, 10**6])
def test_a_10x_folder_is_read_as_scanpy_reads_it(tmp_path: Path, packed: bool, block: int) -> None:
    folder = write_10x(tmp_path / "run1", good_screen(), packed=packed)
    # scanpy reads the third version of the files packed only.
    expected = scanpy.read_10x_mtx(write_10x(tmp_path / "b" / "run1", good_screen()), var_names="gene_ids")
    source = open_folder(folder, "X", tmp_path / "labels.csv")
    joined = scipy.sparse.vstack(
        [b.matrix for b in stream(source, tmp_path / "scratch", block_entries=block)]
    )
    assert (joined.toarray() == expected.X.toarray()).all()
    assert source.obs.index.tolist() == expected.obs_names.tolist()
    assert source.var.index.tolist() == expected.var_names.tolist()
    assert source.var["gene_name"].tolist() == expected.var["gene_symbols"].tolist()


def test_a_10x_folder_and_its_labels_make_a_store(run: Run, tmp_path: Path) -> None:
    screen = good_screen()
    screen.obs["perturbation"] = screen.obs["perturbation"].cat.rename_categories({"ctrl": "NA"})
    folder = write_10x(tmp_path / "run1", screen)
    table = tmp_path / "labels.csv"
    lines = table.read_text().splitlines()
    table.write_text("\n".join([lines[0], *reversed(lines[1:]), "elsewhere-1,MYC,1"]))
    chosen: dict[str, Any] = {"preset": "10x", "cell_line": "K562", "select_genes": 0, "control_label": "NA"}
    store, summary = ingested(tmp_path, folder, labels=(table,), **chosen)
    assert store.genes == GENES
    order = in_source_order(store)
    assert (store.take(order).value == screen.X.data).all()
    assert [store.perturbations[code] for code in store.perturbation[order]] == [
        {"NA": "control", "SPI1+BRD4": "BRD4+SPI1"}.get(x, x) for x in screen.obs["perturbation"]
    ]
    assert store.library_size[order].tolist() == screen.obs["total"].tolist()  # guides do not count
    notes = "; ".join(summary.notes)
    for words in (
        "2 features of type 'CRISPR Guide Capture' left out",
        "1 of its 65 barcodes are not in run1",
    ):
        assert words in notes
    assert not ingest(IngestConfig(sources=(folder,), store=store.path, labels=(table,), **chosen)).created
    table.write_text(table.read_text().replace("cell3,JAK2", "cell3,CD86"))
    with pytest.raises(InputError, match="other files or settings"):
        ingest(IngestConfig(sources=(folder,), store=store.path, labels=(table,), **chosen))


def test_unlabelled_cells_are_refused_or_left_out_and_counted(tmp_path: Path) -> None:
    folder = write_10x(tmp_path / "run1", good_screen())
    table = tmp_path / "labels.csv"
    lines = table.read_text().splitlines()
    table.write_text("\n".join([*lines[:10], lines[10].replace("STAT1", ""), *lines[13:]]))
    with pytest.raises(InputError, match=r"'cell9' \(row 9\) and 2 more cells.*--unlabelled drop"):
        ingested(tmp_path, folder, preset="10x", labels=(table,))
    store, summary = ingested(tmp_path, folder, preset="10x", labels=(table,), unlabelled="drop")
    assert store.num_cells == 61
    assert [tuple(row) for row in summary.filters] == [("a label in perturbation", 61, 3)]
    assert "2 of 64 cells are not in labels.csv" in "; ".join(summary.notes)
    screen = good_screen()
    kept = np.delete(np.arange(64), [9, 10, 11])
    assert (store.take(in_source_order(store)).value == screen[kept].X.data).all()


def test_folders_of_several_runs_have_a_table_each(tmp_path: Path) -> None:
    first = write_10x(tmp_path / "a" / "run1", good_screen(seed=1))
    second = write_10x(tmp_path / "b" / "run2", good_screen(seed=2), guides=False, packed=False)
    tables = (tmp_path / "a" / "labels.csv", tmp_path / "b" / "labels.csv")
    store, _ = ingested(tmp_path, first, second, preset="10x", labels=tables, select_genes=0)
    both = anndata.concat([good_screen(seed=1), good_screen(seed=2)])
    assert (store.take(in_source_order(store)).value == scipy.sparse.csr_matrix(both.X).data).all()
    assert {context.cell_line for context in store.contexts} == {"run1", "run2"}
    with pytest.raises(InputError, match="3 tables of labels for 2 10x folders"):
        ingested(tmp_path / "c", first, second, preset="10x", labels=(*tables, tables[0]))


def _edit(name: str, change: Callable[[str], str]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / name if name != "labels.csv" else folder.parent / name
        path.write_text(change(path.read_text()))

    return damage


def _cut(folder: Path) -> None:
    (folder / "matrix.mtx.gz").write_bytes(gzip.compress((folder / "matrix.mtx").read_bytes())[:200])
    (folder / "matrix.mtx").unlink()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_edit("matrix.mtx", lambda text: text.rpartition("\n1")[0] + "\n"), ["matrix.mtx", "but announces"]),
        (_edit("matrix.mtx", lambda text: text.replace("\n12 64 ", "\n12 63 ")), ["12 features x 63 cells"]),
        (_edit("matrix.mtx", lambda text: text + "13 64 1\n"), ["feature 13, cell 64 of 12 x 64"]),
        (_edit("matrix.mtx", lambda text: text + "0 4 1\n"), ["feature 0, cell 4"]),
        (_edit("matrix.mtx", lambda text: text + "1 4 one\n"), ["matrix.mtx: cannot be read"]),
        (_edit("matrix.mtx", lambda text: text.replace("coordinate", "array", 1)), ["its first line"]),
        (_edit("matrix.mtx", lambda text: text.splitlines()[0]), ["no line of sizes"]),
        (_cut, ["matrix.mtx.gz", "cannot be read"]),
        (lambda folder: (folder / "features.tsv").unlink(), ["has no features.tsv(.gz)"]),
        (_edit("features.tsv", lambda text: text.replace("\tMYC\t", "")), ["line 5 has no tab"]),
        (_edit("barcodes.tsv", lambda text: text.replace("cell5\n", "cell4\n")), ["'cell4' is there twice"]),
        (_edit("labels.csv", lambda text: text.replace("cell5,", "cell4,")), ["'cell4' is there twice"]),
        (_edit("labels.csv", lambda text: text.replace("cell", "bar")), ["none of its", "'bar0'", "'cell0'"]),
        (_edit("labels.csv", lambda text: text.replace("cell7,", ",")), ["line 9 has no barcode"]),
        (_edit("labels.csv", lambda text: "cell\ncell1\n"), ["no column besides"]),
        (lambda folder: (folder.parent / "labels.csv").unlink(), ["labels.csv", "no such file"]),
        (lambda folder: shutil.copy(folder / "matrix.mtx", folder / "b_matrix.mtx"), ["holds 2 matrices"]),
    ],
)  # fmt: skip
def test_a_bad_10x_folder_is_one_line_and_leaves_nothing(
    tmp_path: Path, damage: Callable[[Path], None], words: list[str]
) -> None:
    folder = write_10x(tmp_path / "in" / "run1", good_screen(), packed=False, guides=False)
    damage(folder)
    with pytest.raises(InputError) as error:
        ingested(tmp_path / "out", folder, preset="10x", labels=(tmp_path / "in" / "labels.csv",))
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_a_10x_folder_without_labels_or_with_a_layer_says_what_to_give(tmp_path: Path) -> None:
    folder = write_10x(tmp_path / "run1", good_screen())
    with pytest.raises(InputError, match="--labels"):
        ingested(tmp_path, folder, preset="10x")
    with pytest.raises(InputError, match="--layer"):
        ingested(tmp_path, folder, preset="10x", labels=(tmp_path / "labels.csv",), layer="raw")
    with pytest.raises(InputError, match="txpert embed add"):
        ingested(tmp_path, folder, preset="10x", labels=(tmp_path / "labels.csv",), embeddings=("X_pca",))


# --- presets ----------------------------------------------------------------------------------------------


def _family(family: str) -> anndata.AnnData:
    """A screen as the files of a family are laid out."""
    screen = good_screen()
    label = screen.obs.pop("perturbation").astype(str)
    line, batch, control = screen.obs.pop("line"), screen.obs.pop("batch"), label == "ctrl"
    if family == "txpert":
        condition = label.where(control | label.str.contains("+", regex=False), label + "+ctrl")
        made = {"condition": condition, "control": pd.Categorical(control.astype(int)), "cell_line": line}
        made |= {"batch": batch, "condition_name": "K562_" + condition + "_1+1", "dose_val": "1+1"}
    elif family == "state":
        made = {
            "gene": label.where(~control, "non-targeting"),
            "gem_group": batch.astype(int),
            "cell_type": line,
        }
    elif family == "vcc":
        made = {
            "target_gene": label.where(~control, "non-targeting"),
            "guide_id": label + "_1",
            "batch": batch,
        }
    else:
        spelled = pd.Series([f"safe-{i % 3}" for i in range(64)], label.index)
        made = {"perturbation": label.where(~control, spelled), "is_control": control}
        screen.var = pd.DataFrame({"gene_name": screen.var_names}, [f"ENSG{i:05d}" for i in range(12)])
    screen.obs = screen.obs.assign(**made)
    return screen


@pytest.mark.parametrize("family", ["txpert", "state", "vcc", "xatlas"])
def test_a_preset_reads_the_files_of_its_family(run: Run, tmp_path: Path, family: str) -> None:
    by_hand = run(tmp_path / "a", good_screen(), batch_key="batch", cell_line="K562")
    line = {} if family in ("txpert", "state") else {"cell_line": "K562"}
    found = run(tmp_path / "b", _family(family), preset=family, **line)
    order, expected = in_source_order(found), in_source_order(by_hand)
    assert found.perturbations == by_hand.perturbations
    assert (found.perturbation[order] == by_hand.perturbation[expected]).all()
    assert found.genes == by_hand.genes
    assert found.split_hash == by_hand.split_hash
    if family != "xatlas":  # which has no batches
        assert found.contexts == by_hand.contexts
        assert (found.control_mean_CG == by_hand.control_mean_CG).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda flag: flag.where(flag.index != "cell0", 0), ["says that 7 of the 8 cells", "'ctrl'"]),
        (lambda flag: flag * 0, ["'ctrl' are no controls", "--control-key"]),
        (lambda flag: flag * 2, ["holds '2'", "true and false"]),
        (lambda flag: flag.where(flag.index != "cell5").astype("Int64"), ["'guilty' is empty", "cell5"]),
    ],
)
def test_marks_that_contradict_the_labels_are_refused(
    run: Run, tmp_path: Path, change: Callable[[Any], Any], words: list[str]
) -> None:
    screen = good_screen()
    screen.obs["guilty"] = change((screen.obs["perturbation"] == "ctrl").astype(int))
    with pytest.raises(InputError) as error:
        run(tmp_path, screen, control_key="guilty")
    for word in words:
        assert word in str(error.value)
