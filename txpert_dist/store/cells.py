"""Reading a cell store: labels, controls and splits resident, expression by rows.

Enters: the folder that ingest wrote. Leaves: a ``CellStore``. Invariants: nothing damaged, missing or emptied
is ever returned as data (``StoreError`` instead), and ``take`` returns rows in the order asked for.
Open the store in every process that reads it: hand over the path, not the value.
"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import zarr
from numpy.typing import NDArray

from txpert_dist.errors import InputError, StoreError
from txpert_dist.minibatch import SparseRows
from txpert_dist.store import layout, manifest, remote
from txpert_dist.store.controls import Context, ControlIndex
from txpert_dist.store.expression import InputScale
from txpert_dist.store.reads import Matrix, arranged, fetch, room_for
from txpert_dist.store.shards import ShardedArray, StoreFiles, open_array
from txpert_dist.store.splits import split_hash

_GROWING = (f"{layout.VALUE}/c/", f"{layout.GENE}/c/")
"""Where files lie that get more entries behind theirs when cells are appended."""


@dataclass(frozen=True, eq=False)
class CellStore:
    """One ingested screen; see ``open_store``."""

    path: Path
    manifest_hash: str
    """SHA-256 (hex) of the manifest: names the store's exact content."""
    input_scale: InputScale
    genes: tuple[str, ...]
    """Gene names in store order; the gene number is the position here."""
    selected: NDArray[np.int64]
    """Gene numbers of the selected (highly variable) genes, ascending."""
    perturbations: tuple[str, ...]
    """Names by perturbation code; the first is ``control``."""
    contexts: tuple[Context, ...]
    """(cell line, batch) by context code, sorted."""
    perturbation: NDArray[np.int32]
    """(num_cells,) perturbation codes."""
    context: NDArray[np.int32]
    """(num_cells,) context codes."""
    library_size: NDArray[np.float32]
    """(num_cells,) total counts over all measured genes, or the supplied column."""
    split: NDArray[np.uint8]
    """(num_perturbations,) split codes: positions in ``splits.SPLITS``."""
    split_hash: str
    """SHA-256 (hex) of which perturbation is in which split."""
    controls: ControlIndex
    control_mean_CG: NDArray[np.float32]
    """(C, genes) mean log1p expression of each context's controls, after fallback."""
    embeddings: dict[str, int]
    """Width of each embedding of the cells, by name."""
    matrix: Matrix = field(repr=False)
    """The expression matrix, unread; see ``reads.fetch``."""
    _embedding: dict[str, ShardedArray] = field(repr=False)
    _origin: dict[str, dict[str, Any]] = field(repr=False)

    @property
    def num_cells(self) -> int:
        """Number of cells, controls included."""
        return len(self.matrix.indptr) - 1

    def read(self, start: int, stop: int) -> SparseRows:
        """Cells ``start`` to ``stop`` (exclusive), all genes, values exactly as stored.

        Raises ``IndexError`` for a range outside the store and ``StoreError`` for damaged data.
        """
        if not 0 <= start <= stop <= self.num_cells:
            raise IndexError(f"cells {start}:{stop} of a store of {self.num_cells}")
        return self.take(np.arange(start, stop, dtype=np.int64))

    def take(self, rows: NDArray[np.int64]) -> SparseRows:
        """The cells ``rows``, in that order, repeats allowed; all genes, values exactly as stored.

        Every chunk that holds one of them is decoded once, so sorted neighbourhoods are cheap.
        Raises ``IndexError`` for a row outside the store and ``StoreError`` for damaged data.
        """
        rows = self._checked(rows)
        distinct, which = np.unique(rows, return_inverse=True)
        fetched = fetch(self.matrix, distinct, room_for(self.matrix, distinct, np.int32))
        return SparseRows(*arranged(fetched, which), self.library_size[rows])

    def take_embedding(self, name: str, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """(R, width) the embedding ``name`` of the cells ``rows``, in that order, repeats allowed.

        Reads the chunks that hold these rows and no other. Raises ``IndexError`` for a row outside the store
        and ``StoreError`` for an embedding that the store does not have and for damaged data.
        """
        array = self._embedding_array(name)
        values_RN: NDArray[np.float32] = array.take(self._checked(rows))
        return values_RN

    def embedding_origin(self, name: str) -> dict[str, Any]:
        """How the embedding ``name`` was made, as its writer noted it."""
        self._embedding_array(name)
        return dict(self._origin[name])

    def training_genes(self, which: Literal["selected", "all"]) -> NDArray[np.int64]:
        """Gene numbers of the training view, ascending."""
        return self.selected if which == "selected" else np.arange(len(self.genes), dtype=np.int64)

    def _checked(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        rows = np.asarray(rows, np.int64)
        if len(rows) and (rows.min() < 0 or rows.max() >= self.num_cells):
            raise IndexError(f"rows {rows.min()}..{rows.max()} of a store of {self.num_cells} cells")
        return rows

    def _embedding_array(self, name: str) -> ShardedArray:
        if name not in self._embedding:
            there = ", ".join(self.embeddings) or "none"
            raise StoreError(
                f"{self.path}: no embedding {name!r}, there is {there}; add it with txpert embed, or ingest "
                "with --embedding"
            )
        return self._embedding[name]


def open_store(path: Path) -> CellStore:
    """Open the store in ``path`` after checking that every file of its manifest is there with its size.

    Raises ``StoreError`` naming the file or array that is missing, damaged or of another version.
    """
    path = Path(path)
    stamp = _stamp(path)
    listed = manifest.read(path)
    manifest.check_sizes(path, remote.present(path, listed))
    files = _files(path, listed, stamp)
    try:
        root = zarr.open_group(str(path), mode="r")
        ours = root[layout.GROUP]
        index = str(root["var"].attrs["_index"])
        origin = _origins(root)
    except Exception as error:  # noqa: BLE001  zarr raises many kinds for a damaged hierarchy
        raise StoreError(
            f"{path}: its Zarr metadata cannot be read ({error}); ingest the screen again"
        ) from None

    def load(name: str, group: Any = ours, prefix: str = layout.GROUP) -> NDArray[Any]:
        values: NDArray[Any] = _read(path, f"{prefix}/{name}", group[name], slice(None))
        return values

    embedding = {name: open_array(f"{layout.OBSM}/{name}", files) for name in origin}
    names = load(layout.PERTURBATIONS).tolist()
    split = load(layout.SPLIT)
    lines, batches = load(layout.CELL_LINE_OF_CONTEXT).tolist(), load(layout.BATCH_OF_CONTEXT).tolist()
    genes = tuple(load(index, root["var"], "var").tolist())
    return CellStore(
        path=path,
        manifest_hash=manifest.file_sha256(path / layout.MANIFEST),
        input_scale=cast(InputScale, str(_read(path, layout.INPUT_SCALE, ours[layout.INPUT_SCALE], ()))),
        genes=genes,
        selected=load(layout.SELECTED),
        perturbations=tuple(names),
        contexts=tuple(Context(line, batch) for line, batch in zip(lines, batches, strict=True)),
        perturbation=load(layout.PERTURBATION),
        context=load(layout.CONTEXT),
        library_size=load(layout.LIBRARY_SIZE),
        split=split,
        split_hash=split_hash(names, split),
        controls=ControlIndex(
            load(layout.CONTROL_INDPTR), load(layout.CONTROL_ROWS), load(layout.CONTROL_FALLBACK)
        ),
        control_mean_CG=load(layout.CONTROL_MEAN),
        embeddings={name: array.form.shape[1] for name, array in embedding.items()},
        matrix=_matrix(path, files, load("indptr", root["X"], "X"), len(genes)),
        _embedding=embedding,
        _origin=origin,
    )


def open_matrix(path: Path) -> Matrix:
    """The expression of the store in ``path`` and nothing else; ``StoreError`` when it cannot be read."""
    stamp, listed = _stamp(path), manifest.read(path)
    needed = tuple(f for f in listed.files if f.path.startswith("X/") or f.path == "zarr.json")
    manifest.check_sizes(path, remote.present(path, listed._replace(files=needed)))
    files = _files(path, listed, stamp)
    group = _group(path, "X")
    return _matrix(
        path, files, _read(path, "X/indptr", group["indptr"], slice(None)), group.attrs["shape"][1]
    )


def read_summary(path: Path) -> str:
    """The JSON that ingest stored about itself; ``StoreError`` when it cannot be read."""
    return str(_read_one(path, f"{layout.GROUP}/{layout.SUMMARY}", ()))


def cell_names(path: Path) -> NDArray[np.object_]:
    """(num_cells,) the cells' names (obs index); ``StoreError`` when they cannot be read."""
    index = str(_group(path, "obs").attrs["_index"])
    return np.asarray(_read_one(path, f"obs/{index}", slice(None)), object)


def numeric_column(path: Path, name: str) -> NDArray[np.float64]:
    """(num_cells,) the column ``name`` of the cells' table (obs).

    Raises ``InputError`` when there is no such column or it does not hold numbers, and ``StoreError`` for
    damaged data.
    """
    obs = _group(path, "obs")
    numeric = sorted(column for column, array in obs.arrays() if array.dtype.kind in "uifb")
    if name not in numeric:
        near = difflib.get_close_matches(name, numeric, 3, 0.5) or numeric
        there = f"obs has {', '.join(near)}" if near else "obs has none"
        raise InputError(f"{path}: no numeric column {name!r} of the cells; {there}")
    return np.asarray(_read_one(path, f"obs/{name}", slice(None)), np.float64)


def verify(path: Path, progress: Callable[[str, int, int], None] = lambda *_: None) -> None:
    """Read every file of the store; ``StoreError`` naming the first one that is not as it was written.

    Of a store that lies elsewhere, what is not here yet is fetched.
    """
    if remote.is_view(Path(path)):
        remote.fetch_shards(Path(path), progress)
    manifest.check_hashes(Path(path), manifest.read(Path(path)), progress)


def _files(path: Path, listed: manifest.Manifest, stamp: tuple[int, int] | None) -> StoreFiles:
    """Where each file lies, as long as it is still the one of the manifest that the store was opened with.

    Shards are opened when they are first read: a store that was replaced since must not be mixed in. One that
    only got more embeddings has the same shards. In one that cells were appended to, the last shard of X is
    another, with the entries of before in their places. ``stamp`` is the manifest's from before it was read.
    """
    opened_with = {record.path: record for record in listed.files}
    size = {record.path: record.size for record in listed.files}
    seen = {stamp: (opened_with, listed.appended_to)}
    fetched = remote.locator(path, listed) if remote.is_view(path) else None
    own_hash = manifest.file_sha256(path / layout.MANIFEST)
    if _stamp(path) != stamp:
        own_hash = ""  # another manifest's

    def locate(name: str) -> Path:
        now = _stamp(path)
        if now not in seen:
            other = manifest.read(path)
            seen[now] = {record.path: record for record in other.files}, other.appended_to
        there, appended_to = seen[now]
        if name in opened_with and opened_with[name] != there.get(name):
            if own_hash not in appended_to or not name.startswith(_GROWING) or name not in there:
                raise StoreError(f"{path / name}: the store was replaced since it was opened; start again")
            size[name] = there[name].size
        return path / name if fetched is None else fetched(name)

    return StoreFiles(locate, size)


def _stamp(path: Path) -> tuple[int, int] | None:
    """What changes when the manifest of the store in ``path`` is replaced."""
    try:
        status = (path / layout.MANIFEST).stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _origins(root: Any) -> dict[str, dict[str, Any]]:
    """How each embedding was made, by name, in the order of the names."""
    if layout.OBSM not in root:
        return {}
    arrays = sorted(root[layout.OBSM].arrays())
    return {name: dict(array.attrs.get(layout.ORIGIN, {})) for name, array in arrays}


def _matrix(path: Path, files: StoreFiles, indptr: NDArray[np.int64], num_genes: int) -> Matrix:
    """The expression matrix, after checking that its arrays are of one length."""
    gene, value = open_array(layout.GENE, files), open_array(layout.VALUE, files)
    ends = {int(indptr[-1]), *gene.form.shape, *value.form.shape}
    if indptr[0] or (np.diff(indptr) < 0).any() or len(ends) > 1 or gene.form.chunk != value.form.chunk:
        raise StoreError(f"{path}/X: its arrays do not belong together; ingest the screen again")
    return Matrix(indptr, gene, value, num_genes)


def _group(path: Path, name: str) -> Any:
    try:
        return zarr.open_group(str(path), mode="r")[name]
    except Exception as error:  # noqa: BLE001  zarr raises many kinds for a damaged hierarchy
        raise StoreError(
            f"{path}: its Zarr metadata cannot be read ({error}); ingest the screen again"
        ) from None


def _read_one(path: Path, name: str, where: Any) -> Any:
    """An array that no open store keeps; Zarr alone would read its missing files as fill values."""
    listed = manifest.read(path)
    needed = tuple(f for f in listed.files if f.path == "zarr.json" or f.path.startswith(f"{name}/"))
    manifest.check_sizes(path, listed._replace(files=needed))
    return _read(path, name, _group(path, name), where)


def _read(path: Path, name: str, array: Any, where: Any) -> Any:
    try:
        return array[where]
    except Exception:  # noqa: BLE001  every codec raises its own kind; all of them mean damage here
        raise StoreError(_damaged(path, name)) from None


def _damaged(path: Path, name: str) -> str:
    return (
        f"{path / name}: chunks are damaged or missing; "
        f"`txpert store verify {path}` names the file; restore it or ingest again"
    )
