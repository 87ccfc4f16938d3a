"""The tables and small arrays of a cell store, for what rewrites or exports one.

Enters: a store's folder and the name of an element in it. Leaves: the element as anndata reads it. Invariant:
every file of the element is there with the size that the manifest gives, so that nothing missing is read as
fill values.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import zarr
from anndata.io import read_elem

from txpert_dist.errors import StoreError
from txpert_dist.store import manifest

_MAPPINGS = ("dataframe", "dict")


class Element(NamedTuple):
    """A part of a store that is read in one piece, or a group of such parts."""

    name: str
    """Within the store, e.g. ``obs/batch``."""
    attributes: Mapping[str, Any]
    """Of a group; empty for anything else."""
    value: Any
    """None for a group."""


def read_element(path: Path, name: str) -> Any:
    """The element ``name`` of the store in ``path``; ``StoreError`` for a damaged or missing one."""
    return _loaded(path, name, _opened(path, name))


def read_table(path: Path, name: str) -> pd.DataFrame:
    """The table ``name`` (obs, var) of the store in ``path``; ``StoreError`` for a damaged one."""
    table: pd.DataFrame = read_element(path, name)
    return table


def elements(path: Path, name: str) -> Iterator[Element]:
    """The element ``name`` piece by piece: a table by columns, a group by members, groups first."""
    yield from _pieces(path, name, _opened(path, name))


def _pieces(path: Path, name: str, node: Any) -> Iterator[Element]:
    if node.attrs.get("encoding-type") not in _MAPPINGS:
        yield Element(name, {}, _loaded(path, name, node))
        return
    yield Element(name, dict(node.attrs), None)
    for key in sorted(node):
        yield from _pieces(path, f"{name}/{key}", node[key])


def _opened(path: Path, name: str) -> Any:
    listed = manifest.read(path)
    needed = tuple(f for f in listed.files if f.path == "zarr.json" or f.path.startswith(f"{name}/"))
    manifest.check_sizes(path, listed._replace(files=needed))
    try:
        return zarr.open_group(str(path), mode="r")[name]
    except Exception as error:  # noqa: BLE001  zarr raises many kinds for a damaged hierarchy
        raise StoreError(
            f"{path}: its Zarr metadata cannot be read ({error}); ingest the screen again"
        ) from None


def _loaded(path: Path, name: str, node: Any) -> Any:
    try:
        return read_elem(node)
    except Exception:  # noqa: BLE001  every codec raises its own kind; all of them mean damage here
        raise StoreError(
            f"{path / name}: chunks are damaged or missing; `txpert store verify {path}` names the file; "
            "restore it or ingest again"
        ) from None
