"""Every cell exactly once an epoch, as itself, beside its own control and perturbation: self-describing data.

The mutation test at the end breaks a copy of the software, one line at a time, in the ways that loaders break
(two permutations applied to one thing and one to another): each must show.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import txpert_dist
from tests.unit.loader.exactness import Shape, interrupted_epoch, write
from txpert_dist.store.cells import CellStore

ROOT = Path(txpert_dist.__file__).parents[1]
WORLDS = st.sampled_from([1, 2, 3, 4, 6])


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[Shape, CellStore]:
    """Stores by shape, written once."""
    shapes = [
        Shape(12, chunk=1, chunks_per_shard=1, order_seed=5),
        Shape(13, num_genes=2, chunk=3, chunks_per_shard=2),
        Shape(60, chunk=1000, chunks_per_shard=1, order_seed=1),
        Shape(251, chunk=7, chunks_per_shard=3, order_seed=2),
        Shape(300, num_genes=40, chunk=64, chunks_per_shard=2, order_seed=3),
        Shape(701, chunk=256, chunks_per_shard=64, order_seed=4),
    ]
    folder = tmp_path_factory.mktemp("described")
    return {shape: write(folder / str(number), shape) for number, shape in enumerate(shapes)}


@given(
    number=st.integers(0, 5),
    worlds=st.tuples(WORLDS, WORLDS),
    stop=st.integers(0, 60),
    epoch=st.integers(0, 5),
    chunk=st.integers(1, 300),
    window=st.integers(1, 8),
    threads=st.integers(1, 3),
    which=st.sampled_from(["selected", "all"]),
    matching=st.sampled_from(["matched", "random", "matched_mean", "mean"]),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_cell_is_served_once_and_as_itself_over_any_interruption(
    stores: dict[Shape, CellStore],
    number: int,
    worlds: tuple[int, int],
    stop: int,
    epoch: int,
    chunk: int,
    window: int,
    threads: int,
    which: str,
    matching: str,
) -> None:
    store = list(stores.values())[number]
    options = {"chunk": chunk, "window": window, "reading_threads": threads}
    wrong = interrupted_epoch(
        store,
        worlds=worlds,
        stop=stop,
        epoch=epoch,
        minibatch_size=12,
        which=which,
        matching=matching,
        **options,
    )
    assert wrong == []


MUTANTS = {
    "values not moved with their genes": (
        "store/kernels.py",
        "_copy(from_value[there : there + count], value[here:])",
        "_copy(from_value[here : here + count], value[here:])",
    ),
    "window order lost": (
        "loader/rows.py",
        "return Window(rows, which, fetched, room)",
        "return Window(rows, np.arange(len(rows)), fetched, room)",
    ),
    "perturbations in another order": (
        "loader/loader.py",
        "self.nodes_RM[self.store.perturbation[rows]]",
        "self.nodes_RM[self.store.perturbation[np.sort(rows)]]",
    ),
    "controls of other contexts": (
        "loader/loader.py",
        "pair(self.table, self.store.context[rows],",
        "pair(self.table, self.store.context[rows[::-1]],",
    ),
    "library sizes in another order": (
        "loader/rows.py",
        "store.library_size[window.rows[part]]",
        "store.library_size[np.sort(window.rows[part])]",
    ),
    "cells lose what is in the chunk before": (
        "store/kernels.py",
        "if start_R[row] >= first_entry:",
        "if start_R[row] >= 0:",
    ),
    "genes numbered one off": (
        "store/kernels.py",
        "into_gene[kept] = position",
        "into_gene[kept] = max(position - 1, 0)",
    ),
    "ranks serve the same cells": (
        "loader/plan.py",
        "steps[start_step:, rank * share : (rank + 1) * share]",
        "steps[start_step:, :share]",
    ),
    "resuming begins anew": ("loader/loader.py", "remaining(plan, start_step,", "remaining(plan, 0,"),
    "a chunk is taken for another": (
        "store/shards.py",
        "payload = shard.read(chunk % self.form.chunks_per_shard)",
        "payload = shard.read(0)",
    ),
    "members of another group": (
        "loader/pairing.py",
        "table.members[table.indptr[group] + drawn]",
        "table.members[(table.indptr[group] + drawn + 1) % len(table.members)]",
    ),
}


DRIVER = """
import os, sys
import anndata, google_crc32c, numba, numcodecs, pandas, pydantic, scipy.sparse, zarr  # once for all copies
for folder in sys.argv[1:]:
    if not os.fork():
        sys.path.insert(0, folder)
        sys.stdout = open(os.path.join(folder, "verdict"), "w")
        import txpert_dist
        assert txpert_dist.__file__.startswith(folder)
        from tests.unit.loader.exactness import main
        main()
        sys.stdout.close()
        os._exit(0)
    os.wait()
"""
AS_IT_IS = "as it is"


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What the exactness check says of each copy of the software, one of which is as it is."""
    folders = {}
    for mutant, (name, before, after) in {AS_IT_IS: ("", "", ""), **MUTANTS}.items():
        folders[mutant] = folder = tmp_path_factory.mktemp("copy")
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "txpert_dist", folder / "txpert_dist", ignore=ignored)
        if name:
            path = folder / "txpert_dist" / name
            source = path.read_text(encoding="utf-8")
            assert source.count(before) == 1, f"{name} has changed: state this fault anew: {mutant}"
            path.write_text(source.replace(before, after), encoding="utf-8")
    # kernels as plain Python: nothing to compile for copies that are used once
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NUMBA_DISABLE_JIT": "1"}
    subprocess.run(
        [sys.executable, "-P", "-c", DRIVER, *map(str, folders.values())],
        env=environment,
        timeout=500,
        check=True,
    )
    return {mutant: (folder / "verdict").read_text().splitlines() for mutant, folder in folders.items()}


def test_the_software_as_it_is_passes_the_check(verdicts: dict[str, list[str]]) -> None:
    assert verdicts[AS_IT_IS] == ["EXACT"]


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_fault_of_order_shows(verdicts: dict[str, list[str]], mutant: str) -> None:
    assert verdicts[mutant][:1] == ["FAULTS"], f"{mutant}: not seen, or the check broke down"
    assert len(verdicts[mutant]) > 1
