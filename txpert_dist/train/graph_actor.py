"""The graph service inside a Ray cluster: one named actor for all runs, and every node's copy of a snapshot.

Enters: a folder of snapshots that the actor's node can read, and an id. Leaves: on the caller's node, a
folder that holds the snapshot. Invariants: a snapshot is brought to a node once, however many workers and
runs want it, and verified there; the token is drawn by the actor, lets nobody write and travels through Ray
alone. The actor holds no state that its death loses: whoever finds none starts one.
"""

import os
import secrets
import stat
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from graph_store.client import Access, snapshot_folder
from graph_store.graph import GraphError
from txpert_dist.config import Config
from txpert_dist.train.graphs import graphs_folder

NAME, NAMESPACE = "txpert-graph-store", "txpert"
_TRIES = 3
_PATIENCE_S = 10.0
"""Of one try: an actor that was restarted listens elsewhere."""


class Offer(NamedTuple):
    """Where the actor serves, and what lets one in to read."""

    location: str
    token: str


class GraphStore:
    """What the actor does: keep snapshots in its node's folder, and serve them on ``host``."""

    def __init__(self, cache: Path | None, host: str | None = None) -> None:
        import ray.util

        from graph_store.service.server import GraphService
        from graph_store.service.settings import Settings

        self._folder = node_folder(cache)
        self._token = secrets.token_hex(32)
        self._service = GraphService(
            Settings(
                blobs=str(self._folder),
                host=host or ray.util.get_node_ip_address(),
                port=0,
                token=secrets.token_hex(32),  # nobody is told the one that lets write
                read_token=self._token,
            )
        )

    def offer(self, graphs: str, snapshot_id: str) -> Offer:
        """Take the snapshot from the folder ``graphs``, unless it is here, and say where it is served."""
        from graph_store.mirror import copy_snapshot, folder_origin

        folder = snapshot_folder(graphs, snapshot_id)
        copy_snapshot(folder_origin(folder.parent), folder.name, self._folder)
        return Offer(self._service.location, self._token)


def offered(config: Config) -> Offer:
    """The actor's offer of the run's snapshot; the actor is started where there is none.

    Raises ``GraphError`` when it cannot have the snapshot, or does not answer.
    """
    return _offered(_slow_folder(config), config.cluster.graph_cache)


def node_snapshot(config: Config) -> Path:
    """This node's copy of the run's snapshot, fetched from the actor by who comes first."""
    slow, cache = _slow_folder(config), node_folder(config.cluster.graph_cache)
    for remaining in reversed(range(_TRIES)):
        offer = _offered(slow, config.cluster.graph_cache)
        access = Access(token=offer.token, cache=cache, patience_s=_PATIENCE_S)
        try:
            return snapshot_folder(offer.location, slow.name, access)
        except GraphError:
            if not remaining:
                raise
    raise AssertionError("unreachable: the last try returns or raises")


def node_folder(cache: Path | None) -> Path:
    """The node's own folder for snapshots, made if need be; ``GraphError`` when others could write it."""
    folder = cache or Path(tempfile.gettempdir()) / f"txpert-graphs-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # in the temporary folder of all users, a link may be a trap
        found = folder.stat(follow_symlinks=cache is not None)
    except OSError as error:
        raise GraphError(
            f"{folder}: cannot be used for graphs ({error.strerror}); give another cluster.graph_cache="
        ) from None
    mine = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
    if not mine or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise GraphError(
            f"{folder}: other users could change the graphs in it; let only its owner, who trains, write "
            "there (chmod 700), or give another cluster.graph_cache="
        )
    return folder


def _slow_folder(config: Config) -> Path:
    """The run's snapshot where all nodes can read it; none of its files is read."""
    return snapshot_folder(graphs_folder(config.graph, config.run_folder), config.graph.snapshot)


def _offered(slow: Path, cache: Path | None) -> Offer:
    import ray
    import ray.exceptions

    options: dict[str, Any] = {
        "name": NAME,
        "namespace": NAMESPACE,
        "get_if_exists": True,
        "lifetime": "detached",
        "num_cpus": 0,
        "max_restarts": -1,
        "max_task_retries": _TRIES,
    }
    actor = ray.remote(GraphStore).options(**options).remote(cache)
    try:
        offer: Offer = ray.get(actor.offer.remote(str(slow.parent), slow.name))
    except ray.exceptions.RayTaskError as error:
        if not isinstance(error.cause, GraphError):
            raise
        raise GraphError(f"graph service of the Ray cluster: {error.cause}") from error
    except ray.exceptions.RayActorError as error:
        raise GraphError(
            f"the graph service of the Ray cluster (actor {NAME}) does not start ({_last_line(error)}); "
            "train with cluster.graph_service=false"
        ) from error
    return offer


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
