"""Where a run reads its knowledge graphs: the folder it names, or its own copy of what a service holds.

Enters: a configuration; on the driver, the token of a service. Leaves: a folder of snapshots. Invariants: a
service is asked by the driver alone and for one snapshot, whose id is the run's from then on; workers, and
evaluation and registration later, read the copy in the run's folder and need neither service nor token.
"""

from pathlib import Path

from graph_store.client import Access, is_remote, snapshot_folder
from graph_store.graph import GraphError
from txpert_dist.config import Config, Graph
from txpert_dist.errors import ConfigError

SNAPSHOTS = "snapshots"
"""Folder in a run's folder that holds what was fetched for it."""


def graphs_folder(graph: Graph, run_folder: Path) -> str:
    """The folder of snapshots that a run in ``run_folder`` reads; ``GraphError`` when its copy is gone."""
    if not is_remote(graph.location):
        return graph.location
    folder = run_folder / SNAPSHOTS
    if not folder.is_dir():
        raise GraphError(
            f"{folder}: is missing, where the run keeps its graphs from {graph.location}; bring it back with "
            f"`txpert graph fetch`, or keep checkpoints in their run's folder"
        )
    return str(folder)


def with_graphs(config: Config, *, token: str | None = None, pinned: str | None = None) -> Config:
    """``config`` ready for workers: the snapshot of a service is in the run's folder, and its id is named.

    When the configuration names no snapshot, it is ``pinned``, the one that the run was begun with, and for a
    new run the service's only one. A folder is left as it is. Raises ``GraphError`` when the service or the
    snapshot cannot be reached, ``ConfigError`` for a certificate that cannot be read.
    """
    graph = config.graph
    if not is_remote(graph.location):
        return config
    access = Access(token=token, tls_roots=_tls_roots(graph), cache=config.run_folder / SNAPSHOTS)
    folder = snapshot_folder(graph.location, graph.snapshot or pinned, access)
    return config.model_copy(update={"graph": graph.model_copy(update={"snapshot": folder.name})})


def _tls_roots(graph: Graph) -> bytes | None:
    if graph.tls_roots is None:
        return None
    try:
        return graph.tls_roots.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"graph.tls_roots={graph.tls_roots}: cannot be read ({error.strerror}); give the PEM file of who "
            "signed the service's certificate"
        ) from None
