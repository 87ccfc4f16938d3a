"""Graphs made from a screen must not have seen what a run holds out.

Enters: what a snapshot's record says of its graphs, the graphs that a run uses, its store and held-out cell
lines. Leaves: nothing, or a ``ConfigError``. Invariant: a graph that combines others answers for them.

Two stores hold the same screen when they are the same (hash of the manifest) or when some file that both were
made from has the same content, whatever was filtered, selected or split differently since. A graph of the
same screen under another split (hash of which perturbation is in which) has seen responses that this run
scores itself on. A file that was written anew in between is not recognised. A screen of other cells may share
perturbations with this one: what it says of them is knowledge from elsewhere, as any other graph's. But a
held-out cell line is one of which the model shall have seen no perturbed cell, so a graph that read it is
refused whichever screen it is from.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from txpert_dist.errors import ConfigError
from txpert_dist.loader.pseudobulk import source_files
from txpert_dist.store.cells import CellStore

Origins = Mapping[str, Mapping[str, str]]
"""Name of a graph -> the ``origin`` of the pseudobulk it was made from."""


def check_screen_graphs(
    origins: Origins,
    recipe: Mapping[str, Any],
    used: Sequence[str],
    store: CellStore,
    held_out_cell_lines: Sequence[str],
) -> None:
    """Raise ``ConfigError`` when a graph in ``used`` saw test responses of ``store`` or a held-out line.

    ``origins`` and ``recipe`` are ``screens`` and ``recipe`` of the snapshot's record.
    """
    parts = _parts(recipe)
    for name in used:
        for part in [name, *parts.get(name, ())]:
            if part in origins:
                via = f"{name}, which combines {part}," if part != name else name
                _check(via, origins[part], store, held_out_cell_lines)


def _check(
    graph: str, origin: Mapping[str, str], store: CellStore, held_out_cell_lines: Sequence[str]
) -> None:
    if origin["split"] != store.split_hash and _same_screen(origin, store):
        raise ConfigError(
            f"graph.use: graph {graph} was made from this screen under another split and has seen responses "
            f"that {store.path} holds out; build it again from this store, or use other graphs"
        )
    read = [line for line in held_out_cell_lines if line in json.loads(origin["cell_lines"])]
    if read:
        raise ConfigError(
            f"data.held_out_cell_lines: graph {graph} was made from perturbed cells of {', '.join(read)}; "
            f"build it again with held_out_cell_lines: [{', '.join(held_out_cell_lines)}] in its source, or "
            "use other graphs"
        )


def _same_screen(origin: Mapping[str, str], store: CellStore) -> bool:
    if origin["store"] == store.manifest_hash:
        return True
    return not source_files(store.path).isdisjoint(json.loads(origin["sources"]))


def _parts(recipe: Mapping[str, Any]) -> dict[str, list[str]]:
    """All graphs that each combined graph is made of, those of its parts included."""
    parts: dict[str, list[str]] = {}
    # A combined graph comes after what it combines.
    for graph in recipe.get("graphs", ()):
        direct = list(graph["source"].get("of", ()))
        parts[graph["name"]] = [deep for name in direct for deep in [name, *parts.get(name, ())]]
    return parts
