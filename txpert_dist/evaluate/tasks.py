"""Which task a scored perturbation stands for: what of it was seen in training.

Enters: a store, perhaps held-out cell lines. Leaves: one name for each
(perturbation, cell line). Invariant: every unit has exactly one name, from the cells that training may see.
"""

import json
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from txpert_dist.loader.conditions import cell_lines, cells_of_lines, perturbed_rows
from txpert_dist.store.cells import CellStore, read_summary

TASKS = {
    "seen": "the perturbation has training cells",
    "unseen_single": "one gene, of no training perturbation",
    "seen_single": "one gene, perturbed in training together with others only",
    "combo_seen0": "several genes, none of them of a training perturbation",
    "combo_seen1": "several genes, one of them of training perturbations",
    "combo_seen2": "several genes, two of them of training perturbations",
    "cross_line_seen": "in a held-out cell line; the perturbation has training cells in another",
    "cross_line_unseen": "in a held-out cell line; the perturbation has no training cells",
}
"""Name -> what it holds. Combinations of more genes are ``combo_seenK``."""


def task_groups(
    store: CellStore,
    perturbation_P: NDArray[np.integer],
    cell_line_P: NDArray[np.integer],
    *,
    held_out_cell_lines: Sequence[str] = (),
) -> NDArray[np.str_]:
    """(P,) the task of each (perturbation code, cell line code).

    In cell lines that are not held out, the sub-groups that the store's split came with (GEARS', or those of
    a table) win over what the cells say. Raises ``InputError`` for a cell line that the store does not have.
    """
    held_out = cells_of_lines(store, held_out_cell_lines)
    codes = np.unique(store.perturbation[perturbed_rows(store, "train", among=~held_out)])
    trained = {store.perturbations[code] for code in codes}
    genes = {gene for name in trained for gene in name.split("+")}
    subgroups = split_subgroups(store)
    task = {name: subgroups.get(name) or _task(name, trained, genes) for name in store.perturbations[1:]}
    lines = cell_lines(store).names
    crossed = {lines.index(name) for name in held_out_cell_lines}
    names = [store.perturbations[code] for code in perturbation_P]
    return np.array(
        [
            f"cross_line_{'seen' if name in trained else 'unseen'}" if line in crossed else task[name]
            for name, line in zip(names, cell_line_P.tolist(), strict=True)
        ],
        dtype=np.str_,
    )


def split_subgroups(store: CellStore) -> dict[str, str]:
    """The sub-groups that the store's split came with, by perturbation; none when it has none."""
    subgroups: dict[str, str] = json.loads(read_summary(store.path)).get("subgroups", {})
    return subgroups


def _task(name: str, trained: set[str], genes: set[str]) -> str:
    if name in trained:
        return "seen"
    parts = name.split("+")
    seen = sum(part in genes for part in parts)
    if len(parts) == 1:
        return "seen_single" if seen else "unseen_single"
    return f"combo_seen{seen}"
