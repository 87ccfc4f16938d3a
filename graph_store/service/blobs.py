"""Where snapshots and embeddings lie: a folder, or any fsspec URL seen through a folder of local copies.

Enters: a folder or URL. Leaves: ids, records, and local folders that can be memory-mapped. Invariants: in
both places a snapshot is there when its ``snapshot.json`` is, which is written last; what comes from a URL
is verified before it gets its name in the folder.
"""

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from graph_store import mirror, record
from graph_store.embeddings import store
from graph_store.embeddings.embedding import VERSION, Embedding
from graph_store.embeddings.store import EmbeddingInfo
from graph_store.graph import GraphError
from graph_store.record import FILE_NAME, ID, Record, read_record
from graph_store.service.refusal import busy

_LOG = logging.getLogger(__name__)
_BLOCK_BYTES = 1 << 22


class Distant(NamedTuple):
    """A place that files cannot be mapped from."""

    filesystem: Any
    """An fsspec file system."""
    root: str


class Blobs(NamedTuple):
    """Where they lie, and where they can be mapped from."""

    folder: Path
    distant: Distant | None


class Described(NamedTuple):
    """A snapshot without its arrays."""

    record: Record
    created: float
    """Seconds since 1970."""


def open_blobs(place: str, cache: Path | None) -> Blobs:
    """The blobs in the folder or at the URL ``place``; ``GraphError`` when they cannot be reached."""
    if "://" not in place:
        return Blobs(_made(Path(place)), None)
    if cache is None:
        raise GraphError(f"{place}: is a URL; name a folder for local copies with --cache")
    return Blobs(_made(cache), _open_distant(place))


def _made(folder: Path) -> Path:
    folder = folder.absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise GraphError(f"{folder}: cannot be used as a folder of snapshots ({error.strerror})") from None
    return folder


def _open_distant(url: str) -> Distant:
    try:
        from fsspec.core import url_to_fs

        # Listings must not be remembered: another service may write there too.
        filesystem, root = url_to_fs(url, use_listings_cache=False)
        there = _is_there(filesystem, root)
    except Exception as error:  # noqa: BLE001 - every backend fails in its own way, and all are the user's
        raise GraphError(f"{url}: cannot be used for snapshots ({error or type(error).__name__})") from None
    if not there:
        raise GraphError(f"{url}: there is no such bucket or drive; make it first, or repair the URL")
    return Distant(filesystem, root.rstrip("/"))


def _is_there(filesystem: Any, root: str) -> bool:
    """Whether something above ``root`` is there: folders are made when they are needed, buckets are not."""
    while root.strip("/"):
        try:
            filesystem.ls(root, detail=False)
        except FileNotFoundError:
            root = root.rstrip("/").rpartition("/")[0]
        else:
            return True
    return root == "/"


def snapshot_ids(blobs: Blobs) -> tuple[str, ...]:
    """The ids of the snapshots there are, sorted."""
    if blobs.distant is None:
        return tuple(
            name for name in record.snapshot_ids(blobs.folder) if (blobs.folder / name / FILE_NAME).exists()
        )
    return tuple(name for name in _folders(blobs.distant, "*", FILE_NAME) if ID.fullmatch(name))


def has_snapshot(blobs: Blobs, identity: str) -> bool:
    """Whether the snapshot is there; ``identity`` was checked to be an id."""
    if blobs.distant is None:
        return (blobs.folder / identity / FILE_NAME).exists()
    return bool(blobs.distant.filesystem.exists(f"{blobs.distant.root}/{identity}/{FILE_NAME}"))


def describe_snapshot(blobs: Blobs, identity: str) -> Described:
    """What ``snapshot.json`` says; ``GraphError`` when it is damaged."""
    if blobs.distant is None:
        path = blobs.folder / identity / FILE_NAME
        return Described(read_record(path.parent), path.stat().st_mtime)
    with TemporaryDirectory(prefix=".describing-", dir=blobs.folder) as folder:
        read = mirror.copied_record(_origin(blobs.distant), identity, Path(folder))
    return Described(read, _created(blobs.distant, f"{identity}/{FILE_NAME}"))


def snapshot_folder(blobs: Blobs, identity: str) -> Path:
    """The local folder of the snapshot, copied there first when it lies elsewhere."""
    if blobs.distant is None:
        return blobs.folder / identity
    return mirror.copy_snapshot(_origin(blobs.distant), identity, blobs.folder)


def publish_snapshot(blobs: Blobs, identity: str) -> None:
    """Bring a snapshot that was built in the folder to where the blobs lie, unless it is there."""
    if blobs.distant is None or identity in snapshot_ids(blobs):
        return
    folder = blobs.folder / identity
    _upload(blobs.distant, folder, identity, [*sorted(read_record(folder).files), FILE_NAME])


def embedding_versions(blobs: Blobs) -> tuple[str, ...]:
    """The versions of embeddings there are, sorted."""
    if blobs.distant is None:
        return store.embedding_versions(blobs.folder)
    found = _folders(blobs.distant, f"{store.FOLDER}/*", store.RECORD)
    return tuple(name for name in found if VERSION.fullmatch(name))


def describe_embedding(blobs: Blobs, version: str) -> EmbeddingInfo:
    """What the store says of the version."""
    _copy_embedding(blobs, version)
    return store.describe_embedding(blobs.folder, version)


def get_embedding(blobs: Blobs, version: str) -> Embedding:
    """The version's vectors, verified."""
    _copy_embedding(blobs, version)
    return store.get_embedding(blobs.folder, version)


def put_embedding(blobs: Blobs, embedding: Embedding) -> str:
    """Keep the embedding; ``GraphError`` when its version has another content."""
    if embedding.version in embedding_versions(blobs):
        _copy_embedding(blobs, embedding.version)
    sha256 = store.put_embedding(blobs.folder, embedding)
    if blobs.distant is not None:
        name = f"{store.FOLDER}/{embedding.version}"
        _upload(blobs.distant, blobs.folder / name, name, [store.DATA, store.RECORD])
    return sha256


def _copy_embedding(blobs: Blobs, version: str) -> None:
    """Copy a distant embedding into the folder; reading it verifies it."""
    final = blobs.folder / store.FOLDER / version
    if blobs.distant is None or (final.exists() and _is_whole(blobs.folder, version)):
        return
    final.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".fetching-", dir=final.parent) as building:
        copy = Path(building) / store.FOLDER / version
        copy.mkdir(parents=True)
        for name in (store.DATA, store.RECORD):
            with (copy / name).open("wb") as stream:
                for block in _blocks(blobs.distant, f"{store.FOLDER}/{version}/{name}", 0):
                    stream.write(block)
        store.get_embedding(Path(building), version)
        shutil.rmtree(final, ignore_errors=True)
        copy.rename(final)


def _is_whole(folder: Path, version: str) -> bool:
    try:
        store.get_embedding(folder, version)
    except GraphError:
        return False
    return True


def _origin(distant: Distant) -> mirror.Origin:
    return mirror.Origin(
        name="the blob store",
        record=lambda identity: b"".join(_blocks(distant, f"{identity}/{FILE_NAME}", 0)),
        contents=mirror.one_by_one(
            lambda identity, name, offset: _blocks(distant, f"{identity}/{name}", offset)
        ),
    )


def _blocks(distant: Distant, name: str, offset: int) -> Iterator[bytes]:
    try:
        with distant.filesystem.open(f"{distant.root}/{name}", "rb") as stream:
            stream.seek(offset)
            while block := stream.read(_BLOCK_BYTES):
                yield block
    except FileNotFoundError:
        raise GraphError(f"{name}: is missing in the blob store; build or put it again") from None
    except OSError as error:
        _LOG.warning("%s cannot be read: %s", name, error)
        raise busy("the service's blob store does not answer") from None


def _upload(distant: Distant, folder: Path, name: str, files: list[str]) -> None:
    """Bring files there in this order: the last one says that the others are whole."""
    distant.filesystem.makedirs(f"{distant.root}/{name}", exist_ok=True)
    for file in files:
        distant.filesystem.put_file(str(folder / file), f"{distant.root}/{name}/{file}")


def _folders(distant: Distant, pattern: str, file: str) -> list[str]:
    """Names of the folders that ``pattern`` matches and that hold ``file``."""
    found = distant.filesystem.glob(f"{distant.root}/{pattern}/{file}")
    return sorted(str(path).split("/")[-2] for path in found)


def _created(distant: Distant, name: str) -> float:
    try:
        return float(distant.filesystem.modified(f"{distant.root}/{name}").timestamp())
    except NotImplementedError:  # Not every file system knows.
        return 0.0
