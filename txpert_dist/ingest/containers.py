"""What an input is, and AnnData opened alike wherever it lies: an h5ad file or a Zarr group.

Enters: a path. Leaves: its kind, or an open hierarchy of groups and arrays that h5py and zarr spell the same.
Invariants: whatever is wrong with the files is an ``InputError``; a chunk of a sparse matrix that is missing
is not read as zeros.
"""

import errno
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import h5py
import zarr

from txpert_dist.errors import InputError, TxPertError
from txpert_dist.store import layout

Kind = Literal["h5ad", "zarr", "10x", "store"]

SPARSE = ("data", "indices", "indptr")
"""Arrays of a sparse matrix."""
MATRIX_FILES = "*matrix.mtx*"
"""Pattern of the matrix in a 10x folder; what stands before it, its other files share."""


def kind_of(path: Path) -> Kind:
    """What lies at ``path``; ``InputError`` when it is nothing that can be ingested."""
    if not path.exists():
        raise InputError(
            f"{path}: no such file; give the path of an h5ad file, a Zarr AnnData or a 10x folder"
        )
    if path.is_file():
        return "h5ad"
    if any((path / name).is_file() for name in ("zarr.json", ".zgroup")):
        return "store" if (path / layout.MANIFEST).is_file() else "zarr"
    if any(path.glob(MATRIX_FILES)):
        return "10x"
    raise InputError(
        f"{path}: a folder that holds neither a Zarr group nor a matrix.mtx; give the path of an h5ad file, "
        "a Zarr AnnData or a 10x folder"
    )


@contextmanager
def opened(path: Path, place: str | None = None) -> Iterator[Any]:
    """The hierarchy in the h5ad file or Zarr group ``path``; ``InputError`` when it cannot be read.

    ``place`` is the part that is about to be read, for the message.
    """
    what = "not an HDF5 file, or cut short" if place is None else f"{place} cannot be read"
    try:
        if kind_of(path) == "h5ad":
            with h5py.File(path, "r") as file:
                yield file
        else:
            yield zarr.open_group(str(path), mode="r")
    except TxPertError:
        raise
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        raise InputError(f"{path}: {what} ({_first_line(error)}); {_REMEDY}") from error
    except (ValueError, KeyError, RuntimeError, TypeError) as error:  # what zarr and its codecs raise
        if path.is_file():
            raise
        what = f"{place or 'its Zarr metadata'} cannot be read"
        raise InputError(f"{path}: {what} ({_first_line(error)}); {_REMEDY}") from error


def rows_read_together(array: Any) -> int | None:
    """Rows of the 2-d ``array`` that are decompressed together; None when it is stored in one piece."""
    chunks = getattr(array, "shards", None) or array.chunks
    return int(chunks[0]) if chunks else None


def require_chunks(path: Path, place: str, group: Any) -> None:
    """``InputError`` when a chunk of the sparse matrix ``group`` is missing; of an HDF5 group none can be.

    Of a dense matrix, missing chunks are zeros by the format itself.
    """
    for name in SPARSE:
        array = group[name]
        if isinstance(array, zarr.Array) and array.nchunks_initialized < _chunks(array):
            raise InputError(
                f"{path}: {place}/{name} lacks {_chunks(array) - array.nchunks_initialized} of its "
                f"{_chunks(array)} chunks, which would be read as zeros; {_REMEDY}"
            )


def _chunks(array: Any) -> int:
    """How many chunks Zarr counts as written in a complete array: whole shards where there are any."""
    outer = array.shards or array.chunks
    files: int = math.prod(-(-size // chunk) for size, chunk in zip(array.shape, outer, strict=True))
    within: int = math.prod(o // i for o, i in zip(outer, array.chunks, strict=True))
    return files * within


_REMEDY = "fetch it again"


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160]
