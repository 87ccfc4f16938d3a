"""A 10x folder: matrix.mtx, barcodes.tsv and features.tsv, and a table that labels the cells.

Enters: the folder, and a csv or tsv table whose first column is the barcode. Leaves: a ``Source``, and the
matrix's entries block by block. Invariants: cells and table are matched by barcode, never by position;
features that are no genes (guides, antibodies) are left out of the expression and counted; the matrix has as
many entries as it announces.
"""

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
from numpy.typing import NDArray

from txpert_dist.errors import InputError
from txpert_dist.ingest.containers import MATRIX_FILES
from txpert_dist.ingest.labels import listing
from txpert_dist.ingest.source import Source

ENTRY = np.dtype([("cell", np.int64), ("gene", np.int32), ("value", np.float64)])

_GENES = "Gene Expression"
_TEXT_BYTES = 1 << 24
"""Of the matrix's text, parsed at once."""
_REMEDY = "fetch the folder again"


class _Files(NamedTuple):
    matrix: Path
    barcodes: Path
    features: Path


class _Header(NamedTuple):
    """What the matrix announces."""

    features: int
    cells: int
    entries: int
    lines: int
    """Lines before the first entry."""


def open_folder(path: Path, layer: str, table: Path | None) -> Source:
    """The cells of the 10x folder ``path`` with the labels of ``table`` as obs.

    Raises ``InputError`` when a file is missing or unreadable, sizes do not fit, or no barcode is in
    ``table``. Cells that ``table`` lacks have empty labels.
    """
    if layer != "X":
        raise InputError(f"{path}: a 10x folder has one matrix; leave --layer out")
    files = _files(path)
    header = _read_header(files.matrix)
    barcodes = _lines(files.barcodes)
    features = _features(files.features)
    if (len(features), len(barcodes)) != header[:2]:
        raise InputError(
            f"{files.matrix}: {header.features} features x {header.cells} cells, but {files.features.name} "
            f"has {len(features)} lines and {files.barcodes.name} {len(barcodes)}; {_REMEDY}"
        )
    genes = features[_is_gene(features)]
    if not len(genes) or not len(barcodes):
        raise InputError(f"{path}: is empty ({len(barcodes)} cells x {len(genes)} genes); {_REMEDY}")
    repeated = pd.Index(barcodes)[pd.Index(barcodes).duplicated()]
    if len(repeated):
        raise InputError(f"{files.barcodes}: barcode {repeated[0]!r} is there twice; {_REMEDY}")
    obs, notes = _labels(path, barcodes, table)
    others = features["feature_types"][~_is_gene(features)].value_counts()
    notes += [f"{path.name}: {count} features of type {kind!r} left out" for kind, count in others.items()]
    var = genes.set_index("gene_id")[["gene_name"]]
    shape = (len(barcodes), len(genes))
    return Source(path, obs, var, files.matrix.name, "mtx", shape, (), tuple(notes))


def num_entries(path: Path) -> int:
    """Entries that the matrix of the folder announces, those of no gene included."""
    return _read_header(_files(path).matrix).entries


def read_entries(source: Source) -> Iterator[NDArray[Any]]:
    """Every entry of a gene, in order of the file, as arrays of type ``ENTRY``.

    Raises ``InputError`` for text that is no entry, a position outside the matrix, or too few entries.
    """
    files = _files(source.path)
    header = _read_header(files.matrix)
    is_gene = _is_gene(_features(files.features)).to_numpy()
    number = np.where(is_gene, np.cumsum(is_gene) - 1, -1).astype(np.int32)
    seen = 0
    for feature, cell, value in _parsed(files.matrix, header):
        seen += len(value)
        outside = (feature < 1) | (feature > header.features) | (cell < 1) | (cell > header.cells)
        if outside.any():
            first = int(np.argmax(outside))
            raise InputError(
                f"{files.matrix}: entry {seen - len(value) + first + 1} is for feature {feature[first]}, "
                f"cell {cell[first]} of {header.features} x {header.cells}; {_REMEDY}"
            )
        kept = is_gene[feature - 1]
        entries = np.empty(int(kept.sum()), ENTRY)
        entries["cell"], entries["gene"] = cell[kept] - 1, number[feature[kept] - 1]
        entries["value"] = value[kept]
        yield entries
    if seen != header.entries:
        raise InputError(f"{files.matrix}: holds {seen} entries but announces {header.entries}; {_REMEDY}")


def _files(path: Path) -> _Files:
    matrices = sorted(path.glob(MATRIX_FILES))
    if len(matrices) != 1:
        raise InputError(
            f"{path}: holds {len(matrices)} matrices ({listing([m.name for m in matrices])}); give a folder "
            "of one, or put each into a folder of its own"
        )
    prefix = matrices[0].name.partition("matrix.mtx")[0]
    return _Files(
        matrices[0],
        _one_of(path, prefix, ("barcodes.tsv",)),
        _one_of(path, prefix, ("features.tsv", "genes.tsv")),
    )


def _one_of(path: Path, prefix: str, names: tuple[str, ...]) -> Path:
    for name in names:
        for ending in ("", ".gz"):
            if (path / f"{prefix}{name}{ending}").is_file():
                return path / f"{prefix}{name}{ending}"
    raise InputError(f"{path}: has no {prefix}{names[0]}(.gz) beside its matrix; {_REMEDY}")


def _text(path: Path) -> Any:
    return gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8")


def _lines(path: Path) -> list[str]:
    try:
        with _text(path) as file:
            return [line.rstrip("\r\n").split("\t")[0] for line in file if line.strip()]
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); {_REMEDY}") from None


def _features(path: Path) -> pd.DataFrame:
    """gene_id, gene_name, feature_types of every feature; older folders have genes only."""
    try:
        with _text(path) as file:
            rows = [line.rstrip("\r\n").split("\t") for line in file if line.strip()]
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); {_REMEDY}") from None
    short = [number for number, row in enumerate(rows, 1) if len(row) < 2]
    if short:
        raise InputError(f"{path}: line {short[0]} has no tab between id and name; {_REMEDY}")
    return pd.DataFrame(
        {
            "gene_id": [row[0] for row in rows],
            "gene_name": [row[1] for row in rows],
            "feature_types": [row[2] if len(row) > 2 else _GENES for row in rows],
        }
    )


def _is_gene(features: pd.DataFrame) -> "pd.Series[bool]":
    return features["feature_types"] == _GENES


def _read_header(path: Path) -> _Header:
    try:
        with _text(path) as file:
            first = file.readline().lower().split()
            if first[:3] != ["%%matrixmarket", "matrix", "coordinate"] or first[3:] not in (
                ["integer", "general"],
                ["real", "general"],
            ):
                raise ValueError("its first line is not that of a sparse matrix of numbers")
            for lines, line in enumerate(file, 2):
                if not line.startswith("%") and line.strip():
                    features, cells, entries = map(int, line.split())
                    return _Header(features, cells, entries, lines)
    except (OSError, EOFError, UnicodeDecodeError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); {_REMEDY}") from None
    raise InputError(f"{path}: cut short, it has no line of sizes; {_REMEDY}")


def _parsed(path: Path, header: _Header) -> Iterator[tuple[Any, Any, Any]]:
    columns = {"feature": pa.int64(), "cell": pa.int64(), "value": pa.float64()}
    if not header.entries:
        return
    try:
        reader = pa.csv.open_csv(
            path,
            read_options=pa.csv.ReadOptions(
                column_names=list(columns), skip_rows=header.lines, block_size=_TEXT_BYTES, use_threads=False
            ),
            parse_options=pa.csv.ParseOptions(delimiter=" "),
            convert_options=pa.csv.ConvertOptions(column_types=columns, null_values=[]),
        )
        for batch in reader:
            yield tuple(batch.column(name).to_numpy(zero_copy_only=False) for name in columns)
    except (OSError, EOFError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"{path}: cannot be read ({reason}); {_REMEDY}") from None


def _labels(path: Path, barcodes: list[str], table: Path | None) -> tuple[pd.DataFrame, list[str]]:
    """obs by barcode, and what is to be said about the match."""
    index = pd.Index(barcodes, dtype=object)
    if table is None:
        raise InputError(
            f"{path}: a 10x folder does not say how its cells are perturbed; give --labels, a csv or tsv "
            "table whose first column is the barcode"
        )
    frame = _read_table(table)
    row = frame.index.get_indexer(index)
    if (row < 0).all():
        raise InputError(
            f"{table}: none of its barcodes ({listing(list(frame.index), 1)}) is one of {path} "
            f"({listing(barcodes, 1)}); write them as in barcodes.tsv"
        )
    unknown, unlabelled = len(frame) - int((row >= 0).sum()), int((row < 0).sum())
    notes = []
    if unknown:
        notes.append(f"{table.name}: {unknown} of its {len(frame)} barcodes are not in {path.name}")
    if unlabelled:
        notes.append(f"{path.name}: {unlabelled} of {len(index)} cells are not in {table.name}")
    return frame.reindex(index), notes


def _read_table(path: Path) -> pd.DataFrame:
    """The table by its first column; only an empty field is a missing value."""
    separator = "\t" if {".tsv", ".txt"} & {suffix.lower() for suffix in path.suffixes} else ","
    try:
        frame = pd.read_csv(
            path,
            sep=separator,
            keep_default_na=False,
            na_values=[""],
            dtype={0: str},
            encoding="utf-8-sig",
            low_memory=False,
        )
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; give a csv or tsv table of labels") from None
    except (OSError, EOFError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"{path}: cannot be read ({reason}); give a csv or tsv table of labels") from None
    if frame.shape[1] < 2:
        raise InputError(f"{path}: has no column besides the barcodes; give a csv or tsv table of labels")
    barcode = frame.columns[0]
    if frame[barcode].isna().any():
        raise InputError(f"{path}: line {int(frame[barcode].isna().argmax()) + 2} has no barcode; fill it in")
    again = frame[barcode][frame[barcode].duplicated()]
    if len(again):
        raise InputError(
            f"{path}: barcode {again.iloc[0]!r} is there twice ({len(again)} such lines); keep one line of "
            "each cell"
        )
    odd = [str(c) for c in frame.columns if "/" in str(c) or "\\" in str(c) or not str(c).isprintable()]
    if odd:
        raise InputError(f"{path}: column {odd[0]!r} has a path separator or control character; rename it")
    return frame.set_index(barcode)
