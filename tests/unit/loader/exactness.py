"""A store whose values say which cell and gene they are of, and what is wrong with what is served of it.

``faults`` knows nothing of how loading works: it reads the cell off every value, and everything else about
that cell off a formula. Run as a program it prints the faults of a few epochs, for the mutation test.
"""

import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse
from numpy.typing import NDArray

from txpert_dist.config import ControlMatching, Data
from txpert_dist.loader.loader import CellLoader
from txpert_dist.loader.pairing import ControlTable, control_table
from txpert_dist.minibatch import Minibatch, SparseRows
from txpert_dist.store.cells import CellStore, open_store
from txpert_dist.store.controls import Context, build_control_index
from txpert_dist.store.write import Labels, ShardSizes, StoreWriter

CONTEXTS = (Context("K562", "1"), Context("K562", "2"), Context("K562", "3"), Context("RPE1", "1"))
ORPHAN = 2
"""The context without a control of its own."""
NUM_PERTURBATIONS = 7


class Shape(NamedTuple):
    """Sizes of a store."""

    num_cells: int
    num_genes: int = 11
    chunk: int = 32
    chunks_per_shard: int = 4
    order_seed: int = 0
    """Decides the order of the rows."""


def perturbation_of(cell: NDArray[np.int64]) -> NDArray[np.int64]:
    """Every third cell is a control, but none of the orphaned context."""
    code = 1 + cell * 5 % 17 % (NUM_PERTURBATIONS - 1)
    return np.where((cell % 3 == 0) & (context_of(cell) != ORPHAN), 0, code)


def context_of(cell: NDArray[np.int64]) -> NDArray[np.int64]:
    return cell // 3 % len(CONTEXTS)


def library_size_of(cell: NDArray[np.int64]) -> NDArray[np.float32]:
    return (1000 + cell).astype(np.float32)


def has_entry(cell: NDArray[np.int64], gene: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Gene 0 is in every cell; the others here and there, in some cells none of them."""
    return (gene == 0) | ((cell * 31 + gene * 17 + cell * gene) % 5 < cell % 4)


def write(folder: Path, shape: Shape, **columns: NDArray[np.float64]) -> CellStore:
    """A store with value = 1 + cell * genes + gene, its rows in an order of their own.

    ``columns`` are further columns of obs, by row.
    """
    cell = np.random.default_rng(shape.order_seed).permutation(shape.num_cells)
    gene = np.arange(shape.num_genes)
    x_BG = np.where(has_entry(cell[:, None], gene), 1 + cell[:, None] * shape.num_genes + gene, 0).astype(
        np.uint32
    )
    sparse = scipy.sparse.csr_matrix(x_BG)
    perturbation, context = perturbation_of(cell).astype(np.int32), context_of(cell).astype(np.int32)
    labels = Labels(
        input_scale="counts",
        perturbations=("control", *(f"P{code}" for code in range(1, NUM_PERTURBATIONS))),
        contexts=CONTEXTS,
        perturbation=perturbation,
        context=context,
        library_size=library_size_of(cell),
        split=np.zeros(NUM_PERTURBATIONS, np.uint8),
        selected=np.arange(0, shape.num_genes, 2),
        controls=build_control_index(context, perturbation == 0, CONTEXTS),
        control_mean_CG=np.zeros((len(CONTEXTS), shape.num_genes), np.float32),
        label_rows=(),
        source_row=cell,
        row_order="source",
        knockdown_rows=(),
        summary="{}",
    )
    writer = StoreWriter(
        folder,
        num_cells=shape.num_cells,
        num_genes=shape.num_genes,
        num_entries=sparse.nnz,
        dtype=np.uint32,
        shards=ShardSizes(shape.chunk, shape.chunk * shape.chunks_per_shard),
    )
    writer.append(sparse.indptr.astype(np.int64), sparse.indices.astype(np.int32), sparse.data)
    writer.finish(
        obs=pd.DataFrame(
            {"weight": cell % 3, "text": "a", **columns}, index=[f"c{number}" for number in cell]
        ),
        var=pd.DataFrame(index=[f"g{number}" for number in gene]),
        labels=labels,
        fingerprint="made by a test",
    )
    return open_store(folder)


def nodes() -> NDArray[np.int32]:
    """(R, 2) twice the code, and for odd codes once more."""
    code = np.arange(NUM_PERTURBATIONS)
    table = np.stack([2 * code, np.where(code % 2, 2 * code + 1, -1)], axis=1)
    table[0] = -1
    return table.astype(np.int32)


def loader(
    store: CellStore,
    *,
    rank: int,
    world: int,
    minibatch_size: int,
    which: str = "selected",
    matching: ControlMatching = "matched",
    table: ControlTable | None = None,
    **data: object,
) -> CellLoader:
    genes = store.selected if which == "selected" else np.arange(len(store.genes))
    return CellLoader(
        store,
        np.arange(store.num_cells),
        genes=genes,
        nodes_RM=nodes(),
        data=Data.model_validate({"store": store.path, "control_matching": matching, **data}),
        table=control_table(store, matching, genes) if table is None else table,
        seed=3,
        rank=rank,
        world=world,
        minibatch_size=minibatch_size,
    )


def cells_of(rows: SparseRows, genes: NDArray[np.int64], num_genes: int) -> tuple[list[int], list[str]]:
    """The cell that each row's values name, and what is wrong with the rows."""
    cells, wrong = [], []
    for first, last in zip(rows.indptr[:-1].tolist(), rows.indptr[1:].tolist(), strict=True):
        value = rows.value[first:last].astype(np.int64) - 1
        named = np.unique(value // num_genes)
        if len(named) != 1:
            wrong.append(f"a row holds entries of cells {named.tolist()}")
            cells.append(-1)
            continue
        cell = named[0]
        if (genes[rows.gene[first:last]] != value % num_genes).any():
            wrong.append(f"cell {cell}: gene numbers are not those of its values")
        if (value % num_genes).tolist() != genes[has_entry(cell, genes)].tolist():
            wrong.append(f"cell {cell}: lacks entries, or has them in another order")
        cells.append(int(cell))
    found = np.array(cells)
    if (rows.library_size != library_size_of(found))[found >= 0].any():
        wrong.append("a library size is another cell's")
    return cells, wrong


def faults(minibatches: Iterable[Minibatch], one: CellLoader) -> tuple[list[int], list[str]]:
    """The cells that were served, in order, and everything that is wrong with them."""
    num_genes = len(one.store.genes)
    served: list[int] = []
    wrong: list[str] = []
    controls = None
    if one.table.cells is not None:
        names, bad = cells_of(one.table.cells, one.genes, num_genes)
        controls = np.array(names)
        wrong += bad
    for minibatch in minibatches:
        cells, bad = cells_of(minibatch.cells, one.genes, num_genes)
        served += cells
        wrong += bad
        cell = np.array(cells)[np.array(cells) >= 0]
        known = np.array(cells) >= 0
        if (minibatch.perturbations_BM[known] != nodes()[perturbation_of(cell)]).any():
            wrong.append("a perturbation is another cell's")
        if controls is not None:
            wrong += control_faults(cell, controls[minibatch.control[known]], one.data.control_matching)
        elif (minibatch.control[known] != one.table.group_of_context[context_of(cell)]).any():
            wrong.append("a mean control is of another context")
    return served, wrong


def control_faults(
    cell: NDArray[np.int64], control: NDArray[np.int64], matching: ControlMatching
) -> list[str]:
    """What is wrong with ``control`` as the controls of ``cell``."""
    line = np.array([context.cell_line for context in CONTEXTS])
    own, other = context_of(cell), context_of(control)
    wrong = []
    if (perturbation_of(control) != 0).any():
        wrong.append("a control is a perturbed cell")
    if (line[own] != line[other]).any():
        wrong.append("a control is of another cell line")
    if matching == "matched" and ((own != other) & (own != ORPHAN)).any():
        wrong.append("a control is of another batch")
    return wrong


def interrupted_epoch(
    store: CellStore,
    *,
    worlds: tuple[int, int],
    stop: int,
    epoch: int,
    minibatch_size: int,
    **options: object,
) -> list[str]:
    """What is wrong with an epoch that stops at a step on one world and goes on on another."""
    served: list[int] = []
    wrong: list[str] = []
    num_steps = store.num_cells // minibatch_size
    stop = min(stop, num_steps)
    for world, first, last in ((worlds[0], 0, stop), (worlds[1], stop, num_steps)):
        for rank in range(world):
            one = loader(store, rank=rank, world=world, minibatch_size=minibatch_size, **options)  # type: ignore[arg-type]
            minibatches = one.epoch(epoch, first)
            cells, bad = faults((next(minibatches) for _ in range(last - first)), one)
            if last == num_steps and next(minibatches, None) is not None:
                bad.append("an epoch is longer than it is")
            minibatches.close()  # type: ignore[attr-defined]
            if len(cells) != (last - first) * minibatch_size // world:
                bad.append("a minibatch has another number of cells")
            served += cells
            wrong += bad
    if len(served) != num_steps * minibatch_size or len(set(served)) != len(served):
        wrong.append("a cell was served twice, or not at all")
    return wrong


def main() -> None:
    """Print whether the copy of the software that this process finds has a fault that shows."""
    with tempfile.TemporaryDirectory() as folder:
        wrong = []
        for number, shape in enumerate((Shape(90), Shape(61, chunk=16, order_seed=1))):
            store = write(Path(folder) / str(number), shape)
            for which, matching in (("selected", "matched"), ("all", "random"), ("selected", "matched_mean")):
                options = {"which": which, "matching": matching, "chunk": 7, "window": 3}
                wrong += interrupted_epoch(
                    store, worlds=(2, 3), stop=2, epoch=number, minibatch_size=12, **options
                )
    print("FAULTS" if wrong else "EXACT", *sorted(set(wrong)), sep="\n")


if __name__ == "__main__":
    sys.exit(main())
