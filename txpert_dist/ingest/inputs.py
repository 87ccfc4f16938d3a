"""The inputs of an ingest, opened by what each is.

Enters: the configuration. Leaves: a ``Source`` for every input. Invariant: every table of labels belongs to a
10x folder, and none is left over.
"""

from pathlib import Path

from txpert_dist.errors import InputError
from txpert_dist.ingest.config import IngestConfig
from txpert_dist.ingest.containers import kind_of
from txpert_dist.ingest.source import Source, open_source
from txpert_dist.ingest.tenx import open_folder


def open_inputs(config: IngestConfig) -> tuple[Source, ...]:
    """Open every input; raises ``InputError`` for what cannot be used."""
    folders = [path for path in config.sources if kind_of(path) == "10x"]
    tables = _tables(folders, config.labels)
    return tuple(
        open_folder(path, config.layer, tables.get(path))
        if path in folders
        else open_source(path, config.layer)
        for path in config.sources
    )


def _tables(folders: list[Path], labels: tuple[Path, ...]) -> dict[Path, Path]:
    if len(labels) == 1 and folders:
        return dict.fromkeys(folders, labels[0])
    if len(labels) not in (0, len(folders)):
        raise InputError(
            f"{labels[0]}: {len(labels)} tables of labels for {len(folders)} 10x folders; give one for each "
            "folder, in their order, or one for all"
        )
    return dict(zip(folders, labels, strict=False))
