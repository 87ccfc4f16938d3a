"""One AnnData, an h5ad file or a Zarr group: its tables, and where its expression matrix is.

Enters: a path. Leaves: a ``Source``, with no file held open. Invariant: obs and var have as many rows as the
matrix has rows and columns, and neither is empty.
"""

import difflib
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from anndata.io import read_elem

from txpert_dist.errors import InputError
from txpert_dist.ingest.config import Key
from txpert_dist.ingest.containers import SPARSE, kind_of, opened, require_chunks
from txpert_dist.ingest.labels import listing
from txpert_dist.store import tables

Encoding = Literal["csr", "csc", "dense", "mtx", "store"]


class Source(NamedTuple):
    """Everything of one file but its numbers."""

    path: Path
    obs: pd.DataFrame
    var: pd.DataFrame
    place: str
    """Where in the file the matrix is: X, raw/X or layers/NAME."""
    encoding: Encoding
    shape: tuple[int, int]
    """Cells, genes."""
    layers: tuple[str, ...]
    """Names of the file's layers, for advice."""
    notes: tuple[str, ...] = ()
    """What the summary should say about it."""

    def cell(self, row: int) -> str:
        """How messages name the cell in ``row``."""
        return f"cell {str(self.obs.index[row])!r} (row {row})"

    def gene(self, column: int) -> str:
        """How messages name the gene in ``column``."""
        return f"gene {str(self.var.index[column])!r}"


def open_source(path: Path, layer: str) -> Source:
    """Read the tables of the AnnData in ``path``; its matrix is X, raw (X and var of ``raw``) or a layer.

    Raises ``InputError`` when it is missing, cut short, no AnnData, or its parts do not fit, and
    ``StoreError`` for a damaged cell store.
    """
    if kind_of(path) == "store" and layer == "X":
        return _read_store(path)
    with opened(path) as file:
        return _read(path, file, layer)


def find_column(source: Source, table: Literal["obs", "var"], key: Key) -> str | None:
    """The column's name; None where an optional one is absent, ``InputError`` with near names for others."""
    columns = [str(name) for name in getattr(source, table).columns]
    if key.name is None or key.name in columns:
        return key.name
    if not key.required:
        return None
    near = difflib.get_close_matches(key.name, columns, 3, 0.5)
    hint = f"did you mean {listing(near)}?" if near else f"there are {listing(columns, 12) or 'none'}"
    raise InputError(f"{source.path}: {table} has no column {key.name!r}; {hint}")


def _read_store(path: Path) -> Source:
    """A cell store, whose matrix is read with every chunk checked."""
    obs, var = tables.read_table(path, "obs"), tables.read_table(path, "var")
    return Source(path, obs, var, "X", "store", (len(obs), len(var)), ())


def _read(path: Path, file: Any, layer: str) -> Source:
    layers = tuple(sorted(file["layers"])) if "layers" in file else ()
    place = {"X": "X", "raw": "raw/X"}.get(layer, f"layers/{layer}")
    if place not in file:
        there = [name for name, found in (("X", "X" in file), ("raw", "raw/X" in file)) if found] + list(
            layers
        )
        raise InputError(
            f"{path}: no {layer!r} in the file; --layer may be {listing(there) or '... nothing'}"
        )
    encoding, shape = matrix_layout(path, place, file[place])
    obs = read_table(path, file, "obs")
    var = read_table(path, file, "raw/var" if place == "raw/X" else "var")
    if (len(obs), len(var)) != shape:
        raise InputError(
            f"{path}: {place} holds {shape[0]} cells x {shape[1]} genes, but obs has {len(obs)} rows and var "
            f"{len(var)}; write the file again from matching parts"
        )
    if not shape[0] or not shape[1]:
        raise InputError(
            f"{path}: {place} is empty ({shape[0]} cells x {shape[1]} genes); give a file with cells"
        )
    return Source(path, obs, var, place, encoding, shape, layers)


def matrix_layout(path: Path, place: str, element: Any) -> tuple[Encoding, tuple[int, int]]:
    """How the ``element`` is stored and its shape; ``InputError`` unless it is a whole matrix of numbers."""
    if hasattr(element, "dtype"):
        if element.ndim == 2 and element.dtype.kind in "iufb":
            return "dense", (int(element.shape[0]), int(element.shape[1]))
        raise InputError(f"{path}: {place} is no matrix of numbers; name one that is")
    kind = str(element.attrs.get("encoding-type", element.attrs.get("h5sparse_format", "")))
    if kind not in ("csr", "csr_matrix", "csc", "csc_matrix") or not set(SPARSE) <= set(element):
        raise InputError(
            f"{path}: {place} is stored as {kind or 'something unknown'!r}; write it as CSR, CSC or dense"
        )
    require_chunks(path, place, element)
    rows, columns = np.asarray(element.attrs.get("shape", element.attrs.get("h5sparse_shape"))).tolist()
    return ("csr" if kind.startswith("csr") else "csc"), (int(rows), int(columns))


def read_table(path: Path, file: Any, name: str) -> pd.DataFrame:
    """The table ``name`` (obs, var) of the open ``file``; ``InputError`` when it cannot be used."""
    try:
        table = read_elem(file[name])
    except Exception as error:  # noqa: BLE001  anndata raises many kinds for a damaged or unknown table
        raise InputError(
            f"{path}: its {name} table cannot be read ({_first_line(error)}); {_SAVE_AGAIN}"
        ) from None
    if not isinstance(table, pd.DataFrame):
        raise InputError(f"{path}: {name} is stored in a layout of before 2020; {_SAVE_AGAIN}")
    odd = [str(c) for c in table.columns if "/" in str(c) or "\\" in str(c) or not str(c).isprintable()]
    if odd:
        raise InputError(
            f"{path}: {name} column {odd[0]!r} has a path separator or control character; rename it"
        )
    return table


_SAVE_AGAIN = "open it with anndata and save it again"


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160]
