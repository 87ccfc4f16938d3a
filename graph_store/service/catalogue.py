"""What there is, in SQLite: so that listing thousands of snapshots need not read thousands of records.

Enters: the names there are, and how to read one that is not catalogued. Leaves: one entry a name. Invariant:
the catalogue holds nothing that the blobs do not: a damaged or deleted one is made anew.
"""

import json
import logging
import sqlite3
import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

from graph_store.graph import GraphError
from graph_store.protocol import Listed, ListedEmbedding

FILE_NAME = "catalogue.sqlite"

_LOG = logging.getLogger(__name__)
_BUSY_S = 30.0
_NOT_DAMAGED = {"SQLITE_BUSY", "SQLITE_CANTOPEN", "SQLITE_FULL", "SQLITE_READONLY"}
Entry = TypeVar("Entry", Listed, ListedEmbedding)


class Catalogue:
    """The catalogue of one folder; threads and processes may share it."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE_NAME
        self._lock = threading.Lock()

    def snapshots(self, names: Sequence[str], read: Callable[[str], Listed]) -> list[Listed]:
        """The entries of ``names``; ``read`` is asked for those that are new. Damaged ones are left out."""
        return self._entries("snapshots", Listed, names, read)

    def embeddings(
        self, names: Sequence[str], read: Callable[[str], ListedEmbedding]
    ) -> list[ListedEmbedding]:
        """As ``snapshots``, for versions of embeddings."""
        return self._entries("embeddings", ListedEmbedding, names, read)

    def _entries(
        self, table: str, kind: type[Entry], names: Sequence[str], read: Callable[[str], Entry]
    ) -> list[Entry]:
        with self._lock:
            try:
                return _synchronised(self._path, table, kind, names, read)
            except (sqlite3.DatabaseError, ValueError) as error:
                if getattr(error, "sqlite_errorname", "") in _NOT_DAMAGED:
                    raise GraphError(
                        f"{self._path}: cannot be written ({error}); check space, rights"
                    ) from None
                _LOG.warning("the catalogue is damaged (%s) and made anew", error)
                for suffix in ("", "-journal"):
                    Path(f"{self._path}{suffix}").unlink(missing_ok=True)
                return _synchronised(self._path, table, kind, names, read)


def _synchronised(
    path: Path, table: str, kind: type[Entry], names: Sequence[str], read: Callable[[str], Entry]
) -> list[Entry]:
    fields = list(kind.model_fields)
    with closing(sqlite3.connect(path, timeout=_BUSY_S)) as connection, connection:
        # Table and columns are names of our own classes.
        connection.execute(
            f"CREATE TABLE IF NOT EXISTS {table} ({fields[0]} PRIMARY KEY, {', '.join(fields[1:])})"
        )
        there = {}
        for row in connection.execute(f"SELECT {', '.join(fields)} FROM {table}"):
            there[row[0]] = _entry(kind, dict(zip(fields, row, strict=True)))
        gone = [(name,) for name in there.keys() - set(names)]
        connection.executemany(f"DELETE FROM {table} WHERE {fields[0]} = ?", gone)
        fresh = {name: entry for name in names if name not in there for entry in _read(name, read)}
        places = ", ".join("?" * len(fields))
        connection.executemany(
            f"INSERT OR REPLACE INTO {table} VALUES ({places})",
            [[_plain(value) for value in entry.model_dump().values()] for entry in fresh.values()],
        )
    known = there | fresh
    return [known[name] for name in names if name in known]


def _read(name: str, read: Callable[[str], Entry]) -> Sequence[Entry]:
    try:
        return [read(name)]
    except (GraphError, OSError) as error:
        _LOG.warning("%s is left out of the list: %s", name, error)
        return []


def _entry(kind: type[Entry], row: dict[str, Any]) -> Entry:
    texts = {name for name, field in kind.model_fields.items() if field.annotation not in (str, int, float)}
    return kind.model_validate(
        {name: json.loads(value) if name in texts else value for name, value in row.items()}
    )


def _plain(value: object) -> object:
    return json.dumps(value) if isinstance(value, list | dict) else value
