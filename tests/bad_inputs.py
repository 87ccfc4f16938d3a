"""Small screens, good and bad: shared by the ingest tests and the command line's.

``good_screen`` makes a screen that ingests; every entry of ``CASES`` writes one that must not, and says which
words the one-line error has to hold. ``settings`` are the fields of ``IngestConfig`` besides ``store``.
``EMBEDDING_CASES`` are more of the kind, about obsm.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import anndata
import h5py
import numpy as np
import pandas as pd
import scipy.sparse

GENES = ("STAT1", "IRF1", "JAK2", "CD86", "MYC", "SPI1", "BRD4", "CUL3", "KLF1", "CEBPA", "TBCE", "HSPA14")
LABELS = ("ctrl", "STAT1", "IRF1", "JAK2", "CD86", "MYC", "SPI1+BRD4", "CUL3")


def good_screen(num_cells: int = 64, seed: int = 0) -> anndata.AnnData:
    """Counts of 12 genes in two batches of K562; every label is in every batch."""
    rng = np.random.default_rng(seed)
    counts = rng.poisson(1.5, (num_cells, len(GENES)))
    counts[:, 0] += 1  # no cell without counts
    number = np.arange(num_cells)
    obs = pd.DataFrame(
        {
            "perturbation": pd.Categorical(np.array(LABELS)[number % len(LABELS)]),
            "batch": pd.Categorical((1 + number // len(LABELS) % 2).astype(str)),
            "line": "K562",
            "total": counts.sum(1).astype(np.float64),
        },
        index=[f"cell{i}" for i in number],
    )
    return anndata.AnnData(
        scipy.sparse.csr_matrix(counts.astype(np.float32)), obs, pd.DataFrame(index=list(GENES))
    )


class BadInput(NamedTuple):
    """One way in which input is bad."""

    name: str
    build: Callable[[Path], dict[str, Any]]
    """Writes files into the folder and returns the settings."""
    fragments: tuple[str, ...]
    """What the message must hold: the place and the way out."""


def _case(
    name: str, change: Callable[[anndata.AnnData], anndata.AnnData | None], *fragments: str, **settings: Any
) -> BadInput:
    def build(folder: Path) -> dict[str, Any]:
        screen = good_screen()
        changed = change(screen)
        path = folder / "bad.h5ad"
        (screen if changed is None else changed).write_h5ad(path)
        return {"sources": (path,), "batch_key": "batch", **settings}

    return BadInput(name, build, ("bad.h5ad", *fragments))


def _value(row: int, column: int, value: float) -> Callable[[anndata.AnnData], None]:
    def change(screen: anndata.AnnData) -> None:
        dense = screen.X.toarray()
        dense[row, column] = value
        screen.X = scipy.sparse.csr_matrix(dense)

    return change


def _label(row: int, label: str | None, column: str = "perturbation") -> Callable[[anndata.AnnData], None]:
    def change(screen: anndata.AnnData) -> None:
        values = screen.obs[column].astype(object).to_numpy().copy()
        values[row] = label
        screen.obs[column] = pd.Categorical(values)

    return change


def _gene(name: str) -> Callable[[anndata.AnnData], None]:
    def change(screen: anndata.AnnData) -> None:
        screen.var_names = [name if gene == "MYC" else gene for gene in GENES]

    return change


def _logged(screen: anndata.AnnData) -> None:
    screen.layers["counts"] = screen.X.copy()
    screen.X = np.log1p(screen.X)


def _labels(**names: str) -> Callable[[anndata.AnnData], None]:
    def change(screen: anndata.AnnData) -> None:
        labels = screen.obs["perturbation"].astype(str)
        screen.obs["perturbation"] = pd.Categorical(labels.map(lambda label: names.get(label, label)))

    return change


def _total(row: int, value: float) -> Callable[[anndata.AnnData], None]:
    def change(screen: anndata.AnnData) -> None:
        screen.obs.loc[f"cell{row}", "total"] = value

    return change


def _line_without_control(screen: anndata.AnnData) -> None:
    perturbed = screen.obs["perturbation"] == "MYC"
    screen.obs["line"] = np.where(perturbed, "RPE1", "K562")


def _keep(labels: set[str]) -> Callable[[anndata.AnnData], anndata.AnnData]:
    return lambda screen: screen[screen.obs["perturbation"].isin(labels)].copy()


def _file(name: str, write: Callable[[Path], dict[str, Any] | None], *fragments: str) -> BadInput:
    def build(folder: Path) -> dict[str, Any]:
        path = folder / "bad.h5ad"
        settings = {"sources": (path,), "batch_key": "batch"}
        return settings | (write(path) or {})

    return BadInput(name, build, fragments)


def _truncated(path: Path) -> None:
    good_screen().write_h5ad(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _damaged(change: Callable[[h5py.File], None]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        good_screen().write_h5ad(path)
        with h5py.File(path, "r+") as file:
            change(file)

    return write


def _more_cells_than_obs(file: h5py.File) -> None:
    file["X"].attrs["shape"] = (70, len(GENES))


def _gene_outside(file: h5py.File) -> None:
    file["X/indices"][5] = 99


def _broken_pointers(file: h5py.File) -> None:
    file["X/indptr"][3] = 10_000


def _without_obs(file: h5py.File) -> None:
    del file["obs"]


def _flipped_chunk(path: Path) -> None:
    good_screen().write_h5ad(path, compression="gzip")
    with h5py.File(path, "r") as file:
        chunk = file["X/data"].id.get_chunk_info(0)
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset + chunk.size // 2] ^= 0x08
    path.write_bytes(content)


def _disjoint(path: Path) -> dict[str, Any]:
    good_screen().write_h5ad(path)
    other = good_screen()
    other.var_names = [f"ENSG{i:011d}" for i in range(len(GENES))]
    other.write_h5ad(path.with_name("other.h5ad"))
    return {"sources": (path, path.with_name("other.h5ad"))}


def _twice(path: Path) -> dict[str, Any]:
    good_screen().write_h5ad(path)
    return {"sources": (path, path.parent / "." / path.name)}


def _both_lines(path: Path) -> dict[str, Any]:
    good_screen().write_h5ad(path)
    return {"cell_line": "K562", "cell_line_key": "line"}


def _nothing(screen: anndata.AnnData) -> None:
    """Leave the screen as it is: the settings are what is wrong."""


CASES: tuple[BadInput, ...] = (
    # numbers
    _case("negative count", _value(7, 2, -1), "cell 'cell7'", "row 7", "gene 'JAK2'", "-1", "negative"),
    _case("NaN count", _value(9, 3, np.nan), "cell 'cell9'", "gene 'CD86'", "not a finite number"),
    _case("infinite count", _value(9, 3, np.inf), "cell 'cell9'", "gene 'CD86'", "not a finite number"),
    _case(
        "fractional count", _value(11, 4, 2.5), "cell 'cell11'", "gene 'MYC'", "2.5", "--input-scale log1p"
    ),
    _case("logged instead of counts", _logged, "X: value", "not a whole number", "--layer", "'counts'"),
    _case("count beyond 32 bits", _value(1, 1, 2.0**33), "cell 'cell1'", "gene 'IRF1'", "too large"),
    _case(
        "counts called log1p",
        _value(5, 5, 400),
        "cell 'cell5'",
        "'SPI1'",
        "--input-scale",
        input_scale="log1p",
    ),
    _case(
        "cell without counts",
        lambda s: _rows_to_zero(s, 12),
        "cell 'cell12'",
        "no counts",
        "--empty-cells drop",
    ),
    # genes
    _case("gene named twice", _gene("STAT1"), "'STAT1'", "2 times", "unique"),
    _case("Excel date 1-Mar", _gene("1-Mar"), "'1-Mar'", "row 4", "--gene-name-key"),
    _case("Excel date Mar-01", _gene("Mar-01"), "'Mar-01'", "spreadsheet"),
    _case("Excel date 2-Sep", _gene("2-Sep"), "'2-Sep'", "spreadsheet"),
    _case("control character in a gene", _gene("MY\x07C"), "row 4", "rename"),
    _case("no such gene column", _nothing, "var has no column 'symbol'", gene_name_key="symbol"),
    # labels
    _case(
        "misspelt perturbation column",
        _nothing,
        "obs has no column 'perturbatoin'",
        "'perturbation'",
        perturbation_key="perturbatoin",
    ),
    _case("no such perturbation column", _nothing, "'xyz'", "'batch'", "'total'", perturbation_key="xyz"),
    _case("preset of another family", _nothing, "obs has no column 'condition'", preset="gears"),
    _case("control label absent", _nothing, "'AAVS1'", "'ctrl'", "--control-label", control_label="AAVS1"),
    _case("no control", _labels(ctrl="reference"), "--control-label", "the labels are 'CD86'"),
    _case("control under another name", _labels(ctrl="ctrl_guides"), "'ctrl_guides'", "--control-label"),
    _case("missing label", _label(17, None), "'perturbation' is empty", "cell 'cell17'", "row 17"),
    _case("empty label", _label(17, " "), "'perturbation' is empty", "cell 'cell17'"),
    _case("gene missing in a label", _label(3, "STAT1+"), "'STAT1+'", "cell 'cell3'", "row 3"),
    _case("path separator in a label", _label(3, "../STAT1"), "'../STAT1'", "path separator", "rename"),
    _case("control character in a label", _label(3, "STAT\t1"), "cell 'cell3'", "control characters"),
    _case("spreadsheet date as label", _label(3, "1-Mar"), "'1-Mar'", "cell 'cell3'", "spreadsheet"),
    _case("guide number as gene", _label(3, "STAT1_2"), "'STAT1_2'", "2 is a number", separator="_"),
    _case("only controls", _keep({"ctrl"}), "every cell is a control"),
    _case(
        "too few perturbations",
        _keep({"ctrl", "MYC", "IRF1", "CUL3"}),
        "3 perturbations",
        "at least 4",
        "'MYC'",
    ),
    # contexts
    _case(
        "no such batch column", _nothing, "obs has no column 'gem_group'", "'batch'", batch_key="gem_group"
    ),
    _case("missing batch", _label(20, None, "batch"), "'batch' is empty", "cell 'cell20'"),
    _case(
        "cell line without control",
        _line_without_control,
        "no control cell in cell line RPE1",
        cell_line_key="line",
    ),
    _case(
        "path separator in a cell line",
        _label(2, "K562/A", "line"),
        "'K562/A'",
        "path separator",
        cell_line_key="line",
    ),
    # filters
    _case(
        "filter that keeps nothing", _nothing, "'batch=9'", "keeps no cell", "'1', '2'", where=("batch=9",)
    ),
    _case("filter on no column", _nothing, "no column 'bach'", "'batch'", where=("bach=1",)),
    BadInput(
        "filter of another form",
        lambda folder: _case("", _nothing).build(folder) | {"where": ("batch",)},
        ("'batch'", "column=value"),
    ),
    # library size and places
    _case("no such library column", _nothing, "no column 'totl'", "'total'", library_size_key="totl"),
    _case("library size of zero", _total(4, 0), "cell 'cell4'", "not positive", library_size_key="total"),
    _case("library size below the counts", _total(4, 1), "cell 'cell4'", "smaller", library_size_key="total"),
    _case("library size of text", _nothing, "'line' is not numeric", library_size_key="line"),
    _case("no such layer", _logged, "no 'count'", "'X'", "'counts'", layer="count"),
    _case("no raw", _nothing, "no 'raw'", "'X'", layer="raw"),
    # files
    _file("no such file", lambda path: None, "bad.h5ad", "no such file"),
    _file("a folder", lambda path: path.mkdir(), "bad.h5ad", "a folder"),
    _file(
        "not HDF5", lambda path: (path.write_text("gene,count\n"), None)[1], "bad.h5ad", "not an HDF5 file"
    ),
    _file("cut short", _truncated, "bad.h5ad", "cut short"),
    _file("flipped chunk", _flipped_chunk, "bad.h5ad", "X cannot be read"),
    _file("more cells than obs rows", _damaged(_more_cells_than_obs), "70 cells", "obs has 64"),
    _file("gene number outside", _damaged(_gene_outside), "gene number 99 of 12"),
    _file("broken row pointers", _damaged(_broken_pointers), "row pointers"),
    _file("no obs", _damaged(_without_obs), "bad.h5ad", "obs table cannot be read"),
    _file("no cells", lambda path: good_screen()[:0].copy().write_h5ad(path), "empty", "0 cells"),
    _file("no genes", lambda path: good_screen()[:, :0].copy().write_h5ad(path), "empty", "0 genes"),
    _file("disjoint genes", _disjoint, "no gene is in all 2 files", "other.h5ad", "--gene-name-key"),
    _file("one file twice", _twice, "bad.h5ad", "twice"),
    _file("cell line given in two ways", _both_lines, "cell line", "keep one"),
    _file("no source", lambda path: {"sources": ()}, "no source file"),
)


def _rows_to_zero(screen: anndata.AnnData, row: int) -> None:
    dense = screen.X.toarray()
    dense[row] = 0
    screen.X = scipy.sparse.csr_matrix(dense)


# --- embeddings in obsm -----------------------------------------------------------------------------------


def good_embedding(num_cells: int = 64, width: int = 3) -> np.ndarray[Any, np.dtype[np.float32]]:
    """(num_cells, width) values that name their place: cell + column / 8."""
    return (np.arange(num_cells)[:, None] + np.arange(width) / 8).astype(np.float32)


def _obsm(change: Callable[[anndata.AnnData], None]) -> Callable[[anndata.AnnData], None]:
    def both(screen: anndata.AnnData) -> None:
        screen.obsm["X_pca"] = good_embedding()
        change(screen)

    return both


def _obsm_value(row: int, column: int, value: float) -> Callable[[anndata.AnnData], None]:
    def change(screen: anndata.AnnData) -> None:
        wrong = good_embedding().astype(np.float64)
        wrong[row, column] = value
        screen.obsm["X_pca"] = wrong

    return _obsm(change)


def _obsm_sparse_value(screen: anndata.AnnData) -> None:
    wrong = good_embedding()
    wrong[40, 1] = np.nan
    screen.obsm["X_pca"] = scipy.sparse.csr_matrix(wrong)


def _obsm_table(screen: anndata.AnnData) -> None:
    screen.obsm["X_pca"] = pd.DataFrame(good_embedding(), index=screen.obs_names, columns=["a", "b", "c"])


def _obsm_damage(change: Callable[[h5py.File], None]) -> Callable[[Path], dict[str, Any]]:
    def write(path: Path) -> dict[str, Any]:
        screen = good_screen()
        screen.obsm["X_pca"] = scipy.sparse.csr_matrix(good_embedding())
        screen.obsm["X_dense"] = good_embedding()
        screen.write_h5ad(path)
        with h5py.File(path, "r+") as file:
            change(file)
        return {"embeddings": ("X_pca",)}

    return write


def _obsm_named(*names: str) -> Callable[[Path], dict[str, Any]]:
    def write(path: Path) -> dict[str, Any]:
        good_screen().write_h5ad(path)
        return {"embeddings": names}

    return write


def _obsm_rows(file: h5py.File) -> None:
    short = file["obsm/X_dense"][:50]
    del file["obsm/X_pca"], file["obsm/X_dense"]
    file["obsm/X_pca"] = short


def _obsm_column_outside(file: h5py.File) -> None:
    file["obsm/X_pca/indices"][4] = 7


def _obsm_widths(path: Path) -> dict[str, Any]:
    for number, width in enumerate((3, 4)):
        screen = good_screen()
        screen.obsm["X_pca"] = good_embedding(width=width)
        screen.write_h5ad(path.with_name(("bad.h5ad", "other.h5ad")[number]))
    return {"sources": (path, path.with_name("other.h5ad")), "embeddings": ("X_pca",)}


def _obsm_in_one(path: Path) -> dict[str, Any]:
    screen = good_screen()
    screen.obsm["X_pca"] = good_embedding()
    screen.write_h5ad(path)
    good_screen().write_h5ad(path.with_name("other.h5ad"))
    return {"sources": (path, path.with_name("other.h5ad")), "embeddings": ("X_pca",)}


PCA: dict[str, Any] = {"embeddings": ("X_pca",)}
EMBEDDING_CASES: tuple[BadInput, ...] = (
    _case("no obsm", _nothing, "obsm has no 'X_pca'", "none", **PCA),
    _case("no such embedding", _obsm(_nothing), "'X_scvi'", "there is 'X_pca'", embeddings=("X_scvi",)),
    _file("embedding named twice", _obsm_named("X_pca", "X_pca"), "X_pca", "twice"),
    _file("unsafe name of an embedding", _obsm_named("../X"), "'../X'", "letters, digits"),
    _case("NaN in an embedding", _obsm_value(9, 1, np.nan), "obsm/X_pca", "'cell9'", "column 1", **PCA),
    _case("infinite embedding", _obsm_value(10, 2, np.inf), "inf", "'cell10'", "column 2", **PCA),
    _case("embedding beyond float32", _obsm_value(11, 0, 1e60), "1e+60", "'cell11'", "single", **PCA),
    _case("NaN in a sparse embedding", _obsm(_obsm_sparse_value), "'cell40'", "column 1", **PCA),
    _case("embedding as a table", _obsm(_obsm_table), "obsm/X_pca", "'dataframe'", **PCA),
    _file("embedding of other rows", _obsm_damage(_obsm_rows), "50 rows", "64 cells"),
    _file("damaged sparse embedding", _obsm_damage(_obsm_column_outside), "column number 7 of 3"),
    _file("embedding of two widths", _obsm_widths, "other.h5ad", "4 wide", "3 in", "together"),
    _file("embedding in one file of two", _obsm_in_one, "other.h5ad", "no 'X_pca'"),
)
