"""Files that `txpert embed add` must not take for the store of ``good_screen``, and a good table.

Every entry of ``FILE_CASES`` writes one and says which words the one-line error has to hold.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from tests.bad_inputs import good_embedding, good_screen


class BadFile(NamedTuple):
    """One way in which a file of an embedding is bad."""

    name: str
    file: str
    write: Callable[[Path], None]
    """Writes it at the path."""
    fragments: tuple[str, ...]
    """What the message must hold besides the file's name."""
    options: tuple[str, ...] = ()
    """Of `txpert embed add`, besides ``--name X_new``."""


def embedding_table(width: int = 3) -> pd.DataFrame:
    """Embedding of the cells of ``good_screen``, by name."""
    return pd.DataFrame(
        good_embedding(width=width),
        index=[f"cell{i}" for i in range(64)],
        columns=[f"d{i}" for i in range(width)],
    )


def _csv(change: Callable[[pd.DataFrame], pd.DataFrame], **options: Any) -> Callable[[Path], None]:
    return lambda path: change(embedding_table()).to_csv(path, **options)


def _text(*lines: str) -> Callable[[Path], None]:
    return lambda path: (path.write_text("".join(line + "\n" for line in lines)), None)[1]


def _set(row: int, column: int, value: object) -> Callable[[pd.DataFrame], pd.DataFrame]:
    def change(table: pd.DataFrame) -> pd.DataFrame:
        table = table.astype(object)
        table.iloc[row, column] = value
        return table

    return change


def _npz(**arrays: Any) -> Callable[[Path], None]:
    good = {"cell": np.array([f"cell{i}" for i in range(64)]), "embedding": good_embedding()}
    kept = {name: array for name, array in (good | arrays).items() if array is not None}
    return lambda path: np.savez(path, **kept)


def _parquet(change: Callable[[pd.DataFrame], pd.DataFrame], **options: Any) -> Callable[[Path], None]:
    return lambda path: change(embedding_table()).to_parquet(path, **options)


def _halved(write: Callable[[Path], None]) -> Callable[[Path], None]:
    def cut(path: Path) -> None:
        write(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return cut


def _h5ad(key: str, value: float) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        screen = good_screen()
        screen.obsm[key] = good_embedding()
        screen.obsm[key][3, 2] = value
        screen.write_h5ad(path)

    return write


def _bytes(path: Path) -> None:
    path.write_bytes(bytes(range(256)))


def _as_it_is(table: pd.DataFrame) -> pd.DataFrame:
    return table


_OBJECTS = np.array([f"cell{i}" for i in range(64)], object)

FILE_CASES: tuple[BadFile, ...] = (
    BadFile("no such file", "a.csv", lambda path: None, ("no such file",)),
    BadFile("a folder", "a.csv", lambda path: path.mkdir(), ("no such file",)),
    BadFile("no known ending", "a.xlsx", _text("cell,d0"), ("ending", "parquet")),
    BadFile("key of a csv", "a.csv", _csv(_as_it_is), ("--key",), ("--key=X_pca",)),
    # cells
    BadFile("a cell missing", "a.csv", _csv(lambda t: t.drop("cell7")), ("1 of the store's 64", "'cell7'")),
    BadFile("cells missing", "a.tsv", _csv(lambda t: t[:60], sep="\t"), ("4 of the store's 64", "'cell60'")),
    BadFile("a cell twice", "a.csv", _csv(lambda t: t.iloc[[*range(64), 5]]), ("'cell5'", "twice")),
    BadFile(
        "other names",
        "a.csv",
        _csv(lambda t: t.add_suffix("-1", axis=0)),
        ("begins with 'cell0-1'", "obs_names"),
    ),
    BadFile("no header", "a.csv", _csv(_as_it_is, header=False), ("first line is a cell's",)),
    BadFile("no cells", "a.csv", _csv(lambda t: t[:0]), ("64 of the store's 64",)),
    # numbers
    BadFile("NaN", "a.csv", _csv(_set(6, 1, np.nan)), ("'cell6'", "column 1", "not a finite")),
    BadFile("empty field", "a.csv", _csv(_set(6, 1, "")), ("'cell6'", "column 1", "not a finite")),
    BadFile("infinite", "a.parquet", _parquet(lambda t: t.replace(12.125, np.inf)), ("'cell12'", "column 1")),
    BadFile("infinite in npz", "a.npz", _npz(embedding=np.full((64, 2), np.inf)), ("'cell0'", "finite")),
    BadFile("text", "a.csv", _csv(_set(6, 1, "n.d.")), ("cannot be read", "n.d.")),
    BadFile("text in parquet", "a.parquet", _parquet(lambda t: t.astype({"d1": str})), ("'d1'", "numbers")),
    # text files
    BadFile("empty file", "a.csv", _text(), ("first line",)),
    BadFile("names alone", "a.csv", _text("cell", "cell0"), ("first line",)),
    BadFile("another separator", "a.tsv", _csv(_as_it_is), ("first line",)),
    BadFile(
        "a line too long", "a.csv", _text("cell,d0", "cell0,1,2"), ("cannot be read", "Expected 2 columns")
    ),
    BadFile("R's header", "a.csv", _text("d0,d1", "cell0,1,2"), ("cannot be read", "Expected 2 columns")),
    BadFile("not gzip", "a.csv.gz", _text("cell,d0", "cell0,1"), ("cannot be read",)),
    BadFile("gzip cut short", "a.csv.gz", _halved(_csv(_as_it_is)), ("cannot be read",)),
    BadFile(
        "no text", "a.csv", lambda path: (path.write_bytes(bytes(range(256))), None)[1], ("cannot be read",)
    ),
    # npz
    BadFile("npz without names", "a.npz", _npz(cell=None), ("'cell'", "'embedding'")),
    BadFile("npz without numbers", "a.npz", _npz(embedding=None), ("no array 'embedding'",)),
    BadFile("pickled names", "a.npz", _npz(cell=_OBJECTS), ("cannot be read", "allow_pickle=False")),
    BadFile("numbered cells", "a.npz", _npz(cell=np.arange(64)), ("'cell'", "dtype=str")),
    BadFile("npz of other lengths", "a.npz", _npz(embedding=good_embedding(60)), ("64 cells", "60 rows")),
    BadFile("npz of one dimension", "a.npz", _npz(embedding=np.ones(64)), ("'embedding' is no matrix",)),
    BadFile("npz of text", "a.npz", _npz(embedding=np.full((64, 2), "x")), ("'embedding' is no matrix",)),
    BadFile("npz cut short", "a.npz", _halved(_npz()), ("cannot be read",)),
    BadFile("npz that is none", "a.npz", _text("cell,d0"), ("cannot be read",)),
    # parquet
    BadFile("parquet cut short", "a.parquet", _halved(_parquet(_as_it_is)), ("cannot be read",)),
    BadFile("parquet of names alone", "a.parquet", _parquet(lambda t: t[[]]), ("no column besides",)),
    BadFile(
        "parquet without a name",
        "a.parquet",
        _parquet(lambda t: t.reset_index(names="cell").replace("cell8", None), index=False),
        ("row 8", "no cell name"),
    ),
    # h5ad
    BadFile("no such key", "a.h5ad", _h5ad("X_pca", 1), ("obsm has no 'X_new'", "there is 'X_pca'")),
    BadFile("NaN in obsm", "a.h5ad", _h5ad("X_pca", np.nan), ("'cell3'", "column 2"), ("--key=X_pca",)),
    BadFile("h5ad that is none", "a.h5ad", _text("x"), ("not an HDF5 file",)),
    BadFile("h5ad cut short", "a.h5ad", _halved(_h5ad("X_new", 1)), ("not an HDF5 file, or cut short",)),
)
